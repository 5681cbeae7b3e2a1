"""What a run writes down, returns, and tells whoever is watching."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from pwgf_jax.calculus import Functional
from pwgf_jax.flows import FlowState, Status
from pwgf_jax.measures import Particles

__all__ = ["Progress", "Record", "Solution"]

Stats = Callable[[Functional, Particles], Mapping[str, Array]]

BUILT_IN = ("step", "value", "gradient_norm", "perturbed")


@dataclass(frozen=True)
class Record:
    """What to write down along a trajectory: scalars every few steps; never the trajectory itself by default.

    Args:
        every: steps between two records; the start and the end are always recorded.
        stats: (F, mu) -> dict of arrays, evaluated at the recorded measures and added to the records.
        state_stats: the same of the flow's state, for what only the method knows: bits sent, queries made.

    Raises:
        ValueError: if ``every`` is below one.

    Example:
        >>> import jax.numpy as jnp
        >>> Record(every=10, stats=lambda F, mu: {"mean": mu.weights @ mu.points}).every
        10
    """

    every: int = 1
    stats: Stats | None = None
    state_stats: Callable[[FlowState], Mapping[str, Array]] | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"Record: every={self.every}; give at least one step between records.")

    def row(self, F: Functional, state: FlowState) -> dict[str, Array]:
        """The record of a state."""
        row = {"value": state.evaluation.value, "gradient_norm": state.evaluation.gradient_norm}
        extra = {} if self.stats is None else dict(self.stats(F, state.mu))
        extra |= {} if self.state_stats is None else self.state_stats(state)
        taken = sorted(set(extra) & set(BUILT_IN))
        if taken:
            raise ValueError(f"Record: stats returns {', '.join(taken)}, which every record has already; rename it.")
        return row | {name: jnp.asarray(value) for name, value in extra.items()}


class Solution(NamedTuple):
    """The outcome of a run, or with a leading seed axis on everything, of a sweep.

    Args:
        mu: the measure that the algorithm returns; for PWGF after a failed test, the one before the jump. Of several
            processes each has what is on its devices; all else is on all of them, as NumPy arrays.
        value: F there.
        status: :class:`pwgf_jax.Status` as int32; ``Status(int(solution.status)).sentence`` says what it means.
        steps: steps taken before the status became final, int32.
        records: arrays over time: "step", "value", "gradient_norm", "perturbed" (whether a jump happened between this
            record and the next), and what ``Record.stats`` adds. The first is the start, the last the end;
            after a final status they repeat.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pwgf_jax import run, wgf
        >>> F = lambda mu: mu.weights @ jnp.sum(mu.points**2, axis=-1) / 2
        >>> solution = run(wgf(0.5), F, Particles.uniform(jnp.ones((4, 1))), jax.random.key(0), steps=3)
        >>> solution.records["step"].tolist(), solution.records["value"].tolist()
        ([0, 1, 2, 3], [0.5, 0.125, 0.03125, 0.0078125])
        >>> solution
        Solution(budget_spent at step 3, value=0.0078125, 4 records of step, gradient_norm, perturbed, value)
    """

    mu: Particles
    value: Array
    status: Array
    steps: Array
    records: dict[str, Any]

    def __repr__(self) -> str:
        if not all(isinstance(leaf, np.ndarray | jax.Array) for leaf in self[1:4]) or isinstance(self.value, Tracer):
            return f"Solution({', '.join(self._fields)})"
        values, steps = np.ravel(self.value), np.ravel(self.steps)
        ends = Counter(Status(int(each)).name for each in np.ravel(self.status))
        rows = len(np.atleast_1d(self.records.get("step", ())))
        kept = f"{rows} records of {', '.join(self.records)}"
        if not np.ndim(self.value):
            return f"Solution({next(iter(ends))} at step {steps[0]}, value={values[0]:.6g}, {kept})"
        told = ", ".join(f"{count} {name}" for name, count in ends.items())
        middle = f"median value={np.median(values):.6g}, steps {steps.min()} to {steps.max()}"
        return f"Solution({values.size} seeds: {told}; {middle}; {kept})"


class Progress(NamedTuple):
    """How a sweep stands after a chunk, for a progress bar.

    Args:
        step: steps that every running seed has taken.
        steps: steps asked for.
        value: F of every seed, shape (seeds,).
        gradient_norm: ‖∇_μF‖ of every seed.
        status: status of every seed.
        seconds: what the steps so far have taken, all seeds together: without compilation, without checkpoints, and
            without the time of ``Record.stats``, as measured by evaluating them once more after a chunk.
        seed_steps: steps that all seeds together have taken; a seed that has finished takes none.

    Example:
        >>> import numpy as np
        >>> Progress(10, 100, np.array([2.0, 3.0]), np.array([1.0, 0.1]), np.array([1, 0])).slowest
        1
    """

    step: int
    steps: int
    value: np.ndarray
    gradient_norm: np.ndarray
    status: np.ndarray
    seconds: float = 0.0
    seed_steps: int = 0

    @property
    def running(self) -> int:
        """How many seeds are still under way."""
        return int(np.sum(self.status == 0))

    @property
    def slowest(self) -> int | None:
        """The running seed whose objective is the highest, None when all have finished."""
        if not self.running:
            return None
        return int(np.argmax(np.where(self.status == 0, self.value, -np.inf)))
