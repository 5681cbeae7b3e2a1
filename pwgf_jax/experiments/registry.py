"""What a config can name: functionals, data sources, starts and flows, with the arguments they take."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, get_type_hints

from pwgf_jax import flows, functionals, perturbation, transforms
from pwgf_jax.experiments import data, samples, starts, tables
from pwgf_jax.experiments.descents import DESCENTS
from pwgf_jax.experiments.objectives import OBJECTIVES as PROBLEMS
from pwgf_jax.experiments.reading import Parameter, parameters
from pwgf_jax.theory import Constants

__all__ = [
    "CONSTANTS",
    "FLOWS",
    "FUNCTIONALS",
    "NOISE",
    "OBJECTIVES",
    "OWN_DATA",
    "SAMPLES",
    "SOURCES",
    "STARTS",
    "TRANSFORMS",
    "WINDOW",
    "Entry",
    "own_data",
]


@dataclass(frozen=True)
class Entry:
    """Something that a config can name.

    Args:
        make: function or class to call.
        given: its arguments that do not come from the config.
        added: keys that its table may have beside its arguments.

    Example:
        >>> STARTS["antithetic"].signature
        'scale = 0.3, jitter = 1e-06'
    """

    make: Callable[..., Any]
    given: tuple[str, ...] = ()
    added: Mapping[str, Parameter] = field(default_factory=dict)

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        """The keys that its table may have."""
        return parameters(self.make, without=self.given) | dict(self.added)

    @property
    def signature(self) -> str:
        """Its keys and their defaults, on one line."""
        said = [
            name if parameter.required else f"{name} = {_toml(parameter.default)}"
            for name, parameter in self.parameters.items()
        ]
        return ", ".join(said)

    @property
    def summary(self) -> str:
        """The first line of its documentation, without the formulas that a terminal cannot show."""
        first = (inspect.getdoc(self.make) or "").partition("\n")[0]
        words = re.sub(r"[,:]?\s*:math:`[^`]*`", "", first)
        return re.sub(r":\w+:`~?([^`]*)`", r"\1", words).replace("``", "").rstrip(" .:,") + "."


def _toml(value: Any) -> str:
    if value is None:
        return "(none)"
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)


def own_data(name: str) -> bool:
    """Whether a data source is a file of the user's own.

    Example:
        >>> own_data("measurements.csv"), own_data("teacher")
        (True, False)
    """
    return name.endswith((".npz", ".csv"))


def _offered(module: Any, wanted: Callable[[Any], bool]) -> dict[str, Any]:
    return {name: getattr(module, name) for name in sorted(module.__all__) if wanted(getattr(module, name))}


def _is_method(thing: Any) -> bool:
    """Whether it is a named method: a constructor of flows whose arguments a config can write."""
    if not inspect.isfunction(thing) or thing in (flows.flow, flows.descent, flows.seeded, flows.minibatch):
        return False
    return get_type_hints(thing).get("return") is flows.Flow


def _method(thing: Any) -> Entry:
    """A flow in a config: beside its numbers the size of a minibatch, and where it can be perturbed a table of that."""
    takes = inspect.signature(thing).parameters.keys() & {"perturbation", "trigger"}
    added = {"batch_size": Parameter(int, None)} | ({"perturbation": Parameter(dict, None)} if takes else {})
    return Entry(thing, tuple(takes), added)


def _data_of(thing: Any) -> tuple[str, ...]:
    """The data that it makes a functional of: inputs and targets, or a sample of a target."""
    names = tuple(inspect.signature(thing).parameters) if inspect.isfunction(thing) else ()
    return next((wanted for wanted in (("inputs", "targets"), ("target",)) if names[: len(wanted)] == wanted), ())


# Whatever the library offers of a kind can be named: a new flow or loss needs no line here.
FLOWS = {name: _method(thing) for name, thing in _offered(flows, _is_method).items()}
FUNCTIONALS = {
    name: Entry(thing, _data_of(thing)) for name, thing in _offered(functionals, lambda f: bool(_data_of(f))).items()
}
# Functions of finitely many parameters, the methods for them, and what these may know.
OBJECTIVES = {name: Entry(make, ("key", "dtype")) for name, make in PROBLEMS.items()}
TRANSFORMS = {name: Entry(make, ("setting",)) for name, make in DESCENTS.items()}
CONSTANTS = parameters(Constants, without=("dimension", "size"))
SOURCES = {
    "teacher": Entry(data.Teacher),
    "sign_pairs": Entry(data.SignPairs),
    "small_teacher": Entry(data.SmallTeacher),
    "digits": Entry(tables.digits),
}
# Sources of a target's sample, where the others are of inputs and targets.
SAMPLES = {"gaussian": Entry(samples.gaussian), "three_rings": Entry(samples.three_rings)}
OWN_DATA = Entry(tables.read_table, ("path",))
# The keys of a table ``perturbation``: of Hessian-guided noise, and of the trigger where a flow takes one.
NOISE = parameters(perturbation.hessian_noise, without=("part",))
WINDOW = parameters(transforms.gradient_trigger)
STARTS = {
    "gaussian": Entry(starts.Gaussian),
    "antithetic": Entry(starts.Antithetic),
    "icfl_saddle": Entry(starts.IcflSaddle),
    "students": Entry(starts.Students),
}
