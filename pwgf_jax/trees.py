"""Parameter pytrees as every transform sees them: one vector of them, and what may stand at their leaves.

Sums over parameters are taken in float32 at least, whatever the dtypes of the leaves. ``None`` and
``optax.MaskedNode`` hold no parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

__all__ = [
    "copied",
    "divided",
    "dtype",
    "hidden",
    "inner",
    "norm",
    "partition",
    "precision",
    "ravel",
    "restrict",
    "size",
    "unit",
    "white",
    "zeros",
]

_INT32 = 2**31 - 1


def size(tree: PyTree) -> int:
    """How many numbers a tree holds.

    Example:
        >>> import jax.numpy as jnp
        >>> size({"a": jnp.ones((2, 3)), "b": jnp.ones(())})
        7
    """
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree))


def dtype(tree: PyTree) -> Any:
    """The common dtype of the leaves, float32 at least: that of a value, a norm or a vector of them all.

    Example:
        >>> import jax.numpy as jnp
        >>> dtype(jnp.ones(2, "bfloat16")).name
        'float32'
    """
    with jax.numpy_dtype_promotion("standard"):  # leaves may differ in dtype
        return jnp.result_type(jnp.float32, *jax.tree.leaves(tree))


def precision(tree: PyTree) -> float:
    """The coarsest relative rounding among the leaves.

    Example:
        >>> import jax.numpy as jnp
        >>> precision([jnp.ones(2, "float32"), jnp.ones(2, "bfloat16")])
        0.0078125
    """
    return max((float(jnp.finfo(jnp.result_type(leaf)).eps) for leaf in jax.tree.leaves(tree)), default=0.0)


def zeros(tree: PyTree) -> PyTree:
    """Zeros in the shapes of a tree, of float32 at least, to add up in.

    Example:
        >>> import jax.numpy as jnp
        >>> zeros({"a": jnp.ones(2, "bfloat16")})["a"].dtype.name
        'float32'
    """
    return jax.tree.map(lambda leaf: jnp.zeros(jnp.shape(leaf), dtype(leaf)), tree)


def ravel(tree: PyTree) -> tuple[Array, Callable[[Array], PyTree]]:
    """All leaves in one vector of the :func:`dtype` of the tree, and the way back to their own shapes and dtypes.

    Example:
        >>> import jax.numpy as jnp
        >>> flat, unravel = ravel({"a": jnp.ones(2, "bfloat16"), "b": jnp.zeros((), "float32")})
        >>> flat.tolist(), unravel(flat)["a"].dtype.name
        ([1.0, 1.0, 0.0], 'bfloat16')
    """
    leaves, structure = jax.tree.flatten(tree)
    common = dtype(tree)
    shapes = [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]
    ends = [0]
    for shape, _ in shapes:
        ends.append(ends[-1] + math.prod(shape))

    def unravel(flat: Array) -> PyTree:
        parts = [
            flat[start:end].reshape(shape).astype(kind)
            for start, end, (shape, kind) in zip(ends[:-1], ends[1:], shapes, strict=True)
        ]
        return jax.tree.unflatten(structure, parts)

    parts = [jnp.ravel(leaf).astype(common) for leaf in leaves]
    return jnp.concatenate(parts) if parts else jnp.zeros(0, common), unravel


@dataclass(frozen=True)
class _Rejoin:
    """Puts floating leaves back among those that are held; what is static of it, so that it crosses ``jax.jit``."""

    structure: Any
    plain: tuple  # functions, Python numbers, strings; None in the place of any array

    def __call__(self, held: list, floating: PyTree) -> PyTree:
        moving = self.structure.flatten_up_to(floating)
        leaves = [
            next((leaf for leaf in at_one_place if leaf is not None), None)
            for at_one_place in zip(moving, held, self.plain, strict=True)
        ]
        return jax.tree.unflatten(self.structure, leaves)


def _floating(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _strong(leaf: Any) -> Array:
    """The array in its own dtype; a weakly typed one would not say in which precision sums are taken."""
    return jnp.asarray(leaf, jax.dtypes.canonicalize_dtype(leaf.dtype))


def partition(tree: PyTree) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """The floating arrays of a tree, with None elsewhere; and the way back, which holds all else fixed.

    The way back is a pytree: the arrays that it holds (integers, random keys) are leaves of it, and what is no array
    (functions, strings, Python's numbers: the rate of a dropout is no parameter) is static under ``jax.jit``.

    Args:
        tree: any pytree, such as an equinox module.

    Returns:
        The floating part, and a function from it to a tree like the one given.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> network = {"w": jnp.ones(2), "activation": jnp.tanh, "layers": 3, "bias": None}
        >>> floating, whole = partition(network)
        >>> floating["activation"] is None, floating["layers"] is None
        (True, True)
        >>> moved = whole(jax.tree.map(lambda w: 2 * w, floating))
        >>> moved["w"].tolist(), moved["layers"], moved["activation"] is jnp.tanh
        ([2.0, 2.0], 3, True)
    """
    leaves, structure = jax.tree.flatten(tree)
    moving = [_strong(leaf) if _floating(leaf) else None for leaf in leaves]
    held = [
        leaf if moved is None and isinstance(leaf, jax.Array | np.ndarray | np.generic) else None
        for leaf, moved in zip(leaves, moving, strict=True)
    ]
    plain = tuple(
        leaf if moved is None and array is None else None
        for leaf, moved, array in zip(leaves, moving, held, strict=True)
    )
    return jax.tree.unflatten(structure, moving), jax.tree_util.Partial(_Rejoin(structure, plain), held)


def norm(tree: PyTree) -> Array:
    """The Euclidean norm over all leaves together.

    Example:
        >>> import jax.numpy as jnp
        >>> float(norm([jnp.array([3.0]), jnp.array([[4.0]])]))
        5.0
    """
    common = dtype(tree)
    squares = [jnp.sum(jnp.square(jnp.abs(jnp.asarray(leaf).astype(common)))) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.zeros((), common)))


def divided(a: Array, b: Array) -> Array:
    """a/b, and 0 where b is 0: also in derivatives, which a quotient that is masked afterwards would make NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> divided(jnp.array([1.0, 1.0]), jnp.array([2.0, 0.0])).tolist()
        [0.5, 0.0]
    """
    present = b != 0
    return jnp.where(present, a / jnp.where(present, b, 1), 0)


def unit(tree: PyTree) -> tuple[PyTree, Array]:
    """A tree over its :func:`norm`, and that norm; zeros for zeros.

    Example:
        >>> import jax.numpy as jnp
        >>> [leaf.tolist() for leaf in unit(jnp.array([0.0, 2.0]))]
        [[0.0, 1.0], 2.0]
    """
    length = norm(tree)
    return jax.tree.map(lambda leaf: divided(leaf, length.astype(leaf.dtype)), tree), length


def inner(u: PyTree, v: PyTree) -> Array:
    """The Euclidean inner product over all leaves together.

    Example:
        >>> import jax.numpy as jnp
        >>> float(inner([jnp.array([3.0]), jnp.array([[4.0]])], [jnp.array([1.0]), jnp.array([[2.0]])]))
        11.0
    """
    common = dtype((u, v))
    terms = [
        jnp.sum(jnp.asarray(a).astype(common) * jnp.asarray(b).astype(common))
        for a, b in zip(jax.tree.leaves(u), jax.tree.leaves(v), strict=True)
    ]
    return sum(terms, jnp.zeros((), common))


def white(key: Array, like: PyTree) -> PyTree:
    """Independent standard normal numbers, in the shapes and dtypes of a tree.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> white(jax.random.key(0), jnp.ones(3, "bfloat16")).dtype.name
        'bfloat16'
    """
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    # Flat: the same numbers, in less than half of the time where the last axis is short and a CPU's vectors stay empty.
    drawn = [
        jax.random.normal(k, (jnp.size(x),), jnp.result_type(x)).reshape(jnp.shape(x))
        for k, x in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)


def copied(tree: PyTree) -> PyTree:
    """Every leaf in a buffer of its own: a state that its holder may donate, beside the parameters too.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.ones(2)
        >>> copied([x, x])[0] is x
        False
    """
    return jax.tree.map(jnp.copy, tree)


def hidden(leaf: Any) -> bool:
    """Whether ``optax.masked`` has hidden a leaf.

    Example:
        >>> hidden(optax.MaskedNode())
        True
    """
    return isinstance(leaf, optax.MaskedNode)


def restrict(tree: PyTree, like: PyTree) -> PyTree:
    """A tree without the leaves that ``optax.masked`` has hidden in another: a gradient, as its parameters are.

    Example:
        >>> import optax
        >>> restrict({"a": 1.0, "b": 2.0}, like={"a": 3.0, "b": optax.MaskedNode()})
        {'a': 1.0, 'b': MaskedNode()}
    """
    return jax.tree.map(lambda seen, leaf: seen if hidden(seen) else leaf, like, tree, is_leaf=hidden)
