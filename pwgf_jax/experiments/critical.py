"""What an experiment takes from the critical points of a problem: where runs start, and at which levels they end."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Array

from pwgf_jax.experiments.messages import suggestion
from pwgf_jax.problems import CriticalPoint, Problem
from pwgf_jax.problems.base import around

__all__ = ["known", "landmarks", "near"]

_KNOWN = 1000  # critical points that are looked at, and up to which a run says at which it ended


def known(problem: Problem) -> list[CriticalPoint]:
    """The critical points of a problem, its minima first; of very many the first ones.

    Raises:
        ValueError: if a value is not finite.

    Example:
        >>> from pwgf_jax.problems import double_well
        >>> [each.name for each in known(double_well(2))]
        ['well', 'origin']
    """
    points = itertools.chain([problem.minimum], problem.local_minima, problem.saddles)
    found = [each for each in itertools.islice(points, _KNOWN + 1) if each is not None]
    for each in found:
        if not math.isfinite(each.value):
            raise ValueError(
                f'the critical point "{each.name}" has the value {each.value}; a number is too large or too small.'
            )
    return found


def landmarks(points: Sequence[CriticalPoint]) -> dict[str, float]:
    """Their levels by name; of too many none, for where a run ends would be named after the wrong one.

    Example:
        >>> from pwgf_jax.problems import double_well
        >>> landmarks(known(double_well(2)))
        {'well': -0.25, 'origin': 0.0}
    """
    return {each.name: float(each.value) for each in points} if len(points) <= _KNOWN else {}


def near(points: Sequence[CriticalPoint], at: str, scale: float) -> Callable[[Array], Any]:
    """Starts about the critical point of a name.

    Raises:
        ValueError: if the scale is negative, or there is no such point.

    Example:
        >>> import jax
        >>> from pwgf_jax.problems import double_well
        >>> near(known(double_well(2)), "well", 0.0)(jax.random.key(0)).tolist()
        [1.0, 0.0]
    """
    if scale < 0:
        raise ValueError(f"scale = {scale}; give a non-negative number.")
    found = {each.name: each.point for each in points}
    if at not in found:
        raise ValueError(f'at = "{at}"; {suggestion(at, found)}')
    return around(found[at], scale)
