r"""Functions of the integral Hessian of least squares, by the small matrix of the outputs."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from pwgf_jax.forms import Functional, least_squares
from pwgf_jax.measures import Field, Particles, per_particle
from pwgf_jax.tridiagonal import eigh

__all__ = ["gram_function"]


def gram_function(F: Functional, mu: Particles, fn: Callable[[Array], Array]) -> Field:
    r"""φ(H_μ)∇F for least squares on b outputs, by the b × b Gram matrix of feature gradients.

    For :math:`F=\frac12|r(\mu)|^2+\int V\,d\mu` with r affine in μ, J its derivative and :math:`G=JJ^\top`:
    :math:`\nabla F=J^\top r+\nabla V` and :math:`H_\mu=J^\top J`, since V is in the local part alone. So
    :math:`\phi(H_\mu)\nabla F=J^\top\phi(G)r+\phi(0)\nabla V+J^\top\frac{\phi(G)-\phi(0)}GJ\nabla V`. Exact; costs
    b²·N·d and holds b·N·d numbers.

    Args:
        F: a functional of least squares on few data or on a batch, plus any potentials, see
            :func:`pwgf_jax.forms.least_squares`.
        mu: the measure.
        fn: φ.

    Returns:
        A field on ``mu``.

    Raises:
        ValueError: if F is not of that kind.

    Example:
        >>> from pwgf_jax.functionals import mean_field_regression
        >>> F = mean_field_regression(jnp.ones((2, 3)), jnp.ones((2, 1))).confined(0.1)
        >>> gram_function(F, Particles.uniform(jnp.ones((4, 4))), lambda t: 1 / (t + 1)).shape
        (4, 4)

    References:
        Lascu, Suzuki, arXiv:2605.17963, after its abstract; the identity is that of kernel ridge regression.
    """
    residuals, potential = least_squares(F)
    ones = jnp.ones_like(mu.weights)
    jacobian = jax.jacrev(lambda points: residuals(Particles(points, ones)))(mu.points)
    residual = residuals(mu)

    def product(leaf: Array, other: Array) -> Array:
        """Rows of J times those of another, in L²(μ)."""
        flat, rows = (each.reshape(-1, mu.size, leaf[0, 0].size) for each in (leaf, other))
        return jnp.einsum("ind,n,jnd->ij", flat, mu.weights, rows, precision="highest")

    def outputs(fields: PyTree) -> Array:
        return reduce(operator.add, jax.tree.leaves(jax.tree.map(product, jacobian, fields)))

    values, vectors = eigh(outputs(jacobian))
    values = jnp.maximum(values, 0)
    factors = fn(values)
    dual = vectors @ (factors * (residual @ vectors))
    field = jax.tree.map(jnp.zeros_like, mu.points)
    if potential is not None:
        slopes = jax.grad(lambda points: jnp.sum(potential(points)))(mu.points)
        at_zero = fn(jnp.zeros_like(values))[0]
        # Where G is zero, J∇V is too; what it is there by rounding is not to be divided by rounding.
        seen = values > values.size * jnp.finfo(values.dtype).eps * jnp.max(values)
        quotients = jnp.where(seen, (factors - at_zero) / jnp.where(seen, values, 1), 0)
        dual += vectors @ (quotients * (outputs(slopes)[:, 0] @ vectors))
        field = jax.tree.map(lambda leaf: at_zero * leaf, slopes)
    present = (mu.weights > 0).astype(mu.weights.dtype)
    return jax.tree.map(
        lambda leaf, rest: per_particle(present, rest) * (rest + jnp.tensordot(dual, leaf, axes=1)), jacobian, field
    )
