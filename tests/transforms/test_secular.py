"""The secular equation against the conditions that characterise its global minimisers, in a ball and by a cubic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwgf_jax.transforms.secular import secular

RADIUS, M = 0.7, 3.0


def spectra(dtype):
    """Random models, and those with no slope along the least eigenvector: the hard case, one exactly, one nearly."""
    rng = np.random.default_rng(0)
    values = np.sort(rng.normal(size=(60, 5)) + rng.choice([-1.0, 0.0, 2.5], size=(60, 1)), axis=1)
    slopes = rng.normal(size=(60, 5)) * 10.0 ** rng.uniform(-6, 2, size=(60, 1))
    slopes[:20, 0], slopes[20:30, 0] = 0, 1e-12
    slopes[0] = 0
    return jnp.asarray(values, dtype), jnp.asarray(slopes, dtype)


@pytest.mark.parametrize("model", ["ball", "cubic"])
def test_it_is_the_global_minimiser(model, dtype, tolerance):
    """(Λ + s)h = −c with Λ + s ⪰ 0, and s(R − |h|) = 0 or s = M|h|/2, hold there and nowhere else."""
    values, slopes = spectra(dtype)
    assert np.any(values[:, 0] < 0)
    assert np.any(values[:, 0] > 0)

    @jax.jit
    @jax.vmap
    def solve(values, slopes):
        size = jnp.linalg.norm(slopes)
        if model == "ball":
            return secular(values, slopes, lambda s: jnp.asarray(RADIUS, dtype), size / RADIUS)
        return secular(values, slopes, lambda s: 2 * s / M, jnp.sqrt(M * size / 2))

    h = np.asarray(solve(values, slopes), float)
    a, c = np.asarray(values, float), np.asarray(slopes, float)
    length = np.linalg.norm(h, axis=1)
    if model == "cubic":
        s = M * length / 2
    else:
        inside = (a[:, 0] > 0) & (np.linalg.norm(c / a, axis=1) < RADIUS)
        assert np.any(inside)
        assert np.all(length <= RADIUS * (1 + tolerance(dtype)))
        np.testing.assert_allclose(length[~inside], RADIUS, rtol=tolerance(dtype))
        s = np.where(inside, 0, -np.sum(h * (a * h + c), axis=1) / RADIUS**2)
    scale = np.linalg.norm(c, axis=1) + np.abs(a).max(axis=1) * length
    assert np.all(a[:, 0] + s >= -10 * tolerance(dtype) * scale / length.clip(1e-3))
    residual = np.linalg.norm((a + s[:, None]) * h + c, axis=1)
    assert np.all(residual <= 10 * tolerance(dtype) * scale)


def test_the_hard_case_fills_the_length_along_the_least_eigenvector():
    values, slopes = jnp.asarray([-1.0, 1.0]), jnp.asarray([0.0, 0.5])
    h = secular(values, slopes, lambda s: jnp.asarray(RADIUS), jnp.asarray(0.5 / RADIUS))
    np.testing.assert_allclose(h, [np.sqrt(RADIUS**2 - 0.0625), -0.25], rtol=1e-12)  # s = 1
    h = secular(values, slopes, lambda s: s / 2, jnp.asarray(1.0))  # |h| = ½
    np.testing.assert_allclose(h, [np.sqrt(0.25 - 0.0625), -0.25], rtol=1e-12)
