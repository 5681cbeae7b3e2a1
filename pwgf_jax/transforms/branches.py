"""Branches that stay branches under ``vmap``.

A ``lax.cond`` on a batched predicate becomes a select, which runs both branches for every member of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jaxtyping import Array, Bool, PyTree

__all__ = ["any_in_batch", "where_it_fires"]

State = TypeVar("State", bound=PyTree)
Leaves: TypeAlias = list[Any]  # arrays
Look: TypeAlias = Callable[[Leaves, Leaves], Leaves]  # (what it closes over, state) -> state

_GROUP = 8  # members that look at once; a last group that is part empty costs as much as a full one


@jax.custom_batching.custom_vmap
def any_in_batch(predicate: Array) -> Array:
    """The predicate itself; under ``vmap``, whether it holds anywhere in the batch, unbatched.

    A ``lax.cond`` on this stays a branch, taken by everybody when somebody needs it.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> jax.vmap(any_in_batch)(jnp.array([True, False])).tolist()
        [True, True]
    """
    return predicate


@any_in_batch.def_vmap
def _(axis_size: int, in_batched: list[bool], predicate: Array) -> tuple[Array, bool]:
    del axis_size, in_batched
    return any_in_batch(jnp.any(predicate)), False


def where_it_fires(fires: Bool[Array, ""], look: Callable[[State], State], state: State) -> State:
    """``look(state)`` if it fires, else the state: ``lax.cond``, and under ``vmap`` work for those alone that fire.

    In a batch the members that fire look in groups of eight, one group after the other; the rest keep their state
    untouched, and ``look`` never sees it. Where none fires nothing is computed. What ``look`` closes over may be of the
    batch, as the data of a seed are. The result is that of the loop over members, up to rounding.

    Everybody looks, as soon as anybody fires, where ``look`` has effects, such as a ``psum`` over an axis outside, at
    which everybody has to arrive; and under differentiation, whose reverse no loop of unknown length has.

    Args:
        fires: whether to look.
        look: state -> state of the same structure, shapes and dtypes.
        state: any pytree of arrays.

    Returns:
        The state after.

    Raises:
        TypeError: if ``look`` returns another structure, shape or dtype.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> fires, x = jnp.array([True, False, True]), jnp.array([4.0, -1.0, 9.0])
        >>> jax.vmap(lambda fires, x: where_it_fires(fires, jnp.sqrt, x))(fires, x).tolist()
        [2.0, -1.0, 3.0]
    """
    leaves, structure = jax.tree.flatten(state)
    # custom_vmap and custom_jvp refuse closures over tracers: traced once, what is closed over is an argument.
    traced, after = jax.make_jaxpr(look, return_shape=True)(state)
    if jax.tree.structure(after) != structure:
        raise TypeError(f"where_it_fires: look makes {jax.tree.structure(after)} of {structure}; return the same tree.")

    def looked(captured: Leaves, leaves: Leaves) -> Leaves:
        return jaxpr_as_fun(ClosedJaxpr(traced.jaxpr, captured))(*leaves)

    @jax.custom_jvp
    def apart(fires: Array, captured: Leaves, leaves: Leaves) -> Leaves:
        alone = _members(looked, (False,) * len(captured))
        out = alone(jnp.reshape(fires, 1), captured, [jnp.expand_dims(leaf, 0) for leaf in leaves])
        return [leaf[0] for leaf in out]

    def together(fires: Array, captured: Leaves, leaves: Leaves) -> Leaves:
        def chosen(leaves: Leaves) -> Leaves:
            return [jnp.where(fires, a, b) for a, b in zip(looked(captured, leaves), leaves, strict=True)]

        return jax.lax.cond(any_in_batch(fires), chosen, lambda leaves: leaves, leaves)

    apart.defjvp(lambda primals, tangents: jax.jvp(together, primals, tangents))
    return jax.tree.unflatten(structure, (together if traced.effects else apart)(fires, traced.consts, leaves))


def _members(looked: Look, own: tuple[bool, ...]) -> Callable[..., Leaves]:
    """(fires (n,), what is closed over, leaves (n, ...)) -> leaves, for n members.

    ``own`` tells what of the captured each member has for itself (n, ...), and what they share.
    """

    def of(member: Array | int, captured: Leaves) -> Leaves:
        return [value[member] if mine else value for mine, value in zip(own, captured, strict=True)]

    @jax.custom_batching.custom_vmap
    def members(fires: Array, captured: Leaves, leaves: Leaves) -> Leaves:
        (n,) = fires.shape
        if n == 1:
            one = [leaf[0] for leaf in leaves]
            one = jax.lax.cond(fires[0], looked, lambda _, leaves: leaves, of(0, captured), one)
            return [leaf[None] for leaf in one]
        size = min(_GROUP, n)
        (firing,) = jnp.nonzero(fires, size=n + -n % size, fill_value=n)

        def group(carry: tuple[Array, Leaves]) -> tuple[Array, Leaves]:
            done, leaves = carry
            to = jax.lax.dynamic_slice(firing, (done,), (size,))
            at = jnp.where(to < n, to, to[0])  # a group that is not full looks at its first member again
            axes = ([0 if mine else None for mine in own], 0)
            found = jax.vmap(looked, axes)(of(at, captured), [leaf[at] for leaf in leaves])
            return done + size, [a.at[to].set(b, mode="drop") for a, b in zip(leaves, found, strict=True)]

        count = jnp.sum(fires, dtype=jnp.int32)
        return jax.lax.while_loop(lambda carry: carry[0] < count, group, (jnp.int32(0), leaves))[1]

    @members.def_vmap
    def _(size: int, batched: list[Any], fires: Array, captured: Leaves, leaves: Leaves) -> Any:
        """A batch of batches is one batch of size·n members."""
        n = fires.shape[-1]

        def joined(x: Array, over: bool, mine: bool = True) -> Array:
            shape = x.shape[over + mine :]
            x = jnp.reshape(x, (size if over else 1, n if mine else 1, *shape))
            return jnp.reshape(jnp.broadcast_to(x, (size, n, *shape)), (size * n, *shape))

        over_fires, over_captured, over_leaves = batched
        owned = tuple(a or b for a, b in zip(own, over_captured, strict=True))
        values = [
            joined(value, over, mine) if over or mine else value
            for value, over, mine in zip(captured, over_captured, own, strict=True)
        ]
        out = _members(looked, owned)(joined(fires, over_fires), values, list(map(joined, leaves, over_leaves)))
        return [jnp.reshape(leaf, (size, n, *leaf.shape[1:])) for leaf in out], [True] * len(out)

    return members
