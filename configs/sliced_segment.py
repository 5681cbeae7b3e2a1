"""A segment that is critical for the sliced Wasserstein distance to a law in the plane, and that law."""

import jax.numpy as jnp


def disc(key, dtype, points: int = 2500):
    """The law whose projections are all uniform on [-1, 1], as a mirror-symmetric grid of rings of equal mass."""
    del key
    side = round(points**0.5)
    u = (jnp.arange(side, dtype=dtype) + 0.5) / side
    radius, angle = jnp.sqrt(1 - (1 - u) ** 2), 2 * jnp.pi * u
    x, y = (radius[:, None] * each[None] for each in (jnp.cos(angle), jnp.sin(angle)))
    return jnp.stack([x.ravel(), y.ravel()], axis=1)


def segment(key, particles, data, dtype):
    """Equally spaced points of [-4/pi, 4/pi] x {0}."""
    del key, data
    x = jnp.linspace(-4 / jnp.pi, 4 / jnp.pi, particles, dtype=dtype)
    return jnp.stack([x, jnp.zeros_like(x)], axis=1)
