"""Problems of particles in space: targets and their energies, kernels by name, snapshots, and free energies."""

import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwgf_jax import Particles, wasserstein_gradient, wasserstein_hessian
from pwgf_jax.calculus import MomentForm, PairwiseForm
from pwgf_jax.certify import Verdict, certify
from pwgf_jax.experiments import ConfigError, build, dump, load
from pwgf_jax.experiments.cli import main
from pwgf_jax.experiments.config import parse
from pwgf_jax.experiments.data import Data, SmallTeacher
from pwgf_jax.experiments.free_energy import Confined, confined, entropy
from pwgf_jax.experiments.heldout import HeldOut, hold_out, measure
from pwgf_jax.experiments.samples import Normal, Sample, ThreeRings
from pwgf_jax.experiments.starts import Antithetic, Gaussian, Students
from pwgf_jax.flows.spectral import gram_function
from pwgf_jax.functionals import mean_field_regression, mmd, student_teacher
from pwgf_jax.kernels import gaussian

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
        (["problem.data.points=0"], "problem.data: points = 0; give a positive number"),
        (["problem.data.width=2"], "problem.data: width = 2.0; give at most half of the radius"),
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


def test_the_entropy_of_gaussian_particles(key):
    dimension = 3
    draw = jax.jit(lambda key: entropy(Particles.uniform(2.0 * jax.random.normal(key, (1000, dimension)))))
    found = np.array([draw(each) for each in jax.random.split(key, 8)])
    exact = dimension / 2 * np.log(2 * np.pi * np.e * 4)
    assert abs(found.mean() - exact) < 5 * found.std() / 8**0.5 + 0.02 * dimension  # the bias of 1000 particles
    with pytest.raises(ValueError, match="neighbour=3 of 3 particles"):
        entropy(Particles.uniform(jnp.ones((3, 1))))


def test_a_confinement_adds_half_the_second_moment_and_keeps_the_rest(key):
    z, y = jnp.ones((4, 2)), jnp.ones((4, 1))
    F = mean_field_regression(z, y)
    held = hold_out(F, F, (z, y), "mean_field_regression", False)
    mu = Particles(jax.random.normal(key, (3, 3)), jnp.array([0.5, 0.25, 0.25]))
    both = confined(held, 0.3)
    extra = 0.15 * np.sum(np.asarray(mu.weights)[:, None] * np.asarray(mu.points) ** 2)
    np.testing.assert_allclose(both(mu), F(mu) + extra, rtol=1e-12)
    np.testing.assert_allclose(both.batch(key, 4)(mu), both(mu), rtol=1e-12)
    assert not hasattr(confined(lambda mu: jnp.sum(mu.weights), 1.0), "batch")


@pytest.mark.parametrize("form", [MomentForm, PairwiseForm])
def test_a_confined_functional_keeps_its_form(key, form):
    x = jax.random.normal(key, (6, 3))
    F = mean_field_regression(x[:, :2], x[:, 2:]) if form is MomentForm else mmd(x, gaussian(1.0))
    mu, v = Particles(x[:3], jnp.array([0.5, 0.25, 0.25])), x[3:]
    quick, plain = confined(F, 0.3), confined(lambda mu: F(mu), 0.3)
    assert isinstance(quick, form)
    assert not isinstance(plain, MomentForm | PairwiseForm)

    @jax.jit
    def products(G, mu, v):
        return [G(mu), wasserstein_gradient(G, mu)] + [
            wasserstein_hessian(G, mu, p)(v) for p in ("integral", "local", "full")
        ]

    for found, expected in zip(products(quick, mu, v), products(plain, mu, v), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


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
    for own, form in ((Own(), MomentForm), (lambda mu: Own()(mu), None)):
        F = confined(hold_out(own, own, data, "own.py:F", False), 0.5)
        np.testing.assert_allclose(jax.jit(lambda F, mu: F(mu))(F, mu), F(mu), rtol=1e-12)
        assert form is None or isinstance(F, form)
    F = confined(hold_out(Own(), Own(), data, "own.py:F", False), 0.5)
    assert measure(F, mu)["test_loss"] == 0.5
    np.testing.assert_allclose(F.batch(key, 1)(mu) - F(mu), Own()(mu), rtol=1e-12)
    found = certify(F, mu, 10.0, 0.1, key)
    assert found.verdict == Verdict.second_order_stationary  # the confinement is convex, and so is the square


def test_langevin_records_its_free_energy_and_a_confined_objective(rings):
    config = load(rings, ['arms={a={flow="langevin", step_size=0.1, temperature=0.5}}', "problem.confinement=2"])
    experiment = build(config)
    F, mu = experiment.problem(experiment.keys[0])
    assert isinstance(F, Confined)
    stats = experiment.records["a"].stats
    assert stats is not None
    recorded = stats(F, mu)
    assert set(recorded) == {"test_loss", "free_energy", "points"}
    np.testing.assert_allclose(recorded["free_energy"], F(mu) - 0.5 * entropy(mu), rtol=1e-12)


def test_held_out_data_change_no_derivative(key):
    x, fresh = jax.random.normal(key, (6, 2)), jnp.ones((3, 2))
    mu, v = Particles.uniform(x[:4]), x[2:]
    F = mmd(x, gaussian(1.0))
    held = hold_out(F, mmd(fresh, gaussian(1.0)), (fresh,), "mmd", False)
    assert isinstance(held, PairwiseForm)

    @jax.jit
    def products(mu, v):
        return [(G(mu), wasserstein_hessian(G, mu)(v)) for G in (F, held)]

    (value, product), (held_value, held_product) = products(mu, v)
    np.testing.assert_allclose(held_value, value, rtol=1e-12)
    np.testing.assert_allclose(held_product, product, rtol=1e-9)
    np.testing.assert_allclose(held.measure(mu)["test_loss"], mmd(fresh, gaussian(1.0))(mu), rtol=1e-12)


def test_the_student_of_a_config_has_the_gram_solver_and_a_validation_error(key):
    data = SmallTeacher(points=6, inputs=4, test_points=5).draw(key, jnp.float64)
    np.testing.assert_allclose(jnp.linalg.norm(data.inputs, axis=1), 1.0, rtol=1e-12)
    assert data.test_arguments is not None
    mu = Students(hidden=2).draw(key, 3, data, jnp.float64)
    F, test = student_teacher(*data.arguments), student_teacher(*data.test_arguments)
    held = hold_out(F, test, data.test_arguments, "student_teacher", False)
    assert isinstance(held, HeldOut)
    assert isinstance(held, MomentForm)
    np.testing.assert_allclose(held.measure(mu)["test_loss"], test(mu), rtol=1e-12)
    by_gram = jax.jit(lambda F, mu: gram_function(F, mu, lambda t: 1 / (t + 1)))
    for leaf, same in zip(*(jax.tree.leaves(by_gram(G, mu)) for G in (F, held)), strict=True):
        np.testing.assert_allclose(leaf, same, rtol=1e-12)
    with pytest.raises(ValueError, match="without such problem"):
        Students().draw(key, 3, None, jnp.float64)


def test_starts_are_where_a_target_is_not(key):
    target = Sample(jnp.ones((4, 3), jnp.float32))
    points = Gaussian(scale=1e-3, mean=2.0).draw(key, 5, target, jnp.float32).points
    assert points.shape == (5, 3)
    np.testing.assert_allclose(points, 2.0, atol=0.01)
    with pytest.raises(ValueError, match="inputs and targets"):
        Antithetic().draw(key, 4, target, jnp.float32)
    assert Data(jnp.ones((2, 1)), jnp.ones((2, 1))).test_arguments is None
