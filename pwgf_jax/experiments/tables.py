"""Data that are fixed: bundled with a library, or in a file of your own. A seed draws its subset and its test split."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pwgf_jax.experiments.messages import suggestion
from pwgf_jax.experiments.sources import Data

__all__ = ["Table", "digits", "read_table"]


@dataclass(frozen=True, eq=False)
class Table:
    """A fixed set of data; every seed draws its own subset and its own test split.

    Args:
        inputs: shape (n, l).
        targets: shape (n, k).
        points: how many rows a seed uses, all of them if None.
        test_fraction: which part of these is held out.
        classes: whether the largest target names a class.

    Raises:
        ValueError: if there are too few rows for the points, or for one row on either side of the split.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np
        >>> data = Table(np.ones((8, 3)), np.ones((8, 1)), test_fraction=0.25).draw(jax.random.key(0), jnp.float32)
        >>> data.inputs.shape, data.test_inputs.shape
        ((6, 3), (2, 3))
    """

    inputs: np.ndarray
    targets: np.ndarray
    points: int | None = None
    test_fraction: float = 0.0
    classes: bool = False

    def __post_init__(self) -> None:
        rows = self.inputs.shape[0]
        if self.points is not None and not 1 <= self.points <= rows:
            raise ValueError(f"points = {self.points}; there are {rows} rows, give 1 to {rows}.")
        if not 0 <= self.test_fraction < 1:
            raise ValueError(f"test_fraction = {self.test_fraction}; give a number from 0 to below 1.")
        if self.test_fraction and not 1 <= self.held_out < self.used:
            raise ValueError(
                f"test_fraction = {self.test_fraction}; of {self.used} rows this holds out {self.held_out}."
            )

    @property
    def used(self) -> int:
        """Rows that a seed uses."""
        return self.inputs.shape[0] if self.points is None else self.points

    @property
    def held_out(self) -> int:
        """Rows of these that are for testing."""
        return round(self.test_fraction * self.used)

    def draw(self, key: Array, dtype: Any) -> Data:
        """The data of one seed."""
        rows = jax.random.permutation(key, self.inputs.shape[0])[: self.used]
        inputs, targets = (jnp.asarray(each.astype(dtype))[rows] for each in (self.inputs, self.targets))
        held = self.held_out
        if not held:
            return Data(inputs, targets)
        return Data(inputs[held:], targets[held:], inputs[:held], targets[:held])


def digits(*, points: int | None = None, test_fraction: float = 0.2, centred: bool = True) -> Table:
    """Handwritten digits: 1797 images of 8×8 pixels and their ten classes, bundled with scikit-learn.

    Args:
        points: how many images a seed uses, all of them if not given.
        test_fraction: which part of these is held out.
        centred: whether pixels and one-hot targets have mean zero over all images.

    Returns:
        The data, pixels scaled to a range of one.

    Raises:
        ImportError: if scikit-learn is not installed.
        ValueError: if points or test fraction are out of range.

    Example:
        >>> digits().inputs.shape, digits().targets.shape
        ((1797, 64), (1797, 10))
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("digits come with scikit-learn: pip install 'pwgf_jax[digits]'.") from error
    images, labels = load_digits(return_X_y=True)
    inputs, targets = np.asarray(images) / 16, np.eye(10)[np.asarray(labels)]
    if centred:
        inputs, targets = inputs - inputs.mean(axis=0), targets - targets.mean(axis=0)
    return Table(inputs, targets, points, test_fraction, classes=True)


def read_table(
    path: str, *, inputs: list[str], targets: list[str], points: int | None = None, test_fraction: float = 0.0
) -> Table:
    r"""Named columns of your own .csv file, or named arrays of your own .npz file.

    Args:
        path: the file. A .csv has its column names in the first line; an array of an .npz has shape (n,) or (n, c).
        inputs: names of the inputs, in order.
        targets: names of the targets; columns that are one-hot count as classes.
        points: how many rows a seed uses, all of them if not given.
        test_fraction: which part of these is held out.

    Returns:
        The data.

    Raises:
        ValueError: if the file, or a column, is missing, not numeric or not finite.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f"{folder}/data.csv"
        ...     _ = Path(path).write_text("x,y,z\n1,2,3\n4,5,6\n")
        ...     read_table(path, inputs=["x", "z"], targets=["y"]).inputs.tolist()
        [[1.0, 3.0], [4.0, 6.0]]
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such file.")
    columns = _read_csv(path) if path.endswith(".csv") else _read_npz(path)
    x, y = (_stack(path, columns, kind, names) for kind, names in (("inputs", inputs), ("targets", targets)))
    if len(x) != len(y):
        raise ValueError(f"{path}: inputs have {len(x)} rows and targets {len(y)}; give as many of both.")
    one_hot = y.shape[1] > 1 and bool(np.all((y == 0) | (y == 1)) and np.all(y.sum(axis=1) == 1))
    return Table(x, y, points, test_fraction, one_hot)


def _read_csv(path: str) -> dict[str, Any]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.reader(file) if row]
    if len(rows) < 2:
        raise ValueError(f"{path}: no data; give a line of column names and lines of numbers.")
    names = [name.strip() for name in rows[0]]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f'{path}: {names.count(name)} columns have the name "{name}"; give each its own.')
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(names):
            raise ValueError(f"{path}: row {number} has {len(row)} values for {len(names)} columns.")
    return {name: np.array([row[i] for row in rows[1:]]) for i, name in enumerate(names)}


def _read_npz(path: str) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not a readable .npz file of plain arrays.") from error


def _stack(path: str, columns: Mapping[str, Any], kind: str, names: list[str]) -> np.ndarray:
    """Named columns side by side, as finite numbers."""
    if not names:
        raise ValueError(f"{kind} = []; name at least one column.")
    blocks = []
    for name in names:
        if name not in columns:
            raise ValueError(f'{kind}: {path} has no column "{name}"; {suggestion(name, columns)}')
        blocks.append(_numbers(path, name, columns[name]))
    if len({len(block) for block in blocks}) > 1:
        raise ValueError(
            f"{kind}: the columns of {path} have {[len(block) for block in blocks]} rows; give as many in all."
        )
    return np.concatenate(blocks, axis=1)


def _numbers(path: str, name: str, column: np.ndarray) -> np.ndarray:
    if column.ndim not in (1, 2) or column.shape[0] == 0:
        raise ValueError(f'{path}: "{name}" has shape {column.shape}; give (rows,) or (rows, columns).')
    try:
        numbers = column.astype(float)
    except ValueError as error:
        raise ValueError(f'{path}: column "{name}" is not numeric: {error}.') from error
    if not np.all(np.isfinite(numbers)):
        row = int(np.argwhere(~np.isfinite(numbers))[0, 0]) + 1
        raise ValueError(f'{path}: column "{name}" is not finite in data row {row}; remove or fill it.')
    return numbers.reshape(len(numbers), -1)
