"""The gradient flow: its closed forms, its energy, the optax steps it takes, and what it does when it blows up."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pwgf_jax import Flow, Particles, Status, flow, functionals, pwgf, run, sweep, wgf
from pwgf_jax.flows import gradient
from pwgf_jax.solve import Record
from tests.oracles import closed_forms
from tests.oracles.closed_forms import mean_quartic

KEY = jax.random.key(0)


def rng(seed=0):
    return np.random.default_rng(seed)


def matrix_problem():
    draw = rng(1)
    F = functionals.matrix_factorization(jnp.asarray(draw.normal(size=(6, 2))), jnp.asarray(draw.normal(size=(6, 1))))
    return F, Particles.uniform(jnp.asarray(draw.normal(size=(5, 3))))


def mean_of(F, mu):
    return {"mean": mu.weights @ mu.points}


def test_steps_follow_the_closed_form_of_the_mean_quartic(dtype, tolerance):
    eta, start = 0.2, rng().normal(size=(4, 2)) * 0.3 + np.array([0.1, 0.0])
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    mu = Particles(jnp.asarray(start, dtype), jnp.asarray(weights, dtype))
    solution = run(wgf(eta), mean_quartic, mu, KEY, 25, Record(stats=mean_of))
    means = [weights @ start]
    for _ in range(25):
        means.append((1 + eta * (1 - means[-1] @ means[-1])) * means[-1])
    np.testing.assert_allclose(solution.records["mean"], means, atol=tolerance(dtype))
    squares = np.sum(np.square(means), axis=1)
    np.testing.assert_allclose(solution.records["value"], squares**2 / 4 - squares / 2, atol=tolerance(dtype))
    norms = np.abs(squares - 1) * np.sqrt(squares)
    np.testing.assert_allclose(solution.records["gradient_norm"], norms, atol=tolerance(dtype))
    # the shape of the cloud about its mean never changes
    np.testing.assert_allclose(np.asarray(solution.mu.points) - means[-1], start - means[0], atol=tolerance(dtype))
    assert int(solution.status) == Status.budget_spent


def test_small_steps_approach_the_flow_at_first_order():
    start = np.array([[0.3, 0.0], [0.1, 0.2]])
    mean, time, errors = np.mean(start, axis=0), 2.0, []
    exact = 1 / (1 + (1 / (mean @ mean) - 1) * np.exp(-2 * time))
    for steps in (400, 800):
        solution = run(wgf(time / steps), mean_quartic, Particles.uniform(jnp.asarray(start)), KEY, steps)
        errors.append(np.sum(np.mean(solution.mu.points, axis=0) ** 2) - exact)
    np.testing.assert_allclose(errors[0] / errors[1], 2, rtol=0.05)
    assert abs(errors[1]) < 0.01


def test_energy_dissipates_at_the_squared_gradient_norm_up_to_the_step_size():
    F, mu = matrix_problem()
    gaps = []
    for steps in (200, 400):
        eta = 20.0 / steps
        records = run(wgf(eta), F, mu, KEY, steps).records
        assert np.all(np.diff(records["value"]) < 0)
        spent = eta * np.sum(records["gradient_norm"][:-1] ** 2)
        gaps.append(spent - (records["value"][0] - records["value"][-1]))
    assert records["value"][-1] < records["value"][0] / 2
    np.testing.assert_allclose(gaps[0] / gaps[1], 2, rtol=0.1)


# --- optax steps ------------------------------------------------------------------------------------------------------

STEPS = {
    "adam": lambda: optax.adam(0.05),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(0.05), optax.sgd(0.5)),
    "scheduled": lambda: optax.sgd(optax.exponential_decay(0.3, 2, 0.5)),
    "weight decay": lambda: optax.adamw(0.05, weight_decay=0.1),
}


@pytest.mark.parametrize("name", STEPS)
def test_any_optax_transformation_steps_along_the_wasserstein_gradient(name):
    """As optax would by itself on the field N·∂F_N, here written out for the mean quartic."""
    transform, start = STEPS[name](), rng().normal(size=(3, 2))
    found = run(wgf(transform), mean_quartic, Particles.uniform(jnp.asarray(start)), KEY, 10)
    points: Any = jnp.asarray(start)
    state = transform.init(points)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes by itself
        for _ in range(10):
            field = np.tile(closed_forms.mean_quartic_gradient(np.mean(points, axis=0)), (3, 1))
            updates, state = transform.update(jnp.asarray(field), state, points)
            points = optax.apply_updates(points, updates)
    np.testing.assert_allclose(found.mu.points, points, rtol=1e-10)


def test_a_schedule_is_a_step_size():
    schedule = optax.piecewise_constant_schedule(0.5, {2: 0.0})
    mu = Particles.uniform(jnp.ones((3, 1)))
    solution = run(wgf(schedule), lambda mu: mu.weights @ jnp.sum(mu.points**2, axis=-1) / 2, mu, KEY, 6)
    np.testing.assert_allclose(solution.mu.points, 0.25)  # halved twice, then never moved


def test_a_line_search_finds_the_steps_that_a_constant_misses(dtype):
    def stiff(mu):
        return mu.weights @ (50 * mu.points[:, 0] ** 2 + 0.5 * mu.points[:, 1] ** 2)

    mu = Particles(jnp.asarray(rng().normal(size=(4, 2)), dtype), jnp.asarray([0.1, 0.2, 0.3, 0.4], dtype))
    search = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=20))
    found, lost = run(wgf(search), stiff, mu, KEY, 30), run(wgf(1.0), stiff, mu, KEY, 30)
    assert np.all(np.diff(found.records["value"]) < 0)
    assert found.value < 0.2 * found.records["value"][0]
    assert not lost.value < lost.records["value"][0]
    assert found.mu.points.dtype == dtype


def test_an_optimizer_may_carry_a_key():
    noisy = optax.chain(optax.sgd(0.1), optax.add_noise(1e-6, 0.55, key=jax.random.key(3)))
    method = pwgf(noisy, eps=1e-3, eta_p=0.1, k_thres=5, f_thres=1e-4)
    first, second = (run(method, mean_quartic, Particles.uniform(jnp.ones((3, 2))), KEY, 5) for _ in range(2))
    np.testing.assert_array_equal(first.mu.points, second.mu.points)
    plain = run(wgf(0.1), mean_quartic, Particles.uniform(jnp.ones((3, 2))), KEY, 5)
    assert 0 < np.max(np.abs(first.mu.points - plain.mu.points)) < 0.1


@pytest.mark.parametrize(
    ("step_size", "error", "message"),
    [
        (0.0, ValueError, "step_size=0.0; give a positive number"),
        (-0.1, ValueError, "step_size=-0.1"),
        (float("nan"), ValueError, "step_size=nan"),
        (float("inf"), ValueError, "step_size=inf"),
        ("0.1", TypeError, "step_size"),
        (True, TypeError, "step_size"),
    ],
)
def test_impossible_step_sizes_are_refused(step_size, error, message):
    with pytest.raises(error, match=message):
        wgf(step_size)


def test_a_perturbation_comes_with_a_trigger():
    with pytest.raises(ValueError, match=r"perturbation .* trigger"):
        flow(gradient, 0.1, perturbation=lambda key, F, mu, step: mu.points)


# --- what is not finite -----------------------------------------------------------------------------------------------


def explosive(mu):
    return -(mu.weights @ jnp.sum(mu.points**4, axis=-1))


@pytest.mark.parametrize(
    "method",
    [wgf(0.1), wgf(optax.sgd(0.1, momentum=0.5)), pwgf(0.1, eps=1e-3, eta_p=0.1, k_thres=5, f_thres=1e-3)],
    ids=["wgf", "momentum", "pwgf"],
)
def test_a_run_that_blows_up_keeps_its_last_finite_measure(method, dtype):
    mu = Particles.uniform(jnp.ones((3, 1), dtype))
    solution = run(method, explosive, mu, KEY, 40, chunk=1)
    assert int(solution.status) == Status.not_finite
    taken = int(solution.steps)
    assert 0 < taken < 20
    assert np.all(np.isfinite(solution.mu.points))
    assert np.all(np.isfinite(solution.records["value"]))
    np.testing.assert_array_equal(solution.records["value"][taken:], solution.value)
    # it is the measure that a run of just so many steps reaches, and one step more fails
    again = run(method, explosive, mu, KEY, taken, chunk=1)
    assert int(again.status) == Status.budget_spent
    np.testing.assert_array_equal(again.mu.points, solution.mu.points)
    assert int(run(method, explosive, mu, KEY, taken + 1, chunk=1).status) == Status.not_finite


def test_a_jump_into_the_void_keeps_the_measure_from_before_it(dtype):
    def fragile(mu):  # flat, and not a number away from the start
        return (
            jnp.where(jnp.max(jnp.abs(mu.points)) > 1.5, jnp.nan, 0.0).astype(dtype)
            - jnp.sum(mu.weights @ mu.points) ** 2
        )

    mu = Particles.uniform(jnp.asarray([[1.0], [-1.0]], dtype))
    method = pwgf(0.1, eps=1e-3, eta_p=1e3, k_thres=5, f_thres=1e-3)
    solution = run(method, fragile, mu, KEY, 10)
    assert int(solution.status) == Status.not_finite
    np.testing.assert_array_equal(solution.mu.points, mu.points)
    assert int(solution.steps) == 0


def test_a_start_that_is_not_finite_is_reported_and_left_alone(dtype):
    mu = Particles.uniform(jnp.asarray([[jnp.nan], [1.0]], dtype))
    solution = run(wgf(0.1), explosive, mu, KEY, 5)
    assert int(solution.status) == Status.not_finite
    assert int(solution.steps) == 0
    np.testing.assert_array_equal(solution.mu.points, mu.points)


def test_every_status_has_a_sentence():
    for status in Status:
        assert status.sentence.endswith(".")
    assert len({status.sentence for status in Status}) == len(Status)


def test_a_flow_says_what_it_is_and_what_is_compiled_of_it():
    assert isinstance(wgf(0.1), Flow)
    assert repr(wgf(0.1)) == "wgf(step_size=0.1)"
    assert repr(flow(gradient, 0.1)) == "Flow(init, step)"
    jumping = pwgf(0.1, eps=1.0, eta_p=1.0, k_thres=3, f_thres=0.0)
    assert wgf(0.1).parted()[0] == wgf(0.2).parted()[0] != jumping.parted()[0]
    assert wgf(optax.sgd(0.1)).parted()[1] == {}
    step = optax.exponential_decay(0.1, 10, 0.5)
    assert wgf(step).parted() == wgf(step).parted()


def test_a_scan_over_step_sizes_compiles_once():
    """Sweeps of flows that differ in numbers alone share their programs, and have each its own outcome."""
    problem = lambda key: (mean_quartic, Particles.uniform(jax.random.normal(key, (3, 2))))  # noqa: E731
    keys, traced = jax.random.split(jax.random.key(0), 2), []

    def seen(F, mu):
        traced.append(None)
        return {}

    record = Record(stats=seen)
    values, compiled = [], []
    for step_size in (0.1, 0.2, 0.3, 0.4):
        values.append(sweep(wgf(step_size), problem, keys, 10, record).value)
        compiled.append(len(traced))
        expected = sweep(flow(gradient, step_size), problem, keys, 10).value
        np.testing.assert_allclose(values[-1], expected, rtol=1e-12)
    assert compiled == compiled[:1] * 4
    assert len({float(each[0]) for each in values}) == 4
