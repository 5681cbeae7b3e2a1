r"""One definition for parameters and for particles: the isometry of L²(μ) onto Euclidean space.

N particles with weights w are parameters with the inner product :math:`\sum_iw_i\langle u_i,v_i\rangle`, and
:math:`y_i=\sqrt{w_i}\,x_i` is an isometry onto Euclidean space: :math:`\partial F/\partial y=w^{-1/2}\partial F`, the
Hessian in y is :math:`w^{-1/2}\,\partial^2F\,w^{-1/2}`, a displacement dy is :math:`dx=w^{-1/2}dy`. So a method of
Euclidean space, run in y, is its own Wasserstein twin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from pwgf_jax.measures import per_particle

__all__ = ["transformation"]


def transformation(
    init: Callable[[PyTree], Any], update: Callable[..., tuple[PyTree, Any]]
) -> optax.GradientTransformationExtraArgs:
    r"""A transformation of Euclidean parameters that serves particles too, where it is given their ``weights``.

    With an extra argument ``weights`` (N,), as :func:`pwgf_jax.flow` passes it, ``updates`` are a field at the
    Wasserstein scale, ``params`` the points, ``grad`` the Euclidean gradient in them, and ``value_fn``, ``grad_fn`` and
    ``components`` functions of them. ``update`` sees all of it in :math:`y=\sqrt w\,x`, and what it returns
    is taken back: a particle of weight zero does not move. Without weights it sees what it is given.

    Args:
        init: params -> state, which may hold no coordinates of ``params`` that it will compare with later ones.
        update: (updates, state, params, **extra_args) -> (updates, state), of Euclidean parameters.

    Returns:
        An optax transformation.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> def newton(updates, state, params, *, value_fn, **extra_args):
        ...     return jax.tree.map(lambda g, h: -g / jnp.diag(h), updates, jax.hessian(value_fn)(params)), state
        >>> twin = transformation(optax.init_empty_state, newton)
        >>> w, x = jnp.array([0.25, 0.75]), jnp.array([2.0, 4.0])
        >>> F = lambda x: w @ x**2  # the Wasserstein gradient is 2x, whatever the weights are
        >>> twin.update(2 * x, optax.EmptyState(), x, value_fn=F, weights=w)[0].tolist()
        [-2.0, -4.0]
    """

    def weighted(
        updates: PyTree, state: Any, params: PyTree = None, *, weights: Array | None = None, **extra_args: Any
    ) -> tuple[PyTree, Any]:
        if weights is None:
            return update(updates, state, params, **extra_args)
        root = jnp.sqrt(weights)
        inverse = jnp.where(root > 0, 1 / jnp.where(root > 0, root, 1), 0)

        def times(factor: Array, tree: PyTree) -> PyTree:
            return jax.tree.map(lambda leaf: per_particle(factor, leaf).astype(leaf.dtype) * leaf, tree)

        def points(y: PyTree) -> PyTree:
            present = root > 0
            return jax.tree.map(
                lambda moved, x: jnp.where(per_particle(present, x), moved, x), times(inverse, y), params
            )

        for name in {"value_fn", "components"} & extra_args.keys():
            extra_args[name] = _before(points, extra_args[name])
        if "grad_fn" in extra_args:
            in_x = _before(points, extra_args["grad_fn"])
            extra_args["grad_fn"] = lambda y, *rest: times(inverse, in_x(y, *rest))
        if extra_args.get("grad") is not None:
            extra_args["grad"] = times(inverse, extra_args["grad"])
        in_y = None if params is None else times(root, params)
        updates, state = update(times(root, updates), state, in_y, **extra_args)
        return times(inverse, updates), state

    return optax.GradientTransformationExtraArgs(init, weighted)


def _before(first: Callable[[PyTree], PyTree], function: Any) -> Any:
    return function if function is None else lambda y, *rest: function(first(y), *rest)
