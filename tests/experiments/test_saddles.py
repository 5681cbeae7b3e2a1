"""Saddles of measures from configs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwgf_jax import problems
from pwgf_jax.experiments import build
from pwgf_jax.experiments.cli import main
from pwgf_jax.experiments.config import parse

HEAD = {"name": "a", "seeds": 2, "steps": 4, "dtype": "float64", "arms": {"wgf": {"flow": "wgf", "step_size": 0.1}}}
ATTENTION = {"saddle": "attention_heads", "options": {"eigenvalues": [2.0, 1.0], "heads": 3}}


def experiment(problem):
    return build(parse(HEAD | {"problem": problem}))


def test_a_config_starts_at_the_saddle_that_it_names():
    made = experiment(ATTENTION)
    F, mu = made.problem(made.keys[0])
    known = problems.attention_heads([2.0, 1.0], 3, dtype=jnp.float64)
    np.testing.assert_array_equal(mu.points, known.saddles[1].point.points)
    assert float(F(mu)) == pytest.approx(2.0)
    levels = {"all eigenvectors": 0.0, "eigenvector 0": 1.0, "eigenvector 1": 2.0, "zero": 3.0}
    assert made.facts["landmarks"] == levels


def test_a_start_may_be_about_another_of_its_critical_points():
    at = experiment(ATTENTION | {"start": {"at": "zero", "scale": 0.1}})
    first, second = (at.problem(key)[1] for key in at.keys)
    assert np.all(np.asarray(first.points) != np.asarray(second.points))
    np.testing.assert_array_equal(first.weights, jnp.full(3, 1 / 3))
    assert 0.01 < float(jnp.std(first.points)) < 0.5


def test_all_seeds_have_the_data_of_the_first():
    numbers = {"particles": 4, "points": 8, "inputs": 2, "outputs": 1}
    made = experiment({"saddle": "antithetic_factorization", "options": numbers})
    first, second = (jax.tree.leaves(made.problem(key)[0]) for key in made.keys)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
    assert made.facts["landmarks"].keys() == {"h = 0"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"saddle": "attention_head"}, 'problem.saddle: given "attention_head" .*did you mean attention_heads'),
        ({"options": {"eigenvalues": [1.0, 2.0], "heads": 3}}, "problem.options: attention_heads: .*largest first"),
        ({"options": {"eigenvalues": [1.0]}}, "missing key problem.options.heads"),
        ({"start": {"at": "top"}}, 'problem.start: at = "top"; allowed: .*zero'),
        ({"particles": 4}, "unknown key problem.particles"),
    ],
)
def test_what_cannot_be_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        experiment(ATTENTION | change)


@pytest.mark.slow
def test_a_run_says_what_leaving_costs_and_where_it_ends(tmp_path):
    """The mean quartic: a common shift, and then |m| = 1."""
    config = """\
name = "two"
seeds = 2
steps = 60
dtype = "float64"

[arms.pwgf]
flow = "pwgf"
step_size = 0.5
eps = 1e-3
eta_p = 0.1
k_thres = 50
f_thres = 0.0

[vary]
key = "problem"

[vary.values.quartic]
saddle = "mean_quartic"
options = { particles = 4, dimension = 2 }
constants = { smoothness = 2.0, hessian_lipschitz = 6.0, eps = 1e-3, delta = 0.1 }
"""
    (tmp_path / "two.toml").write_text(config, encoding="utf-8")
    assert main(["run", str(tmp_path / "two.toml"), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    summary = (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")
    grid = next(part.splitlines() for part in summary.split("\n\n") if "cost of a tenth of the fall" in part)
    assert "not reached" not in grid[-1]
    assert "2 unit mean" in summary
