"""Seeds and particles over the devices of a mesh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from pwgf_jax.measures import Particles

__all__ = ["Batching", "batched", "shard_particles"]

Batching: TypeAlias = Literal["auto", "map", "vmap", "shard"]


def batched(function: Callable[..., PyTree], batching: Batching) -> Callable[..., PyTree]:
    """The function over a leading seed axis of all its arguments.

    ``"map"`` runs seed after seed, each with all threads; ``"vmap"`` all at once; ``"shard"`` spreads them over the
    devices, mapped on CPU and vmapped on accelerators. ``"auto"`` shards where there are several devices, else maps
    on CPU (vmap over seeds costs 2x there: the working set leaves the cache) and vmaps on accelerators.

    Args:
        function: of arguments that belong to one seed.
        batching: one of the four.

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
        batching = "shard" if jax.device_count() > 1 else "map" if on_cpu else "vmap"

    def mapped(*arguments: PyTree) -> PyTree:
        return jax.lax.map(lambda one: function(*one), arguments)

    if batching == "map":
        return mapped
    if batching == "vmap":
        return jax.vmap(function)
    inner = mapped if on_cpu else jax.vmap(function)
    mesh = Mesh(np.asarray(jax.devices()), ("seed",))
    spec = PartitionSpec("seed")

    def sharded(*arguments: PyTree) -> PyTree:
        seeds = jax.tree.leaves(arguments)[0].shape[0]
        missing = -seeds % mesh.size
        # Seeds that only fill the last device up repeat the last one; their results are dropped.
        padded = jax.tree.map(lambda x: jnp.concatenate([x, jnp.repeat(x[-1:], missing, axis=0)]), arguments)
        out = jax.shard_map(inner, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)(*padded)
        return jax.tree.map(lambda x: x[:seeds], out)

    return sharded


def shard_particles(mu: Particles, devices: Sequence[Any] | None = None) -> Particles:
    """The measure with its particles spread over devices; flows started from it stay spread.

    A mean over particles then needs one sum across devices per step.

    Args:
        mu: the measure; its size must be a multiple of the number of devices.
        devices: all devices if omitted.

    Returns:
        The same measure, sharded on the particle axis.

    Raises:
        ValueError: if the particles cannot be divided evenly.

    Example:
        >>> import jax.numpy as jnp
        >>> shard_particles(Particles.uniform(jnp.ones((8, 2)))).size
        8
    """
    mesh = Mesh(np.asarray(jax.devices() if devices is None else devices), ("particle",))
    if mu.size % mesh.size:
        raise ValueError(
            f"shard_particles: {mu.size} particles over {mesh.size} devices; take a multiple of {mesh.size} particles."
        )
    return jax.device_put(mu, NamedSharding(mesh, PartitionSpec("particle")))
