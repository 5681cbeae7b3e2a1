"""Suggested numbers, from a measure or from parameters, against closed forms; and saddles that are left by them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pwgf_jax import Particles, functionals, problems, pwgf, run
from pwgf_jax.perturbation import hessian_noise
from pwgf_jax.theory import estimate_smoothness, suggest_parameters
from pwgf_jax.transforms import gradient_trigger, perturb_at_saddle
from tests.oracles import closed_forms
from tests.transforms.driving import drive

KEY = jax.random.key(0)


def well(x):
    """−|x₁|²/2 + x₁⁴/4 + |rest|²/2: the Hessian is −1 + 3x₁² and ones."""
    return problems.double_well(3).value(x)


def mean_well(mu):
    """The same of the mean: its integral Hessian has the same eigenvalues, at any centred measure."""
    return well(mu.weights @ mu.points)


CENTRED = Particles(jnp.asarray([[1.0, 0.0, 2.0], [-0.5, 0.0, -1.0]]), jnp.asarray([1 / 3, 2 / 3]))
BOTH: Any = pytest.mark.parametrize(
    ("objective", "point"),
    [(well, jnp.zeros(3)), pytest.param(mean_well, CENTRED, marks=pytest.mark.slow)],
    ids=["parameters", "measure"],
)


@BOTH
def test_what_is_measured_at_the_saddle_of_the_double_well_is_known_there(objective, point):
    found = suggest_parameters(objective, point, key=KEY)
    smoothness = 0.5 / found.step_size
    assert 1 <= smoothness <= 4  # ℓ = 3r² − 1 where 3r² is between ½ and 2
    assert found.delta == pytest.approx(min(smoothness / 10, 0.5))
    rho = (found.delta**3 / (10 * found.f_thres)) ** 0.5
    assert 0.5 <= rho <= 6  # 3r
    assert found.eps <= found.delta**2 / rho * (1 + 1e-6)
    given = suggest_parameters(objective, point, key=KEY, delta=0.2, step_size=0.1)
    assert (given.delta, given.step_size) == (0.2, 0.1)
    np.testing.assert_allclose(given.f_thres, found.f_thres * (0.2 / found.delta) ** 3, rtol=1e-9)


@pytest.mark.slow
@BOTH
def test_advice_follows_a_change_of_units(objective, point):
    force, length = 7.0, 0.25

    def changed(at):
        back = jax.tree.map(lambda x: x / length, at.points if isinstance(at, Particles) else at)
        return force * length * objective(at.moved_to(back) if isinstance(at, Particles) else back)

    if isinstance(point, Particles):
        moved: Any = point.moved_to(length * point.points)
    else:
        point = point + 0.01  # a zero has no scale
        moved = length * point
    before, after = suggest_parameters(objective, point, key=KEY), suggest_parameters(changed, moved, key=KEY)
    assert abs(before.k_thres - after.k_thres) <= 1
    for name, unit in {
        "eps": force,
        "delta": force / length,
        "eta_p": length**2 / force,
        "f_thres": force * length,
        "step_size": length / force,
    }.items():
        np.testing.assert_allclose(getattr(after, name), unit * getattr(before, name), rtol=1e-6, err_msg=name)


SADDLES = {
    "double well": (problems.double_well(3, dtype=jnp.zeros(()).dtype), 0),
    "matrix factorisation": (problems.symmetric_factorization(jnp.diag(jnp.asarray([3.0, 2.0, 1.0])), 1), 0),
}


@pytest.mark.parametrize("name", ["double well", pytest.param("matrix factorisation", marks=pytest.mark.slow)])
def test_perturb_at_saddle_leaves_by_the_numbers_suggested_at_the_saddle_itself(name):
    problem, which = SADDLES[name]
    saddle = problem.saddles[which]
    found = suggest_parameters(problem.value, saddle.point, key=KEY)
    trigger = gradient_trigger(eps=found.eps, k_thres=found.k_thres, f_thres=found.f_thres)
    optimizer = perturb_at_saddle(optax.sgd(found.step_size), hessian_noise(found.eta_p), trigger, key=KEY)
    x, state, _ = drive(optimizer, problem.value, saddle.point, 4 * found.k_thres)
    assert problem.value(x) < saddle.value - 10 * found.f_thres
    np.testing.assert_allclose(problem.value(x), problem.minimum.value, atol=1e-3)
    assert bool(state.stopped)  # and it is at the minimum that it stops


@pytest.mark.slow
def test_pwgf_leaves_the_saddle_of_matrix_factorisation_by_the_numbers_suggested_there():
    draw = np.random.default_rng(1)
    F = functionals.matrix_factorization(jnp.asarray(draw.normal(size=(6, 2))), jnp.asarray(draw.normal(size=(6, 1))))
    saddle = closed_forms.antithetic(draw.normal(size=(3, 1)), draw.normal(size=(3, 2)))  # h ≡ 0
    mu = Particles.uniform(jnp.asarray(saddle))
    found = suggest_parameters(F, mu, key=KEY)
    solution = run(pwgf(found.step_size, **found), F, mu, KEY, 3 * found.k_thres)
    assert solution.value < 0.5 * F(mu)


def test_pwgf_leaves_by_the_numbers_suggested_at_the_saddle_itself():
    found = suggest_parameters(mean_well, CENTRED, key=KEY)
    solution = run(pwgf(found.step_size, **found), mean_well, CENTRED, KEY, 4 * found.k_thres)
    np.testing.assert_allclose(solution.value, -0.25, atol=1e-3)
    assert solution.status.item() != 0


@pytest.mark.parametrize("radius", [0.5, 2.0])
def test_smoothness_of_a_loss_comes_from_below_and_close(radius):
    """−1 + 3x₁² in |x| ≤ r, and its Lipschitz constant there is 6r."""
    found = estimate_smoothness(well, jnp.zeros(3), key=KEY, radius=radius, probes=20)
    assert 0.6 <= found.lipschitz_gradient / max(1, 3 * radius**2 - 1) <= 1 + 1e-9
    assert 0.6 <= found.lipschitz_hessian / (6 * radius) <= 1 + 1e-9
    assert found.lipschitz_local == 0


def test_what_has_no_scale_is_refused():
    with pytest.raises(ValueError, match="such an objective has no scale to choose by"):
        suggest_parameters(lambda x: jnp.sum(x**2), jnp.ones(3), key=KEY)
    with pytest.raises(TypeError, match="suggest_parameters: key is a uint32 array"):
        suggest_parameters(well, jnp.ones(3), key=jax.random.PRNGKey(0))
    with pytest.raises(ValueError, match="depth=0"):
        suggest_parameters(well, jnp.ones(3), key=KEY, depth=0)
