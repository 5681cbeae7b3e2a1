"""From a config to what ``sweep`` runs: the problem of a seed, the methods, the keys, and what is written down."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pwgf_jax.calculus import Functional, check_functional
from pwgf_jax.experiments.config import Call, Config
from pwgf_jax.experiments.data import Source
from pwgf_jax.experiments.heldout import hold_out, measure
from pwgf_jax.experiments.reading import ConfigError, Place, build_step_size, parameters, read, suggestion
from pwgf_jax.experiments.registry import FLOWS, FUNCTIONALS, OWN_DATA, SOURCES, STARTS, own_data
from pwgf_jax.experiments.starts import Start
from pwgf_jax.flows import Flow
from pwgf_jax.measures import Particles
from pwgf_jax.solve import Record

__all__ = ["Experiment", "build"]


@dataclass(frozen=True)
class Experiment:
    """What a config means.

    Args:
        problem: key -> (functional, start), as ``sweep`` takes it.
        flows: the methods, by arm.
        keys: one per seed, the same for all arms.
        records: what is written down, by arm.
        points: how many data a gradient sees; None without data.

    Example:
        >>> from pwgf_jax.experiments.config import parse
        >>> data = {"source": "teacher", "points": 8, "inputs": 3, "outputs": 2}
        >>> start = {"kind": "gaussian"}
        >>> table = {"functional": "icfl", "particles": 4, "data": data, "start": start}
        >>> arms = {"static": {"flow": "wgf", "step_size": 0.1}}
        >>> experiment = build(parse({"name": "a", "steps": 1, "seeds": 3, "problem": table, "arms": arms}))
        >>> experiment.keys.shape, list(experiment.flows)
        ((3,), ['static'])
    """

    problem: Callable[[Array], tuple[Functional, Particles]]
    flows: dict[str, Flow]
    keys: Array
    records: dict[str, Record]
    points: int | None


def build(config: Config) -> Experiment:
    """Make what a config describes, and try it on one seed without running it.

    Args:
        config: the config.

    Returns:
        The experiment.

    Raises:
        ConfigError: if anything cannot be made, or an own functional breaks the contract of functionals.

    Example:
        >>> from pwgf_jax.experiments.config import parse
        >>> start = {"kind": "gaussian"}
        >>> problem = {"functional": "no_such.py:F", "particles": 4, "start": start | {"dimension": 2}}
        >>> build(parse({"name": "a", "steps": 1, "problem": problem, "arms": {"b": {"flow": "wgf", "step_size": 1}}}))
        Traceback (most recent call last):
        ...
        pwgf_jax.experiments.reading.ConfigError: config: problem.functional: ...no_such.py: there is no such file.
    """
    root = Place(config.file)
    place = root / "problem"
    spec = config.problem
    dtype = jnp.dtype(config.dtype)
    source = None
    if spec.data is not None:
        with _blamed(place / "data"):
            source = _source(spec.data)
    with _blamed(place / "start"):
        start: Start = STARTS[spec.start.name].make(**spec.start.arguments)
    functional, options = _functional(config, place)
    blame = _blamed if not spec.is_own else _all_blamed
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)

    def problem(key: Array) -> tuple[Functional, Particles]:
        data_key, start_key = jax.random.split(key)
        if spec.same_data:
            data_key, _ = jax.random.split(keys[0])
        data = None
        if source is not None:
            with _blamed(place / "data"):
                data = source.draw(data_key, dtype)
        with _blamed(place / "start"):
            mu0 = start.draw(start_key, spec.particles, data, dtype)
        if source is None or data is None:
            return functional, mu0
        with blame(place / ("functional" if spec.is_own else "options")):
            F = functional(data.inputs, data.targets, **options)
            if data.test_inputs is None or data.test_targets is None:
                return F, mu0
            test = functional(data.test_inputs, data.test_targets, **options)
        return hold_out(F, test, data, spec.functional.name, source.classes), mu0

    flows = {}
    for arm, call in config.arms.items():
        with _blamed(root / "arms" / arm):
            flows[arm] = FLOWS[call.name].make(**{k: build_step_size(v) for k, v in call.arguments.items()})

    def value(key: Array) -> Any:
        F, mu0 = problem(key)
        with blame(place / "functional"):
            return F(mu0)

    jax.eval_shape(value, keys[0])
    if spec.is_own:
        F, mu0 = problem(keys[0])
        with _all_blamed(place / "functional"):
            check_functional(F, mu0, spec.functional.name.rpartition(":")[2])

    def first_step(flow: Flow, key: Array) -> Any:
        F, mu0 = problem(key)
        return flow.step(key, F, flow.init(key, F, mu0))

    for arm, flow in flows.items():
        with _blamed(root / "arms" / arm):
            jax.eval_shape(partial(first_step, flow), keys[0])
    tested = source is not None and source.held_out > 0
    records = {
        arm: Record(config.record_every, _stats(tested, "batch_size" in call.arguments))
        for arm, call in config.arms.items()
    }
    points = None
    if source is not None:
        drawn = jax.eval_shape(lambda key: source.draw(key, dtype).inputs, keys[0])
        points = drawn.shape[0]
    return Experiment(problem, flows, keys, records, points)


def _stats(tested: bool, batched: bool) -> Callable[[Functional, Particles], dict[str, Array]] | None:
    """What is recorded beside the flow's own value: on held-out data, and on all data where the flow sees a batch."""
    if not tested and not batched:
        return None

    def stats(F: Functional, mu: Particles) -> dict[str, Array]:
        return measure(F, mu) | ({"full_value": F(mu)} if batched else {})

    return stats


@contextmanager
def _blamed(place: Place, kinds: tuple[type[Exception], ...] = (ValueError, TypeError, ImportError)) -> Iterator[None]:
    """Errors of what a key describes, under that key's name."""
    try:
        yield
    except ConfigError:
        raise
    except kinds as error:
        sentence = str(error).partition("\n")[0] or type(error).__name__
        raise place.error(sentence) from error


def _all_blamed(place: Place) -> AbstractContextManager[None]:
    """The same for code of the user's, which may raise anything."""
    return _blamed(place, (Exception,))


def _source(call: Call) -> Source:
    if own_data(call.name):
        return OWN_DATA.make(call.name, **call.arguments)
    return SOURCES[call.name].make(**call.arguments)


def _functional(config: Config, place: Place) -> tuple[Callable[..., Any], dict[str, Any]]:
    """What makes the functional of data, or without data the functional itself; and its options."""
    spec = config.problem
    options = spec.functional.arguments
    if not spec.is_own:
        return FUNCTIONALS[spec.functional.name].make, options
    function = _imported(spec.functional.name, place / "functional")
    if spec.data is None:
        if options:
            raise (place / "options").error("without problem.data the functional is F(mu), which takes no options.")
        return function, {}
    signature = inspect.signature(function)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
        return function, options
    with _all_blamed(place / "functional"):
        allowed = parameters(function, without=list(signature.parameters)[:2])
    return function, read(options, allowed, place / "options")


def _imported(reference: str, place: Place) -> Callable[..., Any]:
    """The function ``path/to/file.py:name``; its file may import its neighbours."""
    file, _, name = reference.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise place.error(f"{file}: there is no such file.")
    spec = importlib.util.spec_from_file_location(f"_pwgf_own_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise place.error(f"{file}: not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise place.error(f"{file} does not import: {type(error).__name__}: {error}.") from error
    finally:
        sys.path.remove(str(path.parent))
    offered = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    if not callable(getattr(module, name, None)):
        raise place.error(f'{file} has no function "{name}"; {suggestion(name, offered)}')
    return getattr(module, name)
