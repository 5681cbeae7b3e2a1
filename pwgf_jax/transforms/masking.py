"""A transform for some of the parameters, of an objective that takes all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import PyTree

from pwgf_jax.transforms.isometry import OfParticles

__all__ = ["masked"]


def _part(mask: PyTree, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda keep, leaf: leaf if keep else None, mask, tree)


def _whole(mask: PyTree, part: PyTree, rest: PyTree) -> PyTree:
    return jax.tree.map(lambda keep, new, old: new if keep else old, mask, part, rest)


def masked(
    inner: optax.GradientTransformation, mask: PyTree | Callable[[PyTree], PyTree]
) -> optax.GradientTransformationExtraArgs:
    r"""Apply a transform to the parameters where a mask is true; the other updates pass as they are.

    ``optax.masked``, for transforms that are given functions. The inner transform sees ``None`` where the mask is
    false; ``grad`` is restricted with the updates, and ``value_fn``, ``grad_fn`` and ``components`` become functions of
    the inner parameters, the others held where they are. So what is frozen does not jump, and has no curvature. It may
    be anything: integers, keys, functions. For several groups, as in ``optax.multi_transform``, chain one for each.

    Args:
        inner: any optax transformation.
        mask: booleans, structured like the parameters or a prefix of that; or a function of the parameters giving them.

    Returns:
        A transformation whose state is that of ``inner``.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from pwgf_jax.transforms import cubic_newton
        >>> f = lambda x: -(x["a"] ** 2) * x["b"] / 2  # a saddle in a; b is frozen
        >>> x = {"a": jnp.zeros(()), "b": jnp.ones(())}
        >>> optimizer = masked(cubic_newton(4.0, key=jax.random.key(0)), {"a": True, "b": False})
        >>> updates, _ = optimizer.update({"a": x["a"], "b": None}, optimizer.init(x), x, value_fn=f)
        >>> abs(round(float(updates["a"]), 3)), updates["b"] is None
        (0.5, True)
    """
    inner = optax.with_extra_args_support(inner)

    def chosen(params: PyTree) -> PyTree:
        # An equinox module of booleans is callable too.
        return mask(params) if callable(mask) and jax.tree_util.all_leaves([mask]) else mask

    def init(params: PyTree) -> Any:
        return inner.init(_part(chosen(params), params))

    def update(updates: PyTree, state: Any, params: PyTree = None, **extra_args: Any) -> tuple[PyTree, Any]:
        keep = chosen(updates if params is None else params)

        def of_the_part(function: Any) -> Callable[..., Any]:
            return lambda part, *rest: function(_whole(keep, part, params), *rest)

        for name in {"value_fn", "components", "grad_fn"} & extra_args.keys():
            whole = extra_args[name]
            extra_args[name] = of_the_part(whole)
            if isinstance(whole, OfParticles):
                extra_args[name] = OfParticles(extra_args[name], whole.weights)
        if "grad_fn" in extra_args:
            whole = extra_args["grad_fn"]
            extra_args["grad_fn"] = lambda part, *rest: _part(keep, whole(part, *rest))
        if "grad" in extra_args:
            extra_args["grad"] = _part(keep, extra_args["grad"])
        seen = None if params is None else _part(keep, params)
        part, state = inner.update(_part(keep, updates), state, seen, **extra_args)
        return _whole(keep, part, updates), state

    return optax.GradientTransformationExtraArgs(init, update)
