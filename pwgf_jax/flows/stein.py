r"""Stein's methods: particles that approach :math:`\pi\propto e^{-E}` knowing only ∇E.

SVGD descends F + ∫ρ log ρ along the gradient smoothed by a kernel; KSD descent descends ½KSD², which is a functional
like any other, :func:`pwgf_jax.functionals.stein_discrepancy`. Where no energy is given it is the first variation of F,
so that ``F = potential(E)`` or ``energy=E`` say the same, and a general F has its own Gibbs measures for targets.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from pwgf_jax.calculus import Functional, value_and_wasserstein_gradient, wasserstein_gradient
from pwgf_jax.flows.base import Direction, StepSize, flow
from pwgf_jax.flows.protocol import Evaluation, Flow, preset
from pwgf_jax.functionals.stein import Energy, SteinDiscrepancy, slopes
from pwgf_jax.functionals.targets import rows
from pwgf_jax.kernels import Kernel, Radial, gaussian, median_heuristic
from pwgf_jax.kernels.radial import by_rows, squared_distances, transpose
from pwgf_jax.measures import Field, Particles, norm, per_particle

__all__ = ["ksd_descent", "ksd_direction", "svgd", "svgd_direction"]

SteinKernel: TypeAlias = Kernel | Literal["median"]
"""A radial kernel, or ``"median"`` for the Gaussian of the particles' median distance, anew in every step."""


def _shaped(rows: Float[Array, "n d"], like: PyTree) -> Field:
    """The inverse of :func:`.rows`."""
    _, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], like))
    return jax.vmap(unravel)(rows)


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _check(name: str, kernel: SteinKernel, smooth: bool = False) -> None:
    if kernel == "median":
        return
    if not isinstance(kernel, Radial):
        given = repr(kernel) if isinstance(kernel, str) else type(kernel).__name__
        raise TypeError(f'{name}: kernel is {given}; give a radial one, such as gaussian(1.0), or "median".')
    if smooth and not kernel.smooth:
        raise ValueError(f"{name}: the kernel has a kink where points meet; give gaussian or imq, or one made of them.")


def _at(kernel: SteinKernel, points: Float[Array, "n d"]) -> Radial:
    if isinstance(kernel, Radial):
        return kernel
    median = jax.lax.stop_gradient(median_heuristic(points))
    return gaussian(jnp.where(median > 0, median, 1))  # most particles coincide: any kernel is as good


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
    _check("svgd", kernel)

    def direction(key: Array, F: Functional, mu: Particles, step: Any = 0) -> Evaluation:
        del key, step
        value, gradient = value_and_wasserstein_gradient(F, mu)
        x, w = rows(mu.points), mu.weights[:, None]
        x = x - jnp.mean(x, axis=0)[None]  # the kernel does not see the shift, its rounding errors do
        pull = w * rows(gradient if energy is None else slopes(energy, mu.points))
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
    _check("ksd_descent", kernel, smooth=True)

    def direction(key: Array, F: Functional, mu: Particles, step: Any = 0) -> Evaluation:
        del key, step
        value, gradient = value_and_wasserstein_gradient(F, mu)

        def gradients(points: PyTree) -> PyTree:  # of the first variation at μ, which is held while the points move
            return wasserstein_gradient(F, mu, at=points) if energy is None else slopes(energy, points)

        discrepancy = SteinDiscrepancy(gradients, _at(kernel, rows(mu.points)))
        return Evaluation(value, norm(mu, gradient), wasserstein_gradient(discrepancy, mu))

    return direction


@preset
def svgd(step_size: StepSize, *, kernel: SteinKernel, energy: Energy | None = None) -> Flow:
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
    return flow(svgd_direction(kernel, energy), step_size)


@preset
def ksd_descent(step_size: StepSize, *, kernel: SteinKernel, energy: Energy | None = None) -> Flow:
    r"""Descent of the kernel Stein discrepancy, the Wasserstein gradient flow of ``functionals.stein_discrepancy``.

    The step is on particles, :math:`x_i\leftarrow x_i-\gamma\nabla_\mu\frac12\mathrm{KSD}^2`: N/2 times the Euclidean
    gradient of KSD², which the published code descends. Value and gradient norm are those of F; to record the
    discrepancy, or to certify with it, run :func:`pwgf_jax.wgf` on it instead.

    Args:
        step_size: γ, a schedule, or an optax transformation.
        kernel: a radial kernel that is smooth where points meet, or ``"median"``, as in :func:`svgd`.
        energy: E = −log π, a function of one point. None takes the first variation of F at the current measure,
            held fixed while the discrepancy is differentiated.

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
    return flow(ksd_direction(kernel, energy), step_size)
