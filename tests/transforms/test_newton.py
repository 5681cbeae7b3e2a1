"""Saddle-free and cubic Newton against dense linear algebra and SciPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import minimize

from pwgf_jax import problems
from pwgf_jax.transforms import absolute_inverse, cubic_newton, scale_by_saddle_free_newton
from tests.transforms.driving import drive

KEY = jax.random.key(0)


def quadratic(seed, eigenvalues):
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues),) * 2))[0]
    A = jnp.asarray((q * eigenvalues) @ q.T)
    return lambda x: x @ A @ x / 2, np.asarray(A), q


@pytest.mark.parametrize("name", ["beta", "damping"])
def test_saddle_free_newton_is_the_function_of_the_dense_hessian(name):
    f, A, _ = quadratic(0, np.array([-2.0, -0.1, 0.3, 1.0, 4.0]))
    x = jnp.asarray(np.random.default_rng(1).normal(size=5))
    transform = scale_by_saddle_free_newton(depth=5, **{name: 0.05})
    found: Any = transform.update(jax.grad(f)(x), transform.init(x), x, value_fn=f)[0]
    values, vectors = np.linalg.eigh(A)
    factors = 1 / np.sqrt(values**2 + 0.05) if name == "beta" else 1 / (np.abs(values) + 0.05)
    np.testing.assert_allclose(found, (vectors * factors) @ vectors.T @ A @ np.asarray(x), atol=1e-9)
    np.testing.assert_allclose(absolute_inverse(**{name: 0.05})(jnp.asarray(values)), factors)


def test_saddle_free_newton_crosses_the_octopus_in_time_linear_in_its_saddles():
    """It squares what it contracts, and doubles what it expands: from 1e-19 that takes some sixty steps a saddle."""
    problem = problems.octopus(3, dtype=jnp.float64)
    optimizer = optax.chain(scale_by_saddle_free_newton(1e-4), optax.scale_by_learning_rate(1.0))
    x, _, _ = drive(optimizer, problem.value, problem.init(KEY), 250)
    np.testing.assert_allclose(problem.value(x), problem.minimum.value, rtol=1e-9)


def model(g, A, M, h):
    return g @ h + h @ A @ h / 2 + M / 6 * np.linalg.norm(h) ** 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["generic", "no gradient", "hard", "convex"])
def test_a_cubic_step_minimises_the_cubic_model(kind):
    eigenvalues = np.array([0.2, 0.5, 1.0, 2.0]) if kind == "convex" else np.array([-1.0, 0.2, 0.7, 2.0])
    _, A, q = quadratic(2, eigenvalues)
    g = np.random.default_rng(3).normal(size=4)
    if kind == "no gradient":
        g = np.zeros(4)
    if kind == "hard":  # nothing along the least eigenvector, and too little to fill the length
        g = q[:, 1:] @ np.array([0.1, 0.2, -0.1])
    M = 1.5
    f = lambda x: x @ jnp.asarray(A) @ x / 2  # noqa: E731
    transform = cubic_newton(M, key=KEY)
    x = jnp.zeros(4, jnp.float64)
    updated: Any = transform.update(jnp.asarray(g), transform.init(x), x, value_fn=f)
    step, state = np.asarray(updated[0]), updated[1]
    starts = np.random.default_rng(4).normal(size=(20, 4))
    best = min(minimize(lambda h: model(g, A, M, h), s, method="BFGS", options={"gtol": 1e-10}).fun for s in starts)
    np.testing.assert_allclose(model(g, A, M, step), best, atol=1e-7)
    r = np.linalg.norm(step)
    np.testing.assert_allclose(state.length, r, rtol=1e-12)
    np.testing.assert_allclose(A @ step + M * r / 2 * step, -g, atol=1e-6)
    assert np.linalg.eigvalsh(A + M * r / 2 * np.eye(4))[0] > -1e-6
    if kind == "no gradient":
        np.testing.assert_allclose(r, 2 / M, rtol=1e-7)


def test_cubic_newton_leaves_exact_saddles_and_ends_at_the_minimum():
    for problem in (problems.octopus(3, dtype=jnp.float64), problems.cubic([-1.0, 1.0, 2.0], dtype=jnp.float64)):
        x, state, _ = drive(cubic_newton(30.0, key=KEY), problem.value, problem.saddles[0].point, 150)
        np.testing.assert_allclose(problem.value(x), problem.minimum.value, rtol=1e-8)
        assert state.length < 1e-6
        assert state.curvature > 0


def test_trees_of_parameters_and_single_precision():
    problem = problems.asymmetric_factorization(jnp.asarray(np.diag([2.0, 1.0]), jnp.float32), 1)
    x, _, _ = drive(cubic_newton(10.0, key=KEY), problem.value, problem.saddles[0].point, 60)
    np.testing.assert_allclose(problem.value(x), 0.5, rtol=1e-5)
    assert x["u"].dtype == jnp.float32


def test_bad_input_is_named():
    x = jnp.zeros(2)
    for transform in (scale_by_saddle_free_newton(1.0), cubic_newton(1.0, key=KEY)):
        with pytest.raises(TypeError, match="value_fn missing"):
            transform.update(x, transform.init(x), x)
    with pytest.raises(ValueError, match=r"beta=0\.0; give a positive number"):
        scale_by_saddle_free_newton(0.0)
    with pytest.raises(ValueError, match=r"lipschitz=-1\.0; give a positive number"):
        cubic_newton(-1.0, key=KEY)
