"""How a run folder begins: with what is run, and what with: versions, devices, and the state of the sources."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from pwgf_jax.experiments.config import Config, dump, fingerprint, unfold
from pwgf_jax.experiments.folder import RunFolder
from pwgf_jax.experiments.messages import ConfigError, literal
from pwgf_jax.experiments.shares import Share

__all__ = ["create"]


def create(path: Path, config: Config, command: str, share: Share | None = None) -> RunFolder:
    """Make the folder of a new run.

    Args:
        path: where; nothing else may be there.
        config: what will be run.
        command: as the user typed it.
        share: which of the seeds; all if None.

    Returns:
        The folder, with run.json and config.toml in it.

    Raises:
        ConfigError: if the folder holds something already or cannot be made.
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
    if share is not None:
        seeds = share.of_seeds(config.seeds)
        info |= {"part": str(share), "seeds": len(seeds), "first_seed": seeds.start}
    refuse_taken(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        folder.write_info(info)
        folder.write_text("config.toml", text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written to ({error.strerror}); give another --out.") from error
    return folder


def _problem(config: Config) -> str:
    """What was run, in a line: the functional, saddle or objective, with its options and its size."""
    problem = config.problem
    options = ", ".join(f"{name} = {literal(value)}" for name, value in problem.plain_options.items())
    said = f"{problem.name}({options})" if options else problem.name
    if problem.key == "functional":
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
