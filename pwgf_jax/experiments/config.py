"""Configurations: a TOML file read strictly into pydantic models, changed, unfolded and written back."""

from __future__ import annotations

import copy
import hashlib
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tomli_w
from pydantic import ConfigDict, Field, PrivateAttr, model_validator

from pwgf_jax.experiments import own
from pwgf_jax.experiments.catalogue import ARM, PROBLEM, Count, Method, Problem
from pwgf_jax.experiments.messages import ConfigError, Place, show
from pwgf_jax.experiments.reading import Table, read
from pwgf_jax.experiments.vary import Name, Vary

__all__ = ["Config", "Method", "Part", "Problem", "Vary", "dump", "fingerprint", "load", "parse", "unfold"]

_DEEPEST = 50
_LARGEST = 3.4028235e38  # in float32
_WHOLE = 2**31  # steps, sizes and seeds are counted in 32 bits
_UNREADABLE = "no sense in it: numbers have up to 4300 digits, and lists and tables are nested up to some hundred deep."


class Config(Table):
    """An experiment: one problem, one arm per method, several seeds.

    Args:
        name: of the experiment; letters, digits, - and _.
        steps: how many an arm takes, unless it says otherwise.
        seed: the base seed, from which every seed's key is split.
        seeds: how many runs every arm makes; run i has the same data, start and key in all arms.
        record_every: steps between two records.
        dtype: of data and particles.
        targets: values of the objective; the summary says when each arm came below them.
        snapshots: steps at which the particles of the first seed are kept and drawn.
        problem: what is minimised.
        arms: the methods by name.
        vary: a key and the values it takes in turn, if there is one.

    Raises:
        ValueError: if a number is out of range, or a name cannot name a file.

    Example:
        >>> start = {"kind": "gaussian", "dimension": 2}
        >>> problem = {"functional": "energy.py:F", "particles": 100, "start": start}
        >>> arms = {"static": {"flow": "wgf", "step_size": 0.1}}
        >>> Config.model_validate({"name": "mine", "steps": 9, "problem": problem, "arms": arms}).steps_of("static")
        9
    """

    # A document that varies whole problems needs none of its own.
    model_config = ConfigDict(json_schema_extra={"required": ["name", "steps", "arms"]})

    name: Name
    steps: Count
    seed: int = 0
    seeds: Count = 1
    record_every: Count = 1
    dtype: Literal["float32", "float64"] = "float32"
    targets: list[float] = Field(default_factory=list)
    snapshots: list[int] = Field(default_factory=list)
    problem: PROBLEM.annotation  # pyright: ignore[reportInvalidTypeForm]
    arms: dict[Name, ARM.annotation]  # pyright: ignore[reportInvalidTypeForm]
    vary: Vary | None = None

    _file: str = PrivateAttr("config")

    @model_validator(mode="after")
    def _possible(self) -> Config:
        if not 0 <= self.seed < _WHOLE:
            raise ValueError(f"seed = {self.seed}; give a whole number from 0 to {_WHOLE - 1}.")
        if not self.arms:
            raise ValueError("arms is empty; give one table [arms.NAME] per method.")
        if any(step < 0 or step % self.record_every for step in self.snapshots):
            raise ValueError(f"snapshots = {self.snapshots}; give multiples of record_every = {self.record_every}.")
        longest = max(map(self.steps_of, self.arms))
        if self.snapshots and max(self.snapshots) > longest:
            raise ValueError(f"snapshots = {self.snapshots}; no arm takes more than {longest} steps.")
        if self.dtype == "float32":
            for key, number in _numbers("", self.model_dump(include={"problem", "arms"})):
                if abs(number) > _LARGEST:
                    raise ValueError(f'{key} = {number}; float32 holds up to {_LARGEST:.3g}: give dtype = "float64".')
        if self.vary is not None:
            if not any(map(self.vary.concerns, self.arms)):
                raise ValueError(f'vary.key: given "{self.vary.key}"; arms are {", ".join(self.arms)}.')
            self.vary.check_labels(self.arms)
        return self

    def __eq__(self, other: object) -> bool:
        """Whether they describe the same, wherever they were read from."""
        return isinstance(other, Config) and self.model_dump() == other.model_dump()

    @property
    def file(self) -> str:
        """Where it was read from."""
        return self._file

    def steps_of(self, arm: str) -> int:
        """How many steps an arm takes."""
        return self.arms[arm].steps or self.steps

    def only(self, *arms: str) -> Config:
        """The same experiment with some of its arms."""
        return self.model_copy(update={"arms": {arm: self.arms[arm] for arm in arms}})

    def changed(self, keys: Mapping[tuple[str, ...], Any]) -> Config:
        """The same experiment with other values of some keys, each the path to it."""
        document = self.model_dump(exclude_none=True)
        for path, value in keys.items():
            _put(document, list(path), value, Place(self.file))
        return parse(document, self.file)


def _numbers(key: str, value: Any) -> Iterator[tuple[str, float]]:
    """All numbers of a document, each below its dotted key."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in inner:
        yield from _numbers(f"{key}.{name}".lstrip(".") if isinstance(name, str) else key, each)
    if isinstance(value, float):
        yield key, value


class Part(NamedTuple):
    """One turn of a config with a varied key.

    Args:
        config: without the key, its arms named after the value.
        value: that the key takes; None if nothing is varied.
        origin: the arm of the whole config that each arm is.
    """

    config: Config
    value: Any
    origin: dict[str, str]


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
        pwgf_jax.experiments.messages.ConfigError: no/such.toml: there is no such file.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{file}: there is no such file.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not valid TOML: {error}.") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise ConfigError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    document = _document(text, str(file))
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
        pwgf_jax.experiments.messages.ConfigError: config: unknown key stepps; allowed: name, steps, seed, seeds, \
record_every, dtype, targets, snapshots, problem, arms, vary; did you mean steps?
    """
    place = Place(file)
    _check_values(document, place)
    document = own.located(document, place)
    vary = document.get("vary")
    if "problem" not in document and isinstance(vary, dict) and vary.get("key") == "problem":
        # Of several whole problems the first stands for all, until they are unfolded.
        if isinstance(values := vary.get("values"), dict) and values:
            document = {**document, "problem": next(iter(values.values()))}
    config = read(Config, document, place)
    config._file = file
    unfold(config)
    return config


def _check_values(value: Any, place: Place, depth: int = 0) -> None:
    """Refuse what no table of a config takes, wherever it stands; and what is nested deeper than makes sense."""
    if depth > _DEEPEST:
        raise ConfigError(f"{place.file}: nested more than {_DEEPEST} deep; no config needs that.")
    if isinstance(value, Mapping):
        for name, each in value.items():
            _check_values(each, place / name, depth + 1)
    elif isinstance(value, list):
        for each in value:
            _check_values(each, place, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise place.error(f"given {value}; give a finite number.")
    elif isinstance(value, int) and abs(value) >= _WHOLE:
        raise place.error(f"given {show(value)}; give a whole number below {_WHOLE}, which 32 bits hold.")


def unfold(config: Config) -> list[Part]:
    """The turns of a config with a varied key, each a config without one; a single one if nothing is varied.

    Args:
        config: any config.

    Returns:
        The parts.

    Raises:
        ConfigError: if a value is not possible.

    Example:
        >>> start = {"kind": "gaussian", "dimension": 2}
        >>> table = {"functional": "energy.py:F", "particles": 4, "start": start}
        >>> vary = {"key": "problem.particles", "values": [5, 6]}
        >>> arms = {"a": {"flow": "wgf", "step_size": 1}}
        >>> config = parse({"name": "a", "steps": 1, "problem": table, "arms": arms, "vary": vary})
        >>> [(part.config.problem.particles, list(part.config.arms)) for part in unfold(config)]
        [(5, ['a-5']), (6, ['a-6'])]
    """
    vary = config.vary
    if vary is None:
        return [Part(config, None, {arm: arm for arm in config.arms})]
    parts: list[Part] = []
    for turn, document in zip(vary.turns(), _turns(config.model_dump(exclude_none=True), config.file), strict=True):
        part = parse(document, config.file)
        origin = {vary.label(arm, turn): arm for arm in part.arms if vary.concerns(arm)}
        if not parts:
            origin |= {arm: arm for arm in part.arms if not vary.concerns(arm)}
        named = {label: part.arms[arm] for label, arm in origin.items()}
        parts.append(Part(part.model_copy(update={"arms": named}), turn, origin))
    return parts


def _turns(document: Mapping[str, Any], file: str) -> Iterator[dict[str, Any]]:
    """A document with a varied key, turn by turn."""
    vary = document["vary"]
    values = vary["values"].values() if isinstance(vary["values"], dict) else vary["values"]
    for value in values:
        turn = copy.deepcopy({name: inner for name, inner in document.items() if name != "vary"})
        for key in Vary(**vary).keys(turn["arms"]):
            _put(turn, key.split("."), value, Place(file))
        yield turn


def fingerprint(config: Config | str) -> str:
    """A hash of everything that decides the results: the config, and the user's own files.

    These are the files that the config names, and the Python files beside an own functional that it imports, and
    those that they import. What is imported under a name made at run time, or read from other files, is not seen.

    Args:
        config: of an experiment that begins; of one that has begun the text of its config.toml, so that a later
            version, with defaults that this one has not, finds the same.

    Returns:
        Sixteen hexadecimal digits for the config and the first files that it names, and sixteen for the rest if there
        is any. (Version 0.1.0 knew the first sixteen only.)

    Example:
        >>> table = {"functional": "icfl", "particles": 4, "data": {"source": "digits"}, "start": {"kind": "gaussian"}}
        >>> arms = {"static": {"flow": "wgf", "step_size": 0.1}}
        >>> config = parse({"name": "a", "steps": 2, "problem": table, "arms": arms})
        >>> len(fingerprint(config))
        16
    """
    text = config if isinstance(config, str) else dump(config)
    document = _document(text, "config.toml")
    named = list(own.files({name: inner for name, inner in document.items() if name != "vary"}))
    rest = list(own.files(document.get("vary", {})))
    rest += [path for each in (*named, *rest) if each.suffix == ".py" for path in own.imports(each)]
    further = sorted(set(rest) - set(named))
    return _hash(text, named) + (_hash("", further) if further else "")


def _hash(text: str, files: Iterable[Path]) -> str:
    digest = hashlib.sha256(text.encode())
    for path in files:
        digest.update(path.read_bytes() if path.is_file() else b"missing")
    return digest.hexdigest()[:16]


def _apply(document: dict[str, Any], setting: str) -> None:
    """Change a document by ``a.b=value``."""
    dotted, equals, text = setting.partition("=")
    place, names = Place("--set"), dotted.strip().split(".")
    if not equals or not all(names):
        raise place.error(f"given {show(setting)}; write a.b=value.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    except (RecursionError, ValueError) as error:
        raise place.error(f"given {show(setting)}; {_UNREADABLE}") from error
    _put(document, names, value, place)


def _document(text: str, file: str) -> dict[str, Any]:
    """What TOML says."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not valid TOML: {error}.") from error
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"{file}: {_UNREADABLE}") from error


def _put(document: dict[str, Any], names: list[str], value: Any, place: Place) -> None:
    """Change one key of a document, and make the tables that it is in."""
    table = document
    for name in names[:-1]:
        place /= name
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            raise place.error(f"given {show(inner)}; give a table.")
        table = inner
    table[names[-1]] = value


def dump(config: Config) -> str:
    """The config as TOML; reading it back gives an equal one.

    Example:
        >>> start = {"kind": "gaussian", "dimension": 2}
        >>> problem = {"functional": "/home/me/energy.py:F", "particles": 100, "start": start}
        >>> arms = {"static": {"flow": "wgf", "step_size": 0.1}}
        >>> print(dump(parse({"name": "mine", "steps": 10, "problem": problem, "arms": arms})))
        name = "mine"
        steps = 10
        ...
        [arms.static]
        flow = "wgf"
        step_size = 0.1
        <BLANKLINE>
    """
    return tomli_w.dumps(config.model_dump(exclude_none=True))
