"""What to run on the day that a GPU or a TPU is there: ``python -m pytest tests/benchmarks -m accelerator``.

Where there is only a CPU the same runs small, as a rehearsal.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pwgf_jax import Particles, certify, pwgf, sweep, wasserstein_hessian
from pwgf_jax.calculus import value_and_wasserstein_gradient
from pwgf_jax.functionals import matrix_factorization, mmd
from pwgf_jax.kernels import gaussian
from pwgf_jax.krylov import lanczos
from pwgf_jax.solve import Record, shard_particles

ROOT = Path(__file__).parents[2]
LARGE = jax.default_backend() != "cpu"
pytestmark = pytest.mark.accelerator


def network(particles: int, data: int):
    keys = jax.random.split(jax.random.key(0), 3)
    F = matrix_factorization(jax.random.normal(keys[0], (data, 20)), jax.random.normal(keys[1], (data, 5)))
    return F, Particles.uniform(0.3 * jax.random.normal(keys[2], (particles, 25)))


def test_the_tests_pass(report):
    """The suite as it is, on this device; on a CPU a part of it."""
    chosen = ["tests"] if LARGE else ["tests/test_memory.py", "-k", "rows_that_do_not_divide"]
    environment = os.environ | {"JAX_PLATFORMS": jax.default_backend().replace("gpu", "cuda,cpu")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3600, check=False)
    report(done.stdout.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.mark.parametrize("precision", ["default", "highest"])
def test_krylov_vectors_are_orthogonal(report, precision):
    """Products inside are in full precision whatever is asked for around: TF32 would spoil the basis."""
    F, mu = network(4000, 4000) if LARGE else network(200, 200)
    start = jax.random.normal(jax.random.key(1), mu.points.shape)
    with jax.default_matmul_precision(precision):
        H = wasserstein_hessian(F, mu, "full")
        basis = jax.jit(lambda start: lanczos(H, start, 32).basis)(start)
    flat = np.asarray(basis, np.float64).reshape(32, -1) / mu.size**0.5
    worst = np.abs(flat @ flat.T - np.eye(32)).max()
    report(f"matmul precision {precision}: 32 vectors are orthogonal to {worst:.1e}")
    assert worst < 1e-4


@pytest.mark.parametrize("seeds", [10, 1000] if LARGE else [4])
def test_seeds_against_one(side_by_side, report, seeds):
    """Many seeds cost less than as many runs, until the device is full."""
    method = pwgf(0.1, eps=0.05, eta_p=0.1, k_thres=20, f_thres=1e-3)
    size = (400, 800) if LARGE else (40, 80)

    def problem(key):
        F, mu = network(*size)
        return F, mu.moved_to(mu.points + 0.1 * jax.random.normal(key, mu.points.shape))

    def steps(count):
        keys = jax.random.split(jax.random.key(0), count)
        return lambda: sweep(method, problem, keys, 200, Record(every=200)).value

    seconds = side_by_side({"one": steps(1), "many": steps(seeds)}, rounds=3)
    ratio = seconds["many"] / seconds["one"]
    report(f"{seeds} seeds x 200 steps take {ratio:.1f} times one seed's {seconds['one']:.2f} s")


@pytest.mark.parametrize(
    ("particles", "data"),
    [(10_000, 10_000), (100_000, 100_000), (1_000_000, 100_000)] if LARGE else [(1000, 2000)],
)
def test_tiles_against_their_bound(side_by_side, report, particles, data):
    F, mu = network(particles, data)
    v = jax.random.normal(jax.random.key(1), mu.points.shape)
    step = jax.jit(lambda F, x: value_and_wasserstein_gradient(F, mu.moved_to(x)))
    full = jax.jit(lambda F, x, v: wasserstein_hessian(F, mu.moved_to(x), "full")(v))
    side = 4096 if LARGE else 512
    square, turns = jax.random.normal(jax.random.key(2), (side, side)), max(1, particles * data // side**2)
    gemm = jax.jit(lambda x: jax.lax.fori_loop(0, 8, lambda _, x: (x @ square) * 1e-3, x))
    tanh = jax.jit(lambda x: jax.lax.fori_loop(0, turns, lambda _, x: jnp.tanh(x), x))
    calls = {"step": partial(step, F, mu.points), "full": partial(full, F, mu.points, v)}
    seconds = side_by_side(calls | {"gemm": partial(gemm, square), "tanh": partial(tanh, square)}, rounds=3)
    bound = particles * data * 110 / (8 * 2 * side**3 / seconds["gemm"]) + seconds["tanh"]
    report(
        f"{particles} x {data}: step {1e3 * seconds['step']:.1f} ms = {100 * bound / seconds['step']:.0f} % of the "
        f"bound, full product {seconds['full'] / seconds['step']:.2f} steps"
    )


@pytest.mark.parametrize("d", [2, 50])
def test_pairs(side_by_side, report, d):
    size = 100_000 if LARGE else 2000
    x, y = jax.random.normal(jax.random.key(0), (2, size, d))
    F = mmd(y, gaussian(d**0.5))
    step = jax.jit(lambda F, x: value_and_wasserstein_gradient(F, Particles.uniform(x)))
    seconds = side_by_side({"step": partial(step, F, x)}, rounds=3)
    report(f"mmd {size} x {size}, d={d}: {1e3 * seconds['step']:.1f} ms")


def test_a_certificate(report):
    F, mu = network(100_000, 10_000) if LARGE else network(400, 400)
    found = certify(F, mu, 1e-3, 1e-3, jax.random.key(0))
    report(found.summary().splitlines()[0])


def test_a_second_device(side_by_side, report):
    if jax.device_count() < 2:
        pytest.skip("one device")
    F, mu = network(100_000, 10_000) if LARGE else network(1000, 2000)
    there = shard_particles(mu)
    everywhere = NamedSharding(there.points.sharding.mesh, PartitionSpec())
    step = jax.jit(value_and_wasserstein_gradient)
    calls = {"one": partial(step, F, mu), "all": partial(step, jax.device_put(F, everywhere), there)}
    seconds = side_by_side(calls, rounds=3)
    report(f"{jax.device_count()} devices: {seconds['one'] / seconds['all']:.2f} times one's speed")
