"""Langevin dynamics against the chains that have closed forms: diffusion, and Ornstein-Uhlenbeck by Euler steps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from pwgf_jax import Particles, functionals, run, wgf
from pwgf_jax.flows import langevin
from pwgf_jax.solve import Record
from tests.oracles.closed_forms import mean_quartic

KEY = jax.random.key(0)
STEPS = 6
NO_STEP: Any = "fast"
HALVING = optax.exponential_decay(0.4, 2, 0.5, staircase=True)
ETAS = np.array([0.4, 0.4, 0.2, 0.2, 0.1, 0.1])
flat = functionals.potential(lambda x: 0 * jnp.sum(x))


def second_moments(F, mu):
    return {"second": mu.weights @ mu.points**2}


@pytest.mark.parametrize(
    ("step_size", "arguments", "variances"),
    [
        (HALVING, {"temperature": 0.5}, 2 * ETAS * 0.5),
        (0.1, {"temperature": HALVING}, 2 * 0.1 * ETAS),
        (optax.sgd(0.3, momentum=0.9), {"noise_level": HALVING}, ETAS**2),  # no momentum in the noise
    ],
    ids=["scheduled step", "scheduled temperature", "scheduled level"],
)
def test_free_particles_diffuse_by_the_noise_of_their_steps(step_size, arguments: dict[str, Any], variances):
    count = 4000
    mu = Particles.uniform(jnp.zeros((count, 2), jnp.float32))
    solution = run(langevin(step_size, **arguments), flat, mu, KEY, STEPS, Record(stats=second_moments))
    expected = np.concatenate([[0.0], np.cumsum(variances)])[:, None]
    found = np.asarray(solution.records["second"], np.float64)
    assert np.all(np.abs(found - expected) <= 5 * expected * np.sqrt(2 / count))  # 5 standard errors
    final = np.asarray(solution.mu.points, np.float64) / np.sqrt(expected[-1])
    assert stats.kstest(final.ravel(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(final.T)[0, 1]) < 5 / np.sqrt(count)


def test_a_bowl_is_the_ornstein_uhlenbeck_chain_with_equal_shares_of_energy():
    """Variance of the Euler chain at every step; at the end τ/(k(1 − ηk/2)), half of τ per coordinate up to O(η)."""
    eta, tau, stiffness, start, count = 0.2, 0.7, np.array([1.0, 3.0]), 2.0, 20000
    F = functionals.potential(lambda x: 0.5 * jnp.sum(jnp.asarray(stiffness) * x**2))
    mu = Particles.uniform(jnp.full((count, 2), start))
    records = run(langevin(eta, temperature=tau), F, mu, KEY, 40, Record(stats=second_moments)).records
    a = (1 - eta * stiffness)[None] ** np.arange(41)[:, None]
    stationary = tau / (stiffness * (1 - eta * stiffness / 2))
    variance = stationary * (1 - a**2)
    mean = a * start
    error = np.sqrt((2 * variance**2 + 4 * mean**2 * variance) / count)
    assert np.all(np.abs(np.asarray(records["second"]) - variance - mean**2) <= 5 * error + 1e-12)
    shares = stiffness * np.asarray(records["second"])[-1] * (1 - eta * stiffness / 2)
    np.testing.assert_allclose(shares, tau, rtol=0.05)


def test_mean_field_particles_feel_each_other():
    """F = ½Var + ½|mean|²/4: the deviations and the mean are two chains of their own, coupled by the measure."""

    def F(mu):
        mean = mu.weights @ mu.points
        return (mu.weights @ jnp.sum(mu.points**2, axis=1) - 0.75 * jnp.sum(mean**2)) / 2

    eta, tau, count = 0.5, 0.3, 64
    seeds = jax.random.split(KEY, 200)
    start = Particles.uniform(jnp.zeros((count, 1)))
    flow = langevin(eta, temperature=tau)

    @jax.jit
    @jax.vmap
    def final(key):
        step = lambda state, key: (flow.step(key, F, state)[0], None)  # noqa: E731
        return jax.lax.scan(step, flow.init(key, F, start), jax.random.split(key, 40))[0].mu.points[:, 0]

    x = np.asarray(final(seeds))
    # the mean's noise is N times smaller in variance: τ/N at stiffness ¼
    expected = tau / count / (0.25 * (1 - eta / 8))
    np.testing.assert_allclose(np.var(np.mean(x, axis=1)), expected, rtol=5 * np.sqrt(2 / 200))
    np.testing.assert_allclose(np.mean(np.var(x, axis=1, ddof=1)), tau / (1 - eta / 2), rtol=5 * np.sqrt(2 / x.size))


def test_without_noise_it_is_the_gradient_flow():
    mu = Particles.uniform(jnp.asarray(np.random.default_rng(0).normal(size=(4, 2))))
    methods = wgf(0.2), langevin(0.2, temperature=0.0), langevin(0.2, noise_level=0.0)
    plain, cold, silent = jax.jit(
        lambda mu: [m.step(KEY, mean_quartic, m.init(KEY, mean_quartic, mu))[0].mu.points for m in methods]
    )(mu)
    np.testing.assert_allclose(cold, plain, rtol=1e-12)
    np.testing.assert_allclose(silent, plain, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: langevin(0.1), ValueError, "exactly one of temperature and noise_level"),
        (lambda: langevin(0.1, temperature=1.0, noise_level=1.0), ValueError, "exactly one of temperature and noise"),
        (lambda: langevin(0.1, temperature=-1.0), ValueError, "langevin: temperature=-1.0; give a non-negative number"),
        (lambda: langevin(0.1, noise_level=-1.0), ValueError, "gaussian_noise: level=-1.0"),
        (lambda: langevin(optax.adam(0.1), temperature=1.0), TypeError, "no single step size"),
        (lambda: langevin(NO_STEP, temperature=1.0), TypeError, "step_size"),
    ],
    ids=["none", "both", "negative temperature", "negative level", "optimizer", "no step size"],
)
def test_what_makes_no_noise_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
