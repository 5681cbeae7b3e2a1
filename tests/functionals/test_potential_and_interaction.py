import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwgf_jax import Particles, first_variation, hessian_matrix, wasserstein_gradient
from pwgf_jax.functionals import interaction, potential

POINTS = np.random.default_rng(0).normal(size=(4, 2))
QUERIES = np.random.default_rng(1).normal(size=(3, 2))
WEIGHTS = np.array([0.4, 0.1, 0.3, 0.2])


def derivatives(F, dtype):
    @jax.jit
    def all_of(mu, queries):
        return {
            "value": F(mu),
            "first variation": first_variation(F, mu)(queries),
            "gradient": wasserstein_gradient(F, mu),
            "gradient at queries": wasserstein_gradient(F, mu, queries),
            "integral": hessian_matrix(F, mu, "integral"),
            "local": hessian_matrix(F, mu, "local"),
        }

    mu = Particles(jnp.asarray(POINTS, dtype), jnp.asarray(WEIGHTS, dtype))
    return all_of(mu, jnp.asarray(QUERIES, dtype))


def check(found, expected, atol):
    for field, value in expected.items():
        np.testing.assert_allclose(found[field], value, atol=atol * (1 + np.max(np.abs(value))), err_msg=field)


def blocks(local):
    return np.einsum("nij,nm->nimj", local, np.eye(len(local))).reshape(8, 8)


def test_potential_has_its_closed_forms(dtype, tolerance):
    found = derivatives(potential(lambda x: jnp.sum(jnp.sin(x)) + x[0] * x[1]), dtype)

    def gradient(x):
        return np.cos(x) + x[:, ::-1]

    def value(x):
        return np.sum(np.sin(x), axis=1) + x[:, 0] * x[:, 1]

    expected = {
        "value": WEIGHTS @ value(POINTS),
        "first variation": value(QUERIES),
        "gradient": gradient(POINTS),
        "gradient at queries": gradient(QUERIES),
        "integral": np.zeros((8, 8)),
        "local": blocks(-np.sin(POINTS)[:, :, None] * np.eye(2) + np.array([[0, 1], [1, 0]])),
    }
    check(found, expected, tolerance(dtype))


@pytest.mark.parametrize("lopsided", [False, True])
def test_interaction_has_the_closed_forms_of_its_symmetric_part(lopsided, dtype, tolerance):
    """W = e^{−|x−y|²/2}, to which an antisymmetric part adds nothing."""

    def energy(x, y):
        extra = jnp.sum(x**3 - y**3) if lopsided else 0
        return jnp.exp(-jnp.sum((x - y) ** 2) / 2) + extra

    found = derivatives(interaction(energy), dtype)

    def pairs(x, y):
        difference = x[:, None] - y[None]
        kernel = np.exp(-np.sum(difference**2, axis=-1) / 2)
        return difference, kernel

    def gradient(x):
        difference, kernel = pairs(x, POINTS)
        return -np.einsum("nm,nmi,m->ni", kernel, difference, WEIGHTS)

    difference, kernel = pairs(POINTS, POINTS)
    outer = np.einsum("nmi,nmj->nmij", difference, difference)
    curvature = kernel[:, :, None, None] * (outer - np.eye(2))  # ∇²_x W = −∇_x∇_y W
    expected = {
        "value": WEIGHTS @ kernel @ WEIGHTS / 2,
        "first variation": pairs(QUERIES, POINTS)[1] @ WEIGHTS,
        "gradient": gradient(POINTS),
        "gradient at queries": gradient(QUERIES),
        "integral": np.einsum("nmij,m->nimj", -curvature, WEIGHTS).reshape(8, 8),
        "local": blocks(np.einsum("nmij,m->nij", curvature, WEIGHTS)),
    }
    check(found, expected, tolerance(dtype))


def test_energies_with_arrays_of_their_own_are_pytrees():
    centres = jnp.asarray([[0.0, 0.0], [1.0, 2.0]])

    def value(centre):
        return potential(jax.tree_util.Partial(lambda c, x: jnp.sum((x - c) ** 2), centre))(
            Particles.uniform(jnp.ones((3, 2)))
        )

    np.testing.assert_allclose(jax.jit(jax.vmap(value))(centres), [2.0, 1.0])
    F = potential(jax.tree_util.Partial(lambda c, x: jnp.sum((x - c) ** 2), centres[0]))
    assert [leaf.shape for leaf in jax.tree.leaves(F)] == [(2,)]


def test_points_may_be_dicts(dtype):
    mu = Particles.uniform({"a": jnp.ones((3, 1), dtype), "w": jnp.full((3, 2), 2.0, dtype)})
    assert float(potential(lambda x: jnp.sum(x["a"]) + jnp.sum(x["w"]))(mu)) == 5
    assert float(interaction(lambda x, y: jnp.sum(x["a"] * y["a"]) * jnp.sum(x["w"] * y["w"]))(mu)) == 4
