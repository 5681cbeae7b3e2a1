"""Every transform of the package, one well for all, and an optax user's loop, compiled."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from pwgf_jax import problems
from pwgf_jax.perturbation import ball_noise, hessian_noise
from pwgf_jax.transforms import (
    accelerated_descent,
    ball,
    compressed_sgd,
    constrained_escape,
    cubic_newton,
    dimer,
    error_feedback,
    gradient_trigger,
    negative_curvature_descent,
    perturb_at_saddle,
    pgd,
    scale_by_measure,
    scale_by_saddle_free_newton,
    scsg,
    sgd,
    spider,
    ssrgd,
    top_k,
    zeroth_order_descent,
)

KEY = jax.random.key(0)
JUMPS: dict[str, Any] = {"eps": 1e-3, "k_thres": 4, "f_thres": 1e-4}
KNOWN: dict[str, Any] = {"smoothness": 2.0, "hessian_lipschitz": 6.0, "eps": 1e-2}
SUM: dict[str, Any] = {"size": 4, "batch": 2, "key": KEY}
SEARCH: dict[str, Any] = {**KNOWN, "delta": 0.5, "key": KEY}
NESTEROV: dict[str, Any] = {"theta": 0.1, "gamma": 0.1, "stretch": 0.1}
DIMER: dict[str, Any] = {"separation": 1e-2, "rotation_rate": 0.1, "every": 2, "kick": 0.1, "key": KEY}


def jumping(noise: Any) -> Any:
    """``perturb_at_saddle`` as a function of numbers."""

    def make(*, scale: Any, eps: Any, k_thres: Any, f_thres: Any, key: Any) -> Any:
        trigger = gradient_trigger(eps=eps, k_thres=k_thres, f_thres=f_thres)
        return perturb_at_saddle(optax.sgd(0.1), noise(scale), trigger, key=key)

    return make


# The factory, what it is given (the rest are its defaults), and another value of one of its numbers.
FACTORIES: dict[str, tuple[Any, dict[str, Any], dict[str, float]]] = {
    "perturb, ball": (jumping(ball_noise), {"scale": 0.1, **JUMPS, "key": KEY}, {"scale": 0.2}),
    "perturb, hessian": (jumping(hessian_noise), {"scale": 0.1, **JUMPS, "key": KEY}, {"scale": 0.2}),
    "pgd": (pgd, {"learning_rate": 0.1, "radius": 0.1, **JUMPS, "key": KEY}, {"radius": 0.2}),
    "accelerated": (accelerated_descent, {"learning_rate": 0.1, **NESTEROV}, {"learning_rate": 0.2}),
    "saddle-free newton": (scale_by_saddle_free_newton, {"beta": 0.1}, {"beta": 0.2}),
    "cubic newton": (cubic_newton, {"lipschitz": 6.0, "key": KEY}, {"lipschitz": 8.0}),
    "negative curvature": (negative_curvature_descent, SEARCH, {"eps": 1e-6}),
    "zeroth order": (zeroth_order_descent, SEARCH, {"smoothness": 3.0}),
    "dimer": (dimer, {**DIMER, "strength": 1.0}, {"strength": 2.0}),
    "error feedback": (error_feedback, {"compressor": top_k(1), "reset_every": 3, "key": KEY}, {}),
    "compressed sgd": (
        compressed_sgd,
        {"learning_rate": 0.1, "compressor": top_k(1), "noise_radius": 0.1, "reset_every": 3, "key": KEY},
        {"learning_rate": 0.2},
    ),
    "constrained": (
        constrained_escape,
        {"domain": ball(2.0), **KNOWN, "gamma": 0.1, "key": KEY},
        {"hessian_lipschitz": 8.0},
    ),
    "scale by measure": (scale_by_measure, {}, {}),
    "ssrgd": (
        ssrgd,
        {"learning_rate": 0.1, **SUM, "epoch": 2, "radius": 0.1, "eps": 1e-3, "f_thres": 1e-4, "k_thres": 4},
        {"radius": 0.2},
    ),
    "neon spider": (
        negative_curvature_descent,
        SEARCH | {"estimator": spider(4, 2, 4, epoch=2)},
        {"hessian_lipschitz": 8.0},
    ),
    "zo sgd": (zeroth_order_descent, SEARCH | {"estimator": sgd(4, 2)}, {"hessian_lipschitz": 8.0}),
    "zo scsg": (zeroth_order_descent, SEARCH | {"estimator": scsg(4, 2, 4)}, {"hessian_lipschitz": 8.0}),
    "zo spider": (zeroth_order_descent, SEARCH | {"estimator": spider(4, 2, 4, epoch=2)}, {"hessian_lipschitz": 8.0}),
}
TRANSFORMS: dict[str, Any] = {
    name: lambda make=make, given=given: make(**given) for name, (make, given, _) in FACTORIES.items()
}
NEEDS_NOTHING = {"error feedback", "compressed sgd", "scale by measure"}
NEEDS_TERMS = {
    "ssrgd",
    "neon spider",
    "zo sgd",
    "zo scsg",
    "zo spider",
}  # what optax's line searches are passed is not enough


def well(x: Any) -> Any:
    """The double well in all the leaves together, in the dtype of the first."""
    leaves = jax.tree.leaves(x)
    flat = jnp.concatenate([leaf.astype(leaves[0].dtype).ravel() for leaf in leaves])
    return problems.double_well(flat.size).value(flat)


def near_the_saddle(dtype: Any, other: Any = None) -> dict[str, Any]:
    return {"x": jnp.asarray([1e-4, 0.0], dtype), "y": jnp.asarray([1e-4], dtype if other is None else other)}


def terms(x: Any, indices: Any) -> Any:
    """Four terms whose mean is the well."""
    value = well(x)
    return jnp.asarray([0.5, 1.5, 0.75, 1.25], value.dtype)[indices] * value


EXTRAS: dict[str, Any] = {
    "value_fn": well,
    "grad_fn": jax.grad(lambda x, indices: jnp.mean(terms(x, indices))),
    "components": terms,
}


def one(transform: Any, x: Any, state: Any, **extra: Any) -> tuple[Any, Any]:
    """A step on the well, with everything that any of the transforms needs."""
    value, grad = jax.value_and_grad(well)(x)
    updates, state = transform.update(grad, state, x, value=value, grad=grad, **EXTRAS, **extra)
    return optax.apply_updates(x, updates), state


def drive(optimizer: Any, value_fn: Any, params: Any, steps: int, **extra: Any) -> tuple[Any, Any, Any]:
    """(final parameters, final state, parameters after every step); passes what optax's line searches are passed."""

    @jax.jit
    def loop(params):
        def step(carry, _):
            x, state = carry
            value, grad = jax.value_and_grad(value_fn)(x)
            updates, state = optimizer.update(grad, state, x, value=value, grad=grad, value_fn=value_fn, **extra)
            x = optax.apply_updates(x, updates)
            return (x, state), x

        start = (params, optimizer.init(params))
        with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
            return jax.lax.scan(step, start, None, length=steps)

    (params, state), path = loop(params)
    return params, state, path
