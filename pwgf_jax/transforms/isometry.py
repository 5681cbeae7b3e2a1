r"""One definition for parameters and for particles: the isometry of L²(μ) onto Euclidean space.

N particles with weights w are parameters with the inner product :math:`\sum_iw_i\langle u_i,v_i\rangle`, and
:math:`y_i=\sqrt{w_i}\,x_i` is an isometry onto Euclidean space: :math:`\partial F/\partial y=w^{-1/2}\partial F`, the
Hessian in y is :math:`w^{-1/2}\,\partial^2F\,w^{-1/2}`, a displacement dy is :math:`dx=w^{-1/2}dy`. So a method of
Euclidean space, run in y, is its own Wasserstein twin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optax
from jaxtyping import Array, PyTree

from pwgf_jax.measures import Isometry

__all__ = ["OfParticles", "chart", "transformation"]


@dataclass(frozen=True)
class OfParticles:
    """An objective as a function of the points of a measure, which knows their weights: a ``value_fn`` of particles.

    Args:
        function: points -> scalar.
        weights: w (N,).

    Example:
        >>> import jax.numpy as jnp
        >>> w = jnp.array([0.25, 0.75])
        >>> float(OfParticles(lambda x: w @ x**2, w)(jnp.array([2.0, 0.0])))
        1.0
    """

    function: Callable[[PyTree], Array]
    weights: Array

    def __call__(self, points: PyTree) -> Array:
        """The value."""
        return self.function(points)


def chart(value_fn: Any, points: PyTree) -> Isometry:
    """That of an objective of these points: by its weights if it is an :class:`OfParticles`, else the identity.

    Example:
        >>> import jax.numpy as jnp
        >>> chart(jnp.sum, jnp.ones(2)).up(jnp.ones(2)).tolist()
        [1.0, 1.0]
    """
    return Isometry(value_fn.weights if isinstance(value_fn, OfParticles) else None, points)


def transformation(
    init: Callable[..., Any], update: Callable[..., tuple[PyTree, Any]]
) -> optax.GradientTransformationExtraArgs:
    r"""A transformation of Euclidean parameters that serves particles too.

    Where ``value_fn`` is an :class:`OfParticles`, as :func:`pwgf_jax.flow` passes it, ``updates`` are a field at the
    Wasserstein scale, ``params`` the points, ``grad`` the Euclidean gradient in them, and ``value_fn``, ``grad_fn`` and
    ``components`` functions of them. ``update`` sees all of it in :math:`y=\sqrt w\,x`, and what it returns
    is taken back: a particle of weight zero does not move. Any other ``value_fn`` it sees as it is.

    Args:
        init: params -> state, which holds no coordinates of ``params`` to be compared with later ones.
        update: ``(updates, state, params, **extra_args) -> (updates, state)``, of Euclidean parameters.

    Returns:
        An optax transformation.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> def newton(updates, state, params, *, value_fn, **extra_args):
        ...     return jax.tree.map(lambda g, h: -g / jnp.diag(h), updates, jax.hessian(value_fn)(params)), state
        >>> twin = transformation(optax.init_empty_state, newton)
        >>> w, x = jnp.array([0.25, 0.75]), jnp.array([2.0, 4.0])
        >>> F = OfParticles(lambda x: w @ x**2, w)  # the Wasserstein gradient is 2x, whatever the weights are
        >>> twin.update(2 * x, optax.EmptyState(), x, value_fn=F)[0].tolist()
        [-2.0, -4.0]
    """

    def weighted(updates: PyTree, state: Any, params: PyTree = None, **extra_args: Any) -> tuple[PyTree, Any]:
        at = chart(extra_args.get("value_fn"), params)
        if at.weights is None:
            return update(updates, state, params, **extra_args)
        for name in {"value_fn", "components", "grad_fn"} & extra_args.keys():
            extra_args[name] = at.of(extra_args[name])
        if (in_x := extra_args.get("grad_fn")) is not None:
            extra_args["grad_fn"] = lambda *arguments: at.down(in_x(*arguments))
        if extra_args.get("grad") is not None:
            extra_args["grad"] = at.down(extra_args["grad"])
        updates, state = update(at.up(updates), state, None if params is None else at.up(params), **extra_args)
        return at.down(updates), state

    return optax.GradientTransformationExtraArgs(init, weighted)
