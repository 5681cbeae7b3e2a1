"""Strict tables: every table of a config is a call, a pydantic model made from the signature of what it calls."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, reduce
from operator import or_
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import optax
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, create_model, model_serializer
from pydantic_core import ErrorDetails

from pwgf_jax import flows, kernels
from pwgf_jax.experiments.messages import ConfigError, Place, literal, show, suggestion
from pwgf_jax.experiments.own import imported
from pwgf_jax.flows.damping import LevenbergMarquardt
from pwgf_jax.flows.injection import AdaptiveLevel
from pwgf_jax.functionals.stein import Energy
from pwgf_jax.problems import Normal, ThreeRings

__all__ = ["OWN", "STANDS_FOR", "Call", "Choice", "Entry", "Table", "describe", "read"]

_MARK = "\0"  # begins the tags that pydantic puts into the path of an error; no key of a config does
_BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
_SIGNS = {"ge": "a non-negative number", "gt": "a positive number"}
_Model = TypeVar("_Model", bound="Table")


class Table(BaseModel):
    """A table of a config: no key but its own, and every value of the very type that is asked for."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, defer_build=True)

    apart: ClassVar[frozenset[str]] = frozenset()

    @property
    def arguments(self) -> dict[str, Any]:
        """What it gives, as plain data, defaults that TOML can write included."""
        return self.model_dump(exclude=set(self.apart), exclude_none=True)

    def made(self) -> dict[str, Any]:
        """The arguments as what they stand for: kernels, schedules, optimizers, ..."""
        given = dict(self)
        return {name: _made(given[name]) for name in self.arguments}


class Call(Table):
    """A table that names something under a key, and gives its arguments beside it.

    Example:
        >>> def sgd(learning_rate: float, momentum: float | None = None): ...
        >>> call = Entry(sgd).table("optimizer", "sgd").model_validate({"optimizer": "sgd", "learning_rate": 1})
        >>> call.name, call.arguments
        ('sgd', {'learning_rate': 1.0})
    """

    key: ClassVar[str]
    entry: ClassVar[Entry]

    @property
    def name(self) -> str:
        """What it names."""
        return getattr(self, self.key)

    def make(self, **others: Any) -> Any:
        """What it stands for."""
        make = imported(self.name, Place(self.key)) if self.entry.own else self.entry.make
        return make(**others, **self.made())

    @model_serializer(mode="wrap")
    def _named_first(self, plain: Any) -> dict[str, Any]:
        table = plain(self)
        return {self.key: table.pop(self.key), **table} if self.key in table else table


def _made(value: Any) -> Any:
    if isinstance(value, Call):
        return value.make()
    if isinstance(value, Mapping):  # TOML's keys are strings, steps of a schedule are whole numbers
        return {int(key) if key.isdecimal() else key: _made(each) for key, each in value.items()}
    return value


@dataclass(frozen=True)
class Entry:
    """Something that a config can name.

    Args:
        make: function or class to call.
        given: its arguments that do not come from the config.
        beside: fields, (annotation, default), that its table has beside these.
        base: of its table.
        own: whether it is in a file of the user's, so that its table may have any key until that is imported.

    Example:
        >>> def wave(length: float, phase: float = 0.0): ...
        >>> Entry(wave).signature
        'length, phase = 0.0'
    """

    make: Callable[..., Any]
    given: tuple[str, ...] = ()
    beside: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    base: type[Call] = Call
    own: bool = False

    @cached_property
    def fields(self) -> dict[str, tuple[Any, Any]]:
        """Annotation and default of every key; ``...`` where there is no default."""
        found = {} if self.own else dict(_fields(self.make, self.given))
        return found | dict(self.beside)

    def table(self, key: str, name: str) -> type[Call]:
        """The model of the tables that name it under a key."""
        base = type("", (self.base,), {"model_config": {"extra": "allow"}}) if self.own else self.base
        file = r"\.py:\w+$" if self.own or name in OWN else rf"\.{name.rpartition('.')[2]}$"
        named = Literal[name] if name.isidentifier() else Annotated[str, Field(pattern=file)]
        fields: Any = {key: (named, ...), **self.fields}
        made = create_model(f"{name}_{key}", __base__=base, __doc__=self.summary, **fields)
        made.key, made.entry, made.apart = key, self, base.apart | {key}
        return made

    def options(self, title: str, base: type[Table] = Table) -> type[Table]:
        """The model of a table of its arguments, under whatever key that stands."""
        fields: Any = self.fields
        return create_model(title, __base__=base, __doc__=self.summary, **fields)

    @property
    def signature(self) -> str:
        """Its keys and their defaults, on one line."""
        return ", ".join(
            name if default is ... else f"{name} = {'(none)' if default is None else literal(default)}"
            for name, (_, default) in self.fields.items()
        )

    @property
    def summary(self) -> str:
        """The first line of its documentation, without the formulas that a terminal cannot show."""
        first = (inspect.getdoc(self.make) or "").partition("\n")[0]
        words = re.sub(r"[,:]?\s*:math:`[^`]*`", "", first)
        return re.sub(r":\w+:`~?([^`]*)`", r"\1", words).replace("``", "").rstrip(" .:,") + "."


def _fields(make: Callable[..., Any], given: tuple[str, ...]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    hints = _hints(make)
    for name, parameter in inspect.signature(make).parameters.items():
        if name in given or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if (hint := _annotation(hints.get(name, Any))) is None:
            continue
        if parameter.default is parameter.empty:
            yield name, (hint, ...)
        elif isinstance(parameter.default, bool | int | float | str):
            yield name, (hint, parameter.default)
        else:
            yield name, (hint | None, None)


def _hints(make: Callable[..., Any]) -> dict[str, Any]:
    if inspect.isclass(make):  # a named tuple has them as a class, a plain class at its constructor
        return get_type_hints(make) | get_type_hints(make.__init__)
    try:
        return get_type_hints(make)
    except NameError:  # names that exist for type checkers only; what is not resolved is left to the call
        return {name: Any if isinstance(hint, str) else hint for name, hint in make.__annotations__.items()}


def _parts(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union, None left out."""
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(inner for part in get_args(hint) for inner in _parts(part))
    return () if hint is type(None) else (hint,)


@cache
def _annotation(hint: Any) -> Any:
    """What TOML may write for an argument of a type; None where that is nothing."""
    if hint is Any:
        return Any
    parts = _parts(hint)
    plain = [each for each in parts if each in (bool, int, float, str, dict) or get_origin(each) in (Literal, list)]
    plain += [dict[str, float] for each in parts if get_origin(each) is dict]
    choices: dict[str, dict[str, Entry]] = {}
    for kind, (_, (key, tables)) in STANDS_FOR.items():
        if kind in parts:
            choices.setdefault(key, {}).update(tables)
    whole = reduce(or_, plain) if plain else None
    return Choice(choices, whole).annotation if choices else whole


@dataclass(frozen=True, eq=False)
class Choice:
    """One of several tables, told by what they name; or a plain value.

    Args:
        tables: what may be named, by the key that names it.
        plain: the annotation of what is no table, where that may be given.
        why: what a message says of it where it is missing.

    did you mean sgd?
    """

    tables: Mapping[str, Mapping[str, Entry]]
    plain: Any = None
    why: str = ""

    @cached_property
    def members(self) -> dict[str, Any]:
        """The annotations to choose from, by tag."""
        models = {
            f"{_MARK}{key}={name}": entry.table(key, name)
            for key, entries in self.tables.items()
            for name, entry in entries.items()
        }
        return models if self.plain is None else {**models, _MARK: self.plain}

    @cached_property
    def annotation(self) -> Any:
        """As pydantic takes it."""
        members = [Annotated[member, Tag(tag)] for tag, member in self.members.items()]
        return Annotated[reduce(or_, members), Discriminator(self.tag), self]

    def tag(self, value: Any) -> str | None:
        """That of the member which a value is to be read as."""
        if isinstance(value, Call):
            value = {value.key: value.name}
        if not isinstance(value, Mapping):
            return _MARK if self.plain is not None else None
        key = next((key for key in self.tables if key in value), None)
        return f"{_MARK}{key}={_family(value[key])}" if key and isinstance(value[key], str) else None

    def refusal(self, value: Any, place: Place) -> ConfigError:
        """What is wrong with a value that belongs to no member."""
        named = isinstance(value, Mapping) and any(key in value for key in self.tables)
        if not isinstance(value, Mapping) or (self.plain is not None and not named):
            return place.error(f"given {show(value)}; give {describe(self.annotation)}.")
        for key, entries in self.tables.items():
            if str(value.get(key, "")).endswith(".py"):
                return (place / key).error(f'given "{value[key]}"; say which one in it: "{value[key]}:NAME".')
            if key in value:
                near = suggestion(value[key] if isinstance(value[key], str) else "", entries)
                return (place / key).error(f"given {show(value[key])}; {near}")
        ways = [f"{(place / key).key}; {suggestion('', entries)}" for key, entries in self.tables.items()]
        return ConfigError(f"{place.file}: missing key {'; or '.join(ways)}")


def _family(name: str) -> str:
    """The name that the catalogue has for a file of the user's: FILE.py:NAME, FILE.csv, FILE.npz; else the name."""
    return re.sub(
        r"^.+\.(py:\w+|npz|csv)$", lambda found: f"FILE.{re.sub(':.*', ':NAME', found[1])}", name, flags=re.DOTALL
    )


def describe(hint: Any) -> str:
    """A type in words: what a key allows."""
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", dict: "a table"}
    said = []
    for part in _parts(hint):
        if choice := _choice(part):
            said += [describe(choice.plain)] if choice.plain is not None else []
            optax_s = [key for key in choice.tables if key in ("optimizer", "schedule")]
            said += [f"a table that names an optax {' or '.join(optax_s)}"] if optax_s else []
            for key in choice.tables.keys() - set(optax_s):
                said.append(f"a table with {key} = one of " + ", ".join(f'"{name}"' for name in choice.tables[key]))
        elif part in words:
            said.append(words[part])
        elif get_origin(part) is Literal:
            said.append("one of " + ", ".join(f'"{choice}"' for choice in get_args(part)))
        elif get_origin(part) is list:
            said.append(f"a list of {'strings' if get_args(part) == (str,) else 'values'}")
        elif get_origin(part) is dict or (inspect.isclass(part) and issubclass(part, Table)):
            said.append("a table")
        elif get_origin(part) is Annotated:
            said.append(describe(get_args(part)[0]))
    return " or ".join(dict.fromkeys(said)) or "a value"


def _choice(hint: Any) -> Choice | None:
    return next((each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Choice)), None)


def read(model: type[_Model], table: Mapping[str, Any], place: Place) -> _Model:
    """A table read strictly.

    Args:
        model: what it is to be.
        table: as read from TOML.
        place: where it stands.

    Returns:
        The model's instance.

    Raises:
        ConfigError: if a key is unknown or missing, or a value is of the wrong type or out of range.
    """
    try:
        return model.model_validate(table)
    except ValidationError as error:
        found = error.errors(include_url=False)
        first = next((each for each in found if each["type"] == "extra_forbidden"), found[0])
        raise _refusal(model, first, place) from None


def _refusal(model: type[Table], error: ErrorDetails, place: Place) -> ConfigError:
    """An error of pydantic's, in a sentence under the key that it is about."""
    hint, allowed, above = model, [], place
    for each in error["loc"]:
        if (choice := _choice(hint)) and str(each).startswith(_MARK):
            if each == _MARK:  # the plain value: what else may be given is described too
                break
            hint = choice.members[str(each)]
            continue
        hint = next((part for part in _parts(hint) if _choice(part) or get_origin(part) or inspect.isclass(part)), hint)
        if each == "[key]":
            place = above
            break
        if isinstance(each, int):  # of a list, under the list's key
            hint = get_args(hint)[0]
        elif inspect.isclass(hint) and issubclass(hint, Table):
            hints = get_type_hints(hint, include_extras=True)
            beside = next(base.model_fields for base in hint.__mro__[1:] if issubclass(base, Table))
            allowed = sorted(
                (name for name in hint.model_fields if name != getattr(hint, "key", "")), key=beside.__contains__
            )
            above, place, hint = place, place / str(each), hints.get(str(each), Any)
        elif get_origin(hint) is dict:
            above, place, hint = place, place / str(each), get_args(hint)[1]
        else:  # which member of a plain union it was: all of them are described
            break
    return _sentence(error, hint, allowed, place)


def _sentence(error: ErrorDetails, hint: Any, allowed: list[str], place: Place) -> ConfigError:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    choice = next((found for part in _parts(hint) if (found := _choice(part))), None)
    if kind == "extra_forbidden":
        return ConfigError(f"{place.file}: unknown key {place.key}; {suggestion(str(error['loc'][-1]), allowed)}")
    if kind == "missing":
        what, why = ("table", f"{choice.why}: ") if choice and choice.why else ("key", "")
        return ConfigError(f"{place.file}: missing {what} {place.key}; {why}give {describe(hint)}.")
    if kind.startswith("union_tag") and choice:
        return choice.refusal(value, place)
    if kind == "value_error":  # of a model's own: it begins with the key that it is about
        return ConfigError(f"{place.file}: {place.key}{'.' if place.key else ''}{context['error']}")
    if kind == "given":  # of a field's own
        return place.error(error["msg"])
    for bound, words in _BOUNDS.items():
        if bound in context:
            least = context[bound]
            value = float(value) if isinstance(least, float) else value
            limit = _SIGNS[bound] if least == 0 and isinstance(least, float) else f"{words} {least}"
            return ConfigError(f"{place.file}: {place.key} = {literal(value)}; give {limit}.")
    return place.error(f"given {show(value)}; give {describe(hint)}.")


def _from_optax(kind: str) -> dict[str, Entry]:
    """The optimizers, or the schedules, that optax offers by name."""
    if kind == "optimizer":
        module, has = optax, lambda names: "learning_rate" in names
    else:
        module, has = optax.schedules, lambda names: bool(names & {"init_value", "value"})
    found = {name: getattr(module, name) for name in dir(module) if not name.startswith(("_", "scale_by", "inject"))}
    return {
        name: Entry(make, given=("linesearch",))
        for name, make in found.items()
        if inspect.isfunction(make)
        and has(inspect.signature(make).parameters.keys())
        and "key" not in inspect.signature(make).parameters  # TOML has no random keys
    }


OWN = {"FILE.py:NAME": Entry(imported, own=True)}
"""Something in a Python file of the user's."""
STANDS_FOR: dict[Any, tuple[str, tuple[str, Mapping[str, Entry]]]] = {
    kernels.Kernel: (
        "Kernels",
        (
            "kind",
            {name: Entry(getattr(kernels, name)) for name in ("gaussian", "laplace", "imq", "energy", "coulomb")} | OWN,
        ),
    ),
    Energy: ("Energies", ("kind", {"gaussian": Entry(Normal), "three_rings": Entry(ThreeRings)} | OWN)),
    AdaptiveLevel: ("Levels of noise", ("kind", {"adaptive": Entry(flows.adaptive_level)})),
    flows.Mirror: ("Steps on the weights", ("kind", {"mirror": Entry(flows.mirror)})),
    LevenbergMarquardt: ("Damping rules", ("kind", {"levenberg_marquardt": Entry(flows.levenberg_marquardt)})),
    optax.GradientTransformation: ("Optimizers of optax", ("optimizer", _from_optax("optimizer"))),
    optax.Schedule: ("Schedules of optax", ("schedule", _from_optax("schedule"))),
}
"""What a table may stand for where an argument has the type: a title, the key that names it, and what it may name."""
