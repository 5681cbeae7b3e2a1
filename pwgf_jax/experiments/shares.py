"""A share of a run: some of its seeds, for one task of an array of jobs that know nothing of each other."""

from __future__ import annotations

import re
from typing import NamedTuple

from pwgf_jax.experiments.messages import ConfigError, show

__all__ = ["Share", "share"]


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
