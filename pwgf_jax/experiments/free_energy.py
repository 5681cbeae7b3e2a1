r"""What mean-field Langevin descends, :math:`F(\mu)+\tau\int\rho\log\rho`: an F that confines, and −∫ρ log ρ."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from pwgf_jax.calculus import MomentForm, PairwiseForm
from pwgf_jax.measures import Particles

__all__ = ["NEIGHBOUR", "Confined", "as_pytree", "confined", "entropy"]

NEIGHBOUR = 3
"""Of each particle, whose distance tells the density: the more particles have to be there."""


@jax.tree_util.register_static
@dataclass(frozen=True, eq=False)
class _Opaque:
    """A callable that jax cannot look into, as a pytree without leaves: with all that the callable offers."""

    function: Any

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "function":
            raise AttributeError(name)
        return getattr(self.function, name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Opaque) and self.function is other.function

    def __hash__(self) -> int:
        return id(self.function)


def as_pytree(F: Any) -> Any:
    """A functional that can be a part of another one: itself, or a plain function in a pytree without leaves.

    Example:
        >>> jax.tree.leaves(as_pytree(lambda mu: mu.weights[0]))
        []
    """
    return _Opaque(F) if jax.tree_util.all_leaves([F]) else F


def _half_squares(points: Any) -> Float[Array, " n"]:
    """|x|²/2 of every particle."""
    rows = (jnp.sum(leaf.reshape(leaf.shape[0], -1) ** 2, axis=1) for leaf in jax.tree.leaves(points))
    return reduce(operator.add, rows) / 2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Confined:
    r"""A functional with a quadratic confinement, made by :func:`confined`.

    Args:
        base: F.
        strength: λ [units of F per length²].

    Example:
        >>> import jax.numpy as jnp
        >>> F = confined(lambda mu: jnp.sum(mu.weights), 2.0)
        >>> F.strength, F.base(Particles.uniform(jnp.ones((4, 3)))).item()
        (2.0, 1.0)
    """

    base: Any
    strength: float = field(metadata={"static": True})

    def __call__(self, mu: Particles) -> Float[Array, ""]:
        """The value."""
        return self.base(mu) + self.strength * (mu.weights @ _half_squares(mu.points))

    @property
    def batch(self) -> Callable[[Array, int], Confined]:
        """The same on a minibatch; missing where F offers none."""
        draw = self.base.batch
        return lambda key, size: replace(self, base=as_pytree(draw(key, size)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ConfinedMoments(Confined):
    """The same for a functional of moment form: the second moment is one more."""

    def moments(self, mu: Particles) -> Any:
        """Those of F, and half the second moment."""
        return self.base.moments(mu), mu.weights @ _half_squares(mu.points)

    def of_moments(self, moments: Any) -> Float[Array, ""]:
        """F of its own, and the confinement."""
        return self.base.of_moments(moments[0]) + self.strength * moments[1]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ConfinedPairs(Confined):
    """The same for a functional of pairwise form: the confinement is an external potential."""

    def interaction(self, points: Any, others: Any) -> Any:
        """That of F."""
        return self.base.interaction(points, others)

    def external(self, points: Any) -> Float[Array, " n"]:
        """That of F, and the confinement."""
        return self.base.external(points) + self.strength * _half_squares(points)


def confined(F: Any, strength: float) -> Confined:
    r"""A functional with a quadratic confinement, :math:`F(\mu)+\frac\lambda2\int|x|^2\,d\mu`, of the form that F has.

    Args:
        F: the functional.
        strength: λ [units of F per length²].

    Returns:
        The functional, in moment or pairwise form if F is.

    Example:
        >>> import jax.numpy as jnp
        >>> float(confined(lambda mu: jnp.sum(mu.weights), 2.0)(Particles.uniform(jnp.ones((4, 3)))))
        4.0
    """
    kind = ConfinedMoments if isinstance(F, MomentForm) else ConfinedPairs if isinstance(F, PairwiseForm) else Confined
    return kind(as_pytree(F), strength)


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
