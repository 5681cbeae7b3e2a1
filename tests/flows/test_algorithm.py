"""PWGF against Algorithm 2 of arXiv:2509.16974, written out again in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwgf_jax import Particles, Status, flow, functionals, hessian_guided, hessian_matrix, isotropic_pwgf, pwgf, run
from pwgf_jax.flows import gradient as gradient_direction
from pwgf_jax.measures import norm_squared
from pwgf_jax.transforms import gradient_trigger
from tests.oracles import closed_forms
from tests.oracles.closed_forms import mean_quartic


def algorithm_2(value, gradient, noise, x, *, eta, eps, eta_p, k_thres, f_thres, steps):
    """The algorithm, line by line: (measures after every step, steps that jumped, whether it stopped)."""
    k_p, saved, path, jumps = -np.inf, x, [], []
    for k in range(steps):
        norm = np.sqrt(np.mean(np.sum(gradient(x) ** 2, axis=1)))
        if norm <= eps and k - k_p > k_thres:
            saved, k_p = x, k
            jumps.append(k)
            x = x + eta_p * noise(k, x)
        x = x - eta * gradient(x)
        if k == k_p + k_thres and value(saved) - value(x) <= f_thres:
            return [*path, saved], jumps, True
        path.append(x)
    return path, jumps, False


def trajectory(method, F, mu, steps):
    """Every state and info of a run, by the flow's own functions."""
    keys = jax.random.split(jax.random.key(2), steps)

    @jax.jit
    def scan(mu):
        state = method.init(keys[0], F, mu)
        return jax.lax.scan(lambda state, key: (lambda pair: (pair[0], pair))(method.step(key, F, state)), state, keys)[
            1
        ]

    return scan(mu)


def quartic_problem():
    start = np.random.default_rng(0).normal(size=(5, 2))
    start -= np.mean(start, axis=0)

    def value(x):
        square = np.sum(np.mean(x, axis=0) ** 2)
        return square**2 / 4 - square / 2

    def gradient(x):
        return np.tile(closed_forms.mean_quartic_gradient(np.mean(x, axis=0)), (len(x), 1))

    return mean_quartic, value, gradient, start


def matrix_problem():
    draw = np.random.default_rng(1)
    inputs, targets = draw.normal(size=(6, 2)), draw.normal(size=(6, 1))
    start = closed_forms.antithetic(draw.normal(size=(3, 1)), draw.normal(size=(3, 2)))

    def network(x):
        return closed_forms.Network(x, np.full(6, 1 / 6), inputs, lambda h: closed_forms.matrix_loss(h, targets), 1)

    F = functionals.matrix_factorization(jnp.asarray(inputs), jnp.asarray(targets))
    return F, lambda x: network(x).value, lambda x: network(x).gradient(x), start


OPTIONS = {
    "quartic": {"eta": 0.3, "eps": 0.05, "eta_p": 0.1, "k_thres": 30, "f_thres": 1e-3},
    "matrix": {"eta": 0.5, "eps": 0.05, "eta_p": 0.2, "k_thres": 60, "f_thres": 1e-2},
}


@pytest.mark.parametrize(
    ("name", "problem"), [("quartic", quartic_problem), pytest.param("matrix", matrix_problem, marks=pytest.mark.slow)]
)
def test_the_composition_is_the_algorithm_as_printed(name, problem):
    F, value, gradient, start = problem()
    options, steps = OPTIONS[name], 200
    eta, eps, eta_p, k_thres, f_thres = options.values()

    def noise(mu):
        return hessian_guided(jax.random.key(1), F, mu)  # the same white noise at every jump

    draw = jax.jit(lambda x: noise(Particles.uniform(x)))
    path, jumps, stopped = algorithm_2(
        value, gradient, lambda k, x: np.asarray(draw(jnp.asarray(x))), start, steps=steps, **options
    )
    assert stopped
    assert len(jumps) >= 2  # at least one window paid, and one did not

    trigger = gradient_trigger(eps=eps, k_thres=k_thres, f_thres=f_thres)
    method = flow(gradient_direction, eta, lambda key, F, mu, step: eta_p * noise(mu), trigger)
    states, infos = trajectory(method, F, Particles.uniform(jnp.asarray(start)), steps)
    np.testing.assert_array_equal(np.flatnonzero(infos.perturbed), jumps)
    np.testing.assert_allclose(states.mu.points[: len(path)], path, atol=1e-8)
    expected = np.full(steps, Status.running)
    expected[len(path) - 1 :] = Status.no_decrease
    np.testing.assert_array_equal(infos.status, expected)
    np.testing.assert_allclose(infos.value[: len(path)], [value(x) for x in path], atol=1e-8)
    assert int(states.step[-1]) == len(path)
    # what is returned is the measure from before the last jump, bit for bit, and it stays
    for points in states.mu.points[len(path) - 1 :]:
        np.testing.assert_array_equal(points, states.mu.points[jumps[-1] - 1])


def test_pwgf_is_that_composition_with_hessian_guided_noise():
    F, _, _, start = matrix_problem()
    eta, eps, eta_p, k_thres, f_thres = OPTIONS["matrix"].values()
    trigger = gradient_trigger(eps=eps, k_thres=k_thres, f_thres=f_thres)
    composed = flow(gradient_direction, eta, lambda key, F, mu, step: eta_p * hessian_guided(key, F, mu), trigger)
    named = pwgf(eta, eps=eps, eta_p=eta_p, k_thres=k_thres, f_thres=f_thres)
    found, expected = (
        trajectory(method, F, Particles.uniform(jnp.asarray(start)), 100) for method in (named, composed)
    )
    assert np.sum(found[1].perturbed) >= 2
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("make", [pwgf, isotropic_pwgf])
def test_a_convex_functional_gets_one_jump_and_stops(make):
    def F(mu):
        return jnp.sum((mu.weights @ mu.points) ** 2) / 2

    method = make(0.2, eps=1e-3, eta_p=0.1, k_thres=10, f_thres=1e-4)
    start = jnp.asarray(np.random.default_rng(3).normal(size=(4, 2)) + 1)
    solution = run(method, F, Particles.uniform(start), jax.random.key(0), steps=200)
    assert int(solution.status) == Status.no_decrease
    jumps = np.flatnonzero(solution.records["perturbed"])
    assert len(jumps) == 1
    assert int(solution.steps) == jumps[0] + 10 + 1
    assert solution.records["gradient_norm"][jumps[0]] <= 1e-3 < solution.records["gradient_norm"][jumps[0] - 1]
    assert solution.value == solution.records["value"][jumps[0]]


def test_a_jump_at_the_first_step_returns_the_start_bit_for_bit():
    mu = Particles.uniform(jnp.asarray(np.random.default_rng(3).normal(size=(4, 2)), jnp.float32))
    method = pwgf(0.1, eps=1e6, eta_p=0.5, k_thres=4, f_thres=1e6)  # everything is stationary, nothing is enough
    solution = run(method, mean_quartic, mu, jax.random.key(0), steps=20)
    assert int(solution.steps) == 5
    np.testing.assert_array_equal(solution.mu.points, mu.points)
    assert solution.records["value"][2] != solution.records["value"][0]  # it had moved


def test_without_noise_a_saddle_is_a_solution():
    _, _, _, start = quartic_problem()
    mu = Particles.uniform(jnp.asarray(start))
    solution = run(
        pwgf(0.3, eps=0.05, eta_p=0.0, k_thres=6, f_thres=1e-6), mean_quartic, mu, jax.random.key(0), steps=100
    )
    assert int(solution.status) == Status.no_decrease
    assert int(solution.steps) == 7
    np.testing.assert_array_equal(solution.mu.points, mu.points)


@pytest.mark.slow
def test_escape_takes_the_logarithm_of_the_noise():
    """|m| grows by 1 + η a step, so noise smaller by 10⁴ costs log 10⁴ / log(1 + η) steps more."""
    _, _, _, start = quartic_problem()
    eta, escaped = 0.1, {}
    for eta_p in (1e-3, 1e-7):
        method = pwgf(eta, eps=1e-12, eta_p=eta_p, k_thres=400, f_thres=1e-3)
        mu = Particles.uniform(jnp.asarray(start))
        solution = run(method, mean_quartic, mu, jax.random.key(1), steps=300)
        assert np.flatnonzero(solution.records["perturbed"]).tolist() == [0]
        escaped[eta_p] = int(np.argmax(solution.records["value"] < -0.125))
    assert escaped[1e-3] > 0
    assert abs(escaped[1e-7] - escaped[1e-3] - np.log(1e4) / np.log(1 + eta)) <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "options"),
    [(pwgf, {}), (isotropic_pwgf, {}), (isotropic_pwgf, {"lengthscale": 5.0})],
    ids=["hessian", "independent", "smooth"],
)
def test_all_noises_have_the_same_energy(make, options):
    F, _, _, start = matrix_problem()
    mu = Particles.uniform(jnp.asarray(start))
    tiny = 1e-12  # of a step: what moves is the jump
    method = make(tiny, eps=1e-3, eta_p=0.1, k_thres=5, f_thres=0.0, **options)

    @jax.jit
    @jax.vmap
    def energy(key):
        state, info = method.step(key, F, method.init(key, F, mu))
        return norm_squared(mu, state.mu.points - mu.points), info.perturbed

    found, perturbed = energy(jax.random.split(jax.random.key(0), 4000))
    H = np.asarray(hessian_matrix(F, mu))
    expected = 0.01 * np.trace(H @ H)
    assert np.all(perturbed)
    error = np.std(found) / np.sqrt(found.size)
    assert error < 0.05 * expected
    np.testing.assert_allclose(np.mean(found), expected, atol=4 * error + 0.05 * expected)


@pytest.mark.parametrize("lengthscale", [None, 1.0])
def test_isotropic_noise_takes_a_scale_of_its_own(lengthscale):
    mu = Particles.uniform(jnp.zeros((2000, 2)))
    mu = mu.moved_to(jnp.asarray(np.random.default_rng(0).uniform(-50, 50, size=(2000, 2))))
    mu = mu.moved_to(mu.points - jnp.mean(mu.points, axis=0)[None])
    method = isotropic_pwgf(1e-12, eps=1e-3, eta_p=0.1, k_thres=5, f_thres=0.0, scale=3.0, lengthscale=lengthscale)
    step = jax.jit(lambda key: method.step(key, mean_quartic, method.init(key, mean_quartic, mu)))
    state, info = step(jax.random.key(0))
    assert bool(info.perturbed)
    np.testing.assert_allclose(np.std(state.mu.points - mu.points), 0.3, rtol=0.1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: pwgf(0.1, eps=-1.0, eta_p=0.1, k_thres=5, f_thres=0.1), "eps=-1.0"),
        (lambda: pwgf(0.1, eps=0.1, eta_p=-0.1, k_thres=5, f_thres=0.1), "eta_p=-0.1; give a non-negative factor"),
        (lambda: pwgf(0.1, eps=0.1, eta_p=float("inf"), k_thres=5, f_thres=0.1), "eta_p=inf"),
        (lambda: pwgf(0.1, eps=0.1, eta_p=0.1, k_thres=0, f_thres=0.1), "k_thres=0"),
        (lambda: pwgf(-0.1, eps=0.1, eta_p=0.1, k_thres=5, f_thres=0.1), "step_size=-0.1; give a positive number"),
        (lambda: isotropic_pwgf(0.1, eps=0.1, eta_p=0.1, k_thres=5, f_thres=0.1, scale=0.0), "scale=0.0"),
        (lambda: isotropic_pwgf(0.1, eps=0.1, eta_p=0.1, k_thres=5, f_thres=0.1, lengthscale=-1.0), "lengthscale=-1.0"),
    ],
)
def test_impossible_numbers_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
