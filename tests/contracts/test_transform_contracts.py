"""What every optax transform keeps: one table of transforms, the same laws for each."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.transforms.driving import NEEDS_NOTHING, TRANSFORMS, near_the_saddle, one

SIBLINGS = {"zo sgd", "zo scsg"}  # made of what "zo spider" is made of
every_transform = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SIBLINGS else []) for name in TRANSFORMS]
)


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def path(transform, x):
    # scan refuses a carry whose shapes, dtypes or weak types change
    step = lambda carry, _: (one(transform, *carry, batch_stats=1.0), None)  # noqa: E731
    return jax.lax.scan(step, (x, transform.init(x)), length=6)[0]


@every_transform
def test_laws(name):
    """Fixed shapes and dtypes under scan; unknown extras ignored; one compilation; finite moves; missing ones named."""
    transform = TRANSFORMS[name]()

    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        x = near_the_saddle(jnp.float64)
        end, state = jax.eval_shape(lambda x: path(transform, x), x)
        assert shapes(end) == shapes(x)
        assert shapes(jax.eval_shape(transform.init, jax.eval_shape(lambda: x))) == shapes(state)

        start = end = near_the_saddle(jnp.float32)
        state, moved = transform.init(start), False
        step: Any = jax.jit(lambda x, state: one(transform, x, state))
        for _ in range(6):
            end, state = step(end, state)
            assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(end))
            moved |= bool(np.any(end["x"] != start["x"]))
        assert step._cache_size() == 1
        assert shapes(end) == shapes(start)
        assert moved
        if name not in NEEDS_NOTHING:
            with pytest.raises(TypeError, match="missing"):
                transform.update(start, transform.init(start), start)


@every_transform
def test_leaves_of_two_dtypes_keep_theirs(name):
    """With a strict user's JAX, which promotes nothing: what has to be one vector is promoted by the transform."""
    transform = TRANSFORMS[name]()
    x = near_the_saddle(jnp.float32, jnp.bfloat16)
    end, state = jax.eval_shape(lambda x: path(transform, x), x)
    assert shapes(end) == shapes(x)
    assert shapes(state) == shapes(transform.init(x))


@every_transform
def test_a_chain_with_adam_under_a_schedule_passes_the_extras_on(name):
    """A jump is the last word, so what perturbs comes after adam; elsewhere adam takes the step for its gradient."""
    parts = [TRANSFORMS[name](), optax.adam(optax.exponential_decay(0.1, 10, 0.5))]
    transform = optax.chain(*(parts[::-1] if name.startswith("perturb") else parts))
    x = near_the_saddle(jnp.float32)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        end, _ = jax.eval_shape(lambda x: path(transform, x), x)
    assert shapes(end) == shapes(x)
