"""The parts of a run put together: the folder that one run of all seeds makes.

Bit for bit, where every part runs on a machine like the others: on CPU a seed is computed by itself, whoever is beside
it. A seed that is alone on its device may differ by rounding, since XLA inlines a loop of one turn, and so may all of
them on accelerators, which compute as many at once as there are.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pwgf_jax.experiments import archives
from pwgf_jax.experiments.folder import RunFolder, open_run
from pwgf_jax.experiments.messages import ConfigError, say
from pwgf_jax.experiments.outset import refuse_taken
from pwgf_jax.experiments.shares import Share, share
from pwgf_jax.flows import Status
from pwgf_jax.solve import checkpoint as checkpoints
from pwgf_jax.solve.checkpoint import CheckpointError

__all__ = ["merge"]

_SAME = ("config_hash", "pwgf_jax", "git", "jax", "jaxlib", "numpy", "optax", "backend")
_SECONDS = "of all parts together, as one after another"


def merge(paths: Sequence[Path], out: Path, command: str = "") -> RunFolder:
    """Put the parts of a run together.

    Memory holds one arm at a time.

    Args:
        paths: the folders of all parts, in any order.
        out: the folder to make.
        command: what the user typed, for the record.

    Returns:
        The folder, which is no part any more.

    Raises:
        ConfigError: if these are not all parts of one run, each once, finished and whole, or ``out`` is taken; nothing
            is written then.

    Example:
        >>> merge([Path("no/such")], Path("out"))
        Traceback (most recent call last):
        ...
        pwgf_jax.experiments.messages.ConfigError: no/such: no run is in it (no run.json); make one with `pwgf run`.
    """
    refuse_taken(out)
    parts = _in_order([open_run(path) for path in paths])
    for part in parts:
        part.arms()  # says what is damaged
    whole, infos = RunFolder(out), [part.info for part in parts]
    out.mkdir(parents=True, exist_ok=True)
    for arm in infos[0]["arms"]:
        records = _side_by_side(parts, "metrics.npz", arm)
        archives.add(out / "metrics.npz", arm, records)
        archives.add(out / "final.npz", arm, _side_by_side(parts, "final.npz", arm))
        if all(part.end(arm).exists() for part in parts):
            whole.end(arm).parent.mkdir(exist_ok=True)
            try:
                checkpoints.join([part.end(arm) for part in parts], whole.end(arm), _without_last(records))
            except CheckpointError as error:
                say(f"{error.args[0].partition(';')[0]}: more steps of arm {arm} will begin at its start.")
    if (snapshots := parts[0].path / "snapshots.npz").exists():  # of the first seed of all
        shutil.copyfile(snapshots, out / "snapshots.npz")
    whole.write_text("config.toml", infos[0]["config"])
    whole.write_info(_info(infos, parts, command))  # now it is a run
    return whole


def _in_order(parts: Sequence[RunFolder]) -> list[RunFolder]:
    """The parts by their seeds, if they are those of one run, each once and finished."""
    known: dict[Share, RunFolder] = {}
    first = parts[0].info
    for part in parts:
        info = part.info
        if "part" not in info:
            raise ConfigError(f"{part.path}: it is no part of a run; give folders that `pwgf run --part i/n` made.")
        if part.unfinished:
            left = ", ".join(part.unfinished)
            raise ConfigError(f"{part.path}: {left} is not finished; go on with `pwgf resume {part.path}` before.")
        for name in _SAME:
            if info.get(name) != first.get(name):
                raise ConfigError(
                    f"{part.path}: its {name} is {info.get(name)}, that of {parts[0].path} is {first.get(name)}; "
                    "give parts of one config, run by one version."
                )
        mine, of = share(info["part"]), share(first["part"]).of
        if mine.of != of:
            raise ConfigError(f"{part.path}: it is part {mine}, {parts[0].path} is one of {of}; give parts of one run.")
        if mine in known:
            raise ConfigError(f"{part.path}: it is part {mine}, and so is {known[mine].path}; give each part once.")
        known[mine] = part
    if missing := sorted({Share(i + 1, of) for i in range(of)} - set(known)):
        lacking = ", ".join(map(str, missing))
        raise ConfigError(f"{parts[0].path}: it is part {first['part']}, and {lacking} is missing; give all parts.")
    return [known[each] for each in sorted(known)]


def _side_by_side(parts: Sequence[RunFolder], name: str, arm: str) -> dict[str, np.ndarray]:
    """The arrays of an arm, of all seeds."""
    each = [archives.read(part.path / name, f"{arm}/") for part in parts]
    return {
        key.removeprefix(f"{arm}/"): value if key == f"{arm}/step" else np.concatenate([arrays[key] for arrays in each])
        for key, value in each[0].items()
    }


def _without_last(records: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a checkpoint has of the records: the end is recorded anew by whoever goes on."""
    return {name: values[:, :-1] for name, values in records.items() if name != "step"}


def _info(infos: Sequence[Mapping[str, Any]], parts: Sequence[RunFolder], command: str) -> dict[str, Any]:
    """What run.json says of the whole."""
    info = {name: value for name, value in infos[0].items() if name not in ("part", "first_seed")}
    info["command"] = command
    info["seeds"] = sum(each["seeds"] for each in infos)
    info["merged"] = {
        "folders": [str(part.path) for part in parts],
        "devices": [f"{each['devices']} × {each['device']}" for each in infos],
        "seconds": _SECONDS,
    }
    info["arms"] = {arm: _arm([each["arms"][arm] for each in infos]) for arm in infos[0]["arms"]}
    return info


def _arm(arms: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What run.json says of an arm; certificates are to be made again."""
    meaning = {name: sentence for arm in arms for name, sentence in arm["meaning"].items()}
    clocks = [{step: each for step, *each in zip(*arm["clock"].values(), strict=True)} for arm in arms]
    steps = [step for step in clocks[0] if all(step in clock for clock in clocks)]
    told = [tuple(sum(column) for column in zip(*(clock[step] for clock in clocks), strict=True)) for step in steps]
    seconds, taken = ([row[i] for row in told] for i in range(2))
    merged = {name: value for name, value in arms[0].items() if name not in ("verdicts", "seed_steps_per_second")} | {
        "seconds": round(sum(arm["seconds"] for arm in arms), 3),
        "clock": {"step": steps, "seconds": [round(each, 6) for each in seconds], "seed_steps": taken},
        "status": [each for arm in arms for each in arm["status"]],
        "steps": [each for arm in arms for each in arm["steps"]],
        "meaning": {name: meaning[name] for name in sorted(meaning, key=lambda name: Status[name])},
    }
    return merged | ({"seed_steps_per_second": round(taken[-1] / seconds[-1], 1)} if told and seconds[-1] else {})
