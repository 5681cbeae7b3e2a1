"""A run that is killed again and again ends bit for bit like one that is not."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
KILLS = 6


def arrays(path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def start(*words: object) -> subprocess.Popen:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pwgf_jax.experiments.cli", *map(str, words), "--quiet"]
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen) -> None:
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said.decode()


def wait_for(process: subprocess.Popen, happened) -> None:
    while process.poll() is None and not happened():
        time.sleep(1e-3)


def contents(folder: Path) -> dict[str, int]:
    """Names of files and when they were written; of a folder in which things come and go."""
    found = {}
    for name in os.listdir(folder) if folder.exists() else []:
        try:
            found[name] = (folder / name).stat().st_mtime_ns
        except FileNotFoundError:
            continue
    return found


@pytest.mark.slow
def test_half_a_dozen_kills_lose_nothing(tiny, tmp_path):
    steps = ["--set", "steps=4000", "--set", "record_every=1"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    finish(start("run", tiny, "--out", whole, *steps))
    killed = 0
    for kill in range(KILLS):
        # At the first things that a run does to its folder, and at later ones: checkpoints, ends of arms.
        begun, changes = (out / "run.json").exists(), 1 + kill % 4
        process = start("resume", out) if begun else start("run", tiny, "--out", out, *steps)
        for _ in range(changes):
            before = contents(out)
            wait_for(process, lambda before=before: contents(out) != before)
        killed += process.poll() is None
        process.kill()
        process.communicate()
        if (out / "summary.md").exists():
            break
    assert killed >= KILLS // 2
    finish(start("resume", out) if (out / "run.json").exists() else start("run", tiny, "--out", out, *steps))
    for name in ("metrics.npz", "final.npz"):
        expected, found = arrays(whole / name), arrays(out / name)
        assert set(found) == set(expected)
        for key, values in expected.items():
            np.testing.assert_array_equal(found[key], values, err_msg=key)
    assert not list(out.glob("*.part"))
    assert not list(out.glob("checkpoint-*"))
