"""Compressed SGD: what is lost, what is kept, and that simulated workers are real ones."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from pwgf_jax import problems
from pwgf_jax.transforms.compression import Compressor, compressed_sgd, error_feedback, random_k, top_k
from tests.transforms.driving import drive

ROOT = Path(__file__).parents[2]
D, WORKERS = 10, 8
COMPRESSORS = {"top_k": top_k, "random_k": random_k}
WELL = problems.double_well(D)


BOTH = pytest.mark.parametrize(("name", "dtype"), [("top_k", jnp.float32), ("random_k", jnp.float64)])


@BOTH
def test_the_loss_is_at_most_what_the_paper_assumes(name, dtype):
    k = 3
    x = jax.random.normal(jax.random.key(1), (D,), dtype)
    compressor = COMPRESSORS[name](k)
    keys = jax.random.split(jax.random.key(2), 1000)
    sent = jax.jit(jax.vmap(compressor.compress, in_axes=(0, None)))(keys, x)
    assert sent.dtype == dtype
    assert bool(jnp.all(jnp.sum(sent != 0, axis=1) == k))
    assert bool(jnp.all((sent == 0) | (sent == x[None])))
    losses = np.asarray(jnp.sum((sent - x[None]) ** 2, axis=1), float)
    bound = (1 - k / D) * float(jnp.sum(x**2))
    if name == "top_k":
        assert losses.max() < bound
        np.testing.assert_allclose(losses, np.sum(np.sort(np.asarray(x, float) ** 2)[:-k]), rtol=1e-6)
    else:  # equality in the mean
        assert abs(losses.mean() - bound) < 4 * losses.std() / np.sqrt(losses.size)
        assert np.unique(np.asarray(sent) != 0, axis=0).shape[0] > 50


def test_random_k_is_linear_under_a_shared_key():
    compress = jax.jit(random_k(3).compress)
    x, y = jax.random.normal(jax.random.key(0), (2, D))
    for seed in range(3):
        key = jax.random.key(seed)
        np.testing.assert_allclose(compress(key, 2 * x + y), 2 * compress(key, x) + compress(key, y), rtol=1e-6)


def plain_sgd(learning_rate, gradients, noise_key, radius, x):
    """SGD on recorded gradients and the noise that optax draws; the oracle of the invariant."""
    optimizer = optax.chain(optax.add_noise(radius**2 / D, 0.0, noise_key), optax.sgd(learning_rate))

    def step(carry, g):
        x, state = carry
        updates, state = optimizer.update(g, state, x)
        return (x + updates, state), x + updates

    return jax.lax.scan(step, (x, optimizer.init(x)), gradients)[1]


@pytest.mark.parametrize("name", COMPRESSORS)
def test_parameters_and_error_together_follow_uncompressed_sgd(name):
    key, radius = jax.random.key(3), 0.2
    rate = optax.exponential_decay(0.2, 10, 0.5)  # the error is in units of the parameters, so η may change
    optimizer: Any = compressed_sgd(rate, COMPRESSORS[name](2), noise_radius=radius, reset_every=7, key=key)

    @jax.jit
    def both(x):
        def step(carry, _):
            x, state = carry
            g = jax.grad(WELL.value)(x)
            updates, state = optimizer.update(g, state, x, value=0.0, anything=None)
            x = x + updates
            feedback = state[-1]
            return (x, state), (g, x, feedback.error, feedback.bits)

        with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
            out = jax.lax.scan(step, (x, optimizer.init(x)), None, length=30)[1]
            return *out, plain_sgd(rate, out[0], jax.random.split(key)[0], radius, x)

    _, xs, errors, bits, expected = both(jnp.ones(D))
    np.testing.assert_allclose(xs + errors, expected, rtol=1e-12, atol=1e-12)
    sizes = np.abs(np.asarray(errors)).max(axis=1)
    whole = np.arange(1, 31) % 7 == 0
    assert np.all(sizes[whole] == 0)
    assert np.all(sizes[~whole] > 1e-6)
    compressed = 2 * 64 if name == "random_k" else 2 * (64 + np.log2(D))
    np.testing.assert_allclose(bits, np.cumsum(np.where(whole, 64 * D, compressed)), rtol=1e-6)


def test_bits_are_those_of_the_paper_in_float32_and_trees_are_one_vector():
    params = {"a": jnp.zeros((2, 3), jnp.float32), "b": jnp.zeros(2, jnp.float32)}
    updates = {"a": jnp.asarray([[1, 8, 2], [3, -7, 4]], jnp.float32), "b": jnp.asarray([-9, 5], jnp.float32)}
    for compressor, bits in ((top_k(3), 3 * (32 + 3)), (random_k(3), 3 * 32)):
        transform: Any = error_feedback(compressor, reset_every=5, key=jax.random.key(0))
        sent, state = jax.jit(transform.update)(updates, transform.init(params), params)
        assert float(state.bits) == bits
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(jnp.add, sent, state.error), updates)
        if compressor.bits(8, 32) != 96:
            assert sent["b"].tolist() == [-9, 0]
            assert sent["a"].tolist() == [[0, 8, 0], [0, -7, 0]]
    assert transform.init(jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)).bits.dtype == jnp.float32


@BOTH
def test_it_leaves_the_exact_saddle_with_one_coordinate_of_ten(name, dtype):
    optimizer = compressed_sgd(0.1, COMPRESSORS[name](1), noise_radius=0.01, reset_every=D, key=jax.random.key(0))
    x, state, _ = drive(optimizer, WELL.value, jnp.zeros(D, dtype), 300)
    assert x.dtype == dtype
    assert float(WELL.value(x)) < -0.249
    assert float(state[-1].bits) < 0.4 * 300 * D * jnp.finfo(dtype).bits


# Workers: each has its own linear term, which cancels in the average.


def tilts():
    b = np.random.default_rng(0).normal(size=(WORKERS, D))
    return jnp.asarray(b - b.mean(axis=0))


def work(name, b):
    """One worker's run, seen from inside: (parameters, error, bits) over time."""
    optimizer: Any = compressed_sgd(
        0.1, COMPRESSORS[name](2), noise_radius=0.1, reset_every=5, key=jax.random.key(0), axis_name="workers"
    )

    def step(carry, _):
        x, state = carry
        updates, state = optimizer.update(jax.grad(WELL.value)(x) + b, state, x)
        x = optax.apply_updates(x, updates)
        feedback = next(each for each in state if hasattr(each, "error"))
        return (x, state), (x, feedback.error, feedback.bits)

    x = jnp.ones(D)
    return jax.lax.scan(step, (x, optimizer.init(x)), None, length=12)[1]


@pytest.fixture(scope="module")
def simulated():
    return {
        name: [np.asarray(each) for each in jax.jit(jax.vmap(partial(work, name), axis_name="workers"))(tilts())]
        for name in COMPRESSORS
    }


def test_workers_agree_on_the_parameters_and_random_k_on_the_coordinates(simulated):
    for xs, errors, bits in simulated.values():
        np.testing.assert_array_equal(xs, np.broadcast_to(xs[:1], xs.shape))
        np.testing.assert_array_equal(bits, np.broadcast_to(bits[:1], bits.shape))
        assert np.abs(errors[0] - errors[1]).max() > 1e-3
        np.testing.assert_array_equal(errors[:, 4], 0)
    kept = simulated["random_k"][1] == 0
    assert np.all(kept == kept[:1])
    assert not np.all((simulated["top_k"][1] == 0) == (simulated["top_k"][1][:1] == 0))


def test_linear_compression_of_many_workers_is_that_of_their_average(simulated):
    alone = compressed_sgd(0.1, random_k(2), noise_radius=0.1, reset_every=5, key=jax.random.key(0))

    _, _, path = drive(alone, WELL.value, jnp.ones(D), 12)
    np.testing.assert_allclose(simulated["random_k"][0][0], path, rtol=1e-10, atol=1e-12)
    assert np.abs(simulated["top_k"][0][0] - path).max() > 1e-3


SCRIPT = """
import sys
import jax
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_disable_most_optimizations", True)
import numpy as np
from tests.transforms import test_compression
assert jax.device_count() == 8
np.savez(sys.argv[1], **test_compression.sharded())
"""


def sharded():
    """The same work with a device for every worker."""
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("workers",))
    spec, found = PartitionSpec("workers"), {}
    for name in COMPRESSORS:

        def one(b, name=name):
            return jax.tree.map(lambda leaf: leaf[None], work(name, b[0]))

        # The scan starts from what all workers share and ends with what each has for itself.
        run = jax.jit(jax.shard_map(one, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
        for i, each in enumerate(run(tilts())):
            found[f"{name} {i}"] = np.asarray(each)
    return found


@pytest.mark.slow
def test_simulated_workers_are_eight_devices(simulated, tmp_path):
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "eight.npz")]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(tmp_path / "eight.npz") as eight:
        for name, expected in simulated.items():
            for i, each in enumerate(expected):
                np.testing.assert_allclose(eight[f"{name} {i}"], each, rtol=1e-12, atol=1e-12, err_msg=f"{name} {i}")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda key: top_k(0), "top_k: k=0; give a whole number"),
        (lambda key: top_k(4).compress(key, jnp.ones(3)), "top_k: k=4 of 3 parameters"),
        (lambda key: random_k(4).compress(key, jnp.ones(3)), "random_k: k=4 of 3 parameters"),
        (lambda key: error_feedback(top_k(1), reset_every=0, key=key), "reset_every=0"),
        (lambda key: compressed_sgd(0.1, top_k(1), noise_radius=-1.0, reset_every=1, key=key), "noise_radius=-1.0"),
    ],
)
def test_impossible_numbers_are_refused(make, message, key):
    with pytest.raises(ValueError, match=message):
        make(key)


def test_untyped_keys_are_refused():
    with pytest.raises(TypeError, match="error_feedback: key is a uint32 array"):
        error_feedback(Compressor(lambda key, x: x, lambda d, width: d), reset_every=1, key=jax.random.PRNGKey(0))
