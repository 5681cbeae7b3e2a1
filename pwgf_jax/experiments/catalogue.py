"""What a config may name: whatever the packages offer of a kind, so that a new flow or loss needs no line here."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeAlias

from pydantic import Field, TypeAdapter

from pwgf_jax import flows, functionals, perturbation, transforms
from pwgf_jax.experiments import sources, starts, tables
from pwgf_jax.experiments.baselines import BASELINES
from pwgf_jax.experiments.descents import DESCENTS
from pwgf_jax.experiments.objectives import OBJECTIVES as PROBLEMS
from pwgf_jax.experiments.own import file_of
from pwgf_jax.experiments.reading import OWN, STANDS_FOR, Call, Choice, Entry, Table
from pwgf_jax.experiments.saddles import SADDLES as KNOWN_SADDLES
from pwgf_jax.flows.protocol import is_preset

__all__ = [
    "ARM",
    "FLOWS",
    "FUNCTIONALS",
    "OBJECTIVES",
    "PROBLEM",
    "SADDLES",
    "SAMPLES",
    "SOURCES",
    "STARTS",
    "TRANSFORMS",
    "Count",
    "Known",
    "Method",
    "Near",
    "Problem",
    "method",
]

Count: TypeAlias = Annotated[int, Field(ge=1, lt=2**30)]
"""Of steps and seeds: a step and a window are added up in 32 bits."""
Positive: TypeAlias = Annotated[float, Field(gt=0)]


class Method(Call):
    """What an arm does: a flow of measures, or a transform of optax, and its arguments.

    Args:
        steps: how many it takes; None for as many as the config says.
    """

    apart: ClassVar[frozenset[str]] = frozenset({"steps"})

    steps: Count | None = None


class Problem(Call):
    """What is minimised, and from where: a functional with its particles, or a saddle or objective with its own start.

    Args:
        options: of the functional, saddle or objective.
        constants: what methods may know of it.
        same_data: whether all seeds have the data of the first one, and differ in start and noise only.
        confinement: λ of a quadratic confinement λ/2 ∫|x|² dμ that is added to the functional.
    """

    if TYPE_CHECKING:
        particles: int
        options: Any
        start: Any
        data: Call | None
        constants: Known | None
        same_data: bool
        confinement: float

    @property
    def is_objective(self) -> bool:
        """Whether it is a function of finitely many parameters."""
        return self.key == "objective"

    @property
    def plain_options(self) -> dict[str, Any]:
        """The options as plain data."""
        return self.options.arguments if isinstance(self.options, Table) else self.options

    @property
    def is_own(self) -> bool:
        """Whether it is in a Python file of the user's."""
        return bool(file_of(self.name))


class Near(Table):
    """Where runs of an objective, or from a saddle of measures, start: about a critical point.

    Args:
        at: its name.
        scale: standard deviation about it.
    """

    at: str
    scale: float = 0.0


def _offered(module: Any, wanted: Callable[[Any], Any]) -> dict[str, Any]:
    return {name: getattr(module, name) for name in sorted(module.__all__) if wanted(getattr(module, name))}


def _data_of(thing: Any) -> tuple[str, ...]:
    """The data that a functional is made of, its first arguments: inputs and targets, or a sample of a target."""
    names = tuple(inspect.signature(thing).parameters) if inspect.isfunction(thing) else ()
    return next((wanted for wanted in (("inputs", "targets"), ("target",)) if names[: len(wanted)] == wanted), ())


_JUMPS = Entry(perturbation.hessian_noise, ("part",)).options("Noise")
_WINDOWED = Entry(transforms.gradient_trigger).options("Jumps", _JUMPS)
_WEIGHTS = Choice(dict([STANDS_FOR[flows.Mirror][1]])).annotation


def _method(thing: Any) -> Entry:
    """A flow in a config: beside its numbers batches and a step on the weights, and jumps where it can be perturbed."""
    takes = inspect.signature(thing).parameters.keys() & {"perturbation", "trigger"}
    jumps = (_WINDOWED if "trigger" in takes else _JUMPS) | None
    beside = {"batch_size": (int | None, None), "weights": (_WEIGHTS | None, None)}
    beside |= {"perturbation": (jumps, None)} if takes else {}
    return Entry(thing, tuple(takes), beside, Method)


FLOWS = {name: _method(thing) for name, thing in _offered(flows, is_preset).items()}
TRANSFORMS = {name: Entry(make, ("setting",), base=Method) for name, make in (DESCENTS | BASELINES).items()}
FUNCTIONALS = {name: Entry(thing, _data_of(thing)) for name, thing in _offered(functionals, _data_of).items()}
OBJECTIVES = {name: Entry(make, ("key", "dtype")) for name, make in PROBLEMS.items()}
SADDLES = {name: Entry(make, ("key", "dtype")) for name, make in KNOWN_SADDLES.items()}
SOURCES = {
    "teacher": Entry(sources.Teacher),
    "sign_pairs": Entry(sources.SignPairs),
    "small_teacher": Entry(sources.SmallTeacher),
    "digits": Entry(tables.digits),
    "FILE.csv": Entry(tables.read_table, ("path",)),
    "FILE.npz": Entry(tables.read_table, ("path",)),
}
# Sources of a target's sample, where the others are of inputs and targets.
SAMPLES = {"gaussian": Entry(sources.gaussian), "three_rings": Entry(sources.three_rings)}
STARTS = {
    "gaussian": Entry(starts.Gaussian),
    "antithetic": Entry(starts.Antithetic),
    "icfl_saddle": Entry(starts.IcflSaddle),
    "students": Entry(starts.Students),
}


class Known(Table):
    """What methods may know of a problem, see :class:`pwgf_jax.theory.Constants`."""

    smoothness: Positive
    hessian_lipschitz: Positive
    eps: Positive
    delta: Positive


def _of_functional(name: str, entry: Entry) -> Entry:
    """A problem: a functional, its options and data, particles, and where these start."""
    options, data = (dict[str, Any], {}), (Choice({"source": SOURCES | SAMPLES | OWN}).annotation | None, None)
    if not entry.own:
        pairs = entry.given != ("target",)
        why = f"{name} needs {'inputs and targets' if pairs else 'a sample of a target'}"
        options = (entry.options(f"{name}_options"), Field({}, validate_default=True))
        data = (Choice({"source": (SOURCES if pairs else SAMPLES) | OWN}, why=why).annotation, ...)
    beside = {
        "particles": (Annotated[int, Field(ge=1)], ...),
        "same_data": (bool, False),
        "confinement": (Annotated[float, Field(ge=0)], 0.0),
        "constants": (Known | None, None),
        "options": options,
        "data": data,
        "start": (Choice({"kind": STARTS | OWN}).annotation, ...),
    }
    return Entry(entry.make, tuple(inspect.signature(entry.make).parameters), beside, Problem)


def _with_start(name: str, entry: Entry, constants: Any) -> Entry:
    """A problem that brings its own data and start: an objective, or a saddle of measures."""
    options = (entry.options(f"{name}_options"), Field({}, validate_default=True))
    beside = {
        "constants": constants,
        "options": (dict[str, Any], {}) if entry.own else options,
        "start": (Near | None, None),
    }
    return Entry(entry.make, tuple(inspect.signature(entry.make).parameters), beside, Problem)


ARM = Choice({"flow": FLOWS, "transform": TRANSFORMS})
PROBLEM = Choice(
    {
        "functional": {name: _of_functional(name, entry) for name, entry in (FUNCTIONALS | OWN).items()},
        "saddle": {name: _with_start(name, entry, (Known | None, None)) for name, entry in SADDLES.items()},
        "objective": {name: _with_start(name, entry, (Known, ...)) for name, entry in (OBJECTIVES | OWN).items()},
    }
)


def method(**table: Any) -> Method:
    """What an arm's table means.

    Example:
        >>> method(flow="wgf", step_size=0.1).name
        'wgf'
    """
    return TypeAdapter(ARM.annotation).validate_python(table)
