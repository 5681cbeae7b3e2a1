"""Densities and extreme eigenpairs of Hessians against dense spectra, and spectra that are known in closed form."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from pwgf_jax import Particles, extreme_eigenpairs, functionals, hessian_matrix, spectral_density
from pwgf_jax.experiments import plot_spectrum

KEY = jax.random.key(0)
SIZE = 60


def quadratic(spectrum):
    """A loss whose Hessian has a known spectrum and no coordinate for an eigenvector."""
    h = np.random.default_rng(0).normal(size=len(spectrum))
    h, spectrum = jnp.asarray(h / np.linalg.norm(h), spectrum.dtype), jnp.asarray(spectrum)

    def loss(x):
        y = x - 2 * jnp.sum(h * x) * h
        return jnp.sum(spectrum * y**2) / 2

    return loss


SPREAD = np.concatenate([np.linspace(-1.0, 2.0, SIZE - 3), [5.0, 7.0, 11.0]])


# --- density ----------------------------------------------------------------------------------------------------------


def test_a_probe_of_full_depth_is_the_spectral_measure_of_its_start():
    """Each probe: nodes are the eigenvalues, weights the squares of its entries along their eigenvectors."""
    found = spectral_density(quadratic(SPREAD), jnp.zeros(SIZE), KEY, depth=SIZE, probes=2)
    np.testing.assert_allclose(jnp.sum(found.weights, axis=1), 1)
    for nodes in found.nodes:
        np.testing.assert_allclose(jnp.sort(nodes), np.sort(SPREAD), atol=1e-8)


def test_moments_and_shares_are_those_of_the_dense_spectrum():
    """Within four standard errors over the probes; of a low depth, moments below twice it are exact for each probe."""
    probes = 200
    found = spectral_density(quadratic(SPREAD), jnp.zeros(SIZE), KEY, depth=12, probes=probes)
    for p in range(1, 7):
        each = np.sum(found.weights * found.nodes**p, axis=1)
        error = np.std(each) / np.sqrt(probes)
        assert abs(np.mean(each) - np.mean(SPREAD**p)) < 4 * error
        assert error < 0.1 * np.mean(np.abs(SPREAD) ** p)
    grid = jnp.linspace(-2.0, 12.0, 40)
    exact = np.mean(SPREAD[:, None] <= np.asarray(grid)[None], axis=0)
    np.testing.assert_allclose(found.cumulative(grid), exact, atol=0.04)


@pytest.mark.slow
def test_the_density_is_broadened_and_integrates_to_one():
    found = spectral_density(quadratic(SPREAD), jnp.zeros(SIZE), KEY, depth=SIZE, probes=300)
    grid = jnp.linspace(-4.0, 15.0, 800)
    density = np.asarray(found.density(grid, width=0.5))
    np.testing.assert_allclose(np.sum(density) * float(grid[1] - grid[0]), 1, rtol=1e-3)
    gauss = np.exp(-(((np.asarray(grid)[:, None] - SPREAD) / 0.5) ** 2) / 2) / (0.5 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(density, gauss.mean(axis=1), atol=0.03)
    with pytest.raises(ValueError, match=r"density: width=0.0; give a positive number"):
        found.density(grid, width=0.0)


def test_a_hessian_of_low_rank_has_a_share_of_exact_zeros():
    spectrum = np.concatenate([[-2.0, 3.0], np.zeros(SIZE - 2)])
    found = spectral_density(quadratic(spectrum), jnp.zeros(SIZE), KEY, depth=20, probes=100)
    share = found.cumulative(jnp.asarray([-1e-9, 1e-9]))
    np.testing.assert_allclose(share, [1 / SIZE, 1 - 1 / SIZE], atol=0.01)
    np.testing.assert_allclose(jnp.sum(found.weights, axis=1), 1)


@pytest.mark.float32
@pytest.mark.slow
def test_a_spectrum_of_a_hundred_thousand_numbers_in_float32():
    """The semicircle: moments are Catalan numbers, extremes ±2, and one outlier at −3."""
    size = 100_000
    u = (np.arange(size - 1) + 0.5) / (size - 1)
    angle = np.linspace(0, np.pi, 4001)
    share = (angle - np.sin(angle) * np.cos(angle)) / np.pi  # of eigenvalues above 2 cos(angle)
    spectrum = np.concatenate([[-3.0], 2 * np.cos(np.interp(u, share, angle))]).astype(np.float32)
    loss, at = quadratic(spectrum), jnp.zeros(size, jnp.float32)
    found = spectral_density(loss, at, KEY, depth=24, probes=2)
    assert found.nodes.dtype == jnp.float32
    for p, moment in ((2, 1), (4, 2), (6, 5)):
        np.testing.assert_allclose(np.mean(np.sum(found.weights * found.nodes**p, axis=1)), moment, rtol=0.03)
    pairs = extreme_eigenpairs(loss, at, KEY, 1, rtol=1e-3, max_depth=128)
    np.testing.assert_allclose(pairs.eigenvalues, [-3, 2], atol=3e-3)
    assert abs(float(pairs.eigenvalues[0]) + 3) <= float(pairs.residuals[0]) < 1e-2


# --- extreme pairs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 4])
def test_extreme_pairs_are_those_of_the_dense_spectrum(k):
    found = extreme_eigenpairs(quadratic(SPREAD), jnp.zeros(SIZE), KEY, k, rtol=1e-12)
    exact = np.sort(SPREAD)
    np.testing.assert_allclose(found.eigenvalues, np.concatenate([exact[:k], exact[-k:]]), atol=1e-12)
    assert np.all(np.asarray(found.residuals) < 1e-10)
    gram = found.eigenvectors @ found.eigenvectors.T
    np.testing.assert_allclose(gram, np.eye(2 * k), atol=1e-9)


def test_a_pair_that_has_not_converged_says_how_far_it_is():
    found = extreme_eigenpairs(quadratic(SPREAD), jnp.zeros(SIZE), KEY, 2, rtol=1e-12, max_depth=9)
    assert found.products == 9 + 4
    distance = np.min(np.abs(SPREAD[:, None] - np.asarray(found.eigenvalues)[None]), axis=0)
    assert np.all(distance <= np.asarray(found.residuals))
    assert np.max(found.residuals) > 1e-3


@pytest.mark.parametrize("size", [1, 3])
def test_of_fewer_eigenvalues_all_are_found_once(size):
    found = extreme_eigenpairs(quadratic(SPREAD[:size]), jnp.zeros(size), KEY, 5)
    np.testing.assert_allclose(found.eigenvalues, SPREAD[:size], atol=1e-12)
    assert found.eigenvectors.shape == (size, size)


@pytest.mark.slow
def test_every_copy_of_an_eigenvalue_counts():
    """At a saddle of a symmetric objective the least curvature is that of many directions."""
    spectrum = np.concatenate([[-1.0, -1.0, -1.0], np.linspace(-0.5, 2.0, SIZE - 5), [4.0, 4.0]])
    found = extreme_eigenpairs(quadratic(spectrum), jnp.zeros(SIZE), KEY, 4, rtol=1e-9)
    exact = np.sort(spectrum)
    np.testing.assert_allclose(found.eigenvalues, np.concatenate([exact[:4], exact[-4:]]), atol=1e-9)
    np.testing.assert_allclose(found.eigenvectors @ found.eigenvectors.T, np.eye(8), atol=1e-7)


# --- points of every kind ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("part", ["integral", "full"])
def test_the_spectrum_at_a_measure_is_that_of_its_matrix(part):
    draw = np.random.default_rng(2)
    inputs, targets = jnp.asarray(draw.normal(size=(7, 2))), jnp.asarray(draw.normal(size=(7, 2)))
    F = functionals.matrix_factorization(inputs, targets)
    mu = Particles.uniform(jnp.asarray(draw.normal(size=(4, 4))))
    dense = np.asarray(hessian_matrix(F, mu, part))
    exact = np.linalg.eigvalsh((dense + dense.T) / 2)
    pairs = extreme_eigenpairs(F, mu, KEY, 2, part=part, rtol=1e-9)
    np.testing.assert_allclose(pairs.eigenvalues, np.concatenate([exact[:2], exact[-2:]]), atol=1e-8)
    assert jax.tree.map(jnp.shape, pairs.eigenvectors) == (4, 4, 4)
    found = spectral_density(F, mu, KEY, depth=16, probes=1, part=part)
    np.testing.assert_allclose(np.min(found.nodes), exact[0], atol=1e-8)


@pytest.mark.slow
def test_of_a_loss_over_batches_it_is_the_spectrum_of_the_average():
    data = np.random.default_rng(0).normal(size=(6, 4, 3))
    params = {"a": jnp.full((3, 2), 0.3), "b": jnp.full(2, -0.2), "n": 7}

    def loss(p, batch):
        return jnp.mean((jnp.tanh(batch @ p["a"]) @ p["b"] - batch[:, 0]) ** 2), "aux"

    floating = {"a": params["a"], "b": params["b"]}
    flat, unravel = ravel_pytree(floating)
    exact = np.linalg.eigvalsh(
        jax.hessian(lambda x: loss({**unravel(x), "n": 7}, jnp.asarray(data.reshape(-1, 3)))[0])(flat)
    )
    options: dict[str, Any] = {"batches": list(data), "has_aux": True}
    pairs = extreme_eigenpairs(loss, params, KEY, 1, rtol=1e-10, **options)
    np.testing.assert_allclose(pairs.eigenvalues, exact[[0, -1]], atol=1e-9)
    assert pairs.eigenvectors["n"] is None
    assert pairs.eigenvectors["a"].shape == (2, 3, 2)
    found = spectral_density(loss, params, KEY, depth=8, probes=1, **options)
    np.testing.assert_allclose(jnp.sort(found.nodes[0]), exact, atol=1e-8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, x: spectral_density(f, x, KEY, depth=0), "spectral_density: depth=0; give a whole number"),
        (lambda f, x: spectral_density(f, x, KEY, probes=0), "spectral_density: probes=0"),
        (lambda f, x: extreme_eigenpairs(f, x, KEY, 0), "extreme_eigenpairs: k=0"),
        (lambda f, x: extreme_eigenpairs(f, x, KEY, 2, max_depth=3), "max_depth=3; 2k = 4 pairs"),
        (lambda f, x: extreme_eigenpairs(f, x, KEY, 2, rtol=0.0), "extreme_eigenpairs: rtol=0.0"),
    ],
)
def test_impossible_numbers_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(quadratic(SPREAD), jnp.zeros(SIZE))


# --- figure -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_figure_marks_zero_delta_and_the_extremes(tmp_path):
    loss, at = quadratic(SPREAD), jnp.zeros(SIZE)
    pairs = extreme_eigenpairs(loss, at, KEY, 2)
    axis = plot_spectrum(spectral_density(loss, at, KEY, depth=16, probes=4), pairs, 0.25)
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert [any(word in label for label in labels) for word in ("0", "−δ", "extreme")] == [True] * 3
    lines = [line.get_xdata()[0] for line in axis.get_lines() if len(set(line.get_xdata())) == 1]
    assert {0.0, -0.25} <= set(lines)
    axis.figure.savefig(tmp_path / "spectrum.png")
    assert (tmp_path / "spectrum.png").stat().st_size > 1000
