"""Accelerated gradient descent that leaves where it meets negative curvature."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from pwgf_jax import arguments, trees
from pwgf_jax.transforms.isometry import transformation

__all__ = ["AcceleratedState", "accelerated_descent"]


class AcceleratedState(NamedTuple):
    """State of :func:`accelerated_descent`.

    Args:
        velocity: v, the last step.
        exploitations: times that negative curvature was met, int32.

    Example:
        >>> import jax.numpy as jnp
        >>> accelerated_descent(0.1, theta=0.2, gamma=0.1, stretch=0.1).init(jnp.ones(2)).velocity.tolist()
        [0.0, 0.0]
    """

    velocity: PyTree
    exploitations: Int[Array, ""]


def accelerated_descent(
    learning_rate: float | Array, *, theta: float | Array, gamma: float | Array, stretch: float | Array
) -> optax.GradientTransformationExtraArgs:
    r"""Nesterov's accelerated gradient descent, with negative curvature exploitation.

    From x with the last step v, :math:`y=x+(1-\theta)v` and :math:`x^+=y-\eta\nabla f(y)`. But where f is less convex
    between y and x than −γ,

    .. math:: f(x)\le f(y)+\nabla f(y)\cdot(x-y)-\tfrac\gamma2|x-y|^2,

    v is a direction of descent or of negative curvature: x stays if :math:`|v|` is at least the stretch s, and
    otherwise goes to the lower one of :math:`x\pm s\,v/|v|`; v becomes zero. With a jump where the gradient is small,
    ``perturb_at_saddle(accelerated_descent(...), ball_noise(r), trigger, key=key)``, it is the papers' perturbed
    accelerated gradient descent, which needs :math:`\tilde O(\epsilon^{-7/4})` gradients, not
    :math:`\tilde O(\epsilon^{-2})`. From an exact saddle it does not start by itself.

    Args:
        learning_rate: η.
        theta: θ in (0, 1], how much of the velocity is lost.
        gamma: γ > 0 [units of f per length²].
        stretch: s > 0 [units of the parameters].

    Returns:
        A transformation whose ``update`` needs ``params``, ``value`` and ``value_fn``; it takes a gradient of its own,
        and does not look at the updates that come in.

    Raises:
        ValueError: if a number is out of range.
        TypeError: if an extra argument is missing.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> f = lambda x: x[0] ** 4 / 4 - x[0] ** 2 / 2 + x[1] ** 2 / 2
        >>> optimizer = accelerated_descent(0.1, theta=0.2, gamma=0.1, stretch=0.1)
        >>> def step(_, carry):
        ...     x, state = carry
        ...     value, grad = jax.value_and_grad(f)(x)
        ...     updates, state = optimizer.update(grad, state, x, value=value, value_fn=f)
        ...     return optax.apply_updates(x, updates), state
        >>> x = jnp.array([1e-3, 1.0])
        >>> x, _ = jax.lax.fori_loop(0, 200, step, (x, optimizer.init(x)))
        >>> round(float(f(x)), 3)
        -0.25

    References:
        Jin, Netrapalli, Jordan, COLT 2018, arXiv:1711.10456, Algs. 2 and 3 (recalled).
    """
    numbers = {"learning_rate": learning_rate, "theta": theta, "gamma": gamma, "stretch": stretch}
    arguments.all_positive("accelerated_descent", **numbers)
    if isinstance(theta, int | float) and theta > 1:
        raise ValueError(f"accelerated_descent: theta={theta}; give a number at most one.")

    def init(params: PyTree) -> AcceleratedState:
        arguments.real("accelerated_descent", params)
        return trees.copied(AcceleratedState(jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.int32)))

    def update(
        updates: PyTree, state: Any, params: PyTree = None, *, value: Any = None, value_fn: Any = None, **extra: Any
    ) -> tuple[PyTree, AcceleratedState]:
        del updates, extra
        arguments.needed("accelerated_descent", params=params, value=value, value_fn=value_fn)
        velocity = state.velocity
        carried = _scaled(velocity, 1 - theta)
        there, slope = jax.value_and_grad(value_fn)(jax.tree.map(jnp.add, params, carried))
        step = jax.tree.map(jnp.subtract, carried, _scaled(slope, learning_rate))
        along = -trees.inner(slope, carried) - gamma / 2 * trees.inner(carried, carried)
        unit, length = trees.unit(velocity)
        bends = (jnp.asarray(value) <= there + along.astype(there.dtype)) & (length > 0)

        def exploited() -> PyTree:
            ahead = jax.tree.map(lambda n, x: (stretch * n).astype(x.dtype), unit, params)
            values = [value_fn(jax.tree.map(each, params, ahead)) for each in (jnp.add, jnp.subtract)]
            factor = jnp.where(length >= stretch, 0, jnp.where(values[0] <= values[1], 1, -1))
            return _scaled(ahead, factor)

        moved = jax.lax.cond(bends, exploited, lambda: step)
        velocity = jax.tree.map(lambda leaf: jnp.where(bends, 0, leaf), moved)
        return moved, AcceleratedState(velocity, state.exploitations + bends.astype(jnp.int32))

    return transformation(init, update)


def _scaled(tree: PyTree, factor: Any) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.asarray(factor, leaf.dtype) * leaf, tree)
