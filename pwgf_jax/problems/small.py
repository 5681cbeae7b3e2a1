"""Small problems in which everything is exact."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pwgf_jax.problems.base import CriticalPoint, Problem, around, numbers

__all__ = ["cubic", "double_well", "leading_eigenvector", "quartic"]


def _at_least(name: str, dimension: int, least: int) -> None:
    if dimension < least:
        raise ValueError(f"{name}: dimension={dimension}; give at least {least}.")


def double_well(dimension: int, *, scale: float = 1e-3, dtype: Any = jnp.float32) -> Problem:
    r"""A quadratic saddle closed by a quartic, :math:`f(x)=\frac14x_1^4-\frac12x_1^2+\frac12\sum_{i>1}x_i^2`.

    Saddle 0 with spectrum (−1, 1, …, 1); minima ±e₁ with f = −¼ and spectrum (1, …, 1, 2).

    Args:
        dimension: d ≥ 1.
        scale: standard deviation of the start about the saddle.
        dtype: of the parameters.

    Returns:
        The problem.

    Raises:
        ValueError: if the dimension is below one.

    Example:
        >>> import jax.numpy as jnp
        >>> float(double_well(2).value(jnp.array([1.0, 0.0])))
        -0.25
    """
    _at_least("double_well", dimension, 1)

    def value(x: Float[Array, " d"]) -> Float[Array, ""]:
        return x[0] ** 4 / 4 - x[0] ** 2 / 2 + jnp.sum(x[1:] ** 2) / 2

    zero = jnp.zeros(dimension, dtype)
    ones = np.ones(dimension)
    saddle = CriticalPoint("origin", zero, 0.0, -1.0, np.sort(np.where(np.arange(dimension) == 0, -1, ones)))
    lowest = np.sort(np.where(np.arange(dimension) == 0, 2, ones))
    minimum = CriticalPoint("well", zero.at[0].set(1), -0.25, lowest[0], lowest, True)
    return Problem(value, around(zero, scale), (saddle,), minimum)


def quartic(dimension: int, *, scale: float = 0.0, dtype: Any = jnp.float32) -> Problem:
    r"""Lucchi's quartic, :math:`f(x,y)=\frac14\sum_ix_i^4-y\sum_ix_i+\frac d2y^2`.

    Its saddle has one direction down, one up, and is flat in all others: at 0 the spectrum is
    :math:`\frac12(d\pm\sqrt{d^2+4d})` and zeros. The minima are ±(1, …, 1) with f = −d/4.

    Args:
        dimension: d ≥ 1, of x; the parameters are (x, y).
        scale: standard deviation of the start about the saddle.
        dtype: of the parameters.

    Returns:
        The problem.

    Raises:
        ValueError: if the dimension is below one.

    Example:
        >>> import jax.numpy as jnp
        >>> float(quartic(4).value(jnp.ones(5)))
        -1.0

    References:
        Lucchi, Orvieto, Solomou, NeurIPS 2021 (PAGD), the quartic of the experiments.
    """
    _at_least("quartic", dimension, 1)
    d = float(dimension)

    def value(z: Float[Array, " n"]) -> Float[Array, ""]:
        x, y = z[:-1], z[-1]
        return jnp.sum(x**4) / 4 - y * jnp.sum(x) + d / 2 * y**2

    zero = jnp.zeros(dimension + 1, dtype)
    root = math.sqrt(d**2 + 4 * d)
    spectrum = np.array([(d - root) / 2] + [0.0] * (dimension - 1) + [(d + root) / 2])
    # The Hessian at a minimum is 3 on x, −1 between x and y, d on y.
    split = math.sqrt((3 - d) ** 2 + 4 * d)
    bottom = np.sort(np.array([(3 + d - split) / 2, (3 + d + split) / 2] + [3.0] * (dimension - 1)))
    saddle = CriticalPoint("origin", zero, 0.0, spectrum[0], spectrum)
    minimum = CriticalPoint("ones", zero + 1, -d / 4, bottom[0], bottom, True)
    return Problem(value, around(zero, scale), (saddle,), minimum)


def cubic(eigenvalues: Any, *, scale: float = 1e-3, dtype: Any = jnp.float32) -> Problem:
    r"""A quadratic saddle closed by a cubic, :math:`f(x)=\frac12\sum_ia_ix_i^2+\frac16|x|^3`.

    With least eigenvalue a₁ < 0: saddle 0 with spectrum a; minima ±2|a₁| e₁ with :math:`f=-\frac23|a_1|^3` and
    spectrum a_i − a₁ for i > 1 and −a₁. Every other negative a_i gives two saddles ±2|a_i| e_i.

    Args:
        eigenvalues: a, shape (d,), the least one negative and simple.
        scale: standard deviation of the start about the saddle.
        dtype: of the parameters.

    Returns:
        The problem.

    Raises:
        ValueError: if no eigenvalue is negative.

    Example:
        >>> problem = cubic([-1.0, 1.0, 2.0])
        >>> round(float(problem.value(problem.minimum.point)), 5)
        -0.66667

    References:
        The cubic of the accelerated zeroth-order experiments (ICLR 2023 submission), after Nesterov and Polyak.
    """
    a = numbers("cubic: eigenvalues", eigenvalues, 1)
    if not a.min() < 0:
        raise ValueError(f"cubic: eigenvalues={eigenvalues}; give a list of numbers, one of them negative.")
    diagonal = jnp.asarray(a, dtype)

    def value(x: Float[Array, " d"]) -> Float[Array, ""]:
        square = jnp.sum(x**2)
        positive = square > 0
        length = jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)
        return jnp.sum(diagonal * x**2) / 2 + square * length / 6

    zero = jnp.zeros(a.size, dtype)

    def at(i: int) -> CriticalPoint:
        spectrum = np.sort(np.where(np.arange(a.size) == i, -a[i], a - a[i]))
        point = zero.at[i].set(float(2 * abs(a[i])))
        return CriticalPoint(f"axis {i}", point, -2 / 3 * abs(a[i]) ** 3, spectrum[0], spectrum, bool(spectrum[0] >= 0))

    origin = CriticalPoint("origin", zero, 0.0, a.min(), np.sort(a))
    others = tuple(at(int(i)) for i in np.flatnonzero(a < 0) if i != a.argmin())
    return Problem(value, around(zero, scale), (origin, *others), at(int(a.argmin())))


def leading_eigenvector(samples: Float[Array, "n d"], *, scale: float = 1e-3) -> Problem:
    r"""The leading eigenvector of a second moment, as a finite sum: :math:`f_i(x)=-\frac12(a_i\cdot x)^2+\frac14|x|^4`.

    With :math:`C=\frac1n\sum a_ia_i^\top=\sum\lambda_iv_iv_i^\top`: critical at 0 (spectrum −λ) and at
    :math:`\pm\sqrt{\lambda_i}v_i` with f = −λᵢ²/4 and spectrum λ_i − λ_j (j ≠ i) and 2λ_i, a minimum for
    the first only.

    Args:
        samples: a, shape (n, d).
        scale: standard deviation of the start about 0.

    Returns:
        The problem, with ``components``.

    Raises:
        ValueError: if the samples are no matrix.

    Example:
        >>> import jax.numpy as jnp
        >>> problem = leading_eigenvector(jnp.diag(jnp.array([2.0, 1.0])))
        >>> problem.size, float(problem.minimum.value), [float(each.curvature) for each in problem.saddles]
        (2, -1.0, [-2.0, -1.5])

    References:
        The finite-sum form is that of Zhize Li, arXiv:1904.09265, Sec. 1; the spectrum is elementary.
    """
    a = numbers("leading_eigenvector: samples, (n, d),", samples, 2)
    moment = a.T @ a / a.shape[0]
    values, vectors = np.linalg.eigh(moment)
    order = np.argsort(values)[::-1]
    values, vectors = np.maximum(values[order], 0), vectors[:, order]
    zero = jnp.zeros(samples.shape[1], samples.dtype)

    def components(x: Float[Array, " d"], indices: Array) -> Float[Array, " b"]:
        return -((samples[indices] @ x) ** 2) / 2 + jnp.sum(x**2) ** 2 / 4

    def value(x: Float[Array, " d"]) -> Float[Array, ""]:
        return jnp.mean(components(x, jnp.arange(samples.shape[0])))

    def at(i: int) -> CriticalPoint:
        spectrum = np.sort(np.where(np.arange(values.size) == i, 2 * values[i], values[i] - values))
        point = jnp.asarray(np.sqrt(values[i]) * vectors[:, i], samples.dtype)
        return CriticalPoint(f"eigenvector {i}", point, -(values[i] ** 2) / 4, spectrum[0], spectrum, i == 0)

    origin = CriticalPoint("origin", zero, 0.0, -values[0], np.sort(-values))
    saddles = (origin, *(at(i) for i in range(1, values.size) if values[i] > 0))
    return Problem(value, around(zero, scale), saddles, at(0), (), components, samples.shape[0])
