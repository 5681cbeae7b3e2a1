"""½MMD² against the sum over all pairs and its autodiff, and against laws and identities of its own."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import energy_distance

from pwgf_jax import (
    Particles,
    first_variation,
    value_and_wasserstein_gradient,
    wasserstein_gradient,
    wasserstein_hessian,
)
from pwgf_jax.calculus import integral_product
from pwgf_jax.contract import check_functional
from pwgf_jax.forms import PairwiseForm
from pwgf_jax.functionals import coulomb_discrepancy, mmd
from pwgf_jax.kernels import energy, feature, gaussian, random_features

N, M, D = 5, 4, 3


def rng(seed=0):
    return np.random.default_rng(seed)


DRAW = rng(1)
POINTS, FIELD = DRAW.normal(size=(2, N, D))
TARGET = DRAW.normal(size=(M, D)) + 0.5
QUERIES = DRAW.normal(size=(3, D))
WEIGHTS = np.array([0.1, 0.3, 0.0, 0.35, 0.25])
TARGET_WEIGHTS = np.array([0.4, 0.1, 0.2, 0.3])


def array(x, dtype=jnp.float64):
    return jnp.asarray(x, dtype)


def measure(dtype=jnp.float64, weights=None):
    return Particles(array(POINTS, dtype), array(np.full(N, 1 / N) if weights is None else weights, dtype))


def target(dtype=jnp.float64):
    return Particles(array(TARGET, dtype), array(TARGET_WEIGHTS, dtype))


def cubes(x):
    """Features of unequal norms: a kernel that is not constant on the diagonal."""
    return jnp.concatenate([x, x**3 / 3], axis=1)


def feature_pair(x, y):
    return (x @ y + (x**3) @ (y**3) / 9) / 6


# name -> (kernel, its formula for one pair)
KERNELS = {
    "gaussian": (gaussian(1.2), lambda x, y: jnp.exp(-jnp.sum((x - y) ** 2) / (2 * 1.2**2))),
    "feature": (feature(cubes), feature_pair),
}


def naive(name, statistic):
    """The functional as the sum over pairs that it is."""
    pair = KERNELS[name][1]

    def mean(mu):
        x, w = mu.points, mu.weights
        products = w[:, None] * w[None] * jax.vmap(lambda p: jax.vmap(lambda q: pair(p, q))(x))(x)
        if statistic == "U":
            return jnp.sum(products * (1 - jnp.eye(len(w)))) / (1 - jnp.sum(w**2))
        return jnp.sum(products)

    def value(mu):
        nu = target()
        cross = jax.vmap(lambda p: jax.vmap(lambda q: pair(p, q))(nu.points))(mu.points)
        return mean(mu) / 2 - mu.weights @ cross @ nu.weights + mean(nu) / 2

    return value


@jax.jit
def derivatives(F, mu, queries, v):
    return {
        "value": F(mu),
        "first variation": first_variation(F, mu)(queries),
        "value and gradient": value_and_wasserstein_gradient(F, mu),
        "gradient at queries": wasserstein_gradient(F, mu, queries),
        "integral": wasserstein_hessian(F, mu)(v),
        "local": wasserstein_hessian(F, mu, "local")(v),
        "full": wasserstein_hessian(F, mu, "full")(v),
        "integral at queries": integral_product(F, mu, v, queries),
    }


@pytest.mark.parametrize(("name", "statistic"), [("gaussian", "V"), ("feature", "U")])
def test_closed_forms_are_the_autodiff_of_the_sum_over_pairs(name, statistic):
    plain = jax.tree_util.Partial(naive(name, statistic))
    expected = derivatives(plain, measure(weights=WEIGHTS), array(QUERIES), array(FIELD))
    F = mmd(target(), KERNELS[name][0], statistic=statistic, chunk_size=3)
    assert isinstance(F, PairwiseForm)
    found = derivatives(F, measure(weights=WEIGHTS), array(QUERIES), array(FIELD))
    for field, value in expected.items():
        for one, other in zip(jax.tree.leaves(found[field]), jax.tree.leaves(value), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-13 * (1 + np.max(np.abs(other))), err_msg=field)


@pytest.mark.slow
def test_single_precision_gives_the_same_numbers(tolerance):
    found = jax.jit(value_and_wasserstein_gradient)
    double, single = (found(mmd(target(t), gaussian(1.2)), measure(t, WEIGHTS)) for t in (jnp.float64, jnp.float32))
    for one, other in zip(single, double, strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, atol=tolerance(jnp.float32) * np.max(np.abs(other)))


@jax.jit
def own_term(F, mu):
    return 2 * (F(mu) - F.constant - mu.weights @ F.external(mu.points))


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["uniform", "weighted"])
def test_u_and_v_differ_by_the_self_term_and_the_normaliser(weights):
    kernel, mu = KERNELS["feature"][0], measure(weights=weights)
    V, U = (own_term(mmd(target(), kernel, statistic=statistic), mu) for statistic in ("V", "U"))
    matrix, w = np.asarray(kernel(mu.points, mu.points)), np.asarray(mu.weights)
    np.testing.assert_allclose(U, (V - w**2 @ np.diag(matrix)) / (1 - np.sum(w**2)), rtol=1e-12)
    if weights is None:  # the mean over the pairs of different particles
        np.testing.assert_allclose(U, (np.sum(matrix) - np.trace(matrix)) / (N * (N - 1)), rtol=1e-12)


@pytest.mark.slow
def test_v_keeps_the_contract_of_functionals_and_u_all_but_splitting():
    mu = measure(weights=WEIGHTS)
    check_functional(jax.jit(mmd(target(), gaussian(1.0)).__call__), mu)
    check_functional(jax.jit(coulomb_discrepancy(target()).__call__), mu)
    with pytest.raises(ValueError, match="when every particle is split"):  # a particle of weight zero passed
        check_functional(jax.jit(mmd(target(), gaussian(1.0), statistic="U").__call__), mu)


def test_u_is_unbiased_and_v_is_not():
    """Over samples of the target itself ½MMD² has mean zero; V is too high by its self terms."""

    @jax.jit
    @jax.vmap
    def values(x, y):
        return [mmd(y, gaussian(1.0), statistic=statistic)(Particles.uniform(x)) for statistic in ("V", "U")]

    V, U = values(*array(rng(5).normal(size=(2, 2000, 4, 2))))
    error = np.std(U) / np.sqrt(2000)
    assert abs(np.mean(U)) < 5 * error
    assert np.mean(V) > 20 * error


def test_the_energy_kernel_gives_the_energy_distance(dtype, tolerance):
    x, y = rng(3).normal(size=8), rng(4).normal(size=6) + 1
    value = jax.jit(lambda x, y: mmd(y, energy())(Particles.uniform(x)))(*(array(z, dtype)[:, None] for z in (x, y)))
    np.testing.assert_allclose(2 * value, energy_distance(x, y) ** 2, rtol=tolerance(dtype))


def test_the_target_is_the_minimum(dtype):
    nu = target(dtype)
    F, eps = coulomb_discrepancy(nu), float(jnp.finfo(dtype).eps)
    value, gradient = jax.jit(value_and_wasserstein_gradient)(F, nu)
    np.testing.assert_allclose(value, 0, atol=10 * eps)
    np.testing.assert_allclose(gradient, 0, atol=100 * eps)


def test_a_gradient_step_of_two_thirds_of_the_smoothness_decreases_the_value():
    """∇k of a Gaussian is L-Lipschitz in both arguments with L ≤ 2/ℓ²; γ ≤ 2/(3L) is the published bound."""
    F, start = mmd(array(TARGET), gaussian(1.0)), measure()

    def step(x, _):
        value, gradient = value_and_wasserstein_gradient(F, start.moved_to(x))
        return x - gradient / 3, value

    values = jax.jit(lambda x: jax.lax.scan(step, x, length=50)[1])(start.points)
    assert np.all(np.diff(values) < 0)
    assert values[-1] < values[0] / 3


# --- coulomb ----------------------------------------------------------------------------------------------------------


def test_coulomb_particles_repel_each_other_and_are_drawn_to_the_target(dtype, tolerance):
    F = coulomb_discrepancy(jnp.zeros((1, 3), dtype))
    evaluate = jax.jit(value_and_wasserstein_gradient)
    # one on the target and two at one place: their pairs exert no force
    value, gradient = evaluate(F, Particles.uniform(array([[0, 0, 0], [0, 0, 2], [0, 0, 2]], dtype)))
    np.testing.assert_allclose(value, 1 / 9 - 1 / 3, rtol=tolerance(dtype))
    np.testing.assert_allclose(gradient[:, 2], [2 / 12, 1 / 4 - 1 / 12, 1 / 4 - 1 / 12], rtol=tolerance(dtype))


# --- cost -------------------------------------------------------------------------------------------------------------


def sizes(function, *arguments):
    """The largest array that a function makes, in numbers."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return max(np.prod(v.aval.shape) for each in _nested(jaxpr) for eqn in each.eqns for v in eqn.outvars)


def _nested(jaxpr):
    yield jaxpr
    for eqn in jaxpr.eqns:
        for leaf in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            if hasattr(leaf, "eqns"):
                yield from _nested(getattr(leaf, "jaxpr", leaf))


@pytest.mark.parametrize("kind", ["gradient", "integral", "full"])
def test_memory_is_that_of_a_chunk(kind):
    count, chunk = 4096, 32
    nu = Particles.uniform(array(rng(0).normal(size=(count, 2))))
    F = replace(mmd(array(TARGET), gaussian(1.0), chunk_size=chunk), target=nu)
    mu = Particles.uniform(jnp.ones((count, 2)))

    def gradient(mu):
        return value_and_wasserstein_gradient(F, mu)

    def products(mu):  # linearised once, then used
        H = wasserstein_hessian(F, mu, kind)
        return H(H(mu.points))

    compiled = jax.jit(gradient if kind == "gradient" else products).lower(mu).compile()
    memory, block, whole = compiled.memory_analysis(), 8 * chunk * count, 8 * count**2
    assert memory is not None
    assert block < memory.temp_size_in_bytes < 20 * block < whole


def test_random_features_never_form_pairs(key):
    count = 50
    kernel = random_features(key, gaussian(1.0), D, 10)
    many = Particles.uniform(array(rng(0).normal(size=(count, D))))
    F = mmd(array(rng(1).normal(size=(count, D))), kernel)
    for function in (value_and_wasserstein_gradient, lambda F, mu: wasserstein_hessian(F, mu, "full")(mu.points)):
        assert sizes(function, F, many) <= 20 * count
    pairs = replace(F, kernel=gaussian(1.0))
    assert sizes(value_and_wasserstein_gradient, pairs, many) >= count**2


# --- minibatches ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_batch_is_points_of_the_target_each_at_most_once(key):
    F = mmd(target(), gaussian(1.0))
    rows = {tuple(row) for row in TARGET}
    keys = jax.random.split(key, 20)
    for size in (3, M):
        batch = jax.jit(jax.vmap(lambda key, size=size: F.batch(key, size).target))(keys)
        drawn = [{tuple(row) for row in sample} for sample in np.asarray(batch.points)]
        assert all(len(each) == size and each <= rows for each in drawn)
    np.testing.assert_allclose(np.sort(batch.weights), np.tile(np.sort(TARGET_WEIGHTS), (20, 1)), rtol=1e-12)


@pytest.mark.slow
def test_batches_are_unbiased_in_value_and_gradient(key):
    F, mu = mmd(target(), gaussian(1.0)), measure()
    draw = jax.jit(jax.vmap(lambda key: value_and_wasserstein_gradient(F.batch(key, 2), mu)))
    for found, expected in zip(
        draw(jax.random.split(key, 5000)), jax.jit(value_and_wasserstein_gradient)(F, mu), strict=True
    ):
        error = np.std(found, axis=0) / np.sqrt(5000)
        np.testing.assert_array_less(np.abs(np.mean(found, axis=0) - expected), 5 * error)
        assert np.max(np.abs(error)) > 1e-4


# --- kinds of input ---------------------------------------------------------------------------------------------------


def test_the_dtype_is_that_of_the_particles():
    F = mmd(target(jnp.float64), gaussian(1.0))
    value, gradient = jax.eval_shape(value_and_wasserstein_gradient, F, measure(jnp.float32))
    assert value.dtype == gradient.dtype == jnp.float32


def test_structured_points_work_with_features():
    kernel = feature(lambda points: points["a"] * jnp.tanh(points["w"]))
    nu = Particles.uniform({"a": jnp.ones((2, 1)), "w": jnp.ones((2, 3))})
    F = mmd(nu, kernel)
    value = F(Particles.uniform({"a": jnp.zeros((4, 1)), "w": jnp.ones((4, 3))}))
    np.testing.assert_allclose(value, np.tanh(1) ** 2 / 2)
    with pytest.raises(ValueError, match="a particle has shape"):
        F(measure())


@pytest.mark.slow
def test_functionals_of_several_targets_map():
    targets = array(rng(0).normal(size=(3, M, D)))
    stack = jax.vmap(lambda y: mmd(y, gaussian(1.0)))(targets)
    values = jax.jit(jax.vmap(lambda F: F(measure())))(stack)
    one = jax.jit(lambda y: mmd(y, gaussian(1.0))(measure()))
    np.testing.assert_allclose(values, [one(y) for y in targets], rtol=1e-12)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: mmd(jnp.zeros((0, 2)), gaussian(1.0)), r"the target has shape \(0, 2\); give a sample \(M, d\)"),
        (lambda: coulomb_discrepancy(jnp.zeros((0, 2))), r"the target has shape \(0, 2\)"),
        (
            lambda: mmd(array(TARGET), gaussian(1.0))(Particles.uniform(jnp.zeros((3, 2)))),
            r"a particle has shape \(2,\) but a target point \(3,\)",
        ),
        (lambda: mmd(array(TARGET[:1]), gaussian(1.0), statistic="U"), 'statistic="U" with 1 target point'),
        (
            lambda: mmd(array(TARGET), gaussian(1.0), statistic="U")(Particles.uniform(jnp.zeros((1, D)))),
            'statistic="U" with 1 particle; give at least two',
        ),
        (lambda: mmd(array(TARGET), gaussian(1.0), chunk_size=0), "chunk_size=0; give a positive number of rows"),
        (
            lambda: mmd(array(TARGET), gaussian(1.0)).batch(jax.random.key(0), M + 1),
            "size=5; there are 4 target points",
        ),
        (lambda: mmd(array(TARGET), gaussian(1.0)).batch(jax.random.key(0), 0), "size=0; there are 4 target points"),
        (lambda: coulomb_discrepancy(Particles.uniform({"a": jnp.ones((2, 1))})), "no array of points"),
    ],
)
def test_impossible_functionals_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


untyped_mmd: Any = mmd


@pytest.mark.parametrize(
    "build",
    [
        lambda: untyped_mmd(array(TARGET), jnp.dot),
        lambda: untyped_mmd(array(TARGET), gaussian(1.0), statistic="W"),
        lambda: mmd(array(TARGET, int), gaussian(1.0)),
        lambda: mmd(array(TARGET[0]), gaussian(1.0)),
    ],
    ids=["kernel", "statistic", "integers", "axes"],
)
def test_wrong_kinds_are_refused(build):
    with pytest.raises((ValueError, TypeError), match=r"kernel|statistic|target"):  # by the annotation, where checked
        build()
