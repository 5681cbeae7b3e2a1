"""The interaction energy ½∬W dμ dμ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from pwgf_jax.functionals.base import Combinable
from pwgf_jax.measures import Particles, traceable

__all__ = ["Interaction", "interaction"]


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
