"""The radial kernels by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from pwgf_jax.kernels.radial import Radial, squared_distances, transpose

__all__ = ["coulomb", "energy", "gaussian", "imq", "laplace", "median_heuristic"]


def _static(**options: Any) -> Any:
    return field(metadata={"static": True}, **options)


def _positive(kernel: str, lengthscale: Any) -> Any:
    if not isinstance(lengthscale, Tracer) and not (np.ndim(lengthscale) == 0 and 0 < lengthscale < np.inf):
        raise ValueError(f"{kernel}: lengthscale={lengthscale}; give a positive number.")
    return lengthscale


def _apart(s: Array) -> tuple[Array, Array]:
    """Which pairs are apart, and their squared distances with 1 for those that are not."""
    apart = s > 0
    return apart, jnp.where(apart, s, 1)


def _power(s: Array, exponent: float) -> Array:
    """A power with a static exponent; half-integers, the usual ones, by square roots."""
    doubled = 2 * exponent
    return jnp.sqrt(s) ** int(doubled) if doubled == int(doubled) else s**exponent


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Gaussian:
    """ρ(s) = exp(−s/2ℓ²)."""

    lengthscale: Any

    def __call__(self, s: Array) -> tuple[Array, Array, Array]:
        """The values ρ, ρ', ρ''."""
        rate = self.rate(s.dtype)
        value = jnp.exp(rate * s)
        return value, rate * value, rate**2 * value

    def rate(self, dtype: Any) -> Array:
        """The constant ρ'/ρ = −1/2ℓ²."""
        return -0.5 / jnp.asarray(self.lengthscale, dtype) ** 2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Laplace:
    """ρ(s) = exp(−√s/ℓ), with vanishing derivatives at zero."""

    lengthscale: Any
    kink: ClassVar[bool] = True

    def __call__(self, s: Array) -> tuple[Array, Array, Array]:
        """The values ρ, ρ', ρ''."""
        inverse = 1 / jnp.asarray(self.lengthscale, s.dtype)
        apart, safe = _apart(s)
        distance = jnp.sqrt(safe)
        value = jnp.where(apart, jnp.exp(-inverse * distance), 1)
        slope = jnp.where(apart, -0.5 * inverse * value / distance, 0)
        return value, slope, -0.5 * slope * (inverse / distance + 1 / safe)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class InverseMultiquadric:
    """ρ(s) = (1 + s/ℓ²)^(−p)."""

    lengthscale: Any
    exponent: float = _static()

    def __call__(self, s: Array) -> tuple[Array, Array, Array]:
        """The values ρ, ρ', ρ''."""
        inverse = 1 / jnp.asarray(self.lengthscale, s.dtype) ** 2
        base = 1 + inverse * s
        value = _power(base, -self.exponent)
        slope = -self.exponent * inverse * value / base
        return value, slope, -(self.exponent + 1) * inverse * slope / base


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Power:
    """ρ(s) = ±s^q, zero with its derivatives at zero."""

    exponent: float = _static()
    sign: int = _static()
    kink: ClassVar[bool] = True

    def __call__(self, s: Array) -> tuple[Array, Array, Array]:
        """The values ρ, ρ', ρ''."""
        apart, safe = _apart(s)
        value = jnp.where(apart, self.sign * _power(safe, self.exponent), 0)
        slope = self.exponent * value / safe
        return value, slope, (self.exponent - 1) * slope / safe


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Logarithm:
    """ρ(s) = −½ log s, zero with its derivatives at zero."""

    kink: ClassVar[bool] = True

    def __call__(self, s: Array) -> tuple[Array, Array, Array]:
        """The values ρ, ρ', ρ''."""
        apart, safe = _apart(s)
        slope = jnp.where(apart, -0.5 / safe, 0)
        return -0.5 * jnp.log(safe), slope, -slope / safe


def gaussian(lengthscale: float | Float[Array, ""]) -> Radial:
    r"""The Gaussian kernel :math:`k(x,y)=\exp(-\|x-y\|^2/2\ell^2)`.

    Args:
        lengthscale: ℓ > 0 [units of x]. Beware of other conventions, such as :math:`\exp(-\|x-y\|^2/\sigma)`.

    Returns:
        A radial kernel.

    Raises:
        ValueError: if the lengthscale is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(gaussian(2.0)(jnp.zeros((1, 1)), jnp.full((1, 1), 2.0))[0, 0]), 4)
        0.6065
    """
    return Radial(Gaussian(_positive("gaussian", lengthscale)))


def laplace(lengthscale: float | Float[Array, ""]) -> Radial:
    r"""The Laplace kernel :math:`k(x,y)=\exp(-\|x-y\|/\ell)`; coincident points exert no force on each other.

    Args:
        lengthscale: ℓ > 0 [units of x].

    Returns:
        A radial kernel, not smooth at coincident points.

    Raises:
        ValueError: if the lengthscale is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(laplace(2.0)(jnp.zeros((1, 1)), jnp.full((1, 1), 2.0))[0, 0]), 4)
        0.3679
    """
    return Radial(Laplace(_positive("laplace", lengthscale)))


def imq(lengthscale: float | Float[Array, ""], exponent: float = 0.5) -> Radial:
    r"""The inverse multiquadric kernel :math:`k(x,y)=(1+\|x-y\|^2/\ell^2)^{-p}`.

    Args:
        lengthscale: ℓ > 0 [units of x].
        exponent: p > 0, a Python number.

    Returns:
        A radial kernel.

    Raises:
        ValueError: if the lengthscale or the exponent is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(imq(1.0)(jnp.zeros((1, 1)), jnp.ones((1, 1)))[0, 0]), 4)
        0.7071
    """
    if not exponent > 0:
        raise ValueError(f"imq: exponent={exponent}; give a positive number, 0.5 for the usual kernel.")
    return Radial(InverseMultiquadric(_positive("imq", lengthscale), float(exponent)))


def energy(exponent: float = 1.0) -> Radial:
    r"""The energy-distance (Riesz) kernel :math:`k(x,y)=-\|x-y\|^r`; coincident points exert no force on each other.

    On differences of measures of equal mass it is positive definite; for r = 1 its MMD² is the energy distance
    :math:`2E|X-Y|-E|X-X'|-E|Y-Y'|`.

    Args:
        exponent: r, a Python number, 0 < r < 2.

    Returns:
        A radial kernel, not smooth at coincident points.

    Raises:
        ValueError: if the exponent is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> float(energy()(jnp.zeros((1, 2)), jnp.array([[3.0, 4.0]]))[0, 0])
        -5.0
    """
    if not 0 < exponent < 2:
        raise ValueError(f"energy: exponent={exponent}; choose 0 < exponent < 2.")
    return Radial(Power(exponent / 2, -1))


def coulomb(dimension: int) -> Radial:
    r"""The Coulomb kernel, the Green's function of −Δ up to a positive factor.

    :math:`|x-y|^{2-d}` for d ≥ 3, :math:`-\log|x-y|` for d = 2, :math:`-|x-y|` for d = 1. A coincident pair
    contributes nothing, to the value as to the force.

    Args:
        dimension: d ≥ 1, that of the points.

    Returns:
        A radial kernel, not smooth at coincident points.

    Raises:
        ValueError: if the dimension is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> float(coulomb(3)(jnp.zeros((1, 3)), jnp.array([[0.0, 0.0, 2.0]]))[0, 0])
        0.5

    References:
        Boufadène, Vialard, arXiv:2312.00800; Yamamoto, Kim, Suzuki, arXiv:2509.16974, Sec. 3.1.
    """
    if dimension < 1:
        raise ValueError(f"coulomb: dimension={dimension}; give that of the points, 1 or more.")
    if dimension == 2:
        return Radial(Logarithm())
    return energy() if dimension == 1 else Radial(Power((2 - dimension) / 2, 1))


def median_heuristic(x: Float[Array, "n d"], y: Float[Array, "m d"] | None = None) -> Float[Array, ""]:
    r"""The median distance between two points of x, or of x and y pooled: a lengthscale for :func:`gaussian`.

    It is the distance itself, not its square, and not divided by √2 or √log n. Costs all pairs in memory: give a
    subsample of a large cloud.

    Args:
        x: points.
        y: more points, for instance the target's.

    Returns:
        A lengthscale [units of x]; zero if most of the points coincide.

    Raises:
        ValueError: if there are fewer than two points.

    Example:
        >>> import jax.numpy as jnp
        >>> float(median_heuristic(jnp.array([[0.0], [1.0], [3.0]])))
        2.0
    """
    pooled = x if y is None else jnp.concatenate([x, y])
    if pooled.shape[0] < 2:
        raise ValueError(f"median_heuristic: {pooled.shape[0]} point; give at least two.")
    centred = pooled - jnp.mean(pooled, axis=0)[None]
    pairs = np.triu_indices(pooled.shape[0], 1)
    return jnp.sqrt(jnp.median(squared_distances(centred, transpose(centred))[pairs]))
