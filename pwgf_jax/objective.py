r"""What an escape method needs of a functional F at a measure μ, or of a loss f at parameters x: written once for both.

A *point* is a :class:`pwgf_jax.Particles` or a pytree of parameters. Fields at it are shaped like its coordinates, and
their inner product is that of L²(μ), or the Euclidean one: parameters are the case of weights one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TypeAlias

import jax
from jaxtyping import Array, Float, PyTree

from pwgf_jax.calculus import HessianOperator, Part, value_and_wasserstein_gradient, wasserstein_hessian
from pwgf_jax.measures import Particles
from pwgf_jax.memory import linearized

__all__ = ["Objective", "Point", "coordinates", "hessian", "moved", "value_and_gradient"]

Objective: TypeAlias = Callable[[PyTree], Float[Array, ""]]
"""A functional of measures, or a loss of parameters."""

Point: TypeAlias = PyTree
"""A measure (:class:`pwgf_jax.Particles`), or a pytree of floating parameters."""


def coordinates(point: Point) -> PyTree:
    """The particles of a measure, or the parameters themselves: what fields there are shaped like.

    Example:
        >>> import jax.numpy as jnp
        >>> coordinates(Particles.uniform(jnp.zeros((4, 2)))).shape, coordinates(jnp.zeros(3)).shape
        ((4, 2), (3,))
    """
    return point.points if isinstance(point, Particles) else point


def moved(point: Point, displacement: PyTree) -> Point:
    """The point after a displacement.

    Example:
        >>> import jax.numpy as jnp
        >>> moved(jnp.zeros(2), jnp.ones(2)).tolist()
        [1.0, 1.0]
    """
    if isinstance(point, Particles):
        return point.push_forward(displacement)
    return jax.tree.map(operator.add, point, displacement)


def value_and_gradient(objective: Objective, point: Point) -> tuple[Float[Array, ""], PyTree]:
    r"""F(μ) and :math:`\nabla_\mu F`, or f(x) and ∇f.

    Args:
        objective: the functional or the loss.
        point: the measure or the parameters.

    Returns:
        The value, and the gradient as a field.

    Example:
        >>> import jax.numpy as jnp
        >>> value_and_gradient(lambda x: jnp.sum(x**2), jnp.array([3.0]))[1].tolist()
        [6.0]
        >>> F = lambda mu: mu.weights @ jnp.sum(mu.points**2, axis=-1)
        >>> value_and_gradient(F, Particles.uniform(jnp.array([[3.0], [1.0]])))[1].tolist()
        [[6.0], [2.0]]
    """
    if isinstance(point, Particles):
        return value_and_wasserstein_gradient(objective, point)
    return jax.value_and_grad(objective)(point)


def hessian(objective: Objective, point: Point, part: Part = "full") -> HessianOperator:
    r"""A Wasserstein Hessian of F at μ, or ∇²f at x, linearised once and ready for many products.

    Args:
        objective: the functional or the loss.
        point: the measure or the parameters.
        part: as in :func:`pwgf_jax.wasserstein_hessian`; parameters have the ``"full"`` one alone.

    Returns:
        An operator on fields, in full matmul precision on every device.

    Raises:
        ValueError: if parameters are asked for another part.

    Example:
        >>> import jax.numpy as jnp
        >>> hessian(lambda x: x[0] * x[1], jnp.zeros(2))(jnp.array([3.0, 1.0])).tolist()
        [1.0, 3.0]
    """
    if isinstance(point, Particles):
        return wasserstein_hessian(objective, point, part)
    if part != "full":
        raise ValueError(f'hessian: part={part!r} at parameters; the parts belong to measures, parameters have "full".')
    with jax.default_matmul_precision("highest"):
        linear = linearized(jax.grad(objective), point)
    return HessianOperator(linear, None)
