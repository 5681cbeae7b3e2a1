"""Certificates against dense spectra, and on every saddle and minimum that is known in closed form."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwgf_jax import Particles, Verdict, certify, functionals, hessian_matrix, spectrum
from pwgf_jax.measures import traceable
from pwgf_jax.spectrum import sight, spectrum_bound
from pwgf_jax.tridiagonal import begin, extend, finish, flatten, random_start, ritz
from tests.oracles.closed_forms import antithetic, mean_quartic, rotated, sign_pairs

KEY = jax.random.key(0)
N, D = 3, 5  # 15 unknowns: a single depth, and so a single compilation


def rng(seed=0):
    return np.random.default_rng(seed)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quadratic:
    """½ mᵀAm + ½∫xᵀBx dμ + s·m: gradient Am + Bx + s, integral Hessian A∫v dμ, local one B."""

    A: jax.Array
    B: jax.Array
    slope: jax.Array

    def __call__(self, mu):
        m = mu.weights @ mu.points
        return m @ self.A @ m / 2 + mu.weights @ jnp.sum((mu.points @ self.B) * mu.points, axis=1) / 2 + self.slope @ m


def quadratic(mean, local, dtype, slope=0.0, size=D):
    spectra = (np.broadcast_to(s, size).astype(float) for s in (mean, local))
    A, B = (jnp.asarray(rotated(s, rng(1)), dtype) for s in spectra)
    return Quadratic(A, B, jnp.full(size, slope, dtype))


def at_zero(dtype, size=D):
    return Particles.uniform(jnp.zeros((N, size), dtype))


# Compiled once per functional and size, like the certificates themselves.
@jax.jit
def matrices(F, mu):
    return {part: hessian_matrix(F, mu, part) for part in ("integral", "full")}


def assert_bounds_hold(found, F, mu, max_products=512):
    """What a certificate says about either operator is true of the dense matrix (uniform weights)."""
    for part, dense in matrices(traceable(F), mu).items():
        curvature, dense = getattr(found, part), np.asarray(dense, np.float64)
        exact = np.linalg.eigvalsh((dense + dense.T) / 2)
        slack = 10 * curvature.rounding + 1e-14
        assert exact[0] - slack <= curvature.eigenvalue <= exact[-1] + slack
        assert curvature.lower <= exact[0] + slack
        assert np.min(np.abs(exact - curvature.eigenvalue)) <= curvature.residual + slack
        assert curvature.products <= max_products
        v = np.ravel(np.asarray(curvature.direction, np.float64)) / np.sqrt(mu.size)
        np.testing.assert_allclose(v @ v, 1, rtol=1e-5)
        np.testing.assert_allclose(v @ dense @ v, curvature.eigenvalue, atol=slack)
        residual = np.linalg.norm(dense @ v - curvature.eigenvalue * v)
        np.testing.assert_allclose(curvature.residual, residual, atol=slack)


# --- spectra ----------------------------------------------------------------------------------------------------------

LEAST = np.concatenate([[-0.3], np.linspace(0.1, 2, D - 1)])
LOW_RANK = np.concatenate([[-0.5], np.zeros(D - 1)])
DECISIONS = {
    # name: (spectrum of A, spectrum of B, verdict, what it rests on)
    "constant": (0, 0, Verdict.second_order_stationary, "both"),
    "maximum of the mean": (-1, 0, Verdict.saddle, "integral"),
    "minimum of the mean": (1, 0, Verdict.second_order_stationary, "both"),
    "local maximum": (0, -1, Verdict.saddle, "full"),
    "local minimum": (0, 1, Verdict.second_order_stationary, "both"),
    "low rank": (LOW_RANK, 0, Verdict.saddle, "integral"),
    "low rank, positive": (-LOW_RANK, 0, Verdict.second_order_stationary, "both"),
    "one negative": (LEAST, 0, Verdict.saddle, "integral"),
    "one negative, local": (1, LEAST, Verdict.saddle, "full"),
    "above delta": (LEAST / 6, LEAST / 6, Verdict.second_order_stationary, "both"),
    "clustered": (np.concatenate([[-0.3], 1 + 1e-6 * np.arange(D - 1)]), 0, Verdict.saddle, "integral"),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_the_verdict_on_a_quadratic_is_that_of_its_spectrum(name, dtype):
    mean, local, verdict, decided_by = DECISIONS[name]
    F, mu = quadratic(mean, local, dtype), at_zero(dtype)
    found = certify(F, mu, eps=1e-6, delta=0.11, key=KEY)
    assert (found.verdict, found.decided_by, found.gradient_norm) == (verdict, decided_by, 0)
    assert not found.rounding_decides
    assert (found.direction is None) == (verdict != Verdict.saddle)
    assert_bounds_hold(found, F, mu)


def test_no_start_gives_another_verdict():
    for name in ("above delta", "local maximum"):
        mean, local, verdict, _ = DECISIONS[name]
        F = quadratic(mean, local, jnp.float64)
        for seed in range(5):
            assert certify(F, at_zero(jnp.float64), 1e-6, 0.11, jax.random.key(seed)).verdict == verdict


def test_where_only_the_integral_part_is_negative_the_certificate_shows_both():
    """−0.15|m|² + ½∫|x|² dμ has its global minimum at δ₀, where H_μ alone would call it a saddle."""
    found = certify(quadratic(-0.3, 1, jnp.float64), at_zero(jnp.float64), eps=1e-6, delta=0.11, key=KEY)
    assert found.integral.eigenvalue == pytest.approx(-0.3)
    assert found.full.lower == pytest.approx(0.7, abs=1e-6)
    assert (found.verdict, found.decided_by) == (Verdict.second_order_stationary, "full")


# --- known stationary points ------------------------------------------------------------------------------------------


def quartic(kind, dtype):
    points = rng(3).normal(size=(6, 2))
    points -= points.mean(axis=0)
    return mean_quartic, points + (0 if kind == "saddle" else np.array([0.6, 0.8]))


def factorization(kind, dtype):
    draw = rng(4)
    inputs, a, w = draw.normal(size=(7, 2)), draw.normal(size=(2, 2)), draw.normal(size=(2, 2))
    teacher = np.concatenate([a, w], axis=1)
    targets = np.tanh(inputs @ w.T) @ a / 2
    points = antithetic(a, w) if kind == "saddle" else np.concatenate([teacher, teacher])
    return functionals.matrix_factorization(jnp.asarray(inputs, dtype), jnp.asarray(targets, dtype)), points


def features(kind, dtype):
    """The teacher looks at one block of coordinates; the student, at a saddle, at the other."""
    draw = rng(5)
    inputs = sign_pairs(draw.normal(size=(3, 1)), draw.normal(size=(3, 1)))
    targets = np.stack([np.tanh(inputs[:, 0]), np.tanh(2 * inputs[:, 0])], axis=1)
    a = np.repeat(np.eye(2), 2, axis=0)
    if kind == "saddle":
        w = np.stack([np.zeros(4), [1.0, 1.0, 2.5, 2.5]], axis=1)
    else:  # features that span the targets: the loss is zero
        w = np.stack([[1.0, 1.0, 2.0, 2.0], np.zeros(4)], axis=1)
    return functionals.icfl(jnp.asarray(inputs, dtype), jnp.asarray(targets, dtype)), np.concatenate([a, w], axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["saddle", "minimum"])
@pytest.mark.parametrize(
    ("problem", "dtype"),
    [
        (quartic, jnp.float32),
        (quartic, jnp.float64),
        (factorization, jnp.float32),
        (features, jnp.float64),
    ],
)
def test_known_saddles_and_minima_are_told_apart(problem, kind, dtype):
    F, points = problem(kind, dtype)
    mu = Particles.uniform(jnp.asarray(points, dtype))
    found = certify(F, mu, eps=1e-2, delta=0.02, key=KEY)
    assert found.gradient_norm < (1e-5 if dtype == jnp.float32 else 1e-13) * 50
    assert found.verdict == (Verdict.saddle if kind == "saddle" else Verdict.second_order_stationary), found.summary()
    assert_bounds_hold(found, F, mu)
    if problem is quartic:
        np.testing.assert_allclose(found.integral.eigenvalue, -1 if kind == "saddle" else 0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_the_degenerate_trap_is_no_saddle_and_its_sigmoid_neighbour_is_one(activation):
    F = functionals.matrix_factorization(jnp.ones((5, 2)), jnp.ones((5, 2)), activation=activation)
    point = np.array([0.0] * 4 if activation == "tanh" else [0, 0, 0.5, -1.0])
    found = certify(F, Particles.uniform(jnp.asarray(np.tile(point, (4, 1)))), eps=1e-9, delta=1e-3, key=KEY)
    if activation == "tanh":
        assert found.verdict == Verdict.second_order_stationary
        assert (found.integral.eigenvalue, found.full.eigenvalue, found.full.lower) == (0, 0, 0)
    else:  # −2c E[σ² h°h°ᵀ] on the outgoing weights, h° = (1, 1)
        assert (found.verdict, found.decided_by) == (Verdict.saddle, "integral")
        sigma = 1 / (1 + np.exp(0.5))
        np.testing.assert_allclose(found.integral.eigenvalue, -4 * sigma**2, rtol=1e-9)


def test_a_slope_is_not_stationary_but_its_curvatures_are_looked_at():
    F = quadratic(LEAST, 0, jnp.float64, slope=1.0)
    found = certify(F, at_zero(jnp.float64), eps=0.5, delta=0.11, key=KEY)
    assert (found.verdict, found.decided_by, found.direction) == (Verdict.not_stationary, "gradient", None)
    assert found.gradient_norm == pytest.approx(np.sqrt(D))
    assert max(found.integral.products, found.full.products) <= 16
    assert certify(F, at_zero(jnp.float64), eps=3.0, delta=0.11, key=KEY).verdict == Verdict.saddle


@pytest.mark.slow
@pytest.mark.parametrize("where", ["gradient", "full"])
def test_of_what_is_not_finite_it_says_so(where, dtype):
    F = quadratic(1, 1, dtype, slope=np.nan)
    if where == "full":  # 0 · ∞ in the curvature alone
        F = lambda mu: mu.weights @ jnp.sum(jnp.abs(mu.points) ** 1.5, axis=1)  # noqa: E731
    found = certify(F, at_zero(dtype), eps=1.0, delta=0.11, key=KEY)
    assert (found.verdict, found.decided_by) == (Verdict.not_finite, where)
    assert not found.rounding_decides
    assert "Not finite" in found.summary()


def test_a_gradient_norm_within_rounding_of_eps_is_undecided():
    F, mu = quadratic(0, 1e3, jnp.float32), at_zero(jnp.float32)
    mu = mu.moved_to(mu.points + 1)
    length = 1e3 * np.sqrt(D)
    for factor, verdict in ((1 + 1e-8, Verdict.undecided), (1.01, Verdict.second_order_stationary)):
        found = certify(F, mu, eps=length * factor, delta=1.0, key=KEY)
        assert (found.verdict, found.rounding_decides) == (verdict, verdict == Verdict.undecided)
    assert abs(found.gradient_norm - length) <= found.gradient_rounding < 1e-2
    assert certify(F, mu, eps=0.99 * length, delta=1.0, key=KEY).verdict == Verdict.not_stationary


def test_a_strict_minimum_is_called_one():
    strict = certify(quadratic(0, 1, jnp.float64), at_zero(jnp.float64), eps=1e-6, delta=0.11, key=KEY)
    flat = certify(quadratic(1, 0, jnp.float64), at_zero(jnp.float64), eps=1e-6, delta=0.11, key=KEY)
    assert (strict.strict_minimum, flat.strict_minimum) == (True, False)
    assert ("strict local minimum" in strict.summary()) > ("strict local minimum" in flat.summary())


def gauge(U, V):
    """The velocities of U ↦ UR, V ↦ VR⁻ᵀ, which leave UVᵀ as it is: one for each entry of the generator."""
    for S in np.eye(U.shape[1] * V.shape[1]).reshape(-1, U.shape[1], V.shape[1]).astype(U.dtype):
        yield {"U": U @ S, "V": -V @ S.T}


def test_a_minimum_is_strict_across_its_symmetries(dtype):
    """½‖UVᵀ − M‖² at UVᵀ = M: a Hessian whose least positive eigenvalue is the sum of two squared singular values."""
    U, V = jnp.diag(jnp.array([2.0, 1.0], dtype)), jnp.diag(jnp.array([2.0, 1.0], dtype))
    f = lambda x: jnp.sum((x["U"] @ x["V"].T - U @ V.T) ** 2) / 2  # noqa: E731
    ask = partial(certify, f, {"U": U, "V": V}, eps=1e-4, delta=0.01, key=KEY)
    fields = list(gauge(U, V))
    plain, across, half = ask(), ask(symmetries=fields), ask(symmetries=fields[:2])
    assert {each.verdict for each in (plain, across, half)} == {Verdict.second_order_stationary}
    assert (plain.strict_minimum, across.strict_minimum, half.strict_minimum) == (False, True, False)
    dense = np.linalg.eigvalsh(jax.hessian(lambda z: f({"U": z[0], "V": z[1]}))(jnp.stack([U, V])).reshape(8, 8))
    assert across.full.eigenvalue == pytest.approx(dense[4], rel=1e-3)
    assert "but for the symmetries" in across.summary()


def test_a_measure_is_a_strict_minimum_but_for_its_symmetries(dtype):
    """The mean quartic is least where |m| = 1: the mean may turn, and the cloud may change its shape about it."""
    mu = Particles.uniform(jnp.asarray([[1.0, 1.0], [1.0, -1.0]], dtype))
    F = lambda mu: (jnp.sum((mu.weights @ mu.points) ** 2) - 1) ** 2 / 4  # noqa: E731
    turned, wide, high = jnp.asarray([[[0, 1], [0, 1]], [[1, 0], [-1, 0]], [[0, 1], [0, -1]]], dtype)
    found = certify(F, mu, eps=1e-4, delta=0.01, key=KEY, symmetries=[turned, wide, high])
    assert found.strict_minimum
    assert found.full.eigenvalue == pytest.approx(2, rel=1e-3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([jnp.array([1.0, 0.0])], r"symmetries\[0\]: the objective has curvature 8 along it"),
        ([jnp.array([0.0, 1.0]), jnp.array([0.0, 2.0])], r"symmetries\[1\] is zero or made of those before it"),
        ([jnp.zeros(3)], r"symmetries\[0\]: leaves of shapes \[\(3,\)\]; give a field like the point, \[\(2,\)\]"),
    ],
)
def test_what_is_no_symmetry_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        certify(lambda x: (x @ x - 1) ** 2, jnp.array([1.0, 0.0]), 1e-3, 0.1, KEY, symmetries=fields)


@pytest.mark.slow
def test_half_precision_points_are_certified_in_float32():
    mu = Particles.uniform(jnp.zeros((4, 2), jnp.bfloat16))
    F = lambda mu: mu.weights @ jnp.sum(jnp.cos(mu.points), axis=1)  # noqa: E731
    found = certify(F, mu, eps=1e-3, delta=0.1, key=KEY)
    assert found.verdict == Verdict.saddle
    assert found.direction is not None
    assert found.direction.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.full.eigenvalue, -1, rtol=1e-4)


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("least", "verdict"), [(-1.0001, Verdict.saddle), (-0.9999, Verdict.second_order_stationary)])
def test_where_rounding_decides_it_says_so(least, verdict):
    local = np.concatenate([[least], np.linspace(500, 1000, D - 1)])
    for dtype, expected in ((jnp.float32, Verdict.undecided), (jnp.float64, verdict)):
        found = certify(quadratic(0, local, dtype), at_zero(dtype), eps=1e-3, delta=1.0, key=KEY)
        assert found.verdict == expected
        assert found.rounding_decides == (dtype == jnp.float32)
        assert ("rounding decides" in found.summary()) == found.rounding_decides
    assert certify(quadratic(0, local, jnp.float32), at_zero(jnp.float32), 1e-3, 1.1, KEY).verdict == (
        Verdict.second_order_stationary
    )
    assert certify(quadratic(0, local, jnp.float32), at_zero(jnp.float32), 1e-3, 0.9, KEY).verdict == Verdict.saddle


# --- measures ---------------------------------------------------------------------------------------------------------


def double_well(mu):
    return mu.weights @ jnp.sum((mu.points**2 - 1) ** 2, axis=1) / 4


@pytest.mark.slow
@pytest.mark.parametrize("weight", [0.0, 1e-6, 0.5])
def test_particles_count_if_and_only_if_they_have_mass(weight, dtype):
    """Curvature is 2 at ±1 and −1 at 0, in units of L²(μ): however little mass sits there."""
    points = jnp.asarray([[1.0, 1.0], [-1.0, 1.0], [0.0, 0.0]], dtype)
    mu = Particles(points, jnp.asarray([0.7 * (1 - weight), 0.3 * (1 - weight), weight], dtype))
    found = certify(double_well, mu, eps=1e-3, delta=0.5, key=KEY)
    if weight == 0:
        assert found.verdict == Verdict.second_order_stationary
        np.testing.assert_allclose(found.full.eigenvalue, 2, rtol=1e-5)
    else:
        assert (found.verdict, found.decided_by) == (Verdict.saddle, "full")
        np.testing.assert_allclose(found.full.eigenvalue, -1, rtol=1e-5)
        assert found.direction is not None
        np.testing.assert_allclose(found.direction[:2], 0, atol=1e-3)
    np.testing.assert_array_equal(found.full.direction[2] == 0, weight == 0)


@pytest.mark.slow
def test_pytree_particles_are_their_rows():
    F, points = factorization("saddle", jnp.float64)
    rows = Particles.uniform(jnp.asarray(points))
    parts = Particles({"a": rows.points[:, :2], "w": rows.points[:, 2:]}, rows.weights)
    found, expected = (certify(F, mu, 1e-2, 0.02, KEY, max_products=17) for mu in (parts, rows))
    assert found.verdict == expected.verdict == Verdict.saddle
    assert jax.tree.map(jnp.shape, found.direction) == {"a": (4, 2), "w": (4, 2)}
    np.testing.assert_allclose(found.full.eigenvalue, expected.full.eigenvalue, atol=1e-6)


# --- escape -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_escape_direction_descends_with_the_curvature_stated():
    F, points = factorization("saddle", jnp.float64)
    # slightly off the saddle, where the sign of the direction matters
    mu = Particles.uniform(jnp.asarray(points + 1e-4 * rng(7).normal(size=points.shape)))
    found = certify(F, mu, eps=1e-2, delta=0.02, key=KEY)
    assert found.verdict == Verdict.saddle
    curvature = getattr(found, found.decided_by).eigenvalue

    @jax.jit
    def value(h):
        return F(mu.push_forward(h * found.direction))

    h = 1e-3  # H' is small there: H decides
    second = (value(h) - 2 * value(0.0) + value(-h)) / h**2
    np.testing.assert_allclose(second, curvature, rtol=1e-2)
    for h in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1):
        assert value(h) < value(0.0)
    assert value(1e-5) <= value(-1e-5)


# --- budgets ----------------------------------------------------------------------------------------------------------

WIDE = 40
HARD = np.concatenate([[-0.05], np.linspace(0.0, 1.0, WIDE - 1)])


@pytest.mark.slow
@pytest.mark.parametrize("max_products", [2, 20, 41])
def test_no_more_products_are_spent_than_allowed(max_products):
    F, mu = quadratic(0, HARD, jnp.float64, size=WIDE), Particles.uniform(jnp.zeros((1, WIDE)))
    found = certify(F, mu, eps=1e-3, delta=0.0499, key=KEY, max_products=max_products)
    assert 2 <= found.full.products <= max_products
    assert found.verdict in (Verdict.undecided, Verdict.saddle)
    assert found.verdict == Verdict.saddle or max_products < 41
    assert_bounds_hold(found, F, mu, max_products)


@pytest.mark.slow
def test_the_basis_never_outgrows_its_memory_and_restarts_find_what_one_basis_does_not(monkeypatch):
    F, mu = quadratic(0, HARD, jnp.float64, size=WIDE), Particles.uniform(jnp.zeros((1, WIDE)))
    deepen, depths = spectrum._deepen, []

    def watched(F, mu, part, recurrence, *rest):
        depths.append(recurrence.basis.size // recurrence.vector.size)
        return deepen(F, mu, part, recurrence, *rest)

    monkeypatch.setattr(spectrum, "_deepen", watched)
    once = certify(F, mu, eps=1e-3, delta=0.045, key=KEY, max_products=8, max_depth=6)
    assert once.verdict == Verdict.undecided
    found = certify(F, mu, eps=1e-3, delta=0.045, key=KEY, max_products=400, max_depth=6)
    assert found.verdict == Verdict.saddle
    assert 8 < found.full.products <= 400
    assert max(depths) == 6
    assert_bounds_hold(found, F, mu)
    # and a restart proves nothing: its start is not random
    spent = certify(F, mu, eps=1e-3, delta=0.06, key=KEY, max_products=100, max_depth=6)
    assert spent.verdict == Verdict.undecided
    assert 90 < spent.full.products <= 100
    assert not spent.rounding_decides
    assert_bounds_hold(spent, F, mu, 100)


# --- probability ------------------------------------------------------------------------------------------------------

FAILURES = (0.1, 0.5)
STARTS = {
    "even": np.linspace(-1, 1, WIDE),
    "chebyshev": np.cos(np.pi * np.arange(WIDE) / (WIDE - 1)),
    "one apart": np.concatenate([[-1], np.linspace(-0.9, 1, WIDE - 1)]),
    "edge": np.concatenate([[-1], np.cos(np.pi * (np.arange(WIDE - 1) + 0.5) / (WIDE - 1)) * 0.97 + 0.03]),
}
DEPTH = 7


@jax.jit
def _sightings(F, keys):
    mu = Particles.uniform(jnp.zeros((1, WIDE)))
    return jax.vmap(lambda key: [sight(F, mu, "full", key, DEPTH, failure) for failure in FAILURES])(keys)


@pytest.mark.slow
@pytest.mark.parametrize("name", STARTS)
def test_bounds_fail_no_more_often_than_they_say(name):
    """Over random starts, with all true eigenvalues known."""
    eigenvalues = np.sort(STARTS[name])
    count = 2000
    seen = _sightings(quadratic(0, eigenvalues, jnp.float64, size=WIDE), jax.random.split(jax.random.key(3), count))
    for failure, sightings in zip(FAILURES, seen, strict=True):
        wrong = np.mean(np.asarray(sightings.lower) > eigenvalues[0])
        assert wrong <= failure + 4 * np.sqrt(failure / count)
        assert np.all(np.asarray(sightings.eigenvalue) > eigenvalues[0] - 1e-12)
    # and it is no larger than it need be: at one half it does fail now and then
    assert np.mean(np.asarray(seen[1].lower) > eigenvalues[0]) > 0.002


def lowest(recurrence):
    return ritz(finish(recurrence))[0][0]


@pytest.mark.parametrize("name", STARTS)
def test_the_bound_is_where_no_polynomial_tells_a_missed_eigenvalue_from_none(name):
    """At x the least ‖p(A)q‖² of all p of degree m with p(x) = 1 is πp²/2n, by least squares."""
    spectrum, failure = np.sort(STARTS[name]), 1e-3
    flat = flatten(lambda v: jnp.asarray(spectrum) * v, jnp.asarray(spectrum))
    start = random_start(KEY, flat)
    found = extend(flat, begin(start, DEPTH, flat.support), 0, DEPTH, KEY)
    bound = float(spectrum_bound(found, lowest(found), flat.eps, jnp.sum(flat.support), failure))
    q = np.asarray(start) / np.linalg.norm(start)
    values = np.polynomial.chebyshev.chebvander(spectrum, DEPTH) * q[:, None]
    at_bound = np.polynomial.chebyshev.chebvander(np.array([bound]), DEPTH)[0]
    # minimise |values c|² subject to at_bound · c = 1
    solved = np.linalg.lstsq(values.T @ values, at_bound, rcond=None)[0]
    least = 1 / (at_bound @ solved)
    np.testing.assert_allclose(least, np.pi * failure**2 / (2 * WIDE), rtol=0.05)


def test_the_bound_tightens_with_every_step_and_gives_with_certainty():
    spectrum, bound = jnp.asarray(STARTS["even"]), jax.jit(spectrum_bound, static_argnums=(2, 4))
    flat = flatten(lambda v: spectrum * v, spectrum)
    found, bounds = begin(random_start(KEY, flat), WIDE, flat.support), []
    step_on = jax.jit(lambda found, step: extend(flat, found, step, step + 1, KEY))
    for step in range(WIDE):
        found = step_on(found, jnp.int32(step))
        bounds.append([float(bound(found, lowest(found), flat.eps, jnp.asarray(WIDE), p)) for p in (1e-9, 1e-3)])
    bounds = np.asarray(bounds)
    assert np.all(np.diff(bounds, axis=0) > -1e-3)
    assert np.all(bounds[:-1, 0] < bounds[:-1, 1])
    np.testing.assert_allclose(bounds[-1], -1, atol=1e-9)  # the whole space is spanned


def test_a_sighting_can_be_taken_inside_jit_and_over_a_batch():
    mu, keys = at_zero(jnp.float64), jax.random.split(KEY, 3)
    F = quadratic(LEAST, 0, jnp.float64)
    found = jax.jit(jax.vmap(lambda key: sight(F, mu, "integral", key, depth=50)))(keys)  # capped by the size
    np.testing.assert_allclose(found.eigenvalue, -0.3, rtol=1e-9)
    np.testing.assert_allclose(found.lower, -0.3, rtol=1e-9)
    assert found.direction.shape == (3, N, D)


# --- refusals, and words ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0.0}, "eps=0.0; give a positive number"),
        ({"eps": np.nan}, "eps=nan"),
        ({"delta": 0.0}, "delta=0.0; give a positive number"),
        ({"delta": -1.0}, "delta=-1.0"),
        ({"delta": np.inf}, "delta=inf"),
        ({"max_products": 1}, "max_products=1, max_depth=None; need max_products >= 2"),
        ({"max_depth": 0}, "max_depth=0"),
        ({"failure": 0.0}, "failure=0.0; give a probability"),
        ({"failure": 1.0}, "failure=1.0"),
    ],
)
def test_impossible_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        certify(mean_quartic, at_zero(jnp.float64), **{"eps": 0.1, "delta": 0.1, "key": KEY} | options)


def test_old_keys_are_refused():
    with pytest.raises(TypeError, match="certify: key is a uint32 array"):
        certify(mean_quartic, at_zero(jnp.float64), 0.1, 0.1, jax.random.PRNGKey(0))


def test_the_summary_says_what_was_found():
    found = certify(quadratic(0, -1, jnp.float64), at_zero(jnp.float64), eps=1e-6, delta=0.11, key=KEY)
    for words in (Verdict.saddle.sentence, "decided by       full", "lambda -1.000e+00", "delta            0.11"):
        assert words in found.summary()
    assert len({verdict.sentence for verdict in Verdict}) == len(Verdict)
