r"""Functions of a self-adjoint operator and its smallest eigenpair, by Lanczos.

The operator is either one that knows its measure (:class:`pwgf_jax.calculus.HessianOperator`), whose inner
products are those of :math:`L^2(\mu)`, or a bare callable on pytrees with the Euclidean inner product. The recurrence
is in :mod:`pwgf_jax.tridiagonal`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from pwgf_jax.arguments import check_key
from pwgf_jax.calculus import HessianOperator
from pwgf_jax.tridiagonal import (
    begin,
    check_depth,
    decompose,
    eigh,
    extend,
    finish,
    flatten,
    length,
    random_start,
    ritz,
    rounding,
    smallest_ritz_pair,
)

__all__ = ["Eigenpair", "Lanczos", "dense_function", "lanczos", "matrix_function", "smallest_eigenpair"]

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
    check_depth(depth, flat.support.size)
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
    check_depth(depth, flat.support.size)
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
        rtol: ``converged`` means a residual of at most rtol·abs(λ), or at the level of rounding.

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
    check_depth(depth, flat.support.size)
    with jax.default_matmul_precision("highest"):
        start_key, fresh_key = jax.random.split(key)
        start = random_start(start_key, flat)
        recurrence = extend(flat, begin(start, depth, flat.support), 0, depth, fresh_key)
        eigenvalue, vector, residual = smallest_ritz_pair(flat, finish(recurrence))
        level = rounding(flat, recurrence.scale)
    converged = residual <= jnp.maximum(rtol * jnp.abs(eigenvalue), 2 * level)
    return Eigenpair(eigenvalue, flat.to_field(vector), residual + level, converged)
