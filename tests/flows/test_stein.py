"""SVGD and KSD descent against naive double loops, quadrature over the target, and fixed points in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pwgf_jax import Particles, flow, functionals, hessian_matrix, run
from pwgf_jax.calculus import first_variation, value_and_wasserstein_gradient, wasserstein_gradient
from pwgf_jax.flows import ksd_descent, ksd_direction, svgd, svgd_direction
from pwgf_jax.functionals import stein_discrepancy
from pwgf_jax.kernels import energy as riesz
from pwgf_jax.kernels import feature, gaussian, imq, laplace, median_heuristic
from pwgf_jax.perturbation import isotropic_noise
from pwgf_jax.transforms import gradient_trigger

KEY = jax.random.key(0)
ELL = 1.3
WEIGHTS = np.array([0.4, 0.0, 0.1, 0.3, 0.2])
POINTS = np.random.default_rng(0).normal(size=(5, 2)) + 3.0


def quartic(x):
    return 0.25 * jnp.sum(x**4) + x[0] * x[1]


def slope(x):
    return x**3 + x[::-1]


# k, ∇₁k, ∇₂k and tr ∇₁∇₂k of one pair, written out
def gaussian_pair(x, y):
    delta = x - y
    k = np.exp(-delta @ delta / (2 * ELL**2))
    return k, -delta * k / ELL**2, delta * k / ELL**2, (len(x) / ELL**2 - delta @ delta / ELL**4) * k


def imq_pair(x, y):
    delta = x - y
    base = 1 + delta @ delta / ELL**2
    grad = -delta * base**-1.5 / ELL**2
    return base**-0.5, grad, -grad, len(x) * base**-1.5 / ELL**2 - 3 * delta @ delta * base**-2.5 / ELL**4


KERNELS = [(gaussian(ELL), gaussian_pair), (imq(ELL), imq_pair)]
each_kernel = pytest.mark.parametrize(("kernel", "pair"), KERNELS, ids=["gaussian", "imq"])


def measure(dtype=jnp.float64, weights=WEIGHTS):
    return Particles(jnp.asarray(POINTS, dtype), jnp.asarray(weights, dtype))


def evaluate(direction, F, mu):
    return jax.jit(lambda mu: direction(KEY, F, mu))(mu)


def naive_svgd(pair, slopes):
    field = np.zeros_like(POINTS)
    for i in np.flatnonzero(WEIGHTS):
        for j in range(5):
            k, _, away, _ = pair(POINTS[i], POINTS[j])  # ∇_{x_j} k(x_j, x_i) = ∇₂k(x_i, x_j)
            field[i] += WEIGHTS[j] * (k * slopes[j] - away)
    return field


def naive_stein_kernel(pair, slopes):
    out = np.zeros((5, 5))
    for i in range(5):
        for j in range(5):
            k, first, second, trace = pair(POINTS[i], POINTS[j])
            out[i, j] = slopes[i] @ slopes[j] * k - slopes[i] @ second - slopes[j] @ first + trace
    return out


@each_kernel
def test_svgd_is_its_double_loop(kernel, pair, dtype, tolerance):
    F, mu = functionals.potential(quartic), measure(dtype)
    found = evaluate(svgd_direction(kernel), F, mu)
    slopes = np.array([slope(x) for x in POINTS])
    np.testing.assert_allclose(found.field, naive_svgd(pair, slopes), rtol=tolerance(dtype), atol=tolerance(dtype))
    np.testing.assert_allclose(found.value, WEIGHTS @ [quartic(x) for x in POINTS], rtol=tolerance(dtype))
    np.testing.assert_allclose(found.gradient_norm, np.sqrt(WEIGHTS @ np.sum(slopes**2, axis=1)), rtol=tolerance(dtype))


def test_an_energy_of_its_own_leaves_the_functional_as_the_yardstick():
    F, mu = functionals.potential(lambda x: jnp.sum(jnp.cos(x))), measure()
    own = functionals.potential(quartic)
    both = jax.jit(
        lambda mu: [
            (direction(gaussian(ELL), quartic)(KEY, F, mu), direction(gaussian(ELL))(KEY, own, mu))
            for direction in (svgd_direction, ksd_direction)
        ]
    )
    for given, taken in both(mu):
        np.testing.assert_allclose(given.field, taken.field, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(given.value, WEIGHTS @ np.sum(np.cos(POINTS), axis=1), rtol=1e-12)
        expected = np.sqrt(WEIGHTS @ np.sum(np.sin(POINTS) ** 2, axis=1))
        np.testing.assert_allclose(given.gradient_norm, expected, rtol=1e-12)


def test_the_median_kernel_is_that_of_the_particles_of_the_step():
    """And particles in parts are the particles as rows."""
    F, mu = functionals.potential(quartic), measure()
    parts = Particles({"a": mu.points[:, :1], "b": mu.points[:, 1:]}, mu.weights)
    in_parts = functionals.potential(lambda p: quartic(jnp.concatenate([p["a"], p["b"]])))
    kernel, directions = gaussian(median_heuristic(mu.points)), (svgd_direction, ksd_direction)

    @jax.jit
    def fields(mu, parts):
        given = [direction(kernel)(KEY, F, mu).field for direction in directions]
        found = [direction("median")(KEY, in_parts, parts).field for direction in directions]
        return given, [jnp.concatenate([field["a"], field["b"]], axis=1) for field in found]

    given, found = fields(mu, parts)
    np.testing.assert_allclose(found, given, rtol=1e-10, atol=1e-10)
    collapsed = evaluate(svgd_direction("median"), F, mu.moved_to(jnp.ones((5, 2))))
    np.testing.assert_allclose(collapsed.field, 2.0 * (WEIGHTS[:, None] > 0) * np.ones(2), rtol=1e-12)


def test_svgd_comes_to_rest_where_two_particles_balance():
    """At m ± a: pull (1 − k)a/σ² against push 2ak/ℓ², so that a² = ℓ²/2·log(1 + 2σ²/ℓ²)."""
    mode, sigma = np.array([1.0]), 0.7
    F = functionals.potential(lambda x: jnp.sum((x - mode) ** 2) / (2 * sigma**2))
    start = Particles.uniform(jnp.asarray([[0.3], [0.9]]))
    points = np.sort(run(svgd(0.3, kernel=gaussian(ELL)), F, start, KEY, 300).mu.points, axis=0)
    a = np.sqrt(ELL**2 / 2 * np.log(1 + 2 * sigma**2 / ELL**2))
    np.testing.assert_allclose(points, mode + a * np.array([[-1.0], [1.0]]), atol=1e-8)


def test_svgd_fits_a_gaussian():
    mean, covariance = jnp.asarray([1.0, -2.0]), np.array([[1.0, 0.6], [0.6, 2.0]])
    precision = jnp.asarray(np.linalg.inv(covariance))
    F = functionals.potential(lambda x: 0.5 * (x - mean) @ precision @ (x - mean))
    start = Particles.uniform(jnp.asarray(np.random.default_rng(1).normal(size=(30, 2)) * 0.3))
    x = np.asarray(run(svgd(0.7, kernel=gaussian(1.5)), F, start, KEY, 500).mu.points)
    np.testing.assert_allclose(np.mean(x, axis=0), mean, atol=0.05)
    np.testing.assert_allclose(np.cov(x.T, bias=True), covariance, atol=0.25)


@each_kernel
def test_the_discrepancy_and_its_derivatives_are_those_of_the_double_loop(kernel, pair, tolerance):
    F, mu = stein_discrepancy(quartic, kernel), measure()
    slopes = np.array([slope(x) for x in POINTS])
    pairs = naive_stein_kernel(pair, slopes)
    found = jax.jit(lambda mu: (*value_and_wasserstein_gradient(F, mu), first_variation(F, mu)(mu.points)))(mu)
    np.testing.assert_allclose(found[0], WEIGHTS @ pairs @ WEIGHTS / 2, rtol=1e-10)
    np.testing.assert_allclose(found[2], pairs @ WEIGHTS, rtol=1e-10)
    single = measure(jnp.float32)
    np.testing.assert_allclose(jax.jit(F)(single), found[0], rtol=tolerance(jnp.float32))
    # the gradient by central differences of the value
    for i, a in ((0, 0), (3, 1)):
        shifted = []
        for h in (1e-5, -1e-5):
            moved = POINTS.copy()
            moved[i, a] += h
            shifted.append(jax.jit(F)(mu.moved_to(jnp.asarray(moved))))
        slope_there = (shifted[0] - shifted[1]) / 2e-5 / WEIGHTS[i]
        np.testing.assert_allclose(found[1][i, a], slope_there, rtol=1e-6)
    np.testing.assert_array_equal(found[1][1], 0)


@pytest.mark.slow
def test_its_hessian_is_that_of_its_values():
    F, mu = stein_discrepancy(quartic, gaussian(ELL)), Particles.uniform(jnp.asarray(POINTS[:3]))
    full, integral, local, plain = jax.jit(
        lambda mu: (
            *(hessian_matrix(F, mu, part) for part in ("full", "integral", "local")),
            jax.hessian(lambda points: F(mu.moved_to(points)))(mu.points).reshape(6, 6),
        )
    )(mu)
    np.testing.assert_allclose(full, 3 * plain, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(integral + local, full, rtol=1e-8, atol=1e-8)
    assert np.linalg.eigvalsh(integral)[0] > -1e-8 * np.linalg.eigvalsh(integral)[-1]  # a positive kernel


@each_kernel
def test_the_discrepancy_vanishes_at_the_target_and_only_there(kernel, pair):
    """The target as a measure: Gauss-Hermite nodes of N(1, 1/4)."""
    del pair
    nodes, masses = np.polynomial.hermite_e.hermegauss(60)
    target = Particles(jnp.asarray(1 + nodes[:, None] / 2), jnp.asarray(masses / np.sum(masses)))
    F = stein_discrepancy(lambda x: 2 * jnp.sum((x - 1) ** 2), kernel)
    variation = jax.jit(lambda mu: first_variation(F, mu)(jnp.linspace(-1.0, 3.0, 5)[:, None]))(target)
    np.testing.assert_allclose(variation, 0, atol=1e-8)
    values = [float(jax.jit(F)(mu)) for mu in (target, target.moved_to(target.points + 0.1))]
    assert abs(values[0]) < 1e-8
    assert values[1] > 1e-3


def test_ksd_descent_is_the_gradient_flow_of_the_discrepancy():
    F, mu, discrepancy = functionals.potential(quartic), measure(), stein_discrepancy(quartic, gaussian(ELL))
    field, expected, value, after = jax.jit(
        lambda mu: (
            field := ksd_direction(gaussian(ELL))(KEY, F, mu).field,
            wasserstein_gradient(discrepancy, mu),
            discrepancy(mu),
            discrepancy(mu.push_forward(-1e-7 * field)),
        )
    )(mu)
    np.testing.assert_allclose(field, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose((value - after) / 1e-7, WEIGHTS @ np.sum(np.square(field), axis=1), rtol=1e-3)


def test_a_single_particle_of_ksd_descent_descends_the_squared_slope():
    F = functionals.potential(lambda x: -0.5 * jnp.sum(x**2))  # a maximum: caught all the same
    solution = run(ksd_descent(0.3, kernel=gaussian(ELL)), F, Particles.uniform(jnp.full((1, 2), 2.0)), KEY, 5)
    np.testing.assert_allclose(solution.mu.points, 2.0 * 0.7**5, rtol=1e-12)


@pytest.mark.slow
def test_stein_flows_compose_with_optimizers_and_jumps():
    """Particles at a maximum of E, where SVGD stands still, leave it by a jump."""
    F = functionals.potential(lambda x: jnp.sum(jnp.cos(x)))
    trigger = gradient_trigger(eps=1e-3, k_thres=200, f_thres=0.1)
    method = flow(svgd_direction(gaussian(0.5)), optax.adam(0.1), isotropic_noise(0.1, scale=1.0), trigger)
    solution = run(method, F, Particles.uniform(jnp.zeros((5, 1))), KEY, 100)
    assert solution.records["perturbed"].tolist()[0]
    assert solution.value < -0.5


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: svgd(0.1, kernel=feature(lambda x: x)), TypeError, "svgd: kernel is Feature; give a radial one"),
        (lambda: ksd_descent(0.1, kernel=laplace(1.0)), ValueError, "ksd_descent: the kernel has a kink"),
        (lambda: ksd_descent(0.1, kernel=gaussian(1.0) + 0.1 * riesz()), ValueError, "has a kink"),
        (lambda: stein_discrepancy(quartic, riesz()), ValueError, "stein_discrepancy: the kernel has a kink"),
        (lambda: stein_discrepancy(quartic, feature(lambda x: x)), TypeError, "kernel is Feature"),
    ],
    ids=["feature", "laplace", "sum with a kink", "energy", "feature discrepancy"],
)
def test_kernels_that_will_not_do_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
