"""What a config means, as frozen dataclasses that know what is possible; :mod:`.config` reads them from TOML."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any, Literal

from pwgf_jax.experiments.reading import show

__all__ = ["Call", "Config", "Method", "Problem", "Vary"]

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_TURN = re.compile(r"[^/\\\x00-\x1f]{1,100}")
_LARGEST = 3.4028235e38
_STEPS = 2**30  # a step and a window are added up in 32 bits


def _check_name(key: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{key}: given {show(name)}; use letters, digits, - and _, at most 100, for files are named after it."
        )


@dataclass(frozen=True)
class Call:
    """Something of the registry, and the arguments to call it with.

    Args:
        name: its name, or a path for data of one's own.
        arguments: plain TOML data by name.

    Example:
        >>> Call("wgf", {"step_size": 0.1}).name
        'wgf'
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method(Call):
    """What an arm does: a flow or a transform of the registry and its arguments.

    Args:
        name: of the flow or transform.
        arguments: plain TOML data by name.
        steps: how many it takes; None for as many as the config says.
        kind: "flow" of measures, or "transform" of optax, for an objective.

    Raises:
        ValueError: if there is no step.

    Example:
        >>> Method("wgf", {"step_size": 0.1}, steps=300).steps
        300
    """

    steps: int | None = None
    kind: Literal["flow", "transform"] = "flow"

    def __post_init__(self) -> None:
        if self.steps is not None:
            _check_steps("steps", self.steps)
        jumps = self.arguments.get("perturbation")
        for prefix, table in (("", self.arguments), ("perturbation.", jumps if isinstance(jumps, dict) else {})):
            for name in {"k_thres", "window", "defer"} & table.keys():
                if table[name] >= _STEPS:
                    raise ValueError(f"{prefix}{name} = {table[name]}; give fewer than {_STEPS} steps.")


def _check_steps(name: str, count: int) -> None:
    if not 1 <= count < _STEPS:
        raise ValueError(f"{name} = {count}; give at least 1{f', below {_STEPS}' * (count > 0)}.")


@dataclass(frozen=True)
class Vary:
    """One key of a config and the values that it takes in turn.

    Args:
        key: dotted, below ``problem`` or ``arms``, or ``problem`` itself.
        values: what it becomes, a list, or whole tables by name; every arm that it concerns is run once for each.

    Raises:
        ValueError: if the key is elsewhere, or the values are none, equal or not plain.

    Example:
        >>> Vary("problem.particles", [50, 100]).label("hessian", 50)
        'hessian-50'
    """

    key: str
    values: list[Any] | dict[str, Any]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"problem(\..+)?|arms\.[^.]+\..+", self.key):
            raise ValueError(f'key: given "{self.key}"; give a key below problem or below an arm.')
        if isinstance(self.values, dict):
            if not self.values or not all(isinstance(value, dict) for value in self.values.values()):
                raise ValueError(f"values: given {show(self.values)}; give a list of values, or tables by name.")
            for name in self.values:
                if not _TURN.fullmatch(name):
                    raise ValueError(
                        f"values: given {show(name)}; give one line without slashes, of at most 100 characters, "
                        "for figures are named after it."
                    )
            return
        for value in self.values:
            if not isinstance(value, bool | int | float | str):
                raise ValueError(f"values: given {show(value)}; give numbers, strings or booleans.")
        if not self.values or len(set(self.values)) < len(self.values):
            raise ValueError(f"values: given {show(self.values)}; give at least one, all different.")

    def concerns(self, arm: str) -> bool:
        """Whether the runs of an arm depend on the value."""
        return self.key.split(".")[0] == "problem" or self.key.split(".")[1] == arm

    def turns(self) -> list[Any]:
        """What labels and tables call each value: the name of a table, of a file without its folder, or the value."""
        whole = lambda value: isinstance(value, str) and PurePath(value).is_absolute()  # noqa: E731
        return [PurePath(value).name if whole(value) else value for value in self.values]

    def label(self, arm: str, turn: Any) -> str:
        """The name of an arm in a turn."""
        return f"{arm}-{re.sub('[^A-Za-z0-9_.-]', '_', str(turn))}"

    def labels(self, arms: Iterable[str]) -> list[str]:
        """The names of all arms in all turns; one that the key does not concern has one, its own.

        Raises:
            ValueError: if two are the same, or one is too long for the name of a file.
        """
        first: dict[str, str] = {}
        for arm in arms:
            for turn in self.turns() if self.concerns(arm) else [None]:
                label, said = (arm, f"arm {arm}") if turn is None else (self.label(arm, turn), f"{arm} at {turn}")
                if label in first:
                    raise ValueError(f'values: {first[label]} and {said} would both be named "{label}"; rename one.')
                _check_name("values", label)
                first[label] = said
        return list(first)


@dataclass(frozen=True)
class Problem:
    """What is minimised, and from where.

    Args:
        functional: a functional of the registry or ``path/to/file.py:name``, with its options; or an objective of
            finitely many parameters, which brings its own data and start.
        particles: how many.
        start: the law of the start.
        data: where inputs and targets come from; None for a functional that needs none.
        same_data: whether all seeds have the data of the first one, and differ in start and noise only.
        confinement: λ of a quadratic confinement λ/2 ∫|x|² dμ that is added to the functional.
        constants: what methods may know of it: smoothness, hessian_lipschitz, eps and delta; an objective has them, and
            a functional that transforms are to be run on.

    Raises:
        ValueError: if there is no particle, or a number is out of range.

    Example:
        >>> Problem(Call("energy.py:F"), 100, Call("gaussian", {"dimension": 2})).data is None
        True
    """

    functional: Call
    particles: int
    start: Call
    data: Call | None = None
    same_data: bool = False
    confinement: float = 0.0
    constants: dict[str, float] | None = None

    def __post_init__(self) -> None:
        for name, value in (self.constants or {}).items():
            if not 0 < value < math.inf:
                raise ValueError(f"constants.{name} = {value}; give a positive number.")
        if self.particles < 1:
            raise ValueError(f"particles = {self.particles}; give at least 1.")
        if self.confinement < 0:
            raise ValueError(f"confinement = {self.confinement}; give a non-negative number.")

    @property
    def is_own(self) -> bool:
        """Whether the functional is in a Python file of the user's."""
        return ".py:" in self.functional.name

    @property
    def is_objective(self) -> bool:
        """Whether it is a function of finitely many parameters."""
        return self.start.name == "own"


def _numbers(key: str, value: Any) -> Iterator[tuple[str, float]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in inner:
        yield from _numbers(f"{key}.{name}" if isinstance(name, str) else key, each)
    if isinstance(value, float):
        yield key, value


@dataclass(frozen=True)
class Config:
    """An experiment: one problem, one arm per method, several seeds.

    Args:
        name: of the experiment; letters, digits, - and _.
        steps: how many an arm takes, unless it says otherwise.
        problem: what is minimised.
        arms: the methods by name.
        seed: the base seed, from which every seed's key is split.
        seeds: how many runs every arm makes; run i has the same data, start and key in all arms.
        record_every: steps between two records.
        dtype: of data and particles.
        targets: values of the objective; the summary says when each arm came below them.
        snapshots: steps at which the particles of the first seed are kept and drawn.
        vary: a key and the values it takes in turn, if there is one.
        file: where it was read from.

    Raises:
        ValueError: if a number is out of range, or a name cannot name a file.

    Example:
        >>> problem = Problem(Call("energy.py:F"), 100, Call("gaussian", {"dimension": 2}))
        >>> Config("mine", 0, problem, {"static": Method("wgf", {"step_size": 0.1})})
        Traceback (most recent call last):
        ...
        ValueError: steps = 0; give at least 1.
    """

    name: str
    steps: int
    problem: Problem
    arms: dict[str, Method]
    seed: int = 0
    seeds: int = 1
    record_every: int = 1
    dtype: Literal["float32", "float64"] = "float32"
    targets: list[float] = field(default_factory=list)
    snapshots: list[int] = field(default_factory=list)
    vary: Vary | None = None
    file: str = field(default="config", compare=False)

    def __post_init__(self) -> None:
        for name in ("steps", "seeds", "record_every"):
            _check_steps(name, getattr(self, name))
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed = {self.seed}; give a whole number from 0 to 2147483647.")
        if not self.arms:
            raise ValueError("arms is empty; give one table [arms.NAME] per method.")
        for key, name in [("name", self.name), *(("arms", arm) for arm in self.arms)]:
            _check_name(key, name)
        if not all(math.isfinite(target) for target in self.targets):
            raise ValueError(f"targets = {self.targets}; give finite numbers.")
        if any(step < 0 or step % self.record_every for step in self.snapshots):
            raise ValueError(f"snapshots = {self.snapshots}; give multiples of record_every = {self.record_every}.")
        longest = max(map(self.steps_of, self.arms))
        if self.snapshots and max(self.snapshots) > longest:
            raise ValueError(f"snapshots = {self.snapshots}; no arm takes more than {longest} steps.")
        if self.dtype == "float32":
            for key, number in self._numbers():
                if abs(number) > _LARGEST:
                    raise ValueError(f'{key} = {number}; float32 holds up to {_LARGEST:.3g}: give dtype = "float64".')
        if self.vary is not None:
            if not any(map(self.vary.concerns, self.arms)):
                raise ValueError(f'vary.key: given "{self.vary.key}"; arms are {", ".join(self.arms)}.')
            try:
                self.vary.labels(self.arms)
            except ValueError as error:
                raise ValueError(f"vary.{error}") from error

    def _numbers(self) -> Iterator[tuple[str, float]]:
        """All numbers below a dotted key."""
        problem = self.problem
        calls = {"options": problem.functional, "start": problem.start, "data": problem.data}
        tables = {f"problem.{name}": call.arguments for name, call in calls.items() if call is not None}
        tables["problem"] = {"confinement": problem.confinement, "constants": problem.constants or {}}
        tables |= {f"arms.{arm}": method.arguments for arm, method in self.arms.items()}
        for key, table in tables.items():
            yield from _numbers(key, table)

    def steps_of(self, arm: str) -> int:
        """How many steps an arm takes."""
        return self.arms[arm].steps or self.steps

    def only(self, arm: str) -> Config:
        """The same experiment with one arm."""
        return replace(self, arms={arm: self.arms[arm]})
