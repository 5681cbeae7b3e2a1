"""What flows are said to cost is what they compute, counted while they run; and what a run's clock says."""

from collections import Counter
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwgf_jax import Particles
from pwgf_jax.calculus import HessianOperator, wasserstein_hessian
from pwgf_jax.experiments.config import parse
from pwgf_jax.experiments.costs import PRODUCT, cost_model, seconds
from pwgf_jax.experiments.experiment import flow_of
from pwgf_jax.experiments.results import Arm

JUMPS = {"eps": 100.0, "eta_p": 0.1, "k_thres": 3, "f_thres": 0.0}  # one jump, at the first step
STEPS = 3


@pytest.fixture
def counted(monkeypatch):
    """How often Hessians are linearised and applied, and F is evaluated; counted where it happens."""
    count = Counter()

    def note(name):
        jax.debug.callback(lambda: count.update([name]))

    def hessian(F, mu, part: Any = "integral"):
        note("linearised")
        found = wasserstein_hessian(F, mu, part)

        def apply(v):
            note("products")
            return found(v)

        return HessianOperator(apply, found.mu)

    for name in ("objective", "flows.spectral"):
        monkeypatch.setattr(import_module(f"pwgf_jax.{name}"), "wasserstein_hessian", hessian)

    def F(mu):  # a saddle at mean zero; the cosine keeps it off moment form
        note("evaluated")
        return mu.weights @ jnp.sum(jnp.cos(mu.points), axis=-1) - 0.5 * jnp.sum((mu.weights @ mu.points) ** 2)

    return count, F


def arm(**table):
    """A flow of a config and its arguments."""
    start = {"kind": "gaussian", "dimension": 2}
    problem = {"functional": "own.py:F", "particles": 8, "start": start}
    return parse({"name": "a", "steps": 1, "problem": problem, "arms": {"a": table}}).arms["a"]


def spent(counted, method, steps=STEPS):
    """Gradients and products of some steps after the first evaluation, and the jumps among them."""
    count, F = counted
    mu = Particles.uniform(jax.random.normal(jax.random.key(1), (8, 2)))
    state = method.init(jax.random.key(0), F, mu)
    jax.effects_barrier()
    count.clear()
    jumps = 0
    step = jax.jit(lambda key, state: method.step(key, F, state))
    for key in jax.random.split(jax.random.key(2), steps):
        state, info = step(key, state)
        jumps += int(info.perturbed)
    jax.effects_barrier()
    return count["evaluated"] - count["linearised"], count["products"], jumps


ENERGY = {"kind": "three_rings"}
ADAPTIVE = {"kind": "adaptive", "largest": 1e9, "trials": 7}


def slow(table):
    return pytest.param(table, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "table",
    [
        {"flow": "wgf"},
        {"flow": "wgf", "weights": {"kind": "mirror", "step_size": 0.1}},
        slow({"flow": "langevin", "temperature": 0.1}),
        slow({"flow": "noise_injection", "level": 0.1}),
        {"flow": "noise_injection", "level": ADAPTIVE},
        slow({"flow": "svgd", "kernel": "median"}),
        slow({"flow": "saddle_free_newton", "beta": 1.0, "depth": 5}),
        slow({"flow": "sobolev_descent", "damping": 1.0, "depth": 5}),
        slow({"flow": "wasserstein_newton", "beta": 1.0, "depth": 5}),
        {"flow": "pwgf", **JUMPS},
        slow({"flow": "isotropic_pwgf", **JUMPS}),
        {"flow": "isotropic_pwgf", "scale": 0.5, **JUMPS},
        slow({"flow": "certified_pwgf", "delta": 0.1, "depth": 6, "perturbation": {"eta_p": 0.1}, **JUMPS}),
        slow({"flow": "certified_pwgf", "delta": 0.1, "depth": 6, **JUMPS}),
        slow({"flow": "saddle_free_newton", "beta": 1.0, "depth": 5, "perturbation": JUMPS}),
    ],
    ids=lambda table: "-".join(str(value) for value in table.values() if isinstance(value, str)),
)
def test_flows_cost_what_they_compute(counted, table):
    call = arm(**table, step_size=0.01)
    gradients, products, jumps = spent(counted, flow_of(call))
    cost = cost_model(call, None)
    assert jumps == ("eps" in str(table))
    assert cost["step"] * STEPS + cost["jump"] * jumps == pytest.approx(gradients + PRODUCT * products)


@pytest.mark.slow
def test_the_lanczos_sampler_costs_two_products_a_step(counted):
    """16 coordinates allow 16 of the 32 steps that it takes where there are as many."""
    call = arm(flow="pwgf", sampler="lanczos", step_size=0.01, **JUMPS)
    _, products, jumps = spent(counted, flow_of(call), steps=1)
    assert (products, jumps) == (2 * 16, 1)
    cost = cost_model(call, None)
    assert cost["jump"] - cost["step"] == pytest.approx(PRODUCT * 2 * 32)


@pytest.mark.slow
@pytest.mark.parametrize("energy", [None, ENERGY])
def test_scores_cost_a_gradient_and_their_derivatives_a_product(counted, energy):
    """KSD descent differentiates a gradient: beside it, that is one product."""
    tables = [{"flow": name, "kernel": {"kind": "imq", "lengthscale": 1.0}} for name in ("svgd", "ksd_descent")]
    tables = [table | ({"energy": energy} if energy else {}) for table in tables]
    svgd, ksd = (cost_model(arm(**table, step_size=0.01), None)["step"] for table in tables)
    assert (svgd, ksd) == (2 if energy else 1, 2 + PRODUCT)
    gradients, _, _ = spent(counted, flow_of(arm(**tables[1], step_size=0.01)))
    assert gradients == STEPS * (1 if energy else 2)  # of F; the scores of an energy are not


def test_a_batch_costs_its_share():
    call = arm(flow="noise_injection", step_size=0.1, level=0.1, batch_size=20)
    assert cost_model(call, 100) == {"step": 0.4, "jump": 0.0}
    assert cost_model(call, 10)["step"] == 2


# The clock


def clock(steps, at, **more):
    return {"clock": {"step": steps, "seconds": at} | more}


def test_seconds_end_where_the_last_seed_stopped():
    record = {"step": np.array([0, 50, 100, 150, 200, 300])}
    info = clock([100, 200, 300], [1.0, 1.6, 1.6001], seed_steps=[200, 250, 250]) | {"steps": [100, 150]}
    assert seconds(Arm(record, np.array([2]), info)).tolist() == pytest.approx([0, 0.5, 1.0, 1.6, 1.6, 1.6])
    everything = clock([300], [3.0], seed_steps=[600]) | {"steps": [300, 300]}
    assert seconds(Arm(record, np.array([2]), everything)).tolist() == [0, 0.5, 1, 1.5, 2, 3]


def test_old_clocks_had_compilation_in_their_first_chunk():
    record = {"step": np.array([0, 10, 15, 20, 30])}
    old = clock([10, 20, 30], [9.0, 10.0, 10.001]) | {"steps": [15]}
    assert seconds(Arm(record, np.array([2]), old)).tolist() == pytest.approx([0, 2, 3, 3, 3])
    stopped = clock([10, 20], [9.0, 9.001]) | {"steps": [10]}  # no other chunk tells the speed of the first
    for info in (stopped, clock([10], [9.0]), {}):
        assert np.isnan(seconds(Arm(record, np.array([2]), info))).all()
