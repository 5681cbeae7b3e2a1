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
    assert int(seen.gradients) == 34  # here, a step each, the last map, and two that verify


@pytest.mark.parametrize("least", [0.05, -0.1])
def test_where_there_is_none_below_half_delta_it_says_so(least):
    A = symmetric([least, *np.linspace(0.1, 1.0, 19)])
    find = lambda key: negative_curvature(lambda x: A @ x, jnp.zeros(20), key, smoothness=1.0, delta=0.25)  # noqa: E731
    seen = jax.jit(jax.vmap(find))(jax.random.split(KEY, 20))
    assert not np.any(seen.found)


def searches(d, dtype, count=60):
    """As many searches as ``count`` where λ_min = −δ and L/δ = 20, away from the origin."""
    spectrum = jnp.asarray(np.append(-1.0, np.linspace(0.0, 20.0, d - 1)), dtype)
    x = jnp.ones(d, dtype)
    find = jax.jit(lambda key: negative_curvature(lambda y: spectrum * (y - x), x, key, smoothness=20.0, delta=1.0))
    return [find(key) for key in jax.random.split(KEY, count)], spectrum


@pytest.mark.parametrize("d", [20, 1000, *(pytest.param(d, marks=pytest.mark.slow) for d in (10**4, 10**5))])
def test_a_curvature_of_minus_delta_is_missed_no_more_often_than_stated_in_any_dimension(d, dtype):
    seen, spectrum = searches(d, dtype)
    assert sum(bool(each.found) for each in seen) >= 59  # p = 0.01
    steps = np.sqrt(40) * np.log(2 * np.sqrt(41 * d) / 0.0125)
    for each in seen:
        v = np.asarray(each.direction, float)
        np.testing.assert_allclose(each.curvature, v @ (np.asarray(spectrum) * v), atol=0.05)
        assert int(each.gradients) == np.ceil(steps) + 4


def test_a_smaller_probability_of_failure_costs_steps():
    A = symmetric([-1.0, *np.linspace(0.0, 20.0, 19)])
    many = [
        int(negative_curvature(lambda x: A @ x, jnp.zeros(20), KEY, smoothness=20.0, delta=1.0, failure=p).gradients)
        for p in (0.1, 0.001)
    ]
    assert many[1] - many[0] == pytest.approx(np.sqrt(40) * np.log(100), abs=1.5)


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_third_derivative_is_no_curvature(sign):
    """f = ±ρx³/6 has none at zero; a one-sided difference over 1e-3 sees ρ/2 · 1e-3 = δ there, of either sign."""
    gradient = lambda x: sign * 500.0 * x**2 + 0.1 * x  # noqa: E731
    options: dict[str, Any] = {"smoothness": 1.0, "delta": 0.5}
    cases: list[dict[str, Any]] = [{}, {"hessian_lipschitz": 1000.0}]
    for known in cases:
        for key in jax.random.split(KEY, 4):
            seen = negative_curvature(gradient, jnp.zeros(1), key, **options, **known)
            np.testing.assert_allclose(seen.curvature, 0.1, atol=1e-6)
            assert not bool(seen.found)


def roots(t):
    """Eigenvalues at which T_t(M) or U_t(M) vanishes, of L = 1 and δ = ½: λ = 1 − 3δ/4 − m."""
    first = np.cos((2 * np.arange(t) + 1) * np.pi / (2 * t))
    second = np.cos(np.arange(1, t + 1) * np.pi / (t + 1))
    return 0.625 - np.concatenate([first, second])


@pytest.mark.parametrize("d", [1, 2])
def test_no_start_and_no_eigenvalue_gives_a_direction_that_is_none(d, dtype):
    """With one eigenvalue every direction is an eigenvector; with two the search still reports what it returns."""
    rng = np.random.default_rng(0)
    pairs = [(t, a) for t in range(1, 9) for a in np.append(roots(t), rng.uniform(-0.5, 1.0, 10)).clip(-0.5, 1.0)]
    steps, a = jnp.asarray([t for t, _ in pairs]), jnp.asarray([a for _, a in pairs], dtype)

    @jax.jit
    @jax.vmap
    def find(t, spectrum, key):
        return negative_curvature(lambda x: spectrum * x, jnp.zeros(d, dtype), key, steps=t, **HALF)

    for second in (a, jnp.roll(a, 1)):
        spectrum = jnp.stack([a, second], axis=1)[:, :d]
        seen = find(steps, spectrum, jax.random.split(KEY, len(pairs)))
        v = np.asarray(seen.direction, float)
        np.testing.assert_allclose(np.linalg.norm(v, axis=1), 1, rtol=1e-5)
        rayleigh = np.sum(v**2 * np.asarray(spectrum), axis=1)
        np.testing.assert_allclose(seen.curvature, rayleigh, atol=1e-5)
        clear = np.abs(rayleigh + 0.25) > 1e-4
        np.testing.assert_array_equal(np.asarray(seen.found)[clear], rayleigh[clear] < -0.25)


HALF: dict[str, Any] = {"smoothness": 1.0, "delta": 0.5}


def test_the_default_radius_is_short_where_the_hessian_changes_fast_and_never_below_rounding():
    """At 10⁴ in float32 the points 1e-3 apart are one: such a difference would be noise."""
    reached = []

    def gradient(x):
        jax.debug.callback(lambda y: reached.append(float(y)), jnp.abs(x[0] - 1e4))
        return -x

    x = jnp.asarray([1e4], jnp.float32)
    negative_curvature(gradient, x, KEY, smoothness=1.0, delta=0.5, hessian_lipschitz=1e3)
    jax.effects_barrier()
    assert max(reached) == pytest.approx(16 * 1.2e-7 * 1e4, rel=0.1)
    reached.clear()
    negative_curvature(lambda y: gradient(y + 1e4), jnp.zeros(1), KEY, smoothness=1.0, delta=0.5, hessian_lipschitz=1e3)
    jax.effects_barrier()
    assert max(reached) == pytest.approx(0.5 / 1e4, rel=1e-6)


@pytest.mark.parametrize("find", [negative_curvature_descent, zeroth_order_descent])
def test_it_can_be_traced_in_its_numbers_by_default(find):
    f = problems.double_well(3, dtype=jnp.float64).value

    def first(smoothness, delta, failure):
        optimizer = find(smoothness=smoothness, hessian_lipschitz=6.0, eps=1e-2, delta=delta, failure=failure, key=KEY)
        return optimizer.update(jnp.zeros(3), optimizer.init(jnp.zeros(3)), jnp.zeros(3), value_fn=f)

    numbers = (2.0, 0.5, 0.01)
    for a, b in zip(jax.tree.leaves(first(*numbers)), jax.tree.leaves(jax.jit(first)(*numbers)), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_query_counts_end_where_their_integers_do():
    """Two dimensions cost 4 queries a gradient: 2³¹ are not −2³¹."""
    f = lambda x: jnp.sum(x**2)  # noqa: E731
    optimizer: Any = zeroth_order_descent(smoothness=2.0, hessian_lipschitz=1.0, eps=1e-9, delta=0.5, key=KEY)
    state = optimizer.init(jnp.ones(2))._replace(queries=jnp.asarray(2**31 - 3, jnp.int32))
    assert int(optimizer.update(jnp.ones(2), state, jnp.ones(2), value_fn=f)[1].queries) == 2**31 - 1


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
    assert int(state.queries) == 6 * (taken + searches * 24)


def test_what_is_missing_or_wrong_is_named():
    options: dict[str, Any] = {"smoothness": 1.0, "hessian_lipschitz": 1.0, "eps": 0.1, "delta": 0.1, "key": KEY}
    x = jnp.zeros(2)
    for make in (negative_curvature_descent, zeroth_order_descent):
        with pytest.raises(TypeError, match="value_fn missing"):
            make(**options).update(x, make(**options).init(x), x)
        wrong: dict[str, Any] = options | {"delta": -1.0}
        with pytest.raises(ValueError, match=r"delta=-1\.0; give a positive number"):
            make(**wrong)
        for failure in (0.0, 1.0):
            with pytest.raises(ValueError, match=f"failure={failure}; give a probability"):
                make(**options, failure=failure)
        with pytest.raises(ValueError, match=r"steps=2147483648; give a whole number, 1 to 2147483647"):
            make(**options, steps=2**31)
    with pytest.raises(ValueError, match=r"mu=0\.0"):
        coordinate_gradient(jnp.sum, x, 0.0)
    with pytest.raises(ValueError, match="samples=0"):
        gaussian_gradient(KEY, jnp.sum, x, 0.1, 0)
