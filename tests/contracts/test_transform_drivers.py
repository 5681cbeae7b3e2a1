"""The transforms under what wraps and drives them: accumulation, injected numbers, schedules, devices, optimistix."""

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec, auto_axes

from pwgf_jax.perturbation import gaussian_noise
from pwgf_jax.transforms import compressed_sgd, gradient_trigger, perturb_at_saddle, pgd, ssrgd, top_k
from tests.transforms.driving import (
    EXTRAS,
    FACTORIES,
    JUMPS,
    KEY,
    NEEDS_NOTHING,
    NEEDS_TERMS,
    TRANSFORMS,
    drive,
    near_the_saddle,
    one,
    well,
)

ROOT = Path(__file__).parents[2]


def some(quick, names=TRANSFORMS):
    """All of them, those that are not named being slow."""
    marks = {name: [] if name in quick else [pytest.mark.slow] for name in names}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=marks[name]) for name in names])


def equal(a, b, **tolerances):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_allclose(x, y, **tolerances)


# optax.MultiSteps averages the gradients of k micro-batches and no other argument: value, grad, value_fn and the terms
# have to be those of all of the data, or a search looks at the last micro-batch alone, and a trigger at its gradient.
# (optax 0.2.8 computes the inner update, searches included, at every micro-batch, and keeps every k-th.)


@some({"negative curvature"})
def test_accumulated_gradients_with_the_extras_of_the_whole_are_steps_on_the_whole(name):
    transform = TRANSFORMS[name]()
    halves = optax.MultiSteps(transform, 2, accumulator_dtype=jnp.float64)  # float32 if not told

    @jax.jit
    def step(x, state, tilt):
        value, grad = jax.value_and_grad(well)(x)
        micro = jax.tree.map(lambda g: g + tilt, grad)
        updates, state = halves.update(micro, state, x, value=value, grad=grad, **EXTRAS)
        return optax.apply_updates(x, updates), state

    alone = jax.jit(lambda x, state: one(transform, x, state))
    x = y = jax.tree.map(lambda leaf: leaf + 5e-4, near_the_saddle(jnp.float64))
    state, expected = halves.init(x), transform.init(y)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        for _ in range(3):
            before = x
            x, state = step(x, state, 0.25)
            equal(x, before, rtol=0)  # the first half moves nothing
            x, state = step(x, state, -0.25)
            y, expected = alone(y, expected)
            equal(x, y, rtol=1e-9, atol=1e-12)
            # a coordinate of one leaf: what compresses sends no more
            assert any(np.any(leaf != old) for leaf, old in zip(x.values(), before.values(), strict=True))
    equal(state.inner_opt_state, expected, rtol=1e-9, atol=1e-12)


def test_multi_steps_as_a_plain_transformation_drops_the_extras():
    """optax's own limit: ``MultiSteps.gradient_transformation`` takes no extra arguments as far as a chain can see."""
    halves = optax.MultiSteps(TRANSFORMS["negative curvature"](), 2)
    x = near_the_saddle(jnp.float64)
    chained: Any = optax.chain(halves.gradient_transformation())
    with jax.numpy_dtype_promotion("standard"), pytest.raises(TypeError, match="value_fn missing"):
        chained.update(x, chained.init(x), x, value_fn=well)


def injected(name):
    """The factory under ``optax.inject_hyperparams`` with every number of it, and every default that is one."""
    make, given, other = FACTORIES[name]
    bound = inspect.signature(make).bind(**given)
    bound.apply_defaults()
    static = [argument for argument, value in bound.arguments.items() if not isinstance(value, float)]
    return optax.inject_hyperparams(make, static_args=static)(**given), make, given, other


@some({"pgd", "negative curvature"}, FACTORIES)
def test_injected_numbers_are_the_numbers_and_changing_one_compiles_nothing(name):
    """All of a factory's, with its defaults; whole numbers, which give shapes and lengths, and the key are static."""
    transform, make, given, other = injected(name)
    step: Any = jax.jit(lambda x, state: one(transform, x, state))
    x = near_the_saddle(jnp.float64)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        state: Any = transform.init(x)
        ends = []
        for numbers in ({}, other):
            state.hyperparams.update({number: jnp.asarray(value, jnp.float64) for number, value in numbers.items()})
            found, after = step(x, state)
            plain = make(**given | numbers)
            expected, inner = jax.jit(lambda x, plain=plain: one(plain, x, plain.init(x)))(x)
            equal(found, expected, rtol=1e-7, atol=1e-9)
            equal(after.inner_state, inner, rtol=1e-7, atol=1e-9)
            ends.append(found["x"])
    assert step._cache_size() == 1
    assert not other or np.any(ends[0] != ends[1])


FAR: dict[str, Any] = {"eps": 1e-9, "f_thres": 0.0}
BY_RATE: dict[str, Any] = {
    "pgd": lambda rate: pgd(rate, radius=0.1, k_thres=4, **FAR, key=KEY),
    "compressed sgd": lambda rate: compressed_sgd(rate, top_k(3), noise_radius=0.0, reset_every=2, key=KEY),
    "ssrgd": lambda rate: ssrgd(rate, size=4, batch=4, epoch=2, radius=0.1, k_thres=4, **FAR, key=KEY),
}


@some({"compressed sgd"}, BY_RATE)
def test_far_from_saddles_a_schedule_is_that_of_gradient_descent(name):
    """Whole batches, nothing lost in compression: the three are x ← x − η_t ∇f."""
    x = jax.tree.map(lambda leaf: leaf + 0.5, near_the_saddle(jnp.float64))
    schedule = optax.exponential_decay(0.3, 2, 0.5)
    _, _, path = drive(BY_RATE[name](schedule), well, x, 6, grad_fn=EXTRAS["grad_fn"])
    position = {name: np.asarray(leaf) for name, leaf in x.items()}
    for t in range(6):
        (first, second), third = position["x"], position["y"]
        rate = 0.3 * 0.5 ** (t / 2)
        position = {
            "x": np.array([first - rate * (first**3 - first), (1 - rate) * second]),
            "y": (1 - rate) * third,
        }
        for leaf, expected in position.items():
            np.testing.assert_allclose(path[leaf][t], expected, rtol=1e-6)


@pytest.mark.slow
def test_adam_is_adam_until_the_jump():
    trigger = gradient_trigger(eps=0.06, k_thres=3, f_thres=0.0)
    adam = optax.adam(optax.constant_schedule(0.1))
    x = {"x": jnp.asarray([0.0, 0.3]), "y": jnp.zeros(1)}  # toward the saddle
    _, _, expected = drive(adam, well, x, 40)
    _, state, path = drive(perturb_at_saddle(adam, gaussian_noise(1.0), trigger, key=KEY), well, x, 40)
    moved = np.flatnonzero(np.asarray(path["x"][:, 0]))
    assert 0 < moved[0] < 40  # adam alone never leaves x₀ = 0
    assert not np.any(np.asarray(expected["x"][:, 0]))
    equal(jax.tree.map(lambda leaf: leaf[: moved[0]], path), jax.tree.map(lambda leaf: leaf[: moved[0]], expected))
    assert int(state.window.jumped_at) >= moved[0]


# Two devices.

SCRIPT = """
import sys
import jax
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_disable_most_optimizations", True)
import numpy as np
from tests.contracts import test_transform_drivers
assert jax.device_count() == 2
np.savez(sys.argv[1], **test_transform_drivers.ends(spread=True), **test_transform_drivers.explicit_ends())
"""


EXPLICIT = ("pgd", "perturb, hessian", "cubic newton", "compressed sgd")
SIBLINGS = {"zo sgd", "zo scsg", "neon spider", "perturb, ball", "error feedback", "saddle-free newton", "zeroth order"}


def ends(spread):
    """Where three steps of each transform lead from near the saddle, the parameters over all devices or on one."""
    x = {"x": jnp.full((8, 1), 1e-4), "y": jnp.full(8, 2e-4)}
    if spread:
        mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("parameters",))
        x = jax.device_put(x, NamedSharding(mesh, PartitionSpec("parameters")))
    found = {}
    for name in TRANSFORMS.keys() - SIBLINGS - (set(EXPLICIT) if spread else set()):  # others do what they do
        transform, end = TRANSFORMS[name](), x
        step = jax.jit(lambda x, state, transform=transform: one(transform, x, state))
        with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
            state = transform.init(end)
            for _ in range(3):
                end, state = step(end, state)
        for leaf in jax.tree.leaves(end):
            assert len(leaf.sharding.device_set) == (jax.device_count() if spread else 1), name
        found |= {f"{name} {leaf}": np.asarray(end[leaf]) for leaf in end}
    return found


def explicit_ends():
    """The same of some on a mesh whose axes are explicit: the step asks JAX for automatic ones inside."""
    mesh = jax.make_mesh((2,), ("parameters",), axis_types=(AxisType.Explicit,))
    spec, found = PartitionSpec("parameters"), {}
    with jax.set_mesh(mesh), jax.numpy_dtype_promotion("standard"):
        for name in EXPLICIT:
            transform = TRANSFORMS[name]()
            end = jax.device_put({"x": jnp.full((8, 1), 1e-4), "y": jnp.full(8, 2e-4)}, NamedSharding(mesh, spec))
            state = auto_axes(transform.init, out_sharding=PartitionSpec())(end)
            step = auto_axes(lambda x, state, own=transform: one(own, x, state), out_sharding=(spec, PartitionSpec()))
            step = jax.jit(step)
            for _ in range(3):
                end, state = step(end, state)
            assert jax.typeof(end["y"]).sharding.spec == spec
            found |= {f"{name} {leaf}": np.asarray(end[leaf]) for leaf in end}
    return found


@pytest.mark.slow
def test_parameters_over_two_devices_go_where_those_on_one_go(tmp_path):
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "two.npz")]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = ends(spread=False)
    with np.load(tmp_path / "two.npz") as two:
        for name, end in expected.items():
            np.testing.assert_allclose(two[name], end, rtol=1e-8, atol=1e-10, err_msg=name)


# optimistix passes value, grad and value_fn.


@some((), [name for name in TRANSFORMS if name not in NEEDS_TERMS])
def test_optimistix_takes_the_steps_of_an_optax_loop(name):
    optimistix = pytest.importorskip("optimistix")
    x = near_the_saddle(jnp.float64)
    transform = TRANSFORMS[name]()
    solver = optimistix.OptaxMinimiser(transform, rtol=0.0, atol=0.0)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # equinox and optax mix dtypes
        found = optimistix.minimise(lambda x, _: well(x), solver, x, max_steps=5, throw=False).value
    end, _, _ = drive(transform, well, x, 5)
    equal(found, end, rtol=1e-9, atol=1e-13)
    assert name in NEEDS_NOTHING or np.any(end["x"] != x["x"])


@pytest.mark.parametrize("name", sorted(NEEDS_TERMS))
def test_what_needs_the_terms_says_so_to_optimistix(name):
    optimistix = pytest.importorskip("optimistix")
    solver = optimistix.OptaxMinimiser(TRANSFORMS[name](), rtol=0.0, atol=0.0)
    with jax.numpy_dtype_promotion("standard"), pytest.raises(TypeError, match=r"(components|grad_fn) missing"):
        optimistix.minimise(lambda x, _: well(x), solver, near_the_saddle(jnp.float64), max_steps=2, throw=False)


@pytest.mark.slow
def test_optimistix_stops_at_saddles_unless_its_tolerances_are_zero():
    """Its Cauchy test stops where steps and decreases are small: at a saddle, be it that a jump has just been made."""
    optimistix = pytest.importorskip("optimistix")
    start = {"x": jnp.asarray([1e-6, 1.0]), "y": jnp.ones(1)}
    options: dict[str, Any] = JUMPS | {"k_thres": 150}
    jumps = pgd(0.1, radius=1e-3, **options, key=KEY)

    def ends(optimizer, tolerance):
        solver = optimistix.OptaxMinimiser(optimizer, rtol=tolerance, atol=tolerance)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return optimistix.minimise(lambda x, _: well(x), solver, start, max_steps=250, throw=False)

    for optimizer in (optax.sgd(0.1), jumps):
        stopped = ends(optimizer, 1e-3)
        assert stopped.result == optimistix.RESULTS.successful
        assert abs(float(well(stopped.value))) < 1e-3  # the saddle's value
        assert float(jnp.abs(stopped.value["x"][0])) < 1e-2
    went_on = ends(jumps, 0.0)
    assert went_on.result != optimistix.RESULTS.successful  # it has no other way to end than its steps
    assert float(well(went_on.value)) < -0.2499
