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
from jax.core import Tracer
from jaxtyping import Array, PyTree

__all__ = [
    "all_positive",
    "copied",
    "divided",
    "dtype",
    "inner",
    "needed",
    "norm",
    "not_negative",
    "partition",
    "positive",
    "precision",
    "ravel",
    "real",
    "restrict",
    "schedule",
    "size",
    "unit",
    "white",
    "whole",
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
    drawn = [jax.random.normal(k, jnp.shape(x), jnp.result_type(x)) for k, x in zip(keys, leaves, strict=True)]
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


def _hidden(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)


def restrict(tree: PyTree, like: PyTree) -> PyTree:
    """A tree without the leaves that ``optax.masked`` has hidden in another: a gradient, as its parameters are.

    Example:
        >>> import optax
        >>> restrict({"a": 1.0, "b": 2.0}, like={"a": 3.0, "b": optax.MaskedNode()})
        {'a': 1.0, 'b': MaskedNode()}
    """
    return jax.tree.map(lambda seen, leaf: seen if _hidden(seen) else leaf, like, tree, is_leaf=_hidden)


def real(caller: str, params: PyTree) -> None:
    """Refuse leaves that are no real floating-point numbers.

    Example:
        >>> real("pgd", {"count": 3})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        TypeError: pgd: params['count'] is int; give real floating-point parameters, and leave the rest out: ...
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        kind = getattr(leaf, "dtype", type(leaf))
        if not (kind is float or jnp.issubdtype(kind, jnp.floating)):
            name = kind.__name__ if isinstance(kind, type) else kind
            raise TypeError(
                f"{caller}: params{jax.tree_util.keystr(path)} is {name}; give real floating-point parameters, and "
                "leave the rest out: pwgf_jax.transforms.masked(transform, mask), or None at those leaves."
            )


def needed(caller: str, **arguments: Any) -> None:
    """Name the extra arguments that are missing, and refuse parameters that these cannot be taken at.

    Example:
        >>> needed("pgd", params=1.0, grad=None)
        Traceback (most recent call last):
        ...
        TypeError: pgd: grad missing; call update(updates, state, params, grad=...).
    """
    missing = [name for name, given in arguments.items() if given is None]
    if missing:
        passed = ", ".join(f"{name}=..." for name in missing)
        raise TypeError(f"{caller}: {' and '.join(missing)} missing; call update(updates, state, params, {passed}).")
    params = arguments.get("params")
    functions = [name for name, given in arguments.items() if callable(given) and name != "params"]
    if functions and any(map(_hidden, jax.tree.leaves(params, is_leaf=_hidden))):
        raise TypeError(
            f"{caller}: {' and '.join(functions)} takes all parameters, and optax.masked or multi_transform "
            "hides some; use pwgf_jax.transforms.masked(transform, mask), for several groups a chain of them."
        )
    real(caller, params)


def positive(name: str, number: float | Array) -> None:
    """Refuse a number that is not positive and finite.

    Example:
        >>> positive("pgd: radius", 0.0)
        Traceback (most recent call last):
        ...
        ValueError: pgd: radius=0.0; give a positive number.
    """
    # What is traced, as under optax.inject_hyperparams, cannot be looked at.
    if not isinstance(number, Tracer) and not 0 < number < math.inf:
        raise ValueError(f"{name}={number}; give a positive number.")


def all_positive(caller: str, **numbers: float | Array | None) -> None:
    """The same for several numbers of one caller; None stands for its default.

    Example:
        >>> all_positive("dimer", separation=0.1, strength=-1.0, kick=None)
        Traceback (most recent call last):
        ...
        ValueError: dimer: strength=-1.0; give a positive number.
    """
    for name, number in numbers.items():
        if number is not None:
            positive(f"{caller}: {name}", number)


def not_negative(name: str, number: float | Array) -> None:
    """Refuse a number that is negative or not finite.

    Example:
        >>> not_negative("dimer: kick", -1.0)
        Traceback (most recent call last):
        ...
        ValueError: dimer: kick=-1.0; give zero or a positive number.
    """
    if not isinstance(number, Tracer) and not 0 <= number < math.inf:
        raise ValueError(f"{name}={number}; give zero or a positive number.")


def whole(name: str, number: Any, least: int = 1) -> int:
    """The number as an integer; refuse what is none of at least ``least`` that fits in 32 bits.

    Example:
        >>> whole("ssrgd: epoch", 2**40)
        Traceback (most recent call last):
        ...
        ValueError: ssrgd: epoch=1099511627776; give a whole number, 1 to 2147483647.
    """
    if isinstance(number, Tracer):
        argument = name.rpartition(" ")[2]
        raise TypeError(
            f"{name} is traced, and shapes or loops depend on it; name it in "
            f'optax.inject_hyperparams(..., static_args="{argument}").'
        )
    if not (least <= number <= _INT32 and int(number) == number):
        raise ValueError(f"{name}={number}; give a whole number, {least} to {_INT32}.")
    return int(number)


def schedule(name: str, value: Any) -> Callable[[Any], Array]:
    """A number or an optax schedule as a function of the step; a number has to be non-negative.

    Example:
        >>> import jax.numpy as jnp
        >>> float(schedule("noise: level", 0.5)(jnp.int32(3)))
        0.5
        >>> schedule("noise: level", -1.0)
        Traceback (most recent call last):
        ...
        ValueError: noise: level=-1.0; give a non-negative number.
    """
    if not callable(value):
        traced = isinstance(value, jax.Array) and jnp.ndim(value) == 0
        if not traced and (not isinstance(value, int | float) or isinstance(value, bool)):
            raise TypeError(f"{name} is a {type(value).__name__}; give a float or an optax schedule.")
        if not isinstance(value, Tracer) and not 0 <= value < math.inf:
            raise ValueError(f"{name}={value}; give a non-negative number.")
        value = optax.constant_schedule(value)

    def at(step: Any) -> Array:
        with jax.numpy_dtype_promotion("standard"):  # optax's schedules mix dtypes
            return jnp.asarray(value(step))

    return at
