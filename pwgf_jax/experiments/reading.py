"""Strict reading of tables: every table of a config is a call, checked against the signature of what it calls."""

from __future__ import annotations

import difflib
import inspect
import math
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import optax

from pwgf_jax import flows, kernels
from pwgf_jax.experiments import toml
from pwgf_jax.experiments.samples import Normal, ThreeRings

__all__ = ["KINDS", "ConfigError", "Parameter", "Place", "choose", "make", "parameters", "read", "show", "suggestion"]

# What a table with a ``kind`` stands for, by the key that it is given to.
KINDS: dict[str, dict[str, Callable[..., Any]]] = {
    "kernel": {name: getattr(kernels, name) for name in ("gaussian", "laplace", "imq", "energy", "coulomb")},
    "energy": {"gaussian": Normal, "three_rings": ThreeRings},
    "level": {"adaptive": flows.adaptive_level},
}

_SHOWN = 120  # characters of a value that messages quote
_WHOLE = 2**31  # steps, sizes and seeds are counted in 32 bits


class ConfigError(ValueError):
    """What a user asked for cannot be done; one sentence says what was given and what is allowed."""


@dataclass(frozen=True)
class Place:
    """A dotted key of a file, for messages.

    Args:
        file: the file, as the user wrote it.
        key: the dotted key; empty for the file itself.

    Example:
        >>> raise (Place("a.toml") / "arms" / "static").error("give a table.")
        Traceback (most recent call last):
        ...
        pwgf_jax.experiments.reading.ConfigError: a.toml: arms.static: give a table.
    """

    file: str
    key: str = ""

    def __truediv__(self, name: str) -> Place:
        return Place(self.file, f"{self.key}.{toml.key(name)}" if self.key else toml.key(name))

    def error(self, message: str) -> ConfigError:
        """The message, under this place's name."""
        return ConfigError(f"{self.file}: {self.key}: {message}" if self.key else f"{self.file}: {message}")


class Parameter(NamedTuple):
    """What a key may hold.

    Args:
        hint: its type.
        default: what it is without being given; ``inspect.Parameter.empty`` if it has to be.
    """

    hint: Any
    default: Any = inspect.Parameter.empty

    @property
    def required(self) -> bool:
        """Whether the key has to be given."""
        return self.default is inspect.Parameter.empty


def parameters(make: Callable[..., Any], without: Collection[str] = ()) -> dict[str, Parameter]:
    """The arguments of a function or class that TOML can write, as keys of a table.

    Args:
        make: function or class.
        without: arguments that do not come from the table.

    Returns:
        Parameters by name, in the order of the signature.

    Example:
        >>> def make(data, step_size: float, depth: int = 32): ...
        >>> {name: parameter.required for name, parameter in parameters(make, without=["data"]).items()}
        {'step_size': True, 'depth': False}
    """
    hints = _hints(make)
    return {
        name: Parameter(hints.get(name, Any), parameter.default)
        for name, parameter in inspect.signature(make).parameters.items()
        if name not in without
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and (name in KINDS or writable(hints.get(name, Any)))
    }


def _hints(make: Callable[..., Any]) -> dict[str, Any]:
    if inspect.isclass(make):  # a named tuple has them as a class, a plain class at its constructor
        return get_type_hints(make) | get_type_hints(make.__init__)
    try:
        return get_type_hints(make)
    except NameError:  # names that exist for type checkers only; what is not resolved is left to the call
        return {name: Any if isinstance(hint, str) else hint for name, hint in make.__annotations__.items()}


def suggestion(name: str, allowed: Iterable[str]) -> str:
    """The end of a message about an unknown name: what is allowed, and the nearest of it.

    Example:
        >>> suggestion("pwfg", ["pwgf", "wgf"])
        'allowed: pwgf, wgf; did you mean pwgf?'
    """
    allowed = list(allowed)
    near = difflib.get_close_matches(name[:_SHOWN], allowed, n=1)
    return f"allowed: {', '.join(allowed) or 'nothing'}" + (f"; did you mean {near[0]}?" if near else "")


def choose(name: Any, known: Mapping[str, Any], place: Place) -> Any:
    """What a name stands for.

    Args:
        name: as read from TOML, of any type.
        known: what there is, by name.
        place: where the name stands.

    Returns:
        The entry.

    Raises:
        ConfigError: if there is none of the name, or it is none.

    Example:
        >>> choose(["a"], {"a": 1}, Place("a.toml", "kind"))
        Traceback (most recent call last):
        ...
        pwgf_jax.experiments.reading.ConfigError: a.toml: kind: given ["a"] (a list); allowed: a
    """
    if not isinstance(name, str) or name not in known:
        near = suggestion(name if isinstance(name, str) else "", known)
        raise place.error(f"given {show(name)}; {near}")
    return known[name]


def read(table: Mapping[str, Any], allowed: Mapping[str, Parameter], place: Place) -> dict[str, Any]:
    """The arguments that a table gives, checked, with the defaults that TOML can write filled in.

    Args:
        table: as read from TOML.
        allowed: its keys.
        place: where it stands.

    Returns:
        Plain TOML data by name.

    Raises:
        ConfigError: if a key is unknown or missing, or a value of the wrong type.

    Example:
        >>> read({"eps": 1}, {"eps": Parameter(float), "seeds": Parameter(int, 3)}, Place("a.toml"))
        {'eps': 1.0, 'seeds': 3}
    """
    for name in table:
        if name not in allowed:
            raise ConfigError(f"{place.file}: unknown key {(place / name).key}; {suggestion(name, allowed)}")
    values = {}
    for name, parameter in allowed.items():
        if name in table:
            values[name] = _value(name, table[name], parameter.hint, place / name)
        elif parameter.required:
            raise ConfigError(f"{place.file}: missing key {(place / name).key}; give {_ways(name, parameter.hint)}.")
        elif isinstance(parameter.default, bool | int | float | str):
            values[name] = parameter.default
    return values


def _value(name: str, value: Any, hint: Any, place: Place) -> Any:
    if name not in KINDS or (not isinstance(value, dict) and writable(hint)) or _names_step_size(value):
        return _convert(value, hint, place)
    known = KINDS[name]
    if not isinstance(value, dict) or "kind" not in value:
        raise place.error(f"given {show(value)}; give {_ways(name, hint)}.")
    kind, rest = value["kind"], {key: inner for key, inner in value.items() if key != "kind"}
    return {"kind": kind, **read(rest, parameters(choose(kind, known, place / "kind")), place)}


def _names_step_size(value: Any) -> bool:
    return isinstance(value, dict) and bool({"optimizer", "schedule"} & set(value))


def _ways(name: str, hint: Any) -> str:
    """What a key allows, tables with a kind included."""
    if name not in KINDS:
        return describe(hint)
    table = "a table with kind = one of " + ", ".join(f'"{kind}"' for kind in KINDS[name])
    return f"{describe(hint)} or {table}" if writable(hint) else table


def _alternatives(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(inner for part in get_args(hint) for inner in _alternatives(part))
    return (hint,)


def writable(hint: Any) -> bool:
    """Whether TOML can write a value of this type."""
    plain = (bool, int, float, str, dict, Any)
    parts = _alternatives(hint)
    return bool(_step_sizes(hint)) or any(
        part in plain
        or get_origin(part) in (list, Literal, Mapping)
        or (get_origin(part) is dict and get_args(part)[1] in plain)
        for part in parts
    )


def _step_sizes(hint: Any) -> tuple[str, ...]:
    """What a table may name in the place of a number: something of optax, or nothing."""
    parts = _alternatives(hint)
    if optax.GradientTransformation in parts:
        return ("optimizer", "schedule")
    return ("schedule",) if optax.Schedule in parts else ()


def _convert(value: Any, hint: Any, place: Place) -> Any:
    if isinstance(value, dict) and (kinds := _step_sizes(hint)):
        return _read_step_size(value, kinds, place)
    if isinstance(value, float) and not math.isfinite(value):
        raise place.error(f"given {value}; give a finite number.")
    if isinstance(value, int) and abs(value) >= _WHOLE:
        raise place.error(f"given {show(value)}; give a whole number below 2147483648, which 32 bits hold.")
    # An exact type wins over a number that would have to be widened.
    options = sorted(_alternatives(hint), key=lambda part: part is not type(value))
    for part in options:
        if part is Any or (part in (bool, int, float, str) and type(value) is part):
            return value
        if part is float and type(value) is int:
            return float(value)
        if get_origin(part) is Literal and value in get_args(part):
            return value
        if (part is dict or get_origin(part) is Mapping) and isinstance(value, dict):
            return value
        if get_origin(part) is dict and isinstance(value, dict):
            return {key: _convert(entry, get_args(part)[1], place / key) for key, entry in value.items()}
        if get_origin(part) is list and isinstance(value, list):
            return [_convert(entry, get_args(part)[0], place) for entry in value]
    raise place.error(f"given {show(value)}; give {describe(hint)}.")


def show(value: Any) -> str:
    """A given value and its kind, as messages quote it: on one line, and not all of what is long.

    Example:
        >>> show(True), show({"kind": 1})
        ('true (a boolean)', '{kind = 1} (a table)')
    """
    kinds = {bool: "a boolean", int: "a whole number", float: "a number", str: "a string", list: "a list"}
    kind = "a table" if isinstance(value, Mapping) else kinds.get(type(value), "a date or time")
    shown = toml.literal(value)
    return f"{shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '…'} ({kind})"


def describe(hint: Any) -> str:
    """A type in words: what a key allows."""
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", dict: "a table"}
    said = []
    for part in _alternatives(hint):
        if part in words:
            said.append(words[part])
        elif get_origin(part) is Literal:
            said.append("one of " + ", ".join(f'"{choice}"' for choice in get_args(part)))
        elif get_origin(part) is list:
            said.append(f"a list of {'strings' if get_args(part) == (str,) else 'values'}")
        elif get_origin(part) in (Mapping, dict):
            said.append("a table")
    if kinds := _step_sizes(hint):
        said.append(f"a table that names an optax {' or '.join(kinds)}")
    return " or ".join(dict.fromkeys(said)) or "a value"


def _from_optax(kind: str) -> dict[str, Callable[..., Any]]:
    """The optimizers, or the schedules, that optax offers by name."""
    if kind == "optimizer":
        module, has = optax, lambda names: "learning_rate" in names
    else:
        module, has = optax.schedules, lambda names: bool(names & {"init_value", "value"})
    functions = {
        name: getattr(module, name) for name in dir(module) if not name.startswith(("_", "scale_by", "inject"))
    }
    return {
        name: function
        for name, function in functions.items()
        if inspect.isfunction(function)
        and has(inspect.signature(function).parameters.keys())
        and "key" not in inspect.signature(function).parameters  # TOML has no random keys
    }


def _read_step_size(table: dict[str, Any], kinds: tuple[str, ...], place: Place) -> dict[str, Any]:
    """A step size written as a table that names something of optax, checked against its signature."""
    named = [kind for kind in kinds if kind in table]
    if len(named) != 1:
        ways = " or ".join(f'{kind} = "..."' for kind in kinds)
        raise place.error(f"given a table without a name; name something of optax by {ways}.")
    kind, name = named[0], table[named[0]]
    called = choose(name, _from_optax(kind), place / kind)
    rest = {key: value for key, value in table.items() if key != kind}
    return {kind: name, **read(rest, parameters(called), place)}


def make(name: str, value: Any) -> Any:
    """What a checked value of a key means: itself, or the kernel, schedule, optimizer, ... that a table names.

    Args:
        name: the key.
        value: as :func:`read` returns it.

    Returns:
        An argument for the call that the table around it stands for.

    Example:
        >>> halved = {"schedule": "piecewise_constant_schedule", "init_value": 2.0}
        >>> float(make("step_size", halved | {"boundaries_and_scales": {"5": 0.5}})(9))
        1.0
        >>> import jax.numpy as jnp
        >>> float(make("energy", {"kind": "gaussian", "scale": 2.0})(jnp.array([2.0, 2.0])))
        1.0
    """
    if not isinstance(value, dict):
        return value
    inner = {key: make(key, each) for key, each in value.items()}
    if name in KINDS and "kind" in inner:
        return KINDS[name][inner.pop("kind")](**inner)
    for kind in ("optimizer", "schedule"):
        if kind in inner:
            return _from_optax(kind)[inner.pop(kind)](**inner)
    # TOML's keys are strings, steps of a schedule are whole numbers.
    return {int(key) if key.isdecimal() else key: each for key, each in inner.items()}
