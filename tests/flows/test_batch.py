"""Minibatches: one batch for what belongs together, a fresh one each time, and right on average."""

import itertools
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwgf_jax import (
    Particles,
    flow,
    functionals,
    hessian_guided,
    hessian_matrix,
    minibatch,
    norm,
    run,
    saddle_free_newton,
    wgf,
)
from pwgf_jax.flows import Evaluation, gradient
from pwgf_jax.flows.spectral import spectral
from pwgf_jax.transforms import gradient_trigger
from tests.oracles.closed_forms import Network, matrix_loss

M, SIZE = 5, 3


def rng(seed=0):
    return np.random.default_rng(seed)


def problem():
    draw = rng(1)
    F = functionals.matrix_factorization(jnp.asarray(draw.normal(size=(M, 2))), jnp.asarray(draw.normal(size=(M, 1))))
    return F, Particles.uniform(jnp.asarray(draw.normal(size=(4, 3))))


def phi(t, _=None):
    return (t**2 + 0.1) ** -0.5


@pytest.mark.slow
@pytest.mark.parametrize("direction", [gradient, spectral(phi, part="full", depth=12)], ids=["gradient", "spectral"])
def test_a_batch_of_everything_is_everything(direction):
    F, mu = problem()
    method = flow(direction, 0.1)
    full, batched = (run(f, F, mu, jax.random.key(0), steps=3) for f in (method, minibatch(method, M)))
    np.testing.assert_allclose(batched.mu.points, full.mu.points, atol=1e-10)
    np.testing.assert_allclose(batched.records["value"], full.records["value"], atol=1e-12)
    np.testing.assert_allclose(batched.records["gradient_norm"], full.records["gradient_norm"], atol=1e-10)


@pytest.mark.slow
def test_value_gradient_and_hessian_products_are_those_of_one_batch():
    """Among all batches, the one that has the value has the gradient norm and φ(H)∇F as well, densely computed."""
    F, mu = problem()
    method = minibatch(saddle_free_newton(0.1, beta=0.1, part="integral", depth=12), SIZE)
    keys = jax.random.split(jax.random.key(3), 40)
    found = jax.jit(jax.vmap(lambda key: method.init(key, F, mu).evaluation))(keys)
    x, inputs, targets = (np.asarray(a) for a in (mu.points, F.inputs, F.targets))
    expected = []
    for rows in itertools.combinations(range(M), SIZE):
        batch = Network(x, np.full(4, 0.25), inputs[list(rows)], lambda h, r=rows: matrix_loss(h, targets[list(r)]), 1)
        values, vectors = np.linalg.eigh(batch.integral_matrix())
        g = batch.gradient(x)
        direction = (vectors * phi(values)) @ vectors.T @ g.ravel()
        expected.append((batch.value, np.sqrt(np.mean(np.sum(g**2, axis=1))), direction))
    met = set()
    for value, gradient_norm, field in zip(*found, strict=True):
        which = int(np.argmin([abs(value - e[0]) for e in expected]))
        np.testing.assert_allclose((value, gradient_norm), expected[which][:2], rtol=1e-10)
        np.testing.assert_allclose(np.ravel(field), expected[which][2], atol=1e-9)
        met.add(which)
    assert len(met) >= 8  # of ten: every draw is another


@pytest.mark.slow
def test_a_batch_is_right_on_average():
    F, mu = problem()
    count = 3000
    keys = jax.random.split(jax.random.key(4), count)
    found = jax.jit(jax.vmap(lambda key: minibatch(wgf(0.1), SIZE).init(key, F, mu).evaluation))(keys)
    full = wgf(0.1).init(jax.random.key(0), F, mu).evaluation
    for a, b in ((found.field, full.field), (found.value, full.value)):
        error = np.std(a, axis=0) / np.sqrt(count)
        assert np.all(error > 0)
        assert np.all(np.abs(np.mean(a, axis=0) - b) < 4.5 * error)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Marked:
    """A functional whose batches carry a random mark, to be recognised by."""

    mark: jax.Array

    def batch(self, key, size):
        return replace(self, mark=jax.random.uniform(key, dtype=self.mark.dtype) * size)

    def __call__(self, mu):
        return 0 * jnp.sum(mu.weights @ mu.points)


def show(key, F, mu, step):
    return Evaluation(F.mark, jnp.zeros_like(F.mark), jnp.broadcast_to(F.mark, mu.points.shape))


def test_noise_and_the_gradient_after_it_share_a_batch_and_the_next_step_has_another():
    trigger = gradient_trigger(eps=1.0, k_thres=5, f_thres=0.0)
    method = flow(show, 1.0, lambda key, F, mu, step: jnp.broadcast_to(F.mark, mu.points.shape), trigger)
    method = minibatch(method, 7)
    F, mu = Marked(jnp.zeros(())), Particles.uniform(jnp.zeros((3, 2)))
    state = method.init(jax.random.key(1), F, mu)
    first = float(state.evaluation.value)
    state, info = jax.jit(method.step)(jax.random.key(2), F, state)
    assert bool(info.perturbed)
    # moved by the mark of the jump's batch, and back by that of the gradient's
    np.testing.assert_allclose(state.mu.points, 0, atol=1e-15)
    second = float(info.value)
    assert len({0.0, first, second}) == 3
    assert 0 < first < 7
    state, info = jax.jit(method.step)(jax.random.key(3), F, state)
    assert not bool(info.perturbed)
    np.testing.assert_allclose(state.mu.points, -second, rtol=1e-12)
    assert float(info.value) not in (first, second)
    again, _ = jax.jit(method.step)(jax.random.key(3), F, state._replace(step=state.step))
    other, _ = jax.jit(method.step)(jax.random.key(4), F, state)
    assert float(again.evaluation.value) != float(other.evaluation.value)


@pytest.mark.slow
def test_the_noise_of_a_batch_has_the_energy_of_its_spread_on_top():
    """E tr H_B² = tr H² + (1/B)(1 − B/M) tr S², S² the variance of the Hessian over data: more noise, never less."""
    F, mu = problem()
    one = [hessian_matrix(replace(F, inputs=F.inputs[i : i + 1], targets=F.targets[i : i + 1]), mu) for i in range(M)]
    mean = sum(one) / M
    spread = sum(float(jnp.sum((each - mean) ** 2)) for each in one) / (M - 1)
    plain = float(jnp.sum(mean**2))
    expected = plain + spread * (1 / SIZE - 1 / M)
    assert expected > 1.2 * plain

    def energy(key):
        batch_key, noise_key = jax.random.split(key)
        return norm(mu, hessian_guided(noise_key, F.batch(batch_key, SIZE), mu)) ** 2

    draws = np.asarray(jax.jit(jax.vmap(energy))(jax.random.split(jax.random.key(5), 20_000)))
    error = draws.std() / np.sqrt(draws.size)
    assert abs(draws.mean() - expected) < 4 * error
    assert draws.mean() - plain > 8 * error


@pytest.mark.slow
def test_minibatches_lead_to_the_minimum():
    draw = rng(6)
    inputs = draw.normal(size=(40, 2))
    teacher = draw.normal(size=(2, 3))
    targets = np.tanh(inputs @ teacher[:, 1:].T) @ teacher[:, :1] / 2
    F = functionals.mean_field_regression(jnp.asarray(inputs), jnp.asarray(targets))
    mu = Particles.uniform(jnp.asarray(np.concatenate([teacher, teacher]) + 0.3 * draw.normal(size=(4, 3))))
    solution = run(minibatch(wgf(0.5), 8), F, mu, jax.random.key(0), steps=400)
    assert float(F(solution.mu)) < 0.05 * float(F(mu))


def test_what_cannot_be_batched_is_refused():
    F, mu = problem()
    key = jax.random.key(0)
    with pytest.raises(TypeError, match=r"minibatch: size=2 but the functional has no batch\(key, size\) method"):
        minibatch(wgf(0.1), 2).init(key, lambda mu: jnp.sum(mu.weights @ mu.points), mu)
    with pytest.raises(ValueError, match=f"batch: size={M + 1}; there are {M} data points"):
        minibatch(wgf(0.1), M + 1).init(key, F, mu)
    with pytest.raises(ValueError, match="minibatch: size=0; give a whole number"):
        minibatch(wgf(0.1), 0)
