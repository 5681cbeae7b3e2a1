"""Half the squared maximum mean discrepancy to a target, ½MMD²."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from pwgf_jax.functionals.base import Combinable
from pwgf_jax.functionals.targets import as_target, matched
from pwgf_jax.kernels import Kernel, coulomb, de_regularised
from pwgf_jax.measures import Particles

__all__ = ["Mmd", "coulomb_discrepancy", "mmd"]

Statistic: TypeAlias = Literal["V", "U"]


@dataclass(frozen=True, eq=False)
class _Interaction:
    """The matrix k(x_i, y_j) that is never formed: it only multiplies weights."""

    product: Callable[[Array], Array]

    def __matmul__(self, weights: Array) -> Array:
        return self.product(weights)


def _quadratic(kernel: Kernel, mu: Particles, statistic: str, chunk_size: int | None) -> Float[Array, ""]:
    """∬k dμ dμ, or its U-statistic."""
    whole = kernel.quadratic(mu.points, mu.weights, chunk_size=chunk_size)
    if statistic == "V":
        return whole
    return (whole - mu.weights**2 @ kernel.diagonal(mu.points)) / _normaliser(mu.weights)


def _normaliser(weights: Array) -> Float[Array, ""]:
    """The share of the pairs that are not of a particle with itself."""
    return 1 - jnp.sum(weights**2)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class Mmd(Combinable):
    r"""The functional made by :func:`mmd` and :func:`coulomb_discrepancy`.

    Args:
        target: the target measure.
        kernel: k.
        constant: the target's own ½∬k dν dν, which no derivative sees; computed once.
        statistic: ``"V"`` or ``"U"``.
        chunk_size: rows of the kernel matrix per pass; None for automatic.

    Example:
        >>> import jax.numpy as jnp
        >>> from pwgf_jax.kernels import gaussian
        >>> F = mmd(jnp.ones((8, 2)), gaussian(1.0))
        >>> float(F(Particles.uniform(jnp.ones((4, 2)))))
        0.0
    """

    target: Particles
    kernel: Kernel
    constant: Float[Array, "*batch"]
    statistic: str = field(default="V", metadata={"static": True})
    chunk_size: int | None = field(default=None, metadata={"static": True})

    def interaction(self, points: PyTree, others: PyTree) -> Any:
        """The matrix k(x_i, y_j), for products with weights only; with U their normaliser is divided out."""

        def product(weights: Array) -> Array:
            values = self.kernel.values(points, others, weights, chunk_size=self.chunk_size)
            return values if self.statistic == "V" else values / _normaliser(weights)

        return _Interaction(product)

    def external(self, points: PyTree) -> Float[Array, " n"]:
        """The potential −∫k(x, y) ν(dy)."""
        target = matched(self.target, points, "mmd")
        return -self.kernel.values(points, target.points, target.weights, chunk_size=self.chunk_size)

    def __call__(self, mu: Particles) -> Float[Array, ""]:
        """The value F(μ)."""
        if self.statistic == "U":
            _check_pairs(mu.size, "particle")
        cross = mu.weights @ self.external(mu.points)
        return (
            _quadratic(self.kernel, mu, self.statistic, self.chunk_size) / 2 + cross + self.constant.astype(cross.dtype)
        )

    def batch(self, key: Array, size: int) -> Mmd:
        """The same functional with ``size`` target points drawn without replacement; value and gradient are unbiased.

        The constant stays that of the whole target, so a batch's value may be negative.
        """
        if not 1 <= size <= self.target.size:
            raise ValueError(f"batch: size={size}; there are {self.target.size} target points to draw from.")
        rows = jax.random.choice(key, self.target.size, (size,), replace=False)
        points = jax.tree.map(lambda leaf: leaf[rows], self.target.points)
        return replace(self, target=Particles(points, self.target.weights[rows] * (self.target.size / size)))

    def de_regularised(self, damping: float | Array) -> Mmd:
        """The de-regularised discrepancy to the same target, ½DrMMD², see :func:`pwgf_jax.kernels.de_regularised`."""
        return mmd(
            self.target,
            de_regularised(self.kernel, self.target, damping),
            statistic=self.statistic,  # pyright: ignore[reportArgumentType]
            chunk_size=self.chunk_size,
        )


def _check_pairs(count: int, what: str) -> None:
    if count < 2:
        raise ValueError(f'mmd: statistic="U" with {count} {what}; give at least two, or statistic="V".')


def mmd(
    target: Particles | Float[Array, "m d"],
    kernel: Kernel,
    *,
    statistic: Statistic = "V",
    chunk_size: int | None = None,
) -> Mmd:
    r"""Half the squared maximum mean discrepancy, :math:`F(\mu)=\frac12\iint k\,d(\mu-\nu)\,d(\mu-\nu)`.

    The first variation is the witness :math:`\int k(x,y)\,d(\mu-\nu)(y)`, the integral Hessian's kernel
    :math:`\nabla_1\nabla_2k`, the local part :math:`\int\nabla_1^2k(x,y)\,d(\mu-\nu)(y)`; all in closed form.

    ``"V"`` is this functional of measures. ``"U"`` leaves out the pairs of a particle with itself and rescales,

    .. math:: \iint k\,d\mu\,d\mu\ \to\ \frac{\sum_{i\ne j}w_iw_jk(x_i,x_j)}{1-\sum_iw_i^2},

    for the particles and, in the constant, the target: with weights 1/N it is the mean over pairs, unbiased for
    samples of a measure. U ignores particles of weight zero and their order, but it counts particles: splitting one
    changes it. The gradient at query points sees all particles, so at ``at=mu.points`` it is the gradient at
    the particles only if k(x, x) is constant, as it is for radial kernels and random features. At the noisy points of
    :func:`pwgf_jax.noise_injection` a particle's own clean copy stays in the sum; the authors' code removes it, which
    changes the velocity at x + βu by :math:`\frac1{N-1}\nabla_1k(x+\beta u,x)`.

    Memory is O(chunk·(N + M)) in the value, in gradients and in Hessian products; with feature kernels
    (:func:`pwgf_jax.kernels.random_features`) time is linear in N + M too.

    Args:
        target: ν, a sample (M, d), or particles with any weights.
        kernel: k, from :mod:`pwgf_jax.kernels`.
        statistic: ``"V"`` or ``"U"``.
        chunk_size: rows of the kernel matrix per pass; None takes a few MB at a time.

    Returns:
        A functional in pairwise form, of particles in the target's space; it computes in their dtype.

    Raises:
        ValueError: if the target is empty or no such sample, if a U-statistic has fewer than two points, or an
            option is impossible.
        TypeError: if the target is not floating, or the kernel is none.

    Example:
        >>> import jax.numpy as jnp
        >>> from pwgf_jax.kernels import energy
        >>> F = mmd(jnp.array([[0.0]]), energy())
        >>> float(F(Particles.uniform(jnp.array([[2.0]]))))
        2.0

    References:
        Arbel, Korba, Salim, Gretton, arXiv:1906.04370, Sec. 2; for U Gretton et al., JMLR 13 (2012), Lemma 6.
    """
    if not isinstance(kernel, Kernel):
        raise TypeError(f"mmd: the kernel is {kernel!r}; give one of pwgf_jax.kernels, e.g. gaussian(1.0).")
    if statistic not in get_args(Statistic):
        raise ValueError(f'mmd: statistic={statistic!r}; choose "V" or "U".')
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"mmd: chunk_size={chunk_size}; give a positive number of rows, or None for automatic.")
    target = as_target(target, "mmd")
    if statistic == "U":
        _check_pairs(target.size, "target point")
    constant = _quadratic(kernel, target, statistic, chunk_size) / 2
    return Mmd(target, kernel, constant, statistic, chunk_size)


def coulomb_discrepancy(
    target: Particles | Float[Array, "m d"], *, statistic: Statistic = "V", chunk_size: int | None = None
) -> Mmd:
    r"""The Coulomb discrepancy: :func:`mmd` with the Coulomb kernel of the target's dimension.

    Particles repel each other and are drawn to the target, by :math:`|x-y|^{2-d}` (d ≥ 3), :math:`-\log|x-y|`
    (d = 2) or :math:`-|x-y|` (d = 1). Coincident pairs are dropped, self-interaction with them, so F is the energy
    without its infinite self-terms and may be negative. The paper's example of a strictly benign landscape.

    Args:
        target: ν, a sample (M, d) or particles.
        statistic: ``"V"`` or ``"U"``; they differ by the normaliser only.
        chunk_size: rows of the kernel matrix per pass; None takes a few MB at a time.

    Returns:
        A functional in pairwise form.

    Raises:
        ValueError: as :func:`mmd` does.

    Example:
        >>> import jax.numpy as jnp
        >>> F = coulomb_discrepancy(jnp.zeros((1, 3)))
        >>> float(F(Particles.uniform(jnp.array([[0.0, 0.0, 2.0]]))))
        -0.5

    References:
        Boufadène, Vialard, arXiv:2312.00800; Yamamoto, Kim, Suzuki, arXiv:2509.16974, Sec. 3.1.
    """
    points = target.points if isinstance(target, Particles) else jnp.asarray(target)
    if not hasattr(points, "ndim") or points.ndim != 2:
        raise ValueError(
            "coulomb_discrepancy: the target is no array of points; give a sample (M, d), or particles on one."
        )
    return mmd(target, coulomb(points.shape[1]), statistic=statistic, chunk_size=chunk_size)
