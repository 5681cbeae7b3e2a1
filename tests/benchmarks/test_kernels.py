"""The MMD step, value and gradient, at N = M = 8192 particles in 2 and 50 dimensions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwgf_jax import Particles
from pwgf_jax.calculus import value_and_wasserstein_gradient
from pwgf_jax.functionals import mmd
from pwgf_jax.kernels import gaussian

N = 8192
dimensions = pytest.mark.parametrize("d", [2, 50])


def clouds(d: int) -> tuple[jax.Array, jax.Array, float]:
    x, y = jax.random.normal(jax.random.key(0), (2, N, d))
    return x, y + 0.5, float(np.sqrt(d))


def ours(d: int) -> Callable[[], tuple[jax.Array, jax.Array]]:
    x, y, lengthscale = clouds(d)
    F = mmd(y, gaussian(lengthscale))
    return partial(jax.jit(lambda x, F: value_and_wasserstein_gradient(F, Particles.uniform(x))), x, F)


def witness(d: int, batch_size: int = N) -> Callable[[], tuple[jax.Array, jax.Array]]:
    """The witness at one particle, differentiated and mapped over all particles, or over batches of them."""
    x, y, lengthscale = clouds(d)

    @jax.jit
    def step(x):
        def kernel_mean(p, cloud):
            return jnp.mean(jnp.exp(-jnp.sum((p[None] - cloud) ** 2, axis=1) / (2 * lengthscale**2)))

        value = jax.value_and_grad(lambda p: kernel_mean(p, x) - kernel_mean(p, y))
        return jax.lax.map(value, x, batch_size=batch_size)

    return partial(step, x)


def ceilings(d: int) -> dict[str, Callable[[], jax.Array]]:
    """Sixteen square products, and the exponentials of N² numbers in a block that stays in the cache."""
    square, block = jax.random.normal(jax.random.key(1), (1024, 1024)), jax.random.normal(jax.random.key(2), (64, N))
    products = jax.jit(lambda x: jax.lax.fori_loop(0, 16, lambda _, x: (x @ square) * 1e-3, x))
    exponentials = jax.jit(lambda x: jax.lax.fori_loop(0, N // 64, lambda _, x: jnp.exp(-x), x))
    return {"gemm": partial(products, square), "exp": partial(exponentials, block)}


@dimensions
def test_mmd_step(side_by_side, report, d):
    step, batched = ours(d), witness(d, batch_size=64)
    np.testing.assert_allclose(step()[1], batched()[1], atol=2e-6)
    contenders = {"ours": step, "in batches of 64": batched}
    if d == 2:  # at d=50 its (N, M, d) numbers take 13 GB
        contenders["vmapped"] = witness(d)
    slow = side_by_side(contenders, rounds=3)
    for name in list(contenders)[1:]:
        report(f"d={d}: autodiff of the witness, {name}, takes {slow[name] / slow['ours']:.1f} times our step")
    seconds = side_by_side({"ours": step} | ceilings(d), rounds=15)
    flops = 16 * 2 * 1024**3 / seconds["gemm"]
    bound = 2 * N**2 * 4 * d / flops + 2 * seconds["exp"]  # distances and moments, of the particles and the target
    report(
        f"d={d}: GEMM {flops / 1e9:.0f} GF/s, exp of {N}x{N} {1e3 * seconds['exp']:.1f} ms; bound {1e3 * bound:.0f} ms"
    )
    report(
        f"d={d}: value + gradient {1e3 * seconds['ours']:.0f} ms = {100 * bound / seconds['ours']:.0f} % of the bound"
    )


@dimensions
def test_mmd_step_against_keops(side_by_side, report, d):
    keops = pytest.importorskip("pykeops.numpy")
    x, y, lengthscale = clouds(d)
    points, target = np.array(x), np.array(y)

    def sums(rows, columns):
        difference = keops.Vi(rows) - keops.Vj(columns)
        kernel = (-difference.sqnorm2() / (2 * lengthscale**2)).exp()
        return (kernel.concat(kernel * difference)).sum(axis=1) / N  # values and gradients in one reduction

    def keops_step():
        repelled, drawn = sums(points, points), sums(points, target)
        return (drawn - repelled)[:, 1:] / lengthscale**2

    step = ours(d)
    np.testing.assert_allclose(step()[1], keops_step(), atol=2e-6)
    seconds = side_by_side({"ours": step, "keops": keops_step}, rounds=5)
    ratio = seconds["keops"] / seconds["ours"]
    report(f"d={d}: KeOps on the CPU takes {ratio:.1f} times our step of {1e3 * seconds['ours']:.0f} ms")
