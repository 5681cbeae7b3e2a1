"""What is said while a run goes on, on the standard error stream: a progress bar, or a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from pwgf_jax.solve import Progress

__all__ = ["Bar"]

_PAUSE = 30.0  # seconds from one line to the next


class Bar:
    """How far a run is, which seed is the slowest, and how long it will still take.

    At a terminal this is tqdm's bar, where it is installed. Elsewhere (a log, a batch job) it is a plain line at most
    every half minute and at the end of an arm.

    Args:
        steps: of every arm, by name.
        quiet: whether to show nothing.
    """

    def __init__(self, steps: Mapping[str, int], *, quiet: bool = False) -> None:
        self.total, self.steps, self.done = sum(steps.values()), steps, 0
        self._arm, self._base = "", 0
        self._started, self._started_at = time.monotonic(), 0
        self._line: Any = None
        self._quiet, self._said_at = quiet, self._started

    def __enter__(self) -> Bar:
        if not self._quiet and sys.stderr.isatty():
            try:
                from tqdm import tqdm

                self._line = tqdm(total=self.total, unit="step", dynamic_ncols=True, file=sys.stderr)
            except ImportError:
                print("tqdm is not installed (pip install 'pwgf_jax[progress]'): plain lines instead.", file=sys.stderr)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._line is not None:
            self._line.close()

    def begin(self, arm: str) -> None:
        """An arm begins."""
        self._arm, self._base = arm, self.done
        if self._line is not None:
            self._line.set_description(arm)
            self._line.set_postfix_str("compiling")

    def skip(self, arm: str) -> None:
        """An arm was finished before this process began; it counts as done and not as speed."""
        self.done += self.steps[arm]
        self._started_at = self.done
        if self._line is not None:
            self._line.initial = self._line.n = self.done
            self._line.refresh()

    def __call__(self, progress: Progress) -> None:
        """A chunk of steps is done."""
        before, self.done = self.done, self._base + progress.step
        if self._line is not None:
            self._line.set_postfix_str(_standing(progress), refresh=False)
            self._line.update(self.done - before)
        elif not self._quiet and (progress.step == progress.steps or time.monotonic() - self._said_at >= _PAUSE):
            self._said_at = time.monotonic()
            print(
                f"{self._arm}: {progress.step} of {progress.steps} steps, {_standing(progress)}, "
                f"about {self.seconds_left:.0f} s left for all arms",
                file=sys.stderr,
            )

    @property
    def seconds_left(self) -> float:
        """At the mean speed of this process so far."""
        taken = max(self.done - self._started_at, 1)
        return (time.monotonic() - self._started) * (self.total - self.done) / taken


def _standing(progress: Progress) -> str:
    """The slowest seed of a sweep, in a few words."""
    slowest = progress.slowest
    if slowest is None:
        return "every seed has finished"
    seeds = len(progress.status)
    running = "" if progress.running == seeds else f", {progress.running} of {seeds} seeds running"
    return f"slowest seed {slowest}: F = {float(progress.value[slowest]):.3g}{running}"
