r"""Half the squared sliced Wasserstein distance to a target, exact or smoothed.

On a line, with the target's quantile function Q, its mean m and :math:`A(t)=\int_0^t(Q-m)`, convex and zero at 0 and 1,

.. math:: \tfrac12W_2^2(\mu,\nu)=\tfrac12\int(s-m)^2\,d\mu+\tfrac12\mathrm{Var}(\nu)+\int A(F_\mu(z))\,dz

for the distribution function :math:`F_\mu`, which is linear in the weights. Of particles it is a step function. With
a blur h it is :math:`\sum_iw_i\Phi((z-s_i)/h)`, smooth, and ν is blurred as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr
from jaxtyping import Array, Float

from pwgf_jax import arguments
from pwgf_jax.functionals.base import Combinable
from pwgf_jax.functionals.targets import as_target, rows
from pwgf_jax.measures import Particles

__all__ = ["SlicedWasserstein", "SmoothSlicedWasserstein", "sliced_wasserstein"]

_KNOTS = 128  # of a blurred target's quantile function
_REACH = 5.0  # standard deviations, beyond which a Gaussian is nothing


def _projected(points: Any, directions: Array) -> Float[Array, "n l"]:
    x = rows(points)
    if x.shape[1] != directions.shape[1]:
        raise ValueError(
            f"sliced_wasserstein: a point has {x.shape[1]} coordinates but a direction {directions.shape[1]}."
        )
    return jnp.matmul(x, directions.T.astype(x.dtype), precision=jax.lax.Precision.HIGHEST)


def _spread(mu: Particles, s: Array, mean: Array) -> Float[Array, " l"]:
    """½∫(s − m)² dμ along every direction."""
    return jnp.sum(mu.weights[:, None] * (s - mean[None]) ** 2, axis=0) / 2


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class SlicedWasserstein(Combinable):
    """The functional made by :func:`sliced_wasserstein` without a blur.

    Args:
        directions: unit vectors.
        mean: of the target along each.
        constant: half its variance along each.
        mass: 0, w₁, w₁ + w₂, ... of its points as they are ordered along each direction.
        primitive: A at these.

    Example:
        >>> import jax.numpy as jnp
        >>> F = sliced_wasserstein(jnp.zeros((3, 2)), 8)
        >>> float(F(Particles.uniform(jnp.ones((3, 2)))))
        0.5
    """

    directions: Float[Array, "*batch l d"]
    mean: Float[Array, "*batch l"]
    constant: Float[Array, "*batch l"]
    mass: Float[Array, "*batch l k"]
    primitive: Float[Array, "*batch l k"]

    @property
    def no_hessian(self) -> str:
        """What a Hessian of it would be."""
        return (
            "sliced_wasserstein: the order of the particles along a direction jumps, and between its jumps every "
            "Hessian is that of |x|²/2: no saddle has a negative one, and the integral one is zero; give a blur, "
            "sliced_wasserstein(target, directions, blur=h)."
        )

    def __call__(self, mu: Particles) -> Float[Array, ""]:
        """The value F(μ)."""
        s = _projected(mu.points, self.directions)
        mean, constant, mass, primitive = (
            leaf.astype(s.dtype) for leaf in (self.mean, self.constant, self.mass, self.primitive)
        )

        def integral(s: Array, mass: Array, primitive: Array) -> Array:
            order = jnp.argsort(s)
            s, below = s[order], jnp.cumsum(mu.weights[order])
            return jnp.sum((s[1:] - s[:-1]) * jnp.interp(below[:-1], mass, primitive))

        return jnp.mean(_spread(mu, s, mean) + constant + jax.vmap(integral)(s.T, mass, primitive))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class SmoothSlicedWasserstein(Combinable):
    """The functional made by :func:`sliced_wasserstein` with a blur; it is of moment form.

    Args:
        directions: unit vectors.
        blur: h.
        mean: of the target along each.
        constant: half of the variances of blurred target and blur.
        quantiles: of the blurred target at equally spaced masses from 0 to 1, linear between them.
        nodes: z, equally spaced along each direction.

    Example:
        >>> import jax.numpy as jnp
        >>> F = sliced_wasserstein(jnp.zeros((3, 2)), 8, blur=0.5)
        >>> round(float(F(Particles.uniform(jnp.ones((3, 2))))), 3)
        0.5
    """

    directions: Float[Array, "*batch l d"]
    blur: Float[Array, "*batch"] | float
    mean: Float[Array, "*batch l"]
    constant: Float[Array, "*batch l"]
    quantiles: Float[Array, "*batch l k"]
    nodes: Float[Array, "*batch l z"]

    def moments(self, mu: Particles) -> tuple[Float[Array, " l"], Float[Array, "l z"]]:
        """Along every direction ½∫(s − m)² dμ, and the blurred distribution function at the nodes."""
        s = _projected(mu.points, self.directions)
        nodes, blur = self.nodes.astype(s.dtype), jnp.asarray(self.blur, s.dtype)

        def below(s: Array, nodes: Array) -> Array:
            return jnp.sum(mu.weights[None] * ndtr((nodes[:, None] - s[None]) / blur), axis=1)

        return _spread(mu, s, self.mean.astype(s.dtype)), jax.vmap(below)(s.T, nodes)

    def of_moments(self, moments: tuple[Float[Array, " l"], Float[Array, "l z"]]) -> Float[Array, ""]:
        """The value that they make."""
        spread, below = moments
        constant, nodes = self.constant.astype(below.dtype), self.nodes.astype(below.dtype)
        centred = (self.quantiles - self.mean[:, None]).astype(below.dtype)
        integral = jnp.sum(jax.vmap(_primitive)(centred, below), axis=1) * (nodes[:, 1] - nodes[:, 0])
        return jnp.mean(spread + constant + integral)

    def __call__(self, mu: Particles) -> Float[Array, ""]:
        """The value F(μ)."""
        return self.of_moments(self.moments(mu))


def _primitive(quantiles: Float[Array, " k"], t: Float[Array, " n"]) -> Float[Array, " n"]:
    """A(t) of a quantile function that is linear between equally spaced knots; so A is once continuously so."""
    count = quantiles.shape[0] - 1
    pieces = (quantiles[1:] + quantiles[:-1]) / (2 * count)
    sums = jnp.concatenate([jnp.zeros_like(pieces[:1]), jnp.cumsum(pieces)])
    first = jax.lax.stop_gradient(jnp.clip(jnp.floor(t * count), 0, count - 1))
    k, rest = first.astype(jnp.int32), t - first / count
    return sums[k] + quantiles[k] * rest + (quantiles[k + 1] - quantiles[k]) * count * rest**2 / 2


def _blurred_quantiles(y: Array, weights: Array, blur: Array, nodes: Array) -> Float[Array, " k"]:
    """The quantile function of points that are blurred, at knots of equal mass."""
    mass = jax.lax.map(lambda z: jnp.sum(weights * ndtr((z - y) / blur)), nodes)
    ends = 1 / (8 * _KNOTS)  # of tails without an end, which the first and last piece stand for
    return jnp.interp(jnp.clip(jnp.linspace(0, 1, _KNOTS + 1, dtype=y.dtype), ends, 1 - ends), mass, nodes)


def sliced_wasserstein(
    target: Particles | Float[Array, "m d"],
    directions: int | Float[Array, "l d"],
    *,
    blur: float | Float[Array, ""] | None = None,
    nodes: int = 512,
) -> SlicedWasserstein | SmoothSlicedWasserstein:
    r"""Half the squared sliced Wasserstein distance, the mean of ½W₂² along directions.

    .. math:: F(\mu)=\frac1{2L}\sum_{l\le L}W_2^2(\theta_l\cdot\mu,\,\theta_l\cdot\nu)

    Its Wasserstein gradient at x is the mean of :math:`\theta(\theta\cdot x-T_\theta(\theta\cdot x))`, with
    :math:`T_\theta` the monotone map from one projection to the other. Weights of μ and ν count (quantile coupling).

    Without ``blur`` the value is exact, and a minimum of quadratic functions, one for every order of the particles
    along the directions: a kink wherever two particles change places, and all negative curvature is in kinks. Autodiff
    sees none of it: to it every critical point is a minimum, and the integral Hessian zero. So whatever asks for a
    Hessian (:func:`pwgf_jax.certify`, Hessian-guided noise) is refused. Flows along the gradient run.

    With ``blur`` = h both projections are convolved with N(0, h²): a smooth functional of μ with Hessians, still zero
    at ν. The target's quantile function has 128 linear pieces then, and the integral along a direction runs to as far
    beyond the target as the target is wide: what is farther away is drawn to the middle of the target.

    Args:
        target: ν, a sample (M, d) or particles.
        directions: θ, vectors (L, d), scaled to length one; or how many: of the plane, at the angles π(l + ½)/L.
        blur: h > 0 [length], well above the gaps between particles; None for none.
        nodes: of the integral along a direction, with a blur; their distance should not exceed h.

    Returns:
        A functional.

    Raises:
        ValueError: if the target is no sample, directions do not fit it, or a number is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> F = sliced_wasserstein(jnp.array([[0.0, 0.0], [2.0, 0.0]]), jnp.eye(2))
        >>> float(F(Particles.uniform(jnp.array([[3.0, 0.0], [1.0, 0.0]]))))  # by 1 along one of two directions
        0.25

    References:
        Bonneel, Rabin, Peyré, Pfister, J. Math. Imaging Vis. 51 (2015); Vauthier, Mérigot, Korba, arXiv:2502.06525
        (critical points); Rakotomamonjy, Alaya, Berar, Gasso, arXiv:2110.10524 (Gaussian-smoothed).
    """
    nu = as_target(target, "sliced_wasserstein")
    y = rows(nu.points)
    unit = _directions(directions, y.shape[1]).astype(y.dtype)
    arguments.whole("sliced_wasserstein: nodes", nodes, least=2)
    s = _projected(nu.points, unit)
    if blur is None:
        mean = jnp.sum(nu.weights[:, None] * s, axis=0)
        order = jnp.argsort(s, axis=0)
        weights = nu.weights[order].T
        start = jnp.zeros_like(weights[:, :1])
        steps = weights * (jnp.take_along_axis(s, order, axis=0).T - mean[:, None])
        mass, primitive = (jnp.concatenate([start, jnp.cumsum(each, axis=1)], axis=1) for each in (weights, steps))
        return SlicedWasserstein(unit, mean, _spread(nu, s, mean), mass, primitive)
    arguments.positive("sliced_wasserstein: blur", blur)
    h = jnp.asarray(blur, s.dtype)
    low, high = jnp.min(s, axis=0), jnp.max(s, axis=0)
    reach = high - low + _REACH * h
    z = jnp.linspace(low - reach, high + reach, nodes, axis=1, dtype=s.dtype)
    quantiles = jax.vmap(lambda y, z: _blurred_quantiles(y, nu.weights, h, z))(s.T, z)
    mean = jnp.mean(quantiles[:, 1:] + quantiles[:, :-1], axis=1) / 2
    a, b = quantiles[:, 1:] - mean[:, None], quantiles[:, :-1] - mean[:, None]
    constant = (jnp.mean(a**2 + a * b + b**2, axis=1) / 3 + h**2) / 2
    return SmoothSlicedWasserstein(unit, blur, mean, constant, quantiles, z)


def _directions(directions: Any, dimension: int) -> Float[Array, "l d"]:
    if isinstance(directions, int):
        count = arguments.whole("sliced_wasserstein: directions", directions)
        if dimension != 2:
            raise ValueError(
                f"sliced_wasserstein: directions={count} in {dimension} dimensions; equal angles are of the plane: "
                "give vectors (L, d), such as jax.random.normal(key, (L, d))."
            )
        angles = jnp.arange(0.5, count) * (jnp.pi / count)
        return jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    directions = jnp.asarray(directions)
    if directions.ndim != 2 or directions.shape[0] == 0 or directions.shape[1] != dimension:
        raise ValueError(
            f"sliced_wasserstein: directions have shape {directions.shape}; give vectors (L, {dimension}), one or more."
        )
    return directions / jnp.linalg.norm(directions, axis=1, keepdims=True)
