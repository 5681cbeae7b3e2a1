r"""Probability measures carried by particles, and the geometry of L²(μ).

A measure :math:`\mu = \sum_i w_i \delta_{x_i}` is a :class:`Particles`. A *field* on it (a gradient, a
perturbation) is a pytree shaped like its points; :func:`inner` and :func:`norm` are those of
:math:`L^2(\mu)`, so they do not change when every particle is split in two.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Shaped

from pwgf_jax import trees

__all__ = ["Field", "Isometry", "Particles", "inner", "norm", "norm_squared"]

Field: TypeAlias = PyTree[Float[Array, "n ..."]]
"""A vector field on a measure: one vector per particle, structured like the points."""


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, eq=False, repr=False)
class Particles:
    r"""A finite measure :math:`\mu = \sum_{i=1}^N w_i\,\delta_{x_i}`, as a pytree.

    Args:
        points: the positions :math:`x_i`: an array (N, d), or any pytree of floating arrays whose leaves
            share the leading axis N, such as ``{"a": (N, k), "w": (N, l)}``.
        weights: shape (N,). A probability measure has non-negative weights with sum one;
            :func:`pwgf_jax.run` asks for that, the class itself also carries signed measures.

    Raises:
        TypeError: if a leaf is not a floating array.
        ValueError: if the leaves and the weights do not share the leading axis.

    Example:
        >>> import jax.numpy as jnp
        >>> mu = Particles.uniform(jnp.zeros((4, 2)))
        >>> mu.size, mu.weights.tolist()
        (4, [0.25, 0.25, 0.25, 0.25])
        >>> Particles.uniform(jnp.zeros((4, 2), jnp.float32))
        Particles(points=float32[4, 2], weights=float32[4])
    """

    points: PyTree
    weights: Any

    def __post_init__(self) -> None:
        _check_floating("weights", self.weights)
        count = self.weights.shape
        if len(count) != 1:
            raise ValueError(f"Particles: weights have shape {count}; give one weight per particle, shape (N,).")
        _check_points(self.points, count[0])

    @classmethod
    def uniform(cls, points: PyTree) -> Particles:
        """The empirical measure of ``points``: weight 1/N each, in the points' dtype. A bare vector is refused.

        Example:
            >>> import jax.numpy as jnp
            >>> Particles.uniform({"a": jnp.ones((2, 3)), "w": jnp.ones((2, 5))}).size
            2
        """
        points = jax.tree.map(jnp.asarray, points)
        leaves = jax.tree.leaves(points)
        if leaves and all(leaf.ndim == 0 for leaf in leaves):
            raise ValueError(
                f"Particles.uniform: the points are {len(leaves)} single numbers; give an array, "
                "jnp.asarray([[0.0, 1.0], ...]) of shape (N, d), and not lists of numbers."
            )
        if not leaves or jnp.ndim(leaves[0]) == 0 or leaves[0].shape[0] == 0:
            raise ValueError("Particles.uniform: no particles; give an array (N, d) with N >= 1, or a pytree of such.")
        if leaves[0] is points and points.ndim == 1:
            raise ValueError(
                f"Particles.uniform: the points are a vector of {points.size} numbers; give x[:, None] for that many "
                "particles on the line, x[None] for one particle, or, if x are the parameters of a loss, x itself to "
                "what takes losses: certify(value_fn, x, ...)."
            )
        count = leaves[0].shape[0]
        _check_points(points, count)
        return cls(points, jnp.full((count,), 1 / count, jnp.result_type(*leaves)))

    @property
    def size(self) -> int:
        """The number N of particles."""
        return self.weights.shape[-1]

    def moved_to(self, points: PyTree) -> Particles:
        """The measure with the same weights on other points.

        Example:
            >>> import jax.numpy as jnp
            >>> Particles.uniform(jnp.zeros((1, 1))).moved_to(jnp.ones((1, 1))).points.tolist()
            [[1.0]]
        """
        return Particles(points, self.weights)

    def push_forward(self, displacement: Field) -> Particles:
        r"""The push-forward :math:`(\mathrm{Id}+v)_\sharp\mu`: every particle moved by its vector.

        Example:
            >>> import jax.numpy as jnp
            >>> mu = Particles.uniform(jnp.zeros((1, 2)))
            >>> mu.push_forward(jnp.array([[1.0, 2.0]])).points.tolist()
            [[1.0, 2.0]]
        """
        return self.moved_to(jax.tree.map(operator.add, self.points, displacement))

    def __repr__(self) -> str:
        def shape(leaf: Any) -> str:
            return f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "shape") else type(leaf).__name__

        return f"Particles(points={jax.tree.map(shape, self.points)}, weights={shape(self.weights)})".replace("'", "")

    # The constructor's checks are for people: inside transformations leaves may be anything.
    def tree_flatten_with_keys(self):
        """Points and weights, with their names."""
        keys = (jax.tree_util.GetAttrKey("points"), jax.tree_util.GetAttrKey("weights"))
        return tuple(zip(keys, (self.points, self.weights), strict=True)), None

    @classmethod
    def tree_unflatten(cls, _, children):
        """A measure of anything that stands for points and weights."""
        mu = object.__new__(cls)
        object.__setattr__(mu, "points", children[0])
        object.__setattr__(mu, "weights", children[1])
        return mu


def _check_points(points: PyTree, count: int) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(points):
        name = "points" + jax.tree_util.keystr(path)
        _check_floating(name, leaf)
        if jnp.ndim(leaf) == 0 or leaf.shape[0] != count:
            raise ValueError(
                f"Particles: {name} has shape {leaf.shape} but there are {count} particles; "
                "every leaf needs the particles on its first axis."
            )


def _check_floating(name: str, leaf: Any) -> None:
    if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
        kind = getattr(leaf, "dtype", type(leaf).__name__)
        raise TypeError(f"Particles: {name} is {kind}; give a floating array, e.g. jnp.asarray(x, jnp.float32).")


def check_measure(mu: Any, caller: str) -> None:
    """Refuse what is no measure, such as the points of one."""
    if not isinstance(mu, Particles):
        raise TypeError(f"{caller}: the measure is a {type(mu).__name__}; make one with Particles.uniform(points).")


def traceable(function: Callable) -> Callable:
    """The function as a pytree, so that it can cross ``jax.jit``: its arrays are leaves, plain functions static."""
    return jax.tree_util.Partial(function) if jax.tree_util.all_leaves([function]) else function


def single(dtype: Any) -> Any:
    """The dtype to sum and to compare in: the one given, float32 in the place of half precision."""
    return jnp.dtype(dtype) if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def per_particle(values: Shaped[Array, " n"], leaf: Shaped[Array, "n ..."]) -> Shaped[Array, "n ..."]:
    """One value per particle, shaped to meet a leaf of the points."""
    return values.reshape(values.shape + (1,) * (leaf.ndim - 1))


class Isometry(NamedTuple):
    r"""The map :math:`y=\sqrt w\,x` of the points x of a measure; the identity without weights.

    Args:
        weights: w (N,), or None.
        points: x, which those of weight zero keep.

    Example:
        >>> import jax.numpy as jnp
        >>> chart = Isometry(jnp.array([0.25, 0.75]), jnp.array([2.0, 4.0]))
        >>> chart.up(jnp.array([2.0, 0.0])).tolist(), chart.down(jnp.array([1.0, 0.0])).tolist()
        ([1.0, 0.0], [2.0, 0.0])
    """

    weights: Array | None
    points: PyTree

    def up(self, field: PyTree) -> PyTree:
        """√w times a field: points to coordinates, a displacement dx to dy, a Wasserstein gradient to ∂F/∂y."""
        return field if self.weights is None else _times(jnp.sqrt(self.weights), field)

    def down(self, field: PyTree) -> PyTree:
        """1/√w times a field, zero where w is: dy to dx, a Euclidean gradient ∂F/∂x to ∂F/∂y."""
        if self.weights is None:
            return field
        present = self.weights > 0
        return _times(jnp.where(present, 1 / jnp.sqrt(jnp.where(present, self.weights, 1)), 0), field)

    def of(self, function: Any) -> Any:
        """A function of the points, such as the objective, as one of y; None stays None."""
        if self.weights is None or function is None:
            return function
        present = self.weights > 0

        def of_y(y: PyTree, *rest: Any) -> Any:
            moved = jax.tree.map(
                lambda new, old: jnp.where(per_particle(present, old), new, old), self.down(y), self.points
            )
            return function(moved, *rest)

        return of_y


def _times(factor: Array, field: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: per_particle(factor, leaf).astype(leaf.dtype) * leaf, field)


def inner(mu: Particles | PyTree, u: Field | PyTree, v: Field | PyTree) -> Float[Array, ""]:
    r"""The inner product of :math:`L^2(\mu)`, :math:`\sum_i w_i \langle u_i, v_i\rangle`; Euclidean at parameters.

    Args:
        mu: the measure, or a pytree of parameters.
        u: a field on it.
        v: another one.

    Returns:
        A scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> mu = Particles.uniform(jnp.zeros((4, 2)))
        >>> float(inner(mu, jnp.ones((4, 2)), jnp.ones((4, 2))))
        2.0
    """
    if not isinstance(mu, Particles):
        return trees.inner(u, v)
    terms = jax.tree.map(lambda a, b: jnp.sum(per_particle(mu.weights, a) * a * b), u, v)
    return reduce(operator.add, jax.tree.leaves(terms))


def norm_squared(mu: Particles | PyTree, u: Field | PyTree) -> Float[Array, ""]:
    r"""The squared norm :math:`\|u\|^2_{L^2(\mu)} = \sum_i w_i |u_i|^2`.

    Example:
        >>> import jax.numpy as jnp
        >>> mu = Particles.uniform(jnp.zeros((4, 2)))
        >>> float(norm_squared(mu, 3 * jnp.ones((4, 2))))
        18.0
    """
    return inner(mu, u, u)


def norm(mu: Particles | PyTree, u: Field | PyTree) -> Float[Array, ""]:
    r"""The norm of :math:`L^2(\mu)`, :math:`\|u\|_{L^2(\mu)}`: a root mean square; Euclidean at parameters.

    Args:
        mu: the measure, or a pytree of parameters.
        u: a field on it.

    Returns:
        A non-negative scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> mu = Particles.uniform(jnp.zeros((4, 2)))
        >>> float(norm(mu, jnp.full((4, 2), 3.0) * jnp.array([1.0, 0.0])[None]))
        3.0
    """
    return jnp.sqrt(norm_squared(mu, u))
