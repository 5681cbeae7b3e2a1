r"""Saddles of measures in closed form: of a mean, of charges on an axis, and of attention heads that are all one.

The points of these problems are measures (:class:`pwgf_jax.Particles`), and ``value`` is a functional. A spectrum is
that of the full Hessian :math:`H_\mu+H'_\mu` in L²(μ), ``integral_spectrum`` that of the papers' :math:`H_\mu` alone,
whose square is the covariance of Hessian-guided noise.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pwgf_jax.functionals import functional, interaction, potential
from pwgf_jax.measures import Particles
from pwgf_jax.problems.base import CriticalPoint, Problem, around, numbers

__all__ = ["attention_heads", "coulomb_axis", "mean_quartic"]


def mean_quartic(particles: int, dimension: int, *, scale: float = 0.0, dtype: Any = jnp.float32) -> Problem:
    r"""A functional of the mean alone, :math:`F(\mu)=\frac14|m|^4-\frac12|m|^2` with :math:`m=\int x\,d\mu`.

    Every centred measure is a saddle with F = 0; here the particles are at ±e_i. There is no local part: both Hessians
    are :math:`v\mapsto-\int v\,d\mu`, with spectrum −1 (d times, along common shifts) and 0, so the index is d.
    Hessian-guided noise is one Gaussian shift of all particles; the mean of noises of their own is smaller by √N.
    Minima are the measures with :math:`|m|=1`, where F = −¼ and the spectrum is 2 and 0.

    Args:
        particles: N, even, so that their mean is zero.
        dimension: d.
        scale: standard deviation of the start about the saddle.
        dtype: of the particles.

    Returns:
        The problem.

    Raises:
        ValueError: if the number of particles is odd, or a size is below one.

    Example:
        >>> saddle = mean_quartic(8, 2).saddles[0]
        >>> saddle.index, saddle.spectrum[:3].tolist()
        (2, [-1.0, -1.0, 0.0])

    References:
        Elementary; the setting is that of Yamamoto, Kim, Suzuki, arXiv:2509.16974, Def. 3.4.
    """
    if particles < 2 or particles % 2 or dimension < 1:
        raise ValueError(
            f"mean_quartic: particles={particles}, dimension={dimension}; give an even number of particles, for they "
            "come in pairs ±e_i, and at least one dimension."
        )

    def value(mu: Particles) -> Float[Array, ""]:
        square = jnp.sum((mu.weights @ mu.points) ** 2)
        return square**2 / 4 - square / 2

    points = np.zeros((particles, dimension))
    each = np.arange(particles)
    points[each, each // 2 % dimension] = (-1.0) ** each
    saddle = Particles.uniform(jnp.asarray(points, dtype))
    spectrum = np.concatenate([np.full(dimension, -1.0), np.zeros(dimension * (particles - 1))])
    lowest = np.append(np.zeros(particles * dimension - 1), 2.0)
    shifted = saddle.moved_to(saddle.points.at[:, 0].add(1))
    return Problem(
        functional(value),
        around(saddle, scale),
        (CriticalPoint("centred", saddle, 0.0, -1.0, spectrum, integral_spectrum=spectrum),),
        CriticalPoint("unit mean", shifted, -0.25, 0.0, lowest, True, lowest),
    )


def coulomb_axis(
    particles: int,
    *,
    distance: float = 1.0,
    softening: float = 0.5,
    scale: float = 0.0,
    dtype: Any = jnp.float32,
) -> Problem:
    r"""The Coulomb discrepancy in the plane to two blobs, with all particles on the axis between them.

    The target ν is two Plummer blobs at (0, ±a), each of the density :math:`\frac{s^2}{\pi(r^2+s^2)^2}`, whose
    potential is :math:`-\frac12\log(r^2+s^2)`; of their own energy, a constant, nothing is counted, nor of that of a
    particle with itself:

    .. math:: F(\mu)=-\tfrac12\iint_{x\ne y}\log|x-y|\,d\mu\,d\mu-\int(-\log|\cdot|*\nu)\,d\mu.

    With y = 0 the force off the axis is zero by symmetry. On the axis, with b² = a² + s², it vanishes at

    .. math:: x_k=b\cot\frac{k\pi}{N+1},\qquad F=\frac{N+1}{2N}\log\frac{2b}{(N+1)^{1/N}},

    the zeros of :math:`\operatorname{Im}(x+ib)^{N+1}`, which solves
    :math:`(x^2+b^2)p''-2Nxp'+N(N+1)p=0` (Stieltjes); for N → ∞ the Cauchy law of width b.
    With :math:`P_{ij}=\frac1N(x_i-x_j)^{-2}` and M = diag(P1) − P the full Hessian is :math:`M+V_{xx}` along the axis,
    positive, and :math:`-M+V_{yy}` off it: the log is harmonic, so that what holds the particles on the axis is what
    drives them off. The spectrum listed is of these N×N matrices.

    What the theory says here: F is convex under mixtures and the true H_μ positive, infinite for atoms. Without
    self-terms the diagonal blocks of H_μ are zero, and its spectrum is that of ±P: as many directions down as up, by
    which nothing is shown. It does give Hessian-guided noise, with and off the axis alike; the descent is that of the
    full Hessian. Where the target has a density its trace is 2π∫ν dμ, and there are minima. Against a sample in ν's
    place the trace is zero (Earnshaw), and there are none.

    Args:
        particles: N ≥ 2.
        distance: a > 0, of a blob from the axis.
        softening: s > 0, the radius of a blob.
        scale: standard deviation of the start about the saddle.
        dtype: of the particles.

    Returns:
        The problem; no minimum of it is known in closed form.

    Raises:
        ValueError: if there are fewer than two particles, or a length is not positive.

    Example:
        >>> saddle = coulomb_axis(4).saddles[0]
        >>> saddle.index, round(saddle.value, 4)
        (4, 0.2515)

    References:
        Boufadène, Vialard, arXiv:2312.00800; Yamamoto, Kim, Suzuki, arXiv:2509.16974, Sec. 3.1 (the functional); the
        saddle is ours, by Stieltjes' argument (Szegő, Orthogonal Polynomials, Sec. 6.7).
    """
    if particles < 2 or not 0 < distance < math.inf or not 0 < softening < math.inf:
        raise ValueError(
            f"coulomb_axis: particles={particles}, distance={distance}, softening={softening}; give at least two "
            "particles, and positive lengths."
        )
    width = math.hypot(distance, softening)

    def repulsion(x: Float[Array, "2"], y: Float[Array, "2"]) -> Float[Array, ""]:
        square = jnp.sum((x - y) ** 2)
        apart = square > 0
        return jnp.where(apart, -jnp.log(jnp.where(apart, square, 1)) / 2, 0)

    def attraction(x: Float[Array, "2"]) -> Float[Array, ""]:
        above, below = (x[0] ** 2 + (x[1] + side * distance) ** 2 + softening**2 for side in (-1.0, 1.0))
        return (jnp.log(above) + jnp.log(below)) / 4

    x = width / np.tan(np.arange(1, particles + 1) * np.pi / (particles + 1))
    gaps = np.subtract.outer(x, x) + np.diag(np.full(particles, np.inf))
    pairs = 1 / (particles * gaps**2)
    laplacian = np.diag(pairs.sum(axis=1)) - pairs
    square = x**2 + width**2
    along = laplacian + np.diag((width**2 - x**2) / square**2)
    across = -laplacian + np.diag((square - 2 * distance**2) / square**2)
    spectrum = np.sort(np.concatenate([np.linalg.eigvalsh(along), np.linalg.eigvalsh(across)]))
    swings = np.linalg.eigvalsh(pairs)
    value = (particles + 1) / (2 * particles) * (math.log(2 * width) - math.log(particles + 1) / particles)
    saddle = Particles.uniform(jnp.asarray(np.stack([x, np.zeros(particles)], axis=1), dtype))
    integral = np.sort(np.concatenate([swings, -swings]))
    point = CriticalPoint("axis", saddle, value, float(spectrum[0]), spectrum, integral_spectrum=integral)
    return Problem(interaction(repulsion) + potential(attraction), around(saddle, scale), (point,), None)


def attention_heads(
    eigenvalues: Any, heads: int, *, start: int = 1, scale: float = 0.0, dtype: Any = jnp.float32
) -> Problem:
    r"""Attention that learns principal components with a measure of heads; at a Dirac, all heads are one.

    The linear heads of :func:`attention_pca` for infinitely many tokens N(0, Σ), averaged over u ~ μ:

    .. math:: F(\mu)=\mathbb E|x-\Sigma Mx|^2,\qquad M=\int uu^\top d\mu,\quad\Sigma=\operatorname{diag}(\lambda),

    convex under mixtures. The Diracs at :math:`e_i/\sqrt{\lambda_i}` are stationary with :math:`F=\sum_{j\ne i}
    \lambda_j`. The local part is :math:`-4\lambda_j^2` along e_j, j ≠ i, and 0 along e_i; the integral one, on the mean
    of a field, :math:`2\lambda_j(\lambda_i+\lambda_j)` and :math:`8\lambda_i^2`. So N heads that move together have the
    curvatures of one, :math:`2\lambda_j(\lambda_i-\lambda_j)` and :math:`8\lambda_i^2`, and heads that part, N − 1
    times, :math:`-4\lambda_j^2` and 0: with two heads or more even the leading component is a saddle. At the Dirac at
    zero the integral part vanishes and the local one is :math:`-4\lambda_j^2` for every head.

    H_μ is positive at all of them, and Hessian-guided noise the same for all heads: it leaves minor components by the
    common descent, but never parts the heads, and is nothing at zero. Minima have :math:`M=\Sigma^{-1}` and F = 0.

    Args:
        eigenvalues: λ of the covariance, positive, the largest first.
        heads: N.
        start: i, at whose Dirac runs start.
        scale: standard deviation of the start about it.
        dtype: of the particles.

    Returns:
        The problem; its minimum has a head along every eigenvector.

    Raises:
        ValueError: if an eigenvalue is not positive or they are not in order, or there is no head or no such start.

    Example:
        >>> problem = attention_heads([3.0, 2.0, 1.0], 4)
        >>> [(each.name, each.value, each.index) for each in problem.saddles[:2]]
        [('eigenvector 0', 3.0, 6), ('eigenvector 1', 4.0, 7)]

    References:
        Maulen-Soto, Boyer, arXiv:2605.18315 (one head); the measure of heads and its spectra are ours.
    """
    values = numbers("attention_heads: eigenvalues", eigenvalues, 1)
    if values.min() <= 0 or np.any(np.diff(values) > 0) or heads < 1 or not 0 <= start < values.size:
        raise ValueError(
            f"attention_heads: eigenvalues={eigenvalues}, heads={heads}, start={start}; give positive eigenvalues, the "
            "largest first, one head or more, and the index of an eigenvalue to start at."
        )
    diagonal = jnp.asarray(values, dtype)

    def value(mu: Particles) -> Float[Array, ""]:
        moment = (mu.points * mu.weights[:, None]).T @ mu.points
        left = jnp.eye(values.size, dtype=moment.dtype) - diagonal[:, None] * moment
        return jnp.sum(left**2 * diagonal[None])

    def at(i: int | None) -> CriticalPoint:
        head = np.zeros(values.size)
        parting, integral = -4 * values**2, np.zeros(values.size)
        if i is not None:
            head[i] = values[i] ** -0.5
            parting[i] = 0
            integral = 2 * values * (values[i] + values)
            integral[i] = 8 * values[i] ** 2
        point = Particles.uniform(jnp.asarray(np.tile(head, (heads, 1)), dtype))
        full = np.sort(np.concatenate([parting + integral, np.tile(parting, heads - 1)]))
        whole = np.sort(np.concatenate([integral, np.zeros(values.size * (heads - 1))]))
        name, level = ("zero", values.sum()) if i is None else (f"eigenvector {i}", values.sum() - values[i])
        return CriticalPoint(name, point, float(level), float(full[0]), full, bool(full[0] >= 0), whole)

    known = [*map(at, range(values.size)), at(None)]
    each = Particles.uniform(jnp.asarray(np.diag((values.size / values) ** 0.5), dtype))
    saddles = tuple(point for point in known if not point.is_minimum)
    local = tuple(point for point in known if point.is_minimum)
    minimum = CriticalPoint("all eigenvectors", each, 0.0, is_minimum=True)
    return Problem(functional(value), around(known[start].point, scale), saddles, minimum, local)
