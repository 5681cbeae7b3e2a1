r"""Stein's methods: particles that approach :math:`\pi\propto e^{-E}` knowing only ∇E.

SVGD descends F + ∫ρ log ρ along the gradient smoothed by a kernel; KSD descent descends ½KSD², which is a functional
like any other, :func:`stein_discrepancy`. Where no energy is given it is the first variation of F, so that
``F = potential(E)`` or ``energy=E`` say the same, and a general F has its own Gibbs measures for targets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree

from pwgf_jax.calculus import Functional, value_and_wasserstein_gradient, wasserstein_gradient
from pwgf_jax.flows.base import Direction, Evaluation, Flow, StepSize, flow
from pwgf_jax.kernels import Kernel, Radial, gaussian, median_heuristic
from pwgf_jax.kernels.families import Laplace, Logarithm, Power
from pwgf_jax.kernels.radial import by_rows, squared_distances, transpose
from pwgf_jax.measures import Field, Particles, norm, per_particle, traceable

__all__ = ["SteinDiscrepancy", "ksd_descent", "ksd_direction", "stein_discrepancy", "svgd", "svgd_direction"]

Energy: TypeAlias = Callable[[PyTree], Float[Array, ""]]
"""E, a scalar function of one point: −log π up to a constant."""

SteinKernel: TypeAlias = Kernel | Literal["median"]
"""A radial kernel, or ``"median"`` for the Gaussian of the particles' median distance, anew in every step."""


def _rows(points: PyTree) -> Float[Array, "n d"]:
    """The points as rows of coordinates."""
    leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(points)]
    return leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves, axis=1)


def _shaped(rows: Float[Array, "n d"], like: PyTree) -> Field:
    """The inverse of :func:`_rows`."""
    _, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], like))
    return jax.vmap(unravel)(rows)


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _slopes(energy: Energy, points: PyTree) -> PyTree:
    """∇E at many points."""
    return jax.vmap(jax.grad(energy))(points)


def _check_kernel(name: str, kernel: SteinKernel, smooth: bool = False) -> None:
    if isinstance(kernel, str) and kernel == "median":
        return
    if not isinstance(kernel, Radial):
        given = repr(kernel) if isinstance(kernel, str) else type(kernel).__name__
        raise TypeError(f'{name}: kernel is {given}; give a radial one, such as gaussian(1.0), or "median".')
    kinks = (Laplace, Power, Logarithm)
    parts = jax.tree.leaves(kernel, is_leaf=lambda part: isinstance(part, kinks))
    if smooth and any(isinstance(part, kinks) for part in parts):
        raise ValueError(f"{name}: the kernel has a kink where points meet; give gaussian or imq, or one made of them.")


def _at(kernel: SteinKernel, points: Float[Array, "n d"]) -> Radial:
    if isinstance(kernel, Radial):
        return kernel
    median = jax.lax.stop_gradient(median_heuristic(points))
    return gaussian(jnp.where(median > 0, median, 1))  # most particles coincide: any kernel is as good


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SteinDiscrepancy:
    r"""The functional made by :func:`stein_discrepancy`.

    Args:
        slopes: points (n, ...) -> ∇E at each of them, that is minus the score.
        kernel: a smooth radial kernel.

    Example:
        >>> import jax.numpy as jnp
        >>> F = SteinDiscrepancy(Partial(lambda x: x), gaussian(1.0))
        >>> float(F(Particles.uniform(jnp.array([[2.0]]))))
        2.5
    """

    slopes: Callable[[PyTree], PyTree]
    kernel: Radial

    def _located(self, points: PyTree, centre: Array | None = None) -> tuple[Array, Array, Array]:
        """The points about a centre (their mean if none is given), ∇E there, and the centre."""
        x = _rows(points)
        centre = jax.lax.stop_gradient(jnp.mean(x, axis=0)) if centre is None else centre
        return x - centre[None], _rows(self.slopes(points)), centre

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
        return jnp.zeros_like(_rows(points)[:, 0])

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
        >>> F = stein_discrepancy(lambda x: jnp.sum(x**2) / 2, gaussian(1.0))
        >>> float(F(Particles.uniform(jnp.array([[2.0]]))))  # half of |∇E|² + d/ℓ²
        2.5

    References:
        Korba, Aubin-Frankowski, Majewski, Ablin, arXiv:2105.09994, Sec. 2.
    """
    _check_kernel("stein_discrepancy", kernel, smooth=True)
    if not isinstance(kernel, Radial):
        raise TypeError('stein_discrepancy: a functional has one kernel; "median" belongs to the flows.')
    return SteinDiscrepancy(Partial(_slopes, traceable(energy)), kernel)


def svgd_direction(kernel: SteinKernel, energy: Energy | None = None) -> Direction:
    r"""The direction of :func:`svgd`, to compose flows with.

    Args:
        kernel: as in :func:`svgd`.
        energy: as in :func:`svgd`.

    Returns:
        A direction for :func:`pwgf_jax.flow`.

    Raises:
        TypeError: if the kernel is not radial.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> F = lambda mu: mu.weights @ jnp.sum(mu.points**2, axis=-1) / 2
        >>> mu = Particles.uniform(jnp.array([[2.0]]))  # a single particle descends the energy
        >>> svgd_direction(gaussian(1.0))(jax.random.key(0), F, mu).field.tolist()
        [[2.0]]
    """
    _check_kernel("svgd", kernel)

    def direction(key: Array, F: Functional, mu: Particles) -> Evaluation:
        del key
        value, gradient = value_and_wasserstein_gradient(F, mu)
        x, w = _rows(mu.points), mu.weights[:, None]
        x = x - jnp.mean(x, axis=0)[None]  # the kernel does not see the shift, its rounding errors do
        pull = w * _rows(gradient if energy is None else _slopes(energy, mu.points))
        masses, profile, columns = jnp.concatenate([w * x, w], axis=1), _at(kernel, x).profile, transpose(x)

        def block(rows: Array) -> Array:
            values, slopes, _ = profile(squared_distances(rows, columns))
            moments = _dot(slopes, masses)
            # Σ_j w_j ∇_j k(x_j, x_i) = −Σ_j w_j 2ρ'(x_i − x_j)
            return _dot(values, pull) + 2 * (rows * moments[:, -1:] - moments[:, :-1])

        field = _shaped(by_rows(block, x, mu.size, None), mu.points)
        field = jax.tree.map(lambda leaf: jnp.where(per_particle(mu.weights != 0, leaf), leaf, 0), field)
        return Evaluation(value, norm(mu, gradient), field)

    return direction


def ksd_direction(kernel: SteinKernel, energy: Energy | None = None) -> Direction:
    r"""The direction of :func:`ksd_descent`, to compose flows with.

    Args:
        kernel: as in :func:`ksd_descent`.
        energy: as in :func:`ksd_descent`.

    Returns:
        A direction for :func:`pwgf_jax.flow`.

    Raises:
        TypeError: if the kernel is not radial.
        ValueError: if it has a kink.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> F = lambda mu: mu.weights @ jnp.sum(mu.points**2, axis=-1)
        >>> mu = Particles.uniform(jnp.array([[3.0]]))  # a single particle descends ½|∇E|² = 2x²
        >>> ksd_direction(gaussian(1.0))(jax.random.key(0), F, mu).field.tolist()
        [[12.0]]
    """
    _check_kernel("ksd_descent", kernel, smooth=True)

    def direction(key: Array, F: Functional, mu: Particles) -> Evaluation:
        del key
        value, gradient = value_and_wasserstein_gradient(F, mu)

        def slopes(points: PyTree) -> PyTree:  # of the first variation at μ, which is held while the points move
            return wasserstein_gradient(F, mu, at=points) if energy is None else _slopes(energy, points)

        discrepancy = SteinDiscrepancy(slopes, _at(kernel, _rows(mu.points)))
        return Evaluation(value, norm(mu, gradient), wasserstein_gradient(discrepancy, mu))

    return direction


def svgd(
    step_size: StepSize, *, kernel: SteinKernel, energy: Energy | None = None, batch_size: int | None = None
) -> Flow:
    r"""Stein variational gradient descent.

    :math:`x_i\leftarrow x_i-\gamma\sum_jw_j\,[k(x_i,x_j)\nabla E(x_j)-\nabla_{x_j}k(x_j,x_i)]`: the gradient of
    F + ∫ρ log ρ, smoothed by the kernel so that a cloud of particles has it. Value and gradient norm are those of
    F, without ∫ρ log ρ. Costs N² pairs a step, held in row chunks; a perturbation or noise goes through
    ``flow(svgd_direction(kernel), ...)``.

    Args:
        step_size: γ, a schedule, or an optax transformation.
        kernel: a radial kernel, see :mod:`pwgf_jax.kernels`, or ``"median"``: a Gaussian whose lengthscale is the
            median distance of the particles in every step (the weights are not looked at; it holds all pairs).
        energy: E = −log π, a function of one point; F is then only the yardstick that is recorded. None takes
            :math:`\nabla E=\nabla_\mu F`.
        batch_size: data points per evaluation, as in :func:`pwgf_jax.flow`; all of them if None.

    Returns:
        A :class:`pwgf_jax.Flow`.

    Raises:
        TypeError: if the kernel is not radial, or the step size of no known kind.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pwgf_jax import run
        >>> F = lambda mu: mu.weights @ jnp.sum((mu.points - 3) ** 2, axis=-1) / 2  # π = N(3, 1)
        >>> start = Particles.uniform(jnp.linspace(0.0, 1.0, 21)[:, None])
        >>> x = run(svgd(1.0, kernel="median"), F, start, jax.random.key(0), steps=300).mu.points
        >>> round(float(jnp.mean(x)), 2), round(float(jnp.std(x)), 1)
        (3.0, 1.0)

    References:
        Liu, Wang, Stein variational gradient descent, arXiv:1608.04471, Alg. 1.
    """
    return flow(svgd_direction(kernel, energy), step_size, batch_size=batch_size)


def ksd_descent(
    step_size: StepSize, *, kernel: SteinKernel, energy: Energy | None = None, batch_size: int | None = None
) -> Flow:
    r"""Descent of the kernel Stein discrepancy: the Wasserstein gradient flow of :func:`stein_discrepancy`.

    The step is on particles, :math:`x_i\leftarrow x_i-\gamma\nabla_\mu\frac12\mathrm{KSD}^2`: N/2 times the Euclidean
    gradient of KSD², which the published code descends. Value and gradient norm are those of F; to record the
    discrepancy, or to certify with it, run :func:`pwgf_jax.wgf` on it instead.

    Args:
        step_size: γ, a schedule, or an optax transformation.
        kernel: a radial kernel that is smooth where points meet, or ``"median"``, as in :func:`svgd`.
        energy: E = −log π, a function of one point. None takes the first variation of F at the current measure,
            held fixed while the discrepancy is differentiated.
        batch_size: data points per evaluation, as in :func:`pwgf_jax.flow`; all of them if None.

    Returns:
        A :class:`pwgf_jax.Flow`.

    Raises:
        TypeError: if the kernel is not radial, or the step size of no known kind.
        ValueError: if the kernel has a kink.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pwgf_jax import run
        >>> F = lambda mu: mu.weights @ jnp.sum((mu.points - 3) ** 2, axis=-1) / 2  # π = N(3, 1)
        >>> start = Particles.uniform(jnp.linspace(0.0, 1.0, 11)[:, None])
        >>> x = run(ksd_descent(0.3, kernel=gaussian(1.0)), F, start, jax.random.key(0), steps=300).mu.points
        >>> round(float(jnp.mean(x)), 2), round(float(jnp.std(x)), 1)
        (3.0, 0.9)

    References:
        Korba, Aubin-Frankowski, Majewski, Ablin, arXiv:2105.09994, Alg. 1.
    """
    return flow(ksd_direction(kernel, energy), step_size, batch_size=batch_size)
