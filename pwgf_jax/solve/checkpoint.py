"""Checkpoints: the state of a run and its records so far, in one ``.npz`` written atomically."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

__all__ = ["load", "save"]


def _describe(state: PyTree) -> list[str]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [f"{jax.tree_util.keystr(path)}:{leaf.dtype.name}{list(leaf.shape)}" for path, leaf in leaves]


def _is_key(leaf: Any) -> bool:
    """An optimizer that draws noise carries a typed key, which NumPy does not know."""
    return jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _numbers(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _restored(numbers: np.ndarray, like: Any) -> Any:
    array = jax.numpy.asarray(numbers)
    return jax.random.wrap_key_data(array, impl=jax.random.key_impl(like)) if _is_key(like) else array


def save(path: Path, step: int, state: PyTree, records: dict[str, np.ndarray], identity: dict[str, Any]) -> None:
    """Write a checkpoint; a crash in the middle leaves the one before it.

    Args:
        path: the ``.npz`` file; its folder is made.
        step: how far the run is.
        state: any pytree of arrays.
        records: what has been recorded so far.
        identity: what a run must share to go on from here, JSON values.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(Path(folder) / "a.npz", 3, {"x": jnp.ones(2)}, {}, {"every": 1})
        ...     step, state, _ = load(Path(folder) / "a.npz", {"x": jnp.zeros(2)}, {"every": 1})
        >>> step, state["x"].tolist()
        (3, [1.0, 1.0])
    """
    header = {"step": step, "identity": identity, "state": _describe(state)}
    arrays: dict[str, Any] = {f"state/{i}": _numbers(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    arrays |= {f"records/{name}": value for name, value in records.items()}
    temporary = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(temporary, "wb") as file:
        np.savez(file, header=np.array(json.dumps(header)), **arrays)
    os.replace(temporary, path)


def load(path: Path, like: PyTree, identity: dict[str, Any]) -> tuple[int, PyTree, dict[str, np.ndarray]]:
    """Read a checkpoint of a run like this one.

    Args:
        path: the ``.npz`` file.
        like: a state of this run, or its shapes and dtypes.
        identity: as given to :func:`save` by this run.

    Returns:
        The step, the state structured like ``like``, and the records.

    Raises:
        ValueError: if the file is no checkpoint, or one of another run.

    Example:
        >>> load(Path("pyproject.toml"), {}, {})
        Traceback (most recent call last):
        ...
        ValueError: pyproject.toml: not a checkpoint (...); delete it to start afresh.
    """
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(str(arrays.pop("header")))
    except (OSError, EOFError, ValueError, KeyError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a checkpoint ({error}); delete it to start afresh.") from error
    for name, value in identity.items():
        if name != "program" and header["identity"].get(name) != value:
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
    if header["identity"].get("program") != identity.get("program"):
        raise ValueError(
            f"{path}: made by other computations (step size, thresholds, compiled-in data, or the version of jax); "
            "go on with the same, or delete it to start afresh."
        )
    leaves = [_restored(arrays[f"state/{i}"], leaf) for i, leaf in enumerate(jax.tree.leaves(like))]
    records = {name.removeprefix("records/"): value for name, value in arrays.items() if name.startswith("records/")}
    return header["step"], jax.tree.unflatten(jax.tree.structure(like), leaves), records
