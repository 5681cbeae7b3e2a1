r"""The Lanczos recurrence on flat vectors, breakdown-safe: a self-adjoint operator made tridiagonal.

An operator either knows its measure (:class:`pwgf_jax.calculus.HessianOperator`), and its inner products are those of
:math:`L^2(\mu)`, or is a bare callable on pytrees with the Euclidean inner product. Both become a symmetric
matrix-vector product on flat vectors, the first by the isometry of :class:`pwgf_jax.measures.Isometry`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from pwgf_jax import trees
from pwgf_jax.calculus import HessianOperator
from pwgf_jax.measures import Isometry

__all__ = [
    "CLOSING",
    "Decomposition",
    "FlatOperator",
    "Recurrence",
    "begin",
    "check_depth",
    "decompose",
    "eigh",
    "extend",
    "finish",
    "flatten",
    "grown",
    "length",
    "product",
    "random_start",
    "rayleigh",
    "ritz",
    "rounding",
    "smallest_ritz_pair",
]

_dot = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class FlatOperator(NamedTuple):
    """A symmetric matrix-vector product, and the isometry between its vectors and fields.

    Args:
        matvec: the product of a flat vector, float32 at least whatever the fields are.
        to_flat: field -> vector.
        to_field: vector -> field.
        support: 1 where a coordinate exists, 0 on particles of weight zero.
        eps: the precision in which fields are held and products computed.

    Example:
        >>> import jax.numpy as jnp
        >>> flatten(lambda v: 2 * v, jnp.ones(2)).matvec(jnp.ones(2)).tolist()
        [2.0, 2.0]
    """

    matvec: Callable[[Array], Array]
    to_flat: Callable[[PyTree], Array]
    to_field: Callable[[Array], PyTree]
    support: Array
    eps: float


class Decomposition(NamedTuple):
    """A Lanczos decomposition in flat coordinates.

    Args:
        basis: orthonormal vectors, one a row.
        tridiagonal: the operator in them.
        residual: what the last product left, not normalised.
        steps_taken: how many vectors there are.

    Example:
        >>> import jax.numpy as jnp
        >>> flat = flatten(lambda v: 2 * v, jnp.ones(2))
        >>> float(decompose(flat, jnp.ones(2), 1).tridiagonal[0, 0])
        2.0
    """

    basis: Float[Array, "depth n"]
    tridiagonal: Float[Array, "depth depth"]
    residual: Float[Array, " n"]
    steps_taken: Int[Array, ""]


def flatten(operator: Callable[[PyTree], PyTree], like: PyTree) -> FlatOperator:
    """An operator on fields like these as a symmetric matrix on flat vectors: by the isometry of its measure, if any.

    Example:
        >>> import jax.numpy as jnp
        >>> flatten(lambda v: 3 * v, {"a": jnp.ones(2)}).to_flat({"a": jnp.ones(2)}).tolist()
        [1.0, 1.0]
    """
    for leaf in jax.tree.leaves(like):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"krylov: fields are {leaf.dtype}; give floating arrays.")
    plain, to_field = trees.ravel(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like))
    eps = trees.precision(like)

    def to_flat(u: PyTree) -> Array:
        return trees.ravel(u)[0]

    mu = operator.mu if isinstance(operator, HessianOperator) else None
    if mu is None:
        ones = jnp.ones_like(plain)
        return FlatOperator(lambda q: to_flat(operator(to_field(q))), to_flat, to_field, ones, eps)
    chart = Isometry(mu.weights, like)

    def to_unit_mass(u: PyTree) -> Array:
        return to_flat(chart.up(u))

    def to_mass(q: Array) -> PyTree:
        return chart.down(to_field(q))

    support = jnp.sign(to_unit_mass(jax.tree.map(jnp.ones_like, like)))
    return FlatOperator(lambda q: to_unit_mass(operator(to_mass(q))), to_unit_mass, to_mass, support, eps)


def check_depth(depth: int, size: int) -> None:
    """Refuse a Krylov dimension that the operator has no room for.

    Example:
        >>> check_depth(3, 2)
        Traceback (most recent call last):
        ...
        ValueError: krylov: depth=3 for an operator of size 2; choose 1 <= depth <= 2.
    """
    if not 1 <= depth <= size:
        raise ValueError(f"krylov: depth={depth} for an operator of size {size}; choose 1 <= depth <= {size}.")


class Recurrence(NamedTuple):
    """Lanczos under way: what :func:`extend` carries. Vectors past ``steps`` are zero.

    Args:
        basis: the vectors, each cut into pieces: a row holds the same piece of all vectors, one after the other. As a
            matrix of vectors, XLA on CPU copies all of it to write one; and where vectors are spread over devices,
            each device has its pieces of all of them.
        diagonal: of the tridiagonal matrix.
        off_diagonal: beside it.
        vector: the next of the basis.
        residual: what the last product left.
        scale: the largest norm of a product with a unit vector that was met.
        steps: vectors so far.
        room: dimensions of the operator that the basis does not span yet.
        alive: whether there is a next vector.

    Example:
        >>> import jax.numpy as jnp
        >>> int(begin(jnp.ones(2), 2, jnp.ones(2)).room)
        2
    """

    basis: Float[Array, "pieces depth*n/pieces"]
    diagonal: Float[Array, " depth"]
    off_diagonal: Float[Array, " depth"]
    vector: Float[Array, " n"]
    residual: Float[Array, " n"]
    scale: Float[Array, ""]
    steps: Int[Array, ""]
    room: Int[Array, ""]
    alive: Bool[Array, ""]


def length(vector: Float[Array, " n"]) -> Float[Array, ""]:
    """The Euclidean norm, of numbers of any size: squares neither vanish nor overflow.

    Example:
        >>> import jax.numpy as jnp
        >>> float(length(jnp.array([3.0, 4.0])))
        5.0
    """
    largest = jnp.max(jnp.abs(vector))
    unit = jnp.where(largest > 0, largest, 1)
    return unit * jnp.sqrt(jnp.sum((vector / unit) ** 2))


def product(u: Float[Array, " n"], v: Float[Array, " n"]) -> Float[Array, ""]:
    """⟨u, v⟩, summed as a tree: XLA's dot of two float32 vectors of 10⁶ numbers keeps three digits, its sum all.

    Example:
        >>> import jax.numpy as jnp
        >>> float(product(jnp.ones(2), jnp.array([1.0, 2.0])))
        3.0
    """
    return jnp.sum(u * v)


def _pieces(size: int) -> int:
    """How many pieces a vector is cut into: as many devices can share it, and one loses no time by it."""
    return math.gcd(size, 64)


def _cut(vector: Float[Array, " n"]) -> Float[Array, "pieces m"]:
    return vector.reshape(_pieces(vector.size), -1)


def _orthogonalised(vector: Float[Array, "pieces m"], basis: Float[Array, "pieces depth m"]) -> Array:
    """The vector less its components along a basis."""
    components = jnp.sum(_dot(basis, vector[:, :, None])[:, :, 0], axis=0)
    return vector - _dot(components[None, None], basis)[:, 0]


def begin(start: Float[Array, " n"], depth: int, support: Float[Array, " n"]) -> Recurrence:
    """The recurrence from a start, before its first step.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> flat = flatten(lambda v: jnp.array([1.0, 3.0]) * v, jnp.ones(2))
        >>> begin(jnp.array([3.0, 4.0]), 2, flat.support).vector.round(1).tolist()
        [0.6, 0.8]
    """
    dtype = start.dtype
    norm = length(start)
    alive = norm != 0  # of what is not a number, something is said: not a number
    first = jnp.where(alive, start / jnp.where(alive, norm, 1), 0)
    zeros, pieces = jnp.zeros((depth,), dtype), _pieces(start.size)
    basis = jnp.zeros((pieces, depth * start.size // pieces), dtype)
    count = jnp.zeros((), jnp.int32)
    room = jnp.sum(support != 0, dtype=jnp.int32)
    return Recurrence(basis, zeros, zeros, first, jnp.zeros_like(first), jnp.zeros((), dtype), count, room, alive)


def grown(recurrence: Recurrence, depth: int) -> Recurrence:
    """The same recurrence with room for more vectors.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> flat = flatten(lambda v: jnp.array([1.0, 3.0]) * v, jnp.ones(2))
        >>> grown(begin(jnp.ones(2), 1, flat.support), 2).diagonal.shape
        (2,)
    """
    missing = depth - recurrence.diagonal.size
    return recurrence._replace(
        basis=jnp.pad(recurrence.basis, ((0, 0), (0, missing * _cut(recurrence.vector).shape[1]))),
        diagonal=jnp.pad(recurrence.diagonal, (0, missing)),
        off_diagonal=jnp.pad(recurrence.off_diagonal, (0, missing)),
    )


def extend(operator: FlatOperator, recurrence: Recurrence, first: Any, last: Any, key: Array | None) -> Recurrence:
    """Steps ``first`` to ``last`` - 1 of the recurrence.

    Without a key it closes where a residual is rounding: the Krylov space of the start is all that is asked for. With
    a key it goes on until it spans the whole space: what is left of a direction that the start hardly has may be as
    small as rounding. It follows the residual while that holds digits, and else a random direction, uncoupled.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> flat = flatten(lambda v: jnp.array([1.0, 3.0]) * v, jnp.ones(2))
        >>> found = extend(flat, begin(jnp.ones(2), 2, flat.support), 0, 2, jax.random.key(0))
        >>> found.diagonal.round(3).tolist()
        [2.0, 2.0]
    """
    support = operator.support

    def orthogonalise(vector: Array, basis: Array) -> Array:
        return _orthogonalised(_cut(vector), basis).ravel()

    def step(i: Int[Array, ""], now: Recurrence) -> Recurrence:
        q = now.vector
        pieces, size = _cut(q).shape
        rows = jax.lax.dynamic_update_slice(now.basis, _cut(q), (jnp.zeros_like(i), i * size))
        basis = rows.reshape(pieces, -1, size)
        image = jnp.where(now.alive, operator.matvec(q), 0)
        scale = jnp.maximum(now.scale, length(image))
        alpha = product(q, image)
        last_one = (jnp.zeros_like(i), jnp.maximum(i - 1, 0) * size)
        before = jax.lax.dynamic_slice(now.basis, last_one, (pieces, size)).ravel()
        three_term = image - alpha * q - jnp.where(i > 0, now.off_diagonal[i - 1], 0) * before
        # Once loses half the digits when the vector is nearly in the span; twice is enough, unless nothing but rounding
        # is outside the span: then the second time takes most of what the first has left.
        once = orthogonalise(three_term, basis)
        residual = orthogonalise(once, basis)
        beta = length(residual)
        room = now.room - now.alive.astype(jnp.int32)
        alive = now.alive & (room > 0)
        level = (operator.eps if key is not None else CLOSING * operator.eps) * scale
        closes = (beta <= level) | (beta < length(once) / 2)
        if key is None:
            alive = alive & ~closes
        beta = jnp.where(alive & ~closes, beta, 0)
        residual = jnp.where(alive & ~closes, residual, 0)
        after = residual / jnp.where(beta > 0, beta, 1)
        if key is not None:
            step_key = jax.random.fold_in(key, i)

            def fresh(_: Array) -> Array:
                drawn = support * jax.random.normal(step_key, q.shape, q.dtype)
                for _turn in range(2):
                    drawn = orthogonalise(drawn / length(drawn), basis)
                return drawn / length(drawn)

            after = jax.lax.cond(alive & closes, fresh, lambda vector: vector, after)
        return Recurrence(
            rows,
            now.diagonal.at[i].set(alpha),
            now.off_diagonal.at[i].set(beta),
            after,
            residual,
            scale,
            now.steps + now.alive.astype(jnp.int32),
            room,
            alive,
        )

    return jax.lax.fori_loop(first, last, step, recurrence)


CLOSING = 16
"""Relative to eps and the operator's scale, the size below which a residual is rounding and a Krylov space closed."""


def finish(recurrence: Recurrence) -> Decomposition:
    """The decomposition that a recurrence has reached.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> flat = flatten(lambda v: jnp.array([1.0, 3.0]) * v, jnp.ones(2))
        >>> finish(extend(flat, begin(jnp.ones(2), 2, flat.support), 0, 2, None)).tridiagonal.round(3).tolist()
        [[2.0, 1.0], [1.0, 2.0]]
    """
    off = recurrence.off_diagonal[:-1]
    tridiagonal = jnp.diag(recurrence.diagonal) + jnp.diag(off, 1) + jnp.diag(off, -1)
    pieces, size = _cut(recurrence.vector).shape
    basis = jnp.moveaxis(recurrence.basis.reshape(pieces, -1, size), 1, 0).reshape(-1, pieces * size)
    return Decomposition(basis, tridiagonal, recurrence.residual, recurrence.steps)


def decompose(operator: FlatOperator, start: Float[Array, " n"], depth: int) -> Decomposition:
    """So many steps of Lanczos from a start, or until its Krylov space is closed.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> flat = flatten(lambda v: jnp.array([1.0, 3.0]) * v, jnp.ones(2))
        >>> int(decompose(flat, jnp.array([1.0, 0.0]), 2).steps_taken)
        1
    """
    return finish(extend(operator, begin(start, depth, operator.support), 0, depth, None))


def rounding(operator: FlatOperator, scale: Array) -> Array:
    """What rounding can move an eigenvalue by, where the largest in size is ``scale``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> flat = flatten(lambda v: jnp.array([1.0, 3.0]) * v, jnp.ones(2))
        >>> bool(rounding(flat, jnp.float32(3.0)) < 1e-4)
        True
    """
    return CLOSING * operator.eps * scale


# LAPACK's threads are those of XLA on CPU: a batch of eigenproblems on several devices can wait for itself.
_eigh = jax.custom_batching.sequential_vmap(lambda matrix: tuple(jnp.linalg.eigh(matrix)))


def eigh(matrix: Float[Array, "n n"]) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix; under ``vmap`` one matrix after the other.

    Example:
        >>> import jax.numpy as jnp
        >>> eigh(jnp.diag(jnp.array([2.0, -1.0])))[0].tolist()
        [-1.0, 2.0]
    """
    return _eigh(matrix)


def ritz(decomposition: Decomposition) -> tuple[Array, Array, Array]:
    """Ritz values, their vectors in the basis, and which of them are genuine; the genuine ones come first.

    Directions past the breakdown are moved above every genuine Ritz value first, so that none of their
    zeros can pass for an eigenvalue.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> flat = flatten(lambda v: jnp.array([1.0, 3.0]) * v, jnp.ones(2))
        >>> ritz(decompose(flat, jnp.ones(2), 2))[0].round(3).tolist()
        [1.0, 3.0]
    """
    depth = decomposition.tridiagonal.shape[0]
    genuine = jnp.arange(depth, dtype=jnp.int32) < decomposition.steps_taken
    largest = jnp.max(jnp.sum(jnp.abs(decomposition.tridiagonal), axis=1))
    bound = jnp.where(largest > 0, 2 * largest, 1)
    values, vectors = eigh(decomposition.tridiagonal + jnp.diag(jnp.where(genuine, 0, bound)))
    return values, vectors, genuine


def random_start(key: Array, operator: FlatOperator) -> Float[Array, " n"]:
    """A direction uniform on the sphere of the operator's space (not normalised).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> flat = flatten(lambda v: jnp.array([1.0, 3.0]) * v, jnp.ones(2))
        >>> random_start(jax.random.key(0), flat).shape
        (2,)
    """
    return jax.random.normal(key, operator.support.shape, operator.support.dtype) * operator.support


def smallest_ritz_pair(operator: FlatOperator, found: Decomposition) -> tuple[Array, Array, Array]:
    """Rayleigh quotient, unit vector and residual of the smallest Ritz pair, by one product more.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> flat = flatten(lambda v: jnp.array([1.0, 3.0]) * v, jnp.ones(2))
        >>> round(float(smallest_ritz_pair(flat, decompose(flat, jnp.ones(2), 2))[0]), 3)
        1.0
    """
    _, vectors, _ = ritz(found)
    vector = _dot(vectors[:, 0], found.basis)
    return rayleigh(operator, vector)


def rayleigh(operator: FlatOperator, vector: Float[Array, " n"]) -> tuple[Array, Array, Array]:
    """Rayleigh quotient, the unit vector and the residual of a vector, by one product.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> flat = flatten(lambda v: jnp.array([1.0, 3.0]) * v, jnp.ones(2))
        >>> float(rayleigh(flat, jnp.array([0.0, 2.0]))[0])
        3.0
    """
    norm = length(vector)
    vector = vector / jnp.where(norm > 0, norm, 1)
    image = operator.matvec(vector)
    eigenvalue = product(vector, image)
    return eigenvalue, vector, length(image - eigenvalue * vector)
