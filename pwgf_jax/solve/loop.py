"""The host loop of a run: chunks of steps, records, progress and checkpoints."""

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
from jax.extend.core import ClosedJaxpr
from jaxtyping import Array, PyTree

from pwgf_jax.flows import FlowState, Status
from pwgf_jax.solve import checkpoint as checkpoints
from pwgf_jax.solve.checkpoint import Checkpoint, CheckpointError
from pwgf_jax.solve.hosts import alike, fetched, first, several, stopping
from pwgf_jax.solve.record import Progress, Record, Solution

__all__ = ["Trajectory", "drive", "traced"]

Rows: TypeAlias = dict[str, np.ndarray]

_CHUNKS, _SAVES = 100, 20  # of a run, unless time asks for more
_PATIENCE = 300.0  # seconds that a kill may cost
_BLOCK = 2**25  # bytes of records to hold, where they can be written to a file


class Trajectory(NamedTuple):
    """The pieces of a run over one seed or a batch of them.

    Args:
        start: makes the state to begin with.
        advance: (state, blocks, steps of each) -> a call that is compiled, so that a clock around it sees nothing but
            the call; it returns the state after, and a row of records for each block.
        look: state -> such a call for a row of its records.
        one_step: makes the program of one seed's first step, to tell the run by.

    Example:
        >>> Trajectory._fields
        ('start', 'advance', 'look', 'one_step')
    """

    start: Callable[[], FlowState]
    advance: Callable[[FlowState, int, int], Callable[[], tuple[FlowState, dict[str, Array]]]]
    look: Callable[[FlowState], Callable[[], dict[str, Array]]]
    one_step: Callable[[], ClosedJaxpr]


def _next_chunk(left: int, every: int, most: int) -> tuple[int, int]:
    """Blocks, at most so many, and the steps of each; the last block of a run may be shorter than the others."""
    blocks = left // every
    return (min(blocks, most), every) if blocks else (1, left)


def drive(
    trajectory: Trajectory,
    batch: tuple[int, ...],
    steps: int,
    record: Record,
    chunk: int | None,
    progress: Callable[[Progress], None] | None,
    checkpoint: str | PathLike[str] | None,
    key: Array,
) -> Solution:
    """Chunk after chunk, until the steps are spent or every seed has finished.

    Args:
        trajectory: what is run.
        batch: () for one seed, (seeds,) for several.
        steps: as in :func:`pwgf_jax.run`, like all that follow.
        record: what to write down.
        chunk: steps per compiled call.
        progress: called after every chunk.
        checkpoint: file to go on from, and to save to.
        key: of the run, or one of each seed.

    Raises:
        CheckpointError: if the checkpoint is damaged, or of another run.

    Example:
        >>> from pwgf_jax import Particles, run, wgf  # which drives one
        >>> F = lambda mu: mu.weights @ mu.points[:, 0] ** 2
        >>> run(wgf(0.25), F, Particles.uniform(jnp.ones((2, 1))), jax.random.key(0), 2).records["value"].tolist()
        [1.0, 0.25, 0.0625]
    """
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
    return _solution(state, {"step": np.broadcast_to(at, (*batch, at.size)), **recorded})


def _solution(state: FlowState, records: Rows) -> Solution:
    """The end of a run; several processes have its numbers on each of them, and the measure where it is."""
    spent = jnp.asarray(Status.budget_spent, jnp.int32)
    status = jnp.where(state.status == Status.running, spent, state.status)
    numbers = (state.evaluation.value, status, state.step)
    value, status, taken = fetched(numbers) if several() else numbers
    return Solution(state.mu, value, status, taken, records)


def _identity(trajectory: Trajectory, start: FlowState, row: Rows, record: Record, key: Array) -> dict[str, Any]:
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


def traced(function: Callable[..., Any], *arguments: PyTree) -> ClosedJaxpr:
    """The program of a function, whatever devices its arguments are on.

    Example:
        >>> len(traced(jnp.sin, jnp.ones(2)).eqns)
        1
    """
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
