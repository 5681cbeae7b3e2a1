"""The .npz files of a run folder, which grow by what each arm has done."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pwgf_jax.solve.files import replacing

__all__ = ["add"]


def read(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file, which may be damaged in more ways than NumPy and zipfile have errors for."""
    with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def write(path: Path, arrays: Mapping[str, Any]) -> None:
    """Replace a file."""
    with replacing(path) as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]


def add(path: Path, prefix: str, arrays: Mapping[str, Any]) -> None:
    """Put arrays below a prefix behind those that a file holds already; what it held below the prefix goes.

    The others are copied as they are, not read: a long run does not pay again for its first arms with every later one.
    """
    added = {f"{prefix}/{key}": np.asarray(value) for key, value in arrays.items()}
    if not path.exists():
        return write(path, added)
    with zipfile.ZipFile(path) as archive:
        again = any(member.startswith(f"{prefix}/") for member in archive.namelist())
    if again:
        return write(
            path, {key: value for key, value in read(path).items() if not key.startswith(f"{prefix}/")} | added
        )
    with replacing(path) as file:
        with open(path, "rb") as before:
            shutil.copyfileobj(before, file)
        with zipfile.ZipFile(file, "a") as archive:
            for key, value in added.items():
                with archive.open(f"{key}.npy", "w", force_zip64=True) as member:  # as NumPy does
                    np.lib.format.write_array(member, value, allow_pickle=False)
