"""The state of a run over several processes: each writes what its own devices hold, into a file beside the checkpoint.

A piece bears the step in its name, so that a save replaces nothing of the one before; the checkpoint that is written
last says which pieces count. Put together they are whole arrays, of no number of processes or devices.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pwgf_jax.solve.files import replacing
from pwgf_jax.solve.hosts import number

__all__ = ["piece", "pieces", "read", "write"]


def pieces(path: Path) -> list[Path]:
    """The pieces beside a checkpoint, of whatever step, half written ones too.

    Args:
        path: the checkpoint.

    Example:
        >>> pieces(Path("no/such.npz"))
        []
    """
    own = re.compile(rf"{re.escape(path.name)}\.\d+\.\d+(\.part)?")
    return [each for each in path.parent.iterdir() if own.fullmatch(each.name)] if path.parent.is_dir() else []


def piece(path: Path, step: int, process: int) -> Path:
    """What a process writes at a step.

    Args:
        path: the checkpoint.
        step: of the run.
        process: its number.

    Example:
        >>> piece(Path("a.npz"), 40, 1).name
        'a.npz.40.1'
    """
    return path.with_name(f"{path.name}.{step}.{process}")


def write(path: Path, step: int, leaves: Sequence[Any]) -> None:
    """Write what this process holds; of what several hold, one writes it.

    Args:
        path: the checkpoint.
        step: of the run.
        leaves: arrays of numbers.

    Raises:
        OSError: if it cannot be written.

    Example:
        >>> import tempfile, jax
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.npz"
        ...     write(path, 40, [jax.numpy.arange(3)])
        ...     [each.name for each in pieces(path)], read(path, 40, 1, 1)[0].tolist()
        (['a.npz.40.0'], [0, 1, 2])
    """
    parts = {}
    for i, leaf in enumerate(leaves):
        everywhere = leaf.is_fully_addressable  # every process has made the whole of it
        for shard in leaf.addressable_shards:
            if shard.replica_id == 0 and not (everywhere and number()):
                begin = ",".join(str(each.start or 0) for each in shard.index)
                parts[f"{i}@{begin}"] = np.asarray(shard.data)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(piece(path, step, number())) as file:
        np.savez(file, **parts)  # pyright: ignore[reportArgumentType]


def read(path: Path, step: int, processes: int, leaves: int) -> list[np.ndarray]:
    """Whole arrays, of the pieces of a step.

    Args:
        path: the checkpoint.
        step: of the run.
        processes: how many have written it.
        leaves: how many arrays there are.

    Raises:
        ValueError: if a part of one is not there.
        OSError: if a piece cannot be read.

    Example:
        >>> read(Path("no/such.npz"), 40, 0, 0)
        []
    """
    found: list[list[tuple[list[int], np.ndarray]]] = [[] for _ in range(leaves)]
    for process in range(processes):
        with open(piece(path, step, process), "rb") as raw, np.load(raw, allow_pickle=False) as file:
            for name in file.files:
                leaf, _, begin = name.partition("@")
                found[int(leaf)].append(([int(each) for each in begin.split(",") if each], file[name]))
    return [_whole(parts) for parts in found]


def _whole(parts: list[tuple[list[int], np.ndarray]]) -> np.ndarray:
    if not parts:
        raise ValueError("a part of it is not there")
    ends = [np.add(begin, part.shape).astype(int) for begin, part in parts]
    whole = np.empty(np.max(ends, axis=0), parts[0][1].dtype)
    if sum(part.size for _, part in parts) != whole.size:
        raise ValueError("a part of it is not there")
    for begin, part in parts:
        whole[tuple(slice(at, at + length) for at, length in zip(begin, part.shape, strict=True))] = part
    return whole
