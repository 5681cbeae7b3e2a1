"""Targets of functionals that compare a measure with a sample or another measure."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from pwgf_jax.measures import Particles

__all__ = ["as_target", "matched", "rows"]


def as_target(target: Any, caller: str) -> Particles:
    """A target as a measure: a sample (M, d) becomes the uniform one on its points.

    Raises:
        ValueError: if it is neither a measure nor such a sample.

    Example:
        >>> as_target(jnp.zeros((4, 2)), "mmd").size
        4
    """
    if isinstance(target, Particles):
        return target
    target = jnp.asarray(target)
    if target.ndim != 2 or target.shape[0] == 0 or target.shape[1] == 0:
        raise ValueError(f"{caller}: the target has shape {target.shape}; give a sample (M, d) with M, d >= 1.")
    return Particles.uniform(target)


def matched(target: Particles, points: PyTree, caller: str) -> Particles:
    """The target in the dtype of points of its own kind.

    Raises:
        ValueError: if they are of another kind.

    Example:
        >>> matched(as_target(jnp.zeros((4, 2)), "mmd"), jnp.zeros((3, 2)), "mmd").size
        4
    """
    found, expected = (jax.tree.map(lambda leaf: leaf.shape[1:], p) for p in (points, target.points))
    if found != expected:
        raise ValueError(f"{caller}: a particle has shape {found} but a target point {expected}; give both one shape.")
    dtype = jax.tree.leaves(points)[0].dtype
    return jax.tree.map(lambda leaf: leaf.astype(dtype), target)


def rows(points: PyTree) -> Float[Array, "n d"]:
    """The points as rows of coordinates.

    Example:
        >>> rows({"a": jnp.ones((2, 1)), "w": jnp.ones((2, 3, 5))}).shape
        (2, 16)
    """
    leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(points)]
    return leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves, axis=1)
