"""Certificates of losses over parameters of any kind, and of averages over batches, against dense Hessians."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from pwgf_jax import Particles, Verdict, certify, functionals, trees
from pwgf_jax.empirical import Empirical, hessian, prepared, stacked, value_and_gradient
from pwgf_jax.measures import traceable

KEY = jax.random.key(0)
TOLERANCES: dict[str, Any] = {"eps": 1e-3, "delta": 0.1, "key": KEY}
DATA = np.random.default_rng(0).normal(size=(6, 4, 3))  # six batches of four inputs


def factors(params, batch):
    """Two linear layers on inputs whose target is their own first coordinate: zero is a saddle."""
    return jnp.mean((batch @ params["a"] @ params["b"] - batch[:, 0]) ** 2) / 2


def zero(dtype=jnp.float64):
    return {"a": jnp.zeros((3, 2), dtype), "b": jnp.zeros(2, dtype)}


def over_all(params):
    return factors(params, jnp.asarray(DATA.reshape(-1, 3)))


def dense(loss, params):
    flat, unravel = ravel_pytree(params)
    return np.linalg.eigvalsh(jax.hessian(lambda x: loss(unravel(x)))(flat))


# --- parameters -------------------------------------------------------------------------------------------------------


def test_a_saddle_of_a_loss_is_certified_and_left_along_its_direction():
    params = zero()
    found = certify(over_all, params, **TOLERANCES)
    exact = dense(over_all, params)
    assert (found.verdict, found.decided_by, found.integral) == (Verdict.saddle, "full", None)
    np.testing.assert_allclose(found.full.eigenvalue, exact[0], rtol=1e-9)
    assert found.full.lower <= exact[0] + 1e-12
    assert jax.tree.map(jnp.shape, found.direction) == {"a": (3, 2), "b": (2,)}
    np.testing.assert_allclose(trees.norm(found.direction), 1)
    value = [over_all(jax.tree.map(lambda v, h=h: h * v, found.direction)) for h in (-1e-3, 0.0, 1e-3)]
    np.testing.assert_allclose((value[0] - 2 * value[1] + value[2]) / 1e-6, exact[0], rtol=1e-4)
    assert "integral" not in found.summary()


def test_a_minimum_of_a_loss_is_told_from_a_slope():
    target = jnp.arange(3.0)
    loss = lambda x: jnp.sum((x - target) ** 4 + (x - target) ** 2)  # noqa: E731
    at, off = certify(loss, target, **TOLERANCES), certify(loss, target + 1, **TOLERANCES)
    assert (at.verdict, at.strict_minimum) == (Verdict.second_order_stationary, True)
    assert (off.verdict, off.decided_by) == (Verdict.not_stationary, "gradient")
    np.testing.assert_allclose(off.gradient_norm, 6 * np.sqrt(3))


@pytest.mark.slow
def test_one_particle_of_weight_one_and_its_parameters_have_the_same_certificate():
    x = jnp.asarray([0.0, 0.1, -0.2])
    value = lambda x: jnp.sum(jnp.cos(x)) + x[0] * x[1] ** 2  # noqa: E731
    loss = certify(value, x, eps=1.0, delta=0.1, key=KEY)
    dirac = certify(functionals.potential(value), Particles.uniform(x[None]), eps=1.0, delta=0.1, key=KEY)
    assert loss.verdict == dirac.verdict == Verdict.saddle
    for name in ("eigenvalue", "residual", "lower", "rounding"):
        np.testing.assert_allclose(getattr(loss.full, name), getattr(dirac.full, name), rtol=1e-6, atol=1e-14)
    np.testing.assert_allclose(loss.gradient_norm, dirac.gradient_norm)
    np.testing.assert_allclose(loss.full.direction, dirac.full.direction[0], atol=1e-7)


def test_what_is_no_parameter_is_held_fixed():
    """Functions, integers, keys, None: the certificate is that of the floating leaves alone."""
    rest = {
        "activation": jnp.sin,
        "layers": 2,
        "ids": jnp.arange(3),
        "key": jax.random.key(7),
        "name": "net",
        "rate": 0.0,
        "no": None,
    }
    params = {"x": jnp.asarray([0.2, 0.0]), "scale": jnp.asarray(1.5), **rest}

    def loss(p):
        assert p["layers"] == 2  # not traced: these may decide what is computed
        assert p["rate"] == 0.0
        noise = jax.random.normal(p["key"], ())
        return p["scale"] * jnp.sum(p["activation"](p["x"]) ** 2) - p["ids"][2].astype(float) * p["x"][0] ** 2 + noise

    found = certify(loss, params, eps=10.0, delta=0.1, key=KEY)
    bare = lambda q: loss({**rest, "x": q["x"], "scale": q["scale"]})  # noqa: E731
    exact = dense(bare, {"x": params["x"], "scale": params["scale"]})
    np.testing.assert_allclose(found.full.eigenvalue, exact[0], rtol=1e-9)
    assert found.full.direction["x"].shape == (2,)
    assert found.full.direction["scale"].shape == ()
    assert all(found.full.direction[name] is None for name in rest)


def test_an_equinox_module_is_a_point_and_is_moved_by_its_direction():
    network = eqx.nn.MLP(
        3, "scalar", width_size=4, depth=1, activation=jnp.tanh, use_bias=False, use_final_bias=False, key=KEY
    )
    network = jax.tree.map(lambda leaf: 0 * leaf if eqx.is_inexact_array(leaf) else leaf, network)
    inputs = jnp.asarray(DATA.reshape(-1, 3))

    def loss(net):
        return jnp.mean((jax.vmap(net)(inputs) - inputs[:, 0]) ** 2)

    found = certify(loss, network, **TOLERANCES)
    floating, static = eqx.partition(network, eqx.is_inexact_array)
    exact = dense(lambda p: loss(eqx.combine(p, static)), floating)
    assert found.verdict == Verdict.saddle
    np.testing.assert_allclose(found.full.eigenvalue, exact[0], rtol=1e-8)
    moved = eqx.apply_updates(network, jax.tree.map(lambda v: 0.1 * v, found.direction))
    assert loss(moved) < loss(network)


@pytest.mark.float32
def test_leaves_of_mixed_precision_are_certified_in_float32():
    params = {"half": jnp.zeros(3, jnp.bfloat16), "single": jnp.zeros(2, jnp.float32)}
    curvatures = jnp.asarray([2.0, 0.3, -0.21], jnp.float32)  # bfloat16 would round them by up to 0.4 %

    def loss(p):
        half = p["half"].astype(jnp.float32)
        return jnp.sum(curvatures * half**2) / 2 + half[0] * p["single"][0] + jnp.sum(p["single"] ** 2)

    found = certify(loss, params, **TOLERANCES)
    np.testing.assert_allclose(found.full.eigenvalue, -0.21, rtol=1e-5)
    assert [leaf.dtype for leaf in jax.tree.leaves(found.direction)] == [jnp.bfloat16, jnp.float32]
    assert found.full.rounding < 1e-5


@pytest.mark.slow
def test_what_comes_along_with_the_value_is_left_out():
    aux = lambda p: (over_all(p), {"accuracy": jnp.zeros(3)})  # noqa: E731
    expected = certify(over_all, zero(), **TOLERANCES)
    found = certify(aux, zero(), has_aux=True, **TOLERANCES)
    assert found.full.eigenvalue == pytest.approx(expected.full.eigenvalue)
    F = lambda mu: (-mu.weights @ jnp.sum(mu.points**2, axis=1), mu.size)  # noqa: E731
    assert certify(F, Particles.uniform(jnp.zeros((3, 2))), has_aux=True, **TOLERANCES).verdict == Verdict.saddle


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "batches",
    [list(DATA), iter(list(DATA)), jnp.asarray(DATA), DATA],
    ids=["list", "iterator", "array", "numpy"],
)
def test_the_certificate_of_an_average_is_that_of_all_the_data(batches):
    expected = certify(over_all, zero(), **TOLERANCES)
    found = certify(factors, zero(), batches=batches, **TOLERANCES)
    assert (found.verdict, found.full.products) == (expected.verdict, expected.full.products)
    np.testing.assert_allclose(found.full.eigenvalue, expected.full.eigenvalue, rtol=1e-9)
    np.testing.assert_allclose(found.full.lower, expected.full.lower, rtol=1e-6)


def test_batches_of_pairs_are_a_list_of_them_or_arrays_with_a_leading_axis():
    x, y = jnp.asarray(DATA), jnp.asarray(DATA[:, :, 0])
    loss = lambda w, batch: jnp.mean((batch[0] @ w - batch[1]) ** 2)  # noqa: E731
    given = [(x, y), list(zip(x, y, strict=True)), tuple(zip(x, y, strict=True))]
    found = [certify(loss, jnp.zeros(3), eps=10.0, delta=0.1, key=KEY, batches=batches) for batches in given]
    exact = 2 * np.linalg.eigvalsh(np.mean([b.T @ b / 4 for b in DATA], axis=0))
    for each in found:
        np.testing.assert_allclose(each.full.eigenvalue, exact[0], rtol=1e-9)


@pytest.mark.slow
def test_an_average_of_functionals_over_batches_is_certified_in_both_parts():
    mu = Particles.uniform(jnp.asarray(np.random.default_rng(1).normal(size=(4, 3))))

    def F(mu, batch):
        return jnp.mean((jnp.tanh(batch @ mu.points.T) @ mu.weights - batch[:, 0]) ** 2)

    whole = lambda mu: F(mu, jnp.asarray(DATA.reshape(-1, 3)))  # noqa: E731
    options: dict[str, Any] = {"eps": 10.0, "delta": 0.05, "key": KEY}
    found, expected = certify(F, mu, batches=list(DATA), **options), certify(whole, mu, **options)
    for part in ("integral", "full"):
        a, b = getattr(found, part), getattr(expected, part)
        np.testing.assert_allclose(a.eigenvalue, b.eigenvalue, rtol=1e-7)
    assert found.verdict == expected.verdict


def test_a_product_of_an_average_needs_the_memory_of_one_batch():
    """Linearised once, 64 batches would be held at the same time."""

    def loss(w, batch):
        hidden = batch
        for _ in range(4):
            hidden = jnp.tanh(hidden @ w)
        return jnp.mean(hidden**2)

    def temporary(count):
        average = Empirical(traceable(loss), jnp.zeros((count, 200, 8)))
        both = jax.jit(lambda F, w: (value_and_gradient(F, w)[1], hessian(F, w)(w)))
        used = both.lower(average, jnp.zeros((8, 8))).compile().memory_analysis()
        assert used is not None
        return used.temp_size_in_bytes

    assert temporary(64) < 1.2 * temporary(2)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([DATA[0], DATA[1, :2]], "batches of shapes .*leave the last one out if it is smaller"),
        ([], "give at least one"),
        ((DATA, DATA[:2]), "the leading axis counts the batches"),
        (jnp.zeros(()), "the leading axis counts the batches"),
    ],
)
def test_batches_that_are_none_are_refused(batches, message):
    with pytest.raises(ValueError, match=message):
        certify(factors, zero(), batches=batches, **TOLERANCES)


def test_a_tuple_of_arrays_is_one_pytree_even_where_their_shapes_agree():
    """Tokens and next tokens, say: as for jax.lax.scan."""
    both = (jnp.zeros((5, 2)), jnp.ones((5, 2)))
    assert [leaf.shape for leaf in jax.tree.leaves(stacked(both, "certify"))] == [(5, 2), (5, 2)]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "point", "error", "message"),
    [
        (lambda x: x, jnp.ones(3), TypeError, r"returns float64\[3\]; give a function with one floating scalar"),
        (lambda x: (jnp.sum(x), 0), jnp.ones(3), TypeError, "a tuple.*say has_aux=True"),
        (lambda x: jnp.sum(x) > 0, jnp.ones(3), TypeError, r"returns bool\[\]"),
        (lambda x: 0.0, {"n": 3}, ValueError, "a dict without floating arrays"),
        (lambda x: jnp.sum(jnp.abs(x)), jnp.ones(3, complex), TypeError, "complex; give its real and imaginary part"),
        (lambda mu: mu.weights @ mu.points[:, 0], jnp.ones((3, 1)), TypeError, r"asks for .weights.*Particles.uniform"),
    ],
)
def test_what_is_no_loss_is_refused(objective, point, error, message):
    with pytest.raises(error, match=message):
        certify(objective, point, **TOLERANCES)


def test_parameters_have_no_integral_part():
    average = prepared(factors, zero(), "certify", batches=list(DATA))
    with pytest.raises(ValueError, match=r"they have the .full. one alone"):
        hessian(average.objective, average.point, "integral")
