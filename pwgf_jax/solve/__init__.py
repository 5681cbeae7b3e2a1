"""Running flows: one trajectory or a sweep over seeds, recorded, checkpointed and sharded."""

from pwgf_jax.solve.record import Progress, Record, Solution
from pwgf_jax.solve.run import run, sweep
from pwgf_jax.solve.sharding import shard_particles

__all__ = ["Progress", "Record", "Solution", "run", "shard_particles", "sweep"]
