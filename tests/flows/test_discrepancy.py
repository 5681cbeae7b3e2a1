"""Descent of the de-regularised MMD: against its definition by dense matrices, on samples and on networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwgf_jax import Particles, norm, value_and_wasserstein_gradient, wasserstein_gradient
from pwgf_jax.flows import drmmd_descent, drmmd_direction
from pwgf_jax.functionals import mmd, potential, small_networks, student_teacher
from pwgf_jax.gram import gram_function
from pwgf_jax.kernels import de_regularised, feature, gaussian


def rng(seed=0):
    return np.random.default_rng(seed)


def dense(x, w, y, damping):
    """½DrMMD² to the uniform measure on y, Gaussian kernel of lengthscale 0.8, by the inverse of Woodbury's formula."""

    def k(a, b):
        return jnp.exp(-jnp.sum((a[:, None] - b[None]) ** 2, axis=2) / (2 * 0.8**2))

    points, mass = jnp.concatenate([x, y]), jnp.concatenate([w, jnp.full(len(y), -1 / len(y))])
    near = k(y, points) @ mass
    inverse = jnp.linalg.inv(k(y, y) + len(y) * damping * jnp.eye(len(y)))
    return (1 + damping) / damping * (mass @ k(points, points) @ mass - near @ inverse @ near) / 2


@pytest.mark.parametrize("confined", [False, True])
def test_the_direction_is_the_gradient_of_the_definition_and_the_rest_is_of_the_functional(key, confined):
    x, y = (jnp.asarray(rng(1).normal(size=(n, 2))) for n in (4, 6))
    w = jnp.asarray(rng(2).dirichlet(np.ones(4)))
    mu, F = Particles(x, w), mmd(y, gaussian(0.8))
    F = 2.0 * F.confined(0.3) if confined else F
    found = jax.jit(lambda: drmmd_direction(0.02)(key, F, mu))()
    expected = jax.jit(jax.grad(lambda x: dense(x, w, y, 0.02)))(x) / w[:, None]
    value, gradient = value_and_wasserstein_gradient(F, mu)
    np.testing.assert_allclose(found.field, 2 * (expected + 0.3 * x) if confined else expected, rtol=1e-9)
    np.testing.assert_allclose(found.value, value, rtol=1e-12)
    np.testing.assert_allclose(found.gradient_norm, norm(mu, gradient), rtol=1e-12)


def networks():
    """A student–teacher functional, its one teacher and some students."""
    z = jnp.asarray(rng(3).normal(size=(7, 3)))
    z /= jnp.linalg.norm(z, axis=1, keepdims=True)
    teacher, mu = (small_networks(jax.random.key(seed), n, 3, dtype=jnp.float64) for seed, n in ((0, 1), (1, 4)))
    F = student_teacher(z, student_teacher(z, jnp.zeros((7, 1))).outputs(teacher, z))
    return F, teacher, mu


def test_of_networks_it_is_that_of_their_kernel_with_the_teacher_for_a_target():
    F, teacher, mu = networks()

    @jax.jit
    def both():
        G = mmd(teacher, de_regularised(feature(lambda x: F.features(x, F.inputs)), teacher, 0.1))
        return [value_and_wasserstein_gradient(each, mu) for each in (F.de_regularised(0.1), G)]

    (value, gradient), (expected, field) = both()
    np.testing.assert_allclose(value, expected, rtol=1e-10)
    for leaf, like in zip(jax.tree.leaves(gradient), jax.tree.leaves(field), strict=True):
        np.testing.assert_allclose(leaf, like, atol=1e-10)


def test_of_networks_it_is_least_squares():
    F, _, mu = networks()
    G = F.de_regularised(0.1)
    np.testing.assert_allclose(jnp.sum(G.residuals(mu) ** 2) / 2, G(mu), rtol=1e-12)
    field = gram_function(G, mu, jnp.ones_like)  # φ = 1 is the gradient
    for leaf, like in zip(jax.tree.leaves(field), jax.tree.leaves(wasserstein_gradient(G, mu)), strict=True):
        np.testing.assert_allclose(leaf, like, atol=1e-12)


def test_the_damping_may_follow_the_gradient(key):
    F, mu = mmd(jnp.asarray(rng(1).normal(size=(6, 2))), gaussian(0.8)), Particles.uniform(jnp.ones((4, 2)))
    level = float(norm(mu, wasserstein_gradient(F, mu)))
    fields = [
        drmmd_direction(each)(key, F, mu).field for each in (0.5 * level, lambda gradient_norm: 0.5 * gradient_norm)
    ]
    np.testing.assert_allclose(*fields, rtol=1e-12)


def test_what_is_no_discrepancy_is_refused(key):
    with pytest.raises(
        TypeError, match=r"drmmd_descent: Potential\(.*\) is no discrepancy; give mmd or student_teacher"
    ):
        drmmd_descent(0.1, damping=0.1).init(key, potential(jnp.sum), Particles.uniform(jnp.ones((2, 1))))
    with pytest.raises(ValueError, match=r"drmmd_descent: damping=-1.0; give a positive number"):
        drmmd_descent(0.1, damping=-1.0)
