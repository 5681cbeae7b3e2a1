"""What every optax transform keeps: one table of transforms, the same laws for each."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pwgf_jax import problems
from pwgf_jax.transforms import (
    ball,
    ball_noise,
    compressed_sgd,
    constrained_escape,
    cubic_newton,
    dimer,
    gradient_trigger,
    hessian_product_noise,
    negative_curvature_descent,
    perturb_at_saddle,
    pgd,
    scale_by_measure,
    scale_by_saddle_free_newton,
    top_k,
    zeroth_order_descent,
)

KEY = jax.random.key(0)
JUMPS: dict[str, Any] = {"eps": 1e-3, "k_thres": 4, "f_thres": 1e-4}
KNOWN: dict[str, Any] = {"smoothness": 2.0, "hessian_lipschitz": 6.0, "eps": 1e-2}

TRANSFORMS = {
    "perturb, ball": lambda: perturb_at_saddle(ball_noise(0.1), gradient_trigger(**JUMPS), KEY),
    "perturb, hessian": lambda: perturb_at_saddle(hessian_product_noise(0.1), gradient_trigger(**JUMPS), KEY),
    "pgd": lambda: pgd(0.1, radius=0.1, **JUMPS, key=KEY),
    "saddle-free newton": lambda: scale_by_saddle_free_newton(0.1, depth=3),
    "cubic newton": lambda: cubic_newton(6.0, key=KEY, depth=3),
    "negative curvature": lambda: negative_curvature_descent(**KNOWN, delta=0.5, key=KEY, steps=5),
    "zeroth order": lambda: zeroth_order_descent(**KNOWN, delta=0.5, key=KEY, steps=5),
    "dimer": lambda: dimer(separation=1e-2, rotation_rate=0.1, every=2, strength=1.0, kick=0.1, key=KEY),
    "compressed sgd": lambda: compressed_sgd(0.1, top_k(1), noise_radius=0.1, reset_every=3, key=KEY),
    "constrained": lambda: constrained_escape(ball(2.0), **KNOWN, gamma=0.1, key=KEY),
    "scale by measure": lambda: optax.with_extra_args_support(scale_by_measure()),
}
NEEDS_NOTHING = {"compressed sgd", "scale by measure"}

every_transform = pytest.mark.parametrize("name", TRANSFORMS)
problem = problems.double_well(3)


def well(x):
    return problem.value(x["x"])


def at(dtype):
    return {"x": jnp.asarray([0.0, 1e-4, 0.0], dtype)}  # next to the saddle


def one(transform, x, state, **extra):
    value, grad = jax.value_and_grad(well)(x)
    updates, state = transform.update(grad, state, x, value=value, grad=grad, value_fn=well, **extra)
    return optax.apply_updates(x, updates), state


@every_transform
def test_laws(name):
    """State of fixed shapes and dtypes under scan; unknown extras ignored; moves finite; missing extras named."""
    transform = TRANSFORMS[name]()

    def path(x):
        # scan refuses a carry whose shapes, dtypes or weak types change
        step = lambda carry, _: (one(transform, *carry, batch_stats=1.0), carry[0]["x"])  # noqa: E731
        return jax.lax.scan(step, (x, transform.init(x)), length=6)

    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        x = at(jnp.float64)
        (end, state), _ = jax.eval_shape(path, x)
        assert end["x"].dtype == jnp.float64
        abstract = jax.eval_shape(transform.init, jax.eval_shape(lambda: x))
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), state
        )
        x = at(jnp.float32)
        (end, _), values = jax.jit(path)(x)
        assert end["x"].dtype == jnp.float32
        assert np.all(np.isfinite(values))
        if name != "scale by measure":
            assert np.any(np.asarray(end["x"]) != np.asarray(x["x"]))
        if name not in NEEDS_NOTHING:
            with pytest.raises(TypeError, match="missing"):
                transform.update(x, transform.init(x), x)
