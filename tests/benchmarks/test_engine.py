"""The paper-sized problem (N=400 neurons, l=20, k=5, M=800 data): one step, one product, one sample, one sweep."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwgf_jax import (
    Particles,
    hessian_guided,
    hessian_matrix,
    isotropic_pwgf,
    norm,
    pwgf,
    sweep,
    wasserstein_hessian,
    wgf,
)
from pwgf_jax.calculus import value_and_wasserstein_gradient
from pwgf_jax.functionals import matrix_factorization
from pwgf_jax.solve import Record
from pwgf_jax.solve.sharding import batched

N, WIDTH, OUTPUTS, M = 400, 20, 5, 800
LOOP = 20
THRESHOLDS: dict[str, Any] = {"eps": 0.0, "eta_p": 0.015, "k_thres": 100, "f_thres": 0.0}


def problem(key: jax.Array):
    data, target, start = jax.random.split(key, 3)
    F = matrix_factorization(jax.random.normal(data, (M, WIDTH)), jax.random.normal(target, (M, OUTPUTS)))
    return F, Particles.uniform(0.3 * jax.random.normal(start, (N, OUTPUTS + WIDTH)))


def looped(update: Callable[[jax.Array], jax.Array], start: jax.Array) -> Callable[[], jax.Array]:
    """LOOP dependent updates in one compiled call, so that dispatch does not count."""
    return partial(jax.jit(lambda x: jax.lax.fori_loop(0, LOOP, lambda _, x: update(x), x)), start)


def ceilings(key: jax.Array) -> dict[str, Callable[[], jax.Array]]:
    square = jax.random.normal(key, (1024, 1024))
    activations = jax.random.normal(key, (M, N))
    return {
        "gemm": looped(lambda x: (x @ square) * 1e-3, square),
        "tanh": looped(lambda x: x + 1e-9 * jnp.sum(jnp.tanh(activations * x)), jnp.ones(())),
    }


def test_step_and_products(side_by_side, report):
    F, mu = problem(jax.random.key(0))
    points = mu.points

    def hessian(part, x):
        return wasserstein_hessian(F, mu.moved_to(x), part)(x)

    def in_loop(x):
        H = wasserstein_hessian(F, mu, "full")
        return jax.lax.fori_loop(0, LOOP, lambda _, v: v + 1e-6 * H(v), x)

    def per_particle(x):
        outputs = jnp.mean(
            jax.vmap(lambda p: jax.vmap(lambda z: p[:OUTPUTS] * jnp.tanh(p[OUTPUTS:] @ z))(F.inputs))(x), axis=0
        )
        return F.of_moments(outputs.T)

    noise_key = jax.random.key(1)
    seconds = side_by_side(
        ceilings(jax.random.key(2))
        | {
            "step": looped(lambda x: x - 1e-3 * value_and_wasserstein_gradient(F, mu.moved_to(x))[1], points),
            "full": partial(jax.jit(in_loop), points),
            "integral": looped(lambda x: x + 1e-6 * hessian("integral", x), points),
            "sample": looped(lambda x: x + 1e-6 * hessian_guided(noise_key, F, mu.moved_to(x)), points),
            "per-particle vmap": looped(lambda x: x - 1e-3 * N * jax.grad(per_particle)(x), points),
        }
    )
    seconds = {name: value / LOOP for name, value in seconds.items()}
    flops = 2 * 1024**3 / seconds["gemm"]
    bound = N * M * (4 * WIDTH + 6 * OUTPUTS) / flops + seconds["tanh"]
    report(f"GEMM {flops / 1e9:.0f} GF/s, tanh of {N}x{M} {1e3 * seconds['tanh']:.3f} ms; bound {1e3 * bound:.3f} ms")
    report(f"value + gradient {1e3 * seconds['step']:.3f} ms = {100 * bound / seconds['step']:.0f} % of the bound")
    for name in ("full", "integral", "sample", "per-particle vmap"):
        report(f"{name}: {seconds[name] / seconds['step']:.2f} steps")


def test_step_against_torch(side_by_side, report):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(2)
    F, mu = problem(jax.random.key(0))
    inputs, targets, theta = (torch.tensor(np.asarray(x)) for x in (F.inputs, F.targets, mu.points))

    def torch_steps():
        x = theta.clone()
        for _ in range(LOOP):
            leaf = x.requires_grad_()
            h = torch.tanh(inputs @ leaf[:, OUTPUTS:].T) @ leaf[:, :OUTPUTS] / N
            u, v = h - targets, h + targets
            value = ((u**2).sum(1) * (v**2).sum(1) + (u * v).sum(1) ** 2).mean() / 4
            (gradient,) = torch.autograd.grad(value, leaf)
            x = (leaf - 1e-3 * N * gradient).detach()
        return x

    ours = looped(lambda x: x - 1e-3 * value_and_wasserstein_gradient(F, mu.moved_to(x))[1], mu.points)
    np.testing.assert_allclose(np.asarray(ours()), torch_steps().numpy(), rtol=2e-3, atol=2e-4)
    seconds = side_by_side({"ours": ours, "torch eager": torch_steps})
    report(f"PyTorch eager takes {seconds['torch eager'] / seconds['ours']:.1f} times our step")


def trajectory(flow, steps: int) -> Callable[[jax.Array], jax.Array]:
    """Seeds mapped over a scan of steps, compiled once: what a sweep runs, without its host loop."""

    def one(key):
        F, mu = problem(key)
        stream = jax.random.fold_in(key, 1)
        state = flow.init(stream, F, mu)
        step = lambda state, i: (flow.step(jax.random.fold_in(stream, i), F, state)[0], None)  # noqa: E731
        return jax.lax.scan(step, state, jnp.arange(steps))[0].evaluation.value

    return jax.jit(lambda keys: jax.lax.map(one, keys))


def test_untriggered_sweep(side_by_side, report):
    keys = jax.random.split(jax.random.key(0), 4)
    arms = {"wgf": wgf(1e-3), "pwgf": pwgf(1e-3, **THRESHOLDS), "isotropic": isotropic_pwgf(1e-3, **THRESHOLDS)}
    seconds = side_by_side({name: partial(trajectory(flow, 200), keys) for name, flow in arms.items()}, rounds=9)
    for name in ("pwgf", "isotropic"):
        report(f"{name} without a trigger: {seconds[name] / seconds['wgf']:.2f} times the WGF sweep")


def test_seeds_that_jump(side_by_side, report):
    """64 seeds at once, each jumping every 25 steps and out of step with the others: somebody jumps in most steps."""
    seeds, period = 64, 25
    thresholds: dict[str, Any] = {"eps": jnp.inf, "eta_p": 1e-3, "k_thres": period - 1, "f_thres": 0.0}
    keys = jax.random.split(jax.random.key(0), seeds)
    last = -jax.random.randint(jax.random.key(1), (seeds,), 0, period, jnp.int32)
    arms = {"wgf": wgf(1e-2), "pwgf": pwgf(1e-2, **thresholds), "isotropic": isotropic_pwgf(1e-2, **thresholds)}

    def trajectory(flow, key, last):
        F, mu = problem(key)
        state = flow.init(key, F, mu)
        if state.window is not None:
            state = state._replace(window=state.window._replace(jumped_at=last))

        def step(state, i):
            state, info = flow.step(jax.random.fold_in(key, i), F, state)
            return state, info.perturbed

        return jax.lax.scan(step, state, jnp.arange(period))

    runs = {name: partial(jax.jit(jax.vmap(partial(trajectory, flow))), keys, last) for name, flow in arms.items()}
    seconds = side_by_side(runs, rounds=5)
    for name in ("pwgf", "isotropic"):
        busy = jnp.mean(jnp.any(runs[name]()[1], axis=0))
        report(f"{name}, a jump in {100 * busy:.0f} % of the steps: {seconds[name] / seconds['wgf']:.2f} times WGF")


def test_paper_sized_experiment(report):
    """Three arms x ten seeds x 5000 steps, compilation and host loop included."""
    keys = jax.random.split(jax.random.key(0), 10)
    thresholds: dict[str, Any] = THRESHOLDS | {"eps": 0.02}
    arms = {"wgf": wgf(1e-2), "isotropic": isotropic_pwgf(1e-2, **thresholds), "pwgf": pwgf(1e-2, **thresholds)}
    begin = time.perf_counter()
    for flow in arms.values():
        jax.block_until_ready(sweep(flow, problem, keys, 5000, Record(every=50)).value)
    report(f"3 arms x 10 seeds x 5000 steps on {jax.device_count()} device(s): {time.perf_counter() - begin:.0f} s")


def test_batching(side_by_side, report):
    keys = jax.random.split(jax.random.key(0), 8)
    steps, flow = 200, wgf(1e-3)
    names: list[Any] = ["map", "vmap"] + (["shard"] if jax.device_count() > 1 else [])
    runs = {}
    for name in names:

        def one(key):
            F, mu = problem(key)
            state = flow.init(key, F, mu)
            return jax.lax.scan(lambda s, i: (flow.step(key, F, s)[0], None), state, jnp.arange(steps))[
                0
            ].evaluation.value

        runs[name] = partial(jax.jit(batched(one, name)), keys)
    seconds = side_by_side(runs, rounds=5)
    for name in names:
        report(f"batching={name}: {seconds[name] / seconds['map']:.2f} times map")


def test_sample_against_dense(side_by_side, report):
    """The sample that papers write down: the Nd x Nd Gram matrix of the kernel and its Cholesky factor."""
    F, mu = problem(jax.random.key(0))
    key = jax.random.key(1)
    dense = jax.jit(lambda x: hessian_matrix(F, mu.moved_to(x)))

    def cholesky():
        H = dense(mu.points)
        gram = N * jnp.matmul(H, H.T, precision="highest")
        jitter = 1e-5 * jnp.trace(gram) / gram.shape[0]
        return jnp.linalg.cholesky(gram + jitter * jnp.eye(gram.shape[0])) @ jax.random.normal(key, gram.shape[:1])

    direct = partial(jax.jit(lambda x: hessian_guided(key, F, mu.moved_to(x))), mu.points)
    seconds = side_by_side({"dense": cholesky}, rounds=1) | side_by_side({"direct": direct}, rounds=15)
    report(f"dense Gram + Cholesky takes {seconds['dense'] / seconds['direct']:.0f} times the exact sample")

    # The law beside it: E|xi|² = tr H², and along a fixed field u the variance is |H u|².
    H, u = dense(mu.points), jax.random.normal(jax.random.key(2), mu.points.shape)
    draws = jax.lax.map(lambda k: hessian_guided(k, F, mu), jax.random.split(key, 400))
    energy = jnp.mean(jax.vmap(lambda xi: norm(mu, xi) ** 2)(draws))
    assert abs(energy / jnp.sum(H**2) - 1) < 0.3
    along = jnp.einsum("snd,nd->s", draws, u) / N
    assert abs(jnp.var(along) / norm(mu, (H @ u.ravel()).reshape(u.shape)) ** 2 - 1) < 0.4
    report(f"E|xi|^2 / tr H^2 = {float(energy / jnp.sum(H**2)):.3f} over 400 draws")
