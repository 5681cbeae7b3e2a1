"""The dimer on quadratics, where its motion is known exactly."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pwgf_jax import problems
from pwgf_jax.transforms.dimers import dimer
from tests.transforms.driving import drive

SPECTRUM = (2.0, 1.0, 0.5, -0.3)
OPTIONS: dict[str, Any] = {
    "separation": 1e-3,
    "rotation_rate": 0.5,
    "every": 1,
    "strength": 1.0,
    "key": jax.random.key(0),
}


def make(**options):
    return dimer(**OPTIONS | options)


def quadratic(x):
    return jnp.sum(jnp.asarray(SPECTRUM, x.dtype) * x**2) / 2


@partial(jax.jit, static_argnums=(0, 1, 3))
def trajectory(transform, value, x, steps):
    """Parameters and dimer state over time, at learning rate 0.1."""
    optimizer: Any = optax.chain(transform, optax.sgd(0.1))

    def step(carry, _):
        x, state = carry
        updates, state = optimizer.update(jax.grad(value)(x), state, x, value_fn=value, value=None, other=3)
        x = optax.apply_updates(x, updates)
        return (x, state), (x, state[0])

    return jax.lax.scan(step, (x, optimizer.init(x)), None, length=steps)[1]


@pytest.mark.parametrize(
    ("options", "end"),
    [
        ({"every": 3}, -0.3),
        ({"mode": "translate"}, -0.3),
        # the published rate is not divided by the separation: with the raw number it would hardly turn
        ({"mode": "as_published", "rotation_rate": 0.5 / 1e-3}, 2.0),
    ],
)
def test_the_direction_turns_to_the_least_curvature_and_as_published_to_the_largest(options, end, tolerance):
    transform = make(strength=1e-9, **options)
    _, states = trajectory(transform, quadratic, jnp.zeros(4), 300)
    N = np.asarray(states.direction)
    np.testing.assert_allclose(np.linalg.norm(N, axis=1), 1, rtol=1e-12)
    rayleigh = N**2 @ np.array(SPECTRUM)
    np.testing.assert_allclose(rayleigh[-1], end, atol=tolerance(jnp.float64))
    np.testing.assert_allclose(states.curvature[-1], end, atol=tolerance(jnp.float64))
    assert np.all(np.diff(rayleigh) * np.sign(end) >= -1e-9)
    if "every" in options:  # turned at updates 0, 3, 6, …
        assert np.array_equal(N[0], N[2])
        assert not np.array_equal(N[2], N[3])


@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ({"mode": "repel", "strength": 2.0}, 1 + 0.1 * 0.3 * 3),
        ({"mode": "translate", "strength": 0.5}, 1 + 0.1 * 0.3 * 0.5),
        ({"mode": "translate", "strength": 1.0}, 1.0),
        ({"mode": "translate", "strength": 2.0}, 1 - 0.1 * 0.3),
    ],
)
def test_it_leaves_a_saddle_at_the_rate_of_theory(options, factor):
    """Gradient descent has the factor 1 + 0.1·0.3: repel beats it, translate loses to it, freezes, or goes in."""
    xs, _ = trajectory(make(**options), quadratic, jnp.full(4, 0.1), 120)
    np.testing.assert_allclose(np.asarray(xs[100:, 3] / xs[99:-1, 3]), factor, rtol=1e-6)
    assert float(jnp.max(jnp.abs(xs[-1, :2]))) < 1e-4


def test_an_exact_saddle_is_left_by_the_kick():
    well = problems.double_well(4, dtype=jnp.float64)
    xs, states = trajectory(make(every=3, kick=1e-3, tolerance=0.1), well.value, jnp.zeros(4), 150)
    np.testing.assert_allclose(well.value(xs[-1]), -0.25, atol=1e-6)
    first = int(np.argmax(np.any(np.asarray(xs) != 0, axis=1)))  # the first update at negative curvature
    assert np.all(states.curvature[:first] >= -0.1)
    np.testing.assert_allclose(jnp.linalg.norm(xs[first]), 0.1 * 1e-3 * jnp.abs(states.curvature[first]), rtol=1e-9)


def test_nothing_changes_where_the_curvature_is_not_below_the_tolerance():
    xs, states = trajectory(make(kick=1e-3, tolerance=0.4), quadratic, jnp.full(4, 0.1), 120)
    assert states.curvature[0] > 0.4  # of either sign
    assert states.curvature[-1] < -0.29
    descent = 0.1 * (1 - 0.1 * np.array(SPECTRUM)) ** np.arange(1, 121)[:, None]
    np.testing.assert_allclose(xs, descent, rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32])
def test_it_chains_with_adam_on_trees(dtype):
    value = lambda p: jnp.sum(p["a"] ** 4) / 4 - jnp.sum(p["a"] ** 2) / 2 + jnp.sum(p["b"] ** 2) / 2  # noqa: E731
    optimizer = optax.chain(make(separation=1e-2, kick=1e-3, every=4), optax.adam(optax.constant_schedule(0.05)))

    start = {"a": jnp.zeros(1, dtype), "b": jnp.zeros((2, 2), dtype)}
    params, state, _ = drive(optimizer, value, start, 400)
    np.testing.assert_allclose(value(params), -0.25, atol=1e-3)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, state[0].direction, state[0].curvature))} == {
        jnp.dtype(dtype)
    }
    norm = optax.tree.norm(state[0].direction)
    np.testing.assert_allclose(norm, 1, rtol=1e-5)


def test_a_gradient_that_overflows_does_not_cost_the_direction():
    transform: Any = make()
    state = transform.init(jnp.zeros(4))
    update = jax.jit(partial(transform.update, value_fn=quadratic))
    for number in (jnp.nan, jnp.inf, 1e200):  # the last is finite, and its square is not
        _, after = update(jnp.full(4, number), state, jnp.zeros(4))
        np.testing.assert_array_equal(after.direction, state.direction)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "attract"}, "mode='attract'; choose"),
        ({"separation": 0.0}, "separation=0.0; give a positive number"),
        ({"rotation_rate": -1.0}, "rotation_rate=-1.0"),
        ({"strength": float("nan")}, "strength=nan"),
        ({"every": 0}, "every=0; give a whole number"),
        ({"kick": -1.0}, "kick=-1.0; give zero or a positive number"),
        ({"kick": 0.1, "mode": "translate"}, 'kick=0.1 has no use in mode="translate"'),
        ({"tolerance": 0.1, "mode": "as_published"}, 'tolerance=0.1 has no use in mode="as_published"'),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_wrong_kinds_are_refused():
    with pytest.raises(TypeError, match="dimer: key is a uint32 array"):
        make(key=jax.random.PRNGKey(0))
    transform = make()
    with pytest.raises(TypeError, match="dimer: params and value_fn missing"):
        transform.update(jnp.zeros(2), transform.init(jnp.zeros(2)))
