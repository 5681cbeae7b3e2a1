"""The octopus: a chain of saddles that gradient descent takes exponentially long to pass."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pwgf_jax.problems.base import CriticalPoint, Problem, around

__all__ = ["octopus"]


def octopus(
    dimension: int,
    *,
    smoothness: float = float(np.e),
    gamma: float = 1.0,
    tau: float = float(np.e),
    scale: float = 1e-3,
    dtype: Any = jnp.float32,
) -> Problem:
    r"""The octopus of Du et al.: saddle k has its first k coordinates at ±4τ and the rest at 0, for k = 0, …, d − 1.

    With i the first index with :math:`|x_i|\le2\tau` the function is quadratic about 4τ in the coordinates before i, a
    descending valley in coordinate i that turns coordinate i + 1 from curvature 2L to −2γ on its way, and quadratic
    about 0 after it. It is C² on :math:`|x_j|\le6\tau`. Saddle k has f = −kν, curvature −2γ in coordinate k and 2L
    in the others; the :math:`2^d` minima :math:`|x_j|=4\tau` have f = −dν, :math:`\nu=\tau^2(37L+13\gamma)/6`.

    Args:
        dimension: d ≥ 1.
        smoothness: L.
        gamma: γ, 0 < γ ≤ L.
        tau: τ, width of an arm; the paper asks for τ ≥ e.
        scale: standard deviation of the start about the first saddle.
        dtype: of the parameters.

    Returns:
        The problem.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> problem = octopus(3)
        >>> len(problem.saddles), round(float(problem.minimum.value), 2)
        (3, -419.61)

    References:
        Du, Jin, Lee, Jordan, Póczos, Singh, arXiv:1705.10412, Sec. 4 and App. B; the compact form is ours.
    """
    if dimension < 1 or not 0 < gamma <= smoothness or not tau > 0:
        raise ValueError(
            f"octopus: dimension={dimension}, smoothness={smoothness}, gamma={gamma}, tau={tau}; "
            "need dimension >= 1, 0 < gamma <= smoothness and tau > 0."
        )
    L, nu = smoothness, tau**2 * (37 * smoothness + 13 * gamma) / 6

    def descent(y: Array) -> Array:
        u = (y - tau) / tau
        series = -gamma - 2 * gamma * u - gamma * u**2 + (-14 * L + 10 * gamma) / 3 * u**3
        return tau**2 * (series + (10 * L - 6 * gamma) / 4 * u**4)

    def turning(y: Array) -> Array:
        s = (y - 2 * tau) / tau
        return -gamma - (L + gamma) * (10 * s**3 + 15 * s**4 + 6 * s**5)

    def value(x: Float[Array, " d"]) -> Float[Array, ""]:
        size = jnp.abs(x)
        passed = jnp.cumprod(jnp.where(size > 2 * tau, 1, 0)).astype(x.dtype)
        ones = jnp.ones((1,), x.dtype)
        reached = jnp.concatenate([ones, passed[:-1]])  # coordinates up to and with the current one
        current = reached - passed
        following = jnp.concatenate([jnp.zeros((1,), x.dtype), current[:-1]])
        # Beyond the last arm nothing is current; its size is then put where the formulas are harmless.
        arm = jnp.sum(current * size) + tau * (1 - jnp.sum(current))
        near = arm <= tau
        along = jnp.where(near, -gamma * arm**2, descent(arm)) * jnp.sum(current)
        bend = jnp.where(near, L, turning(arm))
        before = L * jnp.sum(passed * (size - 4 * tau) ** 2) - nu * jnp.sum(passed)
        after = jnp.sum(((1 - reached - following) * L + following * bend) * x**2)
        return before + along + after

    zero = jnp.zeros(dimension, dtype)

    def saddle(k: int) -> CriticalPoint:
        spectrum = np.sort(np.where(np.arange(dimension) == k, -2 * gamma, 2 * L))
        return CriticalPoint(f"saddle {k}", zero.at[:k].set(4 * tau), -k * nu, spectrum[0], spectrum)

    bowl = np.full(dimension, 2 * L)
    minimum = CriticalPoint("minimum", zero + 4 * tau, -dimension * nu, 2 * L, bowl, True)
    return Problem(value, around(zero, scale), tuple(saddle(k) for k in range(dimension)), minimum)
