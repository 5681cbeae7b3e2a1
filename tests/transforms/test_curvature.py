"""Negative curvature found from gradients or from values, against matrices whose spectrum is prescribed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwgf_jax import problems
from pwgf_jax.transforms import (
    coordinate_gradient,
    gaussian_gradient,
    negative_curvature,
    negative_curvature_descent,
    zeroth_order_descent,
)
from tests.transforms.driving import drive

KEY = jax.random.key(0)


def symmetric(eigenvalues, seed=0):
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues),) * 2))[0]
    return jnp.asarray((q * np.asarray(eigenvalues)) @ q.T)


def test_it_finds_the_direction_and_reports_its_rayleigh_quotient():
    A = symmetric([-0.3, *np.linspace(-0.1, 1.0, 49)])
    seen = jax.jit(
        lambda key: negative_curvature(lambda x: A @ x, jnp.ones(50), key, smoothness=1.0, delta=0.25, steps=30)
    )(KEY)
    v = np.asarray(seen.direction)
    np.testing.assert_allclose(np.linalg.norm(v), 1, rtol=1e-12)
    np.testing.assert_allclose(seen.curvature, v @ np.asarray(A) @ v, atol=1e-9)
    np.testing.assert_allclose(seen.curvature, -0.3, atol=1e-4)
    assert bool(seen.found)
    assert int(seen.gradients) == 33


@pytest.mark.parametrize("least", [0.05, -0.1])
def test_where_there_is_none_below_half_delta_it_says_so(least):
    A = symmetric([least, *np.linspace(0.1, 1.0, 19)])
    find = lambda key: negative_curvature(lambda x: A @ x, jnp.zeros(20), key, smoothness=1.0, delta=0.25)  # noqa: E731
    seen = jax.jit(jax.vmap(find))(jax.random.split(KEY, 20))
    assert not np.any(seen.found)


def test_estimates_of_the_gradient_keep_their_error_bounds():
    """For a cubic the central difference errs by exactly ρμ²/6 a coordinate; Gaussian directions are unbiased."""
    f = lambda x: jnp.sum(x**3) / 6 + x[0] * x[1]  # noqa: E731
    x, mu = jnp.asarray([0.3, -0.7, 0.2]), 0.1
    exact = jax.grad(f)(x)
    np.testing.assert_allclose(coordinate_gradient(f, x, mu) - exact, mu**2 / 6, rtol=1e-9)
    draws = jax.vmap(lambda key: gaussian_gradient(key, f, x, 1e-3, 4))(jax.random.split(KEY, 4000))
    error = np.asarray(draws).std(axis=0) / np.sqrt(4000)
    assert np.all(np.abs(np.asarray(draws).mean(axis=0) - np.asarray(exact)) < 5 * error)


def test_first_order_escape_crosses_the_octopus_from_its_exact_saddle_and_stops():
    problem = problems.octopus(3, dtype=jnp.float64)
    L = 40.0  # the bends are steeper than the arms
    options: dict[str, Any] = {"smoothness": L, "hessian_lipschitz": 40.0, "eps": 1e-3, "delta": 1.0, "key": KEY}
    x, state, path = drive(negative_curvature_descent(**options), problem.value, problem.saddles[0].point, 2500)
    np.testing.assert_allclose(problem.value(x), problem.minimum.value, rtol=1e-6)
    assert bool(state.stopped)
    assert state.curvature > 0
    np.testing.assert_array_equal(path[-1], path[-2])


def test_zeroth_order_escape_counts_its_queries_and_moves_along_the_direction_found():
    problem = problems.double_well(3, dtype=jnp.float64)
    optimizer = zeroth_order_descent(
        smoothness=2.0, hessian_lipschitz=6.0, eps=1e-2, delta=0.5, key=KEY, steps=20, radius=1e-2
    )
    x, state, path = drive(optimizer, problem.value, problem.saddles[0].point, 60)
    np.testing.assert_allclose(problem.value(x), -0.25, atol=1e-4)
    assert bool(state.stopped)
    # the first step is δ/ρ along ±e₁, the negative curvature, not along a vector of random signs
    np.testing.assert_allclose(np.abs(path[0]), [0.5 / 6, 0, 0], atol=1e-3)
    taken = int(np.argmax(np.all(np.asarray(path[1:]) == np.asarray(path[:-1]), axis=1))) + 2
    searches = 2  # at the saddle and at the minimum
    assert int(state.queries) == 6 * (taken + searches * 23)


def test_what_is_missing_or_wrong_is_named():
    options: dict[str, Any] = {"smoothness": 1.0, "hessian_lipschitz": 1.0, "eps": 0.1, "delta": 0.1, "key": KEY}
    x = jnp.zeros(2)
    for make in (negative_curvature_descent, zeroth_order_descent):
        with pytest.raises(TypeError, match="value_fn missing"):
            make(**options).update(x, make(**options).init(x), x)
        wrong: dict[str, Any] = options | {"delta": -1.0}
        with pytest.raises(ValueError, match=r"delta=-1\.0; give a positive number"):
            make(**wrong)
    with pytest.raises(ValueError, match=r"mu=0\.0"):
        coordinate_gradient(jnp.sum, x, 0.0)
    with pytest.raises(ValueError, match="samples=0"):
        gaussian_gradient(KEY, jnp.sum, x, 0.1, 0)
