"""The command: what a run leaves behind, going on after an interruption, and what it says when it cannot."""

import io
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from pwgf_jax import __version__
from pwgf_jax.experiments import build, load, open_run
from pwgf_jax.experiments import run as runner
from pwgf_jax.experiments.cli import main
from pwgf_jax.experiments.progress import Bar
from pwgf_jax.solve import Progress

CONFIGS = Path(__file__).parents[2] / "configs"
ONE_ARM = 'arms={static = {flow = "wgf", step_size = 0.05}}'


def go(*argv: object) -> int:
    return main([str(argument) for argument in argv])


def run(config, out, *settings: str) -> int:
    return go("run", config, "--out", out, "--quiet", *(word for setting in settings for word in ("--set", setting)))


def arrays(path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def is_objective(path) -> bool:
    return "\nobjective = " in path.read_text(encoding="utf-8")


QUICK = {"matrix_factorization", "icfl", "certificate", "minibatch", "student_teacher", "mean_field_langevin"}


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem in QUICK else [pytest.mark.slow])
        for path in sorted(CONFIGS.glob("*.toml"))
        if not is_objective(path)
    ],
)
def test_every_shipped_config_can_be_made(path):
    points = 50 if "digits" in path.stem else 100 if "student_teacher" in path.stem else 8
    small = ["problem.particles=8", f"problem.data.points={points}"]
    values = {"particles": "[8]", "minibatch": "[8]"}.get(path.stem)
    if 'key = "problem"' in path.read_text(encoding="utf-8"):
        small = []
    elif path.stem == "coulomb_saddle":  # from a known saddle
        small = ["problem.options.particles=8"]
    config = load(path, [*small, *([f"vary.values={values}"] if values else [])])
    with runner.settings(config):
        for part, experiment in runner.experiments(config):  # traces the first step of every arm
            assert set(experiment.flows) == set(part.config.arms)


@pytest.mark.slow
def test_an_arm_has_its_own_steps_and_jumps_and_a_cost(tiny, tmp_path):
    flow = 'flow="saddle_free_newton", step_size=0.1, beta=1.0, depth=3, steps=2'
    jumps = "perturbation={eps=1e3, eta_p=0.01, k_thres=1, f_thres=0.0}"
    assert run(tiny, tmp_path / "out", "seeds=1", f"arms={{a={{{flow}, {jumps}}}}}") == 0
    metrics = arrays(tmp_path / "out" / "metrics.npz")
    assert metrics["a/step"].tolist() == [0, 2]
    assert metrics["a/perturbed"][:, 0].all()
    assert np.isfinite(metrics["a/value"]).all()
    about = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))["arms"]["a"]
    assert about["cost"] == {"step": 1 + 1.3 * 3, "jump": 1 + 1.3 * 3 + 1.3}
    assert about["clock"]["step"][-1] == 2


@pytest.mark.slow
def test_a_varied_key_makes_an_arm_for_each_value(tiny, tmp_path, capsys):
    vary = 'vary={key="arms.static.batch_size", values=[8, 2]}'
    assert run(tiny, tmp_path / "out", ONE_ARM, vary, "seeds=2", "steps=2") == 0
    metrics = arrays(tmp_path / "out" / "metrics.npz")
    np.testing.assert_allclose(metrics["static-8/value"], metrics["static-8/full_value"], rtol=1e-6)
    assert not np.allclose(metrics["static-2/value"], metrics["static-2/full_value"], rtol=1e-6)
    np.testing.assert_allclose(metrics["static-2/full_value"][:, 0], metrics["static-8/full_value"][:, 0], rtol=1e-9)
    info = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    assert info["arms"]["static-2"]["varied"] == {"arm": "static", "key": "arms.static.batch_size", "value": 2}
    assert info["arms"]["static-2"]["cost"]["step"] == 0.25
    assert "steps to F₀/2, arms.static.batch_size =" in capsys.readouterr().out
    assert (tmp_path / "out" / "figure.pdf").exists()
    assert go("plot", tmp_path / "out", "--x", "gradients") == 0
    assert (tmp_path / "out" / "figure-gradients.png").exists()


@pytest.mark.slow
def test_certify_writes_a_verdict_for_every_seed(finished, capsys, refused):
    assert go("certify", finished, "--arm", "static", "--seeds", "2") == 0
    said = capsys.readouterr().out
    certificates = json.loads((finished / "certificates.json").read_text(encoding="utf-8"))
    assert [(each["arm"], each["seed"]) for each in certificates] == [("static", 0), ("static", 1)]
    final, metrics = arrays(finished / "final.npz"), arrays(finished / "metrics.npz")
    for seed, each in enumerate(certificates):
        assert each["value"] == final["static/value"][seed]
        assert each["gradient_norm"] == pytest.approx(metrics["static/gradient_norm"][seed, -1], rel=1e-6)
        assert each["full"]["lower"] <= each["full"]["eigenvalue"] + 1e-12
        assert each["verdict"] in said
    assert "| static | 0 " in (finished / "certificates.md").read_text(encoding="utf-8")
    found = open_run(finished).to_xarray()["verdict"].sel(arm="static").values.tolist()
    assert found == [*(each["verdict"] for each in certificates), ""]


def test_certify_says_what_it_cannot_do(finished, tmp_path, refused):
    assert "did you mean static" in refused("certify", finished, "--arm", "statik")
    assert "eps = -1.0; give a positive number" in refused("certify", finished, "--eps", "-1")
    assert "delta = 0.0; give a positive number" in refused("certify", finished, "--delta", "0")
    assert "seeds = 0; give a positive number" in refused("certify", finished, "--seeds", "0")
    assert "no run is in it" in refused("certify", tmp_path)


@pytest.mark.slow
def test_a_landscape_of_one_well_and_its_saddle(tmp_path, capsys):
    (tmp_path / "well.py").write_text(
        "import jax.numpy as jnp\n"
        "def F(mu):\n    square = jnp.sum((mu.weights @ mu.points) ** 2)\n    return square**2 / 4 - square / 2\n",
        encoding="utf-8",
    )
    (tmp_path / "well.toml").write_text(
        'name = "well"\nsteps = 60\ndtype = "float64"\nseeds = 3\n'
        '[problem]\nfunctional = "well.py:F"\nparticles = 4\n'
        '[problem.start]\nkind = "gaussian"\ndimension = 1\n'
        '[arms.newton]\nflow = "wasserstein_newton"\nstep_size = 1.0\nbeta = 1e-3\ndepth = 2\n'
        '[arms.wgf]\nflow = "wgf"\nstep_size = 0.5\n',
        encoding="utf-8",
    )
    out = tmp_path / "out"
    words = ["--out", out, "--quiet", "--eps", "1e-6", "--delta", "0.1", "--arm", "newton", "--arm", "wgf"]
    assert go("landscape", tmp_path / "well.toml", *words) == 0
    assert "non-minimal critical point" in capsys.readouterr().out
    points = json.loads((out / "landscape.json").read_text(encoding="utf-8"))["points"]
    assert [round(point["ends"][0]["value"], 6) for point in points] == [-0.25, 0.0]
    assert [point["ends"][0]["index"] for point in points] == [0, 1]
    assert sum(len(point["ends"]) for point in points) == 6
    assert (out / "landscape.pdf").exists()


def test_landscape_says_what_it_cannot_do(tiny, refused):
    assert "did you mean static" in refused("landscape", tiny, "--arm", "statik")
    assert "seeds = 0; give at least 1" in refused("landscape", tiny, "--starts", "0")
    assert "tolerance = 0.0; give a positive number" in refused("landscape", tiny, "--tolerance", "0")


def test_a_run_folder_holds_all_that_was_promised(run_once):
    config, out = run_once
    assert {path.name for path in out.iterdir()} == {
        *("config.toml", "run.json", "metrics.npz", "final.npz", "summary.md", "figure.png", "figure.pdf"),
        "ends",  # to make it longer
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
    static = info["arms"]["static"]
    assert set(static["clock"]) == {"step", "seconds", "seed_steps"}
    assert static["clock"]["seed_steps"][-1] == 18
    assert 0 < static["clock"]["seconds"][-1] < static["seconds"] / 2  # which holds the compilation
    assert info["arms"]["static"]["seed_steps_per_second"] > 0
    assert info["arms"]["static"]["status"] == ["budget_spent"] * 3
    summary = (out / "summary.md").read_text(encoding="utf-8")
    assert "| static " in summary
    assert "escape at step" in summary
    assert "gradients to F ≤ 0.5" in summary
    assert "--set seed=3" in summary


@pytest.mark.slow
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
    assert go("resume", out) == 0
    assert "slowest seed" in capsys.readouterr().err
    whole, pieces = (arrays(folder / "metrics.npz") for folder in (finished, out))
    assert set(whole) == set(pieces)
    for name, values in whole.items():
        np.testing.assert_allclose(values, pieces[name], rtol=1e-9, atol=1e-14)
    assert not list(out.glob("checkpoint-*.npz"))
    assert len(list(out.glob("ends/*.npz"))) == 2  # to make it longer
    assert (out / "summary.md").exists()


@pytest.mark.slow
def test_a_run_made_longer_is_the_longer_run(tiny, tmp_path, capsys, refused):
    assert run(tiny, tmp_path / "short") == 0
    before = json.loads((tmp_path / "short" / "run.json").read_text())["arms"]["static"]
    assert "--steps: given 5; the run has 6 already, give more." in refused("resume", tmp_path / "short", "--steps", 5)
    assert go("resume", tmp_path / "short", "--quiet", "--steps", 12) == 0
    assert run(tiny, tmp_path / "long", "steps=12") == 0
    for name in ("metrics.npz", "final.npz"):
        short, long = arrays(tmp_path / "short" / name), arrays(tmp_path / "long" / name)
        assert short.keys() == long.keys()
        for key, value in long.items():
            np.testing.assert_array_equal(short[key], value, err_msg=key)
    texts = [load(tmp_path / name / "config.toml") for name in ("short", "long")]
    assert texts[0] == texts[1]
    info = json.loads((tmp_path / "short" / "run.json").read_text())
    assert info["steps"] == 12
    clock = info["arms"]["static"]["clock"]
    assert clock["step"] == sorted(set(clock["step"]))
    assert clock["step"][-1] == 12
    assert clock["seconds"][: len(before["clock"]["seconds"])] == before["clock"]["seconds"]
    assert go("resume", tmp_path / "short", "--quiet") == 0  # it is one run, whole and unchanged


def test_shipped_configs_are_run_by_name(tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    small = ["seeds=1", "steps=2", "record_every=1", "problem.particles=6", "problem.data.points=8", ONE_ARM]
    assert run("matrix_factorization", tmp_path / "out", *small) == 0
    assert "no such file, and no shipped config; allowed: " in refused("run", "matrix_factorisation")
    assert "did you mean matrix_factorization?" in refused("run", "matrix_factorisation")


@pytest.mark.slow
def test_a_command_keeps_what_it_compiled_unless_told_otherwise(tiny, tmp_path):
    code = "import sys; from pwgf_jax.experiments.cli import main; sys.exit(main(sys.argv[1:]))"
    kept = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    for i, words in enumerate((["--no-cache"], [])):
        command = [sys.executable, "-c", code, "run", str(tiny), "--out", str(tmp_path / str(i)), "--quiet", *words]
        environment = kept | {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
        subprocess.run(command, env=environment, check=True, capture_output=True)
        assert bool(list((tmp_path / "pwgf_jax").glob("*"))) == (not words)


def test_resuming_a_finished_run_computes_nothing(finished, monkeypatch):
    monkeypatch.setattr(runner, "sweep", None)
    assert go("resume", finished) == 0


@pytest.mark.slow
def test_plot_draws_again(finished):
    for name in ("figure.png", "figure.pdf", "summary.md"):
        (finished / name).unlink()
    assert go("plot", finished) == 0
    for x in ("gradients", "seconds"):
        assert go("plot", finished, "--x", x) == 0
        assert (finished / f"figure-{x}.png").exists()
    assert (finished / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (finished / "figure.pdf").read_bytes().startswith(b"%PDF")
    assert (finished / "summary.md").exists()


@pytest.mark.slow
def test_compare_puts_runs_together(finished, run_once, tmp_path, capsys):
    assert go("compare", finished, run_once[1], "--out", tmp_path / "both") == 0
    said = capsys.readouterr().out
    assert "finished: static" in said
    assert "out: hessian" in said
    assert {path.name for path in (tmp_path / "both").iterdir()} == {"summary.md", "figure.png", "figure.pdf"}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_without_tqdm_is_told_of_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with Bar({"static": 4}):
        pass
    assert "tqdm is not installed" in terminal.getvalue()


def test_a_log_gets_a_line_now_and_then_and_no_carriage_returns(capsys, monkeypatch):
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr("pwgf_jax.experiments.progress.time.monotonic", lambda: float(next(clock)))
    with Bar({"static": 100}) as bar:
        bar.begin("static")
        for step in range(1, 101):
            bar(Progress(step, 100, np.ones(2), np.ones(2), np.zeros(2, int)))
    said = capsys.readouterr().err
    assert "\r" not in said
    lines = said.splitlines()
    assert 10 < len(lines) < 60
    assert "static: 100 of 100 steps, slowest seed 0" in lines[-1]


def test_steps_that_do_not_reach_every_arm_say_so(tiny, finished, capsys):
    own = ["--set", "arms.static.steps=4"]
    assert go("run", tiny, "--out", finished, "--set", "steps=60", *own) == 2
    assert "these keep theirs: static 4" in capsys.readouterr().err
    assert go("run", tiny, "--out", finished, *own) == 2
    assert "keep theirs" not in capsys.readouterr().err


@pytest.mark.slow
def test_list_may_be_cut_short():
    command = [sys.executable, "-m", "pwgf_jax.experiments.cli", "list", str(CONFIGS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=CONFIGS.parent) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_list_names_everything_a_config_can_name(capsys):
    assert go("list", CONFIGS) == 0
    said = capsys.readouterr().out
    for line in (
        "matrix_factorization.toml: Rank-one matrix factorisation",
        "  icfl(ridge = 0.0,",
        "  sign_pairs(points, inputs, outputs, teacher_neurons = 50",
        "  antithetic(scale = 0.3, jitter = 1e-06): Gaussian neurons in pairs",
        "  pwgf(step_size, eps, eta_p, k_thres, f_thres, sampler =",
        "  mmd(kernel, statistic =",
        "  three_rings(points, test_points = 0",
        "Kernels (kind)",
        "  cosine_decay_schedule(init_value, decay_steps",
    ):
        assert line in said


@pytest.mark.slow
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


@pytest.mark.slow
def test_in_float32_and_without_matplotlib_there_are_plain_lines_and_numbers(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert go("run", tiny, "--out", tmp_path / "out", "--set", ONE_ARM, "--set", "dtype=float32") == 0
    final = arrays(tmp_path / "out" / "final.npz")
    assert final["static/points"].dtype == final["static/value"].dtype == np.float32
    said = capsys.readouterr().err
    assert "static: 6 of 6 steps, slowest seed" in said
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


def test_a_folder_with_other_things_is_not_touched(tiny, finished, tmp_path, refused):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("precious", encoding="utf-8")
    assert "it is not empty (chapter.tex); give another --out" in refused("run", tiny, "--out", tmp_path / "thesis")
    assert "it is not empty (chapter.tex)" in refused("compare", finished, "--out", tmp_path / "thesis")
    assert "it is a file" in refused("run", tiny, "--out", tiny)


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


def test_list_says_all_there_is_to_know_of_one(capsys, refused):
    assert go("list", "pwgf") == 0
    said = capsys.readouterr().out
    assert "pwgf (Flows): arms.NAME.flow" in said
    assert "    k_thres: a whole number; required" in said
    assert "    step_size: a number or a table that names an optax optimizer or schedule; required" in said
    assert "arXiv:2509.16974, Alg. 2" in said
    assert "pwfg: nothing has the name; allowed: " in refused("list", "pwfg")
    assert "did you mean pwgf?" in refused("list", "pwfg")


def test_new_writes_a_config_that_can_be_made(tmp_path, monkeypatch, refused, capsys):
    monkeypatch.chdir(tmp_path)
    assert go("new", "mine") == 0
    build(load("mine.toml"))
    assert capsys.readouterr().out == "Wrote mine.toml\n"
    assert "mine.toml: it is there already; give another name" in refused("new", "mine")
    assert 'name: given "a/b" (a string); use letters' in refused("new", "a/b")


def test_the_schema_takes_every_shipped_config_and_refuses_what_is_wrong(capsys):
    jsonschema = pytest.importorskip("jsonschema")
    assert go("schema") == 0
    check = jsonschema.Draft202012Validator(json.loads(capsys.readouterr().out))
    for path in CONFIGS.glob("*.toml"):
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        check.validate(document)
        assert not check.is_valid(document | {"stepps": 1})
        assert not check.is_valid(document | {"arms": {"a": {"flow": "wfg", "step_size": 1.0}}})
