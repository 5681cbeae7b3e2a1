"""Transforms for some of the parameters: groups in a chain, frozen leaves of any kind, masks of any form."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pwgf_jax.perturbation import gaussian_noise
from pwgf_jax.transforms import cubic_newton, gradient_trigger, masked, perturb_at_saddle, pgd

KEY = jax.random.key(0)


def saddle(x):
    """Down along a, up along b."""
    return -jnp.sum(x["a"] ** 2) / 2 + jnp.sum(x["a"] ** 4) / 4 + jnp.sum(x["b"] ** 2) / 2


def follow(transform, x, steps):
    @jax.jit
    def step(x, state):
        value, grad = jax.value_and_grad(saddle)(x)
        updates, state = transform.update(grad, state, x, value=value, grad=grad, value_fn=saddle)
        return optax.apply_updates(x, updates), state

    state = transform.init(x)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        for _ in range(steps):
            x, state = step(x, state)
    return x, state


X = {"a": jnp.zeros(2), "b": jnp.full(3, 0.5)}


def test_a_jump_around_an_optimizer_leaves_frozen_weights_alone():
    """Without a mask of its own it would move them, whatever freezes them inside."""
    trigger = gradient_trigger(eps=10.0, k_thres=50, f_thres=0.0)
    jumping = lambda optimizer: perturb_at_saddle(optimizer, gaussian_noise(0.1), trigger, key=KEY)  # noqa: E731
    frozen = optax.masked(optax.set_to_zero(), {"a": False, "b": True})
    trained = {"a": True, "b": False}
    alone, _ = follow(jumping(optax.chain(optax.sgd(0.1), frozen)), X, 2)
    assert np.any(alone["b"] != X["b"])
    kept, _ = follow(optax.chain(masked(jumping(optax.sgd(0.1)), trained), frozen), X, 2)
    np.testing.assert_array_equal(kept["b"], X["b"])
    assert np.any(kept["a"] != X["a"])


def test_the_gradient_of_what_is_frozen_does_not_hold_the_trigger():
    """|∂f/∂b| = 0.87 is above ε; what is trained is at its saddle."""
    method = pgd(0.1, radius=0.1, eps=0.01, k_thres=5, f_thres=0.0, key=KEY)
    for mask in ({"a": True, "b": False}, lambda x: {"a": True, "b": False}):
        end, _ = follow(
            optax.chain(masked(method, mask), optax.masked(optax.set_to_zero(), {"a": False, "b": True})), X, 60
        )
        np.testing.assert_allclose(np.abs(end["a"]).max(), 1, atol=0.05)
        np.testing.assert_array_equal(end["b"], X["b"])


def test_groups_in_a_chain_are_each_moved_by_theirs():
    both = optax.chain(
        masked(cubic_newton(12.0, key=KEY), {"a": True, "b": False}), masked(optax.sgd(0.5), {"a": False, "b": True})
    )
    end, _ = follow(both, X, 12)
    np.testing.assert_allclose(float(saddle(end)), -0.5, atol=1e-3)
    np.testing.assert_allclose(end["b"], 0.5 * 0.5**12, rtol=1e-6)


def test_the_state_is_that_of_the_inner_transform_and_has_nothing_of_the_rest():
    state: Any = masked(optax.adam(0.1), {"a": True, "b": False}).init(X)
    assert state[0].mu["b"] is None
    assert state[0].mu["a"].shape == (2,)


def test_a_prefix_is_a_mask():
    x = {"a": {"u": jnp.zeros(2), "v": jnp.ones(1)}, "b": (jnp.ones(2), jnp.asarray(3))}
    transform: Any = masked(optax.sgd(1.0), {"a": True, "b": False})
    grad = {"a": jax.tree.map(jnp.ones_like, x["a"]), "b": (jnp.ones(2), None)}
    updates, _ = transform.update(grad, transform.init(x), x)
    np.testing.assert_array_equal(updates["a"]["v"], [-1.0])
    np.testing.assert_array_equal(updates["b"][0], [1.0, 1.0])
    assert updates["b"][1] is None


def test_a_module_with_functions_in_it_trains_its_arrays():
    equinox = pytest.importorskip("equinox")

    class Net(equinox.Module):
        w: jax.Array
        steps: jax.Array
        activation: object

    net = Net(jnp.zeros(2), jnp.asarray(3), jnp.tanh)
    loss = lambda net: jnp.sum(net.activation(net.w) ** 4 - net.activation(net.w) ** 2 / 2)  # noqa: E731
    transform = masked(cubic_newton(30.0, key=KEY), jax.tree.map(equinox.is_inexact_array, net))
    grad = equinox.filter_grad(loss)(net)
    updates, _ = transform.update(grad, transform.init(net), net, value_fn=loss)
    moved = equinox.apply_updates(net, updates)
    assert float(loss(moved)) < float(loss(net))
    assert int(moved.steps) == 3
    with pytest.raises(TypeError, match=r"params\.steps is int.*; give real floating-point parameters"):
        cubic_newton(30.0, key=KEY).init(net)
