"""Running flows: one trajectory or a sweep over seeds, recorded, checkpointed and sharded."""

from pwgf_jax.solve.continuous import ContinuousSolution, continuous_flow, continuous_pwgf, vector_field
from pwgf_jax.solve.record import Progress, Record, Solution
from pwgf_jax.solve.runs import run, sweep
from pwgf_jax.solve.sharding import shard_particles

__all__ = [
    "ContinuousSolution",
    "Progress",
    "Record",
    "Solution",
    "continuous_flow",
    "continuous_pwgf",
    "run",
    "shard_particles",
    "sweep",
    "vector_field",
]
