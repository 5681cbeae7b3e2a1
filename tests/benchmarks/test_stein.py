"""An SVGD step with the median kernel held fixed, ours and blackjax's, on the same particles and target."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pwgf_jax import Particles, functionals, wgf
from pwgf_jax.flows import ksd_descent, noise_injection, svgd
from pwgf_jax.kernels import gaussian, median_heuristic

N = 1024


def stepper(method, F, mu):
    state = method.init(jax.random.key(0), F, mu)
    step = jax.jit(lambda state: method.step(jax.random.key(1), F, state)[0])
    return lambda: step(state)


@pytest.mark.parametrize("dimension", [2, 50])
def test_step_against_blackjax(dimension, side_by_side, report):
    svgd_of_blackjax = pytest.importorskip("blackjax.vi.svgd")
    mu = Particles.uniform(jax.random.normal(jax.random.key(0), (N, dimension)))
    lengthscale = median_heuristic(mu.points)
    F = functionals.potential(lambda x: jnp.sum((x - 1) ** 2) / 2)
    ours = stepper(svgd(0.1, kernel=gaussian(lengthscale)), F, mu)

    theirs = svgd_of_blackjax.as_top_level_api(
        lambda x: 1 - x, optax.sgd(0.1), update_kernel_parameters=lambda state: state
    )
    start = theirs.init(mu.points, {"length_scale": 2 * lengthscale**2})
    step = jax.jit(theirs.step)
    # ours holds the evaluation at its new measure: its first update is the step that theirs takes
    np.testing.assert_allclose(step(start).particles, ours().mu.points, rtol=2e-4, atol=2e-5)
    contenders = {
        "svgd": ours,
        "blackjax": lambda: step(start),
        "median": stepper(svgd(0.1, kernel="median"), F, mu),
        "ksd": stepper(ksd_descent(0.1, kernel=gaussian(lengthscale)), F, mu),
    }
    seconds = side_by_side(contenders, rounds=9)
    report(f"d={dimension}: svgd {1e3 * seconds['svgd']:.2f} ms; blackjax {seconds['blackjax'] / seconds['svgd']:.0f}x")
    for name in ("median", "ksd"):
        report(f"d={dimension}: {name} takes {seconds[name] / seconds['svgd']:.1f} of it")


def test_noise_injection_against_the_plain_step(side_by_side, report):
    key = jax.random.key(0)
    inputs, targets, start = (
        jax.random.normal(k, s) for k, s in zip(jax.random.split(key, 3), [(800, 20), (800, 5), (400, 25)], strict=True)
    )
    F, mu = functionals.mean_field_regression(inputs, targets), Particles.uniform(start)
    seconds = side_by_side({"wgf": stepper(wgf(0.1), F, mu), "noisy": stepper(noise_injection(0.1, 0.1), F, mu)})
    report(f"a step with injected noise takes {seconds['noisy'] / seconds['wgf']:.2f} plain ones")
