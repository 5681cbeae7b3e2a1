"""Sliced Wasserstein distances against sorted differences and common refinements of quantiles, sharp and blurred."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from pwgf_jax import (
    Particles,
    certify,
    first_variation,
    inner,
    value_and_wasserstein_gradient,
    wasserstein_gradient,
    wasserstein_hessian,
)
from pwgf_jax.calculus import integral_product
from pwgf_jax.contract import check_functional
from pwgf_jax.functionals import sliced_wasserstein
from pwgf_jax.perturbation import hessian_guided

N, M, D, L, H = 6, 5, 3, 4, 1e-5
DRAW = np.random.default_rng(3)
POINTS, FIELD = DRAW.normal(size=(2, N, D))
TARGET, QUERIES, DIRECTIONS = DRAW.normal(size=(M, D)) + 0.5, DRAW.normal(size=(3, D)), DRAW.normal(size=(L, D))
WEIGHTS = np.array([0.12, 0.31, 0.0, 0.27, 0.13, 0.17])
TARGET_WEIGHTS = np.array([0.3, 0.2, 0.1, 0.25, 0.15])


def measure(dtype=jnp.float64, points=POINTS, weights=WEIGHTS):
    return Particles(jnp.asarray(points, dtype), jnp.asarray(weights, dtype))


def sliced(dtype=jnp.float64, **options):
    nu = measure(dtype, TARGET, TARGET_WEIGHTS)
    return sliced_wasserstein(nu, jnp.asarray(DIRECTIONS, dtype), **options)


def squared(x, a, y, b):
    """W₂² on a line: both quantile functions on the common refinement of their steps."""
    x, a, y, b = x[np.argsort(x)], a[np.argsort(x)], y[np.argsort(y)], b[np.argsort(y)]
    left, right = np.cumsum(a), np.cumsum(b)
    steps = np.unique(np.concatenate([[0], left, right]))
    middle = (steps[1:] + steps[:-1]) / 2
    gaps = x[np.searchsorted(left[:-1], middle)] - y[np.searchsorted(right[:-1], middle)]
    return np.sum(np.diff(steps) * gaps**2)


def plain(x, a):
    unit = DIRECTIONS / np.linalg.norm(DIRECTIONS, axis=1, keepdims=True)
    return np.mean([squared(x @ u, a, TARGET @ u, TARGET_WEIGHTS) for u in unit]) / 2


def test_equal_weights_are_sorted_differences():
    other = DRAW.normal(size=(N, D))
    F = sliced_wasserstein(jnp.asarray(other), jnp.asarray(DIRECTIONS))
    unit = DIRECTIONS / np.linalg.norm(DIRECTIONS, axis=1, keepdims=True)
    gaps = np.sort(POINTS @ unit.T, axis=0) - np.sort(other @ unit.T, axis=0)
    np.testing.assert_allclose(F(Particles.uniform(jnp.asarray(POINTS))), np.mean(gaps**2) / 2, rtol=1e-12)


def test_value_and_gradient_with_weights():
    mu, F = measure(), sliced()
    value, gradient = jax.jit(value_and_wasserstein_gradient)(F, mu)
    np.testing.assert_allclose(value, plain(POINTS, WEIGHTS), rtol=1e-12)
    slope = (plain(POINTS + H * FIELD, WEIGHTS) - plain(POINTS - H * FIELD, WEIGHTS)) / (2 * H)
    np.testing.assert_allclose(inner(mu, gradient, jnp.asarray(FIELD)), slope, rtol=1e-8)


def test_first_variation_is_the_derivative_in_the_weights():
    mu, F = measure(), sliced()
    variation = jax.jit(lambda F, mu, at: first_variation(F, mu)(at))
    found = variation(F, mu, mu.points)
    exchange = H * np.array([1, -1, 0, 0, 0, 0])
    slope = (plain(POINTS, WEIGHTS + exchange) - plain(POINTS, WEIGHTS - exchange)) / (2 * H)
    np.testing.assert_allclose(found[0] - found[1], slope, rtol=1e-8)
    queries, field = jnp.asarray(QUERIES), jnp.asarray(FIELD[:3])
    slopes = (variation(F, mu, queries + H * field) - variation(F, mu, queries - H * field)) / (2 * H)
    gradient = jax.jit(wasserstein_gradient)(F, mu, queries)
    np.testing.assert_allclose(jnp.sum(gradient * field, axis=1), slopes, rtol=1e-7)


def test_a_sharp_one_has_no_hessian():
    mu, F = measure(), 2.0 * sliced()
    key, v = jax.random.key(0), jnp.asarray(FIELD)
    for use in (
        lambda: wasserstein_hessian(F, mu),
        lambda: integral_product(F, mu, v, mu.points),
        lambda: certify(F, mu, 0.1, 0.1, key),
        lambda: hessian_guided(key, F, mu),
    ):
        with pytest.raises(ValueError, match="give a blur"):
            use()


def test_between_kinks_the_sharp_one_curves_as_the_square():
    """What autodiff would say, and differences too: the mean of θθᵀ, whatever the target and the particles are."""
    mu, F, v = Particles.uniform(jnp.asarray(POINTS)), sliced(), jnp.asarray(FIELD)
    gradient = jax.jit(lambda x: value_and_wasserstein_gradient(F, mu.moved_to(x))[1])
    unit = F.directions
    expected = v @ (unit.T @ unit) / L
    np.testing.assert_allclose(
        (gradient(mu.points + H * v) - gradient(mu.points - H * v)) / (2 * H), expected, rtol=1e-7
    )
    np.testing.assert_allclose(jax.jvp(gradient, (mu.points,), (v,))[1], expected, rtol=1e-10)


@jax.jit
def derivatives(F, mu, v):
    found = {"value": F(mu), "gradient": value_and_wasserstein_gradient(F, mu)[1]}
    return found | {part: wasserstein_hessian(F, mu, part)(v) for part in ("integral", "local", "full")}


def test_blurred_hessians_are_differences_of_gradients():
    mu, F, v, h = measure(), sliced(blur=0.2), jnp.asarray(FIELD), 1e-6
    at = jax.jit(wasserstein_gradient)
    found, present = derivatives(F, mu, v), (mu.weights > 0)[:, None]
    plus, minus = (mu.push_forward(sign * h * v) for sign in (1, -1))
    np.testing.assert_allclose(inner(mu, found["gradient"], v), (F(plus) - F(minus)) / (2 * h), rtol=1e-7)
    integral = (at(F, plus, mu.points) - at(F, minus, mu.points)) / (2 * h)
    local = (at(F, mu, plus.points) - at(F, mu, minus.points)) / (2 * h)
    for part, expected in {"full": integral + local, "integral": integral, "local": local}.items():
        np.testing.assert_allclose(found[part], jnp.where(present, expected, 0), atol=1e-7, err_msg=part)


def quantiles(points, weights, blur, t):
    """Of blurred points, by bisection."""
    low, high = np.full(len(t), -50.0), np.full(len(t), 50.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = np.sum(weights * norm.cdf((middle[:, None] - points) / blur), axis=1) < t
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return low


def test_a_blurred_value_is_that_of_blurred_projections():
    t, blur = (np.arange(4000) + 0.5) / 4000, 0.3
    unit = DIRECTIONS / np.linalg.norm(DIRECTIONS, axis=1, keepdims=True)
    gaps = [quantiles(POINTS @ u, WEIGHTS, blur, t) - quantiles(TARGET @ u, TARGET_WEIGHTS, blur, t) for u in unit]
    np.testing.assert_allclose(sliced(blur=blur)(measure()), np.mean(np.square(gaps)) / 2, rtol=1e-3)
    np.testing.assert_allclose(sliced(blur=blur)(measure(points=TARGET, weights=TARGET_WEIGHTS)), 0, atol=1e-4)


@pytest.mark.slow
def test_a_blurred_one_keeps_the_contract_of_functionals():
    check_functional(jax.jit(sliced(blur=0.2).__call__), measure())


@pytest.mark.slow
@pytest.mark.parametrize("blur", [None, 0.2])
def test_single_precision(blur, tolerance):
    found = jax.jit(value_and_wasserstein_gradient)
    single, double = (found(sliced(t, blur=blur), measure(t)) for t in (jnp.float32, jnp.float64))
    for one, other in zip(single, double, strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, atol=tolerance(jnp.float32))


def test_equal_angles_of_the_plane():
    F = sliced_wasserstein(jnp.zeros((3, 2)), 4)
    angles = np.pi * (np.arange(4) + 0.5) / 4
    np.testing.assert_allclose(F.directions, np.stack([np.cos(angles), np.sin(angles)], axis=1), atol=1e-15)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sliced_wasserstein(jnp.ones((3, 3)), 10), "equal angles are of the plane"),
        (lambda: sliced_wasserstein(jnp.ones((3, 2)), 0), "directions"),
        (lambda: sliced_wasserstein(jnp.ones((3, 2)), jnp.ones((0, 2))), r"directions have shape \(0, 2\)"),
        (lambda: sliced_wasserstein(jnp.ones((3, 2)), 4, blur=-1.0), "blur"),
        (lambda: sliced_wasserstein(jnp.ones((3, 2)), 4, blur=1.0, nodes=1), "nodes"),
        (lambda: sliced()(measure(points=POINTS[:, :2])), "a point has 2 coordinates but a direction 3"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
