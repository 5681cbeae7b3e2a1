"""The de-regularised kernel against its definition by the covariance operator, its limits, and in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwgf_jax import Particles, wasserstein_gradient
from pwgf_jax.functionals import mmd
from pwgf_jax.kernels import de_regularised, feature, gaussian
from pwgf_jax.problems import ThreeRings


def rng(seed=0):
    return np.random.default_rng(seed)


def waves(x):
    return jnp.tanh(x @ jnp.asarray(rng(1).normal(size=(2, 5)), x.dtype))


def test_the_discrepancy_is_that_of_means_in_the_metric_of_the_covariance():
    """DrMMD² = (1 + λ)(m_μ − m_π)ᵀ(Σ_π + λ)⁻¹(m_μ − m_π), in the space of five features, for unequal weights."""
    draw, damping = rng(2), 0.05
    x, y = (jnp.asarray(draw.normal(size=(n, 2))) for n in (4, 7))
    w, v = (jnp.asarray(draw.dirichlet(np.ones(n))) for n in (4, 7))
    phi, psi = waves(x) / 5**0.5, waves(y) / 5**0.5
    covariance, gap = psi.T @ (v[:, None] * psi), w @ phi - v @ psi
    expected = (1 + damping) * gap @ jnp.linalg.solve(covariance + damping * jnp.eye(5), gap) / 2
    target = Particles(y, v)
    found = mmd(target, de_regularised(feature(waves), target, damping))(Particles(x, w))
    np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_much_damping_leaves_the_kernel_and_none_at_the_target_is_zero():
    x, y = (jnp.asarray(rng(3).normal(size=(n, 2))) for n in (4, 6))
    k = gaussian(0.7)
    np.testing.assert_allclose(de_regularised(k, y, 1e9)(x, x), k(x, x), atol=1e-7)
    np.testing.assert_allclose(mmd(y, de_regularised(k, y, 1e-3))(Particles.uniform(y)), 0, atol=1e-10)


def test_float32_keeps_value_and_gradient_at_the_published_damping(key):
    """λ = 10⁻³ and a lengthscale of half a ring: what cancels is 10⁻⁷/λ of the kernel."""
    target = ThreeRings(0.3, 0.01).sample(key, 100, jnp.float64)
    start = 0.1 * jnp.asarray(rng(4).normal(size=(80, 2)))
    near = target[:80] + 0.02 * jnp.asarray(rng(5).normal(size=(80, 2)))  # towards the end of a run

    @jax.jit
    def both(target, points):
        F, mu = mmd(target, de_regularised(gaussian(0.15), target, 1e-3)), Particles.uniform(points)
        return F(mu), wasserstein_gradient(F, mu)

    for points in (start, near):
        value, gradient = both(target, points)
        rough = both(target.astype(jnp.float32), points.astype(jnp.float32))
        assert rough[1].dtype == jnp.float32
        np.testing.assert_allclose(rough[0], value, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(rough[1], gradient, atol=1e-3 * float(jnp.max(jnp.abs(gradient))))


def test_seeds_have_targets_of_their_own(key):
    def value(key):
        target = jax.random.normal(key, (6, 2))
        return mmd(target, de_regularised(gaussian(1.0), target, 0.1))(Particles.uniform(jnp.ones((3, 2))))

    keys = jax.random.split(key, 3)
    np.testing.assert_allclose(jax.vmap(value)(keys), [value(each) for each in keys], rtol=1e-12)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"de_regularised: damping=0.0; give a positive number"):
        de_regularised(gaussian(1.0), jnp.ones((3, 1)), 0.0)
