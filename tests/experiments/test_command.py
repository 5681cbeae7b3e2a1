"""The command: what a run leaves behind, going on after an interruption, and what it says when it cannot."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from pwgf_jax import __version__
from pwgf_jax.experiments import load, runner
from pwgf_jax.experiments.cli import main
from pwgf_jax.experiments.progress import Bar

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = {
    "matrix_factorization": ["problem.data.points=8"],
    "icfl": ["problem.data.points=8"],
    "icfl_generic": ["problem.data.points=12"],
    "digits": ["problem.data.points=50"],
}


ONE_ARM = 'arms={static = {flow = "wgf", step_size = 0.05}}'


def go(*argv: object) -> int:
    return main([str(argument) for argument in argv])


def run(config, out, *settings: str) -> int:
    return go("run", config, "--out", out, "--quiet", *(word for setting in settings for word in ("--set", setting)))


def arrays(path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_config_runs(path, tmp_path):
    tiny = ["seeds=2", "steps=6", "record_every=2", "problem.particles=8", *SMALL.get(path.stem, [])]
    assert run(path, tmp_path / "out", *tiny) == 0
    metrics = arrays(tmp_path / "out" / "metrics.npz")
    for arm in load(path).arms:
        assert metrics[f"{arm}/step"].tolist() == [0, 2, 4, 6]
        assert metrics[f"{arm}/value"].shape == (2, 4)
        assert np.isfinite(metrics[f"{arm}/value"]).all()


def test_a_run_folder_holds_all_that_was_promised(run_once):
    config, out = run_once
    assert {path.name for path in out.iterdir()} == {
        *("config.toml", "run.json", "metrics.npz", "final.npz", "summary.md", "figure.png", "figure.pdf")
    }
    assert load(out / "config.toml") == load(config, ["seed=3"])
    metrics, final = arrays(out / "metrics.npz"), arrays(out / "final.npz")
    names = {"step", "value", "gradient_norm", "perturbed"}
    assert set(metrics) == {f"{arm}/{name}" for arm in ("static", "hessian") for name in names}
    assert metrics["static/step"].tolist() == [0, 2, 4, 6]
    assert {metrics[f"hessian/{name}"].shape for name in names - {"step"}} == {(3, 4)}
    np.testing.assert_allclose(metrics["static/value"][:, 0], metrics["hessian/value"][:, 0], rtol=1e-12)
    assert final["static/points"].shape == (3, 6, 5)
    assert final["static/points"].dtype == np.float64
    assert final["static/weights"].shape == (3, 6)
    assert {final[f"static/{name}"].shape for name in ("value", "status", "steps")} == {(3,)}
    info = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert info["pwgf_jax"] == __version__
    known = {"jax", "jaxlib", "numpy", "optax", "python", "device", "backend", "dtype", "config_hash", "git"}
    assert known <= set(info)
    assert info["arms"]["static"]["seconds"] > 0
    assert info["arms"]["static"]["seed_steps_per_second"] > 0
    assert info["arms"]["static"]["status"] == ["budget_spent"] * 3
    summary = (out / "summary.md").read_text(encoding="utf-8")
    assert "| static " in summary
    assert "gradient peak at step" in summary
    assert "--set seed=3" in summary


def test_an_interrupted_run_goes_on_and_ends_like_a_whole_one(finished, tmp_path, capsys, monkeypatch):
    class Interrupted(Bar):
        chunks = 0

        def __call__(self, progress):
            Interrupted.chunks += 1
            if Interrupted.chunks == 5:  # the second arm's second
                raise KeyboardInterrupt

    out = tmp_path / "out"
    monkeypatch.setattr(runner, "Bar", Interrupted)
    assert run(finished / "config.toml", out) == 130
    assert f"interrupted; go on with: pwgf resume {out}" in capsys.readouterr().err
    assert (out / "checkpoint-hessian.npz").exists()
    assert not (out / "summary.md").exists()
    monkeypatch.undo()
    assert go("resume", out, "--quiet") == 0
    whole, pieces = (arrays(folder / "metrics.npz") for folder in (finished, out))
    assert set(whole) == set(pieces)
    for name, values in whole.items():
        np.testing.assert_allclose(values, pieces[name], rtol=1e-9, atol=1e-14)
    assert not list(out.glob("checkpoint-*.npz"))
    assert (out / "summary.md").exists()


def test_resuming_a_finished_run_computes_nothing(finished, monkeypatch):
    monkeypatch.setattr(runner, "sweep", None)
    assert go("resume", finished) == 0


def test_float32_stays_float32(tiny, tmp_path):
    assert run(tiny, tmp_path / "out", "dtype=float32", "seeds=1", ONE_ARM) == 0
    final = arrays(tmp_path / "out" / "final.npz")
    assert final["static/points"].dtype == final["static/value"].dtype == np.float32


def test_plot_draws_again(finished):
    for name in ("figure.png", "figure.pdf", "summary.md"):
        (finished / name).unlink()
    assert go("plot", finished) == 0
    assert (finished / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (finished / "figure.pdf").read_bytes().startswith(b"%PDF")
    assert (finished / "summary.md").exists()


def test_compare_puts_runs_together(finished, run_once, tmp_path, capsys):
    assert go("compare", finished, run_once[1], "--out", tmp_path / "both") == 0
    said = capsys.readouterr().out
    assert "finished: static" in said
    assert "out: hessian" in said
    assert {path.name for path in (tmp_path / "both").iterdir()} == {"summary.md", "figure.png", "figure.pdf"}


def test_list_names_everything_a_config_can_name(capsys):
    assert go("list", CONFIGS) == 0
    said = capsys.readouterr().out
    for line in (
        "matrix_factorization.toml: Rank-one matrix factorisation",
        "  icfl(ridge = 0.0,",
        "  sign_pairs(points, inputs, outputs, teacher_neurons = 50",
        "  antithetic(scale = 0.3, jitter = 1e-06): Gaussian neurons in pairs",
        "  pwgf(step_size, eps, eta_p, k_thres, f_thres, sampler =",
    ):
        assert line in said


def test_a_seed_that_turns_non_finite_is_reported_and_left_out(tmp_path, capsys):
    (tmp_path / "steep.py").write_text(
        "import jax.numpy as jnp\ndef F(mu):\n    return mu.weights @ jnp.sum(jnp.exp(mu.points ** 2), axis=-1)\n",
        encoding="utf-8",
    )
    config = tmp_path / "steep.toml"
    config.write_text(
        'name = "steep"\nseeds = 4\nsteps = 30\ndtype = "float64"\n'
        '[problem]\nfunctional = "steep.py:F"\nparticles = 1\n'
        '[problem.start]\nkind = "gaussian"\ndimension = 1\n'
        '[arms.bold]\nflow = "wgf"\nstep_size = 0.55\n[arms.wild]\nflow = "wgf"\nstep_size = 1e9\n',
        encoding="utf-8",
    )
    assert run(config, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "wild: seeds 0, 1, 2, 3 turned non-finite" in said
    info = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    assert set(info["arms"]["wild"]["status"]) == {"not_finite"}
    assert "not_finite" in (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")


def test_the_progress_bar_shows_the_slowest_seed(tiny, tmp_path, capsys):
    assert go("run", tiny, "--out", tmp_path / "out", "--set", ONE_ARM) == 0
    assert "slowest seed" in capsys.readouterr().err


def test_without_tqdm_there_are_plain_lines_and_without_matplotlib_numbers(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert go("run", tiny, "--out", tmp_path / "out", "--set", ONE_ARM) == 0
    said = capsys.readouterr().err
    assert "tqdm is not installed" in said
    assert "static: 2 of 6 steps, slowest seed" in said
    assert "s left" in said
    assert "figures need matplotlib" in said
    assert (tmp_path / "out" / "summary.md").exists()


# What cannot be done: one sentence, exit code 2, nothing written


def test_bad_configs_leave_nothing_behind(tiny, tmp_path, refused):
    assert refused("run", tmp_path / "no.toml").endswith("no.toml: there is no such file.")
    assert "did you mean steps" in refused("run", tiny, "--out", tmp_path / "out", "--set", "stepps=5")
    assert "come in pairs" in refused("run", tiny, "--out", tmp_path / "out", "--set", "problem.particles=5")
    tiny.write_text("name = ", encoding="utf-8")
    assert "not valid TOML" in refused("run", tiny, "--out", tmp_path / "out")


def test_a_folder_with_another_run_is_not_touched(tiny, finished, refused):
    said = refused("run", tiny, "--out", finished)
    assert "pwgf resume" in said
    assert "another --out" in said
    assert "holds another run" in refused("compare", finished, "--out", finished)


def test_resume_refuses_what_is_not_the_same_run(finished, tmp_path, refused):
    assert "no run is in it" in refused("resume", tmp_path)
    text = (finished / "config.toml").read_text(encoding="utf-8")
    (finished / "config.toml").write_text(text.replace("seeds = 3", "seeds = 4"), encoding="utf-8")
    assert "has changed since the run began" in refused("resume", finished)
    assert "no run is in it" in refused("plot", tmp_path)
    assert "no run is in it" in refused("compare", tmp_path, "--out", tmp_path / "both")


def test_the_usage_of_the_command(capsys):
    assert go("--version") == 0
    assert __version__ in capsys.readouterr().out
    assert go() == 2
    assert go("run") == 2
    assert go("ruin") == 2
    assert go("--help") == 0
