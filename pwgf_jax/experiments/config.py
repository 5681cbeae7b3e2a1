"""Configurations: a TOML file read strictly into frozen dataclasses, and written back."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from pwgf_jax.experiments import toml
from pwgf_jax.experiments.reading import ConfigError, Parameter, Place, parameters, read, show, suggestion
from pwgf_jax.experiments.registry import FLOWS, FUNCTIONALS, OWN_DATA, SOURCES, STARTS, Entry, own_data

__all__ = ["Call", "Config", "Problem", "dump", "load", "parse"]

_NAME = re.compile(r"[A-Za-z0-9_-]+")


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
class Problem:
    """What is minimised, and from where.

    Args:
        functional: a functional of the registry or ``path/to/file.py:name``, with its options.
        particles: how many.
        start: the law of the start.
        data: where inputs and targets come from; None for a functional that needs none.

    Raises:
        ValueError: if there is no particle.

    Example:
        >>> Problem(Call("energy.py:F"), 100, Call("gaussian", {"dimension": 2})).data is None
        True
    """

    functional: Call
    particles: int
    start: Call
    data: Call | None = None

    def __post_init__(self) -> None:
        if self.particles < 1:
            raise ValueError(f"particles = {self.particles}; give at least 1.")

    @property
    def is_own(self) -> bool:
        """Whether the functional is in a Python file of the user's."""
        return ".py:" in self.functional.name


@dataclass(frozen=True)
class Config:
    """An experiment: one problem, one arm per method, several seeds.

    Args:
        name: of the experiment; letters, digits, - and _.
        steps: how many every arm takes.
        problem: what is minimised.
        arms: the methods by name.
        seed: the base seed, from which every seed's key is split.
        seeds: how many runs every arm makes; run i has the same data, start and key in all arms.
        record_every: steps between two records.
        dtype: of data and particles.
        file: where it was read from.

    Raises:
        ValueError: if a number is out of range, or a name cannot name a file.

    Example:
        >>> problem = Problem(Call("energy.py:F"), 100, Call("gaussian", {"dimension": 2}))
        >>> Config("mine", 0, problem, {"static": Call("wgf", {"step_size": 0.1})})
        Traceback (most recent call last):
        ...
        ValueError: steps = 0; give at least 1.
    """

    name: str
    steps: int
    problem: Problem
    arms: dict[str, Call]
    seed: int = 0
    seeds: int = 1
    record_every: int = 1
    dtype: Literal["float32", "float64"] = "float32"
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

    def fingerprint(self) -> str:
        """A hash of everything that decides the results: this config, and the user's own files that it names."""
        digest = hashlib.sha256(dump(self).encode())
        own = [self.problem.functional.name.rpartition(":")[0]] if self.problem.is_own else []
        if self.problem.data is not None and own_data(self.problem.data.name):
            own.append(self.problem.data.name)
        for path in own:
            digest.update(Path(path).read_bytes() if Path(path).is_file() else b"missing")
        return digest.hexdigest()[:16]


def load(file: str | Path, settings: Iterable[str] = ()) -> Config:
    """Read a config file.

    Args:
        file: the TOML file.
        settings: changes to it, each ``"dotted.key=value"`` with the value in TOML; a bare word is a string.

    Returns:
        The config, with all defaults filled in.

    Raises:
        ConfigError: if the file cannot be read, or anything in it is unknown, of the wrong type or impossible.

    Example:
        >>> load("no/such.toml")
        Traceback (most recent call last):
        ...
        pwgf_jax.experiments.reading.ConfigError: no/such.toml: there is no such file.
    """
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"{file}: there is no such file.")
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid TOML: {error}.") from error
    for setting in settings:
        _apply(document, setting)
    return parse(document, str(file))


def parse(document: Mapping[str, Any], file: str = "config") -> Config:
    """The config that a TOML document means, checked.

    Args:
        document: as ``tomllib`` reads it.
        file: its name in messages; paths in it are relative to its folder.

    Returns:
        The config, with all defaults filled in.

    Raises:
        ConfigError: naming file and key, what was given and what is allowed.

    Example:
        >>> parse({"name": "a", "stepps": 10})
        Traceback (most recent call last):
        ...
        pwgf_jax.experiments.reading.ConfigError: config: unknown key stepps; allowed: name, steps, seed, seeds, \
record_every, dtype, problem, arms; did you mean steps?
    """
    place = Place(file)
    tables = {"problem": Parameter(dict), "arms": Parameter(dict)}
    values = read(document, parameters(Config, without=("file",)) | tables, place)
    values["problem"] = _problem(values["problem"], place / "problem")
    values["arms"] = {
        name: _call(_table(arm, place / "arms" / name), "flow", FLOWS, place / "arms" / name)
        for name, arm in values["arms"].items()
    }
    return _make(Config, place, **values, file=file)


def _make(kind: type, place: Place, **values: Any) -> Any:
    try:
        return kind(**values)
    except ValueError as error:
        raise ConfigError(f"{place.file}: {place.key}{'.' if place.key else ''}{error}") from error


def _problem(table: dict[str, Any], place: Place) -> Problem:
    keys = {"functional": str, "particles": int, "options": dict, "data": dict, "start": dict}
    optional = {"options": Parameter(dict, None), "data": Parameter(dict, None)}
    values = read(table, {name: Parameter(hint) for name, hint in keys.items()} | optional, place)
    name, options = values["functional"], values.get("options", {})
    file, _, symbol = name.rpartition(":")
    if file.endswith(".py") and symbol:
        name = f"{_beside(place, file)}:{symbol}"
    elif name.endswith(".py"):
        raise (place / "functional").error(f'given "{name}"; say which one in it: "{name}:NAME".')
    else:
        entry = _known(name, FUNCTIONALS, place / "functional")
        options = read(options, entry.parameters, place / "options")
        if "data" not in values:
            raise ConfigError(
                f"{place.file}: missing table {place.key}.data; {name} needs inputs and targets: give "
                f'source = one of {", ".join(SOURCES)}, or a file "data.npz" or "data.csv".'
            )
    data = values.get("data")
    start = _call(values["start"], "kind", STARTS, place / "start")
    return _make(
        Problem,
        place,
        functional=Call(name, options),
        particles=values["particles"],
        start=start,
        data=None if data is None else _call(data, "source", SOURCES, place / "data"),
    )


def _call(table: dict[str, Any], key: str, registry: Mapping[str, Entry], place: Place) -> Call:
    """A table that names something under ``key`` and gives its arguments beside it."""
    if key not in table:
        raise ConfigError(f"{place.file}: missing key {(place / key).key}; {suggestion('', registry)}")
    name, rest = table[key], {other: value for other, value in table.items() if other != key}
    if registry is SOURCES and isinstance(name, str) and own_data(name):
        entry, name = OWN_DATA, str(_beside(place, name))
    else:
        entry = _known(name, registry, place / key)
    return Call(name, read(rest, entry.parameters, place))


def _known(name: Any, registry: Mapping[str, Entry], place: Place) -> Entry:
    if name not in registry:
        raise place.error(f"given {show(name)}; {suggestion(str(name), registry)}")
    return registry[name]


def _beside(place: Place, path: str) -> Path:
    """A path relative to the config's folder."""
    return (Path(place.file).parent / path).resolve()


def _table(value: Any, place: Place) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise place.error(f"given {show(value)}; give a table.")
    return value


def _apply(document: dict[str, Any], setting: str) -> None:
    """Change a document by ``a.b=value``."""
    dotted, equals, text = setting.partition("=")
    place, names = Place("--set"), dotted.strip().split(".")
    if not equals or not all(names):
        raise place.error(f'given "{setting}"; write a.b=value.')
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    table = document
    for name in names[:-1]:
        place /= name
        table = _table(table.setdefault(name, {}), place)
    table[names[-1]] = value


def dump(config: Config) -> str:
    """The config as TOML; reading it back gives an equal one.

    Example:
        >>> problem = Problem(Call("/home/me/energy.py:F"), 100, Call("gaussian", {"dimension": 2}))
        >>> print(dump(Config("mine", 10, problem, {"static": Call("wgf", {"step_size": 0.1})})))
        name = "mine"
        steps = 10
        ...
        [arms.static]
        flow = "wgf"
        step_size = 0.1
    """
    problem = config.problem
    document = {each.name: getattr(config, each.name) for each in fields(config) if each.name != "file"}
    document["problem"] = {"functional": problem.functional.name, "particles": problem.particles}
    document["problem"]["options"] = problem.functional.arguments
    if problem.data is not None:
        document["problem"]["data"] = {"source": problem.data.name, **problem.data.arguments}
    document["problem"]["start"] = {"kind": problem.start.name, **problem.start.arguments}
    document["arms"] = {name: {"flow": arm.name, **arm.arguments} for name, arm in config.arms.items()}
    return toml.write(document)
