"""The potential energy ∫V dμ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
from jaxtyping import Array, Float, PyTree

from pwgf_jax.functionals.base import Combinable
from pwgf_jax.measures import Particles, traceable

__all__ = ["Potential", "potential"]


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
