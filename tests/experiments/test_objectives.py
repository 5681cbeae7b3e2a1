"""Experiments on functions of finitely many parameters: what methods spend, where they arrive, what is refused."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pwgf_jax import Particles, functionals, problems, run
from pwgf_jax.experiments import ConfigError, build, dump, load
from pwgf_jax.experiments.baselines import BASELINES
from pwgf_jax.experiments.batches import Setting
from pwgf_jax.experiments.catalogue import OBJECTIVES as ENTRIES
from pwgf_jax.experiments.cli import main
from pwgf_jax.experiments.config import parse, unfold
from pwgf_jax.experiments.descents import DESCENTS
from pwgf_jax.experiments.folder import open_run
from pwgf_jax.experiments.objectives import OBJECTIVES
from pwgf_jax.experiments.report.certificates import certify_run
from pwgf_jax.experiments.report.tables import objectives
from pwgf_jax.experiments.results import Arm
from pwgf_jax.flows import descent
from pwgf_jax.solve import Record

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))
SHIPPED = [path for path in CONFIGS if "\nobjective = " in path.read_text(encoding="utf-8")]
CONSTANTS: dict[str, Any] = {"smoothness": 2.0, "hessian_lipschitz": 6.0, "eps": 1e-3, "delta": 0.3}
OPTIONS = {
    "octopus": {"dimension": 3},
    "double_well": {"dimension": 3},
    "quartic": {"dimension": 3},
    "cubic": {"eigenvalues": [-1.0, 1.5]},
    "leading_eigenvector": {"samples": 12, "eigenvalues": [2.0, 1.0]},
    "symmetric_factorization": {"eigenvalues": [3.0, 2.0, 1.0], "rank": 1},
    "asymmetric_factorization": {"singular_values": [2.0, 1.0], "rank": 1},
    "deep_linear": {"singular_values": [2.0, 1.0], "depth": 2},
    "phase_retrieval": {"dimension": 3},
    "matrix_sensing": {"dimension": 2, "rank": 1, "measurements": 9},
    "copy_average": {"teachers": 3, "students": 2},
    "attention_pca": {"eigenvalues": [2.0, 1.0]},
    "spiked_attention": {"prompts": 9, "tokens": 4, "dimension": 2, "spike": 3.0},
}
ARGUMENTS = {
    "adam": {"learning_rate": 0.01},
    "sam": {"radius": 0.05},
    "compressed_sgd": {"k": 1},
    "random_search": {"every": 5, "iterations": 3},
}


def document(objective="double_well", arms=None, **tables):
    table = {"objective": objective, "options": OPTIONS.get(objective, {}), "constants": CONSTANTS}
    arms = arms or {"pgd": {"transform": "pgd"}}
    return {"name": "a", "steps": 40, "record_every": 10, "dtype": "float64", "problem": table, "arms": arms} | tables


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name in OPTIONS])
def test_every_objective_starts_where_it_says_and_knows_its_values(name):
    experiment = build(parse(document(name)))
    F, mu = experiment.problem(experiment.keys[0])
    assert mu.size == 1
    assert np.isfinite(F(mu))
    made = ENTRIES[name].make(jax.random.split(experiment.keys[0])[0], jnp.float64, **OPTIONS[name])
    for point in getattr(made, "problem", made).saddles:
        assert experiment.facts["landmarks"][point.name] == pytest.approx(float(point.value))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.slow
def test_every_shipped_objective_can_be_made(path):
    for part in unfold(load(path, ["seeds=1"])):
        assert set(build(part.config).flows) == set(part.config.arms)


def test_alignment_is_that_with_the_leading_eigenvector():
    made = ENTRIES["attention_pca"].make(jax.random.key(0), jnp.float64, eigenvalues=[2.0, 1.0])
    minor, leading = (x / jnp.linalg.norm(x) for x in (made.problem.saddles[1].point, made.problem.minimum.point))
    for point, expected in [(-2 * leading, 1), (minor, 0), (leading + minor / 2, 1 / np.sqrt(1.25))]:
        np.testing.assert_allclose(made.stats(point)["alignment"], expected, atol=1e-12)
    assert made.stats(jnp.zeros(2))["alignment"] == 0


def calls_of(name, steps, problem, **arguments):
    """How often a method calls the objective, counted where it is called, beside what it says it spent."""
    count = {"calls": 0}

    def called():
        count["calls"] += 1

    def value(x):
        jax.debug.callback(called)
        return problem.value(x)

    counted = problems.Problem(value, problem.init, problem.saddles, problem.minimum)
    method = (DESCENTS | BASELINES)[name](Setting.of(counted, **CONSTANTS), **(ARGUMENTS.get(name, {}) | arguments))
    record = Record(
        every=steps,
        state_stats=lambda state: dict(
            zip("gpv", method.spent(state.step.astype(float), state.optimizer.state), strict=True)
        ),
    )
    start = Particles.uniform(problem.init(jax.random.key(1))[None])
    solution = run(descent(method.make), functionals.potential(value), start, jax.random.key(0), steps, record)
    jax.effects_barrier()
    # The flow itself evaluates the start and the end of every step, for its records.
    return count["calls"] - (steps + 1), {name: float(solution.records[name][-1]) for name in "gpv"}


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("sgd", lambda g, p, v: 0),
        ("sam", lambda g, p, v: g / 2),  # the flow's gradient is one of the two
        ("dimer", lambda g, p, v: g - 20),
        ("negative_curvature_descent", lambda g, p, v: g - 20),
        ("zeroth_order_descent", lambda g, p, v: v),
        ("zpsgd", lambda g, p, v: v),
        ("random_search", lambda g, p, v: v),
        ("cubic_newton", lambda g, p, v: 20),  # linearised once a step, for all products
    ],
)
def test_what_methods_say_they_spend_is_what_they_call(name, extra):
    calls, spent = calls_of(name, 20, problems.double_well(3, scale=0.1, dtype=jnp.float64))
    assert calls == extra(**spent)
    products = {"cubic_newton": 20 * 3}
    assert spent["p"] == products.get(name, 0)


@pytest.mark.parametrize("domain", ["ball", "box"])
def test_projected_steps_end_where_the_boundary_stops_them(domain):
    setting = Setting.of(problems.double_well(3, scale=0.1, dtype=jnp.float64), **CONSTANTS)
    optimizer = DESCENTS["projected_sgd"](setting, domain=domain, radius=0.5, noise=0.0).make(jax.random.key(0))
    x: Any = jnp.array([0.1, 0.4, 0.0])
    state = optimizer.init(x)
    with jax.numpy_dtype_promotion("standard"):  # optax raises its int32 count to a float
        for _ in range(60):
            updates, state = optimizer.update(jax.grad(setting.problem.value)(x), state, x)
            x = optax.apply_updates(x, updates)
    np.testing.assert_allclose(x, [0.5, 0, 0], atol=1e-6)  # the well is at 1, beyond the boundary


def test_what_workers_do_not_send_waits_for_them_only_with_feedback():
    setting = Setting.of(problems.double_well(3, scale=0.1, dtype=jnp.float64), **CONSTANTS)
    options = {"k": 1, "compressor": "top_k", "workers": 4, "radius": 0.0, "learning_rate": 1.0, "reset_every": 9}
    g, x, first = jnp.array([3.0, 2.0, 0.0]), jnp.ones(3), [-3.0, 0, 0]
    for feedback, second in [(True, [0, -4.0, 0]), (False, first)]:
        optimizer = DESCENTS["compressed_sgd"](setting, **options, feedback=feedback).make(jax.random.key(0))
        state = optimizer.init(x)
        for expected in (first, second):
            updates, state = optimizer.update(g, state, x)
            np.testing.assert_array_equal(updates, expected)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("objective")
    config = folder / "two.toml"
    text = """\
# Two objectives.
name = "two"
seeds = 2
steps = 120
record_every = 10
dtype = "float64"

[arms.sgd]
transform = "sgd"

[arms.pgd]
transform = "pgd"

[vary]
key = "problem"

[vary.values.well]
objective = "double_well"
options = { dimension = 3 }
constants = { smoothness = 2.0, hessian_lipschitz = 6.0, eps = 1e-3, delta = 0.3 }

[vary.values.pair]
objective = "copy_average"
options = { teachers = 3, students = 2 }
constants = { smoothness = 9.0, hessian_lipschitz = 7.0, eps = 1e-3, delta = 0.01 }
start = { at = "1+2", scale = 1e-3 }
"""
    config.write_text(text, encoding="utf-8")
    assert main(["run", str(config), "--out", str(folder / "run"), "--quiet"]) == 0
    return folder / "run"


@pytest.mark.slow
def test_a_run_over_objectives_says_who_arrives_where(finished, capsys):
    arms = open_run(finished).arms()
    assert list(arms) == ["sgd-well", "pgd-well", "sgd-pair", "pgd-pair"]
    assert arms["sgd-well"].records["curvature"][0, -1] == pytest.approx(-1)
    assert arms["pgd-well"].records["curvature"][0, -1] == pytest.approx(1, abs=1e-4)
    np.testing.assert_array_equal(
        arms["pgd-well"].records["gradients"][0], arms["pgd-well"].records["step"].clip(0, 120)
    )
    summary = (finished / "summary.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in summary.splitlines()]
    cost = rows.index(["cost of a second-order point", "sgd", "pgd"])
    assert rows[cost + 2][:2] == ["well", "not reached"]
    ends = rows.index(["seeds end at", "sgd", "pgd"])
    assert rows[ends + 2] == ["well", "2 origin", "2 well"]
    assert rows[ends + 3][:2] == ["pair", "2 1+2"]
    files = {"figure.png", "figure-well.png", "figure-pair.png"}
    assert files <= {path.name for path in finished.iterdir()}
    assert main(["plot", str(finished), "--x", "bits"]) == 2
    assert "bits are counted by" in capsys.readouterr().err
    certified = {(each.arm, each.seed): each.certificate.verdict.name for each in certify_run(open_run(finished))}
    assert {(each.certificate.eps, each.certificate.delta) for each in certify_run(open_run(finished), seeds=1)} == {
        (1e-3, 0.3),
        (1e-3, 0.01),
    }  # of the objectives' constants
    assert certified["sgd-well", 0] == "saddle"
    assert certified["pgd-well", 1] == "second_order_stationary"
    assert json.loads((finished / "run.json").read_text())["arms"]["sgd-pair"]["varied"]["value"] == "pair"


def test_arms_that_record_different_things_share_their_tables():
    def arm(name, **records):
        zeros = {
            key: np.zeros((1, 2)) for key in ("value", "gradient_norm", "curvature", "gradients", "products", "values")
        }
        facts = {"landmarks": {"well": 0.0}, "second_order": {"eps": 0.1, "delta": 0.1}}
        varied = {"varied": {"arm": "pgd", "key": "problem", "value": name}}
        return Arm(zeros | {"step": np.array([0, 5])} | records, np.array([2]), facts | varied)

    ones = np.ones((1, 2))
    arms = {"pgd-a": arm("a"), "pgd-b": arm("b", alignment=ones), "pgd-c": arm("c", bits=8 * ones)}
    tables = {rows[0][0]: rows[1:] for rows in objectives(arms)}
    assert tables["final alignment"] == [["pgd", "–", "1", "–"]]
    assert tables["seeds end at"] == [["pgd", "1 well", "1 well", "1 well"]]
    assert tables["arm"] == [["pgd", "3"]]  # second-order points, of as many objectives and seeds
    assert tables["gradients / products / values to it"] == [["pgd", *["0 / 0 / 0"] * 3]]


def test_an_objective_survives_being_written_and_read():
    table = {"key": "problem", "values": {name: document(name)["problem"] for name in ("octopus", "cubic")}}
    config = parse(document(vary=table))
    assert parse(json.loads(json.dumps(tomled(config)))) == config
    assert [part.value for part in unfold(config)] == ["octopus", "cubic"]
    without = {key: value for key, value in document(vary=table).items() if key != "problem"}
    assert parse(without).problem.name == "octopus"  # the first stands for the rest


def tomled(config):
    import tomllib

    return tomllib.loads(dump(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"problem": {"objective": "octopos", "constants": CONSTANTS}}, "problem.objective: .*; did you mean octopus"),
        ({"problem": {"objective": "octopus"}}, "missing key problem.constants"),
        (
            {"problem": document()["problem"] | {"constants": CONSTANTS | {"rho": 1.0}}},
            "unknown key problem.constants.rho",
        ),
        (
            {"problem": document()["problem"] | {"constants": CONSTANTS | {"eps": 0.0}}},
            "constants.eps = 0.0; give a pos",
        ),
        ({"problem": document()["problem"] | {"particles": 3}}, "unknown key problem.particles"),
        ({"problem": document()["problem"] | {"start": {"at": "orign"}}}, 'at = "orign"; .*did you mean origin'),
        ({"problem": document()["problem"] | {"start": {"at": "origin", "scale": -1.0}}}, "scale = -1.0"),
        ({"problem": document()["problem"] | {"options": {"dimension": 0}}}, "problem.options: .*dimension"),
        (
            {"arms": {"a": {"k": 2}}},
            "missing key arms.a.flow; .*; or arms.a.transform; allowed: sgd",
        ),
        ({"arms": {"a": {"transform": "pdg"}}}, "arms.a.transform: .*; did you mean pgd"),
        ({"arms": {"a": {"transform": "sgd", "batch": 3}}}, "arms.a: batch = 3; the objective has 1 terms"),
        ({"arms": {"a": {"transform": "sam"}}}, "missing key arms.a.radius"),
        ({"arms": {"a": {"transform": "compressed_sgd", "k": 0}}}, "arms.a: .*k=0; give a whole number, 1 to"),
        ({"arms": {"a": {"transform": "dimer", "every": 0}}}, "arms.a: dimer: every=0; give a whole number"),
        ({"vary": {"key": "problem", "values": {}}}, "give a list of values, or tables by name"),
        ({"vary": {"key": "problem", "values": {"a": 3}}}, "give a list of values, or tables by name"),
    ],
)
def test_what_is_wrong_is_said(change, message):
    with pytest.raises(ConfigError, match=message):
        build(parse(document() | change))


def test_of_very_many_critical_points_none_is_named():
    table = {"eigenvalues": [float(i) for i in range(1, 21)], "rank": 10}  # 616 666 of them
    change = {"problem": document()["problem"] | {"objective": "symmetric_factorization", "options": table}}
    assert "landmarks" not in build(parse(document() | change)).facts
    near = {"problem": change["problem"] | {"start": {"at": "{3}"}}}
    assert build(parse(document() | near)).facts == build(parse(document() | change)).facts


@pytest.mark.parametrize(
    ("objective", "options", "message"),
    [
        ("octopus", {"dimension": 5001}, "dimension = 5001; as many saddles are listed: give up to 5000"),
        ("double_well", {"dimension": 2**31 - 1}, "dimension = 2147483647 would take .*; give less"),
        ("phase_retrieval", {"dimension": -1}, "dimension = -1; give at least 1"),
        ("cubic", {"eigenvalues": [1e200, -1e200]}, "the critical point .* has the value .*inf; a number is too large"),
        ("leading_eigenvector", {"samples": 9, "eigenvalues": [1.0, -1.0]}, "those of a covariance are not negative"),
        ("symmetric_factorization", {"eigenvalues": [], "rank": 1}, "list of eigenvalues or singular values is empty"),
        ("deep_linear", {"singular_values": [1.0], "depth": 1001}, "depth = 1001; give up to 1000 layers"),
        ("matrix_sensing", {"dimension": 10**5, "rank": 1, "measurements": 10**5}, "measurements = .* would take 8 PB"),
        ("copy_average", {"teachers": 10**5, "students": 2}, "give a product up to 100000"),
        ("spiked_attention", {"prompts": 10**6, "tokens": 10**6, "dimension": 9, "spike": 1.0}, "would take 72 TB"),
    ],
)
def test_objectives_that_cannot_be_made_are_refused(objective, options, message):
    table = {"objective": objective, "options": options, "constants": CONSTANTS}
    with pytest.raises(ConfigError, match=f"config: problem.options: .*{message}"):
        build(parse(document() | {"problem": table}))


def test_what_a_method_may_know_of_an_objective_are_numbers():
    for (name, value), message in {
        ("eps", "small"): r"constants.eps: given \"small\"",
        ("eps", None): "missing key problem.constants.eps",
        ("later", 1.0): "unknown key problem.constants.later",
        ("delta", float("inf")): "problem.constants.delta: given inf",
    }.items():
        table = {key: each for key, each in (CONSTANTS | {name: value}).items() if each is not None}
        with pytest.raises(ConfigError, match=message):
            parse(document() | {"problem": document()["problem"] | {"constants": table}})


def test_a_transform_needs_to_know_its_problem(tiny):
    with pytest.raises(ConfigError, match=r'arms.static: transform = "pgd" asks .* give problem.constants'):
        build(load(tiny, ['arms.static={transform="pgd"}']))
