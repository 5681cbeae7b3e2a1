"""Seeds and particles over the devices of a mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from pwgf_jax.measures import Particles

__all__ = [
    "PARTICLE",
    "SEED",
    "Batching",
    "automatic",
    "batched",
    "check_mesh",
    "divisible",
    "row_sharding",
    "shard_particles",
    "spread",
    "within",
]

Batching: TypeAlias = Literal["auto", "map", "vmap", "shard"]

SEED, PARTICLE = "seed", "particle"
"""Names of the axes of a mesh."""


def check_mesh(mesh: Mesh) -> Mesh:
    """A mesh for seeds and particles, its axes automatic: what a functional does not say, the compiler decides.

    Args:
        mesh: with an axis "seed", an axis "particle", or both.

    Returns:
        The same devices in the same order.

    Raises:
        ValueError: if it has another axis.

    Example:
        >>> check_mesh(jax.make_mesh((1,), ("data",)))
        Traceback (most recent call last):
        ...
        ValueError: mesh: axes ('data',); give jax.make_mesh((s, p), ("seed", "particle")), or one of the two.
    """
    if not set(mesh.axis_names) <= {SEED, PARTICLE}:
        raise ValueError(
            f'mesh: axes {mesh.axis_names}; give jax.make_mesh((s, p), ("seed", "particle")), or one of the two.'
        )
    return Mesh(mesh.devices, mesh.axis_names)


def batched(function: Callable[..., PyTree], batching: Batching, mesh: Mesh | None = None) -> Callable[..., PyTree]:
    """The function over a leading seed axis of all its arguments.

    ``"map"`` runs seed after seed, each with all threads; ``"vmap"`` all at once; ``"shard"`` spreads them over the
    devices, mapped on CPU and vmapped on accelerators. ``"auto"`` shards where there are several devices, else maps
    on CPU (vmap over seeds costs 2x there: the working set leaves the cache) and vmaps on accelerators.

    Args:
        function: of arguments that belong to one seed.
        batching: one of the four.
        mesh: whose axis "seed" the seeds are spread over, if they are; all devices if omitted.

    Returns:
        The function of the same arguments with a leading seed axis.

    Raises:
        ValueError: if ``batching`` is none of the four.

    Example:
        >>> import jax.numpy as jnp
        >>> batched(lambda x: 2 * x, "map")(jnp.arange(3)).tolist()
        [0, 2, 4]
    """
    if batching not in ("auto", "map", "vmap", "shard"):
        raise ValueError(f'sweep: batching={batching!r}; choose "auto", "map", "vmap" or "shard".')
    on_cpu = jax.default_backend() == "cpu"
    if batching == "auto":
        several = jax.device_count() > 1 if mesh is None else SEED in mesh.axis_names
        batching = "shard" if several else "map" if on_cpu else "vmap"

    def mapped(*arguments: PyTree) -> PyTree:
        return jax.lax.map(lambda one: function(*one), arguments)

    if batching == "map":
        return mapped
    if batching == "vmap":
        return jax.vmap(function)
    inner = mapped if on_cpu else jax.vmap(function)
    over = Mesh(np.asarray(jax.devices()), (SEED,)) if mesh is None else mesh
    spec = PartitionSpec(SEED)
    # Particles may be spread within a seed: that axis is the compiler's.
    spread_over = jax.shard_map(inner, mesh=over, in_specs=spec, out_specs=spec, axis_names={SEED}, check_vma=False)

    def sharded(*arguments: PyTree) -> PyTree:
        seeds = jax.tree.leaves(arguments)[0].shape[0]
        missing = -seeds % over.shape[SEED]
        # Seeds that only fill the last device up repeat the last one; their results are dropped.
        padded = jax.tree.map(lambda x: jnp.concatenate([x, jnp.repeat(x[-1:], missing, axis=0)]), arguments)
        return jax.tree.map(lambda x: x[:seeds], spread_over(*padded))

    return sharded


def divisible(mu: Particles, parts: int) -> Particles:
    """The measure with as many particles as can be divided evenly: the last one is repeated, with weight zero.

    They are no part of the measure: no field sees them, and none moves them.

    Args:
        mu: the measure.
        parts: how many equal parts there will be.

    Returns:
        The measure, itself if nothing is missing.

    Example:
        >>> import jax.numpy as jnp
        >>> divisible(Particles.uniform(jnp.ones((3, 2))), 2).weights.round(2).tolist()
        [0.33, 0.33, 0.33, 0.0]
    """
    missing = -mu.size % parts
    if not missing:
        return mu
    points = jax.tree.map(lambda leaf: jnp.concatenate([leaf, jnp.repeat(leaf[-1:], missing, axis=0)]), mu.points)
    return Particles(points, jnp.pad(mu.weights, (0, missing)))


Tree = TypeVar("Tree")
Rows: TypeAlias = NamedSharding | PartitionSpec | None


def spread(tree: PyTree, size: int, sharding: Rows) -> PyTree:
    """What a run holds, with everything that has a row for each particle spread over the devices; inside ``jit``.

    Args:
        tree: a state, or a measure.
        size: how many particles there are.
        sharding: of rows, or None for no change.

    Returns:
        The same values.

    Example:
        >>> import jax.numpy as jnp
        >>> mesh = Mesh(np.asarray(jax.devices()[:1]), ("particle",))
        >>> spread(jnp.ones(4), 4, NamedSharding(mesh, PartitionSpec("particle"))).shape
        (4,)
    """

    def constrained(leaf: Any) -> Any:
        of_rows = getattr(leaf, "ndim", 0) > 0 and leaf.shape[0] == size
        return jax.lax.with_sharding_constraint(leaf, sharding) if of_rows else leaf

    return tree if sharding is None else jax.tree.map(constrained, tree)


def row_sharding(mu: Particles) -> NamedSharding | None:
    """How the particles of a measure are spread over devices, if they are.

    Example:
        >>> import jax.numpy as jnp
        >>> print(row_sharding(Particles.uniform(jnp.ones((8, 2)))))
        None
    """
    found = getattr(mu.weights, "sharding", None)
    if not isinstance(found, NamedSharding) or found.mesh.size == 1 or not found.spec or found.spec[0] is None:
        return None
    return NamedSharding(found.mesh, PartitionSpec(found.spec[0]))


def within(mesh: Mesh | None) -> Rows:
    """How the particles of one seed are spread, in a sweep over a mesh.

    Example:
        >>> within(Mesh(np.asarray(jax.devices()[:1]), ("particle",))).spec[0]
        'particle'
    """
    if mesh is None or PARTICLE not in mesh.axis_names:
        return None
    # Where seeds are spread too, the mesh is known from around, as one of particles alone.
    return PartitionSpec(PARTICLE) if SEED in mesh.axis_names else NamedSharding(mesh, PartitionSpec(PARTICLE))


def automatic(tree: Tree) -> Tree:
    """Arrays on a mesh with explicit axes, as arrays on the same mesh with automatic ones; all else as it is.

    A functional is written for one device: it does not say how each of its results is spread, which explicit axes ask.

    Args:
        tree: any pytree.

    Example:
        >>> import jax.numpy as jnp
        >>> automatic(jnp.ones(2)).tolist()
        [1.0, 1.0]
    """

    def placed(leaf: Any) -> Any:
        sharding = getattr(leaf, "sharding", None)
        if not isinstance(sharding, NamedSharding) or AxisType.Explicit not in sharding.mesh.axis_types:
            return leaf
        mesh: Any = sharding.mesh
        return jax.device_put(leaf, NamedSharding(Mesh(mesh.devices, mesh.axis_names), sharding.spec))

    return jax.tree.map(placed, tree)


def shard_particles(mu: Particles, mesh: Mesh | None = None) -> Particles:
    """The measure with its particles spread over devices; flows started from it stay spread, with all that they keep.

    What crosses devices in a step is then a sum or two, for a network the outputs on the data, not the particles.

    Args:
        mu: the measure; where its size is no multiple of the number of devices, particles of weight zero fill it up.
        mesh: with an axis "particle"; all devices if omitted.

    Returns:
        The same measure, sharded on the particle axis.

    Raises:
        ValueError: if the mesh has no such axis.

    Example:
        >>> import jax.numpy as jnp
        >>> shard_particles(Particles.uniform(jnp.ones((8, 2)))).size % jax.device_count()
        0
    """
    over = Mesh(np.asarray(jax.devices()), (PARTICLE,)) if mesh is None else check_mesh(mesh)
    if PARTICLE not in over.axis_names:
        raise ValueError(f'shard_particles: mesh has axes {over.axis_names}; give one with an axis "particle".')
    return jax.device_put(divisible(mu, over.shape[PARTICLE]), NamedSharding(over, PartitionSpec(PARTICLE)))
