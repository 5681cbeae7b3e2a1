"""Matrix problems: factorisation, sensing, phase retrieval, deep linear networks."""

from __future__ import annotations

import itertools
import math
from functools import reduce
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from pwgf_jax.problems.base import CriticalPoint, OnDemand, Problem, around, numbers

__all__ = [
    "asymmetric_factorization",
    "deep_linear",
    "matrix_sensing",
    "phase_retrieval",
    "symmetric_factorization",
]


def _square(name: str, matrix: Any) -> np.ndarray:
    found = numbers(f"{name}: the matrix", matrix, 2)
    if found.shape[0] != found.shape[1] or not np.allclose(found, found.T):
        raise ValueError(f"{name}: the matrix has shape {found.shape}; give a symmetric one.")
    return found


def _subset(index: int, total: int, size: int) -> tuple[int, ...]:
    """The sets of a size, ascending and in lexicographic order: that of an index."""
    chosen, first = [], 0
    for left in range(size, 0, -1):
        while (starting := math.comb(total - first - 1, left - 1)) <= index:
            index, first = index - starting, first + 1
        chosen.append(first)
        first += 1
    return tuple(chosen)


def symmetric_factorization(matrix: Float[Array, "d d"], rank: int, *, scale: float = 1e-3) -> Problem:
    r"""Symmetric matrix factorisation, :math:`f(U)=\frac14\|UU^\top-M\|_F^2` with U of shape (d, r).

    With :math:`M=\sum\lambda_iv_iv_i^\top`, λ > 0: critical at :math:`U=V_S\Lambda_S^{1/2}R` for every set S of at most
    r eigenvectors and every rotation R, with :math:`f=\frac14\sum_{i\notin S}\lambda_i^2` and smallest curvature
    :math:`-\max_{j\notin S}\lambda_j` if \|S\| < r, :math:`-(\max_{j\notin S}\lambda_j-\min_{i\in S}\lambda_i)` if
    \|S\| = r; the minimum takes the r largest, and is degenerate along rotations.

    Args:
        matrix: M, symmetric with positive and distinct eigenvalues.
        rank: r, 1 ≤ r < d.
        scale: standard deviation of the start about 0.

    Returns:
        The problem.

    Raises:
        ValueError: if the matrix is not symmetric positive definite, or the rank out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> problem = symmetric_factorization(jnp.diag(jnp.array([5.0, 3.0, 1.0])), 2)
        >>> {each.name: float(each.curvature) for each in problem.saddles}["{0, 2}"]
        -2.0

    References:
        Ge, Jin, Zheng, ICML 2017 (no spurious minima); the spectra are elementary and in the tests.
    """
    M = _square("symmetric_factorization", matrix)
    values, vectors = np.linalg.eigh(M)
    values, vectors = values[::-1], vectors[:, ::-1]
    d = values.size
    if values.min() <= 0 or not 1 <= rank < d:
        raise ValueError(
            f"symmetric_factorization: rank={rank}, least eigenvalue {values.min():.3g}; "
            f"need 1 <= rank < {d} and a positive definite matrix."
        )
    target = jnp.asarray(matrix)

    def value(U: Float[Array, "d r"]) -> Float[Array, ""]:
        return jnp.sum((U @ U.T - target) ** 2) / 4

    def at(chosen: tuple[int, ...]) -> CriticalPoint:
        left = [j for j in range(d) if j not in chosen]
        U = np.zeros((d, rank))
        U[:, : len(chosen)] = vectors[:, chosen] * np.sqrt(values[list(chosen)])
        curvature = -values[left].max()
        if len(chosen) == rank:
            curvature = min(values[list(chosen)].min() - values[left].max(), 0.0)
        is_minimum = chosen == tuple(range(rank))
        level = np.sum(values[left] ** 2) / 4
        named = "{" + ", ".join(map(str, chosen)) + "}"
        return CriticalPoint(named, jnp.asarray(U, target.dtype), level, curvature, None, is_minimum)

    def other(index: int) -> CriticalPoint:
        """The sets but the best, the small ones first."""
        size = 0
        while index >= math.comb(d, size) and size < rank:
            index, size = index - math.comb(d, size), size + 1
        return at(_subset(index + (size == rank), d, size))  # the best is the first of its size

    count = sum(math.comb(d, size) for size in range(rank + 1)) - 1
    start = around(jnp.zeros((d, rank), target.dtype), scale)
    return Problem(value, start, OnDemand(count, other), at(tuple(range(rank))))


def asymmetric_factorization(matrix: Float[Array, "m n"], rank: int, *, scale: float = 1e-3) -> Problem:
    r"""Matrix factorisation :math:`f(U,V)=\frac12\|UV^\top-M\|_F^2`; spectrum at 0: ±σ_i, each r times, and zeros.

    Args:
        matrix: M.
        rank: r, at most min(m, n).
        scale: standard deviation of the start about 0.

    Returns:
        The problem in {"u": (m, r), "v": (n, r)}.

    Raises:
        ValueError: if the rank is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> problem = asymmetric_factorization(jnp.diag(jnp.array([3.0, 1.0])), 1)
        >>> problem.saddles[0].spectrum.tolist(), float(problem.minimum.value)
        ([-3.0, -1.0, 1.0, 3.0], 0.5)
    """
    dense = numbers("asymmetric_factorization: the matrix", matrix, 2)
    target = jnp.asarray(matrix)
    if not 1 <= rank <= min(target.shape):
        raise ValueError(
            f"asymmetric_factorization: rank={rank} for shape {target.shape}; need 1 <= rank <= min(m, n)."
        )
    left, sigma, right = np.linalg.svd(dense, full_matrices=False)

    def value(parameters: PyTree) -> Float[Array, ""]:
        return jnp.sum((parameters["u"] @ parameters["v"].T - target) ** 2) / 2

    def pair(u: np.ndarray, v: np.ndarray) -> PyTree:
        return {"u": jnp.asarray(u, target.dtype), "v": jnp.asarray(v, target.dtype)}

    m, n = target.shape
    zeros = np.zeros(rank * (m + n - 2 * sigma.size))
    spectrum = np.sort(np.concatenate([np.repeat(sigma, rank), np.repeat(-sigma, rank), zeros]))
    zero = pair(np.zeros((m, rank)), np.zeros((n, rank)))
    saddle = CriticalPoint("origin", zero, np.sum(sigma**2) / 2, spectrum[0], spectrum)
    root = np.sqrt(sigma[:rank])
    balanced = pair(left[:, :rank] * root, right[:rank].T * root)
    minimum = CriticalPoint("balanced", balanced, np.sum(sigma[rank:] ** 2) / 2, 0.0, None, True)
    return Problem(value, around(zero, scale), (saddle,), minimum)


def matrix_sensing(measurements: Float[Array, "m d d"], factor: Float[Array, "d r"], *, scale: float = 1e-3) -> Problem:
    r"""Matrix sensing, :math:`f(U)=\frac1{2m}\sum_i(\langle A_i,UU^\top\rangle-b_i)^2`.

    Noiseless, :math:`b_i=\langle A_i,U^*U^{*\top}\rangle`. At 0 the spectrum is that of −2S,
    :math:`S=\frac1m\sum_ib_i(A_i+A_i^\top)/2`, each eigenvalue r times. Under restricted isometry (δ₂ᵣ < 1/10) there is
    no spurious minimum.

    Args:
        measurements: A, shape (m, d, d).
        factor: U*, the truth.
        scale: standard deviation of the start about 0.

    Returns:
        The problem, a finite sum over the measurements.

    Raises:
        ValueError: if the shapes disagree.

    Example:
        >>> import jax
        >>> A = jax.random.normal(jax.random.key(0), (60, 3, 3))
        >>> problem = matrix_sensing(A, jax.random.normal(jax.random.key(1), (3, 1)))
        >>> problem.size, bool(problem.saddles[0].curvature < 0), float(problem.minimum.value)
        (60, True, 0.0)

    References:
        Bhojanapalli, Neyshabur, Srebro, NeurIPS 2016.
    """
    numbers("matrix_sensing: the factor", factor, 2)
    if (
        jnp.ndim(measurements) != 3
        or jnp.shape(measurements)[1:] != (jnp.shape(factor)[0],) * 2
        or not measurements.size
    ):
        raise ValueError(
            f"matrix_sensing: measurements {jnp.shape(measurements)}, factor {jnp.shape(factor)}; "
            "give (m, d, d) and (d, r)."
        )
    observed = jnp.einsum("mij,ir,jr->m", measurements, factor, factor)

    def components(U: Float[Array, "d r"], indices: Array) -> Float[Array, " b"]:
        return (jnp.einsum("mij,ir,jr->m", measurements[indices], U, U) - observed[indices]) ** 2 / 2

    def value(U: Float[Array, "d r"]) -> Float[Array, ""]:
        return jnp.mean(components(U, jnp.arange(measurements.shape[0])))

    A, b = np.asarray(measurements, float), np.asarray(observed, float)
    S = np.tensordot(b, (A + A.transpose(0, 2, 1)) / 2, 1) / b.size
    spectrum = np.sort(np.repeat(-2 * np.linalg.eigvalsh(S), factor.shape[1]))
    zero = jnp.zeros_like(factor)
    saddle = CriticalPoint("origin", zero, np.mean(b**2) / 2, spectrum[0], spectrum)
    minimum = CriticalPoint("truth", jnp.asarray(factor), 0.0, None, None, True)
    return Problem(value, around(zero, scale), (saddle,), minimum, (), components, b.size)


def phase_retrieval(signal: Float[Array, " d"], *, scale: float = 1e-3) -> Problem:
    r"""Phase retrieval from infinitely many Gaussian measurements.

    :math:`f(x)=\frac14[3|x|^4+3|z|^4-2|x|^2|z|^2-4(x\cdot z)^2]`. Minima ±z; 0 has curvature −3\|z\|² along z and
    −\|z\|² across; x ⟂ z with \|x\|² = \|z\|²/3 is a saddle with curvature −2\|z\|² along z,
    2\|z\|² along x and 0 across.

    Args:
        signal: z, shape (d,), d ≥ 2.
        scale: standard deviation of the start about 0.

    Returns:
        The problem.

    Raises:
        ValueError: if the signal is shorter than two or zero.

    Example:
        >>> import jax.numpy as jnp
        >>> [float(each.curvature) for each in phase_retrieval(jnp.array([1.0, 0.0])).saddles]
        [-3.0, -2.0]

    References:
        Sun, Qu, Wright, Found. Comput. Math. 18 (2018), the population objective.
    """
    z = numbers("phase_retrieval: the signal", signal, 1)
    if z.size < 2 or not np.any(z):
        raise ValueError(f"phase_retrieval: the signal has shape {z.shape}; give a non-zero vector of length >= 2.")
    target, energy = jnp.asarray(signal), float(z @ z)

    def value(x: Float[Array, " d"]) -> Float[Array, ""]:
        square, overlap = jnp.sum(x**2), x @ target
        return (3 * square**2 + 3 * energy**2 - 2 * square * energy - 4 * overlap**2) / 4

    across = -z * z[np.argmin(np.abs(z))] / energy  # what is orthogonal to z of the axis that it has least of
    across[np.argmin(np.abs(z))] += 1
    across *= np.sqrt(energy / 3) / np.linalg.norm(across)
    origin = np.sort(np.concatenate([[-3.0], -np.ones(z.size - 1)])) * energy
    equator = np.sort(np.concatenate([[-2.0, 2.0], np.zeros(z.size - 2)])) * energy
    bottom = np.sort(np.concatenate([[6.0 * energy], np.full(z.size - 1, 2.0 * energy)]))
    zero = jnp.zeros_like(target)
    saddles = (
        CriticalPoint("origin", zero, 0.75 * energy**2, origin[0], origin),
        CriticalPoint("equator", jnp.asarray(across, target.dtype), energy**2 * (0.75 - 1 / 12), equator[0], equator),
    )
    return Problem(value, around(zero, scale), saddles, CriticalPoint("signal", target, 0.0, bottom[0], bottom, True))


def deep_linear(target: Float[Array, "m n"], depth: int, *, width: int | None = None, scale: float = 0.1) -> Problem:
    r"""A deep linear network, :math:`f(W_1,\dots,W_L)=\frac12\|W_L\cdots W_1-T\|_F^2`, inputs whitened.

    Every critical point is a global minimum or a saddle. The origin is a strict saddle for L = 2 only (spectrum ±σ_i
    and zeros); for L ≥ 3 its Hessian is zero, and methods that look for negative curvature see nothing there.

    Args:
        target: T, shape (m, n).
        depth: L ≥ 2.
        width: of the hidden layers, at least min(m, n), which is the default.
        scale: standard deviation of the start about 0.

    Returns:
        The problem in a tuple of matrices, the first layer first.

    Raises:
        ValueError: if the depth or width is too small.

    Example:
        >>> import jax.numpy as jnp
        >>> [float(deep_linear(jnp.eye(2), depth).saddles[0].curvature) for depth in (2, 3)]
        [-1.0, 0.0]

    References:
        Kawaguchi, NeurIPS 2016.
    """
    dense = numbers("deep_linear: the target", target, 2)
    T = jnp.asarray(target)
    if depth < 2 or (width is not None and width < min(T.shape)):
        raise ValueError(
            f"deep_linear: target {T.shape}, depth={depth}, width={width}; need depth >= 2 and width >= min(m, n)."
        )
    m, n = T.shape
    hidden = min(m, n) if width is None else width
    sizes = [n, *[hidden] * (depth - 1), m]

    def value(layers: tuple[Array, ...]) -> Float[Array, ""]:
        return jnp.sum((reduce(lambda done, layer: layer @ done, layers) - T) ** 2) / 2

    left, sigma, right = np.linalg.svd(dense, full_matrices=False)
    zero = tuple(jnp.zeros((b, a), T.dtype) for a, b in itertools.pairwise(sizes))
    count = sum(layer.size for layer in zero)
    spectrum = np.zeros(count)
    if depth == 2:
        spectrum[: 2 * hidden * sigma.size] = np.concatenate([np.repeat(sigma, hidden), np.repeat(-sigma, hidden)])
    spectrum = np.sort(spectrum)
    root = sigma ** (1 / depth)

    def layer(index: int) -> Array:
        matrix = np.zeros((sizes[index + 1], sizes[index]))
        matrix[: sigma.size, : sigma.size] = np.diag(root)
        if index == 0:
            matrix = np.pad(root[:, None] * right, ((0, hidden - sigma.size), (0, 0)))
        if index == depth - 1:
            matrix = np.pad(left * root, ((0, 0), (0, hidden - sigma.size)))
        return jnp.asarray(matrix, T.dtype)

    origin = CriticalPoint("origin", zero, np.sum(sigma**2) / 2, spectrum[0], spectrum)
    minimum = CriticalPoint("balanced", tuple(layer(i) for i in range(depth)), 0.0, 0.0, None, True)
    return Problem(value, around(zero, scale), (origin,), minimum)
