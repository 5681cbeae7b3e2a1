import itertools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import config as jaxtyping_config

from pwgf_jax import Particles, Record, Status, run, sweep, wgf
from pwgf_jax.solve import Progress
from tests.solve.problems import METHOD, STEPS, problem, seeds

SEEDS = 4


def mean_of(F, mu):
    return {"mean": mu.weights @ mu.points, "again": F(mu)}


@pytest.fixture(scope="module")
def singles():
    """The loop of single runs, everything recorded."""
    return [run(METHOD, *problem(key), key, STEPS, Record(stats=mean_of)) for key in seeds(SEEDS)]


@pytest.fixture(scope="module")
def mapped():
    return sweep(METHOD, problem, seeds(SEEDS), STEPS, Record(stats=mean_of), batching="map")


def assert_same(found, expected, rtol=1e-9):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-11, err_msg=jax.tree_util.keystr(path))


def seed_of(solution, i):
    return jax.tree.map(lambda x: x[i], solution)


@pytest.mark.slow
def test_seeds_of_the_problem_do_jump_and_stop_at_different_times(singles):
    """What makes the laws below say something."""
    assert all(np.any(one.records["perturbed"]) for one in singles)
    assert len({int(one.steps) for one in singles}) > 1
    assert {int(one.status) for one in singles} <= {Status.no_decrease, Status.budget_spent}


@pytest.mark.slow
@pytest.mark.parametrize("batching", ["map", "vmap", "shard"])
def test_a_sweep_is_the_loop_of_single_runs(batching, singles):
    together = sweep(METHOD, problem, seeds(SEEDS), STEPS, Record(stats=mean_of), batching=batching)
    for i, one in enumerate(singles):
        assert_same(seed_of(together, i), one)
        np.testing.assert_array_equal(together.records["perturbed"][i], one.records["perturbed"])


def test_records_are_scalars_over_time(mapped):
    records = mapped.records
    assert {name: x.shape for name, x in records.items()} == {
        "step": (SEEDS, STEPS + 1),
        "value": (SEEDS, STEPS + 1),
        "gradient_norm": (SEEDS, STEPS + 1),
        "perturbed": (SEEDS, STEPS + 1),
        "mean": (SEEDS, STEPS + 1, 2),
        "again": (SEEDS, STEPS + 1),
    }
    np.testing.assert_array_equal(records["step"][0], np.arange(STEPS + 1))
    np.testing.assert_allclose(records["again"], records["value"], rtol=1e-9, atol=1e-12)  # stats see the same measure
    np.testing.assert_array_equal(records["value"][:, -1], mapped.value)
    np.testing.assert_allclose(records["mean"][:, 0], 0, atol=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("every", [7, 1000])
def test_sparse_records_are_those_of_the_dense_ones(every, mapped):
    sparse = sweep(METHOD, problem, seeds(SEEDS), STEPS, Record(every, mean_of), batching="map")
    at = [*range(0, STEPS, every), STEPS]
    np.testing.assert_array_equal(sparse.records["step"], np.tile(at, (SEEDS, 1)))
    for name in ("value", "gradient_norm", "mean"):
        np.testing.assert_allclose(sparse.records[name], mapped.records[name][:, at], rtol=1e-9, atol=1e-11)
    # a jump is recorded at the record before it, whenever it happens in between
    dense = mapped.records["perturbed"][:, :-1]
    blocks = [np.any(dense[:, a:b], axis=1) for a, b in itertools.pairwise(at)]
    np.testing.assert_array_equal(sparse.records["perturbed"][:, :-1], np.stack(blocks, axis=1))
    assert_same(sparse.mu, mapped.mu)


@pytest.mark.slow
@pytest.mark.parametrize(("chunk", "every"), [(11, 1), (3, 7)])
def test_chunks_change_nothing(chunk, every):
    whole, chunked = (
        sweep(METHOD, problem, seeds(2), 20, Record(every), batching="map", chunk=size) for size in (1000, chunk)
    )
    assert_same(chunked, whole)


def test_a_run_in_chunks_is_the_run():
    F, mu0 = problem(seeds(1)[0])
    whole, chunked = (run(METHOD, F, mu0, seeds(1)[0], 20, chunk=size) for size in (None, 6))
    assert_same(chunked, whole)


def test_after_the_end_of_a_seed_its_records_repeat(mapped):
    i = int(np.argmin(mapped.steps))
    assert int(mapped.status[i]) == Status.no_decrease
    taken = int(mapped.steps[i])
    assert taken < STEPS
    np.testing.assert_array_equal(mapped.records["value"][i, taken:], mapped.value[i])
    assert not np.any(mapped.records["perturbed"][i, taken:])


def test_a_finished_sweep_is_not_computed_further():
    """After the last seed has stopped nothing is computed: its records repeat, and memory holds scalars only."""
    seen, chunk = [], 20
    solution = sweep(METHOD, problem, seeds(SEEDS), 400, Record(every=10), chunk=chunk, progress=seen.append)
    assert np.all(solution.status == Status.no_decrease)
    assert [at.step for at in seen] == list(range(chunk, 401, chunk))
    last = int(np.max(solution.steps))
    assert last < 200
    assert all(at.running == 0 for at in seen if at.step >= last)
    np.testing.assert_array_equal(solution.records["value"][:, -20:], np.tile(solution.value[:, None], (1, 20)))
    assert solution.records["value"].shape == (SEEDS, 41)


@pytest.mark.slow
def test_progress_tells_how_every_seed_stands(mapped):
    seen = []
    sweep(METHOD, problem, seeds(SEEDS), STEPS, batching="map", chunk=16, progress=seen.append)
    assert [(at.step, at.steps) for at in seen] == [(16, STEPS), (32, STEPS), (40, STEPS)]
    for at in seen:
        np.testing.assert_allclose(at.value, mapped.records["value"][:, at.step], atol=1e-11)
        np.testing.assert_allclose(at.gradient_norm, mapped.records["gradient_norm"][:, at.step], atol=1e-11)
        assert at.running == np.sum(at.status == Status.running)
    assert seen[0].running == SEEDS
    assert seen[0].slowest == int(np.argmax(seen[0].value))
    assert Progress(1, 2, np.ones(1), np.ones(1), np.ones(1, int)).slowest is None


def test_a_functional_may_check_what_it_is_made_of():
    @jax.tree_util.register_pytree_node_class
    class Careful:
        def __init__(self, target):
            assert isinstance(target, jax.Array)
            self.target = target

        def __call__(self, mu):
            return mu.weights @ jnp.sum((mu.points - self.target) ** 2, axis=-1) / 2

        def tree_flatten(self):
            return (self.target,), None

        @classmethod
        def tree_unflatten(cls, shape, leaves):
            return cls(*leaves)

    mu0 = Particles.uniform(jnp.ones((3, 2)))
    solution = run(wgf(0.5), Careful(jnp.zeros((1, 2))), mu0, jax.random.key(0), 2)
    np.testing.assert_allclose(solution.mu.points, 0.25)


def test_no_steps_return_the_start():
    mu0 = Particles.uniform(jnp.ones((3, 2)))
    solution = run(wgf(0.1), lambda mu: jnp.sum(mu.weights @ mu.points), mu0, jax.random.key(0), 0)
    np.testing.assert_array_equal(solution.mu.points, mu0.points)
    assert (int(solution.steps), int(solution.status)) == (0, Status.budget_spent)
    assert solution.records["step"].tolist() == [0]
    assert solution.records["value"].tolist() == [2]
    swept = sweep(METHOD, problem, seeds(3), 0)
    assert swept.records["value"].shape == (3, 1)


def test_a_seed_that_is_not_finite_freezes_alone(mapped):
    def fragile(key):
        F, mu0 = problem(key)
        breaks = jnp.all(jax.random.key_data(key) == jax.random.key_data(seeds(SEEDS))[1])
        far = jnp.where(breaks, 1e200, 0).astype(mu0.points.dtype)
        return F, mu0.moved_to(mu0.points.at[0, 0].add(far))

    together = sweep(METHOD, fragile, seeds(SEEDS), STEPS, Record(stats=mean_of), batching="vmap")
    others = np.arange(SEEDS) != 1
    assert int(together.status[1]) == Status.not_finite
    assert int(together.steps[1]) == 0
    assert_same(*(jax.tree.map(lambda x: x[others], s) for s in (together, mapped)))


@pytest.mark.slow
def test_the_callers_arrays_survive(key):
    F, mu0 = problem(key)
    before = np.array(mu0.points)
    first = run(METHOD, F, mu0, key, 5, chunk=2)
    second = run(METHOD, F, first.mu, key, 5, chunk=2)
    np.testing.assert_array_equal(mu0.points, before)
    assert np.all(np.isfinite(first.mu.points))
    assert np.all(np.isfinite(second.mu.points))
    keys = seeds(2)
    sweep(METHOD, problem, keys, 3)
    assert jax.random.key_data(keys).shape == (2, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda F, mu, k: run(METHOD, F, mu, jax.random.PRNGKey(0), 3), TypeError, "run: key is a uint32 array"),
        (
            lambda F, mu, k: run(METHOD, F, mu, seeds(2), 3),
            ValueError,
            r"key has shape \(2,\); give one key, or use sweep",
        ),
        (lambda F, mu, k: run(METHOD, F, mu, k, -1), ValueError, "steps=-1; give a non-negative whole number"),
        (lambda F, mu, k: run(METHOD, F, mu.points, k, 3), TypeError, "Particles"),
        (lambda F, mu, k: run(METHOD, lambda mu: mu.weights, mu, k, 3), TypeError, "one floating scalar"),
        (
            lambda F, mu, k: run(METHOD, F, Particles(mu.points, 2 * mu.weights), k, 3),
            ValueError,
            "sum to 2; give non-neg",
        ),
        (lambda F, mu, k: run(METHOD, F, Particles(mu.points, -mu.weights), k, 3), ValueError, "non-negative weights"),
        (lambda F, mu, k: sweep(METHOD, problem, k, 3), ValueError, r"keys have shape \(\); give one key per seed"),
        (lambda F, mu, k: sweep(METHOD, problem, seeds(2)[:0], 3), ValueError, r"keys have shape \(0,\)"),
        (lambda F, mu, k: sweep(METHOD, problem, jax.random.PRNGKey(0), 3), TypeError, "sweep: key is a uint32 array"),
        (lambda F, mu, k: sweep(METHOD, lambda key: F, seeds(2), 3), TypeError, r"return \(functional, Particles\)"),
        (lambda F, mu, k: sweep(METHOD, lambda key: (F, mu.points), seeds(2), 3), TypeError, "Particles"),
        (lambda F, mu, k: sweep(METHOD, problem, seeds(2), -3), ValueError, "steps=-3"),
        (
            lambda F, mu, k: sweep(METHOD, problem, seeds(2), 3, batching="pmap"),  # pyright: ignore[reportArgumentType]
            (ValueError, TypeError),  # TypeError: the annotation, checked in tests only
            "batching",
        ),
        (lambda F, mu, k: Record(every=0), ValueError, "every=0; give at least one step"),
        (
            lambda F, mu, k: run(METHOD, F, mu, k, 3, Record(stats=lambda F, mu: {"value": F(mu)})),
            ValueError,
            "stats returns value, which every record has already",
        ),
    ],
)
def test_impossible_calls_are_refused(call, error, message, key):
    F, mu = problem(key)
    with pytest.raises(error, match=message):
        call(F, mu, key)


any_run: Any = run
any_sweep: Any = sweep


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda F, mu, k: any_run(F, METHOD, mu, k, 3),
            r"run: flow is a function; .* as in run\(flow, F, mu0",
        ),
        (
            lambda F, mu, k: any_run(optax.adam(0.1), F, mu, k, 3),
            r"a pwgf_jax\.Flow made of it, like pwgf_jax\.wgf",
        ),
        (lambda F, mu, k: any_run(METHOD, 3.0, mu, k, 3), "run: F is a float; give a function of Particles"),
        (lambda F, mu, k: sweep(F, problem, seeds(2), 3), r"sweep: flow is a function; .*sweep\(flow, problem, keys"),
        (lambda F, mu, k: any_sweep(optax.sgd(0.1), problem, seeds(2), 3), r"sweep: flow is a GradientTransformation"),
        (lambda F, mu, k: sweep(METHOD, F, seeds(2), 3), r"problem\(key\) raises .* lambda key: \(F, mu0\)"),
        (lambda F, mu, k: any_sweep(METHOD, (F, mu), seeds(2), 3), "sweep: problem is a tuple; give a function key ->"),
    ],
    ids=["swapped", "optax", "no functional", "functional for flow", "optax in a sweep", "functional", "pair"],
)
def test_arguments_in_each_others_place_are_refused_with_the_right_call(call, message, key, monkeypatch):
    # Users run without the checks of annotations, which speak first in these tests.
    monkeypatch.setattr(jaxtyping_config, "jaxtyping_disable", True)
    with pytest.raises(TypeError, match=message):
        call(*problem(key), key)


def test_the_clock_counts_steps_and_nothing_else():
    def slow(F, mu):
        def wait(x):
            time.sleep(0.02)
            return x

        return {"late": jax.pure_callback(wait, jax.ShapeDtypeStruct((), mu.weights.dtype), mu.weights[0])}

    seen, began = [], time.perf_counter()
    solution = sweep(METHOD, problem, seeds(2), STEPS, Record(10, slow), batching="map", chunk=20, progress=seen.append)
    whole = time.perf_counter() - began  # compilation, and 0.4 s and more of records
    clock = [at.seconds for at in seen]
    assert clock == sorted(clock)
    assert 0 <= clock[-1] < 0.3 * whole
    assert seen[-1].seed_steps == int(np.sum(solution.steps))


def test_the_clock_stands_still_when_every_seed_has_stopped():
    seen = []
    solution = sweep(METHOD, problem, seeds(2), 400, Record(every=10), chunk=20, progress=seen.append)
    over = [at for at in seen if at.running == 0]
    assert len(over) > 5
    assert 0 < over[0].seconds == over[-1].seconds
    assert over[-1].seed_steps == int(np.sum(solution.steps)) < 2 * 400
