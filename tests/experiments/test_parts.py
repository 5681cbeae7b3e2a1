"""Parts of a run, each with some of its seeds, and the run that they make together."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pwgf_jax.experiments import ConfigError, load, open_run
from pwgf_jax.experiments import run as runner
from pwgf_jax.experiments.cli import main
from pwgf_jax.experiments.folder import RunFolder
from pwgf_jax.experiments.shares import Share, share
from pwgf_jax.solve.stream import Stream

OBJECTIVE = """\
name = "wells"
seeds = 4
steps = 6
record_every = 2
dtype = "float64"

[problem]
objective = "octopus"
options = { dimension = 2 }

[problem.constants]
smoothness = 10.0
hessian_lipschitz = 10.0
eps = 0.01
delta = 0.1

[arms.flow]
flow = "pwgf"
step_size = 0.05
eps = 0.02
eta_p = 0.015
k_thres = 2
f_thres = 0.0

[arms.pgd]
transform = "pgd"
"""


def go(*argv: object) -> int:
    return main([str(argument) for argument in argv])


def arrays(path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def assert_same(found, expected):
    assert list(found) == list(expected)
    for key, values in expected.items():
        assert found[key].dtype == values.dtype
        np.testing.assert_array_equal(found[key], values, err_msg=key)


def recorded(end: Path) -> dict[str, np.ndarray]:
    """What is beside a checkpoint."""
    header = json.loads(str(arrays(end)["header"]))["records"]
    blocks = list(Stream(end.with_name(f"{end.name}.records"), **header).blocks())
    return {name: np.concatenate([block[name] for block in blocks], axis=1) for name in sorted(blocks[0])}


def assert_same_run(found: Path, expected: Path):
    names = [path.name for path in expected.glob("*.npz")]
    for name in names:
        assert_same(arrays(found / name), arrays(expected / name))
    ends = sorted(path.name for path in expected.glob("ends/*"))
    assert sorted(path.name for path in found.glob("ends/*")) == ends
    for end in (name for name in ends if name.endswith(".npz")):
        one, other = arrays(found / "ends" / end), arrays(expected / "ends" / end)
        headers = [json.loads(str(each.pop("header"))) for each in (one, other)]
        assert_same(one, other)
        for header in headers:
            del header["records"], header["seconds"]  # blocks may be cut elsewhere
        assert headers[0] == headers[1]
        assert_same(recorded(found / "ends" / end), recorded(expected / "ends" / end))
    infos = [RunFolder(path).info for path in (found, expected)]
    for info in infos:
        for each in info["arms"].values():
            assert each.pop("seconds") > 0
            clock = each.pop("clock")
            each.pop("seed_steps_per_second", None)
            each["seed_steps"] = (clock["step"], clock["seed_steps"])
    assert infos[0]["arms"] == infos[1]["arms"]
    told = [{name: info[name] for name in info if name not in ("arms", "command", "merged")} for info in infos]
    assert told[0] == told[1]


@pytest.fixture(scope="module")
def flow(tmp_path_factory, _compile_quickly):
    """A config of flows, its whole run, and its parts."""
    from tests.experiments.conftest import TINY

    return made(tmp_path_factory.mktemp("flow"), TINY.replace("seeds = 3", "seeds = 4"))


@pytest.fixture(scope="module")
def transform(tmp_path_factory, _compile_quickly):
    return made(tmp_path_factory.mktemp("transform"), OBJECTIVE)


def made(place, text):
    config = place / "config.toml"
    config.write_text(text, encoding="utf-8")
    runner.run(load(config), place / "whole")
    for i in (1, 2, 3):
        runner.run(load(config), place / str(i), share=Share(i, 3))
    return place


@pytest.fixture
def parts(flow, tmp_path):
    """Copies of the folders of the three parts."""
    return [shutil.copytree(flow / name, tmp_path / name) for name in ("1", "2", "3")]


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["flow", "transform"])
def test_merged_parts_are_the_whole_run_bit_for_bit_and_go_on_as_it_does(problem, request, tmp_path, capsys):
    place = request.getfixturevalue(problem)
    out = tmp_path / "merged"
    assert go("merge", place / "2", place / "3", place / "1", "--out", out) == 0
    assert f"Everything is in {out}" in capsys.readouterr().out
    assert_same_run(out, place / "whole")
    info = RunFolder(out).info
    assert info["merged"]["folders"] == [str(place / name) for name in "123"]
    arm, *parts = (
        next(iter(RunFolder(each).info["arms"].values())) for each in (out, *(place / name for name in "123"))
    )
    assert arm["seconds"] == pytest.approx(sum(each["seconds"] for each in parts))
    assert arm["clock"]["seconds"][-1] == pytest.approx(sum(each["clock"]["seconds"][-1] for each in parts))
    whole = shutil.copytree(place / "whole", tmp_path / "whole")
    for folder in (out, whole):
        runner.resume(folder, steps=8)
    assert "afresh" not in capsys.readouterr().err
    assert_same_run(out, whole)


@pytest.mark.slow
def test_all_that_looks_at_a_run_looks_at_a_part(flow, parts, tmp_path, capsys):
    folder, whole = open_run(parts[2]), arrays(flow / "whole" / "metrics.npz")
    assert folder.seeds == range(2, 4)
    assert folder.info["part"] == "3/3"
    assert_same(
        arrays(parts[2] / "metrics.npz"),
        {key: values if key.endswith("step") else values[2:] for key, values in whole.items()},
    )
    assert folder.to_xarray()["seed"].values.tolist() == [2, 3]
    assert go("plot", parts[2]) == 0
    assert "2 seeds (part 3/3 of the run's), 6 steps" in (parts[2] / "summary.md").read_text(encoding="utf-8")
    assert "config.toml --part 3/3 --out NEW" in (parts[2] / "summary.md").read_text(encoding="utf-8")
    assert go("compare", parts[1], parts[2], "--out", tmp_path / "both") == 0
    assert go("list", parts[2]) == 0
    assert "  config.toml: " in capsys.readouterr().out
    assert go("certify", parts[2], "--arm", "static", "--seeds", "1") == 0
    (found,) = json.loads((parts[2] / "certificates.json").read_text(encoding="utf-8"))
    assert go("certify", shutil.copytree(flow / "whole", tmp_path / "whole"), "--arm", "static", "--seeds", "3") == 0
    assert found == json.loads((tmp_path / "whole" / "certificates.json").read_text(encoding="utf-8"))[2]
    (parts[2] / "metrics.npz").unlink()
    assert go("resume", parts[2], "--quiet") == 0
    assert_same(arrays(parts[2] / "metrics.npz"), arrays(flow / "3" / "metrics.npz"))


@pytest.mark.slow
def test_snapshots_are_those_of_the_first_seed_of_all(tmp_path):
    # Two seeds a part: a seed alone on a device is compiled without the loop over seeds, and may round otherwise.
    rings = (
        'name = "rings"\nseeds = 4\nsteps = 4\ndtype = "float64"\nsnapshots = [0, 4]\n'
        '[problem]\nfunctional = "mmd"\nparticles = 6\n[problem.options]\nkernel = { kind = "energy" }\n'
        '[problem.data]\nsource = "three_rings"\npoints = 9\n[problem.start]\nkind = "gaussian"\ndimension = 2\n'
        '[arms.mmd]\nflow = "wgf"\nstep_size = 0.1\n'
    )
    (tmp_path / "rings.toml").write_text(rings, encoding="utf-8")
    for part in ((), ("--part", "1/2"), ("--part", "2/2")):
        assert (
            go("run", tmp_path / "rings.toml", "--out", tmp_path / (part[-1][0] if part else "whole"), "--quiet", *part)
            == 0
        )
    assert go("merge", tmp_path / "1", tmp_path / "2", "--out", tmp_path / "merged") == 0
    assert_same_run(tmp_path / "merged", tmp_path / "whole")


# What is no part, or not all of them


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/0", "a/b", "1/2/3", "-1/2", "1.0/2", "", "1/99999999999"])
def test_a_part_is_one_of_so_many(text, tiny, tmp_path, refused):
    said = refused("run", tiny, "--out", tmp_path / "out", f"--part={text}")
    assert said.startswith("pwgf: --part: given ")
    assert "give i/n with 1 <= i <= n, as $SLURM_ARRAY_TASK_ID/8 in an array of ids 1-8." in said


def test_a_part_has_a_seed_at_least(tiny, tmp_path, refused):
    said = refused("run", tiny, "--out", tmp_path / "out", "--part", "1/4")
    assert said == "pwgf: --part: given 1/4; the run has 3 seeds: give at most 3 parts."


@pytest.mark.parametrize(("seeds", "of"), [(10, 3), (7, 7), (2000, 64), (5, 1)])
def test_shares_are_nearly_equal_and_leave_nothing_out(seeds, of):
    shares = [share(f"{i + 1}/{of}").of_seeds(seeds) for i in range(of)]
    assert [seed for each in shares for seed in each] == list(range(seeds))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    with pytest.raises(ConfigError, match="give at most"):
        Share(1, seeds + 1).of_seeds(seeds)


def change(path: Path, **told: object):
    folder = RunFolder(path)
    folder.write_info(folder.info | told)


def unfinish(path: Path):
    info = RunFolder(path).info
    info["arms"]["hessian"]["finished"] = False
    RunFolder(path).write_info(info)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda parts: parts.pop(), "it is part 1/3, and 3/3 is missing; give all parts"),
        (lambda parts: parts.append(parts[0]), "it is part 1/3, and so is "),
        (lambda parts: change(parts[1], config_hash="f" * 16), "its config_hash is ffffffffffffffff, that of "),
        (lambda parts: change(parts[1], pwgf_jax="0.0.1"), "its pwgf_jax is 0.0.1, that of "),
        (lambda parts: change(parts[1], git={"commit": "a"}), "its git is {'commit': 'a'}, that of "),
        (lambda parts: change(parts[1], part="2/4"), "it is part 2/4, "),
        (lambda parts: unfinish(parts[2]), "hessian is not finished; go on with `pwgf resume "),
        (lambda parts: (parts[2] / "metrics.npz").write_bytes(b""), "metrics.npz: damaged"),
        (lambda parts: (parts[2] / "final.npz").unlink(), "final.npz has nothing of it; `pwgf resume "),
        (lambda parts: (parts[2] / "run.json").unlink(), "no run is in it"),
    ],
    ids=["missing", "twice", "config", "version", "git", "of", "unfinished", "damaged", "lost", "none"],
)
def test_what_is_not_all_of_one_run_is_refused(wrong, message, parts, tmp_path, refused):
    wrong(parts)
    assert message in refused("merge", *parts, "--out", tmp_path / "merged")


def test_merge_refuses_whole_runs_and_taken_places(flow, parts, refused, tmp_path):
    said = refused("merge", shutil.copytree(flow / "whole", tmp_path / "whole"), "--out", tmp_path / "merged")
    assert "it is no part of a run; give folders that `pwgf run --part i/n` made." in said
    assert "it holds another run" in refused("merge", *parts, "--out", parts[0])
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    assert "it is not empty (chapter.tex); give another --out." in refused(
        "merge", *parts, "--out", tmp_path / "thesis"
    )


def test_ends_that_are_lost_are_said_to_be(parts, tmp_path, capsys):
    (parts[1] / "ends" / "static.npz").write_bytes(b"no checkpoint")
    assert go("merge", *parts, "--out", tmp_path / "merged") == 0
    said = capsys.readouterr().err
    assert "static.npz: not a checkpoint" in said
    assert "more steps of arm static will begin at its start." in said
    assert not (tmp_path / "merged" / "ends" / "static.npz").exists()


def test_the_folder_of_a_part_has_a_name_of_its_own(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--set", "seeds=2", "--set", 'arms={static = {flow = "wgf", step_size = 0.05}}']
    assert go("run", tiny, "--quiet", "--part", "2/2", *small) == 0
    (made,) = (tmp_path / "runs").iterdir()
    assert made.name.startswith("tiny-")
    assert made.name.endswith("-part-2-of-2")
    assert load(made / "config.toml").seeds == 2
