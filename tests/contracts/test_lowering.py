"""Every flow and every transform lowers for GPUs and TPUs, which takes no such device."""

import jax
import jax.numpy as jnp
import pytest

from tests.contracts.test_flow_contracts import FLOWS, problem
from tests.transforms.driving import TRANSFORMS, near_the_saddle, one

platforms = pytest.mark.parametrize("platform", ["cuda", "tpu"])


def lowered(platform, function, *arguments):
    """The program of a platform, as text; keys go in as numbers, made inside."""
    text = jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    assert "stablehlo" in text
    return text


@platforms
@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_lowers(name, platform):
    F, slope, _ = problem(jnp.float32)
    flow, (leaves, tree) = FLOWS[name].make(), jax.tree.flatten((F, slope))

    def whole(numbers, leaves):
        key, (F, mu) = jax.random.wrap_key_data(numbers), jax.tree.unflatten(tree, leaves)
        state, info = flow.step(key, F, flow.init(key, F, mu))
        return state.mu.points, info.value

    text = lowered(platform, whole, jax.random.key_data(jax.random.key(0)), leaves)
    assert "xf64>" not in text  # a float64 that slips in is emulated on a TPU, at a hundredth of the speed


@platforms
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_lowers(name, platform):
    transform = TRANSFORMS[name]()

    def whole(x):
        with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
            return one(transform, x, transform.init(x))[0]

    lowered(platform, whole, near_the_saddle(jnp.float32))
