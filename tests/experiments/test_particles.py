"""Problems of particles in space: targets and their energies, kernels by name, snapshots, and free energies."""

import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwgf_jax import Particles, wasserstein_hessian
from pwgf_jax.certificate import Verdict, certify
from pwgf_jax.experiments import ConfigError, build, dump, load
from pwgf_jax.experiments.cli import main
from pwgf_jax.experiments.config import parse
from pwgf_jax.experiments.recorded import Measured
from pwgf_jax.experiments.sources import Data, SmallTeacher
from pwgf_jax.experiments.starts import Antithetic, Gaussian, Students
from pwgf_jax.functionals import entropy, functional, mmd, student_teacher
from pwgf_jax.gram import gram_function
from pwgf_jax.kernels import gaussian
from pwgf_jax.problems import Normal, ThreeRings

pytestmark = pytest.mark.slow

CONFIG = """\
# Particles on rings.
name = "rings"
seeds = 2
steps = 4
record_every = 2
dtype = "float64"
snapshots = [0, 4]

[problem]
functional = "mmd"
particles = 5

[problem.options]
kernel = { kind = "gaussian", lengthscale = 1.0 }

[problem.data]
source = "three_rings"
points = 8
test_points = 6

[problem.start]
kind = "gaussian"
mean = 3.0

[arms.injected]
flow = "noise_injection"
step_size = 0.1
level = { schedule = "piecewise_constant_schedule", init_value = 0.5, boundaries_and_scales = { 2 = 0.0 } }
"""
STEIN = 'arms={a={flow="svgd", step_size=0.1, kernel={kind="imq", lengthscale=1.0}, energy={kind="three_rings"}}}'


@pytest.fixture
def rings(tmp_path):
    """The path of a config with a target."""
    path = tmp_path / "rings.toml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


def test_a_run_keeps_and_draws_the_particles_of_its_first_seed(rings, tmp_path):
    out = tmp_path / "out"
    assert main(["run", str(rings), "--out", str(out), "--quiet"]) == 0
    with np.load(out / "snapshots.npz") as file:
        kept = dict(file)
    with np.load(out / "final.npz") as file:
        final = file["injected/points"]
    with np.load(out / "metrics.npz") as file:
        metrics = dict(file)
    assert kept["injected/step"].tolist() == [0, 4]
    assert kept["injected/points"].shape == (2, 5, 2)
    np.testing.assert_array_equal(kept["injected/points"][-1], final[0])
    assert kept["injected/target"].shape == (8, 2)
    experiment = build(load(rings))
    F, mu0 = experiment.problem(experiment.keys[0])
    np.testing.assert_allclose(kept["injected/points"][0], mu0.points)
    np.testing.assert_allclose(kept["injected/target"], F.train.target.points)
    assert "injected/points" not in metrics  # metrics hold (seeds, records) and nothing else
    assert metrics["injected/test_loss"].shape == (2, 3)
    assert (out / "particles.pdf").exists()


def test_weights_that_move_are_kept_with_the_points_and_told(rings, tmp_path):
    out = tmp_path / "out"
    moving = 'arms.injected.weights={kind="mirror", step_size=0.5}'
    assert main(["run", str(rings), "--out", str(out), "--quiet", "--set", moving]) == 0
    with np.load(out / "snapshots.npz") as file:
        kept = file["injected/weights"]
    with np.load(out / "final.npz") as file:
        final = file["injected/weights"]
    with np.load(out / "metrics.npz") as file:
        effective = file["injected/effective_particles"]
        assert "injected/weights" not in file
    np.testing.assert_allclose(kept[0], 1 / 5)
    np.testing.assert_array_equal(kept[-1], final[0])
    np.testing.assert_allclose(effective[:, -1], 1 / np.sum(final**2, axis=1))
    assert np.ptp(final[0]) > 1e-4
    assert "effective particles" in (out / "summary.md").read_text(encoding="utf-8")


def test_tables_with_a_kind_survive_being_written(rings):
    config = load(rings, ['arms.b={flow="noise_injection", step_size=1, level={kind="adaptive", largest=1}}'])
    assert parse(tomllib.loads(dump(config))) == config
    assert config.arms["b"].arguments["level"] == {"kind": "adaptive", "largest": 1.0, "trials": 12}
    assert config.arms["injected"].arguments["level"]["boundaries_and_scales"] == {"2": 0.0}
    stein = load(rings, [STEIN])
    assert parse(tomllib.loads(dump(stein))) == stein


def test_flows_know_kernels_and_energies_by_their_names(rings):
    build(load(rings, [STEIN, "snapshots=[]"]))
    build(load(rings, [STEIN, "arms.a.kernel=median", "arms.a.energy={kind='gaussian', scale=2}"]))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "problem.options.kernel=gaussian",
            'problem.options.kernel: given "gaussian" .*; give a table with kind = one',
        ),
        ("problem.options.kernel.kind=gausian", "problem.options.kernel.kind: .*; did you mean gaussian"),
        ("problem.options.kernel={kind='imq'}", "missing key problem.options.kernel.lengthscale; give a number"),
        ("problem.options.kernel.width=1", "unknown key problem.options.kernel.width; allowed: lengthscale"),
        ("problem.options={}", "missing key problem.options.kernel; give a table with kind = one of .gaussian."),
        ("problem.data.source=teacher", 'problem.data.source: given "teacher" .*; allowed: gaussian, three_rings'),
        ("problem.functional=icfl", "unknown key problem.options.kernel"),
        ("problem.confinement=-1", "problem.confinement = -1.0; give a non-negative number"),
        ("snapshots=[0, 3]", r"snapshots = \[0, 3\]; give multiples of record_every = 2"),
        ("arms.injected.level={kind='adaptiv'}", "arms.injected.level.kind: .*; did you mean adaptive"),
        (
            "arms.injected.level={factor=2}",
            "arms.injected.level: given .* an optax schedule or a table with kind",
        ),
    ],
)
def test_what_is_wrong_with_such_a_config_is_said(rings, setting, message):
    with pytest.raises(ConfigError, match=message):
        load(rings, [setting])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["problem.options.kernel.lengthscale=0"],
            "problem.options: gaussian: lengthscale=0.0; give a pos",
        ),
        (["problem.data.points=0"], "problem.data: points = 0; give at least 1"),
        (["problem.data.width=2"], "problem.data: ThreeRings: width=2.0; give at most half of the radius"),
        (["problem.start.kind=antithetic", "problem.start.mean=0.3"], "unknown key problem.start.mean"),
        (["problem.start={kind='antithetic'}"], "antithetic. places the neurons of a network on data of inputs"),
        (["problem.start.dimension=3"], "target"),
        (["problem.options.statistic=U", "problem.particles=1"], "fewer|at least two"),
        (["arms.injected.batch_size=9"], "size=9; there are 8"),
        (["steps=20000000"], "snapshots: .* MB; raise record_every"),
    ],
)
def test_what_cannot_be_made_is_said(rings, settings, message):
    with pytest.raises(ConfigError, match=message):
        build(load(rings, settings))


def test_rings_are_sampled_from_their_energy(key):
    law = ThreeRings(radius=1.0, width=0.4)  # wide, so that a sample that forgot the factor ρ would show
    points = np.asarray(law.sample(key, 200_000, jnp.float64))
    side = np.linspace(-5, 5, 401)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    density = np.exp(-np.asarray(jax.jit(jax.vmap(law))(jnp.asarray(grid))))
    density /= density.sum()
    for moment in (lambda x: np.sum(x**2, axis=1), lambda x: np.max(x, axis=1)):
        sampled, error = np.mean(moment(points)), np.std(moment(points)) / len(points) ** 0.5
        assert abs(sampled - density @ moment(grid)) < 5 * error + 1e-3


def test_energies_are_of_points_of_their_space():
    for law, message in {ThreeRings(): r"three_rings: given .* \(2,\)", Normal(): r"gaussian: given .* \(d,\)"}.items():
        with pytest.raises(ValueError, match=message):
            law({"a": jnp.ones(2), "w": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"given a point of shape \(3,\); this energy is of points \(2,\)"):
        ThreeRings()(jnp.ones(3))


def test_a_gaussian_has_the_energy_of_its_samples(key):
    law = Normal(3, 1.0, 2.0)
    points = law.sample(key, 50_000, jnp.float64)
    energies = jax.vmap(law)(points)
    assert float(jnp.mean(energies)) == pytest.approx(1.5, abs=5 * float(jnp.std(energies)) / 50_000**0.5)
    np.testing.assert_allclose(jax.grad(law)(points[0]), (points[0] - 1.0) / 4, rtol=1e-12)


def test_functionals_of_ones_own_cross_jit_with_all_that_they_offer(key):
    """A plain function is no array: it once met jit as the argument that it is a part of."""

    class Own:
        moments = staticmethod(lambda mu: mu.weights @ mu.points)
        of_moments = staticmethod(lambda m: jnp.sum(m**2))
        predict = staticmethod(lambda mu, inputs: inputs)

        def __call__(self, mu):
            return self.of_moments(self.moments(mu))

        def batch(self, key, size):
            return lambda mu: 2 * self(mu)

    mu, data = Particles.uniform(jax.random.normal(key, (4, 2))), (jnp.ones((3, 1)), jnp.zeros((3, 1)))
    for own in (Own(), lambda mu: Own()(mu)):
        F = Measured.on(functional(own).confined(0.5), own, data, False)
        np.testing.assert_allclose(jax.jit(lambda F, mu: F(mu))(F, mu), F(mu), rtol=1e-12)
    F = Measured.on(functional(Own()).confined(0.5), Own(), data, False)
    assert F.measured(mu)["test_loss"] == 0.5
    np.testing.assert_allclose(F.batch(key, 1)(mu) - F(mu), Own()(mu), rtol=1e-12)
    found = certify(F, mu, 10.0, 0.1, key)
    assert found.verdict == Verdict.second_order_stationary  # the confinement is convex, and so is the square


def test_langevin_records_its_free_energy_and_a_confined_objective(rings):
    config = load(rings, ['arms={a={flow="langevin", step_size=0.1, temperature=0.5}}', "problem.confinement=2"])
    experiment = build(config)
    F, mu = experiment.problem(experiment.keys[0])
    assert [factor for factor, _ in F.terms[0][1].terms] == [None, 2.0]
    stats = experiment.records["a"].stats
    assert stats is not None
    recorded = stats(F, mu)
    assert set(recorded) == {"test_loss", "free_energy", "points"}
    np.testing.assert_allclose(recorded["free_energy"], F(mu) - 0.5 * entropy(mu), rtol=1e-12)


def test_held_out_data_change_no_derivative(key):
    x, fresh = jax.random.normal(key, (6, 2)), jnp.ones((3, 2))
    mu, v = Particles.uniform(x[:4]), x[2:]
    F = mmd(x, gaussian(1.0))
    held = Measured.on(F, mmd(fresh, gaussian(1.0)), (fresh,), False)

    @jax.jit
    def products(mu, v):
        return [(G(mu), wasserstein_hessian(G, mu)(v)) for G in (F, held)]

    (value, product), (held_value, held_product) = products(mu, v)
    np.testing.assert_allclose(held_value, value, rtol=1e-12)
    np.testing.assert_allclose(held_product, product, rtol=1e-9)
    np.testing.assert_allclose(held.measured(mu)["test_loss"], mmd(fresh, gaussian(1.0))(mu), rtol=1e-12)


def test_the_student_of_a_config_has_the_gram_solver_and_a_validation_error(key):
    data = SmallTeacher(points=6, inputs=4, test_points=5).draw(key, jnp.float64)
    np.testing.assert_allclose(jnp.linalg.norm(data.inputs, axis=1), 1.0, rtol=1e-12)
    assert data.test_arguments is not None
    mu = Students(hidden=2).draw(key, 3, data, jnp.float64)
    F, test = student_teacher(*data.arguments), student_teacher(*data.test_arguments)
    held = Measured.on(F, test, data.test_arguments, False)
    np.testing.assert_allclose(held.measured(mu)["test_loss"], test(mu), rtol=1e-12)
    by_gram = jax.jit(lambda F, mu: gram_function(F, mu, lambda t: 1 / (t + 1)))
    for leaf, same in zip(*(jax.tree.leaves(by_gram(G, mu)) for G in (F, held)), strict=True):
        np.testing.assert_allclose(leaf, same, rtol=1e-12)
    with pytest.raises(ValueError, match="without such problem"):
        Students().draw(key, 3, None, jnp.float64)


def test_starts_are_where_a_target_is_not(key):
    target = Data(jnp.ones((4, 3), jnp.float32))
    points = Gaussian(scale=1e-3, mean=2.0).draw(key, 5, target, jnp.float32).points
    assert points.shape == (5, 3)
    np.testing.assert_allclose(points, 2.0, atol=0.01)
    with pytest.raises(ValueError, match="inputs and targets"):
        Antithetic().draw(key, 4, target, jnp.float32)
    assert Data(jnp.ones((2, 1)), jnp.ones((2, 1))).test_arguments is None
