r"""Objectives that a symmetry leaves as they are, and what curvature they have across it.

Where F is constant along the orbits of a group, a minimum is an orbit of minima, and the Hessian has a zero there for
every generator. Second-order conditions that are sufficient ask for positive curvature across the orbit alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from pwgf_jax import trees
from pwgf_jax.calculus import HessianOperator, Part
from pwgf_jax.empirical import hessian
from pwgf_jax.measures import inner, norm
from pwgf_jax.objective import Objective, Point, coordinates

__all__ = ["Pinned", "pinned"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pinned:
    r"""An objective, held along some fields: its full Hessian is :math:`H + s\sum_k q_k\otimes q_k`.

    Args:
        objective: a functional, a loss, or an :class:`pwgf_jax.empirical.Empirical` of either.
        fields: q_k, orthonormal, stacked along a leading axis.
        strength: s > 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from pwgf_jax.measures import traceable
        >>> valley = Pinned(traceable(lambda x: x[0] ** 2), jnp.eye(2)[1:], jnp.asarray(3.0))
        >>> valley.hessian(jnp.ones(2), "full")(jnp.ones(2)).tolist()
        [2.0, 3.0]
    """

    objective: Objective
    fields: PyTree
    strength: Float[Array, ""]

    def __call__(self, point: Point) -> Float[Array, ""]:
        """The value of the objective."""
        return self.objective(point)

    def hessian(self, point: Point, part: Part) -> HessianOperator:
        """The Hessian; its integral part is that of the objective."""
        of = hessian(self.objective, point, part)
        if part != "full":
            return of

        def product(v: PyTree) -> PyTree:
            along = self.strength * jax.vmap(lambda q: inner(point, q, v))(self.fields)
            return jax.tree.map(lambda Hv, q: Hv + jnp.tensordot(along, q, 1), of(v), self.fields)

        return HessianOperator(product, of.mu)


def pinned(F: Objective, point: Point, symmetries: Sequence[PyTree], delta: float, key: Array) -> Pinned:
    """An objective held along its symmetries, so that what curvature it has across them can be told from zero.

    Args:
        F: a functional, a loss, or an :class:`pwgf_jax.empirical.Empirical` of either.
        point: the measure or the parameters.
        symmetries: fields like the points or the parameters, along which F is constant.
        delta: curvature that counts.
        key: typed random key.

    Returns:
        A :class:`Pinned`; it is held more strongly than the curvature across the symmetries is at its least.

    Raises:
        ValueError: if a field is not like the points, is zero, or there is curvature along it.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pwgf_jax.measures import traceable
        >>> ring, x = traceable(lambda x: (jnp.sum(x**2) - 1) ** 2), jnp.array([1.0, 0.0])
        >>> pinned(ring, x, [jnp.array([0.0, 2.0])], 0.1, jax.random.key(0)).fields.tolist()
        [[0.0, 1.0]]
    """
    at = coordinates(point)
    curvature_along = jax.jit(lambda F, point, v: inner(point, v, hessian(F, point)(v)))
    basis: list[PyTree] = []
    for k, symmetry in enumerate(symmetries):
        given = _like(symmetry, at, k)
        across = _across(point, basis, given)
        length = norm(point, across)
        if not length > 1e3 * jnp.finfo(length.dtype).eps * norm(point, given):
            raise ValueError(f"symmetries[{k}] is zero or made of those before it; leave it out.")
        unit = jax.tree.map(lambda v, length=length: v / length, across)
        curvature = float(curvature_along(F, point, unit))
        if not abs(curvature) <= delta:
            raise ValueError(
                f"symmetries[{k}]: the objective has curvature {curvature:.3g} along it, more than delta = {delta:g}; "
                "give a field along which it is constant."
            )
        basis.append(unit)
    v = _across(point, basis, trees.white(key, at))
    strength = jnp.maximum(curvature_along(F, point, v) / inner(point, v, v), 0) + delta
    return Pinned(F, jax.tree.map(lambda *fields: jnp.stack(fields), *basis), strength)


def _like(symmetry: PyTree, at: PyTree, k: int) -> PyTree:
    given, wanted = ([jnp.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (symmetry, at))
    if given != wanted or jax.tree.structure(symmetry) != jax.tree.structure(at):
        raise ValueError(f"symmetries[{k}]: leaves of shapes {given}; give a field like the point, {wanted}.")
    return jax.tree.map(lambda v, x: jnp.asarray(v, x.dtype), symmetry, at)


def _across(point: Point, basis: list[PyTree], v: PyTree) -> PyTree:
    for q in (*basis, *basis):  # once is not orthogonal enough
        along = inner(point, q, v)
        v = jax.tree.map(lambda v, q, along=along: v - along * q, v, q)
    return v
