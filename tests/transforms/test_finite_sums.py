"""Negative curvature on batches, against dense Hessians; queries against the epochs that a run shows."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import hadamard

from pwgf_jax import problems
from pwgf_jax.transforms import (
    negative_curvature_descent,
    negative_curvature_online,
    scsg,
    sgd,
    spider,
    zeroth_order_descent,
)

KEY = jax.random.key(0)
N, D = 32, 4


SAMPLES = hadamard(N)[:, 1 : D + 1] * np.sqrt([1.5, 0.9, 0.5, 0.2])
PROBLEM = problems.leading_eigenvector(jnp.asarray(SAMPLES))
SADDLE = PROBLEM.saddles[1].point  # curvature −0.6 along the first eigenvector
HESSIAN = 0.9 * np.eye(D) + 2 * np.outer(SADDLE, SADDLE) - SAMPLES.T @ SAMPLES / N  # |x|² I + 2xxᵀ − C
FIRST = np.asarray(PROBLEM.minimum.point) / np.linalg.norm(PROBLEM.minimum.point)


def components(x, indices):
    assert PROBLEM.components is not None
    return PROBLEM.components(x, indices)


def test_what_it_finds_on_batches_is_negative_curvature_of_the_sum():
    grad_fn = jax.grad(lambda x, i: jnp.mean(components(x, i)))
    search = jax.jit(
        jax.vmap(
            lambda x, key: negative_curvature_online(
                grad_fn, x, key, size=N, batch=4, smoothness=6.0, delta=0.5, steps=150, verification=24
            )
        )
    )
    points = jnp.repeat(jnp.stack([SADDLE, PROBLEM.minimum.point]), 20, axis=0)
    seen = search(points, jax.random.split(KEY, 40))
    found, v = np.asarray(seen.found), np.asarray(seen.direction)
    np.testing.assert_allclose(np.linalg.norm(v, axis=1), 1, rtol=1e-12)
    rayleigh = np.einsum("ni,ij,nj->n", v[:20], HESSIAN, v[:20])
    assert np.mean(found[:20]) > 0.8
    assert np.all(rayleigh[found[:20]] < -0.25)
    assert not np.any(found[20:])
    once = 2 * 4 * 150 + 2 * 24
    spent = np.asarray(seen.gradients)
    assert np.all(spent % once == 0)
    np.testing.assert_array_equal(spent[20:], 3 * once)
    assert np.all(spent[:20] < 3 * once + 1)
    np.testing.assert_array_equal(found, np.asarray(seen.curvature) <= -0.375)


def test_verified_by_the_whole_sum_the_curvature_is_its_rayleigh_quotient():
    grad_fn = jax.grad(lambda x, i: jnp.mean(components(x, i)))
    seen = jax.jit(
        lambda x: negative_curvature_online(
            grad_fn, x, KEY, size=N, batch=N, smoothness=4.0, delta=0.5, steps=100, radius=1e-5
        )
    )(SADDLE)
    v = np.asarray(seen.direction)
    np.testing.assert_allclose(seen.curvature, v @ HESSIAN @ v, atol=1e-5)
    np.testing.assert_allclose(np.abs(v @ FIRST), 1, atol=1e-4)
    assert int(seen.gradients) == 2 * N * 100 + 2 * N


@pytest.mark.parametrize("d", [20, pytest.param(10**5, marks=pytest.mark.slow)])
def test_a_curvature_of_minus_delta_is_missed_no_more_often_than_stated_in_any_dimension(d, dtype):
    """One attempt, of one term and L/δ = 20: what is missed is what the start has too little of."""
    spectrum = jnp.asarray(np.append(-1.0, np.linspace(0.0, 20.0, d - 1)), dtype)
    x, options = jnp.ones(d, dtype), {"smoothness": 20.0, "delta": 1.0, "learning_rate": 0.05, "repeats": 1}
    find = jax.jit(
        lambda key: negative_curvature_online(lambda y, _: spectrum * (y - x), x, key, size=1, batch=1, **options).found
    )
    assert sum(bool(find(key)) for key in jax.random.split(KEY, 60)) >= 59


def test_a_smaller_probability_of_failure_takes_a_larger_sample():
    """min{n, 32 (L/δ)² log 2/p}, in whole batches, whatever is traced."""
    options = {"size": 1000, "batch": 4, "smoothness": 2.0, "delta": 1.0, "steps": 1}
    search = jax.jit(lambda p: negative_curvature_online(lambda y, _: -y, jnp.zeros(1), KEY, failure=p, **options))
    for p, terms in ((0.1, 384), (0.01, 680), (1e-9, 1000)):
        seen = search(p)
        assert bool(seen.found)
        assert int(seen.gradients) == 2 * 4 + 2 * terms


def test_the_sample_that_verifies_is_a_sample():
    """Half the terms curve by +1 and half by −1: 680 of them say zero ± 0.04, four could say anything."""
    sign = jnp.where(jnp.arange(10**6) % 2 == 0, 1.0, -1.0)
    search = lambda key: negative_curvature_online(  # noqa: E731
        lambda y, i: jnp.mean(sign[i]) * y, jnp.zeros(1), key, size=10**6, batch=4, smoothness=2.0, delta=1.0, steps=1
    )
    seen = jax.jit(jax.vmap(search))(jax.random.split(KEY, 30))
    assert not np.any(seen.found)
    assert np.max(np.abs(seen.curvature)) < 0.2


CONSTANTS: Any = {"smoothness": 4.0, "hessian_lipschitz": 8.0, "delta": 0.4, "key": KEY}


def follow(optimizer, components, x, steps, grad_fn=None) -> Any:
    @jax.jit
    def loop(x):
        def step(carry, _):
            x, state = carry
            updates, after = optimizer.update(x, state, x, components=components, grad_fn=grad_fn)
            return (x + updates, after), (x + updates, after)

        return jax.lax.scan(step, (x, optimizer.init(x)), None, length=steps)[1]

    return loop(x)


@pytest.mark.parametrize(
    ("optimizer", "batch", "gap"),
    [
        (zeroth_order_descent(sgd(N, N), eps=0.05, steps=40, **CONSTANTS), N, 1e-2),
        (zeroth_order_descent(scsg(N, 8, N), eps=0.02, steps=40, **CONSTANTS), 8, 1e-3),
        (zeroth_order_descent(spider(N, 8, N, epoch=4), eps=0.02, steps=40, **CONSTANTS), 8, 1e-3),
    ],
    ids=["sgd", "scsg", "spider"],
)
def test_from_values_alone_it_leaves_the_saddle_ends_near_the_minimum_and_counts(optimizer, batch, gap):
    path, state = follow(optimizer, components, SADDLE, 180)
    assert float(PROBLEM.value(path[-1])) < PROBLEM.minimum.value + gap
    # δ/ρ along the first eigenvector
    np.testing.assert_allclose(np.abs((path[0] - SADDLE) @ FIRST), 0.4 / 8, rtol=0.05)
    stopped = np.asarray(state.stopped)
    assert stopped[-1]
    np.testing.assert_array_equal(path[-1], path[np.argmax(stopped)])
    opens = np.concatenate([[True], np.asarray(state.epoch.inner)[:-1] == 0])
    curvature = np.asarray(state.curvature)
    looked = np.concatenate([[True], np.diff(curvature) != 0])
    attempts = np.where(curvature <= -0.3, 1, 3)  # one that finds, or all
    terms = np.where(opens, N, 2 * batch) + looked * attempts * (2 * batch * 40 + 2 * N)
    alive = np.concatenate([[True], ~stopped[:-1]])
    np.testing.assert_array_equal(state.queries, np.cumsum(2 * D * terms * alive))
    assert np.all(opens[looked])
    assert not np.any(np.asarray(state.epoch.inner)[looked])  # and an epoch opens after a search
    assert curvature[-1] > 0


@pytest.mark.parametrize(
    ("estimator", "dtype"),
    [(scsg(6, 1, 6), jnp.float32), (spider(6, 1, 6, epoch=5), jnp.float64)],
    ids=["scsg", "spider"],
)
def test_with_one_hessian_for_all_terms_batches_of_one_follow_the_gradient(estimator, dtype, tolerance):
    """Central differences are exact on quadratics, and so is either correction, on any batch; plain SGD is not."""
    b = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), dtype)
    expected = [np.ones(3)]
    for _ in range(20):
        expected.append(expected[-1] - (expected[-1] + np.asarray(b, float).mean(axis=0)) / 12)
    optimizer = zeroth_order_descent(estimator, eps=1e-9, mu=0.1, steps=1, **CONSTANTS)
    path, state = follow(optimizer, lambda x, i: jnp.sum(x**2) / 2 + b[i] @ x, jnp.ones(3, dtype), 20)
    assert path.dtype == dtype
    np.testing.assert_allclose(path, expected[1:], atol=tolerance(dtype, 0.2))
    inner = np.asarray(state.epoch.inner)
    assert len(np.unique(inner)) > 3
    # compared with where the epoch opened, or with the step before
    opened = np.maximum.accumulate(np.where(np.append(0, inner[:-1]) == 0, np.arange(20), 0))
    before = np.concatenate([np.ones((1, 3)), path[:-1]])
    np.testing.assert_array_equal(state.epoch.point, before if estimator.recursive else before[opened])


def test_with_gradients_of_terms_it_takes_the_steps_of_values_at_a_query_each():
    """On quadratics central differences are the gradients: the same batches, the same epochs."""
    b = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)))
    values = lambda x, i: jnp.sum(x**2) / 2 + b[i] @ x  # noqa: E731
    options: dict[str, Any] = {"eps": 1e-9, "steps": 1, **CONSTANTS}
    x = jnp.ones(3)
    zeroth, counted = follow(zeroth_order_descent(spider(6, 1, 6, 5), mu=0.1, **options), values, x, 20)
    grad_fn = jax.grad(lambda x, i: jnp.mean(values(x, i)))
    first, state = follow(negative_curvature_descent(spider(6, 1, 6, 5), **options), None, x, 20, grad_fn)
    np.testing.assert_allclose(first, zeroth, rtol=1e-9)
    np.testing.assert_array_equal(counted.queries, 2 * 3 * np.asarray(state.queries))


def test_what_is_missing_or_wrong_is_named():
    x, known = jnp.zeros(2), CONSTANTS | {"eps": 0.1}
    for estimator in (sgd(4, 2), scsg(4, 2, 4), spider(4, 2, 4, epoch=2)):
        for make, name in ((zeroth_order_descent, "components"), (negative_curvature_descent, "grad_fn")):
            optimizer = make(estimator, **known)
            with pytest.raises(TypeError, match=f"{make.__name__}: {name} missing"):
                optimizer.update(x, optimizer.init(x), x)
            with pytest.raises(ValueError, match=rf"{make.__name__}: delta=-1\.0"):
                make(estimator, **(known | {"delta": -1.0}))
    for make, rest in ((sgd, ()), (scsg, (4,)), (spider, (4, 2))):
        with pytest.raises(ValueError, match=f"{make.__name__}: batch=5 of 4 terms"):
            make(4, 5, *rest)
    with pytest.raises(ValueError, match="epoch=0"):
        spider(4, 2, 4, epoch=0)
    search: dict[str, Any] = {"size": 4, "batch": 1, "smoothness": 1.0, "delta": 0.1}
    with pytest.raises(ValueError, match="verification=9 of 4 terms"):
        negative_curvature_online(lambda x, i: x, x, KEY, verification=9, **search)
    with pytest.raises(ValueError, match="repeats=0"):
        negative_curvature_online(lambda x, i: x, x, KEY, repeats=0, **search)


def test_an_eigenvector_of_one_over_the_rate_is_not_lost():
    """v − ηHv is exactly zero there: the search keeps v, and reports its curvature."""
    options: dict[str, Any] = {"size": 2, "batch": 2, "smoothness": 2.0, "delta": 0.5, "learning_rate": 0.5}
    seen = negative_curvature_online(lambda x, i: 2 * x, jnp.zeros(1), KEY, steps=3, **options)
    np.testing.assert_allclose(seen.curvature, 2.0)
    np.testing.assert_allclose(jnp.abs(seen.direction), 1.0)
