"""Eight fake devices against one: the same numbers, up to rounding."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwgf_jax import Particles, functionals, pwgf, run, sweep
from pwgf_jax.solve import shard_particles
from tests.solve.problems import METHOD, STEPS, problem, seeds

ROOT = Path(__file__).parents[2]
SEEDS = 11  # no multiple of eight

SCRIPT = """
import sys
import jax
jax.config.update("jax_enable_x64", True)
import numpy as np
from tests.solve import test_devices

assert jax.device_count() == 8
np.savez(sys.argv[1], **test_devices.results("shard"))
"""


def results(batching):
    """Seeds spread over the devices, and particles spread over them, by name."""
    swept = sweep(METHOD, problem, seeds(SEEDS), STEPS, batching=batching)
    draw = np.random.default_rng(0)
    F = functionals.matrix_factorization(jnp.asarray(draw.normal(size=(6, 2))), jnp.asarray(draw.normal(size=(6, 1))))
    half = draw.normal(size=(8, 3))
    mu = Particles.uniform(jnp.asarray(np.concatenate([half, half * [-1, 1, 1]])))
    mu = shard_particles(mu)
    assert len(mu.points.sharding.device_set) == jax.device_count()
    method = pwgf(0.5, eps=0.05, eta_p=0.2, k_thres=60, f_thres=1e-2)
    one = run(method, F, mu, jax.random.key(0), 30)
    assert len(one.mu.points.sharding.device_set) == jax.device_count()  # still spread at the end
    return {
        "points": np.asarray(swept.mu.points),
        "value": np.asarray(swept.value),
        "status": np.asarray(swept.status),
        "steps": np.asarray(swept.steps),
        "values": np.asarray(swept.records["value"]),
        "particles": np.asarray(one.mu.points),
        "particle values": np.asarray(one.records["value"]),
        "jumps": np.asarray(one.records["perturbed"]),
    }


@pytest.mark.slow
def test_eight_devices_agree_with_one(tmp_path):
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "eight.npz")]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = results("map")
    assert np.sum(expected["jumps"]) == 1
    with np.load(tmp_path / "eight.npz") as eight:
        for name, value in expected.items():
            np.testing.assert_allclose(eight[name], value, rtol=1e-8, atol=1e-10, err_msg=name)


def test_particles_that_do_not_divide_are_refused():
    device = jax.devices()[0]
    assert shard_particles(Particles.uniform(jnp.ones((3, 2))), [device]).size == 3
    if jax.device_count() > 1:
        with pytest.raises(ValueError, match="take a multiple of"):
            shard_particles(Particles.uniform(jnp.ones((jax.device_count() + 1, 2))))
