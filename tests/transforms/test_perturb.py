"""Perturbing at saddles, as an optax user meets it."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pwgf_jax import problems
from pwgf_jax.transforms import (
    ball_noise,
    gaussian_noise,
    gradient_trigger,
    hessian_product_noise,
    perturb_at_saddle,
    pgd,
    pgd_constants,
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
    jump = state[-1]
    assert bool(jump.stopped)
    # the window at the minimum bought nothing: the parameters are those from before its jump, for good
    np.testing.assert_array_equal(x, jump.window.saved)
    np.testing.assert_array_equal(path[-1], path[-50])


def test_a_jump_is_an_update_of_its_own_and_the_next_gradient_is_that_of_the_perturbed_point():
    problem = well()
    x0 = problem.saddles[0].point
    optimizer = pgd(0.2, radius=1e-2, key=KEY, **TRIGGER)
    _, _, path = drive(optimizer, problem.value, x0, 3)
    xi = path[0] - x0
    assert 0 < np.linalg.norm(xi) <= 1e-2
    np.testing.assert_allclose(path[1], path[0] - 0.2 * jax.grad(problem.value)(path[0]), rtol=1e-12)


def test_the_window_of_the_transform_is_that_of_the_papers_algorithm():
    """From a flat point no decrease comes: it stops k_thres gradient steps after the jump, where it jumped."""
    flat = lambda x: 0.0 * jnp.sum(x)  # noqa: E731
    optimizer = pgd(0.2, radius=1.0, eps=1e-3, k_thres=5, f_thres=1e-4, key=KEY)
    _, _, path = drive(optimizer, flat, jnp.ones(2), 9)
    moved = np.any(np.asarray(path) != 1.0, axis=1)
    np.testing.assert_array_equal(moved, [True] * 6 + [False] * 3)


@pytest.mark.slow
def test_ball_noise_is_uniform_in_the_ball_over_the_whole_tree():
    like = {"a": jnp.zeros(2, jnp.float64), "b": jnp.zeros((), jnp.float32)}
    draws = jax.vmap(lambda key: ball_noise(2.0)(key, like, None))(jax.random.split(KEY, 20_000))
    assert draws["b"].dtype == jnp.float32
    flat = np.concatenate([np.asarray(draws["a"]), np.asarray(draws["b"])[:, None]], axis=1)
    radii = np.linalg.norm(flat, axis=1) / 2
    assert radii.max() <= 1 + 1e-6
    # P(|x| < t) = t^3 in three dimensions, and E x_i² = r²/(d + 2)
    for t in (0.3, 0.6, 0.9):
        assert abs(np.mean(radii < t) - t**3) < 4 * np.sqrt(t**3 / radii.size)
    np.testing.assert_allclose(np.mean(flat**2, axis=0), 4 / 5, rtol=0.05)


def test_hessian_product_noise_has_the_covariance_of_the_squared_hessian():
    A = np.diag([-2.0, 0.5, 0.0])
    noise = hessian_product_noise(0.1)
    draws = jax.vmap(lambda key: noise(key, jnp.ones(3, jnp.float64), lambda x: x @ A @ x / 2))(
        jax.random.split(KEY, 20_000)
    )
    np.testing.assert_allclose(np.cov(np.asarray(draws).T), 0.01 * A @ A, atol=4 * 0.04 * np.sqrt(2 / 20_000))


@pytest.mark.parametrize("noise", [hessian_product_noise(1e-2), gaussian_noise(1e-2)], ids=["hessian", "gaussian"])
def test_it_composes_with_adam_schedules_and_trees_under_jit_without_recompiling(noise):
    problem = problems.asymmetric_factorization(jnp.asarray(np.diag([2.0, 1.0])), 1)
    jump = perturb_at_saddle(noise, gradient_trigger(**TRIGGER), KEY)
    optimizer = optax.chain(optax.adam(optax.constant_schedule(0.05)), jump)
    x, state, _ = drive(optimizer, problem.value, problem.saddles[0].point, 500)
    np.testing.assert_allclose(problem.value(x), 0.5, atol=1e-3)
    assert state[-1].count.dtype == jnp.int32


@pytest.mark.slow
def test_seeds_in_a_batch_are_the_seeds_alone():
    problem = well()

    def final(key):
        return drive(pgd(0.2, radius=1e-2, key=key, **TRIGGER), problem.value, problem.saddles[0].point, 100)[0]

    keys = jax.random.split(KEY, 3)
    np.testing.assert_allclose(jax.vmap(final)(keys), jnp.stack([final(key) for key in keys]), atol=1e-12)


def test_constants_are_the_papers():
    given = {"smoothness": 2.0, "hessian_lipschitz": 0.5, "eps": 0.01, "gap": 3.0, "dimension": 7, "failure": 0.05}
    old = pgd_constants(**given, c=0.25)
    chi = 3 * max(np.log(7 * 2 * 3 / (0.25 * 1e-4 * 0.05)), 4)
    np.testing.assert_allclose(old.learning_rate, 0.125)
    np.testing.assert_allclose(old.eps, 0.5 / chi**2 * 0.01)
    np.testing.assert_allclose(old.radius * 2, old.eps)
    np.testing.assert_allclose(old.f_thres, 0.25 / chi**3 * np.sqrt(1e-6 / 0.5))
    assert old.k_thres == np.ceil(chi / 0.0625 * 2 / np.sqrt(0.005))
    new = pgd_constants(**given, variant="2021")
    iota = np.cbrt(np.sqrt(1e-6 / 0.5) / 50 / new.f_thres)
    np.testing.assert_allclose(new.radius, 0.5 * 0.01 / (400 * iota**3))
    steps = 400 * iota**4 * 2 * 3 / 1e-4
    bound = lambda i: steps / iota**4 * i**4 * 2 * np.sqrt(7 / 0.005) * i**2 * 2 ** (8 - i)  # noqa: E731
    assert bound(iota) <= 0.05 < bound(iota - 0.1)


def test_wasserstein_scaling_is_the_gradient_of_the_measure():
    gradient = {"a": jnp.ones((4, 2)), "b": jnp.ones(4)}
    plain: Any = scale_by_measure().update(gradient, optax.EmptyState())
    np.testing.assert_array_equal(plain[0]["a"], 4)
    weights = jnp.asarray([0.5, 0.5, 0.0, 0.0], jnp.float32)
    weighted: Any = scale_by_measure(weights).update(gradient, optax.EmptyState())
    np.testing.assert_array_equal(weighted[0]["b"], [2, 2, 0, 0])


def test_what_is_missing_or_wrong_is_named():
    transform = perturb_at_saddle(ball_noise(0.1), gradient_trigger(**TRIGGER), KEY)
    x = jnp.zeros(2)
    with pytest.raises(TypeError, match="value and grad missing"):
        transform.update(x, transform.init(x), x)
    with pytest.raises(TypeError, match="value_fn is missing"):
        hessian_product_noise(1.0)(KEY, x, None)
    with pytest.raises(TypeError, match="typed key"):
        perturb_at_saddle(ball_noise(0.1), gradient_trigger(**TRIGGER), jax.random.PRNGKey(0))
    with pytest.raises(ValueError, match=r"radius=0\.0"):
        ball_noise(0.0)
    with pytest.raises(ValueError, match='choose "2017" or "2021"'):
        pgd_constants(smoothness=1.0, hessian_lipschitz=1.0, eps=0.1, gap=1.0, dimension=2, variant="2019")
    with pytest.raises(ValueError, match="dimension >= 1"):
        pgd_constants(smoothness=1.0, hessian_lipschitz=1.0, eps=0.1, gap=1.0, dimension=0)
