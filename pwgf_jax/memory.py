r"""Large sums in tiles: what is stored, and what is computed again instead.

A sum over N particles and M data, or over N × M pairs, passes through N·M numbers that nobody asked for. They are made
a tile at a time, as many as the nearest memory holds, and made again where a derivative needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import jaxpr_as_fun
from jaxtyping import Array, Float, PyTree

from pwgf_jax.measures import single

__all__ = ["FEWEST_ROWS", "by_rows", "linearized", "mean_over", "rows_per_tile", "sum_over"]

Losses: TypeAlias = Callable[[PyTree, PyTree], Float[Array, " b"]]

FEWEST_ROWS = 64
"""Rows of a tile that a matrix product needs to be fast."""

# On CPU what a few cores' caches hold of one array, and what takes longer to read than to make again; elsewhere what
# keeps the device busy, and what it has to spare (tests/benchmarks).
_TILE_BYTES, _KEPT_BYTES = {"cpu": 3 * 2**20}, {"cpu": 2**25}
_TILE_ELSEWHERE, _KEPT_ELSEWHERE = 2**28, 2**30


def _most(known: Mapping[str, int], elsewhere: int) -> int:
    return known.get(jax.default_backend(), elsewhere)


def rows_per_tile(columns: int, dtype: Any, fewest: int | None = None) -> int:
    """How many rows of so many columns make a tile, one array of which suits this backend's memory.

    Args:
        columns: numbers in a row.
        dtype: of a number.
        fewest: rows, whatever they take; :data:`FEWEST_ROWS` if omitted.

    Example:
        >>> rows_per_tile(2**40, "float32"), rows_per_tile(2**40, "float32", fewest=1)
        (64, 1)
    """
    most = _most(_TILE_BYTES, _TILE_ELSEWHERE)
    rows = most // (jnp.dtype(dtype).itemsize * max(columns, 1))
    return max(FEWEST_ROWS if fewest is None else fewest, rows if rows < 16 else rows // 16 * 16)


def _rounded_up(rows: int) -> int:
    """To what vector units and devices divide evenly."""
    return -(-rows // 16) * 16


def _tiled(tree: PyTree, size: int) -> PyTree:
    """Leaves (n, ...) as (tiles, rows, ...) with at most ``size`` rows, filled up with zeros."""
    count = jax.tree.leaves(tree)[0].shape[0]
    tiles = -(-count // size)
    rows = min(size, _rounded_up(-(-count // tiles)))
    tiles = -(-count // rows)

    # A tile takes every tiles-th row: where rows are spread over devices, every device has its share of every tile.
    def split(leaf: Array) -> Array:
        filled = jnp.pad(leaf, [(0, tiles * rows - count)] + [(0, 0)] * (leaf.ndim - 1))
        return jnp.moveaxis(filled.reshape(rows, tiles, *leaf.shape[1:]), 1, 0)

    return jax.tree.map(split, tree)


def by_rows(block: Callable[[Any], Any], rows: PyTree, size: int) -> Any:
    """A function of rows, each row for itself, applied to ``size`` of them at a time.

    Args:
        block: of a tile (rows, ...), returns leaves (rows, ...).
        rows: leaves (n, ...).
        size: of a tile.

    Example:
        >>> import jax.numpy as jnp
        >>> by_rows(lambda x: 2 * x, jnp.arange(5.0), 2).tolist()
        [0.0, 2.0, 4.0, 6.0, 8.0]
    """
    count = jax.tree.leaves(rows)[0].shape[0]
    if size >= count:
        return block(rows)
    mapped = jax.lax.map(jax.checkpoint(block, prevent_cse=False), _tiled(rows, size))
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1).reshape(-1, *leaf.shape[2:])[:count], mapped)


def sum_over(block: Callable[[Any], Any], rows: PyTree, size: int) -> Any:
    """A function of rows that adds up over them, applied to ``size`` of them at a time; rows of zeros add nothing.

    Args:
        block: of a tile (rows, ...), returns any pytree, its sum over the rows.
        rows: leaves (n, ...).
        size: of a tile.

    Example:
        >>> import jax.numpy as jnp
        >>> float(sum_over(jnp.sum, jnp.arange(5.0), 2))
        10.0
    """
    if size >= jax.tree.leaves(rows)[0].shape[0]:
        return block(rows)
    tiles = _tiled(rows, size)
    shape = jax.eval_shape(block, jax.tree.map(lambda leaf: leaf[0], tiles))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, single(leaf.dtype)), shape)
    again = jax.checkpoint(block, prevent_cse=False)

    def add(sums: Any, tile: PyTree) -> tuple[Any, None]:
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), sums, again(tile)), None

    sums, _ = jax.lax.scan(add, zero, tiles)
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), sums, shape)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def mean_over(losses: Losses, size: int, shared: PyTree, rows: PyTree) -> Float[Array, ""]:
    r"""The mean :math:`\frac1M\sum_m\ell(\theta,z_m)` over data, ``size`` of them at a time.

    Value and gradient come from one pass: a tile's gradient is taken while the tile is there. Derivatives of every
    order are those of the mean.

    Args:
        losses: (θ, rows (b, ...)) -> ℓ, shape (b,), finite on rows of zeros; closes over nothing that is traced.
        size: of a tile.
        shared: θ, any pytree of floating arrays.
        rows: z, leaves (M, ...).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> mean = lambda x: mean_over(lambda x, z: (x - z) ** 2, 2, x, jnp.array([1.0, 2.0, 6.0]))
        >>> round(float(mean(4.0)), 3), float(jax.grad(mean)(4.0)), float(jax.grad(jax.grad(mean))(4.0))
        (5.667, 2.0, 2.0)
    """
    return _value(losses, size, shared, rows)


def _value(losses: Losses, size: int, shared: PyTree, rows: PyTree) -> Float[Array, ""]:
    return sum_over(partial(_mean, losses, shared), _weighted(rows), size)


def _weighted(rows: PyTree) -> tuple[PyTree, Array]:
    """The rows, each with its weight 1/M in a mean; what fills up a tile has none."""
    first = jax.tree.leaves(rows)[0]
    return rows, jnp.full(first.shape[0], 1 / first.shape[0], single(first.dtype))


def _mean(losses: Losses, shared: PyTree, tile: tuple[PyTree, Array]) -> Float[Array, ""]:
    rows, weights = tile
    found = losses(shared, rows)
    return jnp.sum(weights * found.astype(weights.dtype)).astype(found.dtype)


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, SymbolicZero)


def _all_zero(tangents: PyTree) -> bool:
    return all(map(_is_zero, jax.tree.leaves(tangents, is_leaf=_is_zero)))


def _dense(tangents: PyTree, primals: PyTree) -> PyTree:
    return jax.tree.map(lambda x, t: jnp.zeros_like(x) if _is_zero(t) else t, primals, tangents)


@partial(mean_over.defjvp, symbolic_zeros=True)
def _mean_over_jvp(losses: Losses, size: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    shared, rows = primals
    value, gradient = _value_and_gradient(losses, size, shared, rows)
    moving = jax.tree.map(lambda g, t: None if _is_zero(t) else jnp.sum(g * t), gradient, tangents[0])
    tangent = sum(jax.tree.leaves(moving), jnp.zeros_like(value))
    if not _all_zero(tangents[1]):  # somebody asks how the data matter
        tangent += jax.jvp(partial(_value, losses, size, shared), (rows,), (_dense(tangents[1], rows),))[1]
    return value, tangent


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _value_and_gradient(losses: Losses, size: int, shared: PyTree, rows: PyTree) -> tuple[Array, PyTree]:
    of_tile = jax.value_and_grad(partial(_mean, losses))
    return sum_over(partial(of_tile, shared), _weighted(rows), size)


@partial(_value_and_gradient.defjvp, symbolic_zeros=True)
def _value_and_gradient_jvp(losses: Losses, size: int, primals: Any, tangents: Any) -> tuple[Any, Any]:
    shared, rows = primals
    out, moved = _value_and_gradient(losses, size, shared, rows), _dense(tangents[0], shared)

    # The gradient of the derivative along the tangent: the same Hessian product as the derivative of the gradient, and
    # a quarter faster on CPU (tests/benchmarks).
    def along(shared: PyTree, tile: Any) -> Array:
        return jax.jvp(lambda shared: _mean(losses, shared, tile), (shared,), (moved,))[1]

    tangent = sum_over(partial(jax.value_and_grad(along), shared), _weighted(rows), size)
    if not _all_zero(tangents[1]):
        of_tile = jax.value_and_grad(partial(_mean, losses))
        of_rows = jax.jvp(
            lambda rows: sum_over(partial(of_tile, shared), _weighted(rows), size),
            (rows,),
            (_dense(tangents[1], rows),),
        )[1]
        tangent = jax.tree.map(jnp.add, tangent, of_rows)
    return out, tangent


def linearized(function: Callable[[PyTree], PyTree], at: PyTree) -> Callable[[PyTree], PyTree]:
    """The derivative of a function at a point, as a linear map for many uses.

    What it needs from the point is stored if that is little, and computed again at each use if it is much: a network of
    many neurons on many data has its activations N·M times.

    Args:
        function: of a pytree.
        at: the point.

    Returns:
        The linear map v -> Df(at) v.

    Example:
        >>> import jax.numpy as jnp
        >>> linearized(lambda x: x**2, jnp.array([3.0]))(jnp.array([1.0])).tolist()
        [6.0]
    """
    program, shape = jax.make_jaxpr(lambda at: jax.linearize(function, at)[1], return_shape=True)(at)
    given = {id(variable) for variable in (*program.jaxpr.constvars, *program.jaxpr.invars)}
    made: list[Any] = [variable.aval for variable in program.jaxpr.outvars if id(variable) not in given]
    if sum(each.size * each.dtype.itemsize for each in made) > _most(_KEPT_BYTES, _KEPT_ELSEWHERE):
        return lambda v: jax.jvp(function, (at,), (v,))[1]
    return jax.tree.unflatten(jax.tree.structure(shape), jaxpr_as_fun(program)(*jax.tree.leaves(at)))
