"""Classification with small classes: losses, the dead network, curvature by class; and SAM near a saddle."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from pwgf_jax import problems

COUNTS = np.array([1000, 81, 16])


def rng(seed=0):
    return np.random.default_rng(seed)


def example(sizes=(6, 3, 2), dimension=2, seed=0):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return rng(seed).normal(size=(labels.size, dimension)) + 2 * rng(seed + 1).normal(size=(3, dimension))[
        labels
    ], labels


# Losses, written out from the papers with plain exponentials


def written_out(name, z, y):
    if name == "ldam":
        margins = COUNTS**-0.25 / 16**-0.25 * 0.5
        z = 30 * (z - margins[y] * (np.arange(3) == y))
    if name == "vector_scaling":
        z = (COUNTS / 1000) ** 0.3 * z + np.log(COUNTS / 1097)
    return np.log(np.sum(np.exp(z))) - z[y]


@pytest.mark.parametrize("name", ["cross_entropy", "ldam", "vector_scaling"])
def test_losses_are_those_of_the_papers(name, dtype):
    z, y = rng().normal(size=(12, 3)), np.arange(12) % 3
    found = getattr(problems, name)(jnp.asarray(z, dtype), jnp.asarray(y), COUNTS)
    assert found.dtype == dtype
    expected = [written_out(name, *each) for each in zip(z, y, strict=True)]
    rounding = 100 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(found, expected, rtol=rounding, atol=rounding)


def test_a_smaller_class_must_win_by_more():
    """At the decision between two classes, the loss of the smaller one is larger, and so is its gradient."""
    for loss in (partial(problems.ldam, scale=1.0), problems.vector_scaling, partial(problems.vector_scaling, tau=0.0)):
        tied = jnp.array([[2.0, 2.0], [2.0, 2.0]], jnp.float32)
        losses = loss(tied, jnp.array([0, 1]), np.array([100, 1]))
        plain = problems.cross_entropy(tied, jnp.array([0, 1]), np.array([100, 1]))
        assert losses[1] > losses[0]
        assert losses[1] > plain[1]


def test_weights_are_inverse_effective_numbers_and_average_to_one_over_examples():
    weights = problems.class_balanced_weights(COUNTS, 0.99)
    effective = np.array([sum(0.99**k for k in range(n)) for n in COUNTS])
    np.testing.assert_allclose(weights * effective, weights[0] * effective[0], rtol=1e-12)
    np.testing.assert_allclose(COUNTS @ weights / COUNTS.sum(), 1, rtol=1e-12)
    np.testing.assert_array_equal(problems.class_balanced_weights(COUNTS, 0.0), 1)
    np.testing.assert_allclose(
        problems.class_balanced_weights(COUNTS, 1 - 1e-13), COUNTS.sum() / (3 * COUNTS), rtol=1e-9
    )


def test_the_long_tail_has_its_profile_and_is_nested(key):
    labels = rng().permutation(np.repeat(np.arange(4), [1000, 1200, 1000, 1500]))
    kept = problems.long_tailed(labels, 0.001, key)
    assert np.bincount(labels[kept]).tolist() == [1000, 100, 10, 1]
    np.testing.assert_array_equal(kept, np.unique(kept))
    np.testing.assert_array_equal(kept, problems.long_tailed(labels, 0.001, key))
    assert set(kept) < set(problems.long_tailed(labels, 0.1, key))
    assert set(kept) != set(problems.long_tailed(labels, 0.001, jax.random.key(1)))
    # a short class decides how large the others may be
    short = np.repeat(np.arange(3), [100, 100, 5])
    assert np.bincount(short[problems.long_tailed(short, 0.25, key)]).tolist() == [20, 10, 5]


# The network and its dead saddle


@pytest.mark.parametrize(
    ("loss", "hidden", "beta"), [("cross_entropy", 3, 0.0), ("vs", 2, 0.9), ("cross_entropy", (2, 2), 0.9)]
)
def test_the_dead_network_is_what_the_problem_says(loss, hidden, beta):
    inputs, labels = example()
    problem = problems.imbalanced_classification(inputs, labels, hidden=hidden, loss=loss, beta=beta, dtype=jnp.float64)
    dead = problem.saddles[0]
    flat, unravel = ravel_pytree(dead.point)
    value = lambda x: problem.value(unravel(x))  # noqa: E731
    level, slope, H = jax.jit(lambda x: (value(x), jax.grad(value)(x), jax.hessian(value)(x)))(flat)
    np.testing.assert_allclose(level, dead.value, rtol=1e-12)
    np.testing.assert_allclose(slope, 0, atol=1e-13)
    assert dead.spectrum is not None
    np.testing.assert_allclose(np.linalg.eigvalsh(H), dead.spectrum, atol=1e-12)
    assert dead.curvature == dead.spectrum[0]
    assert (dead.curvature < -0.1) == (hidden != (2, 2))
    assert not dead.is_minimum
    assert problem.minimum is None


def test_the_dead_network_of_two_hidden_layers_is_a_saddle_all_the_same():
    """Along u₁ → first unit → second unit → v the loss is odd to leading order, −t³ v·M u."""
    inputs, labels = example()
    problem = problems.imbalanced_classification(inputs, labels, hidden=(2, 2), dtype=jnp.float64)
    first, second, last = problem.saddles[0].point
    value = jax.jit(problem.value)
    share = np.bincount(labels) / labels.size
    pull = share[:, None] * (np.stack([inputs[labels == c].mean(0) for c in range(3)]) - inputs.mean(0))
    left, sigma, right = np.linalg.svd(pull)

    def change(t):
        v, w, u = np.zeros((2, 3)), np.zeros((2, 2)), np.zeros((2, 2))
        v[0], w[0, 0], u[:, 0] = t * left[:, 0], t, t * right[0]
        moved = ({**first, "w": u}, {**second, "w": w}, {**last, "w": v})
        return float(value(moved)) - problem.saddles[0].value

    np.testing.assert_allclose(change(1e-2), -sigma[0] * 1e-6, rtol=1e-2)


def test_terms_average_to_the_value_and_starts_are_glorot(key):
    inputs, labels = example(sizes=(40, 10, 2))
    problem: Any = problems.imbalanced_classification(
        inputs, labels, hidden=(30, 20), loss=partial(problems.ldam, scale=2.0), beta=0.9, scale=0.5
    )
    start = jax.jit(problem.init)(key)
    assert problem.saddles == ()
    assert [layer["w"].shape for layer in start] == [(2, 30), (30, 20), (20, 3)]
    assert {leaf.dtype for leaf in jax.tree.leaves(start)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(np.std(start[1]["w"]), 0.5 * np.sqrt(2 / 50), rtol=0.1)
    chosen = jnp.arange(problem.size)
    terms, level = jax.jit(lambda p: (problem.components(p, chosen), problem.value(p)))(start)
    np.testing.assert_allclose(np.mean(terms), level, rtol=1e-5)
    # by hand: the weighted losses of two examples of different classes
    x, y = jnp.asarray(inputs[[0, -1]], jnp.float32), jnp.asarray(labels[[0, -1]])
    losses = problems.ldam(problems.predict(start, x), y, np.array([40, 10, 2]), scale=2.0)
    weights = problems.class_balanced_weights(np.array([40, 10, 2]), 0.9)[[0, 2]]
    np.testing.assert_allclose(terms[np.array([0, 51])], weights * np.asarray(losses), rtol=1e-5)


@pytest.mark.slow
def test_extremes_of_each_class_are_those_of_its_dense_hessian(key):
    inputs, labels = example()
    problem: Any = problems.imbalanced_classification(inputs, labels, hidden=2, dtype=jnp.float64)
    params = problem.init(key)
    everyone, of = jnp.arange(labels.size), jnp.asarray(labels, jnp.int32)

    def value_of_class(params, c):
        return jnp.mean(problem.components(params, everyone), where=of == c)

    found = jax.jit(lambda p: problems.class_extremes(value_of_class, p, 3, key))(params)
    flat, unravel = ravel_pytree(params)
    hessians = jax.jit(jax.vmap(jax.hessian(lambda x, c: value_of_class(unravel(x), c)), in_axes=(None, 0)))(
        flat, jnp.arange(3, dtype=jnp.int32)
    )
    spectra = np.linalg.eigvalsh(np.asarray(hessians))
    np.testing.assert_allclose(found.smallest, spectra[:, 0], atol=1e-10)
    np.testing.assert_allclose(found.largest, spectra[:, -1], atol=1e-10)
    assert np.all(found.converged)
    assert np.all(np.asarray(found.residual) < 1e-8)
    assert np.all(spectra[:, 0] < -1e-3)  # every class sees a saddle here: the signs are tested


# SAM near a saddle: the counter-evidence of Kim et al., arXiv:2301.06308, as equalities

CURVATURES = np.array([-0.5, 1.0, 2.0])


def sam_step(eta, adversary):
    """One step of optax's SAM on ½ Σ aᵢxᵢ²."""
    optimizer: Any = optax.contrib.sam(optax.sgd(eta), adversary, opaque_mode=True)

    def gradient(x, _=None):
        return jnp.asarray(CURVATURES, x.dtype) * x

    def step(x):
        updates, _ = optimizer.update(gradient(x), optimizer.init(x), x, grad_fn=gradient)
        return optax.apply_updates(x, updates)

    return step


def normalised(rho, eps):
    return optax.chain(optax.normalize_by_update_norm(eps=eps), optax.sgd(rho))


@pytest.mark.parametrize("rho", [0.2, 2.0, 3.0])
def test_unnormalised_sam_is_slower_than_gradient_descent_and_falls_onto_the_saddle_beyond_one(rho):
    eta, steps = 0.1, 30
    start = jnp.array([1e-3, 0.5, -0.3])
    end = jax.jit(lambda x: jax.lax.fori_loop(0, steps, lambda _, x: sam_step(eta, optax.sgd(rho))(x), x))(start)
    np.testing.assert_allclose(
        end, np.asarray(start) * (1 - eta * CURVATURES * (1 + rho * CURVATURES)) ** steps, rtol=1e-11
    )
    growth = float(end[0] / start[0])
    assert growth < (1 + eta * 0.5) ** steps  # gradient descent's
    if rho * 0.5 == 1:
        np.testing.assert_allclose(growth, 1, rtol=1e-12)
    else:
        assert (growth > 1) == (rho * 0.5 < 1)


def test_normalised_sam_approaches_the_saddle_along_its_unstable_direction_within_the_radius():
    eta, rho, eps = 0.1, 0.8, 1e-6
    x = rng().normal(size=(200, 3)) * rng(1).uniform(0.05, 0.6, size=(200, 1))
    moved = np.asarray(jax.vmap(sam_step(eta, normalised(rho, eps)))(jnp.asarray(x)))
    length = np.linalg.norm(CURVATURES * x, axis=1, keepdims=True) + eps
    np.testing.assert_allclose(
        moved, x * (1 - eta * CURVATURES * (1 + rho * CURVATURES / length)), rtol=1e-11, atol=1e-15
    )
    shrunk = np.abs(moved[:, 0]) < np.abs(x[:, 0])
    within = length[:, 0] < rho * 0.5
    np.testing.assert_array_equal(shrunk, within)
    assert 20 < within.sum() < 180  # both happen


def test_normalised_sam_started_within_the_radius_stays_and_gradient_descent_leaves():
    eta, rho, curvature = 0.1, 0.8, 0.5
    step = jax.vmap(sam_step(eta, normalised(rho, 1e-9)))
    starts = jnp.array([[0.9 * rho, 0, 0], [1.1 * rho, 0, 0]])  # |Hx| < ρλ is |x₁| < ρ here

    def moved(x, _) -> tuple[Any, Any]:
        x = step(x)
        return x, x

    _, path = jax.jit(lambda x: jax.lax.scan(moved, x, length=200))(starts)
    distance = np.abs(np.asarray(path)[:, :, 0])
    # Within, x₁ <- (1 + ηλ) x₁ - ηρλ sign x₁: down to |x₁| <= ηρλ, and to and fro there for ever after.
    assert np.all(distance[100:, 0] <= eta * rho * curvature)
    assert distance[-1, 1] > 10 * rho
    assert starts[0, 0] * (1 + eta * curvature) ** 200 > 10 * rho  # gradient descent


def test_at_the_saddle_itself_the_plain_normalisation_is_not_finite():
    saddle = jnp.zeros(3)
    plain = optax.chain(optax.contrib.normalize(), optax.sgd(0.5))
    np.testing.assert_array_equal(sam_step(0.1, plain)(saddle), np.nan)
    np.testing.assert_array_equal(sam_step(0.1, normalised(0.5, 1e-6))(saddle), 0)


def test_sam_leaves_the_dead_network_at_the_rate_of_its_curvature():
    """The factor of the quadratic, on a network: σ is the largest singular value of the class means' pull."""
    inputs, labels = example()
    problem = problems.imbalanced_classification(inputs, labels, hidden=2, dtype=jnp.float64)
    dead, eta, t = problem.saddles[0], 0.1, 1e-5
    flat, unravel = ravel_pytree(dead.point)
    gradient = jax.jit(jax.grad(lambda x: problem.value(unravel(x))))
    down = np.linalg.eigh(np.asarray(jax.jit(jax.jacfwd(gradient))(flat)))[1][:, 0]
    sigma = -float(dead.curvature)
    for rho in (0.5 / sigma, 1.5 / sigma):
        optimizer: Any = optax.contrib.sam(optax.sgd(eta), optax.sgd(rho), opaque_mode=True)
        x = flat + t * jnp.asarray(down)
        updates, _ = optimizer.update(gradient(x), optimizer.init(x), x, grad_fn=lambda x, _: gradient(x))
        np.testing.assert_allclose(down @ np.asarray(updates) / t, eta * sigma * (1 - rho * sigma), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda x, y, key: problems.class_balanced_weights(COUNTS, 1.0), "0 <= beta < 1"),
        (lambda x, y, key: problems.class_balanced_weights(np.array([3, 0]), 0.5), "one number >= 1"),
        (lambda x, y, key: problems.long_tailed(y, 0.0, key), "0 < imbalance <= 1"),
        (lambda x, y, key: problems.long_tailed(y, 0.01, key), "choose a larger one"),
        (lambda x, y, key: problems.long_tailed(2 * y, 0.5, key), "without gaps"),
        (lambda x, y, key: problems.imbalanced_classification(x[1:], y, hidden=2), r"\(n, d\) and \(n,\)"),
        (lambda x, y, key: problems.imbalanced_classification(x, y / 2, hidden=2), "give integers"),
        (lambda x, y, key: problems.imbalanced_classification(x, y, hidden=()), "one or two widths"),
        (lambda x, y, key: problems.imbalanced_classification(x, y, hidden=(2, 0)), "one or two widths"),
        (lambda x, y, key: problems.class_extremes(lambda p, c: p, x, 0, key), "give one at least"),
    ],
)
def test_bad_input_is_refused(make, words, key):
    with pytest.raises(ValueError, match=words):
        make(*example(), key)
