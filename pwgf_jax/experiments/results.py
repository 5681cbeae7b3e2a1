"""What the arms of a run did, read back: arrays, statistics of seeds, and data with named dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pwgf_jax.experiments.messages import ConfigError
from pwgf_jax.flows import Status

__all__ = ["NEVER", "Arm", "dataset", "families", "tidy"]

NEVER = 1e18
"""A step that no run reaches: quartiles with infinities would not be numbers."""


@dataclass(frozen=True)
class Arm:
    """What one method did, read back.

    Args:
        records: "step" (records,), and every other record (seeds, records).
        status: of every seed, shape (seeds,).
        info: what run.json says about it.
        final: the objective at the measure that each seed returned, shape (seeds,).

    Example:
        >>> values = np.array([[2.0, 1.0], [2.0, np.nan]])
        >>> arm = Arm({"step": np.arange(2), "value": values}, np.array([2, 3]), {})
        >>> arm.finite.tolist(), arm.halved.tolist()
        ([True, False], [1.0])
    """

    records: dict[str, np.ndarray]
    status: np.ndarray
    info: dict[str, Any]
    final: Any = np.nan

    @property
    def finite(self) -> np.ndarray:
        """Which seeds stayed finite; the others are left out of statistics."""
        return (self.status != Status.not_finite) & np.all(np.isfinite(self.records[self.objective]), axis=1)

    @property
    def objective(self) -> str:
        """The record of the objective: that on all data where a flow evaluates batches of them."""
        return "full_value" if "full_value" in self.records else "value"

    @property
    def statuses(self) -> list[str]:
        """How each seed ended, in the words of the version that ran it."""
        return self.info.get("status") or [Status(int(code)).name for code in self.status]

    @property
    def taken(self) -> np.ndarray:
        """The steps that each seed took."""
        return np.asarray(self.info.get("steps", np.full(self.status.shape, self.records["step"][-1])), float)

    def of(self, name: str) -> np.ndarray:
        """A record of the seeds that stayed finite."""
        return self.records[name][self.finite]

    def first_below(self, level: float | np.ndarray, clock: np.ndarray | None = None) -> np.ndarray:
        """The step at which each finite seed's objective is first recorded at a level, or below; huge if it never is.

        Args:
            level: the value to come down to, one for all seeds or (seeds, 1).
            clock: what to read in place of the step, (records,) or (seeds, records).
        """
        return self._first(self.records[self.objective] <= level, clock)[self.finite]

    @property
    def halved(self) -> np.ndarray:
        """The step at which each finite seed has left its start: where the objective is half of what it was."""
        return self.first_below(0.5 * self.records[self.objective][:, :1])

    def to_second_order(self, clock: np.ndarray | None = None) -> np.ndarray:
        """What a clock reads where each seed is first at an (ε, δ)-second-order point; huge if it never is."""
        wanted = self.info["second_order"]
        small = self.records["gradient_norm"] <= wanted["eps"]
        return self._first(small & (self.records["curvature"] >= -wanted["delta"]), clock)

    def _first(self, there: np.ndarray, clock: np.ndarray | None) -> np.ndarray:
        read = np.broadcast_to(self.records["step"] if clock is None else clock, there.shape)
        at = np.take_along_axis(read, there.argmax(axis=1)[:, None], axis=1)[:, 0]
        return np.where(there.any(axis=1), at, NEVER).astype(float)


def families(arms: Mapping[str, Arm]) -> dict[str, dict[Any, Arm]]:
    """The arms that one varied key has made: by the arm of the config that they are, and the value of the key."""
    found: dict[str, dict[Any, Arm]] = {}
    for arm in arms.values():
        if varied := arm.info.get("varied"):
            found.setdefault(varied["arm"], {})[varied["value"]] = arm
    return found


def dataset(arms: Mapping[str, Arm], about: Mapping[str, Any]) -> Any:
    """Arms as an ``xarray.Dataset``, see :meth:`.RunFolder.to_xarray`.

    Args:
        arms: by label; as many seeds in each.
        about: what becomes attributes; tables in it are flattened, what says nothing is left out.
    """
    try:
        import xarray  # which brings pandas
    except ImportError as error:
        raise ConfigError("data with names need xarray: pip install 'pwgf_jax[experiments]'.") from error
    steps = np.unique(np.concatenate([arm.records["step"] for arm in arms.values()]))
    names = dict.fromkeys(name for arm in arms.values() for name in arm.records if name != "step")
    shape = (len(arms), len(next(iter(arms.values())).status), len(steps))
    variables: dict[str, Any] = {}
    for name in names:
        kinds = {arm.records[name].dtype for arm in arms.values() if name in arm.records}
        filled = np.full(shape, np.nan, np.result_type(np.float32, *kinds))  # of a yes or no, 1 or 0
        for row, arm in zip(filled, arms.values(), strict=True):
            if name in arm.records:
                row[:, np.searchsorted(steps, arm.records["step"])] = arm.records[name]
        variables[name] = (("arm", "seed", "step"), filled)
    each = {
        "final_value": np.stack([np.broadcast_to(arm.final, arm.status.shape) for arm in arms.values()]),
        "steps_taken": np.stack([arm.taken.astype(int) for arm in arms.values()]),
        "status": np.array([arm.statuses for arm in arms.values()]),
    }
    if any("verdicts" in arm.info for arm in arms.values()):
        # Of the seeds that were certified; the others have none.
        each["verdict"] = np.array(
            [(arm.info.get("verdicts", []) + [""] * shape[1])[: shape[1]] for arm in arms.values()]
        )
    variables |= {name: (("arm", "seed"), values) for name, values in each.items()}
    coordinates: dict[str, Any] = {
        "arm": list(arms),
        "seed": np.arange(shape[1]) + about.get("first_seed", 0),
        "step": steps,
    }
    varied = {name: arm.info.get("varied", {"arm": name, "value": np.nan}) for name, arm in arms.items()}
    if families(arms):
        values = [each["value"] for each in varied.values()]
        numeric = all(isinstance(value, int | float) for value in values)
        coordinates["method"] = ("arm", [each["arm"] for each in varied.values()])
        coordinates["varied"] = ("arm", values if numeric else [str(value) for value in values])
        about = {**about, "varied_key": next(each["key"] for each in varied.values() if "key" in each)}
    return xarray.Dataset(variables, coordinates, _flat(about))


def tidy(data: Any) -> Any:
    """A data set of :func:`dataset` as a ``pandas.DataFrame``, see :meth:`.RunFolder.to_dataframe`."""
    records = [name for name, variable in data.data_vars.items() if "step" in variable.dims]
    return data.to_dataframe(dim_order=["arm", "seed", "step"]).dropna(subset=records, how="all").reset_index()


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A table of tables as one, with what files of data allow as attributes."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}_")
        elif value is not None and value != []:
            flat[prefix + name] = int(value) if isinstance(value, bool) else value
    return flat
