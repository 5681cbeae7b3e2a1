"""Kernels against autodiff of their formulas, pair by pair, and against laws of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import pdist

from pwgf_jax.kernels import (
    coulomb,
    de_regularised,
    energy,
    feature,
    gaussian,
    imq,
    laplace,
    median_heuristic,
    random_features,
)

N, M = 5, 4


def rng(seed=0):
    return np.random.default_rng(seed)


def array(x, dtype=jnp.float64):
    return jnp.asarray(x, dtype)


def squared(x, y):
    return jnp.sum((x - y) ** 2)


def waves(x):
    return jnp.tanh(x @ array(np.arange(1.0, 3.0 * x.shape[1] + 1).reshape(x.shape[1], 3) / 4, x.dtype))


NEAR = jnp.asarray(rng(7).normal(size=(3, 2)))


def preconditioned(k, x, y, damping):
    """Woodbury's form with the inverse of a dense matrix, pair by pair."""
    at = lambda z: jax.vmap(lambda target: k(target, z))(NEAR)  # noqa: E731
    matrix = jax.vmap(at)(NEAR) + len(NEAR) * damping * jnp.eye(len(NEAR))
    return (1 + damping) / damping * (k(x, y) - at(x) @ jnp.linalg.solve(matrix, at(y)))


# radial kernels as functions of the squared distance
PROFILES = {
    "gaussian": (gaussian(1.3), lambda s: jnp.exp(-s / (2 * 1.3**2))),
    "laplace": (laplace(0.7), lambda s: jnp.exp(-jnp.sqrt(s) / 0.7)),
    "imq": (imq(0.7), lambda s: 1 / jnp.sqrt(1 + s / 0.49)),
    "imq 0.8": (imq(0.7, exponent=0.8), lambda s: (1 + s / 0.49) ** -0.8),
    "energy": (energy(), lambda s: -jnp.sqrt(s)),
    "energy 1.4": (energy(1.4), lambda s: -(s**0.7)),
    "coulomb in 1": (coulomb(1), lambda s: -jnp.sqrt(s)),
    "coulomb in 2": (coulomb(2), lambda s: -jnp.log(jnp.sqrt(s))),
    "coulomb in 3": (coulomb(3), lambda s: s**-0.5),
    "coulomb in 6": (coulomb(6), lambda s: s**-2),
    "sum": (gaussian(1.0) + 0.5 * energy(), lambda s: jnp.exp(-s / 2) - 0.5 * jnp.sqrt(s)),
    "product": (laplace(2.0) * gaussian(1.0) * 3, lambda s: 3 * jnp.exp(-jnp.sqrt(s) / 2 - s / 2)),
}

# name -> (kernel, its formula for one pair of points, dimension): above four dimensions distances are by products
KERNELS = {
    "gaussian": (gaussian(1.3), lambda x, y: jnp.exp(-squared(x, y) / (2 * 1.3**2)), 2),
    "coulomb in 6": (coulomb(6), lambda x, y: squared(x, y) ** -2, 6),
    "feature": (2 * feature(waves), lambda x, y: 2 / 3 * jnp.dot(waves(x[None])[0], waves(y[None])[0]), 2),
    "de-regularised": (
        0.5 * de_regularised(gaussian(1.3), NEAR, 0.3),
        lambda x, y: 0.5 * preconditioned(lambda x, y: jnp.exp(-squared(x, y) / (2 * 1.3**2)), x, y, 0.3),
        2,
    ),
    "mixed sum": (
        0.5 * (laplace(1.0) + feature(lambda x: x) * feature(lambda x: x)),
        lambda x, y: 0.5 * (jnp.exp(-jnp.sqrt(squared(x, y))) + jnp.dot(x, y) ** 2 / 4),
        2,
    ),
}


def cloud(dimension, seed=0):
    draw = rng(seed)
    x, v = draw.normal(size=(2, N, dimension))
    y, u = draw.normal(size=(2, M, dimension))
    return x, y, draw.normal(size=M), draw.normal(size=N), u, v


def by_autodiff(formula, x, y, w, a, u, v):
    def all_pairs(function, x, y):
        return jax.vmap(lambda p: jax.vmap(lambda q: function(p, q))(y))(x)

    gradient = jax.grad(formula)
    matrix = all_pairs(formula, x, y)
    return {
        "matrix": matrix,
        "values": matrix @ w,
        "values alone": matrix @ w,
        "gradients": jnp.einsum("nmd,m->nd", all_pairs(gradient, x, y), w),
        "mixed": jnp.einsum("nmde,me->nd", all_pairs(jax.jacfwd(gradient, 1), x, y), u),
        "local": jnp.einsum("nmde,m,ne->nd", all_pairs(jax.jacfwd(gradient, 0), x, y), w, v),
    }


def test_profiles_are_the_formulas_with_their_derivatives(tolerance):
    s = array(rng(0).uniform(0.2, 5, size=6))

    @jax.jit
    def expected(s):
        return {
            name: [jax.vmap(f)(s) for f in (rho, jax.grad(rho), jax.grad(jax.grad(rho)))]
            for name, (_, rho) in PROFILES.items()
        }

    found = jax.jit(lambda s: {name: kernel.profile(s) for name, (kernel, _) in PROFILES.items()})
    for name, derivatives in expected(s).items():
        for dtype in (jnp.float64, jnp.float32):
            for value, exact in zip(found(s.astype(dtype))[name], derivatives, strict=True):
                assert value.dtype == dtype
                np.testing.assert_allclose(value, exact, rtol=tolerance(dtype), err_msg=name)


@pytest.mark.parametrize("name", KERNELS)
def test_sums_and_second_derivatives_are_those_of_the_formula(name, tolerance):
    kernel, formula, dimension = KERNELS[name]
    arguments = tuple(map(array, cloud(dimension)))

    @jax.jit
    def found(kernel, x, y, w, a, u, v):
        values, gradients = kernel.sums(x, y, w)
        return {
            "matrix": kernel(x, y),
            "values": values,
            "values alone": kernel.values(x, y, w),
            "gradients": gradients,
            "mixed": kernel.mixed(x, y, u),
            "local": kernel.local(x, y, w, v),
        }

    expected = jax.jit(lambda *arguments: by_autodiff(formula, *arguments))(*arguments)
    for dtype in (jnp.float64, jnp.float32):
        for field, value in found(kernel, *(array(z, dtype) for z in arguments)).items():
            assert value.dtype == dtype
            scale = np.max(np.abs(expected[field]))
            np.testing.assert_allclose(value, expected[field], atol=tolerance(dtype) * (1 + scale), err_msg=field)


@pytest.mark.parametrize("name", ["coulomb in 6", "mixed sum"])
def test_the_quadratic_form_and_the_diagonal_are_the_matrix(name):
    kernel, _, dimension = KERNELS[name]
    x, _, _, a, *_ = map(array, cloud(dimension))
    matrix, diagonal, quadratic = jax.jit(lambda: (kernel(x, x), kernel.diagonal(x), kernel.quadratic(x, a)))()
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-13)
    np.testing.assert_allclose(diagonal, jnp.diagonal(matrix), atol=1e-13)
    np.testing.assert_allclose(quadratic, a @ matrix @ a, rtol=1e-12)


def test_chunks_change_memory_and_nothing_else():
    x, y, w, a, u, v = map(array, cloud(2))
    kernel = gaussian(1.0)

    @jax.jit
    def all_of():
        return [
            (
                kernel.sums(x, y, w, chunk_size=size),
                kernel.values(x, y, w, chunk_size=size),
                kernel.mixed(x, y, u, chunk_size=size),
                kernel.local(x, y, w, v, chunk_size=size),
                kernel.quadratic(x, a, chunk_size=size),
            )
            for size in (None, 1, 3)
        ]

    whole, *others = all_of()
    for other in others:
        for found, expected in zip(jax.tree.leaves(other), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-13)


# --- derivatives ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sums_can_be_differentiated_twice_in_everything():
    """Gradient and Hessian product in lengthscale, points and weights, against autodiff of the matrix."""
    x, y, w, a, u, v = map(array, cloud(2))
    arguments = array(1.3), x, y, w, a
    direction = array(0.7), v, u, w + 1, 2 * a - 1

    def composed(values, gradients, quadratic):
        return quadratic**2 + jnp.sum(jnp.sin(values)) + jnp.sum(gradients**2)

    def ours(ell, x, y, w, a):
        k = gaussian(ell)
        return composed(*k.sums(x, y, w), k.quadratic(x, a))

    def naive(ell, x, y, w, a):
        def matrix(x, y):
            return jnp.exp(-jnp.sum((x[:, None] - y[None]) ** 2, axis=2) / (2 * ell**2))

        def values(x):
            return matrix(x, y) @ w

        gradients = jax.grad(lambda x: jnp.sum(values(x)))(x)
        return composed(values(x), gradients, a @ matrix(x, x) @ a)

    @jax.jit
    def derivatives(arguments, direction):
        return [jax.jvp(jax.grad(f, argnums=(0, 1, 2, 3, 4)), arguments, direction) for f in (ours, naive)]

    found, expected = derivatives(arguments, direction)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.max(np.abs(other)) > 1e-2
        np.testing.assert_allclose(one, other, atol=1e-11)


def passes(function, *arguments):
    """How often a function computes the kernel matrix."""
    return str(jax.make_jaxpr(function)(*arguments)).count(" exp ")


def test_derivatives_take_one_pass_over_the_pairs():
    x, y, w, a, _, v = map(array, cloud(3))
    kernel = gaussian(1.0)
    assert passes(lambda x: kernel(x, y), x) == 1
    assert passes(lambda x: kernel.sums(x, y, w, chunk_size=2), x) == 1
    assert passes(jax.value_and_grad(lambda x: a @ kernel.values(x, y, w)), x) == 1
    gradient = jax.value_and_grad(lambda x: kernel.quadratic(x, a))
    assert passes(gradient, x) == 1
    # one more for the product of the Hessian, local and mixed together, and one for the derivative of the value
    assert passes(lambda x: jax.jvp(gradient, (x,), (v,)), x) == 3


def test_parameters_may_be_traced():
    x, y, w, *_ = map(array, cloud(2))
    scales = array([0.5, 2.0])
    found = jax.jit(jax.vmap(lambda ell: (gaussian(ell) + 2 * laplace(ell)).sums(x, y, w)[0]))(scales)
    for row, scale in zip(found, scales, strict=True):
        kernel = gaussian(float(scale)) + 2 * laplace(float(scale))
        np.testing.assert_allclose(row, kernel(x, y) @ w, rtol=1e-12)


# --- coincident points ------------------------------------------------------------------------------------------------

# name -> (kernel, dimension, value at zero)
SINGULAR = {
    "laplace": (laplace(0.7), 3, 1.0),
    "energy": (energy(0.5), 6, 0.0),
    "coulomb in 2": (coulomb(2), 2, 0.0),
    "coulomb in 7": (coulomb(7), 7, 0.0),
}


@pytest.mark.parametrize("name", SINGULAR)
def test_a_coincident_pair_exerts_no_force_has_no_curvature_and_its_value_at_zero(name, dtype, tolerance):
    kernel, dimension, at_zero = SINGULAR[name]
    far, here, there = 30.0 + rng(2).normal(size=(3, 1, dimension))  # away from the origin: rounding is relative to it
    x, twice = array(here, dtype), array(np.concatenate([here, far, here]), dtype)
    w, v, u = array([0.3, 0.5, 0.2], dtype), *(array(rng(3).normal(size=(n, dimension)), dtype) for n in (1, 3))
    pair = array(np.concatenate([here, there, here]), dtype)

    @jax.jit
    def both():
        def all_of(y, w, u):
            return *kernel.sums(x, y, w), kernel.local(x, y, w, v), kernel.mixed(x, y, u)

        # the matrix obeys the rule under plain autodiff too
        by_autodiff = jax.grad(lambda x: jnp.sum(w[:, None] * kernel(x, x) * w[None]) / 2)(pair)
        only = slice(1, 2)
        return all_of(twice, w, u), all_of(twice[only], w[only], u[only]), by_autodiff, kernel.sums(pair, pair, w)[1]

    (values, *fields), (alone, *expected), by_autodiff, gradients = both()
    np.testing.assert_allclose(values, alone + at_zero * 0.5, rtol=tolerance(dtype))
    for found, field in zip(fields, expected, strict=True):
        np.testing.assert_allclose(found, field, rtol=tolerance(dtype), atol=tolerance(dtype) * np.max(np.abs(field)))
    np.testing.assert_allclose(by_autodiff, w[:, None] * gradients, atol=tolerance(dtype) * np.max(np.abs(by_autodiff)))


def test_a_point_that_is_worked_out_twice_is_still_where_it_is(dtype):
    """Points drawn within a compiled program are made again in every loop that reads them, rounded in another way."""
    k, w = coulomb(2), jnp.full(20, 1 / 20, dtype)

    def forces(key):
        x = 3 + 0.5 * jax.random.normal(key, (20, 2), dtype)
        return k.sums(x, x, w)[1], k(x, x)

    key = jax.random.key(0)
    for found, expected in zip(jax.jit(forces)(key), forces(key), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_smooth_kernels_have_their_curvature_at_coincident_points(dtype, tolerance):
    v, x = array(rng(1).normal(size=(1, 6)), dtype), jnp.full((1, 6), 30.0, dtype)
    k = gaussian(2.0)

    @jax.jit
    def both():
        along = jax.jvp(jax.grad(lambda p: k(p, x)[0, 0]), (x,), (v,))[1]  # autodiff of the matrix
        return k.mixed(x, x, v), along

    mixed, along = both()
    np.testing.assert_allclose(mixed, v / 4, rtol=tolerance(dtype))
    np.testing.assert_allclose(along, -v / 4, rtol=tolerance(dtype))


def test_sums_and_products_follow_their_parts_at_coincident_points():
    x, v = jnp.zeros((1, 2)), jnp.ones((1, 2))
    kernel = 3 * (gaussian(1.0) * laplace(1.0)) + energy()
    mixed, values = jax.jit(lambda: (kernel.mixed(x, x, v), kernel(x, x)))()
    np.testing.assert_allclose(mixed, 3 * v)  # that of the smooth factor, the other being one
    np.testing.assert_allclose(values, [[3.0]])


@pytest.mark.parametrize("dimension", [2, 3, 6])
def test_the_coulomb_kernel_is_harmonic(dimension):
    s = array(rng(0).uniform(0.2, 5, size=6))
    _, slope, curvature = coulomb(dimension).profile(s)
    assert np.min(np.abs(slope)) > 1e-4
    np.testing.assert_allclose(2 * dimension * slope, -4 * s * curvature, rtol=1e-12)  # the trace of ∇₁∇₁k is zero


def test_the_energy_kernel_is_the_coulomb_kernel_in_one_dimension():
    assert coulomb(1) == energy()


# --- features ---------------------------------------------------------------------------------------------------------


def test_random_features_are_unbiased_with_the_stated_error(key):
    count = 50
    x, y = array(rng(1).normal(size=(N, 3))), array(rng(2).normal(size=(M, 3)))
    draw = jax.jit(jax.vmap(lambda key: random_features(key, gaussian(1.5), 3, count)(x, y)))
    errors = np.asarray(draw(jax.random.split(key, 400))) - np.asarray(gaussian(1.5)(x, y))
    np.testing.assert_array_less(np.abs(np.mean(errors, axis=0)), 5 * np.std(errors, axis=0) / 20)
    rms = np.sqrt(np.mean(errors**2, axis=0))
    np.testing.assert_array_less(rms, 1.2 / np.sqrt(2 * count))
    assert np.max(rms) > 0.3 / np.sqrt(2 * count)


def test_random_features_take_the_dtype_of_the_points(dtype, key):
    x = array(rng(1).normal(size=(N, 3)), dtype)
    matrix = jax.jit(lambda: random_features(key, gaussian(array(1.5, dtype)), 3, 7)(x, x))()
    assert matrix.dtype == dtype
    np.testing.assert_allclose(np.diag(matrix), 1, rtol=100 * float(jnp.finfo(dtype).eps))


def test_features_of_structured_points():
    kernel = feature(lambda points: points["a"] * jnp.tanh(points["w"]))
    x = {"a": jnp.ones((3, 2)), "w": jnp.full((3, 2), 0.5)}
    (values, gradients), mixed = jax.jit(lambda: (kernel.sums(x, x, jnp.ones(3)), kernel.mixed(x, x, x)))()
    np.testing.assert_allclose(values, 3 * np.tanh(0.5) ** 2)
    np.testing.assert_allclose(gradients["a"], np.full((3, 2), 1.5 * np.tanh(0.5) ** 2))
    assert jax.tree.structure(mixed) == jax.tree.structure(x)


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_the_median_heuristic_is_the_median_distance(dtype):
    x, y = rng(0).normal(size=(6, 3)), rng(1).normal(size=(5, 3))
    for found, points in (
        (jax.jit(median_heuristic)(array(x, dtype)), x),
        (jax.jit(median_heuristic)(array(x, dtype), array(y, dtype)), np.concatenate([x, y])),
    ):
        assert found.dtype == dtype
        np.testing.assert_allclose(found, np.median(pdist(points)), rtol=100 * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: gaussian(0.0), ValueError, "gaussian: lengthscale=0.0; give a positive number"),
        (lambda: laplace(-1.0), ValueError, "laplace: lengthscale=-1.0"),
        (lambda: imq(float("nan")), ValueError, "imq: lengthscale=nan"),
        (lambda: imq(1.0, exponent=0.0), ValueError, "imq: exponent=0.0"),
        (lambda: energy(2.0), ValueError, "energy: exponent=2.0; choose 0 < exponent < 2"),
        (lambda: coulomb(0), ValueError, "coulomb: dimension=0"),
        (lambda: gaussian(1.0) * feature(jnp.tanh), TypeError, r"no closed form for Radial \* Feature"),
        (lambda: (gaussian(1.0) + feature(jnp.tanh)) * energy(), TypeError, r"no closed form for Sum \* Radial"),
        (lambda: random_features(jax.random.key(0), energy(), 2, 10), TypeError, "not Gaussian"),
        (lambda: random_features(jax.random.key(0), gaussian(1.0), 2, 0), ValueError, "count=0"),
        (lambda: median_heuristic(jnp.zeros((1, 2))), ValueError, "1 point; give at least two"),
        (
            lambda: gaussian(1.0).sums(jnp.zeros((2, 2)), jnp.zeros((2, 2)), jnp.zeros(2), chunk_size=0),
            ValueError,
            "chunk_size=0; give a positive number of rows",
        ),
    ],
)
def test_impossible_kernels_are_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()
