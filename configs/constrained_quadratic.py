"""½ Σ λ_i x_i² in a ball or a box about zero, less its least value there: the boundary holds the minimisers."""

import jax.numpy as jnp
import numpy as np

from pwgf_jax.problems import CriticalPoint, Problem


def quadratic(key, dtype, *, eigenvalues: list[float], radius: float, domain: str):
    """Saddles inside (the origin) and on the boundary (an end of the second axis, another is lower)."""
    del key
    values = jnp.asarray(eigenvalues, dtype)  # ascending; those of a box are minimised axis by axis
    held = np.minimum(eigenvalues, 0)
    least = radius**2 / 2 * float(held.min() if domain == "ball" else held.sum())
    zero = jnp.zeros(values.size, dtype)

    def value(x):
        return jnp.sum(values * x**2) / 2 - least

    def at(name, x, is_minimum=False):
        level = float(np.sum(np.asarray(eigenvalues) * np.asarray(x, float) ** 2) / 2 - least)
        return CriticalPoint(name, x, level, eigenvalues[0], np.asarray(eigenvalues), is_minimum)

    origin, edge = at("origin", zero), at("edge", zero.at[1].set(radius))
    best = zero.at[0].set(radius) if domain == "ball" else radius * (values < 0).astype(dtype)
    return Problem(value, lambda key: zero, (origin, edge), at("minimum", best, True))
