"""Trajectories: jitted scans, driven in chunks from the host."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import ClosedJaxpr
from jaxtyping import Array, PyTree

from pwgf_jax.arguments import check_key
from pwgf_jax.calculus import Functional
from pwgf_jax.contract import check_once, is_own
from pwgf_jax.flows import Flow, FlowState, Status
from pwgf_jax.measures import Particles, traceable
from pwgf_jax.solve import checkpoint as checkpoints
from pwgf_jax.solve.checkpoint import Checkpoint, CheckpointError
from pwgf_jax.solve.hosts import alike, fetched, first, several, stopping
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
Rows: TypeAlias = dict[str, np.ndarray]

_CALLS = {"run": "run(flow, F, mu0, key, steps)", "sweep": "sweep(flow, problem, keys, steps)"}
_CHUNKS, _SAVES = 100, 20  # of a run, unless time asks for more
_PATIENCE = 300.0  # seconds that a kill may cost
_BLOCK = 2**25  # bytes of records to hold, where they can be written to a file

# Keeps the steps' random numbers apart from whatever the problem draws from the same key.
_STREAM = 0x70776766


class _Trajectory(NamedTuple):
    """The pieces of a run over one seed or a batch of them, and one seed's step to tell it by.

    ``advance`` and ``look`` return a call that is compiled, so that a clock around it sees nothing but the call.
    """

    start: Callable[[], FlowState]
    advance: Callable[[FlowState, int, int], Callable[[], tuple[FlowState, dict[str, Array]]]]
    look: Callable[[FlowState], Callable[[], dict[str, Array]]]
    one_step: Callable[[], ClosedJaxpr]


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


def _next_chunk(left: int, every: int, most: int) -> tuple[int, int]:
    """Blocks, at most so many, and the steps of each; the last block of a run may be shorter than the others."""
    blocks = left // every
    return (min(blocks, most), every) if blocks else (1, left)


def _drive(
    trajectory: _Trajectory,
    batch: tuple[int, ...],
    steps: int,
    record: Record,
    chunk: int | None,
    progress: Callable[[Progress], None] | None,
    checkpoint: str | PathLike[str] | None,
    key: Array,
) -> Solution:
    """The host loop: chunk after chunk, until the steps are spent or every seed has finished."""
    path, axis = None if checkpoint is None else Path(checkpoint), len(batch)
    state, done, seconds, rows = trajectory.start(), 0, 0.0, list[Rows]()
    identity, stream = dict[str, Any](), None
    if path is not None:
        row = _repeated(trajectory.look(state)(), 1, axis)
        identity, stream = _identity(trajectory, state, row, record, key), checkpoints.stream(path)
        if first(path.exists):
            done, state, stream, seconds = checkpoints.load(path, state, identity)
        if done > steps or (done < steps and done % record.every):
            raise CheckpointError(
                f"{path}: it is at step {done} of a run with other steps; this run takes {steps}; "
                "go on with as many, or delete it to start afresh."
            )
    if chunk is None:
        chunk = steps if not batch and progress is None and path is None else -(-steps // _CHUNKS)
        chunk = chunk if path is None else min(chunk, record.every * (_BLOCK // _size(row)))
    most, looking = max(1, chunk // record.every), float("inf")
    saved, saved_at, still, held = done, first(time.monotonic), None, 0

    while done < steps:
        blocks, length = _next_chunk(steps - done, record.every, most)
        if np.all(fetched(state.status) != Status.running):
            still = trajectory.look(state)() if still is None else still
            rows.append(_repeated(still, blocks, axis))
        else:
            (state, new), taken = _timed(trajectory.advance(state, blocks, length))
            rows.append(fetched(new))
            if progress is not None and record.stats is not None:
                looking = min(looking, _timed(trajectory.look(state))[1])
            seconds += max(0.0, taken - blocks * looking) if np.isfinite(looking) else taken
            if taken > _PATIENCE:
                most = max(1, int(blocks * _PATIENCE / taken))
        done += blocks * length
        # Every save waits for the disk: often enough to lose little, not so often that they add up.
        stop, now = stopping(), first(time.monotonic)
        useful = (done - saved) * _SAVES >= steps or now - saved_at >= _PATIENCE or done == steps or stop
        held += _size(rows[-1])
        if path is not None and stream is not None and (useful or held >= _BLOCK):
            stream, rows, held = first(partial(stream.append, _joined(rows, axis))), [], 0
            if useful:
                checkpoints.save(path, Checkpoint(done, state, stream, seconds), identity)
                saved, saved_at = done, first(time.monotonic)
        if progress is not None:
            evaluation = state.evaluation
            seen = fetched((evaluation.value, evaluation.gradient_norm, state.status, state.step))
            value, norm, status, taken = (np.atleast_1d(each) for each in seen)
            progress(Progress(done, steps, value, norm, status, seconds, int(np.sum(taken))))
        if stop:
            raise KeyboardInterrupt

    last = _repeated(trajectory.look(state)(), 1, axis)
    at = np.minimum(np.arange(-(-steps // record.every) + 1) * record.every, steps)
    recorded = _joined([*rows, last], axis) if stream is None else alike(partial(stream.records, last, at.size, axis))
    records = {"step": np.broadcast_to(at, (*batch, at.size)), **recorded}
    spent = jnp.asarray(Status.budget_spent, jnp.int32)
    status = jnp.where(state.status == Status.running, spent, state.status)
    solution = Solution(state.mu, state.evaluation.value, status, state.step, records)
    if not several():
        return solution
    return solution._replace(
        value=fetched(solution.value), status=fetched(solution.status), steps=fetched(solution.steps)
    )


def _identity(trajectory: _Trajectory, start: FlowState, row: Rows, record: Record, key: Array) -> dict[str, Any]:
    """What a run must share with a checkpoint to go on from it."""
    points = [leaf[0] if key.ndim else leaf for leaf in jax.tree.leaves(start.mu.points)]
    return {
        "every": record.every,
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "key_impl": str(jax.random.key_impl(key)),
        # To four digits: another start has another size, the same one on another machine has not. Of the first seed.
        "start": [f"{np.mean(np.abs(fetched(leaf))):.4g}" for leaf in points],
        "program": _fingerprint(trajectory.one_step()),
        "records": sorted(set(row) - {"perturbed"}),
    }


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    result, seconds = jax.block_until_ready(call()), time.perf_counter() - began
    return result, first(lambda: seconds)


def _traced(function: Callable[..., Any], *arguments: PyTree) -> ClosedJaxpr:
    """The program of a function, whatever devices its arguments are on."""
    leaves, structure = jax.tree.flatten(arguments)
    found = map(jax.typeof, leaves)
    shapes = [jax.ShapeDtypeStruct(each.shape, each.dtype, weak_type=each.weak_type) for each in found]
    return jax.make_jaxpr(lambda *leaves: function(*jax.tree.unflatten(structure, leaves)))(*shapes)


def _fingerprint(program: ClosedJaxpr) -> str:
    """A hash of what is computed: step sizes, thresholds and compiled-in data, but no addresses in memory."""
    digest = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", str(program.jaxpr)).encode())
    for constant in program.consts:
        if not jnp.issubdtype(constant.dtype, jax.dtypes.prng_key):
            digest.update(np.ascontiguousarray(constant).tobytes())
    return digest.hexdigest()[:16]


def _repeated(row: dict[str, Array], count: int, axis: int) -> Rows:
    """A row of a finished state, ``count`` times along the time axis."""
    still = {"perturbed": np.zeros(np.shape(row["value"]), bool)}
    rows = fetched(row) | still
    return {name: np.repeat(np.expand_dims(value, axis), count, axis=axis) for name, value in rows.items()}


def _size(rows: Rows) -> int:
    return sum(value.nbytes for value in rows.values())


def _joined(rows: list[Rows], axis: int) -> Rows:
    return {name: np.concatenate([row[name] for row in rows], axis=axis) for name in rows[0]}


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
    trajectory = _Trajectory(
        lambda: _jit_start(make, rows, numbers, functional, mu0, key),
        lambda state, *sizes: _compiled(
            _jit_advance, numbers, leaves, key, state, static=(make, record, shape, rows, *sizes)
        ),
        lambda state: _compiled(_jit_look, leaves, state, static=(record, shape)),
        lambda: _traced(lambda F, mu0, key: _one_step(flow, record, F, mu0, key), functional, mu0, key),
    )
    return _drive(trajectory, (), steps, record, chunk, progress, checkpoint, key)


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
    trajectory = _Trajectory(
        lambda: programs.start(make, numbers, keys),
        lambda state, *sizes: _compiled(programs.advance, numbers, keys, state, static=(make, *sizes)),
        lambda state: _compiled(programs.look, keys, state),
        lambda: _traced(lambda key: _one_step(flow, record, *problem(key), key), keys[0]),
    )
    solution = _drive(trajectory, keys.shape, steps, record, chunk, progress, checkpoint, keys)
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
