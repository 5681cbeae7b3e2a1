"""Small experiments for the tests of the command."""

import shutil

import jax
import pytest

from pwgf_jax.experiments.cli import main

# A run spreads over one device per core if it comes first; the tests of this process keep the devices they have.
jax.devices()

TINY = """\
# A tiny experiment.
name = "tiny"
seeds = 3
steps = 6
record_every = 2
dtype = "float64"
targets = [0.5]

[problem]
functional = "matrix_factorization"
particles = 6

[problem.data]
source = "teacher"
points = 8
inputs = 3
outputs = 2
teacher_neurons = 4

[problem.start]
kind = "antithetic"

[arms.static]
flow = "wgf"
step_size = 0.05

[arms.hessian]
flow = "pwgf"
step_size = 0.05
eps = 0.02
eta_p = 0.015
k_thres = 2
f_thres = 0.0
"""


@pytest.fixture(autouse=True, scope="package")
def _compile_quickly():
    """These tests compile many programs that run for milliseconds."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="package")
def run_once(tmp_path_factory, _compile_quickly):
    """The tiny experiment's config and its run folder; not to be changed."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.toml").write_text(TINY, encoding="utf-8")
    settings = ["--set", "seed=3", "--quiet"]
    assert main(["run", str(folder / "tiny.toml"), "--out", str(folder / "out"), *settings]) == 0
    return folder / "tiny.toml", folder / "out"


@pytest.fixture
def finished(run_once, tmp_path):
    """A copy of the run folder of the tiny experiment."""
    return shutil.copytree(run_once[1], tmp_path / "finished")


@pytest.fixture
def tiny(tmp_path):
    """The path of a tiny config."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.fixture
def refused(capsys, tmp_path):
    """refused(*argv): what a command that must fail as bad input says, after checking that it wrote nothing."""

    def call(*argv):
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        assert main([str(argument) for argument in argv]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1, f"more than one line: {err}"
        assert (
            sorted(path for path in tmp_path.rglob("*") if path.name != "__pycache__" and path.suffix != ".pyc")
            == before
        )
        return err.strip()

    return call
