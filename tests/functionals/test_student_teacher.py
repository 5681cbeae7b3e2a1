"""Student and teacher: closed forms, the published gradient, and which laws the dense coupling keeps."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwgf_jax import Particles, first_variation, wasserstein_gradient, wasserstein_hessian
from pwgf_jax.contract import check_functional
from pwgf_jax.functionals import small_networks, student_teacher
from pwgf_jax.gram import gram_function
from pwgf_jax.krylov import dense_function

N, H, P, M = 5, 3, 4, 7
DRAW = np.random.default_rng(1)
INPUTS, TARGETS = DRAW.normal(size=(M, P)), DRAW.uniform(size=(M, 1))
WEIGHTS = np.array([0.1, 0.4, 0.05, 0.25, 0.2])
POINTS = {
    "block": {"a": DRAW.normal(size=(N, H)), "w": DRAW.normal(size=(N, H, P))},
    "dense": {"a": DRAW.normal(size=(N, N, H)), "w": DRAW.normal(size=(N, H, P))},
}
NOISE = {name: jax.tree.map(lambda x: 0.3 * DRAW.normal(size=x.shape), points) for name, points in POINTS.items()}
couplings = pytest.mark.parametrize("coupling", POINTS)


def made(coupling, dtype=jnp.float64):
    return student_teacher(jnp.asarray(INPUTS, dtype), jnp.asarray(TARGETS, dtype), coupling=coupling)


def measure(coupling, dtype=jnp.float64, weights=WEIGHTS):
    return Particles(jax.tree.map(lambda x: jnp.asarray(x, dtype), POINTS[coupling]), jnp.asarray(weights, dtype))


def moved(points, by, factor=1.0):
    return jax.tree.map(lambda x, v: x + factor * v, points, by)


def features(points):
    """ψ(z, x_i) by loops, shape (N, M), with the derivatives of the sum over i with respect to a and w as (M, ...)."""
    a, w = points["a"], points["w"]
    full = a if a.ndim == 3 else np.einsum("nh,nm->nmh", a, np.eye(N))  # a block reads its own units only
    values = np.zeros((N, M))
    da, dw = np.zeros((M, *full.shape)), np.zeros((M, *w.shape))
    for b, z in enumerate(INPUTS):
        before = w @ z
        units = np.maximum(before, 0)
        for i in range(N):
            u = np.sum(full[i] * units)
            values[i, b] = np.exp(-(u**2) / 4)
            slope = -u / 2 * values[i, b]
            da[b, i] = slope * units
            dw[b] += slope * (full[i] * (before > 0))[:, :, None] * z
    return values, {"a": da if a.ndim == 3 else np.einsum("bnnh->bnh", da), "w": dw}


def published(coupling, clean, noisy, weights):
    """∇F_aux at the noisy points, of (1/n)Σ_b (y_S − y_T) Σ_i ψ(z_b, x̃_i) with y_S at the clean ones."""
    residual = weights @ features(clean)[0] - TARGETS[:, 0]
    return jax.tree.map(lambda d: np.tensordot(residual, d, axes=1) / M, features(noisy)[1])


@jax.jit
def derivatives(F, mu, noisy):
    return F(mu), wasserstein_gradient(F, mu), wasserstein_gradient(F, mu, at=noisy)


@couplings
def test_value_and_gradients_are_the_published_ones(coupling, dtype, tolerance):
    uniform = np.full(N, 1 / N)
    noisy = moved(POINTS[coupling], NOISE[coupling])
    F, mu = made(coupling, dtype), measure(coupling, dtype, uniform)
    value, clean, at = derivatives(F, mu, jax.tree.map(lambda x: jnp.asarray(x, dtype), noisy))
    residual = uniform @ features(POINTS[coupling])[0] - TARGETS[:, 0]
    np.testing.assert_allclose(value, np.mean(residual**2) / 2, rtol=tolerance(dtype))
    for found, points in ((clean, POINTS[coupling]), (at, noisy)):
        expected = published(coupling, POINTS[coupling], points, uniform)
        for leaf in ("a", "w"):
            assert found[leaf].dtype == dtype
            assert np.max(np.abs(expected[leaf])) > 1e-3
            np.testing.assert_allclose(found[leaf], expected[leaf], atol=tolerance(dtype))


@pytest.mark.slow
def test_block_is_a_functional_of_measures_and_half_a_squared_discrepancy():
    F, mu = made("block"), measure("block")
    check_functional(F, mu)
    ones = jnp.full((1, H), 0.5), jnp.full((1, H, P), 0.3)
    teacher = dict(zip(("a", "w"), ones, strict=True))
    F = replace(F, targets=F.features(teacher, F.inputs).T)
    mean = mu.weights @ F.kernel(mu.points, mu.points) @ mu.weights
    cross = mu.weights @ F.kernel(mu.points, teacher)[:, 0]
    np.testing.assert_allclose(F(mu), mean / 2 - cross + F.kernel(teacher, teacher)[0, 0] / 2, rtol=1e-9)
    assert float(F(Particles.uniform(teacher))) == 0


def test_dense_keeps_the_laws_of_indexed_particles_and_no_others():
    F, mu = made("dense"), measure("dense")
    order = np.array([3, 0, 4, 1, 2])
    together = {"a": mu.points["a"][order][:, order], "w": mu.points["w"][order]}
    np.testing.assert_allclose(F(Particles(together, mu.weights[order])), F(mu), rtol=1e-12)
    particles_alone = jax.tree.map(lambda x: x[order], mu.points)
    assert abs(float(F(Particles(particles_alone, mu.weights[order]))) - float(F(mu))) > 1e-4
    np.testing.assert_allclose(F.moments(Particles(mu.points, 2 * mu.weights)), 2 * F.moments(mu), rtol=1e-12)
    one = jax.tree.map(lambda x: x[0], mu.points)
    with pytest.raises(ValueError, match=r"needs a \(N, N, H\), all N particles"):
        first_variation(F, mu)(one)


def test_a_dense_network_with_a_block_diagonal_is_the_block(dtype, tolerance):
    mu = measure("block", dtype)
    diagonal = mu.points["a"][:, None, :] * jnp.eye(N, dtype=dtype)[:, :, None]
    found = made("dense", dtype)(Particles({"a": diagonal, "w": mu.points["w"]}, mu.weights))
    np.testing.assert_allclose(found, made("block", dtype)(mu), rtol=tolerance(dtype))


@couplings
def test_the_gram_solver_knows_its_hessian(coupling):
    F, mu = made(coupling), measure(coupling, weights=WEIGHTS if coupling == "block" else np.full(N, 1 / N))

    @jax.jit
    def both(F, mu):
        def damped(t):
            return 1 / (t + 0.1)

        gradient = wasserstein_gradient(F, mu)
        return gram_function(F, mu, damped), dense_function(wasserstein_hessian(F, mu), gradient, damped)

    by_gram, by_eigenvectors = both(F, mu)
    for leaf in ("a", "w"):
        np.testing.assert_allclose(by_gram[leaf], by_eigenvectors[leaf], atol=1e-9)


def test_a_batch_has_the_kernel_of_its_rows():
    F, points = made("block"), measure("block").points
    batch = F.batch(jax.random.key(2), 3)
    rows = [int(np.flatnonzero((INPUTS == z).all(axis=1))[0]) for z in np.asarray(batch.inputs)]
    assert len(set(rows)) == 3
    np.testing.assert_array_equal(batch.targets, TARGETS[rows])
    psi = features(POINTS["block"])[0][:, rows]
    np.testing.assert_allclose(batch.kernel(points, points), psi @ psi.T / 3, rtol=1e-9)
    with pytest.raises(ValueError, match=f"size={M + 1}; there are {M} data points to draw from"):
        F.batch(jax.random.key(0), M + 1)


@couplings
def test_networks_are_gaussian_and_fit_their_coupling(coupling):
    mu = small_networks(jax.random.key(0), 40, 30, mean=1.0, scale=0.5, coupling=coupling, dtype=jnp.float64)
    made = student_teacher(jnp.ones((2, 30)), jnp.zeros((2, 1)), coupling=coupling)
    assert made.outputs(mu, jnp.ones((2, 30))).shape == (2, 1)
    for leaf in mu.points.values():
        error = 0.5 / leaf.size**0.5
        assert abs(float(jnp.mean(leaf)) - 1.0) < 5 * error
        assert abs(float(jnp.std(leaf)) - 0.5) < 5 * error


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda z, y: student_teacher(z, y, width=0.0), "width=0.0; give a positive number"),
        (lambda z, y: student_teacher(z[:0], y[:0]), r"inputs have shape \(0, 4\) .*M >= 1"),
        (lambda z, y: student_teacher(z[:3], y), "inputs"),
        (lambda z, y: student_teacher(z, y, coupling="full"), "coupling"),  # pyright: ignore[reportArgumentType]
        (lambda z, y: student_teacher(z, y.astype(jnp.float32)), "one floating dtype"),
        (lambda z, y: student_teacher(z, y)(measure("dense")), r'a \(5, 5, 3\).*coupling="block" needs a \(N, H\)'),
        (lambda z, y: student_teacher(z, y)(Particles.uniform(jnp.ones((2, 4)))), "particles are networks"),
        (lambda z, y: small_networks(jax.random.key(0), 0, 4), "count=0, size=4, hidden=3; give at least 1"),
        (lambda z, y: small_networks(jax.random.key(0), 1, 4, scale=0.0), "scale=0.0; give a positive number"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(build, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build(jnp.asarray(INPUTS), jnp.asarray(TARGETS))
