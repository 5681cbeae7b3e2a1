"""Accelerated descent with negative curvature exploitation, against its recurrence in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwgf_jax.perturbation import ball_noise
from pwgf_jax.problems import double_well
from pwgf_jax.theory import Constants
from pwgf_jax.transforms import accelerated_descent, gradient_trigger, perturb_at_saddle
from tests.transforms.driving import drive

SCALES = np.array([1.0, 0.3, -0.2])


def bowl(x):
    return jnp.sum(jnp.asarray(SCALES[:2]) * x**2) / 2


def saddle(x):
    return jnp.sum(jnp.asarray(SCALES) * x**2) / 2


def test_on_a_convex_function_it_is_nesterovs_recurrence():
    start, eta, theta = np.array([1.0, -2.0]), 0.25, 0.3
    state, path = drive(accelerated_descent(eta, theta=theta, gamma=0.1, stretch=0.1), bowl, jnp.asarray(start), 30)[1:]
    x, v = start, np.zeros(2)
    for found in np.asarray(path):
        y = x + (1 - theta) * v
        x, v = y - eta * SCALES[:2] * y, y - eta * SCALES[:2] * y - x
        np.testing.assert_allclose(found, x, atol=1e-14)
    assert int(state.exploitations) == 0


def test_where_curvature_is_below_minus_gamma_it_stretches_the_last_step():
    """On a quadratic the condition is v'Hv <= −γ|v|²: met at the second step from a point on the descending axis."""
    start, eta = jnp.asarray([0.0, 0.0, 1e-3]), 0.25
    _, state, path = drive(accelerated_descent(eta, theta=0.3, gamma=0.1, stretch=0.5), saddle, start, 2)
    first = 1e-3 * (1 + 0.2 * eta)
    np.testing.assert_allclose(path[:, 2], [first, first + 0.5], rtol=1e-12)
    assert int(state.exploitations) == 1
    np.testing.assert_array_equal(state.velocity, 0)
    # a last step longer than the stretch is forgotten, and x stays
    path = drive(accelerated_descent(eta, theta=0.3, gamma=0.1, stretch=1e-6), saddle, start, 2)[2]
    np.testing.assert_array_equal(path[0], path[1])
    # curvature above −γ is not exploited
    _, state, _ = drive(accelerated_descent(eta, theta=0.3, gamma=0.21, stretch=0.5), saddle, start, 9)
    assert int(state.exploitations) == 0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_with_jumps_it_leaves_an_exact_saddle(dtype):
    known, problem = Constants(2.0, 6.0, eps=1e-3, delta=0.3, dimension=5), double_well(5, dtype=dtype)
    trigger = gradient_trigger(**known.gradient_trigger())
    inner, noise = accelerated_descent(**known.accelerated_descent()), ball_noise(known.pgd()["radius"])
    optimizer = perturb_at_saddle(inner, noise, trigger, key=jax.random.key(0))
    x = drive(optimizer, problem.value, problem.saddles[0].point, 300)[0]
    assert abs(float(problem.value(x)) + 0.25) < 1e-4
    stays = drive(inner, problem.value, problem.saddles[0].point, 300)[0]
    np.testing.assert_array_equal(stays, problem.saddles[0].point)


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"accelerated_descent: gamma=0\.0; give a positive number"):
        accelerated_descent(0.1, theta=0.1, gamma=0.0, stretch=1.0)
    with pytest.raises(ValueError, match=r"theta=2\.0; give a number at most one"):
        accelerated_descent(0.1, theta=2.0, gamma=1.0, stretch=1.0)
