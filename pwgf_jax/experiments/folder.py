"""Run folders: what a run leaves on disk, written so that a crash leaves something whole.

A run begins with run.json, which holds the config too; what else is there can be made again from it.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pwgf_jax.experiments.config import Config, dump, fingerprint, load, unfold
from pwgf_jax.experiments.messages import ConfigError, literal
from pwgf_jax.flows import Status
from pwgf_jax.solve import Solution
from pwgf_jax.solve.files import replacing

try:
    import fcntl
except ImportError:  # not on Windows: there two processes in one folder are not told apart
    fcntl = None

__all__ = ["Arm", "RunFolder", "create", "open_run", "refuse_taken"]

_RESULTS = {"metrics.npz": ("step", "value"), "final.npz": ("points", "weights", "value", "status", "steps")}
_TOLD = ("name", "command", "config_hash", "dtype", "seeds", "steps", "device", "devices", "backend", "jax", "pwgf_jax")


@dataclass(frozen=True)
class Arm:
    """What one method did, read back.

    Args:
        records: "step" (records,), and every other record (seeds, records).
        status: of every seed, shape (seeds,).
        info: what run.json says about it.

    Example:
        >>> values = np.array([[2.0, 1.0], [2.0, np.nan]])
        >>> arm = Arm({"step": np.arange(2), "value": values}, np.array([2, 3]), {})
        >>> arm.finite.tolist()
        [True, False]
    """

    records: dict[str, np.ndarray]
    status: np.ndarray
    info: dict[str, Any]

    @property
    def finite(self) -> np.ndarray:
        """Which seeds stayed finite; the others are left out of statistics."""
        return (self.status != Status.not_finite) & np.all(np.isfinite(self.records[self.objective]), axis=1)

    @property
    def objective(self) -> str:
        """The record of the objective: that on all data where a flow evaluates batches of them."""
        return "full_value" if "full_value" in self.records else "value"

    def of(self, name: str) -> np.ndarray:
        """A record of the seeds that stayed finite."""
        return self.records[name][self.finite]


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

    @property
    def info(self) -> dict[str, Any]:
        """What run.json says."""
        return json.loads((self.path / "run.json").read_text(encoding="utf-8"))

    @property
    def config(self) -> Config:
        """The config that was run."""
        return load(self.path / "config.toml")

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
        return {arm: Arm(_below(metrics, arm), final[f"{arm}/status"], info[arm]) for arm in finished}

    def snapshots(self) -> dict[str, dict[str, np.ndarray]]:
        """The snapshots of every arm that has them: "step" (k,), "points" (k, N, d) and perhaps "target" (M, d)."""
        arrays = self.arrays("snapshots.npz")
        names = dict.fromkeys(key.partition("/")[0] for key in arrays)
        return {name: _below(arrays, name) for name in names}

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of an .npz file of the folder; none if it is not there yet.

        Raises:
            ConfigError: if it is damaged.
        """
        if not (self.path / name).exists():
            return {}
        try:
            with open(self.path / name, "rb") as raw, np.load(raw, allow_pickle=False) as file:
                return {key: file[key] for key in file.files}
        except Exception as error:  # bytes can be wrong in more ways than NumPy and zipfile have errors for
            raise ConfigError(
                f"{self.path / name}: damaged ({error}); `pwgf resume {self.path}` runs again what was in it."
            ) from error

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

    def write_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace an .npz file of the folder."""
        with replacing(self.path / name) as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]

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
        """Keep what an arm did, its first seed's points at some steps included; its checkpoint is not needed any more.

        Args:
            arm: its label.
            solution: of all seeds.
            timing: what run.json says beside the status.
            snapshots: steps to keep the points of.
            target: the points that they are to meet, if there are any.
        """
        records = {f"{arm}/{name}": np.asarray(value) for name, value in solution.records.items()}
        if (points := records.pop(f"{arm}/points", None)) is not None:
            step = records[f"{arm}/step"][0]
            at = np.flatnonzero(np.isin(step, np.asarray(snapshots)))
            kept = {f"{arm}/step": step[at], f"{arm}/points": points[0, at]}
            if target is not None:
                kept[f"{arm}/target"] = np.asarray(target)
            self.write_arrays("snapshots.npz", self.arrays("snapshots.npz") | kept)
        records[f"{arm}/step"] = records[f"{arm}/step"][0]
        self.write_arrays("metrics.npz", self.arrays("metrics.npz") | records)
        self.write_arrays("final.npz", self.arrays("final.npz") | _final(arm, solution))
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
        self.checkpoint(arm).unlink(missing_ok=True)


def _below(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(f"{prefix}/"): value for key, value in arrays.items() if key.startswith(f"{prefix}/")}


def _final(arm: str, solution: Solution) -> dict[str, np.ndarray]:
    """The measures returned and how they came about; points of several leaves under the leaves' names."""
    points = {
        "/".join(["points", *filter(None, [jax.tree_util.keystr(path, simple=True, separator="/")])]): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(solution.mu.points)
    }
    kept = {"weights": solution.mu.weights, "value": solution.value, "status": solution.status, "steps": solution.steps}
    return {f"{arm}/{name}": np.asarray(value) for name, value in (points | kept).items()}


def _missing(results: Mapping[str, Mapping[str, Any]], arm: str, wanted: Mapping[str, Any] | None = None) -> str:
    """The first file that has not all it should have of a finished arm; empty if there is none."""
    lacking = (
        file
        for file, names in (_RESULTS if wanted is None else wanted).items()
        if any(not any(f"{key}/".startswith(f"{arm}/{name}/") for key in results[file]) for name in names)
    )
    return next(lacking, "")


def create(path: Path, config: Config, command: str) -> RunFolder:
    """Make the folder of a new run.

    Args:
        path: where; nothing else may be there.
        config: what will be run.
        command: as the user typed it.

    Returns:
        The folder, with run.json and config.toml in it.

    Raises:
        ConfigError: if the folder holds something already or cannot be made.

    Example:
        >>> import tempfile
        >>> from pwgf_jax.experiments.config import parse
        >>> start = {"kind": "gaussian", "dimension": 2}
        >>> problem = {"functional": "energy.py:F", "particles": 9, "start": start}
        >>> arms = {"static": {"flow": "wgf", "step_size": 0.1}}
        >>> config = parse({"name": "a", "steps": 9, "problem": problem, "arms": arms})
        >>> with tempfile.TemporaryDirectory() as place:
        ...     create(Path(place) / "mine", config, "pwgf run mine.toml").unfinished
        ['static']
    """
    folder, text = RunFolder(path), dump(config)
    info = {
        "name": config.name,
        "command": command,
        "problem": _problem(config),
        "config": text,
        "config_hash": fingerprint(config),
        **environment(),
        "dtype": config.dtype,
        "seeds": config.seeds,
        "steps": config.steps,
        "targets": config.targets,
        "arms": _outset(config),
    }
    refuse_taken(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        folder.write_info(info)
        folder.write_text("config.toml", text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written to ({error.strerror}); give another --out.") from error
    return folder


def _problem(config: Config) -> str:
    """What was run, in a line: the functional or objective, with its options and its size."""
    problem = config.problem
    options = ", ".join(f"{name} = {literal(value)}" for name, value in problem.plain_options.items())
    said = f"{problem.name}({options})" if options else problem.name
    if not problem.is_objective:
        said += f", {problem.particles} particles"
    return said if config.vary is None else f"{said}; {config.vary.key} takes {len(config.vary.values)} values"


def _outset(config: Config) -> dict[str, dict[str, Any]]:
    """The arms before they have run, and what tells apart those that one varied key makes of one arm."""
    outset: dict[str, dict[str, Any]] = {}
    for part in unfold(config):
        for label, arm in part.origin.items():
            outset[label] = {"finished": False}
            if config.vary is not None and config.vary.concerns(arm):
                outset[label]["varied"] = {"arm": arm, "key": config.vary.key, "value": part.value}
    return outset


def refuse_taken(path: Path, ours: Sequence[str] = ()) -> None:
    """Refuse a place where nothing can be put without mixing it with something else.

    Args:
        path: a folder, which need not exist.
        ours: names of files that are no hindrance.

    Raises:
        ConfigError: if it is a file, or files are in it; hidden ones do not count, nor what a kill left half written.

    Example:
        >>> refuse_taken(Path("no/such"))
    """
    if path.is_file():
        raise ConfigError(f"{path}: it is a file; give another --out.")
    if (path / "run.json").exists():
        raise ConfigError(
            f"{path}: it holds another run; go on with it by `pwgf resume {path}`, or give another --out."
        )
    held = sorted(each.name for each in path.iterdir()) if path.is_dir() else []
    if others := [name for name in held if not name.startswith(".") and name not in (*ours, "run.json.part")]:
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise ConfigError(f"{path}: it is not empty ({shown}); give another --out.")


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
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}/run.json: not written by pwgf, or damaged.") from error
    if not told:
        raise ConfigError(f"{path}/run.json: not written by pwgf, or damaged.")
    if not (path / "config.toml").exists() and "config" in info:  # killed before it was written, or deleted since
        folder.write_text("config.toml", info["config"])
    return folder


def environment() -> dict[str, Any]:
    """Versions, devices and the state of the sources, as far as they can be known."""
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "numpy", "optax")}
    from pwgf_jax import __version__

    return {
        "pwgf_jax": __version__,
        "python": platform.python_version(),
        **versions,
        "platform": platform.platform(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "git": _git(),
    }


def _git() -> dict[str, Any] | None:
    """The state of these sources, if it is they that a repository keeps: an environment may lie in somebody else's."""

    def ask(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        ask("ls-files", "--error-unmatch", "--", Path(__file__).name)
        return {"commit": ask("rev-parse", "HEAD"), "changed": bool(ask("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.SubprocessError):
        return None
