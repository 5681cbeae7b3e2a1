"""PWGF that looks at the smallest eigenvalue before it jumps or stops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwgf_jax import Particles, Status, certified_pwgf, functionals, hessian_noise, norm, pwgf, run, sweep
from pwgf_jax.transforms import certificate_trigger
from tests.oracles.closed_forms import Network, antithetic, matrix_loss, mean_quartic

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
DELTA = 0.2


def rng(seed=0):
    return np.random.default_rng(seed)


def centred(dtype=jnp.float64):
    points = rng(1).normal(size=(4, 2))
    return Particles.uniform(jnp.asarray(points - points.mean(axis=0), dtype))


def certified(eta=0.2, *, eps=1e-3, eta_p=0.05, k_thres=30, f_thres=1e-3, delta=DELTA, depth=12, along="noise"):
    jumps = {"eps": eps, "eta_p": eta_p, "k_thres": k_thres, "f_thres": f_thres}
    noise = hessian_noise(eta_p) if along == "noise" else None
    return certified_pwgf(eta, **jumps, delta=delta, depth=depth, perturbation=noise)


def factorization():
    draw = rng(4)
    a, w = draw.normal(size=(2, 1)), draw.normal(size=(2, 2))
    F = functionals.matrix_factorization(jnp.asarray(draw.normal(size=(6, 2))), jnp.asarray(draw.normal(size=(6, 1))))
    return F, Particles.uniform(jnp.asarray(antithetic(a, w)))


@pytest.mark.parametrize(("along", "dtype"), [("noise", jnp.float64), ("direction", jnp.float32)])
def test_it_jumps_at_the_saddle_and_stops_at_once_at_the_minimum(along, dtype):
    start = centred(dtype)
    direct = run(certified(along=along), mean_quartic, start, KEY, steps=300)
    indirect = run(pwgf(0.2, eps=1e-3, eta_p=0.05, k_thres=30, f_thres=1e-3), mean_quartic, start, KEY, steps=300)
    assert (int(direct.status), int(indirect.status)) == (Status.certified, Status.no_decrease)
    np.testing.assert_allclose(direct.value, -0.25, atol=1e-5)
    jumps = np.flatnonzero(direct.records["perturbed"])
    # every jump is from a point of curvature F's −1 + |m|² < −δ, and at the minimum there is none
    assert jumps[0] == 0
    small = direct.records["gradient_norm"][jumps] <= 1e-3
    assert np.all(small)
    assert np.all(direct.records["value"][jumps] > -0.1)
    # the first time after the window that the gradient is small at the minimum is the end: no window is waited for
    arrived = np.flatnonzero((direct.records["gradient_norm"] <= 1e-3) & (direct.records["value"] < -0.2))[0]
    assert int(direct.steps) == max(arrived, jumps[-1] + 31)
    assert indirect.records["perturbed"].sum() == len(jumps) + 1
    assert int(indirect.steps) >= 30
    if along == "noise":
        assert int(direct.steps) < int(indirect.steps) - 15


def test_a_certified_minimum_is_returned_as_it_is_without_a_jump():
    minimum = centred()
    minimum = minimum.moved_to(minimum.points + jnp.asarray([[0.6, 0.8]]))
    solution = run(certified(), mean_quartic, minimum, KEY, steps=50)
    assert (int(solution.status), int(solution.steps)) == (Status.certified, 0)
    assert not np.any(solution.records["perturbed"])
    np.testing.assert_array_equal(solution.mu.points, minimum.points)


def convex(mu):
    return jnp.sum((mu.weights @ mu.points) ** 2) / 2


def test_on_a_convex_functional_it_never_jumps():
    start = centred()
    start = start.moved_to(start.points + 1)
    direct = run(certified(), convex, start, KEY, steps=100)
    indirect = run(pwgf(0.2, eps=1e-3, eta_p=0.05, k_thres=30, f_thres=1e-3), convex, start, KEY, steps=100)
    assert int(direct.status) == Status.certified
    assert not np.any(direct.records["perturbed"])
    assert int(direct.steps) == np.argmax(direct.records["gradient_norm"] <= 1e-3)
    assert int(indirect.steps) == int(direct.steps) + 31


def test_a_saddle_is_never_returned_however_little_a_window_buys():
    """Tiny jumps, a short window and a large threshold: the indirect test takes the saddle for a solution."""
    start = centred()
    options = {"eta": 0.05, "eta_p": 1e-5, "k_thres": 3, "f_thres": 0.1, "eps": 1e-2}
    solutions = sweep(
        certified(along="direction", **options), lambda key: (mean_quartic, start), jax.random.split(KEY, 4), steps=400
    )
    assert np.all(np.asarray(solutions.value) < -0.2)
    assert np.sum(solutions.records["perturbed"][:, :5], axis=1).tolist() == [2] * 4  # again and again
    eta = options.pop("eta")
    fooled = run(pwgf(eta, **options), mean_quartic, start, KEY, steps=400)
    assert (int(fooled.status), int(fooled.steps)) == (Status.no_decrease, 4)
    np.testing.assert_array_equal(fooled.mu.points, start.points)


def test_noise_leaves_the_saddle_of_a_network():
    F, saddle = factorization()
    solution = run(certified(0.3, eps=1e-2, delta=0.05, eta_p=0.1), F, saddle, KEY, steps=80)
    assert bool(solution.records["perturbed"][0])
    assert float(solution.value) < 0.8 * float(F(saddle))
    assert int(solution.status) != Status.not_finite


def hill(mu):
    return mu.weights @ jnp.sum(jnp.cos(mu.points), axis=1)


@pytest.mark.parametrize("along", ["noise", "direction"])
def test_what_only_the_full_hessian_sees_is_left_along_its_direction(along, dtype):
    """H is zero for a potential, and so is Hessian-guided noise: the direction found takes its place."""
    start = Particles.uniform(jnp.zeros((3, 2), dtype))
    solution = run(certified(along=along), hill, start, KEY, steps=120)
    assert bool(solution.records["perturbed"][0])
    assert float(solution.value) < -0.5
    # and without a certificate, the noise of zero buys nothing, which is all that the status says
    indirect = run(pwgf(0.2, eps=1e-3, eta_p=0.05, k_thres=30, f_thres=1e-3), hill, start, KEY, steps=120)
    assert (int(indirect.status), float(indirect.value)) == (Status.no_decrease, 2)


def bowl(mu):
    return mu.weights @ jnp.sum(jnp.asarray([[1.0, 3.0]]) * mu.points**2, axis=1) / 2


def test_undecided_falls_back_on_the_indirect_test():
    """One Lanczos step proves nothing: jump, wait, and return the measure from before the jump."""
    start = Particles.uniform(1e-5 * jnp.asarray(rng(2).normal(size=(4, 2))))
    solution = run(certified(depth=1, along="direction", k_thres=5), bowl, start, KEY, steps=50)
    assert int(solution.status) == Status.no_decrease
    assert np.flatnonzero(solution.records["perturbed"]).tolist() == [0]
    assert int(solution.steps) == 6
    np.testing.assert_array_equal(solution.mu.points, start.points)
    decided = run(certified(depth=8, along="direction", k_thres=5), bowl, start, KEY, steps=50)
    assert int(decided.steps) == 0


def test_an_examination_finds_the_displacement_of_the_noises_own_size(dtype, tolerance):
    F, saddle = factorization()
    F, saddle = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (F, saddle))
    trigger = certificate_trigger(eps=0.1, delta=0.05, k_thres=5, f_thres=0.0, eta_p=0.3, depth=12)
    examine = trigger.examine
    assert examine is not None
    seen = jax.jit(lambda mu: examine(KEY, F, mu))(saddle)
    assert bool(seen.saddle)
    assert not bool(seen.optimal)
    assert seen.escape.dtype == dtype
    x = np.asarray(saddle.points, np.float64)
    inputs, targets = np.asarray(F.inputs, np.float64), np.asarray(F.targets, np.float64)
    dense = Network(x, np.full(4, 0.25), inputs, lambda h: matrix_loss(h, targets), 1).integral_matrix()
    least = np.linalg.eigvalsh(dense)[0]
    np.testing.assert_allclose(norm(saddle, seen.escape), 0.3 * abs(least), rtol=tolerance(dtype, 10))


# --- batches of seeds -------------------------------------------------------------------------------------------------


def test_seeds_in_a_batch_end_as_alone():
    method = certified(along="direction")
    minimum = centred().points + jnp.asarray([[0.6, 0.8]])
    starts = [centred().points, minimum, centred().points + 0.3]
    keys = jax.random.split(KEY, 3)
    init = jax.vmap(lambda key, x: method.init(key, mean_quartic, Particles.uniform(x)))
    step = jax.vmap(lambda key, state: method.step(key, mean_quartic, state))
    states = init(keys, jnp.stack(starts))
    together, infos = jax.jit(step)(keys, states)
    assert infos.perturbed.tolist() == [True, False, False]
    assert infos.status.tolist() == [Status.running, Status.certified, Status.running]
    alone = jax.jit(method.step, static_argnums=1)
    for i, key in enumerate(keys):
        state, info = alone(key, mean_quartic, jax.tree.map(lambda leaf, i=i: leaf[i], states))
        np.testing.assert_allclose(together.mu.points[i], state.mu.points, atol=1e-10)
        assert bool(info.perturbed) == bool(infos.perturbed[i])


# --- refusals ---------------------------------------------------------------------------------------------------------

JUMPS = {"eps": 0.1, "eta_p": 0.1, "k_thres": 3, "f_thres": 0.1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delta": 0.0}, "delta=0.0; give a positive curvature"),
        ({"delta": float("nan")}, "delta=nan"),
        ({"delta": 0.1, "depth": 0}, "depth=0"),
        ({"delta": 0.1, "k_thres": 0}, "k_thres=0"),
        ({"delta": 0.1, "eta_p": -1.0}, "eta_p=-1.0"),
        ({"delta": 0.1, "eta_p": float("nan")}, "eta_p=nan"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        certified_pwgf(0.1, **{"delta": 0.1, **JUMPS, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [({"failure": 0.0}, "failure=0.0"), ({"failure": 1.0}, "failure=1.0"), ({"eta_p": float("inf")}, "eta_p=inf")],
)
def test_impossible_numbers_of_a_trigger_are_refused(options, message):
    with pytest.raises(ValueError, match=f"certificate_trigger: .*{message}"):
        certificate_trigger(eps=0.1, delta=0.1, k_thres=3, f_thres=0.0, **options)
