"""Checkpoints: the state of a run and its records so far, in one ``.npz`` written atomically."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

__all__ = ["load", "save"]


def _describe(state: PyTree) -> list[str]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [f"{jax.tree_util.keystr(path)}:{np.dtype(leaf.dtype).name}{list(leaf.shape)}" for path, leaf in leaves]


def save(path: Path, step: int, state: PyTree, records: dict[str, np.ndarray], identity: dict[str, Any]) -> None:
    """Write a checkpoint; a crash in the middle leaves the one before it."""
    header = {"step": step, "identity": identity, "state": _describe(state)}
    arrays = {f"state/{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    arrays |= {f"records/{name}": value for name, value in records.items()}
    temporary = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(temporary, "wb") as file:
        np.savez(file, header=np.array(json.dumps(header)), **arrays)
    os.replace(temporary, path)


def load(path: Path, like: PyTree, identity: dict[str, Any]) -> tuple[int, PyTree, dict[str, np.ndarray]]:
    """Read a checkpoint of a run like this one: its step, its state structured like ``like``, its records."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(str(arrays.pop("header")))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: not a checkpoint ({error}); delete it to start afresh.") from error
    for name, value in identity.items():
        if header["identity"].get(name) != value:
            raise ValueError(
                f"{path}: made with {name}={header['identity'].get(name)}, this run has {value}; "
                "go on with the same, or delete it to start afresh."
            )
    if header["state"] != _describe(like):
        ours, theirs = set(_describe(like)), set(header["state"])
        raise ValueError(
            f"{path}: made by another flow or problem: it holds {sorted(theirs - ours)} where this run has "
            f"{sorted(ours - theirs)}; delete it to start afresh."
        )
    leaves = [jax.numpy.asarray(arrays[f"state/{i}"]) for i in range(len(header["state"]))]
    records = {name.removeprefix("records/"): value for name, value in arrays.items() if name.startswith("records/")}
    return header["step"], jax.tree.unflatten(jax.tree.structure(like), leaves), records
