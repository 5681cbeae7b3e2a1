"""Perturbing at saddles, as an optax user meets it."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pwgf_jax import problems
from pwgf_jax.perturbation import ball_noise, gaussian_noise, hessian_noise
from pwgf_jax.transforms import (
    certificate_trigger,
    gradient_trigger,
    perturb_at_saddle,
    pgd,
    scale_by_measure,
)
from tests.transforms.driving import drive

KEY = jax.random.key(0)
TRIGGER = {"eps": 1e-3, "k_thres": 60, "f_thres": 1e-4}
well = partial(problems.double_well, 3, dtype=jnp.float64)


def test_pgd_leaves_the_saddle_that_gradient_descent_stays_at_and_stops_at_the_minimum():
    problem = well()
    x0 = problem.saddles[0].point
    still, _, _ = drive(optax.sgd(0.2), problem.value, x0, 200)
    np.testing.assert_array_equal(still, x0)
    x, state, path = drive(pgd(0.2, radius=1e-2, key=KEY, **TRIGGER), problem.value, x0, 400)
    np.testing.assert_allclose(problem.value(x), -0.25, atol=1e-7)
    jump = state
    assert bool(jump.stopped)
    # the window at the minimum bought nothing: the parameters are those from before its jump, for good
    np.testing.assert_array_equal(x, jump.window.saved)
    np.testing.assert_array_equal(path[-1], path[-50])


def test_an_update_that_jumps_takes_its_gradient_step_from_the_perturbed_point():
    problem = well()
    x0 = problem.saddles[0].point
    trigger, shift = gradient_trigger(**TRIGGER), jnp.asarray([3e-3, -4e-3, 0.0])
    optimizer = perturb_at_saddle(optax.sgd(0.2), lambda key, f, x, step: shift, trigger, key=KEY)
    _, state, path = drive(optimizer, problem.value, x0, 3)
    there = x0 + shift
    np.testing.assert_allclose(path[0], there - 0.2 * jax.grad(problem.value)(there), rtol=1e-12)
    np.testing.assert_allclose(path[1], path[0] - 0.2 * jax.grad(problem.value)(path[0]), rtol=1e-12)
    assert (int(state.window.jumped_at), int(state.jumps)) == (0, 1)


def test_the_window_of_the_transform_is_that_of_the_papers_algorithm():
    """From a flat point no decrease comes: it stops k_thres + 1 gradient steps after the jump, where it jumped."""
    flat = lambda x: 0.0 * jnp.sum(x)  # noqa: E731
    optimizer = pgd(0.2, radius=1.0, eps=1e-3, k_thres=5, f_thres=1e-4, key=KEY)
    _, _, path = drive(optimizer, flat, jnp.ones(2), 10)
    moved = np.any(np.asarray(path) != 1.0, axis=1)
    np.testing.assert_array_equal(moved, [True] * 6 + [False] * 4)


def test_carrying_on_is_the_same_run_that_a_failed_window_does_not_end():
    """On a slope too slight for f_thres every window fails: one run freezes, the other walks on and counts."""
    slope = lambda x: 1e-4 * jnp.sum(x)  # noqa: E731
    options = {"radius": 1e-6, "eps": 1e-3, "k_thres": 4, "f_thres": 1.0, "key": KEY}
    frozen, state, _ = drive(pgd(0.2, **options), slope, jnp.ones(2), 40)
    np.testing.assert_array_equal(frozen, 1)
    assert (bool(state.stopped), int(state.failures)) == (True, 1)
    walked, state, path = drive(pgd(0.2, **options, stop=False), slope, jnp.ones(2), 40)
    assert (bool(state.stopped), int(state.failures), int(state.jumps)) == (False, 7, 8)
    steps = np.diff(np.asarray(path)[:, 0])
    np.testing.assert_allclose(walked, 1 - 40 * 2e-5, atol=8e-6)  # the gradient steps, and no way back
    assert np.sum(np.abs(steps + 2e-5) < 1e-9) == 32


@pytest.mark.slow
def test_noisy_batches_are_compared_by_their_averages():
    """Values of batches around one falling loss: two single ones say nothing, two averages the truth."""
    draw = np.random.default_rng(0)
    noise = jnp.asarray(draw.normal(size=2000))

    def failures(decay, seed):
        trigger = gradient_trigger(eps=1.0, k_thres=200, f_thres=0.0, decay=decay)
        transform: Any = perturb_at_saddle(optax.sgd(0.1), gaussian_noise(1e-9), trigger, key=jax.random.key(seed))
        x = jnp.zeros(1)

        def step(state, k):
            value = -2e-3 * k.astype(noise.dtype) + jnp.roll(noise, 37 * seed)[k]
            return transform.update(x, state, x, value=value, grad=x, value_fn=jnp.sum)[1], None

        return int(jax.lax.scan(step, transform.init(x), jnp.arange(210))[0].failures)

    assert sum(failures(0.0, seed) for seed in range(20)) >= 4
    assert sum(failures(0.95, seed) for seed in range(20)) <= 1


def quadratic_pair(x):
    """A saddle at zero, whose unstable direction a Hessian product finds; and a bowl, where there is none."""
    return x["a"] ** 4 / 4 - x["a"] ** 2 / 2 + jnp.sum(x["b"] ** 2) / 2


@pytest.mark.parametrize(
    "noise", [None, pytest.param(ball_noise(1e-2), marks=pytest.mark.slow)], ids=["direction", "noise"]
)
def test_a_trigger_that_examines_leaves_saddles_and_stops_at_once_where_there_is_none(noise, dtype):
    start = {"a": jnp.zeros((), dtype), "b": jnp.zeros(3, dtype)}
    trigger = certificate_trigger(eps=1e-3, delta=0.2, k_thres=5, f_thres=0.0, eta_p=1e-2, depth=8)
    optimizer = perturb_at_saddle(optax.sgd(0.3), noise, trigger, key=KEY)
    x, state, path = drive(optimizer, quadratic_pair, start, 120)
    np.testing.assert_allclose(jnp.abs(x["a"]), 1, atol=1e-2)
    jump = state
    assert (bool(jump.stopped), bool(jump.certified), int(jump.failures)) == (True, True, 0)
    # it stopped where the gradient became small, not a window and a jump after
    values = np.abs(np.asarray(path["a"]))
    assert int(jump.jumps) < 5
    np.testing.assert_array_equal(values[-1], values[-40])
    onward, state, _ = drive(perturb_at_saddle(optax.sgd(0.3), noise, trigger, key=KEY, stop=False),
                             quadratic_pair, x, 30)  # fmt: skip
    assert (bool(state.stopped), bool(state.certified), int(state.jumps)) == (False, True, 0)
    np.testing.assert_allclose(jnp.abs(onward["a"]), 1, atol=1e-3)


@pytest.mark.slow
def test_an_examination_stands_in_for_noise_that_does_not_reach_the_direction():
    along_b = lambda key, value_fn, x, step: {"a": jnp.zeros(()), "b": jnp.full(3, 1e-2)}  # noqa: E731
    trigger = certificate_trigger(eps=1e-3, delta=0.2, k_thres=5, f_thres=0.0, eta_p=1e-2, depth=8)
    start = {"a": jnp.zeros(()), "b": jnp.zeros(3)}
    x, _, _ = drive(perturb_at_saddle(optax.sgd(0.3), along_b, trigger, key=KEY), quadratic_pair, start, 60)
    assert float(jnp.abs(x["a"])) > 0.9


def test_a_falling_loss_in_bfloat16_is_not_taken_for_a_constant_one():
    """Each value is told from the next in float32 alone; parameters and gradients are bfloat16."""
    value_fn = lambda x: 100 + 1e-2 * jnp.sum(x.astype(jnp.float32))  # noqa: E731
    x = jnp.zeros(4, jnp.bfloat16)
    optimizer = pgd(1.0, radius=1e-3, eps=1.0, k_thres=10, f_thres=1e-3, key=KEY)
    x, state, _ = drive(optimizer, value_fn, x, 40)
    assert not bool(state.stopped)
    assert x.dtype == jnp.bfloat16


def test_a_state_that_keeps_its_parameters_may_be_donated_with_them():
    problem = well()
    optimizer = pgd(0.2, radius=1e-2, key=KEY, **TRIGGER)

    def step(x, state) -> Any:
        value, grad = jax.value_and_grad(problem.value)(x)
        updates, state = optimizer.update(grad, state, x, value=value, grad=grad, value_fn=problem.value)
        return optax.apply_updates(x, updates), state

    x = jnp.array(problem.saddles[0].point)
    donated = jax.jit(step, donate_argnums=(0, 1))(x, optimizer.init(x))
    assert x.is_deleted()
    np.testing.assert_allclose(donated[0], step(problem.saddles[0].point, optimizer.init(problem.saddles[0].point))[0])


@pytest.mark.slow
def test_ball_noise_is_uniform_in_the_ball_over_the_whole_tree():
    like = {"a": jnp.zeros(2, jnp.float64), "b": jnp.zeros((), jnp.float32)}
    draws = jax.vmap(lambda key: ball_noise(2.0)(key, None, like))(jax.random.split(KEY, 20_000))
    assert draws["b"].dtype == jnp.float32
    flat = np.concatenate([np.asarray(draws["a"]), np.asarray(draws["b"])[:, None]], axis=1)
    radii = np.linalg.norm(flat, axis=1) / 2
    assert radii.max() <= 1 + 1e-6
    # P(|x| < t) = t^3 in three dimensions, and E x_i² = r²/(d + 2)
    for t in (0.3, 0.6, 0.9):
        assert abs(np.mean(radii < t) - t**3) < 4 * np.sqrt(t**3 / radii.size)
    np.testing.assert_allclose(np.mean(flat**2, axis=0), 4 / 5, rtol=0.05)


def test_hessian_noise_has_the_covariance_of_the_squared_hessian():
    A = np.diag([-2.0, 0.5, 0.0])
    noise = hessian_noise(0.1)
    draws = jax.vmap(lambda key: noise(key, lambda x: x @ A @ x / 2, jnp.ones(3, jnp.float64)))(
        jax.random.split(KEY, 20_000)
    )
    np.testing.assert_allclose(np.cov(np.asarray(draws).T), 0.01 * A @ A, atol=4 * 0.04 * np.sqrt(2 / 20_000))


@pytest.mark.parametrize("noise", [hessian_noise(1e-2), gaussian_noise(1e-2)], ids=["hessian", "gaussian"])
def test_it_composes_with_adam_schedules_and_trees_under_jit_without_recompiling(noise):
    problem = problems.asymmetric_factorization(jnp.asarray(np.diag([2.0, 1.0])), 1)
    adam = optax.adam(optax.constant_schedule(0.05))
    optimizer = perturb_at_saddle(adam, noise, gradient_trigger(**TRIGGER), key=KEY)
    x, state, _ = drive(optimizer, problem.value, problem.saddles[0].point, 500)
    np.testing.assert_allclose(problem.value(x), 0.5, atol=1e-3)
    assert state.count.dtype == jnp.int32


@pytest.mark.slow
def test_seeds_in_a_batch_are_the_seeds_alone():
    problem = well()

    def final(key):
        return drive(pgd(0.2, radius=1e-2, key=key, **TRIGGER), problem.value, problem.saddles[0].point, 100)[0]

    keys = jax.random.split(KEY, 3)
    np.testing.assert_allclose(jax.vmap(final)(keys), jnp.stack([final(key) for key in keys]), atol=1e-12)


def test_wasserstein_scaling_is_the_gradient_of_the_measure():
    gradient = {"a": jnp.ones((4, 2)), "b": jnp.ones(4)}
    plain: Any = scale_by_measure().update(gradient, optax.EmptyState())
    np.testing.assert_array_equal(plain[0]["a"], 4)
    weights = jnp.asarray([0.5, 0.5, 0.0, 0.0], jnp.float32)
    weighted: Any = scale_by_measure(weights).update(gradient, optax.EmptyState())
    np.testing.assert_array_equal(weighted[0]["b"], [2, 2, 0, 0])


def test_what_is_missing_or_wrong_is_named():
    descent, trigger = optax.sgd(0.1), gradient_trigger(**TRIGGER)
    transform = perturb_at_saddle(descent, ball_noise(0.1), trigger, key=KEY)
    x = jnp.zeros(2)
    with pytest.raises(TypeError, match="value and grad and value_fn missing"):
        transform.update(x, transform.init(x), x)
    with pytest.raises(TypeError, match="value_fn missing"):
        hessian_noise(1.0)(KEY, None, x)
    with pytest.raises(ValueError, match="finds no direction to jump along; give a noise"):
        perturb_at_saddle(descent, None, trigger, key=KEY)
    with pytest.raises(TypeError, match="typed key"):
        perturb_at_saddle(descent, ball_noise(0.1), trigger, key=jax.random.PRNGKey(0))
    with pytest.raises(ValueError, match=r"radius=0\.0"):
        ball_noise(0.0)
