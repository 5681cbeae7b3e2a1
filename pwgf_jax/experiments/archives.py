"""The .npz files of a run folder, which grow by what each arm has done."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pwgf_jax.solve.files import replacing

__all__ = ["add"]

_PIECE = 2**24  # bytes that are copied at once


def read(path: Path, prefix: str = "") -> dict[str, np.ndarray]:
    """The arrays of a file whose names begin so; it may be damaged in more ways than NumPy and zipfile can name."""
    with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
        return {key: file[key] for key in file.files if key.startswith(prefix)}


def write(path: Path, arrays: Mapping[str, Any]) -> None:
    """Replace a file."""
    with replacing(path) as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]


def add(path: Path, prefix: str, arrays: Mapping[str, Any]) -> None:
    """Put arrays below a prefix behind those that a file holds already; what it held below the prefix goes.

    The others are copied as they are, a piece at a time, and so are arrays that are mapped from the disk.
    """
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        member = partial(archive.open, mode="w", force_zip64=True)  # as NumPy does
        if path.exists():
            with zipfile.ZipFile(path) as before:
                for name in before.namelist():
                    if not name.startswith(f"{prefix}/"):
                        with before.open(name) as old, member(name) as new:
                            shutil.copyfileobj(old, new, _PIECE)
        for key, value in arrays.items():
            with member(f"{prefix}/{key}.npy") as new:
                np.lib.format.write_array(new, np.asarray(value), allow_pickle=False)
