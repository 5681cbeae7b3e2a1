r"""Lanczos, breakdown-safe: functions of a self-adjoint operator and its smallest eigenpair.

The operator is either one that knows its measure (:class:`pwgf_jax.calculus.HessianOperator`), whose inner
products are those of :math:`L^2(\mu)`, or a bare callable on pytrees with the Euclidean inner product. Both become
a symmetric matrix-vector product on flat vectors, the first by the isometry :math:`u\mapsto(\sqrt{w_i}\,u_i)_i`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from pwgf_jax import trees
from pwgf_jax.calculus import HessianOperator
from pwgf_jax.measures import per_particle

__all__ = [
    "Eigenpair",
    "Lanczos",
    "dense_function",
    "eigh",
    "lanczos",
    "matrix_function",
    "smallest_eigenpair",
]

_dot = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class Lanczos(NamedTuple):
    r"""A Lanczos decomposition :math:`AQ^\top = Q^\top T + r\,e_m^\top`; the rows of Q are orthonormal.

    Past ``steps_taken`` (the Krylov space closed early) rows of Q, rows and columns of T and r are zero.

    Args:
        basis: Q, fields with one more leading axis of length depth.
        tridiagonal: T, a dense (depth, depth) matrix.
        residual: r, a field, not normalised.
        steps_taken: how many basis vectors there are.

    Example:
        >>> import jax.numpy as jnp
        >>> decomposition = lanczos(lambda v: 3.0 * v, jnp.ones(4), depth=2)
        >>> int(decomposition.steps_taken), float(decomposition.tridiagonal[0, 0])
        (1, 3.0)
    """

    basis: PyTree
    tridiagonal: Float[Array, "depth depth"]
    residual: PyTree
    steps_taken: Int[Array, ""]


class Eigenpair(NamedTuple):
    """An eigenvalue with its eigenvector and error bound.

    Args:
        eigenvalue: the Rayleigh quotient of the eigenvector.
        eigenvector: a field of norm one (zero if the operator acts on nothing).
        residual: the norm of A v − λ v and its rounding: an eigenvalue lies within that of the one returned.
        converged: whether the residual is below the tolerance asked for.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> pair = smallest_eigenpair(lambda v: -v, jax.random.key(0), depth=2, like=jnp.ones(3))
        >>> round(float(pair.eigenvalue), 6), bool(pair.converged)
        (-1.0, True)
    """

    eigenvalue: Float[Array, ""]
    eigenvector: PyTree
    residual: Float[Array, ""]
    converged: Bool[Array, ""]


class FlatOperator(NamedTuple):
    """A symmetric matrix-vector product, and the isometry between its vectors and fields.

    The vectors are float32 at least, whatever the fields are.
    """

    matvec: Callable[[Array], Array]
    to_flat: Callable[[PyTree], Array]
    to_field: Callable[[Array], PyTree]
    support: Array  # 1 where a coordinate exists, 0 on particles of weight zero
    eps: float  # the precision in which fields are held and products computed


class Decomposition(NamedTuple):
    """A Lanczos decomposition in flat coordinates."""

    basis: Float[Array, "depth n"]
    tridiagonal: Float[Array, "depth depth"]
    residual: Float[Array, " n"]
    steps_taken: Int[Array, ""]


def flatten(operator: Callable[[PyTree], PyTree], like: PyTree) -> FlatOperator:
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
    root = jnp.sqrt(mu.weights)
    inverse_root = jnp.where(root > 0, 1 / jnp.where(root > 0, root, 1), 0)

    def scaled(factor: Array, u: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: per_particle(factor, leaf).astype(leaf.dtype) * leaf, u)

    def to_unit_mass(u: PyTree) -> Array:
        return to_flat(scaled(root, u))

    def to_mass(q: Array) -> PyTree:
        return scaled(inverse_root, to_field(q))

    support = to_flat(scaled(jnp.where(root > 0, 1, 0), jax.tree.map(jnp.ones_like, like)))
    return FlatOperator(lambda q: to_unit_mass(operator(to_mass(q))), to_unit_mass, to_mass, support, eps)


def _check_depth(depth: int, size: int) -> None:
    if not 1 <= depth <= size:
        raise ValueError(f"krylov: depth={depth} for an operator of size {size}; choose 1 <= depth <= {size}.")


class Recurrence(NamedTuple):
    """Lanczos under way: what ``extend`` carries. Vectors past ``steps`` are zero.

    The basis is one flat vector, row after row: as a matrix, XLA on CPU copies all of it to write a row.
    """

    basis: Float[Array, " depth*n"]
    diagonal: Float[Array, " depth"]
    off_diagonal: Float[Array, " depth"]
    vector: Float[Array, " n"]
    residual: Float[Array, " n"]
    scale: Float[Array, ""]  # the largest norm of a product with a unit vector that was met
    steps: Int[Array, ""]
    room: Int[Array, ""]  # dimensions of the operator that the basis does not span yet
    alive: Bool[Array, ""]


def length(vector: Float[Array, " n"]) -> Float[Array, ""]:
    """The Euclidean norm, of numbers of any size: squares neither vanish nor overflow."""
    largest = jnp.max(jnp.abs(vector))
    unit = jnp.where(largest > 0, largest, 1)
    return unit * jnp.sqrt(jnp.sum((vector / unit) ** 2))


def product(u: Float[Array, " n"], v: Float[Array, " n"]) -> Float[Array, ""]:
    """⟨u, v⟩, summed as a tree: XLA's dot of two float32 vectors of 10⁶ numbers keeps three digits, its sum all."""
    return jnp.sum(u * v)


def begin(start: Float[Array, " n"], depth: int, support: Float[Array, " n"]) -> Recurrence:
    """The recurrence from a start, before its first step."""
    dtype = start.dtype
    norm = length(start)
    alive = norm != 0  # of what is not a number, something is said: not a number
    first = jnp.where(alive, start / jnp.where(alive, norm, 1), 0)
    zeros, basis = jnp.zeros((depth,), dtype), jnp.zeros((depth * start.size,), dtype)
    count = jnp.zeros((), jnp.int32)
    room = jnp.sum(support != 0, dtype=jnp.int32)
    return Recurrence(basis, zeros, zeros, first, jnp.zeros_like(first), jnp.zeros((), dtype), count, room, alive)


def grown(recurrence: Recurrence, depth: int) -> Recurrence:
    """The same recurrence with room for more vectors."""
    missing = depth - recurrence.diagonal.size
    return recurrence._replace(
        basis=jnp.pad(recurrence.basis, (0, missing * recurrence.vector.size)),
        diagonal=jnp.pad(recurrence.diagonal, (0, missing)),
        off_diagonal=jnp.pad(recurrence.off_diagonal, (0, missing)),
    )


def extend(operator: FlatOperator, recurrence: Recurrence, first: Any, last: Any, key: Array | None) -> Recurrence:
    """Steps ``first`` to ``last`` - 1 of the recurrence.

    Without a key it closes where a residual is rounding: the Krylov space of the start is all that is asked for. With
    a key it goes on until it spans the whole space: what is left of a direction that the start hardly has may be as
    small as rounding. It follows the residual while that holds digits, and else a random direction, uncoupled.
    """
    support = operator.support

    def orthogonalise(vector: Array, basis: Array) -> Array:
        return vector - _dot(_dot(basis, vector), basis)

    def step(i: Int[Array, ""], now: Recurrence) -> Recurrence:
        q = now.vector
        flat = jax.lax.dynamic_update_slice(now.basis, q, (i * q.size,))
        basis = flat.reshape(-1, q.size)
        image = jnp.where(now.alive, operator.matvec(q), 0)
        scale = jnp.maximum(now.scale, length(image))
        alpha = product(q, image)
        before = jax.lax.dynamic_slice(now.basis, (jnp.maximum(i - 1, 0) * q.size,), (q.size,))
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
            flat,
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
    off = recurrence.off_diagonal[:-1]
    tridiagonal = jnp.diag(recurrence.diagonal) + jnp.diag(off, 1) + jnp.diag(off, -1)
    basis = recurrence.basis.reshape(-1, recurrence.vector.size)
    return Decomposition(basis, tridiagonal, recurrence.residual, recurrence.steps)


def decompose(operator: FlatOperator, start: Float[Array, " n"], depth: int) -> Decomposition:
    return finish(extend(operator, begin(start, depth, operator.support), 0, depth, None))


def rounding(operator: FlatOperator, scale: Array) -> Array:
    """What rounding can move an eigenvalue by, where the largest in size is ``scale``."""
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
    """
    depth = decomposition.tridiagonal.shape[0]
    genuine = jnp.arange(depth, dtype=jnp.int32) < decomposition.steps_taken
    largest = jnp.max(jnp.sum(jnp.abs(decomposition.tridiagonal), axis=1))
    bound = jnp.where(largest > 0, 2 * largest, 1)
    values, vectors = eigh(decomposition.tridiagonal + jnp.diag(jnp.where(genuine, 0, bound)))
    return values, vectors, genuine


def lanczos(operator: Callable[[PyTree], PyTree], start: PyTree, depth: int) -> Lanczos:
    r"""Lanczos tridiagonalisation with two full reorthogonalisation passes and breakdown detection.

    A step whose new direction is below rounding ends the decomposition: the Krylov space is invariant, which is
    a success with fewer ``steps_taken``. Memory: depth fields; cost: depth products and about 8·depth²·n flops.

    Args:
        operator: self-adjoint linear map; from :func:`pwgf_jax.wasserstein_hessian` (inner product of L²(μ)) or
            any callable on pytrees (Euclidean inner product).
        start: the first direction, need not be normalised; zero gives zero steps.
        depth: how many basis vectors, at most the size of ``start``.

    Returns:
        A :class:`Lanczos`.

    Raises:
        ValueError: if ``depth`` is below one or exceeds the size of the operator.
        TypeError: if ``start`` is not floating.

    Example:
        >>> import jax.numpy as jnp
        >>> A = jnp.diag(jnp.array([1.0, 2.0, 5.0]))
        >>> decomposition = lanczos(lambda v: A @ v, jnp.ones(3), depth=3)
        >>> [round(float(x), 4) for x in jnp.linalg.eigvalsh(decomposition.tridiagonal)]
        [1.0, 2.0, 5.0]

    References:
        Golub and Van Loan, Matrix Computations, Ch. 10; Parlett, The Symmetric Eigenvalue Problem, Ch. 13.
    """
    flat = flatten(operator, start)
    _check_depth(depth, flat.support.size)
    with jax.default_matmul_precision("highest"):
        found = decompose(flat, flat.to_flat(start), depth)
    return Lanczos(
        jax.vmap(flat.to_field)(found.basis), found.tridiagonal, flat.to_field(found.residual), found.steps_taken
    )


def matrix_function(
    operator: Callable[[PyTree], PyTree], field: PyTree, fn: Callable[[Array], Array], depth: int
) -> PyTree:
    r"""A function of a self-adjoint operator applied to a field, :math:`\phi(H)v\approx\|v\|\,Q^\top\phi(T)e_1`.

    Exact once the Krylov space of ``field`` closes. ``fn`` is evaluated at Ritz values only, which lie within the
    spectrum up to rounding: clip inside ``fn`` where rounding could leave its domain
    (``lambda t: jnp.sqrt(jnp.maximum(t, 0))``).

    Args:
        operator: as in :func:`lanczos`.
        field: v.
        fn: φ, applied to an array of eigenvalues.
        depth: Krylov dimension, at most the size of ``field``.

    Returns:
        A field structured like ``field``; zero if ``field`` is zero.

    Raises:
        ValueError: as in :func:`lanczos`.

    Example:
        >>> import jax.numpy as jnp
        >>> A = jnp.diag(jnp.array([-1.0, 4.0]))
        >>> [round(float(x), 4) for x in matrix_function(lambda v: A @ v, jnp.ones(2), jnp.abs, depth=2)]
        [1.0, 4.0]

    References:
        Higham, Functions of Matrices, Ch. 13.
    """
    flat = flatten(operator, field)
    _check_depth(depth, flat.support.size)
    with jax.default_matmul_precision("highest"):
        start = flat.to_flat(field)
        found = decompose(flat, start, depth)
        values, vectors, genuine = ritz(found)
        phi = jnp.where(genuine, fn(jnp.where(genuine, values, found.tridiagonal[0, 0])), 0)
        coefficients = _dot(vectors, phi * vectors[0])
        return flat.to_field(length(start) * _dot(coefficients, found.basis))


def dense_function(operator: Callable[[PyTree], PyTree], field: PyTree, fn: Callable[[Array], Array]) -> PyTree:
    r"""A function of a self-adjoint operator applied to a field, by the whole spectrum: the reference for small sizes.

    Args:
        operator: as in :func:`lanczos`.
        field: v, of at most 4096 numbers.
        fn: φ, applied to an array of eigenvalues.

    Returns:
        A field structured like ``field``.

    Raises:
        ValueError: if the field is larger than that.

    Example:
        >>> import jax.numpy as jnp
        >>> A = jnp.diag(jnp.array([1.0, 4.0]))
        >>> [round(float(x), 4) for x in dense_function(lambda v: A @ v, jnp.ones(2), jnp.sqrt)]
        [1.0, 2.0]
    """
    flat = flatten(operator, field)
    size = flat.support.size
    if size > 4096:
        raise ValueError(f"dense_function: a field of {size} numbers; above 4096 use matrix_function (Lanczos).")
    with jax.default_matmul_precision("highest"):
        matrix = jax.lax.map(flat.matvec, jnp.eye(size, dtype=flat.support.dtype))
        values, vectors = eigh((matrix + matrix.T) / 2)
        return flat.to_field(vectors @ (fn(values) * (flat.to_flat(field) @ vectors)))


def smallest_eigenpair(
    operator: Callable[[PyTree], PyTree], key: Array, depth: int, like: PyTree | None = None, *, rtol: float = 1e-2
) -> Eigenpair:
    r"""The smallest eigenvalue λ_min with its eigenvector, by Lanczos from a random start.

    The value returned is the Rayleigh quotient of a unit vector, never below the spectrum beyond rounding; its
    residual is computed with one product more, not read off the recurrence, and its rounding added.

    Args:
        operator: as in :func:`lanczos`.
        key: typed random key for the start.
        depth: Krylov dimension; λ_min to 1 % takes some 20 products at a random start of a flow and over
            100 near stationarity. Capped by the operator's size.
        like: a field giving shapes and dtypes; needed for a bare callable only.
        rtol: ``converged`` means a residual of at most rtol·|λ|, or at the level of rounding.

    Returns:
        An :class:`Eigenpair`: the operator has an eigenvalue within ``residual`` of ``eigenvalue``.

    Raises:
        ValueError: if ``depth`` is below one, or ``like`` is missing for a bare callable.
        TypeError: if ``key`` is not a typed key.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> A = jnp.diag(jnp.array([-3.0, 1.0, 2.0]))
        >>> pair = smallest_eigenpair(lambda v: A @ v, jax.random.key(0), depth=3, like=jnp.ones(3))
        >>> round(float(pair.eigenvalue), 5), bool(pair.converged)
        (-3.0, True)

    References:
        Parlett, The Symmetric Eigenvalue Problem, Sec. 4.5 (residual bound).
    """
    check_key(key, "smallest_eigenpair")
    if like is None:
        if not isinstance(operator, HessianOperator) or operator.mu is None:
            raise ValueError(
                "smallest_eigenpair: a bare callable needs like=, a field with the shapes it acts on; a Hessian at "
                "parameters too."
            )
        like = operator.mu.points
    flat = flatten(operator, like)
    depth = min(depth, flat.support.size)
    _check_depth(depth, flat.support.size)
    with jax.default_matmul_precision("highest"):
        start_key, fresh_key = jax.random.split(key)
        start = random_start(start_key, flat)
        recurrence = extend(flat, begin(start, depth, flat.support), 0, depth, fresh_key)
        eigenvalue, vector, residual = smallest_ritz_pair(flat, finish(recurrence))
        level = rounding(flat, recurrence.scale)
    converged = residual <= jnp.maximum(rtol * jnp.abs(eigenvalue), 2 * level)
    return Eigenpair(eigenvalue, flat.to_field(vector), residual + level, converged)


def random_start(key: Array, operator: FlatOperator) -> Float[Array, " n"]:
    """A direction uniform on the sphere of the operator's space (not normalised)."""
    return jax.random.normal(key, operator.support.shape, operator.support.dtype) * operator.support


def smallest_ritz_pair(operator: FlatOperator, found: Decomposition) -> tuple[Array, Array, Array]:
    """Rayleigh quotient, unit vector and residual of the smallest Ritz pair, by one product more."""
    _, vectors, _ = ritz(found)
    vector = _dot(vectors[:, 0], found.basis)
    return rayleigh(operator, vector)


def rayleigh(operator: FlatOperator, vector: Float[Array, " n"]) -> tuple[Array, Array, Array]:
    """Rayleigh quotient, the unit vector and the residual of a vector, by one product."""
    norm = length(vector)
    vector = vector / jnp.where(norm > 0, norm, 1)
    image = operator.matvec(vector)
    eigenvalue = product(vector, image)
    return eigenvalue, vector, length(image - eigenvalue * vector)


def check_key(key: Any, caller: str) -> None:
    """Refuse anything but a typed random key."""
    if not hasattr(key, "dtype") or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        kind = f"{key.dtype} array" if hasattr(key, "dtype") else type(key).__name__
        raise TypeError(f"{caller}: key is a {kind}, not a typed key; make one with jax.random.key(seed).")
