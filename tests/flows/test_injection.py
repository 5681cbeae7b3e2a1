"""Noise injection: where the gradient is looked up, by how much noise, and what a rule for the noise guarantees."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from pwgf_jax import Particles, flow, functionals, run, wgf
from pwgf_jax.calculus import value_and_wasserstein_gradient, wasserstein_gradient
from pwgf_jax.flows import adaptive_level, gradient, injected, noise_injection
from pwgf_jax.flows.spectral import spectral, spectral_velocity
from pwgf_jax.perturbation import hessian_noise, isotropic
from pwgf_jax.solve import Record
from pwgf_jax.transforms import gradient_trigger
from tests.oracles.closed_forms import mean_quartic

KEY = jax.random.key(0)
ELL = 1.5
NO_LEVEL: Any = "loud"
SMOOTHNESS = 1 / ELL**2  # L: the Lipschitz constant of the Gaussian kernel's gradient
HALVING = optax.exponential_decay(2.0, 2, 0.5, staircase=True)
CUT_OFF = optax.piecewise_constant_schedule(1.0, {4: 0.0})
bowl = functionals.potential(lambda x: 0.5 * jnp.sum(x**2))  # its gradient at a point is the point


def rng(seed=0):
    return np.random.default_rng(seed)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HalfMmd:
    """½MMD² to a sample, with a Gaussian kernel."""

    target: jax.Array

    def interaction(self, x, y):
        return jnp.exp(-jnp.sum((x[:, None] - y[None]) ** 2, axis=-1) / (2 * ELL**2))

    def external(self, x):
        return -jnp.mean(self.interaction(x, self.target), axis=1)

    def __call__(self, mu):
        own = mu.weights @ self.interaction(mu.points, mu.points) @ mu.weights
        rest = jnp.mean(self.interaction(self.target, self.target))
        return own / 2 + mu.weights @ self.external(mu.points) + rest / 2


def measure(count, dimension, dtype=jnp.float64, shift=1.5, seed=1):
    return Particles.uniform(jnp.asarray(rng(seed).normal(size=(count, dimension)) * 0.5 + shift, dtype))


def evaluate(direction, F, mu, key=KEY, step=0):
    return jax.jit(lambda key, mu: direction(key, F, mu, jnp.int32(step)))(key, mu)


@pytest.mark.slow
def test_the_gradient_is_that_of_the_clean_measure_at_noisy_points(dtype, tolerance):
    draw = rng(2)
    weights = np.array([0.4, 0.1, 0.0, 0.2, 0.3])
    mu = Particles(jnp.asarray(draw.normal(size=(5, 2)), dtype), jnp.asarray(weights, dtype))
    target = jnp.asarray(draw.normal(size=(4, 2)), dtype)
    direction = injected(0.7)
    noisy = np.asarray(evaluate(direction, bowl, mu).field, np.float64)  # x + βu itself
    x, y = (np.asarray(a, np.float64) for a in (mu.points, target))
    present = weights > 0
    assert np.all(np.abs(noisy - x)[present] > 1e-4)

    def pull(at, sources, masses):  # Σ_j m_j ∇₁k(at, source_j)
        delta = at[:, None] - sources[None]
        k = np.exp(-np.sum(delta**2, axis=-1) / (2 * ELL**2)) * masses
        return -np.einsum("ij,ija->ia", k, delta) / ELL**2

    expected = pull(noisy, x, weights) - pull(noisy, y, np.full(4, 0.25))
    found = evaluate(direction, HalfMmd(target), mu)
    np.testing.assert_allclose(found.field, np.where(present[:, None], expected, 0), atol=tolerance(dtype))
    clean = pull(x, x, weights) - pull(x, y, np.full(4, 0.25))
    np.testing.assert_allclose(
        found.gradient_norm, np.sqrt(weights @ np.sum(clean**2, axis=1)), rtol=tolerance(dtype, 10)
    )
    np.testing.assert_allclose(found.value, HalfMmd(target)(mu), rtol=tolerance(dtype))


def test_without_noise_it_is_the_gradient_flow(dtype, tolerance):
    F, mu = HalfMmd(jnp.asarray(rng(3).normal(size=(6, 2)), dtype)), measure(5, 2, dtype)
    mu = Particles(mu.points, jnp.asarray([0.0, 0.25, 0.25, 0.3, 0.2], dtype))
    silent, plain = jax.jit(
        lambda mu: [m.step(KEY, F, m.init(KEY, F, mu))[0] for m in (noise_injection(0.5, 0.0), wgf(0.5))]
    )(mu)
    for found, expected in zip(jax.tree.leaves(silent), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(found, expected, atol=tolerance(dtype))
    np.testing.assert_array_equal(silent.mu.points[0], mu.points[0])


def test_noise_is_gaussian_fresh_and_of_the_level_that_the_step_has():
    """Along a flow that does not move, from particles at zero, the field of the bowl is the noise itself."""
    mu = Particles.uniform(jnp.zeros((2000, 2), jnp.float32))
    method = flow(injected(lambda step: HALVING(step) * CUT_OFF(step)), optax.set_to_zero())
    keys = jax.random.split(jax.random.key(1), 6)
    state, step, fields = method.init(KEY, bowl, mu), jax.jit(method.step), []
    for key in keys:
        fields.append(np.ravel(state.evaluation.field))
        state, _ = step(key, bowl, state)
    for field, beta in zip(fields, [2, 2, 1, 1, 0, 0], strict=True):
        if beta == 0:
            np.testing.assert_array_equal(field, 0)
        else:
            assert stats.kstest(np.asarray(field, np.float64) / beta, "norm").pvalue > 1e-3
    correlation = np.corrcoef(fields[0], fields[1])[0, 1]
    assert abs(correlation) < 5 / np.sqrt(4000)
    pairs = fields[0].reshape(-1, 2)
    assert abs(np.corrcoef(pairs[:, 0], pairs[:, 1])[0, 1]) < 5 / np.sqrt(2000)


@pytest.mark.parametrize("gamma", [1 / (3 * SMOOTHNESS), 2 / (3 * SMOOTHNESS)], ids=["1/3L", "2/3L"])
def test_the_mmd_flow_descends_by_what_is_promised(gamma, dtype):
    F, mu = HalfMmd(jnp.asarray(rng(3).normal(size=(8, 2)), dtype)), measure(6, 2, dtype)
    records = run(wgf(gamma), F, mu, KEY, 60).records
    values, norms = (np.asarray(records[name], np.float64) for name in ("value", "gradient_norm"))
    promised = -gamma * (1 - 1.5 * gamma * SMOOTHNESS) * norms[:-1] ** 2
    assert np.all(np.diff(values) <= promised + 10 * float(jnp.finfo(dtype).eps))
    assert values[-1] < 0.1 * values[0]


@pytest.mark.slow
@pytest.mark.parametrize("smoothness", [None, np.sqrt(3 * 2) / ELL**2], ids=["measured", "given"])
def test_adaptive_noise_keeps_its_inequality_and_descends(smoothness):
    F, mu = HalfMmd(jnp.asarray(rng(3).normal(size=(8, 2)))), measure(6, 2)
    rule, gamma = adaptive_level(4.0, smoothness=smoothness), 1 / (3.5 * SMOOTHNESS)

    @jax.jit
    def look(key, mu):
        """The level chosen, what the inequality has to spare there and at twice the level, and the field."""
        value, clean = value_and_wasserstein_gradient(F, mu)

        def noisy(beta):
            return wasserstein_gradient(F, mu, mu.points + beta * isotropic(key, mu, 1.0))

        def gap(beta):
            found = noisy(beta)
            energy = mu.weights @ jnp.sum(found**2, axis=1)
            if smoothness is None:
                return energy - 4 * mu.weights @ jnp.sum((found - clean) ** 2, axis=1)
            return energy - 8 * smoothness**2 * beta**2 * value

        beta, field = rule.choose(noisy, mu, value, clean)
        gaps = jax.vmap(gap)(jnp.stack([beta, 2 * beta]))
        moved = mu.push_forward(-gamma * field)
        energy = mu.weights @ jnp.sum(field**2, axis=1)
        return moved, injected(rule)(key, F, mu).field - field, [beta, *gaps, F(moved) - value, energy]

    seen, start = [], float(F(mu))
    for key in jax.random.split(KEY, 80):
        mu, difference, numbers = look(key, mu)
        np.testing.assert_allclose(difference, 0, atol=1e-12)
        seen.append(numbers)
    betas, gaps, larger, change, energy = np.array(seen).T
    assert np.all(gaps >= 0)
    noisy = betas > 0
    assert np.mean(noisy) > 0.9
    assert np.all(larger[noisy & (betas < 4.0)] < 0)  # the largest of its ladder
    assert np.mean(betas < 4.0) > 0.5
    assert np.all(change <= -gamma / 2 * (1 - 3 * gamma * SMOOTHNESS) * energy)
    assert float(F(mu)) < 0.1 * start


def test_adaptive_noise_is_silent_where_none_will_do():
    """At a maximum all that noise finds is change: no level passes, and the field is the clean gradient."""
    top = functionals.potential(lambda x: -0.5 * jnp.sum(x**2))
    mu = Particles.uniform(jnp.zeros((4, 1)))
    np.testing.assert_array_equal(evaluate(injected(adaptive_level(1.0)), top, mu).field, 0)


@pytest.mark.slow
def test_noise_finds_what_lies_beyond_a_plateau():
    """Particles six lengthscales from the target: the plain flow feels nothing, the noisy one arrives."""
    F, mu = HalfMmd(jnp.zeros((1, 1))), Particles.uniform(jnp.full((16, 1), 6 * ELL))
    level = optax.piecewise_constant_schedule(3 * ELL, {600: 0.0})
    solution = run(noise_injection(1.0, level), F, mu, KEY, 700, Record(every=700))
    assert solution.records["gradient_norm"][0] < 1e-6  # 700 plain steps would not go a thousandth of the way
    assert solution.records["value"][-1] < 0.1 * solution.records["value"][0]


@pytest.mark.slow
def test_noise_enters_other_directions_off_the_particles(tolerance):
    """Sobolev descent's velocity, continued off the particles: on them at level zero, at the noisy points else."""
    lam = 0.1
    F, mu, phi = HalfMmd(jnp.ones((1, 2))), measure(3, 2), lambda t: 1 / (t + lam)
    velocity = partial(spectral_velocity, phi=phi, depth=6)
    noisy, flat = injected(0.5, velocity), injected(0.0, velocity)

    @jax.jit
    def fields(at):
        plain = spectral(lambda t, _: phi(t), depth=6)(KEY, F, mu)
        return plain.field, flat(KEY, F, mu).field, noisy(KEY, F, mu).field, velocity(F, mu)(at)

    plain, on, off, expected = fields(evaluate(injected(0.5), bowl, mu).field)
    np.testing.assert_allclose(on, plain, atol=tolerance(jnp.float64, 10))
    np.testing.assert_allclose(off, -expected, atol=1e-10)
    assert np.max(np.abs(off - plain)) > 0.01


@pytest.mark.slow
def test_noise_injection_composes_with_jumps_and_optimizers():
    trigger = gradient_trigger(eps=1e-3, k_thres=60, f_thres=1e-4)
    method = flow(injected(0.1), optax.adam(0.05), hessian_noise(0.1), trigger)
    solution = run(method, mean_quartic, Particles.uniform(jnp.zeros((8, 2))), KEY, 200)
    assert bool(solution.records["perturbed"][0])
    np.testing.assert_allclose(solution.value, -0.25, atol=1e-3)


def test_perturbations_know_the_step():
    trigger = gradient_trigger(eps=1.0, k_thres=5, f_thres=0.0)
    shift = lambda key, F, mu, step: jnp.full_like(mu.points, step.astype(mu.points.dtype))  # noqa: E731
    method, mu = flow(gradient, optax.set_to_zero(), shift, trigger), Particles.uniform(jnp.zeros((3, 1)))
    state = method.init(KEY, bowl, mu)._replace(step=jnp.int32(7))
    np.testing.assert_array_equal(jax.jit(lambda state: method.step(KEY, bowl, state)[0].mu.points)(state), 7.0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: noise_injection(0.1, -1.0), ValueError, "noise injection: level=-1.0; give a non-negative number"),
        (lambda: noise_injection(0.1, NO_LEVEL), TypeError, "level"),
        (lambda: adaptive_level(0.0), ValueError, "adaptive_level: largest=0.0"),
        (lambda: adaptive_level(1.0, smoothness=-1.0), ValueError, "adaptive_level: smoothness=-1.0"),
        (lambda: adaptive_level(1.0, trials=0), ValueError, "adaptive_level: trials=0"),
        (lambda: injected(adaptive_level(1.0), lambda F, mu: jnp.sin), ValueError, "speaks of the gradient"),
    ],
    ids=["negative level", "not a level", "largest", "smoothness", "trials", "adaptive velocity"],
)
def test_what_cannot_be_injected_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
