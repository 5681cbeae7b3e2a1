r"""The Sinkhorn divergence to a target: entropic optimal transport without its bias.

The dual potentials are fixed points. Value, first variation and gradient need the potentials alone (the envelope
theorem), the Hessian their derivatives, which are solutions of linear equations: no derivative passes through the
iterations, and nothing of N × M numbers is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Float, PyTree

from pwgf_jax import arguments
from pwgf_jax.functionals.base import Combinable
from pwgf_jax.functionals.targets import as_target, matched, rows
from pwgf_jax.kernels.radial import by_rows, squared_distances, transpose
from pwgf_jax.measures import Particles

__all__ = ["SinkhornDivergence", "sinkhorn_divergence"]

_RICHARDSON = 33  # steps to the last digit of float64
_HIGHEST = 50.0  # exponent, where a particle of weight zero is nearer to itself than anything of weight


def _total(weights: Array, values: Array) -> Float[Array, ""]:
    return jnp.sum(weights * values)


class _Cloud(NamedTuple):
    """A measure as rows of coordinates."""

    x: Float[Array, "n d"]
    weights: Float[Array, " n"]


def _softmin(x: Array, cloud: _Cloud, potential: Array, epsilon: Array) -> Float[Array, " n"]:
    """−ε log Σ_j w_j exp((g_j − ½|x_i − y_j|²)/ε) of every row x_i."""
    transposed = transpose(cloud.x)
    present = cloud.weights[None] != 0

    def block(tile: Array) -> Array:
        exponents = (potential[None] - squared_distances(tile, transposed) / 2) / epsilon
        top = jax.lax.stop_gradient(jnp.max(jnp.where(present, exponents, -jnp.inf), axis=1))
        # Terms of weight zero stay, for the derivative in their weight.
        terms = jnp.exp(jnp.minimum(exponents - top[:, None], _HIGHEST))
        return -epsilon * (top + jnp.log(jnp.sum(cloud.weights[None] * terms, axis=1)))

    return by_rows(block, x, cloud.x.shape[0], None)


def _repeated(step: Callable[[Array], Array], start: Array, iterations: int) -> Array:
    """A step repeated until it moves nothing but last digits."""

    def goes_on(state: tuple[Array, Array, Array]) -> Array:
        count, moved, now = state
        return (count < iterations) & (moved > 32 * jnp.finfo(now.dtype).eps * jnp.max(jnp.abs(now)))

    def once(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, _, now = state
        after = step(now)
        return count + 1, jnp.max(jnp.abs(after - now)), after

    return jax.lax.while_loop(goes_on, once, once((jnp.zeros((), jnp.int32), jnp.max(jnp.abs(start)), start)))[2]


def _potential(mu: _Cloud, nu: _Cloud, epsilon: Array, iterations: int) -> Float[Array, " m"]:
    """The dual potential g of OT_ε(μ, ν) at the points of ν, of mean zero; a differentiable function of μ."""

    def imbalance(g: Array) -> Array:
        """The derivative of the dual in g, whose own derivative is symmetric: what arrives at ν in excess."""
        return jax.grad(lambda g: _total(mu.weights, _softmin(mu.x, nu, g, epsilon) + _total(nu.weights, g)))(g)

    def sinkhorn(_: Any, g: Array) -> Array:
        def step(g: Array) -> Array:
            f = _softmin(mu.x, nu, g, epsilon)
            g = _softmin(nu.x, mu, f, epsilon)
            return g - _total(nu.weights, g)

        return _repeated(step, g, iterations)

    def conjugate(concave: Callable[[Array], Array], y: Array) -> Array:
        tolerance = 100 * float(jnp.finfo(y.dtype).eps)
        per_mass = jnp.where(nu.weights > 0, 1 / jnp.where(nu.weights > 0, nu.weights, 1), 1)
        return cg(lambda v: -concave(v), -y, tol=tolerance, maxiter=iterations, M=lambda v: per_mass * v)[0]

    def solve(linear: Callable[[Array], Array], y: Array) -> Array:
        return jax.lax.custom_linear_solve(linear, y, conjugate, symmetric=True)

    return jax.lax.custom_root(imbalance, jnp.zeros_like(nu.weights), sinkhorn, solve)


def _own_potential(mu: _Cloud, epsilon: Array, iterations: int) -> Float[Array, " n"]:
    """The potential p of OT_ε(μ, μ) at the points of μ; a differentiable function of μ."""

    def residual(p: Array) -> Array:
        return p - _softmin(mu.x, mu, p, epsilon)

    def solve(linear: Callable[[Array], Array], y: Array) -> Array:
        # Eigenvalues are in [1, 2], since a Gaussian kernel is positive: every step leaves a third of the error.
        def richardson(matvec: Callable[[Array], Array], y: Array) -> Array:
            return jax.lax.fori_loop(0, _RICHARDSON, lambda _, v: v + (2 / 3) * (y - matvec(v)), (2 / 3) * y)

        return jax.lax.custom_linear_solve(linear, y, richardson, transpose_solve=richardson)

    def halves(_: Any, p: Array) -> Array:
        return _repeated(lambda p: (p + _softmin(mu.x, mu, p, epsilon)) / 2, p, iterations)

    return jax.lax.custom_root(residual, jnp.zeros_like(mu.weights), halves, solve)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class SinkhornDivergence(Combinable):
    r"""The functional made by :func:`sinkhorn_divergence`.

    Args:
        target: ν.
        epsilon: ε [length²].
        constant: −½OT_ε(ν, ν), which no derivative sees; computed once.
        iterations: at most so many for a potential.

    Example:
        >>> import jax.numpy as jnp
        >>> F = sinkhorn_divergence(jnp.zeros((4, 2)), 0.1)
        >>> float(F(Particles.uniform(jnp.ones((4, 2)))))  # all of the mass moves by (1, 1)
        1.0
    """

    target: Particles
    epsilon: Float[Array, "*batch"] | float
    constant: Float[Array, "*batch"]
    iterations: int = field(default=500, metadata={"static": True})

    def potentials(self, mu: Particles) -> tuple[Float[Array, " m"], Float[Array, " n"]]:
        """The dual potentials: of OT_ε(μ, ν) at the points of ν, and of OT_ε(μ, μ) at those of μ."""
        here, there, epsilon = self.located(mu)
        return _potential(here, there, epsilon, self.iterations), _own_potential(here, epsilon, self.iterations)

    def variation(self, mu: Particles, points: PyTree) -> Float[Array, " n"]:
        r"""The first variation :math:`f(x)-p(x)`, the difference of two potentials, at any points."""
        return _witness(self, self.potentials(mu), mu, points)

    def __call__(self, mu: Particles) -> Float[Array, ""]:
        """The value F(μ)."""
        return _value(self, self.potentials(mu), mu)

    def located(self, mu: Particles) -> tuple[_Cloud, _Cloud, Array]:
        """Both measures about the centre of μ, and ε, in the dtype of the points."""
        nu = matched(self.target, mu.points, "sinkhorn_divergence")
        x, y, centre = rows(mu.points), rows(nu.points), _centre(mu)
        here, there = _Cloud(x - centre[None], mu.weights), _Cloud(y - centre[None], nu.weights)
        return here, there, jnp.asarray(self.epsilon, x.dtype)


def _centre(mu: Particles) -> Float[Array, " d"]:
    # Costs do not see a shift, their rounding errors do.
    return jax.lax.stop_gradient(jnp.mean(rows(mu.points), axis=0))


def _witness(F: SinkhornDivergence, potentials: Any, mu: Particles, points: PyTree) -> Float[Array, " n"]:
    g, p = potentials
    here, there, epsilon = F.located(mu)
    at = rows(points) - _centre(mu)[None]
    return _softmin(at, there, g, epsilon) + _total(there.weights, g) - _softmin(at, here, p, epsilon)


@jax.custom_jvp
def _value(F: SinkhornDivergence, potentials: Any, mu: Particles) -> Float[Array, ""]:
    epsilon = jnp.asarray(F.epsilon, mu.weights.dtype)
    # So that the first variation is the derivative in the weights at every mass.
    mass = epsilon / 2 * (jnp.sum(mu.weights) - 1)
    return _total(mu.weights, _witness(F, potentials, mu, mu.points)) - mass + F.constant.astype(mass.dtype)


@_value.defjvp
def _value_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    # The envelope theorem: potentials are optimal, and to first order stay. What they do to this derivative is seen.
    (F, potentials, mu), moved = primals, tangents[2]

    def linear(nu: Particles) -> Array:
        return _total(nu.weights, _witness(F, potentials, mu, nu.points))

    return _value(F, potentials, mu), jax.jvp(linear, (mu,), (moved,))[1]


def sinkhorn_divergence(
    target: Particles | Float[Array, "m d"], epsilon: float | Float[Array, ""], *, iterations: int = 500
) -> SinkhornDivergence:
    r"""The Sinkhorn divergence, optimal transport with entropy and without its bias.

    .. math:: F(\mu)=OT_\varepsilon(\mu,\nu)-\tfrac12OT_\varepsilon(\mu,\mu)-\tfrac12OT_\varepsilon(\nu,\nu)

    :math:`OT_\varepsilon(\mu,\nu)=\min_\pi\int\frac12|x-y|^2\,d\pi+\varepsilon\,\mathrm{KL}(\pi|\mu\otimes\nu)`, over
    couplings π; the norm is Euclidean over all coordinates of a point. Non-negative, convex in μ, zero at ν alone; it
    tends to ½W₂² as ε → 0 and to half the squared distance of the means as ε → ∞. The Wasserstein gradient is the
    difference of two entropic displacements, :math:`T_{\mu\mu}(x)-T_{\mu\nu}(x)`.

    Potentials are iterated in the log domain until they stand still up to rounding. The iterations that this takes
    grow as 1/ε; where ``iterations`` are spent before, value and derivatives have the error of what is left.
    Costs N·(N + M) for each, in row tiles. Derivatives are in μ alone: target and ε are held fixed.

    Args:
        target: ν, a sample (M, d) or particles, shaped like those of μ.
        epsilon: ε > 0 [length²]: √ε is the blur, the distance below which mass is not resolved.
        iterations: at most so many for a potential.

    Returns:
        A functional that knows its first variation.

    Raises:
        ValueError: if the target is no sample, or a number not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> F = sinkhorn_divergence(jnp.array([[0.0], [1.0]]), 0.01)
        >>> round(float(F(Particles.uniform(jnp.array([[2.0], [3.0]])))), 3)  # ½W₂², a shift by 2
        2.0

    References:
        Feydy, Séjourné, Vialard, Amari, Trouvé, Peyré, arXiv:1810.08278; Janati, Muzellec, Peyré, Cuturi,
        arXiv:2006.02572, Sec. 4 (Gaussians).
    """
    arguments.positive("sinkhorn_divergence: epsilon", epsilon)
    arguments.whole("sinkhorn_divergence: iterations", iterations)
    nu = as_target(target, "sinkhorn_divergence")
    weights = jnp.asarray(nu.weights)
    own = partial(SinkhornDivergence, nu, epsilon, iterations=iterations)
    cloud = own(jnp.zeros((), weights.dtype)).located(nu)[1]
    p = _own_potential(cloud, jnp.asarray(epsilon, weights.dtype), iterations)
    return own(-_total(weights, p))
