"""Problems from configs: data, starts, functionals of one's own, and what is measured on held-out data."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwgf_jax import Particles, wasserstein_gradient, wasserstein_hessian
from pwgf_jax.experiments import build, load
from pwgf_jax.experiments.cli import main
from pwgf_jax.experiments.recorded import Measured
from pwgf_jax.experiments.run import experiments, settings
from pwgf_jax.experiments.sources import Data, SignPairs, Teacher
from pwgf_jax.experiments.starts import Antithetic, Gaussian, IcflSaddle
from pwgf_jax.experiments.tables import Table, digits, read_table
from pwgf_jax.functionals import icfl
from pwgf_jax.solve import sweep

OWN = """\
name = "own"
seeds = 2
steps = 5
dtype = "float64"

[problem]
functional = "own.py:{name}"
particles = 6
{data}
[problem.start]
kind = "gaussian"
{start}
[arms.static]
flow = "wgf"
step_size = 0.1
"""
DATA = """
[problem.options]
factor = 2.0

[problem.data]
source = "{source}"
inputs = ["x1", "x2"]
targets = ["y"]
test_fraction = 0.25
"""
MODULE = """
import jax.numpy as jnp
import neighbour

def energy(mu):
    return neighbour.half * mu.weights @ jnp.sum(mu.points**2, axis=-1)

def fit(inputs, targets, *, factor=1.0):
    def F(mu):
        a, w = mu.points[:, :1], mu.points[:, 1:]
        outputs = jnp.tanh(inputs @ w.T) @ (mu.weights[:, None] * a)
        return factor * jnp.mean((outputs - targets) ** 2)
    return F

def forgets_the_weights(mu):
    return jnp.mean(mu.points)

def returns_a_vector(mu):
    return mu.points[0]

def raises(mu):
    raise RuntimeError("out of ideas")
"""


@pytest.fixture
def own(tmp_path):
    """own(name, ...): a config with a functional of one's own."""
    (tmp_path / "own.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "neighbour.py").write_text("half = 0.5\n", encoding="utf-8")

    def write(name, data="", start="dimension = 3"):
        path = tmp_path / "own.toml"
        path.write_text(OWN.format(name=name, data=data, start=start), encoding="utf-8")
        return path

    return write


@pytest.fixture
def table(tmp_path):
    """Columns, also as a .csv and an .npz file beside the config."""
    rng = np.random.default_rng(0)
    columns = {"x1": rng.normal(size=8), "x2": rng.normal(size=8), "y": rng.normal(size=8)}
    np.savez(tmp_path / "data.npz", **columns)  # pyright: ignore[reportArgumentType]
    lines = [",".join(columns), *(",".join(map(repr, map(float, row))) for row in zip(*columns.values(), strict=True))]
    (tmp_path / "data.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return columns


def run(config, out) -> dict[str, np.ndarray]:
    assert main(["run", str(config), "--out", str(out), "--quiet"]) == 0
    with np.load(out / "metrics.npz") as file:
        return dict(file)


@pytest.mark.slow
def test_an_own_functional_runs_from_its_file(own, tmp_path):
    metrics = run(own("energy"), tmp_path / "out")
    value = metrics["static/value"]
    np.testing.assert_allclose(value[:, 1:] / value[:, :-1], 0.81, rtol=1e-6)


def test_both_kinds_of_file_give_the_same_data(table, tmp_path):
    csv, npz = (
        read_table(str(tmp_path / name), inputs=["x2", "x1"], targets=["y"]) for name in ("data.csv", "data.npz")
    )
    np.testing.assert_array_equal(csv.inputs, npz.inputs)
    np.testing.assert_array_equal(csv.targets, npz.targets)
    np.testing.assert_array_equal(csv.inputs, np.stack([table["x2"], table["x1"]], axis=1))


@pytest.mark.slow
def test_an_own_functional_that_holds_data_out_and_confines_can_be_certified(own, table, tmp_path):
    config, out = own("fit", DATA.format(source="data.csv"), ""), tmp_path / "out"
    text = config.read_text(encoding="utf-8").replace("particles = 6\n", "particles = 6\nconfinement = 0.1\n")
    config.write_text(text, encoding="utf-8")
    run(config, out)
    assert main(["certify", str(out), "--trust"]) == 0
    assert main(["landscape", str(config), "--out", str(tmp_path / "land"), "--eps", "10", "--quiet"]) == 0


@pytest.mark.slow
def test_a_run_on_own_data_can_be_resumed_until_they_change(own, table, tmp_path, refused):
    config, out = own("fit", DATA.format(source="data.csv"), ""), tmp_path / "out"
    metrics = run(config, out)
    assert np.isfinite(metrics["static/value"]).all()
    assert metrics["static/test_loss"].shape == (2, 6)
    assert main(["resume", str(out), "--trust"]) == 0
    (tmp_path / "data.csv").write_text("x1,x2,y\n1,2,3\n4,5,6\n", encoding="utf-8")
    assert "has changed since the run began" in refused("resume", out, "--trust")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("enery", 'own.py has no function "enery"; allowed: .*energy.*; did you mean energy'),
        ("forgets_the_weights", "problem.functional: forgets_the_weights never uses mu.weights; write averages"),
        ("returns_a_vector", "problem.functional: returns_a_vector returns"),
        ("raises", "problem.functional: out of ideas"),
    ],
)
def test_own_functionals_that_cannot_work_are_refused(own, refused, tmp_path, name, message):
    said = refused("run", own(name), "--out", tmp_path / "out")
    assert re.search(message, said), said


def test_what_an_own_file_lacks_is_said(own, refused, tmp_path):
    config = own("energy", start="")
    assert "problem.start: dimension is missing" in refused("run", config)
    config = own("energy", "[problem.options]\nfactor = 1.0\n")
    assert "problem.options: without problem.data" in refused("run", config)
    config = own("fit", DATA.format(source="data.npz").replace("factor", "fator"), "")
    np.savez(tmp_path / "data.npz", x1=np.ones(4), x2=np.ones(4), y=np.ones(4))
    assert "unknown key problem.options.fator; allowed: factor; did you mean factor" in refused("run", config)
    config = own("energy")
    (tmp_path / "own.py").write_text("import nothing_of_that_name\n", encoding="utf-8")
    assert "own.py does not import: ModuleNotFoundError" in refused("run", config)
    (tmp_path / "own.py").unlink()
    assert "own.py: there is no such file" in refused("run", config)


def test_neighbours_are_imported_as_they_are_now(own, tmp_path):
    def value():
        experiment = build(load(own("energy")))
        F, mu = experiment.problem(experiment.keys[0])
        return float(F(mu))

    before = value()
    (tmp_path / "neighbour.py").write_text("half = 0.25 + 0.75\n", encoding="utf-8")
    assert value() == pytest.approx(2 * before)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x1,x3,y\n1,2,3\n", 'inputs: .* has no column "x2"; allowed: x1, x3, y'),
        ("x1,x2,y\n1,2,3\n1,two,3\n", 'column "x2" is not numeric'),
        ("x1,x2,y\n1,2,3\n1,nan,3\n", 'column "x2" is not finite in data row 2'),
        ("x1,x2,y\n1,2,3\n1,2\n", "row 3 has 2 values for 3 columns"),
        ("x1,x2,y\n", "no data"),
        ("x1,x2,x1,y\n1,2,3,4\n", '2 columns have the name "x1"; give each its own'),
    ],
)
def test_faults_of_a_csv_file_are_located(tmp_path, text, message):
    (tmp_path / "data.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_table(str(tmp_path / "data.csv"), inputs=["x1", "x2"], targets=["y"])


def test_faults_of_an_npz_file_are_located(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, x=np.ones((4, 2)), y=np.array([1.0, 2, np.inf, 4]), short=np.ones(3), words=np.array(["a"] * 4))
    assert read_table(str(path), inputs=["x"], targets=["x"]).inputs.shape == (4, 2)
    for targets, message in {
        "y": "not finite in data row 3",
        "short": "as many of both",
        "words": "not numeric",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_table(str(path), inputs=["x"], targets=[targets])
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="not a readable"):
        read_table(str(path), inputs=["x"], targets=["y"])
    with pytest.raises(ValueError, match="no such file"):
        read_table(str(tmp_path / "none.npz"), inputs=["x"], targets=["y"])


def test_a_split_uses_every_row_once(key):
    rows = np.arange(10.0)[:, None]
    data = Table(rows, rows, points=8, test_fraction=0.25).draw(key, jnp.float64)
    assert data.test_inputs is not None
    assert (data.inputs.shape, data.test_inputs.shape) == ((6, 1), (2, 1))
    assert len(set(np.concatenate([data.inputs, data.test_inputs]).ravel().tolist())) == 8
    np.testing.assert_array_equal(data.inputs, data.targets)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points": 0}, "there are 4 rows"),
        ({"points": 5}, "there are 4 rows"),
        ({"test_fraction": 1.0}, "from 0 to below 1"),
        ({"test_fraction": 0.05}, "this holds out 0"),
    ],
)
def test_impossible_splits_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Table(np.ones((4, 1)), np.ones((4, 1)), **arguments)


def test_teachers_are_of_order_one(key):
    data = Teacher(points=4000, inputs=15, outputs=5).draw(key, jnp.float64)
    assert data.targets is not None
    assert 0.1 < float(jnp.mean(data.targets**2)) < 1


@pytest.mark.slow
def test_the_icfl_saddle_is_exact(key):
    data = SignPairs(points=80, inputs=20, outputs=5).draw(key, jnp.float64)
    assert data.targets is not None
    mu = IcflSaddle(jitter=0.0).draw(key, 40, data, jnp.float64)
    F = icfl(data.inputs, data.targets, ridge=0.1)
    assert float(jnp.max(jnp.abs(jax.jit(wasserstein_gradient)(F, mu)))) < 1e-12
    highest = float(jnp.mean(jnp.sum(data.targets**2, axis=1))) / 2
    assert float(F(mu)) == pytest.approx(highest, rel=1e-12)
    v = jax.random.normal(key, mu.points.shape)
    products = jax.jit(lambda F, mu, v: [wasserstein_hessian(F, mu, part)(v) for part in ("local", "integral")])
    local, integral = products(F, mu, v)
    assert float(jnp.max(jnp.abs(local))) < 1e-12
    assert float(jnp.sum(v * integral)) < 0


def test_antithetic_neurons_cancel(key):
    data = Teacher(points=6, inputs=3, outputs=2).draw(key, jnp.float64)
    assert data.targets is not None
    F = icfl(data.inputs, data.targets, ridge=0.1)
    exact, shaken = (Antithetic(jitter=jitter).draw(key, 8, data, jnp.float64) for jitter in (0.0, 1e-6))
    assert float(jnp.max(jnp.abs(F.outputs(exact, data.inputs)))) < 1e-15
    assert 0 < float(jnp.max(jnp.abs(shaken.points - exact.points))) < 1e-5


def test_starts_keep_the_dtype_asked_for(key):
    data = Data(jnp.ones((4, 2), jnp.float32), jnp.ones((4, 1), jnp.float32), teacher_block=1)
    for start in (Gaussian(), Antithetic(), IcflSaddle()):
        assert start.draw(key, 4, data, jnp.float32).points.dtype == jnp.float32


@pytest.mark.slow
def test_digits_measure_accuracy_by_the_readout_of_the_training_set(tiny):
    settings = ["problem.functional=icfl", "problem.data={source='digits', points=60, test_fraction=0.5}"]
    experiment = build(load(tiny, [*settings, "problem.start={kind='gaussian'}"]))
    F, mu = experiment.problem(experiment.keys[0])
    assert isinstance(F, Measured)
    assert F.batch(experiment.keys[0], 5).train.inputs.shape[0] == 5
    z, y = F.train.inputs, F.train.targets
    test_inputs, test_targets = F.test
    h = np.asarray(F.train.outputs(mu, z))
    readout = np.linalg.lstsq(h, np.asarray(y), rcond=None)[0]
    predicted = np.asarray(F.train.outputs(mu, test_inputs)) @ readout
    right = predicted.argmax(axis=1) == np.asarray(test_targets).argmax(axis=1)
    measured = F.measured(mu)
    assert float(measured["test_accuracy"]) == pytest.approx(right.mean())
    loss = np.mean(np.sum((predicted - np.asarray(test_targets)) ** 2, axis=1)) / 2
    assert float(measured["test_loss"]) == pytest.approx(loss, rel=1e-6)
    np.testing.assert_allclose(F(mu), F.train(mu))
    assert digits().classes


def test_one_hot_columns_count_as_classes(tmp_path):
    (tmp_path / "data.csv").write_text("x,a,b\n1,0,1\n2,1,0\n", encoding="utf-8")
    path = str(tmp_path / "data.csv")
    assert read_table(path, inputs=["x"], targets=["a", "b"]).classes
    assert not read_table(path, inputs=["x"], targets=["a"]).classes


def test_a_functional_with_a_rule_of_prediction_is_asked(key):
    class Constant:
        def __call__(self, mu):
            return jnp.sum(mu.weights)

        def predict(self, mu, inputs):
            return jnp.ones_like(inputs)

    z = jnp.ones((4, 1))
    F = Measured.on(Constant(), Constant(), (z, z + 1), False)
    assert float(F.measured(Particles.uniform(z))["test_loss"]) == 0.5


def test_arms_and_turns_that_differ_in_numbers_alone_are_compiled_once(tiny):
    more = ['arms.faster={flow="wgf", step_size=0.1}', 'vary={key="arms.hessian.eta_p", values=[0.1, 0.2, 0.3]}']
    config = load(tiny, more)
    parts = [experiment for _, experiment in experiments(config)]
    assert [list(part.flows) for part in parts] == [
        ["hessian-0.1", "static", "faster"],
        ["hessian-0.2"],
        ["hessian-0.3"],
    ]
    with settings(config):
        for part in parts:
            for arm, flow in part.flows.items():
                sweep(flow, part.problem, part.keys, 4, part.records[arm])
    (problem,) = {part.problem for part in parts}
    (programs,) = problem._pwgf_programs.values()
    assert programs.start._cache_size() == 2  # one for wgf and one for pwgf
