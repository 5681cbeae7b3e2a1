"""From a config to what ``sweep`` runs: the problem of a seed, the methods, the keys, and what is written down."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from pwgf_jax import trees
from pwgf_jax.calculus import Functional
from pwgf_jax.contract import check_functional
from pwgf_jax.experiments.batches import Setting
from pwgf_jax.experiments.config import Call, Config, Method
from pwgf_jax.experiments.data import Source
from pwgf_jax.experiments.descents import Descent
from pwgf_jax.experiments.heldout import Measured
from pwgf_jax.experiments.objectives import Objective
from pwgf_jax.experiments.reading import ConfigError, Place, make, parameters, read, suggestion
from pwgf_jax.experiments.registry import (
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
    own_data,
)
from pwgf_jax.experiments.sizes import check_fits, largest, size_of
from pwgf_jax.experiments.starts import Start
from pwgf_jax.flows import Flow, FlowState, descent, minibatch, seeded
from pwgf_jax.functionals import entropy, functional, potential
from pwgf_jax.functionals.energies import NEIGHBOUR
from pwgf_jax.measures import Isometry, Particles
from pwgf_jax.perturbation import hessian_noise
from pwgf_jax.problems import CriticalPoint, Problem
from pwgf_jax.problems.base import around
from pwgf_jax.solve import Record
from pwgf_jax.theory import Constants
from pwgf_jax.transforms import gradient_trigger

__all__ = ["Experiment", "build", "build_objective", "flow_of"]

_LARGEST = 256e6  # bytes that records of particles may take
_KNOWN = 1000  # critical points that are looked at, and up to which a run says at which it ended
_DENSE = 256  # parameters up to which a record has the least curvature
_RECORDED = 32  # bytes of a record at least: value, gradient norm, jump and status
_REFUSALS = (ValueError, TypeError, ImportError, OverflowError)


@dataclass(frozen=True)
class Experiment:
    """What a config means.

    Args:
        problem: key -> (functional, start), as ``sweep`` takes it.
        flows: the methods, by arm.
        keys: one per seed, the same for all arms.
        records: what is written down, by arm.
        points: how many data a gradient sees; None without data.
        target: of the first seed, where the problem is to meet a sample; else None.
        facts: what is known of an objective, for run.json.

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
    target: Array | None = None
    facts: dict[str, Any] = field(default_factory=dict)


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
    if config.problem.is_objective:
        return build_objective(config)
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
    with _blamed(place / "options"):
        make_functional, options = _functional(config, place)
    blame = _blamed if not spec.is_own else _all_blamed
    keys = _keys(config, root)

    def confined(F: Functional) -> Functional:
        return functional(F).confined(spec.confinement) if spec.confinement else F

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
            return confined(make_functional), mu0
        with blame(place / ("functional" if spec.is_own else "options")):
            F = confined(make_functional(*data.arguments, **options))
            if data.test_arguments is not None:
                test = make_functional(*data.test_arguments, **options)
                F = Measured.on(F, test, data.test_arguments, source.classes)
        return F, mu0

    known, spent = _known(spec, keys[0], problem), {}
    flows = {}
    for arm, call in config.arms.items():
        with _blamed(root / "arms" / arm):
            if call.kind == "transform" and known is not None:
                method = _transform(call, known)
                flows[arm], spent[arm] = seeded(method.make), partial(_spent, method)
            else:
                flows[arm] = flow_of(call)

    def value(key: Array) -> Any:
        F, mu0 = problem(key)
        with blame(place / "functional"):
            return F(mu0)

    drawn = (lambda key: source.draw(key, dtype).arguments) if source is not None else lambda key: ()
    with _blamed(place / "data"):
        data = jax.eval_shape(drawn, keys[0])
        check_fits(config.seeds * size_of(data), f"the data of {config.seeds} seeds", "give fewer points, or seeds.")
    with _blamed(place / "particles"):
        held = size_of(jax.eval_shape(lambda key: problem(key)[1], keys[0]))
        check_fits(config.seeds * held, f"the particles of {config.seeds} seeds", "give fewer, or fewer seeds.")
    jax.eval_shape(value, keys[0])
    if spec.is_own:
        F, mu0 = problem(keys[0])
        with _all_blamed(place / "functional"):
            check_functional(F, mu0, spec.functional.name.rpartition(":")[2])

    _try(flows, problem, keys, root / "arms")
    for arm, call in config.arms.items():
        if isinstance(call.arguments.get("temperature"), float) and spec.particles <= NEIGHBOUR:
            raise (place / "particles").error(
                f"given {spec.particles}; arms.{arm} has a temperature, and the entropy of its free energy is "
                f"estimated from {NEIGHBOUR} neighbours of each particle: give at least {NEIGHBOUR + 1}."
            )
    tested = source is not None and source.held_out > 0
    if config.snapshots:
        _check_snapshots(config, jax.eval_shape(lambda key: problem(key)[1].points, keys[0]))
    dense = known is not None and known.constants.dimension <= _DENSE
    records = {
        arm: Record(config.record_every, _stats(tested, call, bool(config.snapshots), dense), spent.get(arm))
        for arm, call in config.arms.items()
    }
    facts = _second_order(known) if known is not None and dense else {}
    if source is None:
        return Experiment(problem, flows, keys, records, None, None, facts)
    target = None
    if spec.data is not None and spec.data.name in SAMPLES:
        target = jax.jit(drawn)(jax.random.split(keys[0])[0])[0]
    return Experiment(problem, flows, keys, records, data[0].shape[0], target, facts)


def build_objective(config: Config) -> Experiment:
    """The same for an objective of finitely many parameters: one particle, and optax methods beside the flows.

    Args:
        config: the config.

    Returns:
        The experiment. Records have what the objective measures, the least curvature where a dense Hessian is small,
        and what the methods spent.

    Raises:
        ConfigError: if anything cannot be made.

    Example:
        >>> from pwgf_jax.experiments.config import parse
        >>> constants = {"smoothness": 2.0, "hessian_lipschitz": 6.0, "eps": 1e-3, "delta": 0.1}
        >>> table = {"objective": "double_well", "options": {"dimension": 3}, "constants": constants}
        >>> config = parse({"name": "a", "steps": 1, "problem": table, "arms": {"pgd": {"transform": "pgd"}}})
        >>> build_objective(config).facts["landmarks"]
        {'well': -0.25, 'origin': 0.0}
    """
    root, spec = Place(config.file), config.problem
    keys = _keys(config, root)
    with _blamed(root / "problem" / "options"), np.errstate(all="ignore"):
        made = OBJECTIVES[spec.functional.name].make(
            jax.random.split(keys[0])[0], jnp.dtype(config.dtype), **spec.functional.arguments
        )
    whole = made if isinstance(made, Objective) else Objective(made)
    objective = whole.problem
    setting = Setting.of(objective, whole.later, **(spec.constants or {}))
    points = itertools.chain([objective.minimum], objective.local_minima, objective.saddles)
    known = [each for each in itertools.islice(points, _KNOWN + 1) if each is not None]
    for each in known:
        if not math.isfinite(each.value):
            raise (root / "problem" / "options").error(
                f'the critical point "{each.name}" has the value {each.value}; a number is too large or too small.'
            )
    with _blamed(root / "problem" / "start"):
        begin = _start(objective, known, **spec.start.arguments)
    F = potential(objective.value)
    terms = {"components": setting.components, "grad_fn": jax.grad(lambda x, i: jnp.mean(setting.components(x, i)))}

    def problem(key: Array) -> tuple[Functional, Particles]:
        x = begin(jax.random.split(key)[1])
        return F, Particles.uniform(jax.tree.map(lambda leaf: leaf[None], x))

    flows: dict[str, Flow] = {}
    records: dict[str, Record] = {}
    dense = setting.constants.dimension <= _DENSE
    stats = partial(_at_point, whole, dense) if dense or whole.stats is not None else None
    for arm, call in config.arms.items():
        with _blamed(root / "arms" / arm):
            if call.kind == "flow":
                flows[arm], records[arm] = flow_of(call), Record(config.record_every, stats)
                continue
            method = _transform(call, setting)
            flows[arm] = descent(method.make, **terms)
            records[arm] = Record(config.record_every, stats, partial(_spent, method))
    _try(flows, problem, keys, root / "arms")
    facts: dict[str, Any] = {}
    if 0 < len(known) <= _KNOWN:  # of too many, none: where a run ends would be named after the wrong one
        facts["landmarks"] = {each.name: float(each.value) for each in known}
    if dense:
        facts |= _second_order(setting)
    return Experiment(problem, flows, keys, records, None, None, facts)


def _known(spec: Any, key: Array, problem: Callable[[Array], Any]) -> Setting | None:
    """What transforms may know of a functional of measures, its particles as parameters; None where nothing is said."""
    if spec.constants is None:
        return None
    points = jax.eval_shape(lambda key: problem(key)[1].points, key)
    as_parameters = Problem(lambda points: jnp.zeros(()), lambda key: points, (), None)
    return Setting(as_parameters, Constants(**spec.constants, dimension=trees.size(points)))


def _second_order(setting: Setting) -> dict[str, Any]:
    return {"second_order": {"eps": setting.constants.eps, "delta": setting.constants.delta}}


def _transform(call: Method, setting: Setting) -> Descent:
    return TRANSFORMS[call.name].make(setting, **{name: make(name, value) for name, value in call.arguments.items()})


def _start(
    objective: Problem, known: list[CriticalPoint], at: str | None = None, scale: float = 0.0
) -> Callable[[Array], Any]:
    """Where runs start: the objective's own law, or about a critical point."""
    if at is None:
        return objective.init
    if scale < 0:
        raise ValueError(f"scale = {scale}; give a non-negative number.")
    points = {each.name: each.point for each in known}
    if at not in points:
        raise ValueError(f'at = "{at}"; {suggestion(at, points)}')
    return around(points[at], scale)


def flow_of(call: Method) -> Flow:
    """The flow that an arm of a config names: of its numbers, its noise and trigger, and the size of its batches.

    Example:
        >>> flow_of(Method("wgf", {"step_size": 0.1}))
        wgf(step_size=0.1)
    """
    if call.kind == "transform":
        raise ValueError(
            f'transform = "{call.name}" asks what is known of the problem: give problem.constants (smoothness, '
            "hessian_lipschitz, eps, delta), or name a flow."
        )
    arguments = {name: make(name, value) for name, value in call.arguments.items()}
    size, jumps = arguments.pop("batch_size", None), arguments.pop("perturbation", None)
    if jumps is not None:
        arguments["perturbation"] = hessian_noise(**{name: jumps[name] for name in NOISE.keys() & jumps.keys()})
        if window := {name: jumps[name] for name in WINDOW.keys() & jumps.keys()}:
            arguments["trigger"] = gradient_trigger(**window)
    method = FLOWS[call.name].make(**arguments)
    return method if size is None else minibatch(method, size)


def _keys(config: Config, root: Place) -> Array:
    """One key per seed, if all that is recorded of the seeds fits."""
    records = max(config.steps_of(arm) for arm in config.arms) // config.record_every + 2
    size = records * config.seeds * _RECORDED
    with _blamed(root / "record_every"):
        check_fits(size, f"{records} records of {config.seeds} seeds", "give a larger one, or fewer steps or seeds.")
    return jax.random.split(jax.random.key(config.seed), config.seeds)


def _try(flows: Mapping[str, Flow], problem: Callable[[Array], Any], keys: Array, place: Place) -> None:
    """The first step of every flow, without computing it."""

    def first_step(flow: Flow, key: Array) -> Any:
        F, mu0 = problem(key)
        return flow.step(key, F, flow.init(key, F, mu0))

    for arm, flow in flows.items():
        with _blamed(place / arm):
            size, array = largest(jax.make_jaxpr(partial(first_step, flow))(keys[0]))
            cure = "give fewer particles, data or seeds, or what this arm calls batch_size or depth."
            check_fits(keys.size * size, f"a step makes {array} for every seed ({keys.size}), which", cure)


def _at_point(whole: Objective, dense: bool, F: Functional, mu: Particles) -> dict[str, Array]:
    """At the one particle: what the objective records, and λ_min of a Hessian that is small."""
    del F
    point = jax.tree.map(lambda leaf: leaf[0], mu.points)
    recorded = {} if whole.stats is None else whole.stats(point)
    if dense:
        x, unravel = ravel_pytree(point)
        hessian = jax.hessian(lambda flat: whole.problem.value(unravel(flat)))(x)
        recorded |= {"curvature": jnp.linalg.eigvalsh(hessian)[0]}
    return recorded


def _spent(method: Descent, state: FlowState) -> dict[str, Array]:
    """What a method has used so far, bits included if it counts them."""
    inner = state.optimizer.state
    spent = method.spent(state.step.astype(float), inner)._asdict()  # shares of a batch are not whole
    bits = optax.tree.get_all_with_path(inner, "bits")
    return {name: jnp.asarray(count, float) for name, count in spent.items()} | ({"bits": bits[0][1]} if bits else {})


def _least_curvature(F: Functional, mu: Particles) -> Array:
    """λ_min of the full Hessian in L²(μ), by the dense matrix in isometric coordinates."""
    chart = Isometry(mu.weights, mu.points)
    y, unravel = ravel_pytree(chart.up(mu.points))
    of_y = chart.of(lambda points: F(mu.moved_to(points)))
    return jnp.linalg.eigvalsh(jax.hessian(lambda flat: of_y(unravel(flat)))(y))[0]


def _stats(
    tested: bool, arm: Call, pictured: bool, dense: bool
) -> Callable[[Functional, Particles], dict[str, Array]] | None:
    """What is recorded beside the flow's own value.

    On held-out data; on all data where the flow sees a batch; what a flow at a constant temperature descends; and the
    points where they are asked for; and the least curvature of a Hessian that is small.
    """
    batched, given = "batch_size" in arm.arguments, arm.arguments.get("temperature")
    temperature = given if isinstance(given, float) else None
    if not (tested or batched or temperature is not None or pictured or dense):
        return None

    def stats(F: Functional, mu: Particles) -> dict[str, Array]:
        recorded = F.measured(mu) if isinstance(F, Measured) else {}
        if batched:
            recorded |= {"full_value": F(mu)}
        if dense:
            recorded |= {"curvature": _least_curvature(F, mu)}
        if temperature is not None:
            recorded |= {"free_energy": F(mu) - temperature * entropy(mu)}
        return recorded | ({"points": mu.points} if pictured else {})

    return stats


def _check_snapshots(config: Config, points: Any) -> None:
    """Snapshots are of an array of particles, and all records of them have to be held at once."""
    place = Place(config.file)
    if not isinstance(points, jax.ShapeDtypeStruct) or points.ndim != 2:
        raise place.error("snapshots: these particles are networks or the like; leave it out, or use points (N, d).")
    records = max(config.steps_of(arm) for arm in config.arms) // config.record_every + 2
    size = records * config.seeds * points.size * points.dtype.itemsize
    if size > _LARGEST:
        raise place.error(
            f"snapshots: {records} records of the particles of {config.seeds} seeds take {size / 1e6:.0f} MB, over "
            f"{_LARGEST / 1e6:.0f} MB; raise record_every, or have fewer seeds."
        )


@contextmanager
def _blamed(place: Place, kinds: tuple[type[Exception], ...] = _REFUSALS) -> Iterator[None]:
    """Errors of what a key describes, under that key's name."""
    try:
        yield
    except ConfigError:
        raise
    except kinds as error:
        sentence = str(error).partition("\n")[0] or type(error).__name__
        if isinstance(error, OverflowError):
            sentence = f"a number is too large to compute with, or what follows from it ({sentence})."
        raise place.error(sentence) from error


def _all_blamed(place: Place) -> AbstractContextManager[None]:
    """The same for code of the user's, which may raise anything."""
    return _blamed(place, (Exception,))


def _source(call: Call) -> Source:
    if own_data(call.name):
        return OWN_DATA.make(call.name, **call.arguments)
    return (SOURCES | SAMPLES)[call.name].make(**call.arguments)


def _functional(config: Config, place: Place) -> tuple[Callable[..., Any], dict[str, Any]]:
    """What makes the functional of data, or without data the functional itself; and its options."""
    spec = config.problem
    options = spec.functional.arguments
    if not spec.is_own:
        return FUNCTIONALS[spec.functional.name].make, {name: make(name, value) for name, value in options.items()}
    function = _imported(spec.functional.name, place / "functional")
    if spec.data is None:
        if options:
            raise (place / "options").error("without problem.data the functional is F(mu), which takes no options.")
        return function, {}
    signature = inspect.signature(function)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
        return function, options
    with _all_blamed(place / "functional"):
        data = 1 if spec.data.name in SAMPLES else 2
        allowed = parameters(function, without=list(signature.parameters)[:data])
    return function, read(options, allowed, place / "options")


def _imported(reference: str, place: Place) -> Callable[..., Any]:
    """The function ``path/to/file.py:name``; its file may import its neighbours, as they are now."""
    file, _, name = reference.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise place.error(f"{file}: there is no such file.")
    spec = importlib.util.spec_from_file_location(f"_pwgf_own_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise place.error(f"{file}: not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    importlib.invalidate_caches()
    before = set(sys.modules)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise place.error(f"{file} does not import: {type(error).__name__}: {error}.") from error
    finally:
        sys.path.remove(str(path.parent))
        # Kept, a neighbour would serve the next run as it is now, or a file of another folder that imports its name.
        for each in set(sys.modules) - before:
            if (getattr(sys.modules[each], "__file__", None) or "").startswith(f"{path.parent}{os.sep}"):
                del sys.modules[each]
    offered = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    if not callable(getattr(module, name, None)):
        raise place.error(f'{file} has no function "{name}"; {suggestion(name, offered)}')
    return getattr(module, name)
