"""optax methods as flows of one point, against the loop that an optax user writes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pwgf_jax import Particles, Status, functionals, problems, run, sweep
from pwgf_jax.flows import descent
from pwgf_jax.solve import Record
from pwgf_jax.transforms import pgd
from tests.transforms.driving import drive

KEY = jax.random.key(0)


def pair(x):
    """Parameters of two leaves, from the saddle of a sum of two wells."""
    return problems.double_well(2).value(x["a"]) + problems.double_well(1).value(x["b"])


def start(x):
    return Particles.uniform(jax.tree.map(lambda leaf: leaf[None], x))


def test_a_descent_is_the_loop_of_an_optax_user():
    x = {"a": jnp.array([0.3, 0.5]), "b": jnp.array([-0.2])}
    optimizer = optax.chain(optax.clip_by_global_norm(0.3), optax.adam(0.05))
    expected, _, path = drive(optimizer, pair, x, 20)
    record = Record(stats=lambda F, mu: {"b": mu.points["b"][0, 0]})
    found = run(descent(lambda key: optimizer), functionals.potential(pair), start(x), KEY, 20, record)
    for leaf, want in zip(jax.tree.leaves(found.mu.points), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf[0], want, rtol=1e-12)
    np.testing.assert_allclose(found.records["b"][1:], path["b"][:, 0], rtol=1e-12)


def test_seeds_draw_their_own_noise_and_say_when_they_jump_and_stop():
    well = problems.double_well(3)
    F = functionals.potential(well.value)

    def method(key):
        return pgd(0.2, radius=1e-2, eps=1e-3, k_thres=60, f_thres=1e-4, key=key)

    keys = jax.random.split(KEY, 3)
    record = Record(state_stats=lambda state: {"jumps": optax.tree.get(state.optimizer.state, "jumps")})
    flow, problem = descent(method), lambda key: (F, start(jnp.zeros(3)))
    found = sweep(flow, problem, keys, 300, record)
    assert np.all(np.asarray(found.status) == Status.no_decrease)
    np.testing.assert_array_equal(found.records["perturbed"].sum(axis=1), found.records["jumps"][:, -1])
    np.testing.assert_array_equal(found.records["jumps"][:, -1], 2)  # from the saddle, and in vain from the minimum
    assert np.unique(np.asarray(found.records["value"][:, 30])).size == 3
    again = run(flow, F, start(jnp.zeros(3)), keys[1], 300, record)
    np.testing.assert_allclose(again.records["value"], found.records["value"][1], rtol=1e-12)
    assert int(again.steps) < 200
    np.testing.assert_array_equal(again.records["value"][-50:], again.value)  # it stays where it stopped


def test_what_a_method_needs_beyond_the_value_reaches_it():
    seen = {}

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        seen.update(extra)
        assert extra["grad_fn"](params).shape == params.shape == updates.shape == (2,)
        np.testing.assert_array_equal(jax.eval_shape(extra["value_fn"], params).shape, ())
        return jax.tree.map(lambda g: -0.1 * g, extra["grad"]), state

    method = descent(
        lambda key: optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update), grad_fn=jnp.cos
    )
    run(method, functionals.potential(lambda x: jnp.sum(x**2)), start(jnp.ones(2)), KEY, 1)
    assert set(seen) == {"value", "grad", "value_fn", "grad_fn"}


def test_more_than_one_point_is_refused():
    with pytest.raises(ValueError, match="the start has 2 particles; give one"):
        run(
            descent(lambda key: optax.sgd(0.1)),
            functionals.potential(jnp.sum),
            Particles.uniform(jnp.ones((2, 2))),
            KEY,
            1,
        )
