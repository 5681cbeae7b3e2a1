"""Large sums on one device: how near to the bound of their arithmetic, and in how much memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from pwgf_jax import Particles, wasserstein_hessian
from pwgf_jax.calculus import value_and_wasserstein_gradient
from pwgf_jax.flows import svgd_direction
from pwgf_jax.functionals import icfl, matrix_factorization, mmd, potential, stein_discrepancy
from pwgf_jax.kernels import gaussian

WIDTH, OUTPUTS, PRODUCTS = 20, 5, 3


def square_of_tanh(rows: int, columns: int) -> Callable[[], Any]:
    """tanh of as many numbers, in blocks that stay in the cache."""
    block = jax.random.normal(jax.random.key(2), (64, 8192))
    turns = max(1, rows * columns // block.size)
    return partial(jax.jit(lambda x: jax.lax.fori_loop(0, turns, lambda _, x: jnp.tanh(x), x)), block)


def gemm() -> Callable[[], Any]:
    square = jax.random.normal(jax.random.key(1), (1024, 1024))
    return partial(jax.jit(lambda x: jax.lax.fori_loop(0, 16, lambda _, x: (x @ square) * 1e-3, x)), square)


@pytest.mark.parametrize("kind", ["matrix_factorization", "icfl"])
@pytest.mark.parametrize(("particles", "data"), [(8000, 8000), (100_000, 8000)], ids=["8000", "100000"])
def test_network(side_by_side, report, kind, particles, data):
    keys = jax.random.split(jax.random.key(0), 4)
    z, y = jax.random.normal(keys[0], (data, WIDTH)), jax.random.normal(keys[1], (data, OUTPUTS))
    x = 0.3 * jax.random.normal(keys[2], (particles, OUTPUTS + WIDTH))
    v = jax.random.normal(keys[3], x.shape)

    def compiled(function, **options):
        def call(z, y, x, v):
            F = icfl(z, y, ridge=0.1, **options) if kind == "icfl" else matrix_factorization(z, y, **options)
            return function(F, Particles.uniform(x), v)

        return jax.jit(call).lower(z, y, x, v).compile()

    def step(F, mu, v):
        return value_and_wasserstein_gradient(F, mu)

    def full(F, mu, v):
        return wasserstein_hessian(F, mu, "full")(v)

    def in_a_loop(F, mu, v):
        H = wasserstein_hessian(F, mu, "full")
        return jax.lax.fori_loop(0, PRODUCTS, lambda _, v: v + 1e-6 * H(v), v)

    programs = {"step": compiled(step), "full": compiled(full), "in a loop": compiled(in_a_loop)}
    programs["in chunks"] = compiled(step, chunk_size=800)
    calls = {name: partial(program, z, y, x, v) for name, program in programs.items()}
    rounds = 7 if particles < 10_000 else 3
    seconds = side_by_side(calls | {"gemm": gemm(), "tanh": square_of_tanh(particles, data)}, rounds=rounds)
    flops = 16 * 2 * 1024**3 / seconds["gemm"]
    bound = particles * data * (4 * WIDTH + 6 * OUTPUTS) / flops + seconds["tanh"]
    where = f"{kind} {particles} x {data}"
    report(f"{where}: step {1e3 * seconds['step']:.0f} ms = {100 * bound / seconds['step']:.0f} % of one pass")
    report(f"{where}: in chunks of 800 {seconds['in chunks'] / seconds['step']:.2f} steps")
    report(f"{where}: full product {seconds['full'] / seconds['step']:.2f} steps")
    report(f"{where}: full product in a loop {seconds['in a loop'] / PRODUCTS / seconds['step']:.2f} steps")
    for name, program in programs.items():
        memory: Any = program.memory_analysis()
        report(f"{where}: {name} sets aside {memory.temp_size_in_bytes / 1e6:.0f} MB")


@pytest.mark.parametrize("d", [2, 50])
@pytest.mark.parametrize("name", ["mmd", "svgd", "stein_discrepancy"])
def test_pairs(side_by_side, report, name, d):
    """Sums over N × N pairs, and for MMD N × M more, against their products and exponentials alone."""
    size = 100_000
    x, y = jax.random.normal(jax.random.key(0), (2, size, d))
    kernel, mu = gaussian(d**0.5), Particles.uniform(x)
    confinement = potential(lambda x: jnp.sum(x**2) / 2)
    calls = {
        "mmd": jax.jit(lambda mu: value_and_wasserstein_gradient(mmd(y, kernel), mu)),
        "svgd": jax.jit(lambda mu: svgd_direction(kernel)(jax.random.key(0), confinement, mu, jnp.int32(0))),
        "stein_discrepancy": jax.jit(
            lambda mu: value_and_wasserstein_gradient(stein_discrepancy(lambda x: jnp.sum(x**2) / 2, kernel), mu)
        ),
    }
    block = jax.random.normal(jax.random.key(2), (64, 8192))
    exponentials = jax.jit(lambda x: jax.lax.fori_loop(0, 16, lambda _, x: jnp.exp(-x), x))
    seconds = side_by_side(
        {"step": partial(calls[name], mu), "gemm": gemm(), "exp": partial(exponentials, block)}, rounds=1
    )
    pairs = size**2 * (2 if name == "mmd" else 1)
    flops = 16 * 2 * 1024**3 / seconds["gemm"]
    bound = pairs * (4 * d / flops + seconds["exp"] / (16 * block.size))
    report(f"{name} {size}, d={d}: {seconds['step']:.1f} s = {100 * bound / seconds['step']:.0f} % of the bound")
