"""Functions of the integral Hessian by the Gram matrix, against its eigenvectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwgf_jax import Particles, hessian_matrix, wasserstein_gradient, wasserstein_hessian
from pwgf_jax.functionals import mean_field_regression, mmd, potential, student_teacher
from pwgf_jax.gram import gram_function
from pwgf_jax.kernels import gaussian
from pwgf_jax.krylov import dense_function

DRAW = np.random.default_rng(4)
MU = Particles(jnp.asarray(DRAW.normal(size=(5, 4))), jnp.asarray([0.3, 0.0, 0.2, 0.4, 0.1]))
INPUTS, TARGETS = jnp.asarray(DRAW.normal(size=(3, 2))), jnp.asarray(DRAW.normal(size=(3, 2)))
F = mean_field_regression(INPUTS, TARGETS)
G = mean_field_regression(INPUTS[:2] + 1, TARGETS[:2])
REPEATED = mean_field_regression(INPUTS[jnp.array([0, 0, 1])], TARGETS)  # a Gram matrix that is singular

CASES = {
    "alone": F,
    "scaled": 3 * F,
    "confined": F.confined(0.7),
    "singular and confined": REPEATED.confined(0.7),
    "several": 0.5 * F + 2 * G + potential(lambda x: jnp.sin(x[0]) * x[1]) - 0.1 * potential(lambda x: x[2] ** 3),
}


@pytest.mark.parametrize("damped", [lambda t: 1 / (t + 0.1), lambda t: (t**2 + 1e-4) ** -0.5], ids=["sobolev", "wsfn"])
@pytest.mark.parametrize("name", CASES)
def test_the_gram_matrix_knows_every_function_of_the_integral_hessian(name, damped):
    @jax.jit
    def both(F, mu):
        gradient = wasserstein_gradient(F, mu)
        return gram_function(F, mu, damped), dense_function(wasserstein_hessian(F, mu), gradient, damped)

    found, expected = both(CASES[name], MU)
    np.testing.assert_allclose(found, expected, atol=1e-9 * np.max(np.abs(expected)))
    assert np.max(np.abs(expected)) > 1e-2
    np.testing.assert_array_equal(found[1], 0)  # weight zero


def test_the_local_part_alone_sees_a_confinement():
    parts = jax.jit(lambda F, G: [[hessian_matrix(H, MU, part) for H in (F, G)] for part in ("integral", "local")])
    (integral, same), (local, more) = parts(F, F.confined(0.7))
    np.testing.assert_allclose(integral, same, atol=1e-12)
    np.testing.assert_allclose(more - local, 0.7 * np.diag(np.repeat(np.asarray(MU.weights) > 0, 4)), atol=1e-12)


@pytest.mark.parametrize(
    ("F", "kinds"),
    [
        (mmd(INPUTS, gaussian(1.0)), "Mmd"),
        (F - 2 * G, "MeanFieldRegression"),
        (F + mmd(MU.points, gaussian(1.0)), "MeanFieldRegression, Mmd"),
        (potential(jnp.sum), "Potential"),
        (lambda mu: mu.weights[0], "function"),
    ],
)
def test_what_is_not_least_squares_is_refused(F, kinds):
    with pytest.raises(ValueError, match=f"needs a least-squares functional .* given {kinds}"):
        gram_function(F, MU, lambda t: t)


def test_a_student_is_of_least_squares():
    mu = Particles.uniform({"a": jnp.asarray(DRAW.normal(size=(3, 2))), "w": jnp.asarray(DRAW.normal(size=(3, 2, 2)))})
    S = student_teacher(INPUTS, TARGETS[:, :1]).confined(0.2)
    found, expected = jax.jit(
        lambda S: (
            gram_function(S, mu, lambda t: 1 / (t + 0.1)),
            dense_function(wasserstein_hessian(S, mu), wasserstein_gradient(S, mu), lambda t: 1 / (t + 0.1)),
        )
    )(S)
    for leaf in ("a", "w"):
        np.testing.assert_allclose(found[leaf], expected[leaf], atol=1e-10)
