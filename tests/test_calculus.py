from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from pwgf_jax import (
    Particles,
    first_variation,
    functionals,
    hessian_matrix,
    value_and_wasserstein_gradient,
    wasserstein_gradient,
    wasserstein_hessian,
)
from pwgf_jax.calculus import Part, integral_product
from pwgf_jax.forms import LinearForm, MomentForm, PairwiseForm, SumForm
from tests.oracles import closed_forms
from tests.oracles.closed_forms import mean_quartic

PARTS: tuple[Part, ...] = get_args(Part)


def rng(seed=0):
    return np.random.default_rng(seed)


def curved(mu):
    """Neither moments nor pairs declared; a functional of points of any structure with all derivatives alive."""
    flat = jax.vmap(lambda point: ravel_pytree(point)[0])(mu.points)
    mean, spread = mu.weights @ flat, mu.weights @ jnp.cos(jnp.sum(flat**2, axis=1))
    return jnp.sum(mean**2) * spread + jnp.sum(jnp.sin(mean)) + spread**3


def network(dtype, seed=0):
    draw = rng(seed)
    inputs, targets = draw.normal(size=(7, 2)), draw.normal(size=(7, 1))
    return functionals.matrix_factorization(jnp.asarray(inputs, dtype), jnp.asarray(targets, dtype))


def bump(x, y):
    return jnp.exp(-jnp.sum((x - y) ** 2) / 2) + jnp.sum(x * y) ** 2 / 4


def weights_of(dtype, count):
    """Unequal, the second one zero."""
    raw = rng(9).uniform(0.5, 2.0, count)
    raw[1] = 0
    return jnp.asarray(raw / raw.sum(), dtype)


def points_of(shape, dtype, count=4, seed=1) -> Any:
    draw = rng(seed)
    sizes = {"array": (count, 3), "lattice": (count, 8, 3), "numbers": (count,)}
    if shape == "dict":
        return {
            "a": jnp.asarray(draw.normal(size=(count, 1)), dtype),
            "w": jnp.asarray(draw.normal(size=(count, 2)), dtype),
        }
    return jnp.asarray(draw.normal(size=sizes[shape]) * (0.3 if shape == "lattice" else 1), dtype)


def measure(shape, dtype, weighted=True, count=4):
    points = points_of(shape, dtype, count)
    return Particles(points, weights_of(dtype, count)) if weighted else Particles.uniform(points)


# name -> (functional, shape of its points)
CASES = {
    "plain": (lambda dtype: curved, "array"),
    "plain lattice": (lambda dtype: curved, "lattice"),
    "plain numbers": (lambda dtype: curved, "numbers"),
    "moments": (network, "array"),
    "moments dict": (network, "dict"),
    "pairs": (lambda dtype: functionals.interaction(bump), "array"),
    "potential": (lambda dtype: functionals.potential(lambda x: jnp.sum(jnp.sin(x)) * x[0]), "array"),
    "sum": (lambda dtype: 2 * network(dtype) - functionals.interaction(bump).confined(0.5) + curved, "array"),
}
SMALL = ["plain", "moments dict", "pairs"]
DIFFERENCED = ["plain", "plain lattice", "moments dict", "pairs", "sum"]


def flat(tree):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def random_like(tree, seed):
    draw = rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(draw.normal(size=x.shape), x.dtype), tree)


def along(x, v, t):
    return jax.tree.map(lambda a, b: a + t * b, x, v)


STEP = 6e-6  # the cube root of eps, which central differences want


# --- against differences of F itself ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_first_variation_is_the_derivative_in_the_weight_of_an_added_particle(case):
    make, shape = CASES[case]
    F, mu = make(jnp.float64), measure(shape, jnp.float64)
    queries = points_of(shape, jnp.float64, count=3, seed=5)
    found = jax.jit(lambda mu, at: first_variation(F, mu)(at))(mu, queries)
    assert found.shape == (3,)

    @jax.jit
    def value(mass):
        points = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), mu.points, queries)
        return F(Particles(points, jnp.concatenate([mu.weights, mass])))

    for i in range(3):
        unit = jnp.zeros(3).at[i].set(STEP)
        np.testing.assert_allclose(found[i], (value(unit) - value(-unit)) / (2 * STEP), atol=1e-8)


@pytest.mark.parametrize("case", ["plain", "moments", "pairs"])
def test_first_variation_at_the_particles_is_the_derivative_in_their_weights(case):
    make, shape = CASES[case]
    F, mu = make(jnp.float64), measure(shape, jnp.float64)
    found, by_weight = jax.jit(
        lambda mu: (first_variation(F, mu)(mu.points), jax.grad(lambda w: F(Particles(mu.points, w)))(mu.weights))
    )(mu)
    np.testing.assert_allclose(found, by_weight, atol=1e-12)


@pytest.mark.parametrize("case", DIFFERENCED)
def test_gradient_at_the_particles_is_the_derivative_in_a_point_by_its_weight(case):
    make, shape = CASES[case]
    F, mu = make(jnp.float64), measure(shape, jnp.float64)
    value, found = jax.jit(lambda mu: value_and_wasserstein_gradient(F, mu))(mu)
    at = jax.jit(lambda points: F(mu.moved_to(points)))
    np.testing.assert_allclose(value, at(mu.points), rtol=1e-12)
    assert jax.tree.structure(found) == jax.tree.structure(mu.points)
    for seed in range(3):
        v = random_like(mu.points, seed)
        slope = (at(along(mu.points, v, STEP)) - at(along(mu.points, v, -STEP))) / (2 * STEP)
        # the derivative along v is the inner product of L²(μ), which the particle of weight zero does not enter
        weighted = jax.tree.map(lambda u, w: jnp.einsum("n...,n...,n->", u, w, mu.weights), found, v)
        np.testing.assert_allclose(sum(jax.tree.leaves(weighted)), slope, atol=1e-8)
    for leaf in jax.tree.leaves(found):
        np.testing.assert_array_equal(leaf[1], 0)  # weight zero


@pytest.mark.parametrize("case", DIFFERENCED)
def test_gradient_at_queries_is_the_slope_of_the_first_variation(case):
    make, shape = CASES[case]
    F, mu = make(jnp.float64), measure(shape, jnp.float64)
    queries = points_of(shape, jnp.float64, count=3, seed=5)
    found = jax.jit(lambda at: wasserstein_gradient(F, mu, at))(queries)
    variation = jax.jit(lambda at: first_variation(F, mu)(at))
    v = random_like(queries, 6)
    slopes = (variation(along(queries, v, STEP)) - variation(along(queries, v, -STEP))) / (2 * STEP)
    products = sum(
        np.sum(np.asarray(a * b).reshape(3, -1), axis=1)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(v), strict=True)
    )
    np.testing.assert_allclose(products, slopes, atol=1e-8)


@pytest.mark.parametrize("case", DIFFERENCED)
def test_integral_hessian_moves_the_measure_and_local_hessian_the_query(case):
    make, shape = CASES[case]
    F, mu = make(jnp.float64), measure(shape, jnp.float64)
    gradient = jax.jit(lambda points, at: wasserstein_gradient(F, mu.moved_to(points), at))
    v, present = random_like(mu.points, 3), np.asarray(mu.weights) > 0
    moved = {
        "integral": lambda t: gradient(along(mu.points, v, t), mu.points),
        "local": lambda t: gradient(mu.points, along(mu.points, v, t)),
        "full": lambda t: gradient(along(mu.points, v, t), along(mu.points, v, t)),
    }
    products = jax.jit(lambda mu, v: {part: wasserstein_hessian(F, mu, part)(v) for part in PARTS})(mu, v)
    for part in PARTS:
        difference = jax.tree.map(lambda a, b: (a - b) / (2 * STEP), moved[part](STEP), moved[part](-STEP))
        for found, expected in zip(jax.tree.leaves(products[part]), jax.tree.leaves(difference), strict=True):
            np.testing.assert_allclose(found[present], expected[present], atol=3e-8)
            np.testing.assert_array_equal(found[~present], 0)


# --- Hessians as matrices ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SMALL)
def test_full_hessian_is_n_times_the_euclidean_one(case, dtype, tolerance):
    make, shape = CASES[case]
    F, mu = make(dtype), measure(shape, dtype, weighted=False)
    start, unravel = ravel_pytree(mu.points)

    @jax.jit
    def matrices(mu, start):
        dense = mu.size * jax.hessian(lambda x: F(mu.moved_to(unravel(x))))(start)
        return {part: hessian_matrix(F, mu, part) for part in PARTS}, dense

    found, dense = matrices(mu, start)
    scale = float(jnp.max(jnp.abs(dense))) + 1
    np.testing.assert_allclose(found["full"], dense, atol=tolerance(dtype) * scale)
    np.testing.assert_allclose(found["integral"] + found["local"], found["full"], atol=tolerance(dtype) * scale)
    np.testing.assert_allclose(found["integral"], found["integral"].T, atol=tolerance(dtype) * scale)
    # block diagonal: the local part does not couple particles
    block = np.kron(np.eye(4), np.ones((start.size // 4,) * 2)) > 0
    if shape != "dict":
        np.testing.assert_array_equal(np.asarray(found["local"])[~block], 0)


@pytest.mark.parametrize("case", SMALL)
def test_every_part_is_self_adjoint_in_the_weighted_inner_product(case):
    make, shape = CASES[case]
    F, mu = make(jnp.float64), measure(shape, jnp.float64)
    spread = jax.tree.map(lambda x: jnp.broadcast_to(mu.weights.reshape(-1, *[1] * (x.ndim - 1)), x.shape), mu.points)
    weights = flat(spread)
    found = jax.jit(lambda mu: {part: hessian_matrix(F, mu, part) for part in PARTS})(mu)
    for part in PARTS:
        bilinear = weights[:, None] * np.asarray(found[part])  # block (i, j) of H carries w_j
        np.testing.assert_allclose(bilinear, bilinear.T, atol=1e-10)
        np.testing.assert_array_equal(bilinear[weights == 0], 0)
    np.testing.assert_allclose(found["integral"] + found["local"], found["full"], atol=1e-10)


def test_mean_quartic_has_its_closed_forms(dtype, tolerance):
    mu = measure("array", dtype)
    mean = np.asarray(mu.weights, np.float64) @ np.asarray(mu.points, np.float64)
    queries = points_of("array", dtype, count=5, seed=7)
    expected = closed_forms.mean_quartic_gradient(mean)
    v, kernel = random_like(mu.points, 3), closed_forms.mean_quartic_kernel(mean)
    present = np.asarray(mu.weights) > 0

    @jax.jit
    def derivatives(mu, queries, v):
        return {
            "first variation": first_variation(mean_quartic, mu)(queries),
            "gradient": wasserstein_gradient(mean_quartic, mu),
            "gradient at queries": wasserstein_gradient(mean_quartic, mu, queries),
            "integral": hessian_matrix(mean_quartic, mu, "integral"),
            "local": hessian_matrix(mean_quartic, mu, "local"),
            "product at queries": integral_product(mean_quartic, mu, v, queries),
            "product at one": integral_product(mean_quartic, mu, v, queries[0]),
        }

    product = np.asarray(mu.weights) @ np.asarray(v) @ kernel
    closed = {
        "first variation": np.asarray(queries) @ expected,
        "gradient": present[:, None] * expected,
        "gradient at queries": np.tile(expected, (5, 1)),
        "integral": np.kron(present[:, None] * np.asarray(mu.weights)[None], kernel),
        "local": np.zeros((12, 12)),
        "product at queries": np.tile(product, (5, 1)),
        "product at one": product,
    }
    found = derivatives(mu, queries, v)
    for name, value in closed.items():
        np.testing.assert_allclose(found[name], value, atol=tolerance(dtype, 10), err_msg=name)


def test_potential_at_diracs_has_all_its_curvature_in_the_local_part(dtype, tolerance):
    # At the saddle of V the gradient vanishes, H is blind, and H' is the Hessian of V (reference, trap 4).
    F = functionals.potential(lambda x: (x[0] ** 2 - x[1] ** 2) / 2)
    mu = Particles.uniform(jnp.zeros((3, 2), dtype))
    gradient, H = jax.jit(lambda mu: (wasserstein_gradient(F, mu), {p: hessian_matrix(F, mu, p) for p in PARTS}))(mu)
    expected = np.kron(np.eye(3), np.diag([1.0, -1.0]))
    np.testing.assert_array_equal(gradient, 0)
    np.testing.assert_array_equal(H["integral"], 0)
    np.testing.assert_allclose(H["local"], expected, atol=tolerance(dtype))
    np.testing.assert_allclose(H["full"], expected, atol=tolerance(dtype))


# --- one measure, many ways of writing it -----------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["moments", "moments dict", "pairs", "potential", "sum"])
def test_a_declared_structure_changes_no_derivative(case, tolerance):
    dtype = jnp.float64
    make, shape = CASES[case]
    F, mu = make(dtype), measure(shape, dtype)
    queries, v = points_of(shape, dtype, count=3, seed=5), random_like(mu.points, 3)
    declares = isinstance(F, LinearForm | MomentForm | PairwiseForm | SumForm)
    assert declares

    def derivatives(F):
        return {
            "value": F(mu),
            "first variation": first_variation(F, mu)(queries),
            "gradient": wasserstein_gradient(F, mu),
            "gradient at queries": wasserstein_gradient(F, mu, queries),
            "product at queries": integral_product(F, mu, v, queries),
            "hessians": [wasserstein_hessian(F, mu, part)(v) for part in PARTS],
        }

    declared, hidden = jax.jit(lambda: (derivatives(F), derivatives(lambda mu: F(mu))))()
    for name in declared:
        scale = np.max(np.abs(flat(declared[name]))) + 1
        np.testing.assert_allclose(
            flat(hidden[name]), flat(declared[name]), atol=tolerance(dtype) * scale, err_msg=name
        )


@pytest.mark.parametrize("case", ["plain", "moments", "pairs"])
def test_derivatives_see_the_measure_and_not_its_particles(case, tolerance):
    dtype = jnp.float64
    make, shape = CASES[case]
    F, mu = make(dtype), measure(shape, dtype, weighted=False)
    queries = points_of(shape, dtype, count=3, seed=5)

    def derivatives(mu, v):
        return {
            "first variation": first_variation(F, mu)(queries),
            "gradient at queries": wasserstein_gradient(F, mu, queries),
            "gradient": wasserstein_gradient(F, mu)[:4],
            "hessians": [wasserstein_hessian(F, mu, part)(v)[:4] for part in PARTS],
        }

    v = random_like(mu.points, 3)
    doubled = Particles(jnp.concatenate([mu.points, mu.points]), jnp.concatenate([mu.weights, mu.weights]) / 2)
    ghost = Particles(jnp.concatenate([mu.points, 9 + mu.points]), jnp.concatenate([mu.weights, 0 * mu.weights]))
    expected, *others = jax.jit(
        lambda: [derivatives(mu, v), *[derivatives(nu, jnp.concatenate([v, v])) for nu in (doubled, ghost)]]
    )()
    for other in others:
        for name, value in expected.items():
            scale = np.max(np.abs(flat(value))) + 1
            np.testing.assert_allclose(flat(other[name]), flat(value), atol=tolerance(dtype) * scale, err_msg=name)


def test_weight_zero_is_silent_at_the_particle_and_true_at_a_query(tolerance):
    mu = measure("array", jnp.float32)
    mean = np.asarray(mu.weights, np.float64) @ np.asarray(mu.points, np.float64)
    assert mu.weights[1] == 0
    silent, true = jax.jit(
        lambda mu: (wasserstein_gradient(mean_quartic, mu), wasserstein_gradient(mean_quartic, mu, mu.points))
    )(mu)
    np.testing.assert_array_equal(silent[1], 0)
    np.testing.assert_allclose(true[1], closed_forms.mean_quartic_gradient(mean), atol=tolerance(jnp.float32, 10))


@pytest.mark.parametrize("shape", ["array", "dict", "lattice", "numbers"])
def test_one_query_point_is_a_batch_of_one(shape, tolerance):
    dtype = jnp.float32
    mu, queries = measure(shape, dtype), points_of(shape, dtype, count=2, seed=5)
    one = jax.tree.map(lambda x: x[0], queries)
    both = jax.jit(lambda at: (first_variation(curved, mu)(at), wasserstein_gradient(curved, mu, at)))
    variation, gradient = both(one)
    assert variation.shape == ()
    assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, one)
    variations, gradients = both(queries)
    np.testing.assert_allclose(variation, variations[0], rtol=tolerance(dtype, 10))
    np.testing.assert_allclose(flat(gradient), flat(jax.tree.map(lambda x: x[0], gradients)), atol=tolerance(dtype, 10))


def test_an_operator_is_linear_and_linearised_once():
    calls = []

    def counted(mu):
        calls.append(1)
        return curved(mu)

    mu = measure("array", jnp.float64)
    u, v = random_like(mu.points, 1), random_like(mu.points, 2)

    @jax.jit
    def products(mu):
        H = wasserstein_hessian(counted, mu)
        made = len(calls)
        pairs = (H(2 * u - v), 2 * H(u) - H(v)), (H.squared()(u), H(H(u)))
        assert len(calls) == made
        return pairs

    for found, expected in products(mu):
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_derivatives_map_over_measures(dtype, tolerance):
    points = jnp.stack([points_of("array", dtype, seed=s) for s in range(3)])
    weights = weights_of(dtype, 4)

    def both(points):
        mu = Particles(points, weights)
        return wasserstein_gradient(curved, mu), wasserstein_hessian(curved, mu)(points)

    mapped = jax.jit(jax.vmap(both))(points)
    single = jax.jit(both)
    for i in range(3):
        for a, b in zip(mapped, single(points[i]), strict=True):
            np.testing.assert_allclose(a[i], b, atol=tolerance(dtype, 10))


@pytest.mark.parametrize("case", ["plain", "moments", "pairs"])
def test_float32_agrees_with_float64(case, tolerance):
    make, shape = CASES[case]
    found = {}
    for dtype in (jnp.float32, jnp.float64):
        mu = measure(shape, dtype)
        F = make(dtype)
        found[dtype] = jax.jit(lambda mu, F=F: (wasserstein_gradient(F, mu), wasserstein_hessian(F, mu)(mu.points)))(mu)
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(found[dtype]))
    scale = np.max(np.abs(flat(found[jnp.float64])))
    np.testing.assert_allclose(flat(found[jnp.float32]), flat(found[jnp.float64]), atol=tolerance(jnp.float32) * scale)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_misshapen_queries_are_refused():
    mu = measure("array", jnp.float32)
    with pytest.raises(ValueError, match=r"query points have shapes \[\(2, 4\)\]; a query point has shapes \[\(3,\)\]"):
        wasserstein_gradient(mean_quartic, mu, jnp.ones((2, 4), jnp.float32))
    with pytest.raises(ValueError, match="give query points of the particles' structure"):
        first_variation(mean_quartic, mu)({"a": jnp.ones((2, 3), jnp.float32)})


def test_a_dense_matrix_beyond_memory_is_refused_before_it_is_made():
    mu = Particles.uniform(jnp.zeros((20_000, 10), jnp.float32))
    with pytest.raises(ValueError, match=r"200000 x 200000 matrix takes 160 GB, over memory_limit=4e\+09"):
        hessian_matrix(mean_quartic, mu)
    small = Particles.uniform(jnp.zeros((2, 2), jnp.float32))
    assert jax.eval_shape(lambda mu: hessian_matrix(mean_quartic, mu, memory_limit=64.0), small).shape == (4, 4)
    with pytest.raises(ValueError, match="memory_limit"):
        hessian_matrix(mean_quartic, small, memory_limit=63.0)


def test_an_unknown_part_is_refused():
    mu = measure("array", jnp.float32)
    with pytest.raises((ValueError, TypeError), match="part"):  # TypeError: the annotation, checked in tests only
        wasserstein_hessian(mean_quartic, mu, "both")  # pyright: ignore[reportArgumentType]
