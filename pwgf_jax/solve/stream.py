"""The records of a run under way, appended to a file: none of them is held, and none is written twice."""

from __future__ import annotations

import json
import math
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

__all__ = ["Stream"]

_PIECE = 2**24  # bytes that are read at once
_HELD = 2**28  # bytes of an array up to which memory holds it


class Stream(NamedTuple):
    """A file of records, as far as it counts.

    It consists of blocks: a line of JSON with names, dtypes and shapes, then the bytes of these arrays. What lies
    behind ``length`` is of a write that nobody knows to be whole; the next block takes its place.

    Args:
        path: the file.
        length: how many bytes of it count.
        checksum: their CRC-32.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     stream = Stream(Path(folder) / "a.records").append({"value": np.ones((2, 3))})
        ...     stream.records({"value": np.zeros((2, 1))}, 4, axis=1)["value"].tolist()
        [[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]]
    """

    path: Path
    length: int = 0
    checksum: int = 0

    def append(self, rows: Mapping[str, np.ndarray]) -> Stream:
        """Put a block behind what counts, and on the disk.

        Args:
            rows: arrays over time.

        Returns:
            The file with the block.

        Raises:
            OSError: if it cannot be written; what counted before is as it was.
        """
        head = [(name, value.dtype.name, value.shape) for name, value in rows.items()]
        length, checksum = self.length, self.checksum
        if not length:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)  # of an earlier run, or a link that would be written through
        with open(self.path, "r+b" if length else "xb") as file:
            file.truncate(length)
            file.seek(length)
            for part in chain([f"{json.dumps(head)}\n".encode()], (value.tobytes() for value in rows.values())):
                length, checksum = length + file.write(part), zlib.crc32(part, checksum)
            file.flush()
            os.fsync(file.fileno())
        return Stream(self.path, length, checksum)

    def check(self) -> None:
        """Whether what counts is there, as it was written.

        Raises:
            ValueError: if it is not.
        """
        if self.path.is_symlink():  # what it points to would be written to
            raise ValueError(f"{self.path.name} is a link")
        if not self.path.is_file():
            raise ValueError(f"{self.path.name} is not there")
        left, checksum = self.length, 0
        with open(self.path, "rb") as file:
            while left and (piece := file.read(min(left, _PIECE))):
                left, checksum = left - len(piece), zlib.crc32(piece, checksum)
        if left or checksum != self.checksum:
            raise ValueError(f"{self.path.name} is {'too short' if left else 'not what was written'}")

    def blocks(self) -> Iterator[dict[str, np.ndarray]]:
        """What was appended, block after block."""
        with open(self.path, "rb") as file:
            while file.tell() < self.length:
                yield {name: _read(file, np.dtype(dtype), shape) for name, dtype, shape in json.loads(file.readline())}

    def records(self, last: Mapping[str, np.ndarray], count: int, axis: int) -> dict[str, np.ndarray]:
        """All rows as arrays; what memory should not hold is mapped from a file without a name beside this one.

        Args:
            last: a row to put behind the others.
            count: how many rows there are then.
            axis: of time.

        Returns:
            Every record.
        """
        found = {
            name: _room((*value.shape[:axis], count, *value.shape[axis + 1 :]), value.dtype, self.path.parent)
            for name, value in last.items()
        }
        done = 0
        for block in chain(self.blocks(), [last]):
            rows = {value.shape[axis] for value in block.values()}.pop()
            for name, value in block.items():
                found[name][(slice(None),) * axis + (slice(done, done + rows),)] = value
            done += rows
        return found


def _read(file: BinaryIO, dtype: np.dtype, shape: list[int]) -> np.ndarray:
    return np.frombuffer(file.read(math.prod(shape) * dtype.itemsize), dtype).reshape(shape)


def _room(shape: tuple[int, ...], dtype: np.dtype, folder: Path) -> np.ndarray:
    """An array to be filled, in memory or on the disk; either way it goes with the last that refers to it."""
    size = math.prod(shape) * dtype.itemsize
    if size <= _HELD:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):  # a disk that is full is an error here, and would be a crash later
            os.posix_fallocate(file.fileno(), 0, size)
        return np.asarray(np.memmap(file, dtype, "w+", shape=shape))
