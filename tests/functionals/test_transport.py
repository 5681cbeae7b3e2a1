"""The Sinkhorn divergence against a plain loop, a linear programme, finite differences and Gaussians."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.special import logsumexp

from pwgf_jax import (
    Particles,
    first_variation,
    inner,
    memory,
    value_and_wasserstein_gradient,
    wasserstein_gradient,
    wasserstein_hessian,
)
from pwgf_jax.contract import check_functional
from pwgf_jax.functionals import sinkhorn_divergence

N, M, D, EPSILON, H = 6, 5, 2, 0.3, 1e-5
DRAW = np.random.default_rng(0)
POINTS, FIELD = DRAW.normal(size=(2, N, D))
TARGET, QUERIES = DRAW.normal(size=(M, D)) + 0.5, DRAW.normal(size=(3, D))
WEIGHTS = np.array([0.1, 0.3, 0.0, 0.25, 0.15, 0.2])
TARGET_WEIGHTS = np.array([0.3, 0.2, 0.1, 0.25, 0.15])


def measure(dtype=jnp.float64, points=POINTS, weights=WEIGHTS):
    return Particles(jnp.asarray(points, dtype), jnp.asarray(weights, dtype))


def divergence(epsilon=EPSILON, dtype=jnp.float64):
    return sinkhorn_divergence(measure(dtype, TARGET, TARGET_WEIGHTS), epsilon)


def transport(x, a, y, b, epsilon):
    """Sinkhorn's iterations in the log domain, as they are written in textbooks."""
    cost = np.sum((x[:, None] - y[None]) ** 2, axis=-1) / 2
    g = np.zeros(len(y))
    for _ in range(150):
        f = -epsilon * logsumexp((g[None] - cost) / epsilon, b=b[None], axis=1)
        g = -epsilon * logsumexp((f[:, None] - cost) / epsilon, b=a[:, None], axis=0)
    return a @ f + b @ g


def plain(x, a, epsilon=EPSILON):
    y, b = TARGET, TARGET_WEIGHTS
    own = transport(x, a, x, a, epsilon) + transport(y, b, y, b, epsilon)
    return transport(x, a, y, b, epsilon) - own / 2


@jax.jit
def derivatives(F, mu, v):
    found = {"value": F(mu), "gradient": value_and_wasserstein_gradient(F, mu)[1]}
    return found | {part: wasserstein_hessian(F, mu, part)(v) for part in ("integral", "local", "full")}


value_of = jax.jit(lambda F, mu: F(mu))
of_both = jax.jit(value_and_wasserstein_gradient)
at = jax.jit(wasserstein_gradient)
witness = jax.jit(lambda F, mu, queries: first_variation(F, mu)(queries))


def test_value_and_gradient_are_those_of_a_plain_loop():
    value, gradient = of_both(divergence(), measure())
    np.testing.assert_allclose(value, plain(POINTS, WEIGHTS), rtol=1e-10)
    slope = (plain(POINTS + H * FIELD, WEIGHTS) - plain(POINTS - H * FIELD, WEIGHTS)) / (2 * H)
    np.testing.assert_allclose(inner(measure(), gradient, jnp.asarray(FIELD)), slope, rtol=1e-7)


def test_first_variation_is_the_derivative_in_the_weights():
    """Mass that moves from the particles to a point where there is none."""
    found = witness(divergence(), measure(), jnp.asarray(np.concatenate([POINTS, QUERIES[:1]])))
    x = np.concatenate([POINTS, QUERIES[:1]])
    values = [plain(x, np.append((1 - s) * WEIGHTS, s)) for s in (0.0, 1e-4, 2e-4)]
    slope = (-3 * values[0] + 4 * values[1] - values[2]) / 2e-4
    np.testing.assert_allclose(slope, found[-1] - WEIGHTS @ found[:-1], rtol=1e-4)


def test_full_hessian_is_the_difference_of_gradients():
    mu, F, v = measure(), divergence(), jnp.asarray(FIELD)
    plus, minus = (of_both(F, mu.push_forward(sign * H * v))[1] for sign in (1, -1))
    found = jax.jit(lambda F, mu, v: wasserstein_hessian(F, mu, "full")(v))(F, mu, v)
    np.testing.assert_allclose(found, (plus - minus) / (2 * H), atol=2e-8)


@pytest.mark.slow
def test_its_parts_are_differences_through_the_measure_and_through_the_points():
    mu, F, v = measure(), divergence(), jnp.asarray(FIELD)
    found, present = derivatives(F, mu, v), (mu.weights > 0)[:, None]
    plus, minus = (mu.push_forward(sign * H * v) for sign in (1, -1))
    integral = (at(F, plus, mu.points) - at(F, minus, mu.points)) / (2 * H)
    local = (at(F, mu, plus.points) - at(F, mu, minus.points)) / (2 * H)
    for part, expected in {"integral": integral, "local": local}.items():
        np.testing.assert_allclose(found[part], jnp.where(present, expected, 0), atol=2e-8, err_msg=part)
    np.testing.assert_allclose(found["integral"] + found["local"], found["full"], atol=1e-12)


@pytest.mark.slow
def test_reverse_over_reverse_is_the_same_hessian():
    mu, F, v = measure(weights=np.full(N, 1 / N)), divergence(), jnp.asarray(FIELD)
    of_points = jax.grad(lambda x: F(mu.moved_to(x)))
    product = jax.jit(jax.grad(lambda x: jnp.sum(of_points(x) * v)))(mu.points)
    np.testing.assert_allclose(N * product, derivatives(F, mu, v)["full"], atol=1e-10)


@pytest.mark.slow
def test_tiles_change_nothing(monkeypatch):
    mu, v = measure(), jnp.asarray(FIELD)
    expected = derivatives(divergence(), mu, v)
    monkeypatch.setattr("pwgf_jax.kernels.radial.FEWEST_ROWS", 2)
    monkeypatch.setattr(memory, "_TILE_BYTES", {"cpu": 1})
    found = jax.jit(lambda F: inspect.unwrap(derivatives)(F, mu, v))(divergence())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), found, expected)


@pytest.mark.slow
def test_keeps_the_contract_of_functionals():
    check_functional(jax.jit(divergence().__call__), measure())


def test_a_far_particle_of_weight_zero_changes_nothing():
    """At a blur that cannot see it from anywhere."""
    mu, F = measure(), divergence(0.01)
    far = measure(points=np.concatenate([POINTS, [[40.0, 0.0]]]), weights=np.append(WEIGHTS, 0.0))
    (value, gradient), expected = (of_both(F, m) for m in (far, mu))
    np.testing.assert_allclose(value, expected[0], rtol=1e-10)
    np.testing.assert_allclose(gradient[:N], expected[1], atol=1e-8)


def test_zero_at_the_target_and_a_shift_costs_half_its_square():
    nu = measure(points=TARGET, weights=TARGET_WEIGHTS)
    np.testing.assert_allclose(value_of(divergence(), nu), 0, atol=1e-12)
    np.testing.assert_allclose(value_of(divergence(), nu.push_forward(jnp.ones_like(nu.points))), 1.0, rtol=1e-10)


def test_small_epsilon_is_optimal_transport():
    """A linear programme; the entropy of a coupling is worth at most ε log N each time."""
    cost = np.sum((POINTS[:, None] - TARGET[None]) ** 2, axis=-1) / 2
    margins = np.concatenate([np.kron(np.eye(N), np.ones(M)), np.kron(np.ones(N), np.eye(M))])
    exact = linprog(cost.ravel(), A_eq=margins, b_eq=np.concatenate([WEIGHTS, TARGET_WEIGHTS])).fun
    errors = [abs(float(value_of(divergence(epsilon), measure())) - exact) for epsilon in (0.1, 0.03, 0.01)]
    assert errors[-1] < 0.01 * np.log(M)
    assert errors[-1] < errors[0] / 5


def gaussians(mean, s, t, epsilon):
    """S_ε of N(0, s²) and N(mean, t²) on the line, for the cost ½|x − y|²."""

    def own(a, b):
        root = np.sqrt(1 + 4 * a**2 * b**2 / epsilon**2)
        return epsilon / 2 * (1 - root + np.log((1 + root) / 2))

    return mean**2 / 2 + own(s, t) - own(s, s) / 2 - own(t, t) / 2


def test_gaussians():
    """Quantiles of the laws as points: the closed form up to their number."""
    from scipy.stats import norm

    u = norm.ppf((np.arange(200) + 0.5) / 200)[:, None]
    F = sinkhorn_divergence(jnp.asarray(2.0 + 0.5 * u), 0.5)
    found = jax.jit(F.__call__)(Particles.uniform(jnp.asarray(1.5 * u)))
    np.testing.assert_allclose(found, gaussians(2.0, 1.5, 0.5, 0.5), rtol=5e-3)


@pytest.mark.slow
def test_single_precision(tolerance):
    single, double = (
        derivatives(divergence(dtype=dtype), measure(dtype), jnp.asarray(FIELD, dtype))
        for dtype in (jnp.float32, jnp.float64)
    )
    for name, value in double.items():
        assert single[name].dtype == jnp.float32
        np.testing.assert_allclose(single[name], value, atol=tolerance(jnp.float32, 3.0), err_msg=name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sinkhorn_divergence(jnp.ones((3, 2)), 0.0), "epsilon"),
        (lambda: sinkhorn_divergence(jnp.ones((0, 2)), 0.1), r"target has shape \(0, 2\)"),
        (lambda: sinkhorn_divergence(jnp.ones((3, 2)), 0.1, iterations=0), "iterations"),
        (lambda: divergence()(measure(points=POINTS[:, :1])), "give both one shape"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
