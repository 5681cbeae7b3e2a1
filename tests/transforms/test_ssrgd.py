"""SSRGD: where its recursion is exact it is gradient descent; its epochs and its bill are read off the run."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import hadamard

from pwgf_jax import problems
from pwgf_jax.transforms.recursive import ssrgd

KEY = jax.random.key(0)
OPTIONS: Any = {"size": 6, "batch": 1, "epoch": 5, "radius": 0.1, "eps": 0.0, "f_thres": 0.1, "k_thres": 7, "key": KEY}


def follow(optimizer, value_fn, grad_fn, x, steps) -> Any:
    """What an optax user's loop sees: (final parameters, (before every step: parameters; after it: state))."""

    def step(carry, _):
        x, state = carry
        # the updates that come in are not looked at
        updates, after = optimizer.update(x, state, x, value_fn=value_fn, grad_fn=grad_fn, anything=None)
        return (jax.tree.map(jnp.add, x, updates), after), (x, after)

    (x, _), seen = jax.lax.scan(step, (x, optimizer.init(x)), None, length=steps)
    return x, seen


def tilted(dtype):
    """Terms ½|x|² + bᵢ·x: one Hessian for all, so that the recursion is exact on any batch."""
    b = jnp.asarray(np.random.default_rng(0).normal(size=(OPTIONS["size"], 3)), dtype)

    def grad_fn(x, indices):
        tilt = jnp.mean(b[indices], axis=0)
        return {"a": x["a"] + tilt[:2], "b": x["b"] + tilt[2].astype("float32")}

    return b, grad_fn


def test_with_one_hessian_for_all_terms_it_is_gradient_descent_in_epochs_of_uniform_length(dtype):
    """On batches of one: a recursion that took different terms at its two points, or kept the wrong one, would not."""
    b, grad_fn = tilted(dtype)
    start = {"a": jnp.ones(2, dtype), "b": jnp.ones((), "float32")}  # dtypes may be mixed

    @jax.jit
    @jax.vmap
    def runs(key):
        optimizer = ssrgd(lambda count: 0.2 / (1 + count.astype(dtype)), **(OPTIONS | {"key": key}))
        x, (_, state) = follow(optimizer, lambda x: 0.0, grad_fn, start, 300)
        return x, state.epoch.inner

    x, inner = runs(jax.random.split(KEY, 20))
    expected = np.ones(3)
    for t in range(300):
        expected -= 0.2 / (1 + t) * (expected + np.mean(np.asarray(b, float), axis=0))
    assert (x["a"].dtype, x["b"].dtype) == (dtype, jnp.float32)
    np.testing.assert_allclose(x["a"], np.tile(expected[:2], (20, 1)), atol=50 * float(jnp.finfo(dtype).eps))
    np.testing.assert_allclose(x["b"], np.tile(expected[2], 20), atol=1e-5)
    lengths = np.concatenate([np.diff(np.flatnonzero(each == 0)) for each in np.asarray(inner)])
    counts = np.bincount(lengths)
    assert counts.size == 6
    assert counts[0] == 0
    mean = lengths.size / 5
    # 1900 epochs; the statistic has four degrees of freedom, and exceeds 18.5 for one key in a thousand.
    assert np.sum((counts[1:] - mean) ** 2 / mean) < 18.5


@pytest.mark.parametrize("f_thres", [0.1, 0.0])
def test_a_super_epoch_ends_with_its_time_or_its_decrease(f_thres):
    """On a constant function nothing falls by 0.1, and everything by zero as soon as it is looked at."""
    optimizer = ssrgd(0.1, **(OPTIONS | {"f_thres": f_thres}))
    x, (before, state) = jax.jit(lambda x: follow(optimizer, lambda x: 1.0, lambda x, i: 0 * x, x, 24))(jnp.ones(4))
    jumps = np.flatnonzero(state.perturbed)
    steps = np.diff(np.concatenate([before, x[None]]), axis=0)
    assert np.all(np.linalg.norm(steps, axis=1) <= 0.1)
    assert np.all((np.abs(steps).max(axis=1) > 0) == np.asarray(state.perturbed))
    np.testing.assert_array_equal(state.window.saved[-1], before[jumps[-1]])
    if f_thres:
        np.testing.assert_array_equal(jumps, [0, 8, 16])
        # seven steps: an epoch of five, whole, and one of two
        np.testing.assert_array_equal(np.reshape(state.epoch.inner, (3, 8)), [[0, 1, 2, 3, 4, 0, 1, 0]] * 3)
        np.testing.assert_array_equal(state.gradients[:8], np.cumsum([6, 6, 2, 2, 2, 2, 6, 2]))
    else:
        np.testing.assert_array_equal(jumps, np.arange(24))


@pytest.mark.parametrize(("online", "gap"), [(None, 1e-3), (128, 0.05)])
def test_it_reaches_the_leading_eigenvector_from_the_exact_second(online, gap):
    """The published method's sanity run; online it ends in a ball that the noise of the large batch keeps open."""
    eigenvalues = np.array([1.5, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    problem = problems.leading_eigenvector(jnp.asarray(hadamard(256)[:, 1:11] * np.sqrt(eigenvalues)))
    components: Any = problem.components
    saddle = problem.saddles[1]
    np.testing.assert_allclose(saddle.curvature, -0.6, rtol=1e-12)
    make = partial(ssrgd, 0.05, size=256, batch=16, epoch=16, radius=1e-2, eps=1e-2, f_thres=1e-2, k_thres=400)
    grad_fn = jax.grad(lambda x, i: jnp.mean(components(x, i)))

    @jax.jit
    @jax.vmap
    def runs(key):
        optimizer = make(large_batch=online, key=key)
        x, (path, state) = follow(optimizer, problem.value, grad_fn, saddle.point, 450)
        return problem.value(x), jax.vmap(problem.value)(path), state.epoch.inner, state.gradients, state.perturbed

    final, values, inner, gradients, perturbed = map(np.asarray, runs(jax.random.split(KEY, 3)))
    assert np.all(final < problem.minimum.value + gap)
    assert np.all(values[:, 0] > -0.21)
    opens = np.concatenate([np.ones((3, 1), bool), inner[:, :-1] == 0], axis=1)
    np.testing.assert_array_equal(gradients, np.cumsum(np.where(opens, online or 256, 32), axis=1))
    assert np.all(np.asarray(gradients)[:, -1] < 26_000)
    if online is None:
        assert np.all(perturbed[:, 0])
        assert np.all(inner[:, 1:300].max(axis=1) == 15)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch": 7}, "ssrgd: batch=7 of 6 terms"),
        ({"large_batch": 0}, "ssrgd: large_batch=0"),
        ({"epoch": 0}, "epoch=0; give a whole number"),
        ({"f_thres": -1.0}, r"f_thres=-1\.0; give a non-negative decrease"),
        ({"radius": 0.0}, r"radius=0\.0"),
    ],
)
def test_impossible_numbers_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ssrgd(0.1, **(OPTIONS | wrong))


def test_what_is_missing_is_named():
    optimizer, x = ssrgd(0.1, **OPTIONS), jnp.zeros(2)
    with pytest.raises(TypeError, match="ssrgd: value_fn and grad_fn missing"):
        optimizer.update(x, optimizer.init(x), x)
    with pytest.raises(TypeError, match="ssrgd: key is a uint32 array"):
        ssrgd(0.1, **(OPTIONS | {"key": jax.random.PRNGKey(0)}))
