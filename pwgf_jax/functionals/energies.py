r"""Energies of a measure: of a potential, ∫V dμ, of an interaction, ½∬W dμ dμ, and the entropy of what it samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from pwgf_jax.functionals.base import Combinable
from pwgf_jax.measures import Particles, traceable

__all__ = ["NEIGHBOUR", "Interaction", "Potential", "entropy", "interaction", "potential"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class Potential(Combinable):
    """The functional made by :func:`potential`.

    Example:
        >>> import jax.numpy as jnp
        >>> float(potential(jnp.sum)(Particles.uniform(jnp.ones((2, 3)))))
        3.0
    """

    energy: Callable[[PyTree], Float[Array, ""]]

    def potential(self, points: PyTree) -> Float[Array, " n"]:
        """The energies V(x_i)."""
        return jax.vmap(self.energy)(points)

    def __call__(self, mu: Particles) -> Float[Array, ""]:
        """The value F(μ)."""
        return mu.weights @ self.potential(mu.points)


def potential(energy: Callable[[PyTree], Float[Array, ""]]) -> Potential:
    r"""The potential energy :math:`F(\mu)=\int V\,d\mu`.

    Its gradient is ∇V, its integral Hessian zero and its local Hessian ∇²V: what H_μ cannot see.

    Args:
        energy: V, a scalar function of one point.

    Returns:
        A functional in linear form.

    Example:
        >>> import jax.numpy as jnp
        >>> F = potential(lambda x: 0.5 * jnp.sum(x**2))
        >>> float(F(Particles.uniform(jnp.ones((4, 2)))))
        1.0
    """
    return Potential(traceable(energy))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class Interaction(Combinable):
    """The functional made by :func:`interaction`.

    Example:
        >>> import jax.numpy as jnp
        >>> float(interaction(jnp.dot)(Particles.uniform(jnp.ones((2, 3)))))
        1.5
    """

    energy: Callable[[PyTree, PyTree], Float[Array, ""]]

    def interaction(self, points: PyTree, others: PyTree) -> Float[Array, "n m"]:
        """The symmetric part of W for every pair."""

        def pair(x: PyTree, y: PyTree) -> Float[Array, ""]:
            return (self.energy(x, y) + self.energy(y, x)) / 2

        return jax.vmap(lambda x: jax.vmap(lambda y: pair(x, y))(others))(points)

    def external(self, points: PyTree) -> Float[Array, " n"]:
        """No external potential."""
        leaf = jax.tree.leaves(points)[0]
        return jnp.zeros(leaf.shape[0], leaf.dtype)

    def __call__(self, mu: Particles) -> Float[Array, ""]:
        """The value F(μ)."""
        return mu.weights @ self.interaction(mu.points, mu.points) @ mu.weights / 2


def interaction(energy: Callable[[PyTree, PyTree], Float[Array, ""]]) -> Interaction:
    r"""The interaction energy :math:`F(\mu)=\frac12\iint W(x,y)\,\mu(dx)\mu(dy)`, self-interaction included.

    Only the symmetric part of W enters. The gradient is :math:`\int\nabla_xW(x,y)\,\mu(dy)`, the integral Hessian's
    kernel :math:`\nabla_x\nabla_yW`. Costs N² pairs.

    Args:
        energy: W, a scalar function of two points.

    Returns:
        A functional in pairwise form.

    Example:
        >>> import jax.numpy as jnp
        >>> F = interaction(lambda x, y: jnp.sum((x - y) ** 2))
        >>> float(F(Particles.uniform(jnp.array([[0.0], [2.0]]))))  # the variance
        1.0
    """
    return Interaction(traceable(energy))


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
