r"""Laws in the plane or beyond to be approximated: each has samples for an MMD, and an energy −log π for scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pwgf_jax import arguments

__all__ = ["Law", "Normal", "ThreeRings"]


@runtime_checkable
class Law(Protocol):
    """A probability law: it is called for its energy, and has samples."""

    def sample(self, key: Array, count: int, dtype: Any) -> Array:
        """Independent points, shape (count, d)."""
        ...

    def __call__(self, x: Any) -> Array:
        """The energy −log π of one point, up to a constant."""
        ...


@dataclass(frozen=True)
class Normal:
    """The Gaussian law N(mean, scale² I).

    Args:
        dimension: d.
        mean: of every coordinate.
        scale: standard deviation of every coordinate.

    Raises:
        ValueError: if dimension or scale is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> float(Normal(scale=2.0)(jnp.array([2.0, 2.0])))
        1.0
    """

    dimension: int = 2
    mean: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        arguments.whole("Normal: dimension", self.dimension)
        arguments.positive("Normal: scale", float(self.scale))

    def sample(self, key: Array, count: int, dtype: Any) -> Array:
        """Independent points."""
        return self.mean + self.scale * jax.random.normal(key, (count, self.dimension), dtype)

    def __call__(self, x: Any) -> Array:
        """The energy of one point, in any number of dimensions."""
        _check_point("gaussian", x, None)
        return jnp.sum(((x - self.mean) / self.scale) ** 2) / 2


@dataclass(frozen=True)
class ThreeRings:
    r"""Three rings of equal mass in the plane, :math:`\pi\propto\sum_ke^{-(|x-c_k|-r)^2/2w^2}`, on a triangle.

    Args:
        radius: r.
        width: w, well below r.

    Raises:
        ValueError: if a number is not positive, or the width above half of the radius.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> rings = ThreeRings(width=0.01)
        >>> points = rings.sample(jax.random.key(0), 100, jnp.float32)
        >>> distances = jnp.linalg.norm(points[:, None] - rings.centres(jnp.float32)[None], axis=-1)
        >>> bool(jnp.all(jnp.min(jnp.abs(distances - 1), axis=1) < 0.05))
        True
    """

    radius: float = 1.0
    width: float = 0.1

    def __post_init__(self) -> None:
        arguments.all_positive("ThreeRings", radius=float(self.radius), width=float(self.width))
        if self.width > self.radius / 2:
            raise ValueError(f"ThreeRings: width={self.width}; give at most half of the radius, {self.radius / 2}.")

    def centres(self, dtype: Any) -> Array:
        """The centres, 2.5 radii apart."""
        angles = jnp.pi * (jnp.asarray([1.5, 3.5, 5.5], dtype) / 3)
        return jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1) * (2.5 * self.radius / 3**0.5)

    def sample(self, key: Array, count: int, dtype: Any) -> Array:
        """Independent points."""
        ring_key, angle_key, width_key, side_key = jax.random.split(key, 4)
        angle = jax.random.uniform(angle_key, (count,), dtype, maxval=2 * jnp.pi)
        # In the plane there is more room outside of a circle than inside: the sign carries that factor ρ.
        deviation = self.width * jnp.abs(jax.random.normal(width_key, (count,), dtype))
        outside = jax.random.uniform(side_key, (count,), dtype) < (1 + deviation / self.radius) / 2
        distance = self.radius + jnp.where(outside, deviation, -deviation)
        centre = self.centres(dtype)[jax.random.randint(ring_key, (count,), 0, 3)]
        return centre + distance[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)

    def __call__(self, x: Any) -> Array:
        """The energy of one point."""
        _check_point("three_rings", x, 2)
        gaps = x[None] - self.centres(x.dtype)
        distances = jnp.sqrt(jnp.sum(gaps**2, axis=1) + jnp.finfo(x.dtype).eps)  # no kink at a centre
        return -jax.nn.logsumexp(-(((distances - self.radius) / self.width) ** 2) / 2)


def _check_point(law: str, x: Any, dimension: int | None) -> None:
    shape = getattr(x, "shape", None)
    if shape is None or len(shape) != 1 or dimension not in (None, shape[0]):
        given = f"a point of shape {shape}" if shape is not None else "a particle that is a network or the like"
        wanted = "points (d,)" if dimension is None else f"points ({dimension},)"
        raise ValueError(f"{law}: given {given}; this energy is of {wanted}.")
