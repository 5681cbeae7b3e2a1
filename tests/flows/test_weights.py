"""Weights that move: closed forms, a quadratic programme, the continuous flow, and the laws of a splitting."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import minimize

from pwgf_jax import Flow, Particles, Status, flow, flows, functionals, run, sweep, wgf
from pwgf_jax.flows import gradient, mirror, reweighted
from pwgf_jax.functionals import mmd, potential
from pwgf_jax.kernels import gaussian
from pwgf_jax.transforms import cubic_newton


def rng(seed=0):
    return np.random.default_rng(seed)


def points(*shape, seed=0, dtype=jnp.float64):
    return jnp.asarray(rng(seed).normal(size=shape), dtype)


def unequal(n, seed=0, dtype=jnp.float64):
    w = rng(seed).uniform(0.2, 1, n)
    return jnp.asarray(w / w.sum(), dtype)


def at_rest(step):
    """Weights that move on points that do not."""
    return flow(gradient, optax.set_to_zero(), weights=mirror(step))


def after(method, F, mu, steps, key):
    return run(method, F, mu, key, steps=steps).mu


# --- the step ---------------------------------------------------------------------------------------------------------


def test_under_a_potential_the_weights_are_those_of_its_gibbs_measures(dtype, tolerance, key):
    mu = Particles(points(5, 2, dtype=dtype), unequal(5, dtype=dtype))
    V = jnp.sum(mu.points**2, axis=1)
    found = after(at_rest(0.3), potential(lambda x: jnp.sum(x**2)), mu, 7, key).weights
    expected = mu.weights * jnp.exp(-7 * 0.3 * V)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected / jnp.sum(expected), rtol=tolerance(dtype))


def test_mass_is_kept_zeros_stay_and_nothing_overflows(dtype, key):
    heights = jnp.asarray([[-1e5], [0.0], [3.0], [1e5]], dtype)
    mu = Particles(heights, jnp.asarray([0.0, 0.5, 0.25, 0.25], dtype))
    F = potential(lambda x: x[0])
    for steps in (1, 3, 50):
        weights = after(at_rest(10.0), F, mu, steps, key).weights
        np.testing.assert_allclose(jnp.sum(weights), 1, rtol=1e-6)
        assert float(weights[0]) == 0
        assert bool(jnp.all(weights[1:] > 0))  # none is lost for good
    np.testing.assert_allclose(weights[1], 1, rtol=1e-6)
    back = after(at_rest(10.0), potential(lambda x: -x[0]), Particles(heights, weights), 1, key).weights
    np.testing.assert_allclose(back, [0, 0, 0, 1], atol=1e-6)


def test_the_schedule_of_a_step_is_that_of_the_run(key):
    mu, F = Particles.uniform(points(3, 1)), potential(lambda x: x[0])
    found = after(at_rest(lambda step: jnp.where(step == 1, 0.7, 0.0)), F, mu, 4, key).weights
    expected = jnp.exp(-0.7 * mu.points[:, 0])
    np.testing.assert_allclose(found, expected / jnp.sum(expected), rtol=1e-12)


# --- minimisation -----------------------------------------------------------------------------------------------------


def test_mmd_falls_at_every_step_as_long_as_the_kernel_allows(key):
    F, mu = mmd(points(9, 2, seed=1), gaussian(1.0)), Particles(3 * points(6, 2), unequal(6))
    values = run(at_rest(1.0), F, mu, key, steps=40).records["value"]  # k(x, x) = 1
    assert bool(jnp.all(jnp.diff(values) < 0))


def test_the_weights_of_fixed_points_come_to_the_minimiser_of_the_quadratic_programme(key):
    target, fixed, k = points(9, 1, seed=1), jnp.asarray([[-2.0], [-0.5], [-0.3], [0.2], [1.0], [4.0]]), gaussian(0.8)
    K, c = np.asarray(k(fixed, fixed)), np.asarray(jnp.mean(k(fixed, target), axis=1))
    constant = float(jnp.mean(k(target, target))) / 2
    best = minimize(
        lambda w: w @ K @ w / 2 - w @ c,
        np.full(6, 1 / 6),
        jac=lambda w: K @ w - c,
        bounds=[(0, 1)] * 6,
        constraints={"type": "eq", "fun": lambda w: np.sum(w) - 1},
        options={"ftol": 1e-14},
    )
    assert best.success
    assert np.min(best.x) < 1e-6  # the far point is not needed
    found = run(at_rest(5.0), mmd(target, k), Particles.uniform(fixed), key, steps=4000)
    np.testing.assert_allclose(found.value, best.fun + constant, atol=1e-7)
    np.testing.assert_allclose(found.mu.weights, best.x, atol=2e-3)


# --- the flow in the points beside it ---------------------------------------------------------------------------------


def velocities(F, x, w):
    """The Wasserstein–Fisher–Rao flow from the value alone: F'(x_i) is ∂F/∂w_i, ∇F'(x_i) is ∂F/∂x_i over w_i."""
    dx, dw = jax.grad(lambda x, w: F(Particles(x, w)), argnums=(0, 1))(x, w)
    return -dx / w[:, None], -w * (dw - w @ dw)


def test_halving_both_steps_halves_the_distance_to_the_continuous_flow(key):
    F, mu, time, ratio = mmd(points(7, 1, seed=1), gaussian(1.0)), Particles(points(4, 1), unequal(4)), 2.0, 3.0

    @jax.jit
    def field(y):
        dx, dw = velocities(F, y[:4, None], y[4:])
        return jnp.concatenate([dx[:, 0], ratio * dw])

    start = np.concatenate([mu.points[:, 0], mu.weights])
    exact = solve_ivp(lambda t, y: np.asarray(field(jnp.asarray(y))), (0, time), start, rtol=1e-10, atol=1e-12).y[:, -1]
    assert np.max(np.abs(exact - start)[4:]) > 0.05  # mass has moved
    errors = []
    for steps in (40, 80, 160):
        end = after(reweighted(wgf(time / steps), mirror(ratio * time / steps)), F, mu, steps, key)
        errors.append(np.linalg.norm(np.concatenate([end.points[:, 0], end.weights]) - exact))
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 2, atol=0.1)


JUMPS = {"eps": 10.0, "eta_p": 0.1, "k_thres": 9, "f_thres": 0.0}
METHODS = {
    "wgf": lambda: wgf(0.1),
    "adam": lambda: wgf(optax.adam(0.1)),
    "pwgf": lambda: flows.pwgf(0.1, **JUMPS),
    "noise injection": lambda: flows.noise_injection(0.1, 0.5),
    "langevin": lambda: flows.langevin(0.1, temperature=0.1),
    "saddle-free Newton": lambda: flows.saddle_free_newton(0.1, beta=0.1, depth=4),
    "svgd": lambda: flows.svgd(0.1, kernel=gaussian(1.0)),
    "cubic Newton": lambda: flow(gradient, cubic_newton(6.0, key=jax.random.key(0))),
    "seeded": lambda: flows.seeded(lambda key: optax.sgd(0.1)),
    "batches": lambda: flows.minibatch(wgf(0.1), 9),
}


slowly = lambda names: [pytest.param(name, marks=pytest.mark.slow) for name in names]  # noqa: E731


@pytest.mark.parametrize("name", ["wgf", "pwgf", *slowly(sorted(METHODS.keys() - {"wgf", "pwgf"}))])
def test_every_flow_takes_its_step_in_the_points_and_then_the_one_in_the_weights(name, key):
    F, mu, method = mmd(points(9, 2, seed=1), gaussian(1.0)), Particles(points(4, 2), unequal(4)), METHODS[name]()

    @jax.jit
    def both():
        plain, moving = (each.step(key, F, each.init(key, F, mu))[0] for each in (method, weighted))
        variation = jax.grad(lambda w: F(Particles(plain.mu.points, w)))(mu.weights)
        return plain.mu.points, mu.weights * jnp.exp(-0.8 * variation), moving

    weighted = reweighted(method, mirror(0.8))
    expected, masses, found = both()
    np.testing.assert_allclose(found.mu.points, expected, atol=1e-10)
    np.testing.assert_allclose(found.mu.weights, masses / jnp.sum(masses), rtol=1e-10)
    np.testing.assert_allclose(found.evaluation.value, F(found.mu), rtol=1e-10)  # where both have led


@pytest.mark.parametrize("name", ["wgf", *slowly(["adam", "saddle-free Newton"])])
def test_a_particle_split_in_two_moves_as_the_whole_one(name, key):
    F, method = mmd(points(9, 2, seed=1), gaussian(1.0)), reweighted(METHODS[name](), mirror(0.8))
    x, w = points(3, 2), unequal(3)
    whole = after(method, F, Particles(x, w), 5, key)
    split = after(method, F, Particles(jnp.concatenate([x, x[:1]]), jnp.append(w, 0.3 * w[0]).at[0].mul(0.7)), 5, key)
    np.testing.assert_allclose(split.points, jnp.concatenate([whole.points, whole.points[:1]]), atol=1e-9)
    np.testing.assert_allclose(split.weights[:3].at[0].add(split.weights[3]), whole.weights, rtol=1e-9)


def test_seeds_of_a_sweep_have_weights_of_their_own(key):
    F = mmd(points(9, 2, seed=1), gaussian(1.0))

    def problem(key):
        return F, Particles.uniform(jax.random.normal(key, (4, 2)))

    method, keys = reweighted(flows.pwgf(0.1, **JUMPS), mirror(0.8)), jax.random.split(key, 3)
    together = sweep(method, problem, keys, 6)
    for i in (0, 2):
        alone = sweep(method, problem, keys[i : i + 1], 6)
        np.testing.assert_allclose(together.mu.weights[i], alone.mu.weights[0], rtol=1e-9)
    assert float(jnp.max(jnp.abs(together.mu.weights[0] - together.mu.weights[1]))) > 1e-3


def test_a_run_that_ends_at_the_measure_before_a_jump_has_its_weights(key):
    mu = Particles(jnp.zeros((3, 1)), unequal(3))  # at a minimum, where only the jump moves
    F = functionals.potential(lambda x: x[0] ** 2)
    method = reweighted(flows.pwgf(0.1, eps=1.0, eta_p=1.0, k_thres=3, f_thres=0.0), mirror(1.0))
    found = run(method, F, mu, key, steps=20)
    assert int(found.status) == Status.no_decrease
    np.testing.assert_allclose(found.mu.weights, mu.weights, rtol=1e-12)


# --- misuse -----------------------------------------------------------------------------------------------------------


def test_what_is_no_step_is_refused():
    with pytest.raises(ValueError, match=r"mirror: step_size=-1.0; give a non-negative number"):
        mirror(-1.0)
    method = wgf(0.1)
    with pytest.raises(TypeError, match=r"made of functions of your own"):
        reweighted(Flow(method.init, method.step), mirror(0.1))
