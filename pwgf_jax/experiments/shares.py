"""Who does what of a run: tasks of an array of jobs that know nothing of each other, and the devices of one job."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import jax
from jax.sharding import AxisType, Mesh

from pwgf_jax.experiments.config import Config, unfold
from pwgf_jax.experiments.messages import ConfigError, show

__all__ = ["Share", "Spread", "share", "spread"]


class Share(NamedTuple):
    """The i-th of n nearly equal shares of the seeds.

    Args:
        index: i, from one.
        of: n.

    Example:
        >>> [Share(i, 3).of_seeds(10) for i in (1, 2, 3)]
        [range(0, 3), range(3, 6), range(6, 10)]
    """

    index: int
    of: int

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"

    def of_seeds(self, seeds: int) -> range:
        """The seeds of the share.

        Args:
            seeds: how many there are.

        Returns:
            Their numbers.

        Raises:
            ConfigError: if there are fewer than shares.
        """
        if self.of > seeds:
            raise ConfigError(f"--part: given {self}; the run has {seeds} seeds: give at most {seeds} parts.")
        return range((self.index - 1) * seeds // self.of, self.index * seeds // self.of)


def share(text: str) -> Share:
    """The share that is meant by ``i/n``.

    Raises:
        ConfigError: if none is.

    Example:
        >>> share("2/8")
        Share(index=2, of=8)
    """
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
    index, of = map(int, found.groups()) if found else (0, 0)
    if not 1 <= index <= of:
        raise ConfigError(
            f"--part: given {show(text)}; give i/n with 1 <= i <= n, as $SLURM_ARRAY_TASK_ID/8 in an array of ids 1-8."
        )
    return Share(index, of)


class Spread(NamedTuple):
    """How seeds and particles lie on the devices of a job.

    Args:
        seeds: how many groups of devices seeds are spread over.
        particles: how many devices the particles of a seed are spread over.
    """

    seeds: int
    particles: int

    def __str__(self) -> str:
        return f"{self.seeds}x{self.particles}"

    def mesh(self, config: Config) -> Mesh:
        """The mesh of all devices.

        Args:
            config: of the run.

        Raises:
            ConfigError: if there are not as many, or a problem has no particles to spread.
        """
        if self.particles > 1 and any(part.config.problem.is_objective for part in unfold(config)):
            raise ConfigError(f"--mesh: given {self}; an objective has no particles: give {jax.device_count()}x1.")
        if math.prod(self) != jax.device_count():
            cure = "on CPU, JAX_NUM_CPU_DEVICES=N makes N of them" if jax.default_backend() == "cpu" else "give these"
            raise ConfigError(f"--mesh: given {self}, {math.prod(self)} devices; jax has {jax.device_count()}: {cure}.")
        return jax.make_mesh(tuple(self), ("seed", "particle"), (AxisType.Auto,) * 2)


def spread(text: str) -> Spread:
    """How seeds and particles are spread, by ``SxP``.

    Raises:
        ConfigError: if nothing is meant.

    Example:
        >>> spread("2x4")
        Spread(seeds=2, particles=4)
    """
    found = re.fullmatch(r"(\d{1,9})x(\d{1,9})", text, re.ASCII)
    seeds, particles = map(int, found.groups()) if found else (0, 0)
    if seeds < 1 or particles < 1:
        raise ConfigError(
            f"--mesh: given {show(text)}; give SxP, as 2x4 on eight devices: two groups of four, a seed on each."
        )
    return Spread(seeds, particles)
