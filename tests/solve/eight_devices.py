"""Laws on a mesh of eight devices, which ``test_devices.py`` runs in a process that has them.

Spread over devices everything equals itself on one device, up to rounding; what has a row for each particle stays
spread; and what crosses devices in a step is small.
"""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pwgf_jax import Particles, certify, functionals, memory, pwgf, run, sweep, wasserstein_hessian
from pwgf_jax.calculus import first_variation, value_and_wasserstein_gradient
from pwgf_jax.functionals import interaction, potential, small_networks
from pwgf_jax.kernels import energy, gaussian, random_features
from pwgf_jax.solve import Record, shard_particles
from pwgf_jax.solve.runs import _advance, _start
from pwgf_jax.solve.sharding import row_sharding, spread
from tests.contracts.test_flow_contracts import FLOWS
from tests.solve.problems import METHOD, STEPS, problem, seeds

N, DIMENSION, DATA = 16, 3, 24
DRAW = np.random.default_rng(0)
Z, Y, TARGET = DRAW.normal(size=(DATA, 2)), DRAW.normal(size=(DATA, 1)), DRAW.normal(size=(DATA, DIMENSION))
POINTS, V = DRAW.normal(size=(N, DIMENSION)), DRAW.normal(size=(N, DIMENSION))
WEIGHTS = DRAW.dirichlet(np.ones(N))


def slope() -> Particles:
    return Particles(jnp.asarray(POINTS), jnp.asarray(WEIGHTS))


def saddle() -> Particles:
    half = POINTS[: N // 2]
    return Particles.uniform(jnp.asarray(np.concatenate([half, half * [-1, 1, 1]])))


def data() -> tuple[Any, Any]:
    return jnp.asarray(Z), jnp.asarray(Y)


FUNCTIONALS = {
    "mean_field_regression": lambda **o: functionals.mean_field_regression(*data(), **o),
    "matrix_factorization": lambda **o: functionals.matrix_factorization(*data(), **o),
    "icfl": lambda **o: functionals.icfl(*data(), ridge=0.1, **o),
    "mmd": lambda **o: functionals.mmd(jnp.asarray(TARGET), gaussian(1.0), **o),
    "mmd, U": lambda **o: functionals.mmd(jnp.asarray(TARGET), gaussian(1.0), statistic="U", **o),
    "mmd, features": lambda: functionals.mmd(
        jnp.asarray(TARGET), random_features(jax.random.key(0), gaussian(1.0), DIMENSION, 8)
    ),
    "energy distance": lambda **o: functionals.mmd(jnp.asarray(TARGET), energy(), **o),
    "coulomb_discrepancy": lambda **o: functionals.coulomb_discrepancy(jnp.asarray(TARGET), **o),
    "stein_discrepancy": lambda: functionals.stein_discrepancy(lambda x: jnp.sum(x**4) / 4, gaussian(1.0)),
    "sliced_wasserstein, blurred": lambda: functionals.sliced_wasserstein(
        jnp.asarray(TARGET), jnp.asarray(V[:5]), blur=0.3, nodes=64
    ),
    "potential and interaction": lambda: potential(lambda x: jnp.sum(x**4)) - interaction(jnp.dot).confined(0.3),
    "no form": lambda: lambda mu: jnp.sum((mu.weights @ mu.points**2) ** 2) + jnp.sum(mu.weights @ jnp.sin(mu.points)),
}
CHUNKED = {"mean_field_regression", "matrix_factorization", "icfl", "mmd", "mmd, U", "energy distance"}
FIELDS: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in FUNCTIONALS]
FIELDS += [(name, {"chunk_size": 5}) for name in sorted(CHUNKED)]


def derivatives(F: Any, mu: Particles, v: Any) -> dict[str, Any]:
    value, gradient = value_and_wasserstein_gradient(F, mu)
    found = {"value": value, "gradient": gradient, "variation": first_variation(F, mu)(mu.points)}
    return found | {part: wasserstein_hessian(F, mu, part)(v) for part in ("integral", "local", "full")}


def equal(found: Any, expected: Any, rtol: float = 1e-9, atol: float = 1e-11) -> None:
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            where = jax.tree_util.keystr(path)
            np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=where)


def spread_leaves(tree: Any, size: int) -> list[str]:
    """The leaves with a row for each particle that are not spread over all devices."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    rows = [(path, leaf) for path, leaf in leaves if leaf.ndim and leaf.shape[0] == size]
    assert rows
    return [jax.tree_util.keystr(path) for path, leaf in rows if leaf.addressable_shards[0].data.shape[0] != size // 8]


def test_there_are_eight_devices():
    assert jax.device_count() == 8


@pytest.mark.parametrize(("name", "options"), FIELDS, ids=str)
def test_a_functional(name, options):
    F, mu, v = FUNCTIONALS[name](**options), slope(), jnp.asarray(V)
    there = shard_particles(mu)
    found = (
        jax.jit(derivatives)(F, there, jax.device_put(v, there.points.sharding))
        if jax.tree.leaves(F) != [F]
        else (jax.jit(lambda mu, v: derivatives(F, mu, v))(there, jax.device_put(v, there.points.sharding)))
    )
    equal(found, jax.jit(lambda mu, v: derivatives(F, mu, v))(mu, v))


@pytest.mark.parametrize("name", ["mean_field_regression", "icfl"])
@pytest.mark.parametrize("numbers", [24 * 8, 8 * 16])
def test_tiles(name, numbers, monkeypatch):
    F, mu, v = FUNCTIONALS[name](), slope(), jnp.asarray(V)
    expected = jax.jit(lambda mu, v: derivatives(F, mu, v))(mu, v)
    monkeypatch.setattr(memory, "_TILE_BYTES", {"cpu": 8 * numbers})
    monkeypatch.setattr(memory, "FEWEST_ROWS", 4)
    there = shard_particles(mu)
    equal(jax.jit(lambda mu, v: derivatives(F, mu, v))(there, jax.device_put(v, there.points.sharding)), expected)


def test_networks_of_networks():
    F = functionals.student_teacher(jnp.asarray(Z), jnp.asarray(Y))
    mu = small_networks(jax.random.key(0), N, 2, dtype=jnp.float64)
    v = jax.tree.map(jnp.cos, mu.points)
    equal(jax.jit(derivatives)(F, shard_particles(mu), v), jax.jit(derivatives)(F, mu, v))


def test_dense_networks_of_networks():
    F = functionals.student_teacher(jnp.asarray(Z), jnp.asarray(Y), coupling="dense")
    mu = small_networks(jax.random.key(0), N, 2, coupling="dense", dtype=jnp.float64)
    found = jax.jit(value_and_wasserstein_gradient)(F, shard_particles(mu))
    equal(found, jax.jit(value_and_wasserstein_gradient)(F, mu))


@pytest.mark.parametrize("kind", ["sinkhorn_divergence", "sliced_wasserstein"])
def test_iterated_and_sorted_particles(kind):
    F = {
        "sinkhorn_divergence": lambda: functionals.sinkhorn_divergence(jnp.asarray(TARGET), 4.0),
        "sliced_wasserstein": lambda: functionals.sliced_wasserstein(jnp.asarray(TARGET), jnp.asarray(V[:5])),
    }[kind]()
    both = jax.jit(value_and_wasserstein_gradient)
    equal(both(F, shard_particles(slope())), both(F, slope()))


def test_entropy():
    mu = Particles.uniform(jnp.asarray(POINTS))
    equal(jax.jit(functionals.entropy)(shard_particles(mu)), functionals.entropy(mu))


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow(name):
    """A few steps from a slope and from a saddle; the same end, and everything is still spread."""
    F, flow = FUNCTIONALS["matrix_factorization"](), FLOWS[name].make()
    # At a saddle adam makes steps of rounding errors.
    for mu in (slope(), saddle())[: 1 if "adam" in name else 2]:
        one = run(flow, F, mu, jax.random.key(1), 4)
        many = run(flow, F, shard_particles(mu), jax.random.key(1), 4)
        assert not spread_leaves(many.mu, N)
        equal(many, one, rtol=1e-6, atol=1e-8)


def compiled_steps(name: str, F: Any, mu: Particles) -> tuple[Any, str]:
    """The state of a flow that has begun, and the program of the next steps."""
    flow, key, record = FLOWS[name].make(), jax.random.key(0), Record(every=3)
    rows = row_sharding(mu)
    state = jax.jit(lambda mu, key: spread(_start(flow, F, mu, key), mu.size, rows))(mu, key)
    steps = jax.jit(lambda key, state: _advance(flow, record, 1, 3, F, key, state)[0]).lower(key, state).compile()
    return steps(key, state), str(steps.as_text())


def crossing(program: str) -> list[tuple[str, int]]:
    """What crosses devices: the collective, and how many numbers it takes along."""
    pattern = r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
    found = []
    for result, kind in re.findall(pattern, program):
        shapes = re.findall(r"\w+\[([\d,]*)\]", result)
        found += [(kind, math.prod(int(size) for size in shape.split(",") if size)) for shape in shapes]
    return found


PAIRWISE = {"svgd", "ksd_descent"}


@pytest.mark.parametrize("name", FLOWS)
def test_what_crosses_devices(name):
    """Of a network, outputs on the data and scalars; of sums over pairs, the particles once, and never in a loop."""
    size = 320
    points = jax.random.normal(jax.random.key(0), (size, DIMENSION), jnp.float64)
    state, program = compiled_steps(
        name, FUNCTIONALS["matrix_factorization"](), shard_particles(Particles.uniform(points))
    )
    assert not spread_leaves(state, size)
    assert ".basis" not in program or size
    crossed = crossing(program)
    assert crossed
    if name in PAIRWISE:
        assert max(numbers for _, numbers in crossed) <= size * (DIMENSION + 1)
    else:
        assert {kind for kind, _ in crossed} == {"all-reduce"}
        assert max(numbers for _, numbers in crossed) <= max(DATA, 32)


@pytest.mark.parametrize("kind", ["mmd", "coulomb_discrepancy"])
def test_sums_over_pairs_share_the_pairs(kind):
    """An eighth of the work a device, and nothing that crosses devices in the loop over blocks of rows."""
    size = 640
    F = {
        "mmd": lambda t: functionals.mmd(t, gaussian(1.0), chunk_size=80),
        "coulomb_discrepancy": lambda t: functionals.coulomb_discrepancy(t, chunk_size=80),
    }[kind](jnp.asarray(DRAW.normal(size=(400, DIMENSION))))
    points = jax.random.normal(jax.random.key(0), (size, DIMENSION), jnp.float64)
    mu = Particles.uniform(points)
    step = jax.jit(lambda mu: value_and_wasserstein_gradient(F, mu))
    programs: list[Any] = [step.lower(each).compile() for each in (mu, shard_particles(mu))]
    one, many = programs
    flops = [each.cost_analysis()["flops"] for each in programs]
    assert flops[1] < 0.2 * flops[0]
    program = str(many.as_text())
    loops = set(re.findall(r"body=(%[\w.-]+)", program))
    bodies = [program.split(f"\n{loop} (")[1].split("\n}")[0] for loop in loops]
    assert bodies
    assert not [line for body in bodies for line in crossing(body)]
    equal(many(shard_particles(mu)), one(mu))


def test_a_certificate():
    F = FUNCTIONALS["matrix_factorization"]()
    for mu in (slope(), saddle()):
        one = certify(F, mu, 1e-3, 1e-2, jax.random.key(0))
        many = certify(F, shard_particles(mu), 1e-3, 1e-2, jax.random.key(0))
        assert one.verdict == many.verdict
        assert many.decided_by == one.decided_by
        np.testing.assert_allclose(many.full.eigenvalue, one.full.eigenvalue, rtol=1e-6, atol=1e-9)


MESHES = {
    "seeds": ((8,), ("seed",)),
    "particles": ((8,), ("particle",)),
    "both": ((2, 4), ("seed", "particle")),
    "both the other way round": ((4, 2), ("particle", "seed")),
}


@pytest.mark.parametrize("explicit", [False, True], ids=["automatic", "explicit"])
@pytest.mark.parametrize("name", MESHES)
def test_a_sweep_over_a_mesh(name, explicit):
    shape, axes = MESHES[name]
    mesh = jax.make_mesh(shape, axes, ((AxisType.Explicit if explicit else AxisType.Auto),) * len(axes))
    many = sweep(METHOD, problem, seeds(5), STEPS, mesh=mesh)
    equal(many, sweep(METHOD, problem, seeds(5), STEPS, batching="map"), rtol=1e-7, atol=1e-9)
    if "particle" in axes:
        assert many.mu.points.sharding.spec[1] == "particle"


def test_a_sweep_fills_particles_up():
    mesh = jax.make_mesh((2, 3), ("seed", "particle"), devices=jax.devices()[:6])
    many = sweep(METHOD, problem, seeds(3), STEPS, mesh=mesh)
    equal(many, sweep(METHOD, problem, seeds(3), STEPS, batching="map"), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["wgf", "saddle_free_newton", "svgd"])
def test_particles_of_weight_zero_change_nothing(name):
    """And do not move. (Noise is drawn in other shapes.)"""
    F, flow = FUNCTIONALS["matrix_factorization"](), FLOWS[name].make()
    mu = Particles.uniform(jnp.asarray(POINTS[:14]))
    one, many = (run(flow, F, each, jax.random.key(1), 4) for each in (mu, shard_particles(mu)))
    assert many.mu.size == 16
    np.testing.assert_array_equal(many.mu.weights[14:], 0)
    equal((many.mu.points[:14], many.value, many.records), (one.mu.points, one.value, one.records), rtol=1e-6)
    np.testing.assert_array_equal(many.mu.points[14:], np.repeat(POINTS[13:14], 2, axis=0))


def test_a_measure_on_an_explicit_mesh():
    mesh = jax.make_mesh((8,), ("particle",))
    assert mesh.axis_types == (AxisType.Explicit,)
    F, mu = FUNCTIONALS["matrix_factorization"](), saddle()
    there = jax.device_put(mu, NamedSharding(mesh, PartitionSpec("particle")))
    method = pwgf(0.5, eps=0.05, eta_p=0.2, k_thres=60, f_thres=1e-2)
    equal(run(method, F, there, jax.random.key(0), 30), run(method, F, mu, jax.random.key(0), 30), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("before", [True, False], ids=["eight, then one", "one, then eight"])
def test_a_run_goes_on_where_it_is(before, tmp_path):
    """A checkpoint is of no number of devices: a run that goes on on another number is the run."""
    F, mu, key = FUNCTIONALS["matrix_factorization"](), slope(), jax.random.key(0)
    method, record = FLOWS["wgf with adam"].make(), Record(every=2)
    first, second = (shard_particles(mu), mu) if before else (mu, shard_particles(mu))
    whole = run(method, F, mu, key, 8, record)

    class Stop(Exception):
        pass

    def stop(progress):
        if progress.step >= 4:
            raise Stop

    with pytest.raises(Stop):
        run(method, F, first, key, 8, record, chunk=2, checkpoint=tmp_path / "a.npz", progress=stop)
    assert (tmp_path / "a.npz").exists()
    seen = []
    went_on = run(method, F, second, key, 8, record, chunk=2, checkpoint=tmp_path / "a.npz", progress=seen.append)
    assert seen[0].step == 6
    equal(went_on, whole)
    if not before:
        assert not spread_leaves(went_on.mu, N)


def test_a_mesh_of_other_axes_is_refused():
    mesh = jax.make_mesh((8,), ("data",))
    with pytest.raises(ValueError, match="'data'"):
        sweep(METHOD, problem, seeds(3), STEPS, mesh=mesh)
    with pytest.raises(ValueError, match='an axis "particle"'):
        shard_particles(slope(), jax.make_mesh((8,), ("seed",)))
