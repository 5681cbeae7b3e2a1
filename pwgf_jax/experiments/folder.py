"""Run folders: what a run leaves on disk, written so that a crash leaves something whole.

A run begins with run.json, which holds the config too; what else is there can be made again from it.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import jax
import numpy as np

from pwgf_jax.experiments import archives
from pwgf_jax.experiments.config import Config, load
from pwgf_jax.experiments.messages import ConfigError
from pwgf_jax.experiments.results import Arm, dataset, tidy
from pwgf_jax.flows import Status
from pwgf_jax.solve import Solution
from pwgf_jax.solve import checkpoint as checkpoints
from pwgf_jax.solve.files import replacing

try:
    import fcntl
except ImportError:  # not on Windows: there two processes in one folder are not told apart
    fcntl = None

__all__ = ["RunFolder", "open_run"]

_RESULTS = {"metrics.npz": ("step", "value"), "final.npz": ("points", "weights", "value", "status", "steps")}
_TOLD = ("name", "command", "config_hash", "dtype", "seeds", "steps", "device", "devices", "backend", "jax", "pwgf_jax")


@dataclass(frozen=True)
class RunFolder:
    """A folder that a run writes to.

    Args:
        path: the folder.

    Example:
        >>> RunFolder(Path("runs/a")).checkpoint("static").name
        'checkpoint-static.npz'
    """

    path: Path

    def checkpoint(self, arm: str) -> Path:
        """Where an arm under way is saved."""
        return self.path / f"checkpoint-{arm}.npz"

    def end(self, arm: str) -> Path:
        """Where a finished arm is kept, to make it longer."""
        return self.path / "ends" / f"{arm}.npz"

    @property
    def info(self) -> dict[str, Any]:
        """What run.json says."""
        return json.loads((self.path / "run.json").read_text(encoding="utf-8"))

    @property
    def config(self) -> Config:
        """The config that was run."""
        return load(self.path / "config.toml")

    @property
    def seeds(self) -> range:
        """The seeds that it is about, as they are numbered in the whole run."""
        info = self.info
        first = info.get("first_seed", 0)
        return range(first, first + info["seeds"])

    @property
    def unfinished(self) -> list[str]:
        """The arms that are not complete."""
        return [name for name, arm in self.info["arms"].items() if not arm["finished"]]

    @property
    def finished(self) -> list[str]:
        """The arms that are complete, as run.json has it."""
        return [name for name, arm in self.info["arms"].items() if arm["finished"]]

    def arms(self) -> dict[str, Arm]:
        """The finished arms, in the order of the config.

        Raises:
            ConfigError: if their results are not there, or cannot be read.
        """
        results, info, finished = {name: self.arrays(name) for name in _RESULTS}, self.info["arms"], self.finished
        for arm in finished:
            if missing := _missing(results, arm):
                raise ConfigError(
                    f"{self.path}: run.json says that arm {arm} is finished, and {missing} has nothing of it; "
                    f"`pwgf resume {self.path}` runs it again."
                )
        metrics, final = results.values()
        return {
            arm: Arm(_below(metrics, arm), final[f"{arm}/status"], info[arm], final[f"{arm}/value"]) for arm in finished
        }

    def to_xarray(self) -> Any:
        """The finished arms as an ``xarray.Dataset`` with the dimensions arm, seed and step.

        Every record of metrics.npz is a variable over all three. The steps are those of all arms together; where an
        arm has no record, there is NaN. So a yes or no, as ``perturbed``, is 1 or 0, and its mean over the seeds a
        share. ``final_value``, ``steps_taken``, ``status`` (its name) and, after ``pwgf certify``, ``verdict`` are per
        arm and seed. Attributes are what run.json says, flat, as ``to_netcdf`` wants them. Where a key was varied,
        ``method`` and ``varied`` say of each arm which of the config's it is and what value the key has.

        Raises:
            ConfigError: as :meth:`arms` does, if no arm is finished, or xarray is not installed.

        Example:
            >>> import tempfile
            >>> from pwgf_jax.experiments.run import run
            >>> from pwgf_jax.experiments.config import parse
            >>> data = {"source": "teacher", "points": 8, "inputs": 3, "outputs": 2}
            >>> table = {"functional": "icfl", "particles": 4, "data": data, "start": {"kind": "gaussian"}}
            >>> arms = {"static": {"flow": "wgf", "step_size": 0.1}}
            >>> config = parse({"name": "a", "steps": 2, "seeds": 3, "problem": table, "arms": arms})
            >>> with tempfile.TemporaryDirectory() as place:
            ...     data = run(config, Path(place) / "a").to_xarray()
            >>> dict(data.sizes), data["value"].dims, data.attrs["name"]
            ({'arm': 1, 'seed': 3, 'step': 3}, ('arm', 'seed', 'step'), 'a')
            >>> bool((data["value"].sel(arm="static", step=2) == data["final_value"].sel(arm="static")).all())
            True
        """
        arms = self.arms()
        if not arms:
            raise ConfigError(f"{self.path}: no arm is finished yet; go on with `pwgf resume {self.path}`.")
        return dataset(arms, {name: value for name, value in self.info.items() if name != "arms"})

    def to_dataframe(self) -> Any:
        """The finished arms as a tidy ``pandas.DataFrame``: a line for each record of each seed of each arm.

        Columns are arm, seed, step and the variables of :meth:`to_xarray`; those that a seed has one of repeat.

        Raises:
            ConfigError: as :meth:`to_xarray` does.
        """
        return tidy(self.to_xarray())

    def snapshots(self) -> dict[str, dict[str, np.ndarray]]:
        """The snapshots of every arm that has them: "step" (k,), "points" (k, N, d), perhaps "target" (M, d).

        And "weights" (k, N) of arms that move them.
        """
        arrays = self.arrays("snapshots.npz")
        names = dict.fromkeys(key.partition("/")[0] for key in arrays)
        return {name: _below(arrays, name) for name in names}

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of an .npz file of the folder; none if it is not there yet.

        Raises:
            ConfigError: if it is damaged.
        """
        try:
            return archives.read(self.path / name) if (self.path / name).exists() else {}
        except Exception as error:  # bytes can be wrong in more ways than NumPy and zipfile have errors for
            raise self._damaged(name, error) from error

    def _damaged(self, name: str, error: Exception) -> ConfigError:
        said = f"damaged ({error}); `pwgf resume {self.path}` runs again what was in it."
        return ConfigError(f"{self.path / name}: {said}")

    def mend(self, config: Config) -> list[str]:
        """Take what is damaged or missing for not finished, so that it is run again.

        Args:
            config: of the run.

        Returns:
            A sentence for each file that something was wrong with.
        """
        finished, lost = self.finished, defaultdict(list)
        results, wanted = {}, dict(_RESULTS)
        if config.snapshots and not config.problem.is_objective:
            wanted["snapshots.npz"] = ("step", "points")
        for name in wanted:
            try:
                results[name] = self.arrays(name)
            except ConfigError:
                (self.path / name).unlink()
                results[name] = {}
        for arm in finished:
            if missing := _missing(results, arm, wanted):
                lost[missing].append(arm)
        if lost:
            info = self.info
            for arm in (arm for arms in lost.values() for arm in arms):
                info["arms"][arm]["finished"] = False
            self.write_info(info)
        return [
            f"{self.path / name}: it is damaged, or what it had of {', '.join(arms)} is gone: run again."
            for name, arms in lost.items()
        ]

    def write_text(self, name: str, text: str) -> None:
        """Replace a text file of the folder."""
        with replacing(self.path / name) as file:
            file.write(text.encode())

    def write_info(self, info: Mapping[str, Any]) -> None:
        """Replace run.json."""
        self.write_text("run.json", json.dumps(info, indent=2, ensure_ascii=False) + "\n")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The folder is this process's to write to; the lock goes with the process, however it ends.

        Raises:
            ConfigError: if another process runs in it.
        """
        if fcntl is None:
            yield
            return
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise ConfigError(
                f"{self.path}: another process is running in it; wait for it, or give another --out."
            ) from error
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            os.close(handle)

    def finish(
        self,
        arm: str,
        solution: Solution,
        timing: Mapping[str, Any],
        snapshots: Sequence[int] = (),
        target: Any = None,
    ) -> None:
        """Keep what an arm did, its first seed's points at some steps included; and its checkpoint, to make it longer.

        Args:
            arm: its label.
            solution: of all seeds.
            timing: what run.json says beside the status.
            snapshots: steps to keep the points of.
            target: the points that they are to meet, if there are any.
        """
        records = {name: np.asarray(value) for name, value in solution.records.items()}
        records["step"] = records["step"][0]
        files: dict[str, Mapping[str, Any]] = {"metrics.npz": records, "final.npz": _final(solution)}
        if "points" in records:
            at = np.isin(records["step"], np.asarray(snapshots))
            seen = {name: records.pop(name) for name in ("points", "weights") if name in records}
            kept = {"step": records["step"][at], **{name: values[0, at] for name, values in seen.items()}}
            files = {"snapshots.npz": kept if target is None else kept | {"target": target}, **files}
        for name, arrays in files.items():
            try:
                archives.add(self.path / name, arm, arrays)
            except (ValueError, EOFError, BadZipFile) as error:
                raise self._damaged(name, error) from error
        info = self.info
        status = [Status(int(code)) for code in np.asarray(solution.status)]
        info["arms"][arm] |= {
            "finished": True,
            **timing,
            "status": [each.name for each in status],
            "steps": [int(each) for each in np.asarray(solution.steps)],
            "meaning": {each.name: each.sentence for each in sorted(set(status))},
        }
        self.write_info(info)
        if snapshots:  # with the points of every record in it
            checkpoints.remove(self.checkpoint(arm))
        elif self.checkpoint(arm).exists():
            self.end(arm).parent.mkdir(exist_ok=True)
            checkpoints.remove(self.end(arm))
            checkpoints.move(self.checkpoint(arm), self.end(arm))

    def certified(self, verdicts: Mapping[str, Sequence[str]]) -> None:
        """Note in run.json what the certificates of the first seeds of some arms say."""
        info = self.info
        for arm, said in verdicts.items():
            info["arms"][arm]["verdicts"] = list(said)
        self.write_info(info)


def _below(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(f"{prefix}/"): value for key, value in arrays.items() if key.startswith(f"{prefix}/")}


def _final(solution: Solution) -> dict[str, Any]:
    """The measures returned and how they came about; points of several leaves under the leaves' names."""
    points = {
        "/".join(["points", *filter(None, [jax.tree_util.keystr(path, simple=True, separator="/")])]): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(solution.mu.points)
    }
    return points | {
        "weights": solution.mu.weights,
        "value": solution.value,
        "status": solution.status,
        "steps": solution.steps,
    }


def _missing(results: Mapping[str, Mapping[str, Any]], arm: str, wanted: Mapping[str, Any] | None = None) -> str:
    """The first file that has not all it should have of a finished arm; empty if there is none."""
    lacking = (
        file
        for file, names in (_RESULTS if wanted is None else wanted).items()
        if any(not any(f"{key}/".startswith(f"{arm}/{name}/") for key in results[file]) for name in names)
    )
    return next(lacking, "")


def open_run(path: Path) -> RunFolder:
    """A folder that a run was written to.

    Args:
        path: the folder.

    Returns:
        The folder.

    Raises:
        ConfigError: if there is no run in it.

    Example:
        >>> open_run(Path("no/such"))
        Traceback (most recent call last):
        ...
        pwgf_jax.experiments.messages.ConfigError: no/such: no run is in it (no run.json); make one with `pwgf run`.
    """
    if not (path / "run.json").is_file():
        raise ConfigError(f"{path}: no run is in it (no run.json); make one with `pwgf run`.")
    folder = RunFolder(path)
    try:
        info = folder.info
        finished = [arm for arm in info["arms"].values() if arm["finished"]]
        told = all(name in info for name in _TOLD) and all("meaning" in arm for arm in finished)
    except (ValueError, KeyError, TypeError, AttributeError):
        told, info = False, {}
    if not told:
        raise ConfigError(f"{path}/run.json: not written by pwgf, or damaged.")
    if not (path / "config.toml").exists() and "config" in info:  # killed before it was written, or deleted since
        folder.write_text("config.toml", info["config"])
    return folder
