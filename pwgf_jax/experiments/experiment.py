"""From a config to what ``sweep`` runs: the problem of a seed, the methods, the keys, and what is written down."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pwgf_jax import trees
from pwgf_jax.calculus import Functional
from pwgf_jax.contract import check_functional
from pwgf_jax.experiments.batches import Setting
from pwgf_jax.experiments.catalogue import SAMPLES, Method
from pwgf_jax.experiments.catalogue import Problem as Spec
from pwgf_jax.experiments.config import Config
from pwgf_jax.experiments.critical import known, landmarks, near
from pwgf_jax.experiments.messages import ConfigError, Place, said
from pwgf_jax.experiments.objectives import Objective
from pwgf_jax.experiments.own import file_of, imported
from pwgf_jax.experiments.reading import Call, Entry, read
from pwgf_jax.experiments.recorded import Measured, at_point, beside_value, spent
from pwgf_jax.experiments.sizes import check_fits, largest, size_of
from pwgf_jax.experiments.sources import Data, Source
from pwgf_jax.experiments.starts import Start
from pwgf_jax.flows import Flow, descent, minibatch, reweighted, seeded
from pwgf_jax.functionals import functional, potential
from pwgf_jax.functionals.energies import NEIGHBOUR
from pwgf_jax.measures import Particles
from pwgf_jax.perturbation import hessian_noise
from pwgf_jax.problems import Problem
from pwgf_jax.solve import Record
from pwgf_jax.theory import Constants
from pwgf_jax.transforms import gradient_trigger

__all__ = ["Experiment", "build", "flow_of"]

_LARGEST = 256e6  # bytes that records of particles may take
_DENSE = 256  # parameters up to which a record has the least curvature
_RECORDED = 32  # bytes of a record at least: value, gradient norm, jump and status
_REFUSALS = (ValueError, TypeError, ImportError, ArithmeticError)


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
    """

    problem: Callable[[Array], tuple[Functional, Particles]]
    flows: dict[str, Flow]
    keys: Array
    records: dict[str, Record]
    points: int | None
    target: Array | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Made:
    """A problem as all arms see it: key -> (functional, start), what transforms may know, and what is recorded."""

    problem: Callable[[Array], tuple[Functional, Particles]]
    stats: Callable[[Method], Any]
    setting: Setting | None = None
    descend: Callable[..., Flow] = seeded
    points: int | None = None
    target: Array | None = None
    landmarks: dict[str, float] = field(default_factory=dict)


def build(config: Config, made: dict[str, Any] | None = None, seeds: range | None = None) -> Experiment:
    """Make what a config describes, and try it on one seed without running it.

    Args:
        config: the config.
        made: the problems of other configs, which is added to: those that have the same one share what is compiled.
        seeds: which ones to run; all if None. Each is what it is among all of them.

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
        pwgf_jax.experiments.messages.ConfigError: config: problem.functional: ...no_such.py: there is no such file.
    """
    root = Place(config.file)
    keys, first = _keys(config, range(config.seeds) if seeds is None else seeds, root)
    others = {} if made is None else made
    same = json.dumps(config.model_dump(exclude={"arms", "vary", "steps", "targets"}), sort_keys=True, default=str)
    if same not in others:
        kinds = {"functional": _measure, "saddle": _saddle, "objective": _objective}
        others[same] = kinds[config.problem.key](config, keys, first, root / "problem")
    of_problem: _Made = others[same]
    if not config.problem.is_objective:
        mu0 = jax.eval_shape(lambda key: of_problem.problem(key)[1], keys[0])
        _check_neighbours(config, mu0.size)
        if config.snapshots:
            _check_snapshots(config, keys.size, mu0.points)
    flows: dict[str, Flow] = {}
    records: dict[str, Record] = {}
    for arm, call in config.arms.items():
        with _blamed(root / "arms" / arm):
            used = None
            if call.key == "transform" and of_problem.setting is not None:
                method = call.make(setting=of_problem.setting)
                flows[arm], used = of_problem.descend(method.make), partial(spent, method)
            else:
                flows[arm] = flow_of(call)
            records[arm] = Record(config.record_every, of_problem.stats(call), used)
    _try(flows, of_problem.problem, keys, root / "arms")
    facts: dict[str, Any] = {"landmarks": of_problem.landmarks} if of_problem.landmarks else {}
    if of_problem.setting is not None and of_problem.setting.constants.dimension <= _DENSE:
        facts["second_order"] = {name: getattr(of_problem.setting.constants, name) for name in ("eps", "delta")}
    return Experiment(of_problem.problem, flows, keys, records, of_problem.points, of_problem.target, facts)


def _measure(config: Config, keys: Array, first: Array, place: Place) -> _Made:
    """A functional of data, or of none, and particles."""
    spec, dtype = config.problem, jnp.dtype(config.dtype)
    source = None if spec.data is None else _source(spec.data, place / "data", keys[0], dtype)
    start = _start(spec.start, place / "start")
    make = _functional(spec, place)
    blame = _all_blamed if spec.is_own else _blamed

    def problem(key: Array) -> tuple[Functional, Particles]:
        data_key, start_key = jax.random.split(key)
        if spec.same_data:
            data_key, _ = jax.random.split(first)
        data = None
        if source is not None:
            with _blamed(place / "data"):
                data = source.draw(data_key, dtype)
        with _blamed(place / "start"):
            mu0 = start.draw(start_key, spec.particles, data, dtype)
        with blame(place / ("functional" if spec.is_own else "options")):
            F = make(*(() if data is None else data.arguments))
            F = functional(F).confined(spec.confinement) if spec.confinement else F
            if source is not None and data is not None and data.test_arguments is not None:
                F = Measured.on(F, make(*data.test_arguments), data.test_arguments, source.classes)
        return F, mu0

    drawn = (lambda key: source.draw(key, dtype).arguments) if source is not None else lambda key: ()
    with _blamed(place / "data"):
        data = jax.eval_shape(drawn, keys[0])
        check_fits(keys.size * size_of(data), f"the data of {keys.size} seeds", "give fewer points, or seeds.")
    with _blamed(place / "particles"):
        mu0 = jax.eval_shape(lambda key: problem(key)[1], keys[0])
        check_fits(keys.size * size_of(mu0), f"the particles of {keys.size} seeds", "give fewer, or fewer seeds.")
    _check_value(spec, problem, keys[0], place / "functional")
    setting = _as_parameters(spec, mu0)
    dense = setting is not None and setting.constants.dimension <= _DENSE
    stats = partial(beside_value, source is not None and source.held_out > 0, bool(config.snapshots), dense)
    if source is None:
        return _Made(problem, stats, setting)
    drawn_by = first if spec.same_data else keys[0]
    target = jax.jit(drawn)(jax.random.split(drawn_by)[0])[0] if len(data) == 1 else None
    return _Made(problem, stats, setting, points=data[0].shape[0], target=target)


def _as_parameters(spec: Spec, mu0: Particles) -> Setting | None:
    """What transforms may know of particles, which are parameters to them; None if nothing is."""
    if spec.constants is None:
        return None
    as_parameters = Problem(lambda points: jnp.zeros(()), lambda key: mu0.points, (), None)
    return Setting(as_parameters, Constants(**spec.constants.arguments, dimension=trees.size(mu0.points)))


def _saddle(config: Config, keys: Array, first: Array, place: Place) -> _Made:
    """A functional whose saddles are known, and a start at one of them."""
    spec, dtype = config.problem, jnp.dtype(config.dtype)
    with _blamed(place / "options"):
        whole = spec.entry.make(jax.random.split(first)[0], dtype, **spec.options.made())
        points = known(whole)
    with _blamed(place / "start"):
        begin = whole.init if spec.start is None else near(points, spec.start.at, spec.start.scale)

    def problem(key: Array) -> tuple[Functional, Particles]:
        return whole.value, begin(jax.random.split(key)[1])

    mu0 = jax.eval_shape(begin, keys[0])
    setting = _as_parameters(spec, mu0)
    dense = setting is not None and setting.constants.dimension <= _DENSE
    stats = partial(beside_value, False, bool(config.snapshots), dense)
    return _Made(problem, stats, setting, landmarks=landmarks(points))


def _check_value(spec: Spec, problem: Callable[[Array], Any], key: Array, place: Place) -> None:
    """The functional has a value at its start, and one of the user's keeps the contract of functionals."""

    def value(key: Array) -> Any:
        F, mu0 = problem(key)
        with (_all_blamed if spec.is_own else _blamed)(place):
            return F(mu0)

    jax.eval_shape(value, key)
    if spec.is_own:
        F, mu0 = problem(key)
        with _all_blamed(place):
            check_functional(F, mu0, spec.name.rpartition(":")[2])


def _check_neighbours(config: Config, particles: int) -> None:
    for arm, call in config.arms.items():
        if isinstance(call.arguments.get("temperature"), float) and particles <= NEIGHBOUR:
            raise (Place(config.file) / "problem" / "particles").error(
                f"given {particles}; arms.{arm} has a temperature, and the entropy of its free energy is "
                f"estimated from {NEIGHBOUR} neighbours of each particle: give at least {NEIGHBOUR + 1}."
            )


def _objective(config: Config, keys: Array, first: Array, place: Place) -> _Made:
    """A function of finitely many parameters: one particle, and optax methods beside the flows."""
    spec, dtype = config.problem, jnp.dtype(config.dtype)
    own = _own(spec, spec.options, 2, place / "options") if spec.is_own else None
    with (_all_blamed if own else _blamed)(place / "options"), np.errstate(all="ignore"):
        key = jax.random.split(first)[0]
        made = own(key, dtype) if own else spec.entry.make(key, dtype, **spec.options.made())
    whole = made if isinstance(made, Objective) else Objective(made)
    if not isinstance(whole.problem, Problem):
        raise (place / "objective").error(f"it makes a {type(made).__name__}; give a pwgf_jax.problems.Problem.")
    setting = Setting.of(whole.problem, whole.later, **spec.constants.arguments)
    with _blamed(place / "options"):
        points = known(whole.problem)
    with _blamed(place / "start"):
        begin = whole.problem.init if spec.start is None else near(points, spec.start.at, spec.start.scale)
    F = potential(whole.problem.value)
    terms = {"components": setting.components, "grad_fn": jax.grad(lambda x, i: jnp.mean(setting.components(x, i)))}

    def problem(key: Array) -> tuple[Functional, Particles]:
        x = begin(jax.random.split(key)[1])
        return F, Particles.uniform(jax.tree.map(lambda leaf: leaf[None], x))

    dense = setting.constants.dimension <= _DENSE
    stats = partial(at_point, whole, dense) if dense or whole.stats is not None else None
    return _Made(problem, lambda call: stats, setting, partial(descent, **terms), landmarks=landmarks(points))


def flow_of(call: Method) -> Flow:
    """The flow that an arm of a config names: of its numbers, its noise and trigger, its weights and its batches.

    Example:
        >>> from pwgf_jax.experiments.catalogue import method
        >>> flow_of(method(flow="wgf", step_size=0.1))
        wgf(step_size=0.1)
    """
    if call.key == "transform":
        raise ValueError(
            f'transform = "{call.name}" asks what is known of the problem: give problem.constants (smoothness, '
            "hessian_lipschitz, eps, delta), or name a flow."
        )
    arguments = call.made()
    size, jumps, weights = (arguments.pop(name, None) for name in ("batch_size", "perturbation", "weights"))
    if jumps is not None:
        given = jumps.arguments
        window = {name: given.pop(name) for name in inspect.signature(gradient_trigger).parameters if name in given}
        arguments["perturbation"] = hessian_noise(**given)
        if window:
            arguments["trigger"] = gradient_trigger(**window)
    method = call.entry.make(**arguments)
    method = method if weights is None else reweighted(method, weights)
    return method if size is None else minibatch(method, size)


def _keys(config: Config, seeds: range, root: Place) -> tuple[Array, Array]:
    """A key for each of some seeds, if all that is recorded of them fits; and that of the first seed of all."""
    records = max(config.steps_of(arm) for arm in config.arms) // config.record_every + 2
    size = records * len(seeds) * _RECORDED
    with _blamed(root / "record_every"):
        check_fits(size, f"{records} records of {len(seeds)} seeds", "give a larger one, or fewer steps or seeds.")
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    return keys[seeds.start : seeds.stop], keys[0]


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


def _check_snapshots(config: Config, seeds: int, points: Any) -> None:
    """Snapshots are of an array of particles, and all records of them have to be held at once."""
    place = Place(config.file)
    if not isinstance(points, jax.ShapeDtypeStruct) or points.ndim != 2:
        raise place.error("snapshots: these particles are networks or the like; leave it out, or use points (N, d).")
    records = max(config.steps_of(arm) for arm in config.arms) // config.record_every + 2
    size = records * seeds * points.size * points.dtype.itemsize
    if size > _LARGEST:
        raise place.error(
            f"snapshots: {records} records of the particles of {seeds} seeds take {size / 1e6:.0f} MB, over "
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
        raise place.error(said(error)) from error


def _all_blamed(place: Place) -> AbstractContextManager[None]:
    """The same for code of the user's, which may raise anything."""
    return _blamed(place, (Exception,))


def _own(call: Call, options: Any, count: int, place: Place) -> Callable[..., Any]:
    """A function of the user's with its options bound; the first ``count`` of its parameters are ours to give.

    Args:
        call: the table that names it.
        options: what the table gives.
        count: see above.
        place: of the options.
    """
    whole = place.key.removesuffix(".options")
    function = imported(call.name, Place(place.file, whole) / call.key)
    parameters = inspect.signature(function).parameters
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return partial(function, **options)
    with _all_blamed(place):
        table = Entry(function, tuple(parameters)[:count]).options("Own")
    return partial(function, **read(table, options, place).made())


class _OwnSource:
    """A source of the user's: (key, dtype) -> points of a target, inputs and targets, or :class:`.Data`."""

    def __init__(self, function: Callable[..., Any], place: Place, key: Array, dtype: Any) -> None:
        self._function, self._place, self.classes = function, place, False
        tests = jax.eval_shape(lambda: self.draw(key, dtype)).test_inputs
        self.held_out = 0 if tests is None else tests.shape[0]

    def draw(self, key: Array, dtype: Any) -> Data:
        with _all_blamed(self._place):
            drawn = self._function(key, dtype)
            if isinstance(drawn, Data):
                return drawn
            inputs, targets = drawn if isinstance(drawn, tuple) else (drawn, None)
            return Data(jnp.asarray(inputs, dtype), None if targets is None else jnp.asarray(targets, dtype))


class _OwnStart:
    """A start of the user's: (key, particles, data, dtype) -> points, an array or a pytree of arrays, or Particles."""

    def __init__(self, function: Callable[..., Any], place: Place) -> None:
        self._function, self._place = function, place

    def draw(self, key: Array, particles: int, data: Data | None, dtype: Any) -> Particles:
        with _all_blamed(self._place):
            drawn = self._function(key, particles, data, dtype)
            return drawn if isinstance(drawn, Particles) else Particles.uniform(drawn)


def _source(call: Call, place: Place, key: Array, dtype: Any) -> Source:
    if call.entry.own:
        return _OwnSource(_own(call, call.arguments, 2, place), place, key, dtype)
    with _blamed(place):
        return call.make(path=call.name) if file_of(call.name) else call.make()


def _start(call: Call, place: Place) -> Start:
    if call.entry.own:
        return _OwnStart(_own(call, call.arguments, 4, place), place)
    with _blamed(place):
        return call.make()


def _functional(spec: Spec, place: Place) -> Callable[..., Functional]:
    """What makes the functional of data; without data, of nothing."""
    if not spec.is_own:
        with _blamed(place / "options"):
            return partial(spec.entry.make, **spec.options.made())
    if spec.data is not None:
        samples = spec.data.name in SAMPLES
        return _own(spec, spec.options, 1 if samples else 2, place / "options")
    if spec.options:
        raise (place / "options").error("without problem.data the functional is F(mu), which takes no options.")
    function = imported(spec.name, place / "functional")
    return lambda: function
