"""Run environment that something has happened to: a sentence each, and what is lost is run again."""

import json
import resource
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pwgf_jax.experiments import ConfigError, archives, load, outset
from pwgf_jax.experiments import run as runner
from pwgf_jax.experiments.cli import main
from pwgf_jax.experiments.folder import RunFolder, open_run
from pwgf_jax.experiments.outset import create


def go(*argv: object) -> int:
    return main([str(argument) for argument in argv])


def arrays(path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def truncate(file: Path):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path):
    file.write_bytes(b"")


def garble(file: Path):
    content = bytearray(file.read_bytes())
    content[len(content) // 3 : len(content) // 2] = b"?" * (len(content) // 2 - len(content) // 3)
    file.write_bytes(content)


DAMAGES = pytest.mark.parametrize("damage", [truncate, empty, garble, Path.unlink])


@DAMAGES
@pytest.mark.parametrize("name", ["metrics.npz", "final.npz"])
def test_damage_is_a_sentence_and_its_arms_are_taken_for_not_run(name, damage, finished, refused):
    damage(finished / name)
    for command in ("plot", "certify"):
        said = refused(command, finished)
        assert name in said
        assert f"pwgf resume {finished}" in said
    folder = open_run(finished)
    (said,) = folder.mend(folder.config)
    assert name in said
    assert "static, hessian is gone: run again" in said
    assert folder.unfinished == ["static", "hessian"]


def test_an_arm_that_is_missing_is_the_only_one_that_is_run_again(finished):
    folder = RunFolder(finished)
    archives.write(
        finished / "final.npz", {k: v for k, v in folder.arrays("final.npz").items() if k != "hessian/status"}
    )
    assert len(folder.mend(folder.config)) == 1
    assert folder.unfinished == ["hessian"]
    assert list(folder.arms()) == ["static"]


def test_a_folder_that_is_whole_is_left_alone(finished):
    contents = lambda: {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}  # noqa: E731
    before, folder = contents(), open_run(finished)
    assert folder.mend(folder.config) == []
    assert contents() == before


@pytest.mark.slow
@pytest.mark.parametrize("damage", [truncate, Path.unlink])
def test_resume_runs_again_what_was_lost_and_ends_where_it_was(damage, finished, run_once, capsys):
    damage(finished / "metrics.npz")
    assert go("resume", finished, "--quiet") == 0
    assert "metrics.npz: it is damaged, or what it had of static, hessian is gone" in capsys.readouterr().err
    for name in ("metrics.npz", "final.npz"):
        again, whole = arrays(finished / name), arrays(run_once[1] / name)
        assert set(again) == set(whole)
        for key, values in whole.items():
            np.testing.assert_array_equal(again[key], values, err_msg=key)


@pytest.mark.slow
def test_a_checkpoint_of_no_use_is_said_to_be_and_the_arm_starts_afresh(finished, run_once, capsys):
    folder = RunFolder(finished)
    info = folder.info
    info["arms"]["static"]["finished"] = False
    folder.write_info(info)
    folder.checkpoint("static").write_bytes(b"no checkpoint")
    assert go("resume", finished, "--quiet") == 0
    assert "checkpoint-static.npz: not a checkpoint" in (said := capsys.readouterr().err)
    assert "arm static starts afresh" in said
    for key, values in arrays(run_once[1] / "metrics.npz").items():
        np.testing.assert_array_equal(arrays(finished / "metrics.npz")[key], values, err_msg=key)
    assert not folder.checkpoint("static").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"arms": {"a": {"finished": true}}}', '{"arms": {"a": 3}}'])
def test_a_damaged_run_json_is_a_sentence(text, finished, refused):
    (finished / "run.json").write_text(text, encoding="utf-8")
    for command in ("resume", "plot", "certify"):
        assert "run.json: not written by pwgf, or damaged" in refused(command, finished)


def test_a_full_disk_is_a_sentence_and_leaves_what_was_there(finished, capsys):
    before = (finished / "summary.md").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        status = go("plot", finished)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 2
    assert capsys.readouterr().err == "pwgf: File too large\n"
    assert (finished / "summary.md").read_bytes() == before
    assert not list(finished.glob("*.part"))


def test_a_folder_that_cannot_be_written_to_is_a_sentence(tiny, finished, tmp_path, capsys, monkeypatch):
    def refuse(part, path):
        raise PermissionError(13, "Permission denied", str(part))

    monkeypatch.setattr("os.replace", refuse)  # whoever runs the tests may be allowed everything
    assert go("plot", finished) == 2
    assert capsys.readouterr().err == f"pwgf: {finished / 'summary.md.part'}: Permission denied\n"
    with pytest.raises(ConfigError, match=r"cannot be written to \(Permission denied\); give another --out"):
        create(tmp_path / "out", load(tiny), "")


# A start that was killed


def test_what_a_killed_start_leaves_can_be_run_or_resumed(tiny, tmp_path):
    out, config = tmp_path / "out", load(tiny)
    out.mkdir()
    (out / "run.json.part").write_text("{", encoding="utf-8")  # killed while it was written
    create(out, config, "")
    assert open_run(out).unfinished == ["static", "hessian"]
    text = (out / "config.toml").read_text(encoding="utf-8")
    (out / "config.toml").unlink()  # killed before it was written
    assert runner.unchanged(open_run(out)) == load(out / "config.toml")
    assert (out / "config.toml").read_text(encoding="utf-8") == text


def test_one_process_at_a_time(finished, refused):
    with RunFolder(finished).locked():
        assert "another process is running in it" in refused("resume", finished)
    with RunFolder(finished).locked():
        pass  # the lock goes with whoever held it


# Folders from elsewhere


def link(path, target):
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def test_links_in_a_folder_lead_to_nothing_being_overwritten(finished, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("precious", encoding="utf-8")
    for name in ("summary.md", "summary.md.part", "figure.png", "figure.pdf"):
        link(finished / name, precious)
    assert go("plot", finished) == 0
    assert precious.read_text(encoding="utf-8") == "precious"
    assert "# tiny" in (finished / "summary.md").read_text(encoding="utf-8")
    assert (finished / "figure.pdf").read_bytes().startswith(b"%PDF")


def test_figures_stay_in_the_folder_whatever_a_value_is_called(finished, tmp_path):
    folder = RunFolder(finished)
    info, metrics = folder.info, folder.arrays("metrics.npz")
    for i, (name, arm) in enumerate(info["arms"].items()):
        arm |= {"varied": {"arm": "a", "key": "problem", "value": ["../../escaped", "plain"][i]}}
        arm |= {"second_order": {"eps": 1.0, "delta": 1.0}}
        metrics[f"{name}/curvature"] = np.zeros_like(metrics[f"{name}/value"])
    folder.write_info(info)
    archives.write(finished / "metrics.npz", metrics)
    before = set(tmp_path.rglob("*"))
    assert go("plot", finished) == 0
    new = set(tmp_path.rglob("*")) - before
    assert {path.name for path in new} == {
        f"figure-{turn}.{kind}" for turn in ("0", "plain") for kind in ("png", "pdf")
    }
    assert {path.parent for path in new} == {finished}


OWN = """\
from pathlib import Path
import jax.numpy as jnp
Path(__file__).with_name("executed").touch()
def F(mu):
    return mu.weights @ jnp.sum(mu.points ** 2, axis=-1)
"""


@pytest.fixture
def own(tmp_path):
    """A run folder whose config names code of its own, which leaves a trace where it is executed."""
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    (tmp_path / "own.toml").write_text(
        'name = "own"\nsteps = 2\n[problem]\nfunctional = "own.py:F"\nparticles = 3\n'
        '[problem.start]\nkind = "gaussian"\ndimension = 2\n[arms.static]\nflow = "wgf"\nstep_size = 0.1\n',
        encoding="utf-8",
    )
    create(tmp_path / "out", load(tmp_path / "own.toml"), "")
    return tmp_path / "out"


def test_code_that_a_folder_names_is_run_only_when_it_is_trusted(own, refused, monkeypatch, capsys):
    for command in ("resume", "certify"):
        said = refused(command, own)
        assert f"code of its own, {own.parent / 'own.py'}, which this would run" in said
        assert "--trust" in said
    assert not (own.parent / "executed").exists()
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert go("resume", own) == 2
    assert not (own.parent / "executed").exists()
    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert go("certify", own) == 2  # trusted, but nothing is finished
    assert "no arm is finished yet" in capsys.readouterr().err


@pytest.mark.slow
def test_trusted_code_is_run(own):
    assert go("resume", own, "--quiet", "--trust") == 0
    assert (own.parent / "executed").exists()
    assert go("certify", own, "--trust") == 0


# What run.json says


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_state_of_the_sources_is_that_of_a_repository_that_keeps_them(tmp_path, monkeypatch):
    package = tmp_path / "env" / "pwgf_jax"
    package.mkdir(parents=True)
    (package / "outset.py").touch()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    monkeypatch.setattr(outset, "__file__", str(package / "outset.py"))
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "a thesis"], check=True)
    assert outset.environment()["git"] is None  # the thesis's commit says nothing about the package
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "the sources"], check=True)
    state = outset.environment()["git"]
    assert state is not None
    assert (len(state["commit"]), state["changed"]) == (40, False)
    (package / "outset.py").write_text("changed", encoding="utf-8")
    assert outset.environment()["git"] == state | {"changed": True}


def test_the_problem_is_named_with_its_options(tiny, tmp_path):
    create(tmp_path / "out", load(tiny, ["problem.functional=icfl", "problem.options={ridge = 0.1}"]), "")
    problem = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))["problem"]
    assert problem.startswith("icfl(")
    assert "ridge = 0.1" in problem
    assert "activation = " in problem
    assert problem.endswith("6 particles")


def test_a_status_of_an_earlier_version_keeps_its_name_and_is_said_to_claim_too_much(finished):
    folder = RunFolder(finished)
    info = folder.info
    info["arms"]["hessian"] |= {"status": ["second_order_stationary"] * 3}
    info["arms"]["hessian"] |= {"meaning": {"second_order_stationary": "Second-order stationary: ..."}}
    folder.write_info(info)
    assert go("plot", finished) == 0
    summary = (finished / "summary.md").read_text(encoding="utf-8")
    assert "3 second_order_stationary" in summary
    assert "- `second_order_stationary`: Version 0.1.0 said so" in summary
