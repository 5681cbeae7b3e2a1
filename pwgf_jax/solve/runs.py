"""Running a flow: from one measure, or over many seeds, as jitted scans."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from os import PathLike
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from pwgf_jax.arguments import check_key
from pwgf_jax.calculus import Functional
from pwgf_jax.contract import check_once, is_own
from pwgf_jax.flows import Flow, FlowState, Status
from pwgf_jax.measures import Particles, traceable
from pwgf_jax.solve.hosts import fetched
from pwgf_jax.solve.loop import Trajectory, drive, traced
from pwgf_jax.solve.record import Progress, Record, Solution
from pwgf_jax.solve.sharding import (
    PARTICLE,
    Batching,
    Mesh,
    automatic,
    batched,
    check_mesh,
    divisible,
    row_sharding,
    spread,
    within,
)
from pwgf_jax.transforms.branches import any_in_batch

__all__ = ["run", "sweep"]

Problem: TypeAlias = Callable[[Array], tuple[Functional, Particles]]

_CALLS = {"run": "run(flow, F, mu0, key, steps)", "sweep": "sweep(flow, problem, keys, steps)"}

# Keeps the steps' random numbers apart from whatever the problem draws from the same key.
_STREAM = 0x70776766


def _compiled(jitted: Any, *arguments: Any, static: tuple[Any, ...] = ()) -> Callable[[], Any]:
    return partial(jitted.lower(*static, *arguments).compile(), *arguments)


def _start(flow: Flow, F: Functional, mu0: Particles, key: Array) -> FlowState:
    return flow.init(jax.random.fold_in(jax.random.fold_in(key, _STREAM), 0), F, mu0)


def _advance(
    flow: Flow, record: Record, blocks: int, length: int, F: Functional, key: Array, state: FlowState
) -> tuple[FlowState, dict[str, Array]]:
    """``blocks`` times: a record, then ``length`` steps."""
    stream = jax.random.fold_in(key, _STREAM)

    def take_step(state: FlowState, _: None) -> tuple[FlowState, Array]:
        def taken(state: FlowState) -> tuple[FlowState, Array]:
            state, info = flow.step(jax.random.fold_in(stream, state.step + 1), F, state)
            return state, info.perturbed

        running = any_in_batch(state.status == Status.running)
        return jax.lax.cond(running, taken, lambda state: (state, jnp.zeros((), bool)), state)

    def block(state: FlowState, _: None) -> tuple[FlowState, dict[str, Array]]:
        row = record.row(F, state)
        state, perturbed = jax.lax.scan(take_step, state, None, length=length)
        return state, row | {"perturbed": jnp.any(perturbed)}

    return jax.lax.scan(block, state, None, length=blocks)


def _one_step(flow: Flow, record: Record, F: Functional, mu0: Particles, key: Array) -> Any:
    return _advance(flow, record, 1, 1, F, key, _start(flow, F, mu0, key))


def _check_flow(caller: str, flow: Flow) -> None:
    if not isinstance(flow, Flow):
        of_it = " made of it, like pwgf_jax.wgf(optimizer)" if isinstance(flow, optax.GradientTransformation) else ""
        said = f"{caller}: flow is a {type(flow).__name__}; give a pwgf_jax.Flow{of_it}"
        raise TypeError(f"{said}, as in {_CALLS[caller]}.")


def _check(steps: int, mu0: PyTree) -> None:
    if not isinstance(mu0, Particles):
        raise TypeError(f"the start is a {type(mu0).__name__}; make a measure with Particles.uniform(points).")
    if int(steps) != steps or steps < 0:
        raise ValueError(f"steps={steps}; give a non-negative whole number.")


def _check_value(F: Functional, mu0: Particles) -> None:
    value: Any = jax.eval_shape(F, mu0)
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(f"F(mu) is {value}; a functional returns one floating scalar (sum over data and outputs).")


def run(
    flow: Flow,
    F: Functional,
    mu0: Particles,
    key: Array,
    steps: int,
    record: Record | None = None,
    *,
    chunk: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    checkpoint: str | PathLike[str] | None = None,
    check: bool = True,
) -> Solution:
    r"""Run a flow from one measure: one jitted ``lax.scan``, in chunks if somebody watches.

    Where jax knows of several processes, each of them makes the same call. Of a measure that is spread over their
    devices (:func:`pwgf_jax.solve.shard_particles`) each computes its share; the records are on all of them. After a
    SIGTERM to one all stop: saved, if there is a checkpoint, and with KeyboardInterrupt.

    Args:
        flow: the method.
        F: the functional; arrays of a registered pytree are traced, a plain function is compiled in.
        mu0: the start, a probability measure.
        key: typed random key.
        steps: how many steps to take at most.
        record: what to write down, every step by default.
        chunk: steps per compiled call; all by default, a hundredth with progress or checkpoint, and with a checkpoint
            no more than 32 MB of records. Chunks that take more than five minutes are followed by smaller ones.
        progress: called after every chunk with a :class:`Progress`.
        checkpoint: file to go on from if it exists, and to save to: after chunks, when a twentieth of the steps or five
            minutes have passed since the last time, and at the end. The records go to a file beside it, NAME.records,
            and are held no longer than that; of the solution, those of more than 256 MB are mapped from the disk.
            Several processes write their own pieces of it, on a disk that they share; any number can go on from it.
        check: whether a functional that is new here is tried first, see :func:`pwgf_jax.contract.check_functional`.

    Returns:
        A :class:`Solution`. A value that is not finite is a status, not an error.

    Raises:
        TypeError: if the key is no typed key, the flow no :class:`pwgf_jax.Flow`, F no function, the start no
            :class:`pwgf_jax.Particles`, or F(mu) no scalar.
        ValueError: if steps are negative, the weights are no probabilities, F is no function of the measure, or the
            checkpoint is damaged or of another run or version of jax.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pwgf_jax import Status, wgf
        >>> F = lambda mu: mu.weights @ jnp.sum(mu.points**2, axis=-1) / 2
        >>> solution = run(wgf(0.5), F, Particles.uniform(jnp.ones((4, 1))), jax.random.key(0), steps=3)
        >>> float(solution.value), Status(int(solution.status)).name
        (0.0078125, 'budget_spent')
    """
    check_key(key, "run")
    _check_flow("run", flow)
    if not callable(F):
        raise TypeError(f"run: F is a {type(F).__name__}; give a function of Particles, as in run(flow, F, mu0, ...).")
    if key.ndim:
        raise ValueError(f"run: key has shape {key.shape}; give one key, or use sweep for one run per key.")
    F, mu0, key = automatic(F), automatic(mu0), automatic(key)
    _check(steps, mu0)
    weights = fetched(mu0.weights)
    if np.any(weights < 0) or abs(weights.sum() - 1) > 1e-4:
        raise ValueError(
            f"run: weights lie in [{weights.min():.3g}, {weights.max():.3g}] and sum to {weights.sum():.6g}; "
            "give non-negative weights with sum one, such as Particles.uniform(points)."
        )
    _check_value(F, mu0)
    if check:
        check_once(F, mu0)
    record = Record() if record is None else record
    functional = traceable(F)
    leaves, shape = jax.tree.flatten(functional)
    make, numbers = flow.parted()
    rows = row_sharding(mu0)
    trajectory = Trajectory(
        lambda: _jit_start(make, rows, numbers, functional, mu0, key),
        lambda state, *sizes: _compiled(
            _jit_advance, numbers, leaves, key, state, static=(make, record, shape, rows, *sizes)
        ),
        lambda state: _compiled(_jit_look, leaves, state, static=(record, shape)),
        lambda: traced(lambda F, mu0, key: _one_step(flow, record, F, mu0, key), functional, mu0, key),
    )
    return drive(trajectory, (), steps, record, chunk, progress, checkpoint, key)


Make: TypeAlias = Callable[[dict[str, Any]], Flow]


@partial(jax.jit, static_argnums=(0, 1))
def _jit_start(make: Make, rows: Any, numbers: dict[str, Any], F: Functional, mu0: Particles, key: Array) -> FlowState:
    return spread(_start(make(numbers), F, mu0, key), mu0.size, rows)


# Lowering builds its arguments' trees out of descriptions, which a functional's constructor may refuse: it gets leaves.
@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _jit_advance(
    make: Make,
    record: Record,
    shape: Any,
    rows: Any,
    blocks: int,
    length: int,
    numbers: dict[str, Any],
    leaves: list[Array],
    key: Array,
    state: FlowState,
) -> tuple[FlowState, dict[str, Array]]:
    state, records = _advance(make(numbers), record, blocks, length, jax.tree.unflatten(shape, leaves), key, state)
    return spread(state, state.mu.size, rows), records


@partial(jax.jit, static_argnums=(0, 1))
def _jit_look(record: Record, shape: Any, leaves: list[Array], state: FlowState) -> dict[str, Array]:
    return record.row(jax.tree.unflatten(shape, leaves), state)


def sweep(
    flow: Flow,
    problem: Problem,
    keys: Array,
    steps: int,
    record: Record | None = None,
    *,
    batching: Batching = "auto",
    mesh: Mesh | None = None,
    chunk: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    checkpoint: str | PathLike[str] | None = None,
    check: bool = True,
) -> Solution:
    r"""Run a flow once per key: ``F, mu0 = problem(key)`` and then ``run(flow, F, mu0, key, steps)``, for all keys.

    Equal to the loop of single runs up to rounding, however it is batched. A seed that stops or turns non-finite
    freezes while the others go on; the sweep ends when all have. Several processes each make the same call, see
    :func:`run`: seeds are spread over the devices of all of them.

    Args:
        flow: the method.
        problem: key -> (functional, start); traced by jax, so it draws with ``jax.random`` from its key.
        keys: typed random keys, shape (seeds,), e.g. ``jax.random.split(jax.random.key(0), 10)``.
        steps: how many steps to take at most.
        record: what to write down, every step by default.
        batching: ``"map"`` seed after seed, ``"vmap"`` all at once, ``"shard"`` spread over the devices,
            ``"auto"`` the fastest for this machine.
        mesh: of devices, ``jax.make_mesh((s, p), ("seed", "particle"))`` or one of the two axes: seeds are spread over
            the one, and the particles of each seed over the other, filled up with particles of weight zero where their
            number is no multiple of p. All devices take seeds if omitted.
        chunk: as in :func:`run`; a hundredth of all steps by default.
        progress: called after every chunk with a :class:`Progress`.
        checkpoint: as in :func:`run`.
        check: as in :func:`run`, on the problem of the first key.

    Returns:
        A :class:`Solution` with a leading seed axis on everything.

    Raises:
        TypeError: if ``keys`` are no typed keys, the flow is no :class:`pwgf_jax.Flow`, or the problem makes no
            (functional, Particles) of a key.
        ValueError: if ``keys`` is not one axis of keys, steps are negative, or the checkpoint is damaged or of another
            run or version of jax.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pwgf_jax import Particles, wgf
        >>> def problem(key):
        ...     return lambda mu: mu.weights @ mu.points[:, 0] ** 2, Particles.uniform(jax.random.normal(key, (8, 1)))
        >>> solution = sweep(wgf(0.1), problem, jax.random.split(jax.random.key(0), 3), steps=50)
        >>> solution.value.shape, bool(jnp.all(solution.value < 1e-4))
        ((3,), True)
    """
    check_key(keys, "sweep")
    _check_flow("sweep", flow)
    if not callable(problem):
        raise TypeError(f"sweep: problem is a {type(problem).__name__}; give a function key -> (F, Particles).")
    if keys.ndim != 1 or keys.shape[0] == 0:
        raise ValueError(f"sweep: keys have shape {keys.shape}; give one key per seed, jax.random.split(key, seeds).")
    record = Record() if record is None else record
    trusted: list[bool] = []

    def examine(key: Array) -> Array:
        try:
            pair = problem(key)
        except (AttributeError, TypeError) as error:  # what a functional says when it is handed a key
            raise TypeError(
                f"sweep: problem(key) raises {type(error).__name__}: {error}. A problem makes (F, Particles) of a key; "
                "with one functional and one start for all keys it is lambda key: (F, mu0)."
            ) from error
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise TypeError(f"sweep: problem(key) returns a {type(pair).__name__}; return (functional, Particles).")
        _check(steps, pair[1])
        _check_value(*pair)
        trusted.append(is_own(pair[0]))
        return pair[1].weights

    size = int(jax.eval_shape(examine, keys[0]).shape[0])
    if check and not trusted[-1]:
        check_once(*problem(keys[0]))

    make, numbers = flow.parted()
    programs = _programs(problem, batching, record, None if mesh is None else check_mesh(mesh))
    trajectory = Trajectory(
        lambda: programs.start(make, numbers, keys),
        lambda state, *sizes: _compiled(programs.advance, numbers, keys, state, static=(make, *sizes)),
        lambda state: _compiled(programs.look, keys, state),
        lambda: traced(lambda key: _one_step(flow, record, *problem(key), key), keys[0]),
    )
    solution = drive(trajectory, keys.shape, steps, record, chunk, progress, checkpoint, keys)
    if solution.mu.size == size:
        return solution
    return solution._replace(mu=jax.tree.map(lambda leaf: leaf[:, :size], solution.mu))


class _Programs(NamedTuple):
    """What a sweep calls, for all keys at once."""

    start: Callable[..., FlowState]
    advance: Callable[..., tuple[FlowState, dict[str, Array]]]
    look: Callable[..., dict[str, Array]]


def _programs(problem: Problem, batching: Batching, record: Record, mesh: Mesh | None) -> _Programs:
    """Compiled once for a problem and kept with it, so that they live as long as it does and no longer."""
    kept = vars(problem).setdefault("_pwgf_programs", {}) if hasattr(problem, "__dict__") else {}
    if (batching, record, mesh) not in kept:
        kept[batching, record, mesh] = _compilable(problem, batching, record, mesh)
    return kept[batching, record, mesh]


def _compilable(problem: Problem, batching: Batching, record: Record, mesh: Mesh | None) -> _Programs:
    rows = within(mesh)

    @partial(jax.jit, static_argnums=0)
    def start(make: Make, numbers: dict[str, Any], keys: Array) -> FlowState:
        def one(key: Array) -> FlowState:
            F, mu0 = problem(key)
            mu0 = divisible(mu0, 1 if mesh is None else mesh.shape.get(PARTICLE, 1))
            return spread(_start(make(numbers), F, spread(mu0, mu0.size, rows), key), mu0.size, rows)

        return batched(one, batching, mesh)(keys)

    @partial(jax.jit, static_argnums=(0, 1, 2))
    def advance(
        make: Make, blocks: int, length: int, numbers: dict[str, Any], keys: Array, state: FlowState
    ) -> tuple[FlowState, dict[str, Array]]:
        def one(key: Array, state: FlowState) -> tuple[FlowState, dict[str, Array]]:
            # Drawn again in every chunk: cheaper than keeping every seed's data alive, and closures stay closures.
            state, records = _advance(make(numbers), record, blocks, length, problem(key)[0], key, state)
            return spread(state, state.mu.size, rows), records

        return batched(one, batching, mesh)(keys, state)

    @jax.jit
    def look(keys: Array, state: FlowState) -> dict[str, Array]:
        return batched(lambda key, state: record.row(problem(key)[0], state), batching, mesh)(keys, state)

    return _Programs(start, advance, look)
