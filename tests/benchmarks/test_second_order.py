"""What second order costs: a saddle-free Newton step in Hessian products, and a certificate in milliseconds."""

from __future__ import annotations

import time
from functools import partial

import jax
import jax.numpy as jnp

from pwgf_jax import certify, run, saddle_free_newton, smallest_eigenpair, wasserstein_hessian, wgf
from pwgf_jax.calculus import value_and_wasserstein_gradient
from tests.benchmarks.test_engine import LOOP, looped, problem

KEY = jax.random.key(3)
DEPTHS = (10, 15, 32)


def test_saddle_free_newton_step(side_by_side, report):
    F, mu = problem(jax.random.key(0))

    def products(depth, x):
        H = wasserstein_hessian(F, mu.moved_to(x), "full")
        return jax.lax.fori_loop(0, depth, lambda _, v: v + 1e-6 * H(v), x)

    def steps(depth):
        method = saddle_free_newton(1e-3, beta=1e-3, depth=depth)
        state = method.init(KEY, F, mu)
        ten = jax.jit(lambda s: jax.lax.fori_loop(0, LOOP, lambda _, s: method.step(KEY, F, s)[0], s))
        return partial(ten, state)

    contenders = {
        "gradient": looped(lambda x: x - 1e-3 * value_and_wasserstein_gradient(F, mu.moved_to(x))[1], mu.points)
    }
    for depth in DEPTHS:
        contenders |= {f"products {depth}": looped(partial(products, depth), mu.points), f"step {depth}": steps(depth)}
    seconds = {name: value / LOOP for name, value in side_by_side(contenders, rounds=9).items()}
    for depth in DEPTHS:
        products_alone = seconds[f"products {depth}"]
        over = (seconds[f"step {depth}"] - seconds["gradient"]) / products_alone
        report(f"step of depth m={depth}: {1e3 * seconds[f'step {depth}']:.1f} ms = gradient + {over:.2f} m products")
    method = saddle_free_newton(1e-3, beta=1e-3, depth=DEPTHS[-1])
    state = method.init(KEY, F, mu)
    used = jax.jit(lambda state: method.step(KEY, F, state)).lower(state).compile().memory_analysis()
    assert used is not None
    size = mu.points.size
    basis, dense = 4 * DEPTHS[-1] * size, 4 * size**2
    report(
        f"temporary memory at m={DEPTHS[-1]}: {used.temp_size_in_bytes / 1e6:.0f} MB, of which the Krylov basis "
        f"{basis / 1e6:.1f} MB; a dense Hessian would be {dense / 1e6:.0f} MB"
    )


def test_certificate(side_by_side, report):
    """λ_min to 1 % and the whole certificate: at a start, midway, and nearly stationary."""
    F, start = problem(jax.random.key(0))
    places = {
        "start": start,
        "midway": run(wgf(0.3), F, start, KEY, 100).mu,
        "late": run(wgf(0.3), F, start, KEY, 3000).mu,
    }
    for place, mu in places.items():
        norm = float(run(wgf(0.3), F, mu, KEY, 1).records["gradient_norm"][0])
        for depth in (16, 24, 32, 48, 64, 96, 128, 192, 256):
            find = jax.jit(
                partial(lambda depth, mu: smallest_eigenpair(wasserstein_hessian(F, mu, "full"), KEY, depth), depth)
            )
            pair = find(mu)
            if bool(pair.converged):
                break
        milliseconds = 1e3 * side_by_side({"pair": partial(find, mu)}, rounds=9)["pair"]
        report(
            f"{place}, |grad| {norm:.2g}: lambda_min = {float(pair.eigenvalue):.3g} to {float(pair.residual):.1g} "
            f"by {depth} + 1 products in {milliseconds:.0f} ms"
        )
        delta = 0.1
        certify(F, mu, 0.05, delta, KEY)  # compiles
        begin = time.perf_counter()
        found = certify(F, mu, 0.05, delta, KEY)
        passed = 1e3 * (time.perf_counter() - begin)
        spent = found.integral.products + found.full.products
        report(f"{place}: certify(eps=0.05, delta={delta}) -> {found.verdict.name}, {spent} products, {passed:.0f} ms")
    assert jnp.isfinite(pair.eigenvalue)
