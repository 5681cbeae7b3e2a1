r"""The entropy of what particles sample, for free energies :math:`F(\mu)-\tau S(\mu)`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from pwgf_jax.measures import Particles

__all__ = ["NEIGHBOUR", "entropy"]

NEIGHBOUR = 3
"""Of each particle, whose distance tells the density: the more particles have to be there."""


def entropy(mu: Particles, neighbour: int = NEIGHBOUR) -> Float[Array, ""]:
    r"""An estimate of the differential entropy :math:`-\int\rho\log\rho` from distances to the k-th nearest neighbour.

    :math:`\psi(N)-\psi(k)+\log V_d+\frac dN\sum_i\log r_k(x_i)`, V_d the volume of the unit ball. Costs all pairs. Its
    spread falls like N^(-1/2), its bias like N^(-1/d) where the density ends or bends: for few dimensions only.

    Args:
        mu: particles of equal weight.
        neighbour: k.

    Returns:
        The estimate [nats].

    Raises:
        ValueError: if there are not more than k particles.

    Example:
        >>> import jax
        >>> mu = Particles.uniform(jax.random.uniform(jax.random.key(0), (2000, 1)))
        >>> abs(float(entropy(mu))) < 0.1
        True

    References:
        Kozachenko, Leonenko, Problems of Information Transmission 23 (1987); k-th neighbour: Singh et al., 2003.
    """
    if not 1 <= neighbour < mu.size:
        raise ValueError(f"entropy: neighbour={neighbour} of {mu.size} particles; give 1 to {mu.size - 1}.")
    x = jax.vmap(lambda point: ravel_pytree(point)[0])(mu.points)
    dimension = x.shape[1]

    def distance(point: Array) -> Array:
        squares = jnp.sum((x - point[None]) ** 2, axis=1)
        return jnp.sqrt(-jax.lax.top_k(-squares, neighbour + 1)[0][-1])

    count, half = jnp.asarray(mu.size, x.dtype), jnp.asarray(dimension / 2, x.dtype)
    ball = half * jnp.log(jnp.asarray(jnp.pi, x.dtype)) - jax.scipy.special.gammaln(half + 1)
    digamma = jax.scipy.special.digamma
    spread = dimension * jnp.mean(jnp.log(jax.lax.map(distance, x, batch_size=64)))
    return digamma(count) - digamma(jnp.asarray(neighbour, x.dtype)) + ball + spread
