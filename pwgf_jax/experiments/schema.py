"""What a config means, as frozen dataclasses that know what is possible; :mod:`.config` reads them from TOML."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

__all__ = ["Call", "Config", "Method", "Problem", "Vary"]

_NAME = re.compile(r"[A-Za-z0-9_.-]+")


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
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps = {self.steps}; give at least 1.")


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
                raise ValueError(f"values = {self.values}; give a list of values, or tables by name, at least one.")
            return
        if not self.values or len({str(value) for value in self.values}) < len(self.values):
            raise ValueError(f"values = {self.values}; give at least one, all different.")
        for value in self.values:
            if not isinstance(value, bool | int | float | str):
                raise ValueError(f"values: given {value}; give numbers, strings or booleans.")

    def concerns(self, arm: str) -> bool:
        """Whether the runs of an arm depend on the value."""
        return self.key.split(".")[0] == "problem" or self.key.split(".")[1] == arm

    def turns(self) -> Mapping[Any, Any]:
        """What the key becomes, by the name that the turn has in labels and tables."""
        return self.values if isinstance(self.values, dict) else {value: value for value in self.values}

    def label(self, arm: str, value: Any) -> str:
        """The name of an arm at a value."""
        return f"{arm}-{re.sub('[^A-Za-z0-9_.-]', '_', str(value))}"


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
        constants: of an objective, what its methods may know of it: smoothness, hessian_lipschitz, eps and delta.

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
        return self.constants is not None


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
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; give at least 1.")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed = {self.seed}; give a whole number from 0 to 2147483647.")
        if not self.arms:
            raise ValueError("arms is empty; give one table [arms.NAME] per method.")
        for key, name in [("name", self.name), *(("arms", arm) for arm in self.arms)]:
            if not _NAME.fullmatch(name):
                raise ValueError(f'{key}: given "{name}"; use letters, digits, - and _, for files are named after it.')
        if not all(math.isfinite(target) for target in self.targets):
            raise ValueError(f"targets = {self.targets}; give finite numbers.")
        if any(step < 0 or step % self.record_every for step in self.snapshots):
            raise ValueError(f"snapshots = {self.snapshots}; give multiples of record_every = {self.record_every}.")
        if self.vary is not None and not any(self.vary.concerns(arm) for arm in self.arms):
            raise ValueError(f'vary.key: given "{self.vary.key}"; arms are {", ".join(self.arms)}.')

    def steps_of(self, arm: str) -> int:
        """How many steps an arm takes."""
        return self.arms[arm].steps or self.steps

    def only(self, arm: str) -> Config:
        """The same experiment with one arm."""
        return replace(self, arms={arm: self.arms[arm]})
