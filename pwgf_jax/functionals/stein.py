r"""Half the squared kernel Stein discrepancy, which knows :math:`\pi\propto e^{-E}` by ∇E alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree

from pwgf_jax.functionals.base import Combinable
from pwgf_jax.functionals.targets import rows
from pwgf_jax.kernels import Kernel, Radial
from pwgf_jax.kernels.radial import by_rows, squared_distances, transpose
from pwgf_jax.measures import Particles, traceable

__all__ = ["Energy", "SteinDiscrepancy", "slopes", "stein_discrepancy"]

Energy: TypeAlias = Callable[[PyTree], Float[Array, ""]]
"""E, a scalar function of one point: −log π up to a constant."""


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def slopes(energy: Energy, points: PyTree) -> PyTree:
    """∇E at many points.

    Example:
        >>> slopes(lambda x: jnp.sum(x**2) / 2, jnp.full((1, 2), 3.0)).tolist()
        [[3.0, 3.0]]
    """
    return jax.vmap(jax.grad(energy))(points)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class SteinDiscrepancy(Combinable):
    r"""The functional made by :func:`stein_discrepancy`.

    Args:
        slopes: points (n, ...) -> ∇E at each of them, that is minus the score.
        kernel: a smooth radial kernel.

    Example:
        >>> import jax.numpy as jnp
        >>> from pwgf_jax.kernels import gaussian
        >>> F = SteinDiscrepancy(Partial(lambda x: x), gaussian(1.0))
        >>> float(F(Particles.uniform(jnp.array([[2.0]]))))
        2.5
    """

    slopes: Callable[[PyTree], PyTree]
    kernel: Radial

    def _located(self, points: PyTree, centre: Array | None = None) -> tuple[Array, Array, Array]:
        """The points about a centre (their mean if none is given), ∇E there, and the centre."""
        x = rows(points)
        centre = jax.lax.stop_gradient(jnp.mean(x, axis=0)) if centre is None else centre
        return x - centre[None], rows(self.slopes(points)), centre

    def _pairs(self, x: Array, e: Array, y: Array, f: Array) -> Float[Array, "n m"]:
        square = squared_distances(x, transpose(y))
        value, slope, curvature = self.kernel.profile(square)
        # (e_i − f_j)·(x_i − y_j)
        along = jnp.sum(e * x, axis=1)[:, None] + jnp.sum(f * y, axis=1)[None] - _dot(e, y.T) - _dot(x, f.T)
        return value * _dot(e, f.T) + 2 * slope * (along - x.shape[1]) - 4 * curvature * square

    def interaction(self, points: PyTree, others: PyTree) -> Float[Array, "n m"]:
        """The Stein kernel of every pair."""
        y, f, centre = self._located(others)
        x, e, _ = self._located(points, centre)
        return self._pairs(x, e, y, f)

    def external(self, points: PyTree) -> Float[Array, " n"]:
        """No external potential."""
        return jnp.zeros_like(rows(points)[:, 0])

    def __call__(self, mu: Particles) -> Float[Array, ""]:
        """The value F(μ)."""
        x, e, _ = self._located(mu.points)
        sums = by_rows(lambda rows: _dot(self._pairs(rows[0], rows[1], x, e), mu.weights), (x, e), mu.size, None)
        return mu.weights @ sums / 2


def stein_discrepancy(energy: Energy, kernel: Kernel) -> SteinDiscrepancy:
    r"""Half the squared kernel Stein discrepancy to :math:`\pi\propto e^{-E}`, a functional.

    :math:`F(\mu)=\frac12\iint k_\pi\,d\mu\,d\mu` with, for the score :math:`s=-\nabla E`,
    :math:`k_\pi(x,y)=s(x)\cdot s(y)\,k+s(x)\cdot\nabla_2k+s(y)\cdot\nabla_1k+\mathrm{tr}\,\nabla_1\nabla_2k`.
    For the Gaussian kernel and Δ = x − y this is
    :math:`k\,[s(x)\cdot s(y)+\Delta\cdot(s(x)-s(y))/\ell^2+d/\ell^2-|\Delta|^2/\ell^4]`. Non-negative, zero at π.
    A single particle descends ½|∇E|², to saddles and maxima of E as to minima.

    A value takes N² pairs in row chunks; gradients at query points and Hessian products hold all pairs at once.

    Args:
        energy: E, a scalar function of one point, −log π up to a constant.
        kernel: a radial kernel that is smooth where points meet: :func:`pwgf_jax.kernels.gaussian`, ``imq``.

    Returns:
        A functional in pairwise form.

    Raises:
        TypeError: if the kernel is not radial.
        ValueError: if it has a kink.

    Example:
        >>> import jax.numpy as jnp
        >>> from pwgf_jax.kernels import gaussian
        >>> F = stein_discrepancy(lambda x: jnp.sum(x**2) / 2, gaussian(1.0))
        >>> float(F(Particles.uniform(jnp.array([[2.0]]))))  # half of |∇E|² + d/ℓ²
        2.5

    References:
        Korba, Aubin-Frankowski, Majewski, Ablin, arXiv:2105.09994, Sec. 2.
    """
    if not isinstance(kernel, Radial):
        given = repr(kernel) if isinstance(kernel, str) else type(kernel).__name__
        raise TypeError(f"stein_discrepancy: kernel is {given}; give a radial one, such as gaussian(1.0).")
    if not kernel.smooth:
        raise ValueError(
            "stein_discrepancy: the kernel has a kink where points meet; give gaussian or imq, or one made of them."
        )
    return SteinDiscrepancy(Partial(slopes, traceable(energy)), kernel)
