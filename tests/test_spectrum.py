"""Counts of eigenvalues and the size of a Hessian, against dense spectra and an operator whose spectrum is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwgf_jax import Particles, hessian_matrix
from pwgf_jax.spectrum import eigenvalues

KEY = jax.random.key(0)
SPECTRUM = np.concatenate([[-3.0, -1.0, -0.5], np.linspace(0.1, 2.0, 36), [5.0]])


def rotated(spectrum, dtype):
    """A loss whose Hessian has these eigenvalues, and no coordinate for an eigenvector."""
    h = np.random.default_rng(0).normal(size=len(spectrum))
    h, spectrum = jnp.asarray(h / np.linalg.norm(h), dtype), jnp.asarray(spectrum, dtype)
    return lambda x: jnp.sum(spectrum * (x - 2 * jnp.sum(h * x) * h) ** 2) / 2


def functional(mu):
    """Of points with interaction, and without convexity."""
    mean = mu.weights @ mu.points
    return mu.weights @ jnp.sum(jnp.cos(mu.points), axis=-1) - jnp.sum(mean**2)


@pytest.mark.parametrize("dtype", [pytest.param(jnp.float32, marks=pytest.mark.float32), jnp.float64])
def test_the_whole_spectrum_is_that_of_the_matrix(dtype):
    found = eigenvalues(rotated(SPECTRUM, dtype), jnp.zeros(40, dtype), "full", KEY)
    assert found.exact
    assert found.values.dtype == dtype
    np.testing.assert_allclose(found.values, np.sort(SPECTRUM), atol=200 * np.finfo(dtype).eps)
    assert [found.below(threshold) for threshold in (-4.0, -2.0, -0.75, -0.25, 6.0)] == [0, 1, 2, 3, 40]
    assert found.scale == pytest.approx(5.0, rel=1e-5)


@pytest.mark.parametrize("dtype", [pytest.param(jnp.float32, marks=pytest.mark.float32), jnp.float64])
@pytest.mark.parametrize("part", ["integral", "full"])
def test_of_a_measure_it_is_that_of_its_own_inner_product(dtype, part):
    mu = Particles.uniform(jax.random.normal(KEY, (7, 3), dtype))
    dense = np.linalg.eigvalsh(np.asarray(hessian_matrix(functional, mu, part), np.float64))
    found = eigenvalues(functional, mu, part, KEY)
    np.testing.assert_allclose(found.values, dense, atol=100 * np.finfo(dtype).eps)
    middle = (dense[:-1] + dense[1:]) / 2
    for threshold in middle[np.diff(dense) > 1e-3]:
        assert found.below(threshold) == np.sum(dense < threshold)


def test_particles_of_weight_zero_have_no_eigenvalues():
    points = jax.random.normal(KEY, (5, 2))
    weights = jnp.array([0.3, 0.0, 0.5, 0.0, 0.2])
    alive = Particles(points[weights > 0], weights[weights > 0])
    found, expected = (eigenvalues(functional, mu, "full", KEY) for mu in (Particles(points, weights), alive))
    assert found.values.shape == (6,)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-10)


def test_ritz_values_never_count_more_than_there_are_and_their_ends_are_those_of_the_spectrum():
    loss, at = rotated(SPECTRUM, jnp.float64), jnp.zeros(40)
    for depth in (3, 8, 20):
        found = eigenvalues(loss, at, "full", KEY, depth=depth, dense=0)
        assert not found.exact
        assert found.values.shape == (depth,)
        assert found.scale <= 5.0 * (1 + 1e-12)
        for threshold in (-2.0, -0.75, -0.25, 1.0):
            assert found.below(threshold) <= np.sum(SPECTRUM < threshold)
    np.testing.assert_allclose(found.values[jnp.array([0, -1])], [-3.0, 5.0], rtol=1e-8)
    assert found.below(-0.25) == 3


def test_a_krylov_space_that_closes_has_no_values_beyond():
    found = eigenvalues(lambda x: -jnp.sum(x**2), jnp.zeros(9), "full", KEY, dense=0)
    np.testing.assert_allclose(found.values, [-2.0], rtol=1e-12)
    assert found.below(1.0) == 1


@pytest.mark.float32
@pytest.mark.parametrize("outlier", [-7.0, 7.0])
def test_the_size_of_a_large_hessian_of_known_spectrum(outlier):
    n, dtype = 200_000, jnp.float32
    spectrum = np.concatenate([[outlier], np.linspace(-1.0, 1.0, n - 1)])
    found = eigenvalues(rotated(spectrum, dtype), jnp.zeros(n, dtype), "full", KEY, depth=16)
    assert not found.exact
    assert found.scale == pytest.approx(7.0, rel=1e-4)
    assert found.below(-1.5) == (outlier < 0)


def test_of_what_is_not_finite_nothing_is_said():
    found = eigenvalues(lambda x: jnp.sum(jnp.sqrt(x)), jnp.zeros(3), "full", KEY)
    assert not np.isfinite(found.scale)
