"""Checkpoints: the state of a run, in a ``.npz`` written atomically, and beside it the records so far, a stream.

The records are on the disk before the state that says how many of them there are: a crash between the two leaves the
checkpoint before. Where several processes run, the state is in pieces beside it, which are on the disk before it too.
A checkpoint is of no number of devices or processes: whatever has written it, anything can go on from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import PyTree

from pwgf_jax.solve import pieces
from pwgf_jax.solve.files import replacing
from pwgf_jax.solve.hosts import alike, first, several
from pwgf_jax.solve.stream import Stream

__all__ = ["Checkpoint", "CheckpointError", "join", "load", "move", "remove", "save", "stream"]

_BLOCK = 2**25  # bytes of records in one block
_COUNTED = ("length", "checksum")  # what a state says of its records


class CheckpointError(ValueError):
    """A checkpoint that this run cannot go on from: damaged, or of another run, program or version of jax.

    Example:
        >>> raise CheckpointError("a.npz: not a checkpoint (...); delete it to start afresh.")
        Traceback (most recent call last):
        ...
        pwgf_jax.solve.checkpoint.CheckpointError: a.npz: not a checkpoint (...); delete it to start afresh.
    """


class Checkpoint(NamedTuple):
    """How far a run is.

    Args:
        step: steps that every running seed has taken.
        state: of the flow, any pytree of arrays.
        records: what has been recorded so far.
        seconds: what the steps have taken, as :class:`pwgf_jax.solve.Progress` counts them.

    Example:
        >>> Checkpoint(3, {"x": np.ones(2)}, stream(Path("a.npz"))).seconds
        0.0
    """

    step: int
    state: PyTree
    records: Stream
    seconds: float = 0.0


def stream(path: Path) -> Stream:
    """The records beside a checkpoint, none yet.

    Args:
        path: the checkpoint.

    Returns:
        The stream to append to.

    Example:
        >>> stream(Path("runs/a.npz")).path.name
        'a.npz.records'
    """
    return Stream(path.with_name(f"{path.name}.records"))


def move(path: Path, to: Path) -> None:
    """Give a checkpoint another name; what lies there already stays, so that a move cut short can be made again.

    Args:
        path: the checkpoint, which need not exist.
        to: where it will be, in a folder that does.

    Example:
        >>> move(Path("no/such.npz"), Path("another.npz"))
    """
    parts = [(each, to.with_name(to.name + each.name.removeprefix(path.name))) for each in pieces.pieces(path)]
    for old, new in (*parts, (stream(path).path, stream(to).path), (path, to)):
        if old.exists() and not new.exists():
            old.replace(new)


def remove(path: Path) -> None:
    """Delete a checkpoint with its records, if it exists.

    Args:
        path: the checkpoint.

    Example:
        >>> remove(Path("no/such.npz"))
    """
    for each in (path, stream(path).path, *pieces.pieces(path)):
        each.unlink(missing_ok=True)


def join(paths: Sequence[Path], to: Path, records: Mapping[str, np.ndarray]) -> None:
    """Put the checkpoints of sweeps over some seeds each together into that of the sweep over all of them.

    Args:
        paths: the checkpoints, at one step of sweeps that differ in their keys alone.
        to: where it will be.
        records: those of all seeds, arrays over seeds and time.

    Raises:
        CheckpointError: if one of them is none.
        OSError: if it cannot be written.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     a, b, ab = (Path(folder) / f"{name}.npz" for name in ("a", "b", "ab"))
        ...     for path, seed in ((a, 5), (b, 6)):
        ...         records = stream(path).append({"value": np.zeros((1, 3))})
        ...         save(path, Checkpoint(3, {"x": jnp.full((1, 4), seed)}, records), {"key": [seed]})
        ...     join([a, b], ab, {"value": np.zeros((2, 3))})
        ...     load(ab, {"x": jnp.zeros((2, 4), int)}, {"key": [5, 6]}).state["x"][:, 0].tolist()
        [5, 6]
    """
    headers, states = zip(*map(_read, paths), strict=True)
    leaves, header = [np.concatenate(each) for each in zip(*states, strict=True)], headers[0]
    header["identity"]["key"] = [key for each in headers for key in each["identity"]["key"]]
    header["seconds"] = sum(each["seconds"] for each in headers)
    for i, (described, leaf) in enumerate(zip(header["state"], leaves, strict=True)):
        name, _, shape = described.rpartition("[")
        header["state"][i] = f"{name}{[len(leaf), *json.loads(f'[{shape}')[1:]]}"
    joined, row = stream(to), sum(value[:, 0].nbytes for value in records.values())
    block, count = max(1, _BLOCK // row), min(value.shape[1] for value in records.values())
    for begin in range(0, count, block):
        joined = joined.append({name: value[:, begin : begin + block] for name, value in records.items()})
    _write(to, header | {"records": joined, "pieces": 0}, leaves)


def _describe(state: PyTree) -> list[str]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [f"{jax.tree_util.keystr(path)}:{leaf.dtype.name}{list(leaf.shape)}" for path, leaf in leaves]


def _is_key(leaf: Any) -> bool:
    """An optimizer that draws noise carries a typed key, which NumPy does not know."""
    return leaf is not None and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _numbers(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _restored(numbers: np.ndarray, like: Any) -> Any:
    if _is_key(like):  # which no other process's device takes: its numbers are moved, and a key is made of them there
        data = jax.random.key_data(like) if isinstance(like, jax.Array) else None
        return jax.random.wrap_key_data(_restored(numbers, data), impl=jax.random.key_impl(like))
    sharding = getattr(like, "sharding", None)  # a run goes on where it is, whatever devices have written the file
    if sharding is not None and not sharding.is_fully_addressable:
        return jax.make_array_from_callback(numbers.shape, sharding, lambda index: numbers[index])
    array = jax.numpy.asarray(numbers)
    return jax.device_put(array, sharding) if isinstance(sharding, NamedSharding) else array


def save(path: Path, at: Checkpoint, identity: dict[str, Any]) -> None:
    """Write a checkpoint; a crash in the middle leaves the one before it.

    Where there are several processes all of them call it, and each writes what its own devices hold.

    Args:
        path: the ``.npz`` file; its folder is made.
        at: how far the run is, with its records appended to the :func:`stream` of this path.
        identity: what a run must share to go on from here, JSON values.

    Raises:
        OSError: if it cannot be written.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.npz"
        ...     records = stream(path).append({"value": np.zeros(3)})
        ...     save(path, Checkpoint(3, {"x": jnp.ones(2)}, records), {"every": 1})
        ...     found = load(path, {"x": jnp.zeros(2)}, {"every": 1})
        >>> found.step, found.state["x"].tolist(), found.records == records
        (3, [1.0, 1.0], True)
    """
    header = {"step": at.step, "seconds": at.seconds, "jax": jax.__version__, "records": at.records}
    header |= {"identity": identity, "state": _describe(at.state)}
    leaves, processes = [_numbers(leaf) for leaf in jax.tree.leaves(at.state)], jax.process_count() if several() else 0
    if processes:
        alike(lambda: pieces.write(path, at.step, leaves))
    first(lambda: _complete(path, header | {"pieces": processes}, leaves))


def _complete(path: Path, header: dict[str, Any], leaves: Sequence[Any]) -> None:
    """The end of a save: from here on it counts, and what was saved before goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, header, [] if header["pieces"] else [np.asarray(leaf) for leaf in leaves])
    kept = {pieces.piece(path, header["step"], process) for process in range(header["pieces"])}
    for each in pieces.pieces(path):
        if each not in kept:
            each.unlink(missing_ok=True)


def _write(path: Path, header: dict[str, Any], leaves: Sequence[np.ndarray]) -> None:
    records = {name: getattr(header["records"], name) for name in _COUNTED}
    text, arrays = json.dumps(header | {"records": records}), {f"state/{i}": leaf for i, leaf in enumerate(leaves)}
    with replacing(path) as file:
        np.savez(file, header=np.array(text), **arrays)  # pyright: ignore[reportArgumentType]


def _read(path: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    """What :func:`_write` wrote."""
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            if "records" not in header:
                raise ValueError("of a version that kept the records in it")
            header["records"] = stream(path)._replace(**{name: int(header["records"][name]) for name in _COUNTED})
            header["identity"], header["step"] = dict(header["identity"]), int(header["step"])
            count, processes = len(header["state"]), header.get("pieces", 0)
            if processes:
                return header, pieces.read(path, header["step"], processes, count)
            return header, [file[f"state/{i}"] for i in range(count)]
    except Exception as error:  # bytes can be wrong in more ways than NumPy, zipfile and json have errors for
        raise CheckpointError(f"{path}: not a checkpoint ({error}); delete it to start afresh.") from error


def load(path: Path, like: PyTree, identity: dict[str, Any]) -> Checkpoint:
    """Read a checkpoint of a run like this one; where there are several processes, all of them.

    Args:
        path: the ``.npz`` file.
        like: a state of this run, or its shapes and dtypes.
        identity: as given to :func:`save` by this run.

    Returns:
        How far that run was, its state structured like ``like``.

    Raises:
        CheckpointError: if the file is no checkpoint, or one of another run, or its records are not whole.

    Example:
        >>> load(Path("pyproject.toml"), {}, {})
        Traceback (most recent call last):
        ...
        pwgf_jax.solve.checkpoint.CheckpointError: pyproject.toml: not a checkpoint (...); delete it to start afresh.
    """
    header, leaves = alike(lambda: _of_this_run(path, like, identity))
    restored = [_restored(numbers, leaf) for numbers, leaf in zip(leaves, jax.tree.leaves(like), strict=True)]
    state = jax.tree.unflatten(jax.tree.structure(like), restored)
    return Checkpoint(header["step"], state, header["records"], header["seconds"])


def _of_this_run(path: Path, like: PyTree, identity: dict[str, Any]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """What is in a checkpoint, if this run can go on from it."""
    header, leaves = _read(path)
    saved, state, records = header["identity"], header["state"], header["records"]
    if (version := header.get("jax")) != jax.__version__:
        raise CheckpointError(
            f"{path}: made with jax {version}, this is jax {jax.__version__}, which may step otherwise; "
            "go on with the same, or delete it to start afresh."
        )
    for name, value in identity.items():
        if name != "program" and saved.get(name) != value:
            raise CheckpointError(
                f"{path}: made with {name}={saved.get(name)}, this run has {value}; "
                "go on with the same, or delete it to start afresh."
            )
    if state != _describe(like):
        ours, theirs = set(_describe(like)), set(state)
        raise CheckpointError(
            f"{path}: made by another flow or problem: it holds {sorted(theirs - ours)} where this run has "
            f"{sorted(ours - theirs)}; delete it to start afresh."
        )
    if saved.get("program") != identity.get("program"):
        raise CheckpointError(
            f"{path}: made by other computations (step size, thresholds, compiled-in data, or pwgf_jax's version); "
            "go on with the same, or delete it to start afresh."
        )
    try:
        records.check()
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: its records are lost ({error}); delete it to start afresh.") from error
    return header, leaves
