"""Configurations: a TOML file read strictly into the dataclasses of :mod:`.schema`, and written back."""

from __future__ import annotations

import copy
import hashlib
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any, NamedTuple

from pwgf_jax.experiments import toml
from pwgf_jax.experiments.reading import ConfigError, Parameter, Place, choose, parameters, read, show, suggestion
from pwgf_jax.experiments.registry import (
    CONSTANTS,
    FLOWS,
    FUNCTIONALS,
    NOISE,
    OBJECTIVES,
    OWN_DATA,
    SAMPLES,
    SOURCES,
    STARTS,
    TRANSFORMS,
    WINDOW,
    Entry,
    own_data,
)
from pwgf_jax.experiments.schema import Call, Config, Method, Problem, Vary

__all__ = ["Call", "Config", "Method", "Part", "Problem", "Vary", "dump", "fingerprint", "load", "parse", "unfold"]

_DEEPEST = 50
_UNREADABLE = "no sense in it: numbers have up to 4300 digits, and lists and tables are nested up to some hundred deep."


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
    try:
        text = Path(file).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{file}: there is no such file.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not valid TOML: {error}.") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise ConfigError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    document = _document_of(text, str(file))
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
record_every, dtype, targets, snapshots, problem, arms, vary; did you mean steps?
    """
    place = Place(file)
    _check_depth(document, place)
    tables = {"problem": Parameter(dict), "arms": Parameter(dict), "vary": Parameter(dict, None)}
    document = _whole_paths(document, file)
    values = read(_with_first_problem(document), parameters(Config, without=("file",)) | tables, place)
    values["problem"] = _problem(values["problem"], place / "problem")
    values["arms"] = {
        name: _method(_table(arm, place / "arms" / name), place / "arms" / name) for name, arm in values["arms"].items()
    }
    if "vary" in values:
        table = read(values["vary"], {"key": Parameter(str), "values": Parameter(list[Any] | dict)}, place / "vary")
        values["vary"] = _make(Vary, place / "vary", **table)
    config = _make(Config, place, **values, file=file)
    unfold(config)
    return config


def _check_depth(document: Mapping[str, Any], place: Place) -> None:
    """Refuse what is nested deeper than anything that makes sense, and than Python can follow."""
    level: list[Any] = [document]
    for _ in range(_DEEPEST):
        inner = [value for table in level for value in (table.values() if isinstance(table, Mapping) else table)]
        level = [value for value in inner if isinstance(value, dict | list)]
    if level:
        raise place.error(f"tables or lists are nested more than {_DEEPEST} deep.")


class Part(NamedTuple):
    """An experiment that a config consists of.

    Args:
        config: without a varied key; its arms have the names that files and tables give them.
        value: of the varied key, or the name of a table of it; None where there is none.
        origin: which arm of the config each of its arms is.
    """

    config: Config
    value: Any
    origin: dict[str, str]


def unfold(config: Config) -> list[Part]:
    """The experiments that a config with a varied key consists of: one for each value, or the config itself.

    An arm that the key concerns is in all of them, under a name of its own in each; another one in the first only.

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
    for turn, document in zip(vary.turns(), _turns(_document(config), config.file), strict=True):
        part = parse(document, config.file)
        origin = {vary.label(arm, turn): arm for arm in part.arms if vary.concerns(arm)}
        if not parts:
            origin |= {arm: arm for arm in part.arms if not vary.concerns(arm)}
        parts.append(Part(replace(part, arms={label: part.arms[arm] for label, arm in origin.items()}), turn, origin))
    return parts


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
    document = _document_of(text, "config.toml")
    first, turns = document, list(_turns(document, "config.toml")) if "vary" in document else []
    named = _own_files(first)
    rest = [path for turn in turns for path in _own_files(turn)]
    rest += [path for own in (*named, *rest) if own.suffix == ".py" for path in _imports(own)]
    further = sorted(set(rest) - set(named))
    return _hash(text, named) + (_hash("", further) if further else "")


def _hash(text: str, files: Iterable[Path]) -> str:
    digest = hashlib.sha256(text.encode())
    for path in files:
        digest.update(path.read_bytes() if path.is_file() else b"missing")
    return digest.hexdigest()[:16]


def _own_files(document: Mapping[str, Any]) -> list[Path]:
    """The user's own files that a document's problem names."""
    problem = document.get("problem", {})
    source = problem.get("data", {}).get("source", "")
    return [Path(name) for name in (_own_module(problem.get("functional", "")), own_data(source) and source) if name]


def _imports(module: Path) -> list[Path]:
    """The Python files below a module's folder that it imports, and that these import; nothing is run."""
    finder = ModuleFinder([str(module.parent)])
    try:
        finder.run_script(str(module))
    except (OSError, SyntaxError, ValueError):  # the file itself counts: once it is put right the hash has changed
        return []
    files = [getattr(each, "__file__", None) for each in finder.modules.values()]
    return [Path(file) for file in files if file and Path(file) != module]


def _make(make: type, place: Place, /, **values: Any) -> Any:
    try:
        return make(**values)
    except ValueError as error:
        raise ConfigError(f"{place.file}: {place.key}{'.' if place.key else ''}{error}") from error


def _with_first_problem(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The document with the first of several whole problems as its problem, if it names none by itself."""
    vary = document.get("vary")
    if "problem" in document or not isinstance(vary, dict) or vary.get("key") != "problem":
        return document
    values = vary.get("values")
    return {**document, "problem": next(iter(values.values()))} if isinstance(values, dict) and values else document


def _turns(document: Mapping[str, Any], file: str) -> Iterator[dict[str, Any]]:
    """A document with a varied key, turn by turn."""
    vary = document["vary"]
    values = vary["values"].values() if isinstance(vary["values"], dict) else vary["values"]
    for value in values:
        turn = copy.deepcopy({name: inner for name, inner in document.items() if name != "vary"})
        _put(turn, vary["key"].split("."), value, Place(file))
        yield turn


def _objective(table: dict[str, Any], place: Place) -> Problem:
    """A function of finitely many parameters: one particle, from where the objective starts or a critical point."""
    keys = {"objective": Parameter(str), "constants": Parameter(dict)}
    keys |= {"options": Parameter(dict, None), "start": Parameter(dict, None)}
    values = read(table, keys, place)
    entry = choose(values["objective"], OBJECTIVES, place / "objective")
    options = read(values.get("options", {}), entry.parameters, place / "options")
    constants = read(values["constants"], CONSTANTS, place / "constants")
    start = {"at": Parameter(str), "scale": Parameter(float, 0.0)}
    start = read(values["start"], start, place / "start") if "start" in values else {}
    return _make(
        Problem,
        place,
        functional=Call(values["objective"], options),
        particles=1,
        start=Call("own", start),
        same_data=True,
        constants=constants,
    )


def _problem(table: dict[str, Any], place: Place) -> Problem:
    if "objective" in table:
        return _objective(table, place)
    keys = {"functional": str, "particles": int, "options": dict, "data": dict, "start": dict}
    optional = {
        "options": Parameter(dict, None),
        "data": Parameter(dict, None),
        "same_data": Parameter(bool, False),
        "confinement": Parameter(float, 0.0),
        "constants": Parameter(dict, None),
    }
    values = read(table, {name: Parameter(hint) for name, hint in keys.items()} | optional, place)
    name, options, sources = values["functional"], values.get("options", {}), SOURCES | SAMPLES
    if name.endswith(".py"):
        raise (place / "functional").error(f'given "{name}"; say which one in it: "{name}:NAME".')
    if not _own_module(name):
        entry = choose(name, FUNCTIONALS, place / "functional")
        options = read(options, entry.parameters, place / "options")
        pairs = entry.given != ("target",)
        sources = SOURCES if pairs else SAMPLES
        if "data" not in values:
            needs, files = (
                ("inputs and targets", ', or a file "data.npz" or "data.csv"') if pairs else ("a target's sample", "")
            )
            raise ConfigError(
                f"{place.file}: missing table {place.key}.data; {name} needs {needs}: give "
                f"source = one of {', '.join(sources)}{files}."
            )
    data = values.get("data")
    start = _call(values["start"], "kind", STARTS, place / "start")
    return _make(
        Problem,
        place,
        functional=Call(name, options),
        particles=values["particles"],
        start=start,
        data=None if data is None else _call(data, "source", sources, place / "data"),
        same_data=values["same_data"],
        confinement=values["confinement"],
        constants=read(values["constants"], CONSTANTS, place / "constants") if "constants" in values else None,
    )


def _method(table: dict[str, Any], place: Place) -> Method:
    """A flow or transform and its arguments; ``steps``, and a table of jumps, are read like the rest."""
    steps = {name: value for name, value in table.items() if name == "steps"}
    kind, known = ("transform", TRANSFORMS) if "transform" in table else ("flow", FLOWS)
    if kind not in table:
        raise ConfigError(
            f"{place.file}: missing key {(place / kind).key}; {suggestion('', FLOWS)}; "
            f"or, for an objective, {(place / 'transform').key}; {suggestion('', TRANSFORMS)}"
        )
    call = _call({name: value for name, value in table.items() if name != "steps"}, kind, known, place)
    if isinstance(jumps := call.arguments.get("perturbation"), dict):
        allowed = NOISE | (WINDOW if "trigger" in FLOWS[call.name].given else {})
        call.arguments["perturbation"] = read(jumps, allowed, place / "perturbation")
    return _make(Method, place, **vars(call), kind=kind, **read(steps, {"steps": Parameter(int, None)}, place))


def _call(table: dict[str, Any], key: str, registry: Mapping[str, Entry], place: Place) -> Call:
    """A table that names something under ``key`` and gives its arguments beside it."""
    if key not in table:
        raise ConfigError(f"{place.file}: missing key {(place / key).key}; {suggestion('', registry)}")
    name, rest = table[key], {other: value for other, value in table.items() if other != key}
    own = key == "source" and registry is not SAMPLES and isinstance(name, str) and own_data(name)
    entry = OWN_DATA if own else choose(name, registry, place / key)
    return Call(name, read(rest, entry.parameters, place))


def _own_module(functional: str) -> str:
    """The Python file of a functional of the user's own; empty for one that is not."""
    file, _, symbol = functional.rpartition(":")
    return file if file.endswith(".py") and symbol else ""


def _whole_paths(document: Mapping[str, Any], file: str) -> dict[str, Any]:
    """The document with whole paths to the user's own files, which it may give relative to its folder."""

    def whole(value: Any, key: str) -> Any:
        if isinstance(value, dict) and key in ("problem", "problem.data"):
            return {name: whole(inner, f"{key}.{name}") for name, inner in value.items()}
        own = {"problem.functional": _own_module, "problem.data.source": lambda name: own_data(name) and name}
        if not isinstance(value, str) or key not in own or not (path := own[key](value)):
            return value
        if "\0" in path:
            raise Place(file).error(f"{key}: given {show(value)}; no file has a zero byte in its name.")
        return str((Path(file).parent / path).resolve()) + value[len(path) :]

    located = {name: whole(value, name) for name, value in document.items()}
    vary = located.get("vary")
    if isinstance(vary, dict) and isinstance(key := vary.get("key"), str):
        values = vary.get("values")
        if isinstance(values, dict):
            values = {name: whole(value, key) for name, value in values.items()}
        if isinstance(values, list):
            values = [whole(value, key) for value in values]
        located["vary"] = {**vary, "values": values} if "values" in vary else vary
    return located


def _table(value: Any, place: Place) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise place.error(f"given {show(value)}; give a table.")
    return value


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


def _document_of(text: str, file: str) -> dict[str, Any]:
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
        table = _table(table.setdefault(name, {}), place)
    table[names[-1]] = value


def dump(config: Config) -> str:
    """The config as TOML; reading it back gives an equal one.

    Example:
        >>> problem = Problem(Call("/home/me/energy.py:F"), 100, Call("gaussian", {"dimension": 2}))
        >>> print(dump(Config("mine", 10, problem, {"static": Method("wgf", {"step_size": 0.1})})))
        name = "mine"
        steps = 10
        ...
        [arms.static]
        flow = "wgf"
        step_size = 0.1
    """
    return toml.write(_document(config))


def _document(config: Config) -> dict[str, Any]:
    problem, apart = config.problem, ("file", "problem", "arms", "vary", "targets", "snapshots")
    document: dict[str, Any] = {
        each.name: getattr(config, each.name) for each in fields(config) if each.name not in apart
    }
    document |= {name: given for name in ("targets", "snapshots") if (given := getattr(config, name))}
    document["problem"] = _problem_table(problem)
    document["arms"] = {
        name: {arm.kind: arm.name, **({"steps": arm.steps} if arm.steps else {}), **arm.arguments}
        for name, arm in config.arms.items()
    }
    if config.vary is not None:
        document["vary"] = vars(config.vary)
    return document


def _problem_table(problem: Problem) -> dict[str, Any]:
    if problem.is_objective:
        named = {"objective": problem.functional.name, "options": problem.functional.arguments}
        start = {"start": problem.start.arguments} if problem.start.arguments else {}
        return named | {"constants": problem.constants} | start
    table: dict[str, Any] = {"functional": problem.functional.name, "particles": problem.particles}
    if problem.same_data:
        table["same_data"] = True
    if problem.confinement:
        table["confinement"] = problem.confinement
    if problem.constants:
        table["constants"] = problem.constants
    table["options"] = problem.functional.arguments
    if problem.data is not None:
        table["data"] = {"source": problem.data.name, **problem.data.arguments}
    table["start"] = {"kind": problem.start.name, **problem.start.arguments}
    return table
