import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwgf_jax import Particles, functionals, hessian_guided, hessian_guided_field, isotropic, norm, smooth_isotropic
from pwgf_jax.measures import norm_squared
from pwgf_jax.perturbation import hessian_energy, white_noise
from tests.oracles import closed_forms
from tests.oracles.closed_forms import mean_quartic

DRAWS = 20_000
N, K, L = 5, 1, 2  # particles (a, w) in R³


def rng(seed=0):
    return np.random.default_rng(seed)


def keys(count=DRAWS):
    return jax.random.split(jax.random.key(1), count)


def problem(dtype, weighted=False):
    """A small matrix factorisation with its closed form; in the weighted one the last particle weighs nothing."""
    draw = rng(0)
    inputs, targets, points = draw.normal(size=(4, L)), draw.normal(size=(4, K)), 1.5 * draw.normal(size=(N, K + L))
    weights = np.array([0.1, 0.3, 0.4, 0.2, 0.0]) if weighted else np.full(N, 1 / N)
    F = functionals.matrix_factorization(jnp.asarray(inputs, dtype), jnp.asarray(targets, dtype))
    mu = Particles(jnp.asarray(points, dtype), jnp.asarray(weights, dtype))
    network = closed_forms.Network(points, weights, inputs, lambda h: closed_forms.matrix_loss(h, targets), K)
    return F, mu, network


def assert_covariance(draws, expected):
    """The empirical covariance agrees within five of its standard errors."""
    flat = np.asarray(draws, np.float64).reshape(len(draws), -1)
    found, size = flat.T @ flat / len(flat), int(np.sqrt(expected.size))
    expected = expected.reshape(size, size)
    variance = np.diag(expected)
    error = np.sqrt((np.outer(variance, variance) + expected**2) / len(flat))
    np.testing.assert_array_less(np.abs(found - expected), 5 * error + 1e-6 * np.max(variance))
    mean_error = np.sqrt(variance / len(flat))
    np.testing.assert_array_less(np.abs(np.mean(flat, axis=0)), 5 * mean_error + 1e-6 * np.sqrt(np.max(variance)))


def on_support(kernel, mu):
    present = np.asarray(mu.weights) > 0
    return kernel * present[:, None, None, None] * present[None, None, :, None]


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("method", ["direct", "lanczos"])
def test_hessian_guided_noise_has_the_kernel_for_covariance(method, weighted):
    F, mu, network = problem(jnp.float64, weighted)
    kernel = network.noise_kernel(network.points, network.points)
    # the oracle twice: ∫∇²F∇²F dμ, and the covariance of the feature form
    np.testing.assert_allclose(kernel, network.noise_kernel_by_features(network.points, network.points), rtol=1e-10)
    draws = jax.jit(jax.vmap(lambda key: hessian_guided(key, F, mu, method)))(keys())
    assert_covariance(draws, on_support(kernel, mu))


@pytest.mark.slow
def test_the_field_has_the_kernel_for_covariance_off_the_particles_too():
    F, mu, network = problem(jnp.float64, weighted=True)
    queries = rng(3).normal(size=(3, K + L))
    draws = jax.jit(jax.vmap(lambda key: hessian_guided_field(key, F, mu)(jnp.asarray(queries))))(keys())
    assert_covariance(draws, network.noise_kernel(queries, queries))


@pytest.mark.slow
def test_at_a_mean_zero_saddle_the_noise_is_one_common_standard_shift():
    mu = Particles.uniform(jnp.asarray([[1.0, 2.0], [-1.0, 0.0], [0.0, -2.0]]))
    draws = np.asarray(jax.jit(jax.vmap(lambda key: hessian_guided(key, mean_quartic, mu)))(keys()))
    np.testing.assert_allclose(draws, np.broadcast_to(draws[:, :1], draws.shape), atol=1e-14)
    assert_covariance(draws[:, 0], np.eye(2))


@pytest.mark.parametrize("weighted", [False, True])
def test_direct_is_h_of_white_noise_and_lanczos_its_absolute_value(weighted, dtype, tolerance):
    F, mu, network = problem(dtype, weighted)  # rank at most 4 on 15 coordinates
    noise, direct, root = jax.jit(
        lambda key: (
            white_noise(key, mu),
            hessian_guided(key, F, mu),
            hessian_guided(key, F, mu, "lanczos", depth=8),
        )
    )(jax.random.key(3))
    half = np.repeat(np.sqrt(network.weights), K + L)
    present = half > 0
    H = network.integral_matrix()[np.ix_(present, present)]
    symmetric = half[present, None] * H / half[present]
    values, vectors = np.linalg.eigh((symmetric + symmetric.T) / 2)
    assert np.sum(np.abs(values) > 1e-9) == 4
    assert values[0] < -0.1 < 0.1 < values[-1]
    flat = half * np.ravel(np.asarray(noise, np.float64))
    scale = np.max(np.abs(values)) * np.linalg.norm(flat)
    for field, function in ((direct, lambda t: t), (root, np.abs)):
        expected = vectors @ (function(values) * (vectors.T @ flat[present]))
        found = half * np.ravel(field)
        np.testing.assert_allclose(found[present], expected, atol=tolerance(dtype, 3) * scale)
        np.testing.assert_array_equal(found[~present], 0)


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
def test_the_energy_is_the_trace_of_the_squared_hessian(weighted):
    F, mu, network = problem(jnp.float64, weighted)
    H = network.integral_matrix()
    trace = np.trace(H @ H)

    @jax.jit
    def energies(keys):
        each = jax.vmap(lambda key: norm_squared(mu, hessian_guided(key, F, mu)))(keys)
        return each, jax.vmap(lambda key: hessian_energy(key, F, mu, probes=4))(keys[:5000])

    for found in energies(keys()):
        error = np.std(found) / np.sqrt(found.size)
        assert error < 0.02 * trace
        np.testing.assert_allclose(np.mean(found), trace, atol=4 * error)


def test_more_probes_average_more(dtype):
    F, mu, network = problem(dtype)
    trace = np.trace(network.integral_matrix() @ network.integral_matrix())
    found = jax.jit(lambda key: hessian_energy(key, F, mu, probes=4000))(jax.random.key(0))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, trace, rtol=0.1)


@pytest.mark.parametrize("method", ["direct", "lanczos"])
def test_coincident_particles_move_together(method, dtype, tolerance):
    F, mu, _ = problem(dtype)
    doubled = Particles.uniform(jnp.concatenate([mu.points, mu.points]))
    for field in (
        jax.jit(lambda key: hessian_guided(key, F, doubled, method))(jax.random.key(4)),
        jax.jit(lambda key: smooth_isotropic(key, doubled, 1.0, 0.7))(jax.random.key(4)),
    ):
        scale = np.max(np.abs(field))
        assert scale > 0.01
        # √(H²) keeps half of the digits, of the noise's size rather than of the field's
        np.testing.assert_allclose(
            field[:N], field[N:], atol=tolerance(dtype, 10 if method == "lanczos" else 1) * scale
        )
    apart = isotropic(jax.random.key(4), doubled, 1.0)
    assert np.min(np.linalg.norm(apart[:N] - apart[N:], axis=1)) > 0.01


def test_the_field_is_the_same_draw_as_at_the_particles(dtype, tolerance):
    F, mu, _ = problem(dtype, weighted=True)
    away = jnp.asarray(rng(5).normal(size=(3, K + L)), dtype)

    @jax.jit
    def both(key):
        field = hessian_guided_field(key, F, mu)
        return hessian_guided(key, F, mu), field(mu.points), field(away), field(away[0])

    at, same, off, one = both(jax.random.key(6))
    present = np.asarray(mu.weights) > 0
    np.testing.assert_allclose(same[present], at[present], atol=tolerance(dtype, 10))
    np.testing.assert_array_equal(at[~present], 0)
    assert np.min(np.linalg.norm(same[~present], axis=1)) > 0.01  # where no mass is, the field is there all the same
    assert off.shape == (3, K + L)
    np.testing.assert_allclose(one, off[0], atol=tolerance(dtype, 10))


@pytest.mark.parametrize("method", ["direct", "lanczos"])
def test_a_functional_without_integral_hessian_gets_no_noise(method, dtype):
    F = functionals.potential(lambda x: (x[0] ** 2 - x[1] ** 2) / 2)
    mu = Particles.uniform(jnp.zeros((3, 2), dtype))
    np.testing.assert_array_equal(jax.jit(lambda key: hessian_guided(key, F, mu, method))(jax.random.key(0)), 0)


@pytest.mark.slow
def test_white_noise_has_variance_one_over_the_weight():
    weights = np.array([0.5, 0.3, 0.2, 0.0])
    mu = Particles({"a": jnp.zeros((4, 1)), "w": jnp.zeros((4, 2))}, jnp.asarray(weights))
    draws = jax.jit(jax.vmap(lambda key: white_noise(key, mu)))(keys())
    flat = np.concatenate([draws["a"], draws["w"]], axis=-1)
    variance = np.divide(1, weights, out=np.zeros(4), where=weights > 0)
    assert_covariance(flat, np.diag(np.repeat(variance, 3)))


@pytest.mark.slow
def test_isotropic_noise_is_independent_with_the_given_deviation():
    mu = Particles.uniform({"a": jnp.zeros((2, 1)), "w": jnp.zeros((2, 2))})
    draws = jax.jit(jax.vmap(lambda key: isotropic(key, mu, 0.3)))(keys())
    flat = np.concatenate([np.asarray(x).reshape(DRAWS, -1) for x in jax.tree.leaves(draws)], axis=-1)
    assert_covariance(flat, 0.09 * np.eye(6))


@pytest.mark.slow
def test_smooth_isotropic_noise_has_the_gaussian_kernel_for_covariance():
    points = rng(1).normal(size=(4, 2))
    mu, lengthscale = Particles.uniform(jnp.asarray(points)), 0.8
    draw = jax.jit(jax.vmap(lambda key: smooth_isotropic(key, mu, 0.5, lengthscale, features=64)))
    squares = np.sum((points[:, None] - points[None]) ** 2, axis=-1)
    kernel = 0.25 * np.exp(-squares / (2 * lengthscale**2))
    # Across draws of the frequencies the tails are a little heavier than Gaussian: 5 errors still hold them.
    assert_covariance(draw(keys()), np.kron(kernel, np.eye(2)))


@pytest.mark.parametrize("shape", [(4, 3), (4, 2, 3), (4,)])
def test_noises_are_shaped_and_typed_like_the_points(shape, dtype):
    mu = Particles(jnp.ones(shape, dtype), jnp.full(4, 0.25, dtype))

    @jax.jit
    def noises(key):
        F = functionals.potential(lambda x: jnp.sum(x**2))
        scale = jnp.asarray(0.5)
        return [
            isotropic(key, mu, 0.5),
            isotropic(key, mu, scale),
            smooth_isotropic(key, mu, scale, 1.0),
            hessian_guided(key, F, mu),
        ]

    for field in noises(jax.random.key(0)):
        assert field.shape == shape
        assert field.dtype == dtype
        assert bool(jnp.isfinite(norm(mu, field)))


def test_keys_decide():
    F, mu, _ = problem(jnp.float64)
    draw = jax.jit(
        lambda key: (hessian_guided(key, F, mu), isotropic(key, mu, 1.0), smooth_isotropic(key, mu, 1.0, 1.0))
    )
    first, again, other = draw(jax.random.key(0)), draw(jax.random.key(0)), draw(jax.random.key(1))
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.max(np.abs(a - c)) > 0.01


def test_old_keys_and_unknown_methods_are_refused():
    F, mu, _ = problem(jnp.float32)
    old = jax.random.PRNGKey(0)
    for draw in (
        lambda: hessian_guided(old, F, mu),
        lambda: hessian_guided_field(old, F, mu),
        lambda: hessian_energy(old, F, mu),
        lambda: isotropic(old, mu, 1.0),
        lambda: smooth_isotropic(old, mu, 1.0, 1.0),
        lambda: white_noise(old, mu),
    ):
        with pytest.raises(TypeError, match=r"not a typed key; make one with jax.random.key\(seed\)"):
            draw()
    with pytest.raises((ValueError, TypeError), match="method"):  # TypeError: the annotation, checked in tests only
        hessian_guided(jax.random.key(0), F, mu, "exact")  # pyright: ignore[reportArgumentType]
