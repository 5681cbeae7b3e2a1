"""The command in two processes: the first speaks and writes, and all end alike."""

import os
import signal

import jax
import numpy as np
import pytest

from pwgf_jax.experiments.cli import main
from pwgf_jax.experiments.processes import cpu_devices
from tests.processes import ends, free_port, said, started, wait_for

STEPS = ["--set", "steps=2000", "--set", "record_every=1", "--set", "seeds=4"]


def pair(*words):
    """The command twice, told where the other is."""
    places = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", 2]
    return [["-m", "pwgf_jax.experiments.cli", *words, *places, "--process-id", i] for i in range(2)]


def in_a_cluster():
    """What Slurm says to two tasks of a step, and where the first of them is."""
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    step |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}"}
    return [step | {"SLURM_PROCID": f"{i}", "SLURM_LOCALID": f"{i}"} for i in range(2)]


@pytest.mark.parametrize(("seeds", "cores", "devices"), [(10, 2, 2), (10, 8, 5), (10, 16, 10), (3, 2, 2), (1, 8, 1)])
def test_as_many_devices_as_end_the_sooner(seeds, cores, devices, monkeypatch):
    asked = {}
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(cores), raising=False)
    monkeypatch.setattr(jax.config, "update", lambda name, value: asked.update({name: value}))
    for variable in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS"):
        monkeypatch.delenv(variable, raising=False)
    cpu_devices(seeds)
    assert asked == {"jax_num_cpu_devices": devices}


@pytest.mark.slow
def test_a_sigterm_to_one_stops_all_and_one_goes_on(tiny, tmp_path, capsys):
    whole, out = tmp_path / "whole", tmp_path / "out"
    words = ["-m", "pwgf_jax.experiments.cli", "run", tiny, "--out", out, *STEPS, "--quiet", "--distributed"]
    with started([words, words], tmp_path, devices=2, environments=in_a_cluster()) as processes:
        assert wait_for((out / "checkpoint-static.npz").exists, 120), said(tmp_path)
        assert main(["resume", str(out)]) == 2
        assert "another process is running in it" in capsys.readouterr().err
        processes[1].send_signal(signal.SIGTERM)
        assert ends(processes, 60) == [130, 130], said(tmp_path)
    assert f"go on with: pwgf resume {out}" in said(tmp_path)[0]
    assert "pwgf:" not in said(tmp_path)[1]
    assert main(["resume", str(out), "--quiet"]) == 0
    assert main(["run", str(tiny), "--out", str(whole), *STEPS, "--quiet"]) == 0
    for name in ("metrics.npz", "final.npz"):
        with np.load(whole / name) as expected, np.load(out / name) as found:
            assert set(found) == set(expected)
            for key in expected:
                np.testing.assert_array_equal(found[key], expected[key], err_msg=key)
    assert not list(out.glob("checkpoint-*"))


@pytest.mark.slow
def test_two_processes_run_to_the_end_and_refuse_what_is_taken(tiny, tmp_path):
    out = tmp_path / "out"
    with started(pair("run", tiny, "--out", out), tmp_path, devices=1) as processes:
        assert ends(processes, 200) == [0, 0], said(tmp_path)
    first, second = said(tmp_path)
    assert f"Everything is in {out}" in first
    assert "Everything" not in second
    assert (out / "summary.md").exists()
    assert main(["resume", str(out), "--steps", "8", "--quiet"]) == 0  # of what both have kept
    with started(pair("run", tiny, "--out", out), tmp_path, devices=1) as processes:
        assert ends(processes, 60) == [2, 2]
    assert all(f"{out}: it holds another run" in text for text in said(tmp_path))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--processes", "2"], "--coordinator, --process-id: not given"),
        (["--distributed", "--processes", "2"], "leave --coordinator, --processes, --process-id out"),
        (["--coordinator", "here", "--processes", "2", "--process-id", "0"], 'given "here"'),
        (["--coordinator", "here:1", "--processes", "2", "--process-id", "2"], "given 2 of 2"),
        (["--distributed"], "--distributed: jax finds no cluster here"),
    ],
)
def test_what_is_no_group_of_processes_is_refused(tiny, tmp_path, given, message, capsys):
    assert main(["run", str(tiny), "--out", str(tmp_path / "out"), *given]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_particles_spread_over_two_devices_go_where_they_go_on_one(tiny, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    words = ["-m", "pwgf_jax.experiments.cli", "run", tiny, "--out", out, "--mesh", "1x2", "--quiet"]
    with started([words], tmp_path, devices=2, environments=[{}]) as processes:
        assert ends(processes, 200) == [0], said(tmp_path)
    assert main(["run", str(tiny), "--out", str(whole), "--quiet"]) == 0
    with np.load(whole / "metrics.npz") as expected, np.load(out / "metrics.npz") as found:
        for key in expected:
            np.testing.assert_allclose(found[key], expected[key], rtol=1e-4, atol=1e-5, err_msg=key)


@pytest.mark.parametrize(("mesh", "why"), [("3x7", "21 devices; jax has"), ("2", "give SxP"), ("0x2", "give SxP")])
def test_a_mesh_that_is_none_is_refused(tiny, tmp_path, capsys, mesh, why):
    assert main(["run", str(tiny), "--out", str(tmp_path / "out"), "--mesh", mesh]) == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
