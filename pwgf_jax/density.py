r"""The spectrum of a Hessian: its density by stochastic Lanczos quadrature, and its extreme eigenpairs.

Lanczos from a unit vector q gives nodes θ_j and weights :math:`\omega_j` with
:math:`\langle q,\phi(H)q\rangle\approx\sum_j\omega_j\phi(\theta_j)`, exact for polynomials of degree below twice the
depth. Over random q that is :math:`\frac1n\operatorname{tr}\phi(H)`: the density of the spectrum, tried on φ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from pwgf_jax import arguments, trees, tridiagonal
from pwgf_jax.calculus import Part
from pwgf_jax.empirical import prepared
from pwgf_jax.objective import Objective, Point, coordinates
from pwgf_jax.spectrum import FIRST_LOOK, begun, deepest, flat_geometry, flat_hessian

__all__ = ["Eigenpairs", "SpectralDensity", "extreme_eigenpairs", "spectral_density"]


class SpectralDensity(NamedTuple):
    r"""The density of a spectrum as quadrature.

    :math:`\frac1n\operatorname{tr}\phi(H)` is about the mean over probes of :math:`\sum_j\omega_j\phi(\theta_j)`.

    Args:
        nodes: Ritz values θ, shape (probes, depth) [units of the Hessian].
        weights: ω, shape (probes, depth); those of a probe sum to one.
        size: how many eigenvalues there are.

    Example:
        >>> import jax.numpy as jnp
        >>> two = SpectralDensity(jnp.array([[0.0, 1.0]]), jnp.array([[0.75, 0.25]]), 4)
        >>> two.cumulative(jnp.array([-1.0, 0.5, 2.0])).tolist()
        [0.0, 0.75, 1.0]
    """

    nodes: Float[Array, "probes depth"]
    weights: Float[Array, "probes depth"]
    size: int

    def density(self, grid: Float[Array, " m"], width: float) -> Float[Array, " m"]:
        """The density, every node broadened to a Gaussian of standard deviation ``width``; its integral is one.

        Args:
            grid: where, shape (m,).
            width: standard deviation [units of the Hessian].

        Returns:
            Shape (m,) [per unit of the Hessian].

        Example:
            >>> import jax.numpy as jnp
            >>> one = SpectralDensity(jnp.zeros((1, 1)), jnp.ones((1, 1)), 1)
            >>> round(float(one.density(jnp.zeros(1), width=1.0)[0]), 4)  # 1/√2π
            0.3989
        """
        arguments.positive("density: width", width)
        peak = 1 / (math.sqrt(2 * math.pi) * width)
        return self._mean(lambda node: peak * jnp.exp(-(((grid - node) / width) ** 2) / 2), grid)

    def cumulative(self, grid: Float[Array, " m"]) -> Float[Array, " m"]:
        """The share of the eigenvalues at or below each number.

        Args:
            grid: the numbers, shape (m,).

        Returns:
            Shape (m,), from 0 to 1.

        Example:
            >>> import jax.numpy as jnp
            >>> SpectralDensity(jnp.zeros((1, 1)), jnp.ones((1, 1)), 1).cumulative(jnp.array([-1.0, 0.0])).tolist()
            [0.0, 1.0]
        """
        return self._mean(lambda node: (node <= grid).astype(self.weights.dtype), grid)

    def _mean(self, of: Any, grid: Array) -> Array:
        """The weighted sum over nodes, averaged over probes, in the memory of the grid."""

        def add(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
            node, weight = pair
            return total + weight * of(node), None

        zero = jnp.zeros(grid.shape, self.weights.dtype)
        total, _ = jax.lax.scan(add, zero, (jnp.ravel(self.nodes), jnp.ravel(self.weights)))
        return total / self.nodes.shape[0]


class Eigenpairs(NamedTuple):
    """Eigenvalues, ascending, with their eigenvectors and error bounds.

    Args:
        eigenvalues: Rayleigh quotients of the eigenvectors, shape (m,).
        residuals: an eigenvalue lies within that of each, rounding included, shape (m,).
        eigenvectors: a field, or a pytree like the parameters, of unit vectors, with one more leading axis of length m.
        products: Hessian products spent.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> found = extreme_eigenpairs(lambda x: jnp.sum(jnp.cos(x)), jnp.zeros(3), jax.random.key(0), 1)
        >>> jax.tree.map(jnp.shape, found.eigenvectors)
        (2, 3)
    """

    eigenvalues: Float[Array, " m"]
    residuals: Float[Array, " m"]
    eigenvectors: PyTree
    products: int


@partial(jax.jit, static_argnums=(2, 4))
def _quadrature(F: Objective, point: Point, part: Part, keys: Array, depth: int) -> tuple[Array, Array]:
    with jax.default_matmul_precision("highest"):
        flat = flat_hessian(F, point, part)

        def probe(key: Array) -> tuple[Array, Array]:
            found = tridiagonal.decompose(flat, tridiagonal.random_start(key, flat), depth)
            values, vectors, genuine = tridiagonal.ritz(found)
            return jnp.where(genuine, values, values[0]), jnp.where(genuine, vectors[0] ** 2, 0)

        return jax.lax.map(probe, keys)


def spectral_density(
    objective: Callable[..., Any],
    point: Point,
    key: Array,
    *,
    depth: int = 64,
    probes: int = 4,
    part: Part = "full",
    batches: Any = None,
    has_aux: bool = False,
) -> SpectralDensity:
    r"""The density of the spectrum of a Hessian, by stochastic Lanczos quadrature.

    Nodes and weights are those of Golub and Welsch: the eigenvalues of the tridiagonal matrix, and the squares of the
    first entries of its eigenvectors. The basis is kept orthogonal, and so no copy of an eigenvalue is counted twice.
    The error of :math:`\frac1n\operatorname{tr}\phi(H)` falls as one over the root of n·probes. Extreme eigenvalues are
    not seen where they are few: that is for :func:`extreme_eigenpairs`.

    Args:
        objective: F(μ), or a loss f(params); with ``batches``, of (μ, batch) or (params, batch).
        point: the measure, or any pytree of parameters, as in :func:`pwgf_jax.certify`.
        key: typed random key, for the starts of Lanczos.
        depth: Lanczos steps of every probe, capped by the size of a field; memory depth·n numbers.
        probes: random starts.
        part: of a measure, which Hessian, as in :func:`pwgf_jax.wasserstein_hessian`; of parameters ``"full"``.
        batches: what the objective is averaged over, as in :func:`pwgf_jax.certify`.
        has_aux: whether the objective returns (value, anything).

    Returns:
        A :class:`SpectralDensity`; probes·depth Hessian products.

    Raises:
        ValueError: if depth or probes is no positive whole number, or as :func:`pwgf_jax.certify` does.
        TypeError: as :func:`pwgf_jax.certify` does.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> loss = lambda x: jnp.sum(jnp.array([-1.0, 1.0, 1.0, 1.0]) * x**2) / 2
        >>> found = spectral_density(loss, jnp.zeros(4), jax.random.key(0), depth=4, probes=200)
        >>> round(float(found.cumulative(jnp.zeros(1))[0]), 1)  # one of four is negative
        0.2

    References:
        Golub and Welsch, Math. Comp. 23 (1969); Ubaru, Chen, Saad, SIAM J. Matrix Anal. Appl. 38 (2017);
        Ghorbani, Krishnan, Xiao, arXiv:1901.10159.
    """
    arguments.check_key(key, "spectral_density")
    depth, probes = (
        arguments.whole("spectral_density: depth", depth),
        arguments.whole("spectral_density: probes", probes),
    )
    F, point, _ = prepared(objective, point, "spectral_density", batches=batches, has_aux=has_aux)
    size = trees.size(coordinates(point))
    nodes, weights = _quadrature(F, point, part, jax.random.split(key, probes), min(depth, size))
    return SpectralDensity(nodes, weights, size)


class _Known(NamedTuple):
    """Pairs in flat coordinates, by ascending eigenvalue."""

    eigenvalues: Array
    residuals: Array
    units: Array  # (m, n)


def _deflated(flat: tridiagonal.FlatOperator, known: _Known) -> tridiagonal.FlatOperator:
    """The operator with what is known moved to the middle of what is not: its extremes are the others'."""
    half = known.eigenvalues.size // 2
    middle = (known.eigenvalues[half - 1] + known.eigenvalues[half]) / 2

    def matvec(q: Array) -> Array:
        shares = (middle - known.eigenvalues) * jnp.sum(known.units * q[None], axis=1)
        return flat.matvec(q) + jnp.sum(shares[:, None] * known.units, axis=0)

    return flat._replace(matvec=matvec)


@partial(jax.jit, static_argnums=2)
def _further(
    F: Objective,
    point: Point,
    part: Part,
    recurrence: tridiagonal.Recurrence,
    first: Array,
    last: Array,
    key: Array,
    known: _Known,
) -> tuple[tridiagonal.Recurrence, Array, Array]:
    """Steps ``first`` to ``last``; the residuals of the Ritz pairs, and the largest Ritz value in size."""
    with jax.default_matmul_precision("highest"):
        flat = _deflated(flat_hessian(F, point, part), known)
        recurrence = tridiagonal.extend(flat, recurrence, first, last, key)
    values, vectors, genuine = tridiagonal.ritz(tridiagonal.finish(recurrence))
    open_ = recurrence.room > 0  # a basis of the whole space has left nothing out
    left = jnp.where(open_, tridiagonal.length(recurrence.residual) * jnp.abs(vectors[-1]), 0)
    return recurrence, left, jnp.max(jnp.where(genuine, jnp.abs(values), 0))


def _extremes(count: int, steps: Array, depth: int) -> Array:
    """Where the ``count`` smallest and largest of ``steps`` ascending numbers are; all of them if there are fewer."""
    each = jnp.arange(count, dtype=jnp.int32)
    return jnp.clip(jnp.concatenate([each, steps - count + each]), 0, depth - 1)


@partial(jax.jit, static_argnums=2)
def _pairs(F: Objective, point: Point, part: Part, recurrence: tridiagonal.Recurrence, chosen: Array) -> _Known:
    with jax.default_matmul_precision("highest"):
        flat = flat_hessian(F, point, part)
        found = tridiagonal.finish(recurrence)
        values, vectors, _ = tridiagonal.ritz(found)

        def pair(coefficients: Array) -> tuple[Array, Array, Array]:
            eigenvalue, vector, residual = tridiagonal.rayleigh(flat, coefficients @ found.basis)
            return eigenvalue, residual, vector

        quotients, residuals, units = jax.lax.map(pair, vectors.T[chosen])
        # The product and the recurrence would agree on the eigenvalue if it were not for rounding.
        level = tridiagonal.rounding(flat, recurrence.scale) + jnp.abs(quotients - values[chosen])
        return _Known(quotients, residuals + level, units)


class _Round(NamedTuple):
    """One run of Lanczos from a random start: what it found, and whether there may be more."""

    found: _Known
    products: int
    converged: bool
    complete: bool  # the basis spans the whole space
    tolerance: float


def _run(
    F: Objective, point: Point, part: Part, key: Array, count: int, rtol: float, cap: int, known: _Known
) -> _Round:
    """The ``count`` smallest and largest, of what is orthogonal to what is known."""
    start_key, fresh_key = jax.random.split(key)
    done, depth = 0, min(max(FIRST_LOOK, 4 * count), cap)
    recurrence = begun(point, start_key, depth)
    while True:
        recurrence, left, largest = _further(
            F, point, part, recurrence, jnp.int32(done), jnp.int32(depth), fresh_key, known
        )
        left = jnp.max(left[_extremes(count, recurrence.steps, depth)])
        converged = bool(left <= rtol * largest)
        if converged or depth == cap or not jnp.isfinite(left):
            break
        done, depth = depth, min(2 * depth, cap)
        recurrence = tridiagonal.grown(recurrence, depth)
    chosen = jnp.unique(_extremes(count, recurrence.steps, depth))
    found = _pairs(F, point, part, recurrence, chosen)
    return _Round(found, depth + chosen.size, converged, bool(recurrence.room <= 0), float(rtol * largest))


def extreme_eigenpairs(
    objective: Callable[..., Any],
    point: Point,
    key: Array,
    k: int,
    *,
    part: Part = "full",
    rtol: float = 1e-4,
    max_depth: int | None = None,
    batches: Any = None,
    has_aux: bool = False,
) -> Eigenpairs:
    r"""The k smallest and the k largest eigenvalues of a Hessian with their eigenvectors, by Lanczos.

    The basis is kept orthogonal and deepened until the residuals of all pairs are below ``rtol`` of the largest
    eigenvalue in size, or it has ``max_depth`` vectors; the residuals returned are computed with one product each, and
    say how far it came. A single start sees one direction of a multiple eigenvalue: other starts, among what is
    orthogonal to the pairs found, look for what it left out, until they find nothing further out.

    Args:
        objective: F(μ), or a loss f(params); with ``batches``, of (μ, batch) or (params, batch).
        point: the measure, or any pytree of parameters, as in :func:`pwgf_jax.certify`.
        key: typed random key, for the start of Lanczos.
        k: how many at either end; where there are fewer than 2k eigenvalues, all of them.
        part: of a measure, which Hessian, as in :func:`pwgf_jax.wasserstein_hessian`; of parameters ``"full"``.
        rtol: residual to reach, relative to the largest eigenvalue in size; what rounding leaves is reached at least.
        max_depth: longest Krylov basis; None for what one GiB holds, at least 32.
        batches: what the objective is averaged over, as in :func:`pwgf_jax.certify`.
        has_aux: whether the objective returns (value, anything).

    Returns:
        :class:`Eigenpairs`, 2k of them.

    Raises:
        ValueError: if a number is out of range, ``max_depth`` below 2k, or as :func:`pwgf_jax.certify` does.
        TypeError: as :func:`pwgf_jax.certify` does.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> loss = lambda x: jnp.sum(jnp.arange(-3.0, 7.0) * x**2) / 2
        >>> found = extreme_eigenpairs(loss, jnp.zeros(10), jax.random.key(0), 2)
        >>> [round(float(value), 3) for value in found.eigenvalues]
        [-3.0, -2.0, 5.0, 6.0]

    References:
        Parlett, The Symmetric Eigenvalue Problem, Ch. 13.
    """
    arguments.check_key(key, "extreme_eigenpairs")
    k = arguments.whole("extreme_eigenpairs: k", k)
    arguments.positive("extreme_eigenpairs: rtol", rtol)
    F, point, like = prepared(objective, point, "extreme_eigenpairs", batches=batches, has_aux=has_aux)
    size = trees.size(coordinates(point))
    cap = min(max(deepest(point, max_depth), 1), size)
    if cap < min(2 * k, size):
        raise ValueError(f"extreme_eigenpairs: max_depth={max_depth}; 2k = {2 * k} pairs need as many vectors.")
    first_key, *keys = jax.random.split(key, k + 2)
    nothing = jnp.zeros(2 * k, trees.dtype(coordinates(point)))
    known = _Known(nothing, nothing, jnp.zeros((2 * k, size), nothing.dtype))
    turn = _run(F, point, part, first_key, k, rtol, cap, known)
    known, products = turn.found, turn.products
    for another in keys:
        if turn.complete or not turn.converged:
            break
        turn = _run(F, point, part, another, 1, rtol, cap, known)
        products += turn.products
        low, high = turn.found.eigenvalues[0], turn.found.eigenvalues[-1]
        beyond = low < known.eigenvalues[k - 1] - turn.tolerance or high > known.eigenvalues[k] + turn.tolerance
        if not beyond:
            break
        together = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), known, turn.found)
        order = jnp.argsort(together.eigenvalues)
        known = jax.tree.map(lambda leaf, order=order: leaf[jnp.concatenate([order[:k], order[-k:]])], together)
    vectors = jax.vmap(flat_geometry(point).to_field)(known.units)
    vectors = jax.tree.map(lambda v, x: v.astype(x.dtype), vectors, like)
    return Eigenpairs(known.eigenvalues, known.residuals, vectors, products)
