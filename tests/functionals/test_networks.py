"""The network functionals against the closed forms of their derivatives, and at their known stationary points."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwgf_jax import (
    Particles,
    first_variation,
    functionals,
    hessian_guided,
    hessian_matrix,
    smallest_eigenpair,
    wasserstein_gradient,
    wasserstein_hessian,
)
from pwgf_jax.functionals import icfl, matrix_factorization, mean_field_regression
from tests.oracles import closed_forms
from tests.oracles.closed_forms import Network

N, M, K, L = 6, 10, 2, 3


def rng(seed=0):
    return np.random.default_rng(seed)


DRAW = rng(1)
INPUTS, TARGETS = DRAW.normal(size=(M, L)), DRAW.normal(size=(M, K))
POINTS = DRAW.normal(size=(N, K + L))
WEIGHTS = np.array([0.1, 0.3, 0.0, 0.25, 0.15, 0.2])
QUERIES = DRAW.normal(size=(3, K + L))

# name -> (constructor, its closed form)
LOSSES = {
    "regression": (mean_field_regression, lambda h: closed_forms.square_loss(h, TARGETS)),
    "matrix": (matrix_factorization, lambda h: closed_forms.matrix_loss(h, TARGETS)),
    "half matrix": (
        lambda z, y, **options: matrix_factorization(z, y, prefactor=0.5, **options),
        lambda h: closed_forms.matrix_loss(h, TARGETS, 0.5),
    ),
    "icfl": (icfl, lambda h: closed_forms.profiled_loss(h, TARGETS)),
    "ridge icfl": (
        lambda z, y, **options: icfl(z, y, ridge=0.3, **options),
        lambda h: closed_forms.profiled_loss(h, TARGETS, 0.3),
    ),
}


def array(x, dtype=jnp.float64):
    return jnp.asarray(x, dtype)


def made(name, dtype=jnp.float64, **options):
    return LOSSES[name][0](array(INPUTS, dtype), array(TARGETS, dtype), **options)


def measure(dtype=jnp.float64, points=POINTS, weights=None):
    return (
        Particles.uniform(array(points, dtype))
        if weights is None
        else Particles(array(points, dtype), array(weights, dtype))
    )


def split(points):
    return {"a": points[:, :K], "w": points[:, K:]}


@jax.jit  # once for all of the functionals of one structure: they are pytrees
def derivatives(F, mu, queries):
    return {
        "value": F(mu),
        "first variation": first_variation(F, mu)(queries),
        "gradient": wasserstein_gradient(F, mu),
        "gradient at queries": wasserstein_gradient(F, mu, queries),
        "integral": hessian_matrix(F, mu, "integral"),
        "local": hessian_matrix(F, mu, "local"),
    }


@pytest.mark.parametrize("name", LOSSES)
def test_derivatives_have_their_closed_forms(name, dtype, tolerance):
    found = derivatives(made(name, dtype), measure(dtype, weights=WEIGHTS), array(QUERIES, dtype))
    closed = Network(POINTS, WEIGHTS, INPUTS, LOSSES[name][1], K)
    present = WEIGHTS > 0
    rows = np.repeat(present, K + L)
    expected = {
        "value": closed.value,
        "first variation": closed.first_variation(QUERIES),
        "gradient": closed.gradient(POINTS) * present[:, None],
        "gradient at queries": closed.gradient(QUERIES),
        "integral": closed.integral_matrix() * rows[:, None],
        "local": closed.local_matrix() * rows[:, None],
    }
    for field, value in expected.items():
        assert found[field].dtype == dtype
        scale = np.max(np.abs(value))
        assert scale > 1e-3
        np.testing.assert_allclose(found[field], value, atol=tolerance(dtype) * scale, err_msg=field)
    kernel = closed.kernel(QUERIES, QUERIES)
    np.testing.assert_allclose(kernel, kernel.transpose(2, 3, 0, 1), atol=1e-12 * np.max(np.abs(kernel)))


@pytest.mark.parametrize("activation", ["sigmoid", "identity"])
def test_derivatives_have_their_closed_forms_with_other_activations(activation):
    name, options = "matrix", {"activation": activation}
    found = derivatives(made(name, **options), measure(), array(QUERIES))
    closed = Network(POINTS, np.full(N, 1 / N), INPUTS, LOSSES[name][1], K, activation)
    np.testing.assert_allclose(found["gradient"], closed.gradient(POINTS), rtol=1e-9)
    np.testing.assert_allclose(found["integral"], closed.integral_matrix(), atol=1e-10)
    np.testing.assert_allclose(found["local"], closed.local_matrix(), atol=1e-10)


@pytest.mark.parametrize("activation", closed_forms.ACTIVATIONS)
def test_activations_are_called_by_their_names(activation, dtype, tolerance):
    F, mu = made("regression", dtype, activation=activation), measure(dtype, weights=WEIGHTS)
    sigma = closed_forms.ACTIVATIONS[activation]
    expected = sigma(INPUTS @ POINTS[:, K:].T) @ (WEIGHTS[:, None] * POINTS[:, :K])
    np.testing.assert_allclose(F.outputs(mu, F.inputs), expected, atol=tolerance(dtype))
    assert set(functionals.ACTIVATIONS) == set(closed_forms.ACTIVATIONS)


@pytest.mark.parametrize("name", ["matrix", "icfl"])
def test_a_dict_of_neurons_is_the_array_of_their_rows(name, tolerance):
    dtype = jnp.float32
    F, mu = made(name, dtype), measure(dtype, weights=WEIGHTS)
    as_dict = Particles(split(mu.points), mu.weights)

    @jax.jit
    def both(v):
        gradients = wasserstein_gradient(F, mu), wasserstein_gradient(F, as_dict)
        return (
            (F(mu), F(as_dict)),
            gradients,
            (wasserstein_hessian(F, mu)(v), wasserstein_hessian(F, as_dict)(split(v))),
        )

    values, *fields = both(array(rng(4).normal(size=(N, K + L)), dtype))
    np.testing.assert_allclose(values[0], values[1], rtol=tolerance(dtype))
    for rows, parts in fields:
        joined = np.concatenate([parts["a"], parts["w"]], axis=1)
        np.testing.assert_allclose(rows, joined, atol=tolerance(dtype) * np.max(np.abs(joined)))


@pytest.mark.parametrize(("name", "chunk_size"), [("matrix", 4), ("icfl", 1), ("icfl", 100)])
def test_chunks_change_memory_and_nothing_else(name, chunk_size):
    mu, v = measure(weights=WEIGHTS), array(rng(4).normal(size=(N, K + L)))

    @jax.jit
    def all_of(mu, v):
        return [
            [
                F(mu),
                wasserstein_gradient(F, mu),
                *[wasserstein_hessian(F, mu, part)(v) for part in ("integral", "full")],
            ]
            for F in (made(name), made(name, chunk_size=chunk_size))
        ]

    dense, chunked = all_of(mu, v)
    for a, b in zip(dense, chunked, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-11 * np.max(np.abs(a)))


# --- minibatches ------------------------------------------------------------------------------------------------------


def test_a_batch_is_rows_of_the_data_each_at_most_once():
    F = made("matrix")
    for size in (1, 4, M):
        batch = F.batch(jax.random.key(size), size)
        pairs = {tuple(row) for row in np.concatenate([INPUTS, TARGETS], axis=1)}
        drawn = [tuple(row) for row in np.concatenate([batch.inputs, batch.targets], axis=1)]
        assert len(set(drawn)) == size
        assert set(drawn) <= pairs
    np.testing.assert_allclose(batch(measure()), F(measure()), rtol=1e-12)


@pytest.mark.slow
def test_batches_are_unbiased_in_value_and_gradient():
    F, mu = made("matrix"), measure()
    keys = jax.random.split(jax.random.key(0), 20_000)
    draw = jax.jit(jax.vmap(lambda key: jax.value_and_grad(lambda x: F.batch(key, 3)(mu.moved_to(x)))(mu.points)))
    values, gradients = draw(keys)
    for found, expected in ((values, F(mu)), (gradients, wasserstein_gradient(F, mu) / N)):
        error = np.std(found, axis=0) / np.sqrt(len(keys))
        np.testing.assert_array_less(np.abs(np.mean(found, axis=0) - expected), 5 * error)
    assert np.std(values) > 0.01 * np.mean(values)


@pytest.mark.parametrize("size", [0, -1, M + 1])
def test_impossible_batches_are_refused(size):
    with pytest.raises(ValueError, match=f"size={size}; there are {M} data points to draw from"):
        made("matrix").batch(jax.random.key(0), size)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: icfl(array(INPUTS), array(TARGETS), activation="tan"),
            ValueError,
            "activation='tan'; choose one of tanh",
        ),
        (lambda: icfl(array(INPUTS), array(TARGETS), ridge=-0.1), ValueError, r"ridge=-0.1; give a non-negative"),
        (lambda: icfl(array(INPUTS), array(TARGETS), chunk_size=0), ValueError, "chunk_size=0; give a positive number"),
        (lambda: mean_field_regression(array(INPUTS), array(TARGETS, jnp.float32)), TypeError, "one floating dtype"),
        (
            lambda: made("icfl")(measure(points=POINTS[:, :4])),
            ValueError,
            r"2 outgoing and 2 ingoing .* particles \(N, 5\)",
        ),
        (
            lambda: made("icfl")(Particles.uniform({"a": jnp.ones((2, 1)), "w": jnp.ones((2, 3))})),
            ValueError,
            "1 outgoing",
        ),
    ],
)
def test_impossible_networks_are_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize(
    "build",
    [
        lambda: matrix_factorization(array(INPUTS), array(TARGETS[:5])),
        lambda: matrix_factorization(array(INPUTS), array(TARGETS[:, 0])),
        lambda: mean_field_regression(array(INPUTS, int), array(TARGETS, int)),
    ],
    ids=["rows", "axes", "integers"],
)
def test_impossible_data_are_refused(build):
    with pytest.raises((ValueError, TypeError), match="inputs"):  # by the annotation, where tests check it
        build()


@pytest.mark.parametrize("name", ["matrix", "ridge icfl"])
def test_functionals_of_several_data_sets_map(name, dtype, tolerance):
    F, mu = made(name, dtype), measure(dtype)
    shifts = array([0.0, 1.0, -0.5], dtype)
    stack = jax.vmap(lambda s: replace(F, targets=F.targets + s))(shifts)
    values = jax.jit(jax.vmap(lambda F: F(mu)))(stack)
    for value, shift in zip(values, shifts, strict=True):
        np.testing.assert_allclose(value, replace(F, targets=F.targets + shift)(mu), rtol=tolerance(dtype))


# --- matrix factorisation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefactor", [1.0, 0.5])
def test_matrix_factorisation_with_a_zero_network_is_a_strict_saddle(prefactor):
    draw = rng(5)
    points = closed_forms.antithetic(draw.normal(size=(3, K)), draw.normal(size=(3, L)))
    F = matrix_factorization(array(INPUTS), array(TARGETS), prefactor=prefactor)
    found = derivatives(F, measure(points=points), array(QUERIES))
    np.testing.assert_allclose(found["value"], prefactor / 2 * np.mean(np.sum(TARGETS**2, axis=1) ** 2), rtol=1e-12)
    for field in ("first variation", "gradient", "gradient at queries", "local"):
        np.testing.assert_allclose(found[field], 0, atol=1e-14, err_msg=field)
    # nonzero spectrum: −2c times that of the Gram matrix of ∇_θ(h_θ·h°)(z) in L²(μ), over the data
    jacobian = Network(points, np.full(6, 1 / 6), INPUTS, lambda h: closed_forms.matrix_loss(h, TARGETS), K).jacobian(
        points
    )
    slopes = np.einsum("nmpi,mp->nmi", jacobian, TARGETS)
    gram = np.einsum("nmi,nli->ml", slopes, slopes) / 6 / M
    expected = np.sort(-2 * prefactor * np.linalg.eigvalsh(gram))
    spectrum = np.linalg.eigvalsh(found["integral"])
    assert np.all(expected < -1e-9)
    np.testing.assert_allclose(spectrum[:M], expected, rtol=1e-8)
    np.testing.assert_allclose(spectrum[M:], 0, atol=1e-12)
    pair = jax.jit(lambda mu: smallest_eigenpair(wasserstein_hessian(F, mu), jax.random.key(0), 30))(
        measure(points=points)
    )
    np.testing.assert_allclose(pair.eigenvalue, expected[0], rtol=1e-8)


@pytest.mark.parametrize("sign", [1, -1])
def test_matrix_factorisation_is_minimal_where_the_network_is_the_teacher_up_to_sign(sign, dtype, tolerance):
    F = made("matrix", dtype)
    mu = measure(dtype)
    student = mu.moved_to(mu.points * array([sign] * K + [1] * L, dtype)[None])
    F = replace(F, targets=F.outputs(mu, F.inputs))
    found = derivatives(F, student, array(QUERIES, dtype))
    np.testing.assert_allclose(found["value"], 0, atol=10 * float(jnp.finfo(dtype).eps) ** 2)
    np.testing.assert_allclose(found["gradient"], 0, atol=tolerance(dtype))
    spectrum = np.linalg.eigvalsh(found["integral"])
    assert spectrum[0] > -tolerance(dtype) * spectrum[-1]


def test_matrix_factorisation_obeys_its_homogeneity_identity():
    found = derivatives(made("matrix"), measure(weights=WEIGHTS), array(QUERIES))
    h = Network(POINTS, WEIGHTS, INPUTS, LOSSES["matrix"][1], K).outputs
    Rh = np.sum(h**2, axis=1)[:, None] * h - np.sum(TARGETS * h, axis=1)[:, None] * TARGETS
    left = WEIGHTS @ np.sum(POINTS[:, :K] * np.asarray(found["gradient"])[:, :K], axis=1)
    np.testing.assert_allclose(left, 2 * np.mean(np.sum(h * Rh, axis=1)), rtol=1e-12)


def test_neurons_all_at_zero_are_a_trap_for_tanh(dtype):
    F, mu = made("matrix", dtype), measure(dtype, points=np.zeros((N, K + L)))
    found = derivatives(F, mu, array(QUERIES, dtype))
    for field in ("gradient", "integral"):
        np.testing.assert_array_equal(found[field], 0, err_msg=field)
    np.testing.assert_allclose(found["local"], 0, atol=10 * float(jnp.finfo(dtype).eps))
    np.testing.assert_array_equal(jax.jit(lambda key: hessian_guided(key, F, mu))(jax.random.key(0)), 0)
    assert found["value"] > 0.1  # and no minimum


def test_neurons_without_outgoing_weights_are_a_strict_saddle_for_a_sigmoid():
    points = np.concatenate([np.zeros((N, K)), np.tile(rng(6).normal(size=(1, L)), (N, 1))], axis=1)
    found = derivatives(made("matrix", activation="sigmoid"), measure(points=points), array(QUERIES))
    for field in ("gradient", "first variation", "local"):
        np.testing.assert_allclose(found[field], 0, atol=1e-15, err_msg=field)
    # Here ∇_θ(h_θ·h°) = (σ h°, 0), so λ_min = −2 times the largest eigenvalue of E[σ² h° h°ᵀ].
    sigma = closed_forms.ACTIVATIONS["sigmoid"](INPUTS @ points[0, K:])
    expected = -2 * np.linalg.eigvalsh(np.einsum("m,mp,mq->pq", sigma**2, TARGETS, TARGETS) / M)[-1]
    assert expected < -0.1
    np.testing.assert_allclose(np.linalg.eigvalsh(found["integral"])[0], expected, rtol=1e-10)


# --- in-context feature learning --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_icfl_is_the_three_layer_loss_with_the_last_layer_at_its_optimum(ridge, dtype, tolerance):
    F, mu = made("ridge icfl" if ridge else "icfl", dtype), measure(dtype, weights=WEIGHTS)
    h = np.asarray(F.outputs(mu, F.inputs), np.float64)
    # min over V of ½E|f − Vh|² + λ/2|V|², as least squares with extra rows
    left = np.concatenate([h / np.sqrt(M), np.sqrt(ridge) * np.eye(K)])
    right = np.concatenate([TARGETS / np.sqrt(M), np.zeros((K, K))])
    V, *_ = np.linalg.lstsq(left, right)
    np.testing.assert_allclose(F(mu), np.sum((left @ V - right) ** 2) / 2, rtol=tolerance(dtype))


def test_icfl_does_not_see_invertible_maps_of_the_outgoing_weights():
    R = rng(7).normal(size=(K, K)) + 2 * np.eye(K)
    turned = np.concatenate([POINTS[:, :K] @ R.T, POINTS[:, K:]], axis=1)
    before, after = (derivatives(made("icfl"), measure(points=p), array(QUERIES)) for p in (POINTS, turned))
    np.testing.assert_allclose(after["value"], before["value"], rtol=1e-12)
    np.testing.assert_allclose(after["gradient"][:, K:], before["gradient"][:, K:], rtol=1e-9)
    np.testing.assert_allclose(after["gradient"][:, :K] @ R, before["gradient"][:, :K], rtol=1e-9)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_icfl_has_the_mean_first_variation_that_its_ridge_gives_it(ridge):
    F, mu = made("ridge icfl" if ridge else "icfl"), measure(weights=WEIGHTS)
    variation, gradient = jax.jit(lambda mu: (first_variation(F, mu)(mu.points), wasserstein_gradient(F, mu)))(mu)
    h = Network(POINTS, WEIGHTS, INPUTS, LOSSES["icfl"][1], K).outputs
    _, B = closed_forms.profiled_readout(h, TARGETS, ridge)
    np.testing.assert_allclose(WEIGHTS @ variation, -ridge * np.sum(B**2), atol=1e-12)
    moment = np.einsum("n,np,nq->pq", WEIGHTS, gradient[:, :K], POINTS[:, :K])
    if ridge:
        assert np.max(np.abs(moment)) > 0.01
    else:
        np.testing.assert_allclose(moment, 0, atol=1e-12)


def test_icfl_with_an_uncorrelated_network_is_a_strict_saddle_of_the_highest_value():
    draw = rng(8)
    inputs = closed_forms.sign_pairs(draw.normal(size=(5, 2)), draw.normal(size=(5, 2)))
    targets = np.tanh(inputs[:, :2] @ draw.normal(size=(2, 3))) @ draw.normal(size=(3, K))
    points = np.concatenate([draw.normal(size=(N, K)), np.zeros((N, 2)), draw.normal(size=(N, 2))], axis=1)
    F, mu = icfl(array(inputs), array(targets)), measure(points=points)
    found = derivatives(F, mu, array(draw.normal(size=(3, K + 4))))
    np.testing.assert_allclose(found["value"], np.mean(np.sum(targets**2, axis=1)) / 2, rtol=1e-12)
    spectrum = np.linalg.eigvalsh(found["integral"])
    for field in ("gradient", "first variation", "gradient at queries", "local"):
        np.testing.assert_allclose(found[field], 0, atol=1e-12, err_msg=field)
    assert spectrum[0] < -1
    assert spectrum[-1] < 1e-10 * abs(spectrum[0])
    closed = Network(points, np.full(N, 1 / N), inputs, lambda h: closed_forms.profiled_loss(h, targets), K)
    np.testing.assert_allclose(found["integral"], closed.integral_matrix(), atol=1e-10 * abs(spectrum[0]))


@pytest.mark.parametrize("chosen", [(0, 1), (0, 2), (1, 3)])
def test_linear_icfl_has_its_critical_points_and_curvatures(chosen):
    """f° = A°x with whitened x: critical where A_μ = Q E_I, with E_I rows of eigenvectors of T = A°ᵀA°."""
    draw, width = rng(9), 4
    x = closed_forms.whitened(draw.normal(size=(12, width)))
    E = np.linalg.qr(draw.normal(size=(width, width)))[0]  # rows are the eigenvectors
    k = 2
    t = np.array([3.0, 1.2, 0.0, 0.0])
    A_teacher = np.sqrt(t[:k])[:, None] * E[:k]
    Q = draw.normal(size=(k, k)) + 2 * np.eye(k)
    A = Q @ E[list(chosen)]
    a = draw.normal(size=(N, k))
    second = a.T @ a / N
    w = a @ np.linalg.solve(second, A)  # so that ∫ a wᵀ dμ = A
    F, mu = (
        icfl(array(x), array(x @ A_teacher.T), activation="identity"),
        measure(points=np.concatenate([a, w], axis=1)),
    )
    found = derivatives(F, mu, array(draw.normal(size=(3, k + width))))
    others = [j for j in range(width) if j not in chosen]
    np.testing.assert_allclose(found["value"], sum(t[j] for j in others) / 2, atol=1e-12)
    np.testing.assert_allclose(found["gradient"], 0, atol=1e-12)
    np.testing.assert_allclose(found["local"], 0, atol=1e-11)
    q = draw.normal(size=k)
    for j in range(width):
        # ẇ_i = (a_iᵀ Σ_a⁻¹ q) e_j moves A by q e_jᵀ
        move = np.concatenate([np.zeros((N, k)), np.outer(a @ np.linalg.solve(second, q), E[j])], axis=1).ravel()
        curvature = move @ np.asarray(found["integral"]) @ move / N
        expected = -sum(np.linalg.solve(Q, q)[s] ** 2 * (t[j] - t[i]) for s, i in enumerate(chosen))
        np.testing.assert_allclose(curvature, expected if j in others else 0, atol=1e-11)
    lowest = np.linalg.eigvalsh(found["integral"])[0]
    assert lowest > -1e-10 if chosen == (0, 1) else lowest < -0.01


# --- convexity --------------------------------------------------------------------------------------------------------


def test_regression_has_no_negative_curvature_in_the_integral_part(dtype, tolerance):
    found = derivatives(made("regression", dtype), measure(dtype), array(QUERIES, dtype))
    spectrum = np.linalg.eigvalsh(found["integral"])
    assert spectrum[0] > -tolerance(dtype) * spectrum[-1]
    assert np.linalg.eigvalsh(found["local"])[0] < -0.01  # the full one has


def test_regression_is_zero_at_a_realised_target(dtype):
    F, mu = made("regression", dtype), measure(dtype)
    assert replace(F, targets=F.outputs(mu, F.inputs))(mu) < 10 * float(jnp.finfo(dtype).eps) ** 2
