"""Every transform of the package, one well for all, and an optax user's loop, compiled."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

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
    ssrgd,
    top_k,
    zeroth_order_descent,
    zo_scsg_ncf,
    zo_sgd_ncf,
    zo_spider_ncf,
)

KEY = jax.random.key(0)
JUMPS: dict[str, Any] = {"eps": 1e-3, "k_thres": 4, "f_thres": 1e-4}
KNOWN: dict[str, Any] = {"smoothness": 2.0, "hessian_lipschitz": 6.0, "eps": 1e-2}
SUM: dict[str, Any] = {"size": 4, "batch": 2, "key": KEY}
SEARCH: dict[str, Any] = {"delta": 0.5, "steps": 5}
DIMER: dict[str, Any] = {"separation": 1e-2, "rotation_rate": 0.1, "every": 2, "kick": 0.1, "key": KEY}

# Each as a function of one of its numbers, with two values of it.
BY_NUMBER: dict[str, Any] = {
    "perturb, ball": (lambda r: perturb_at_saddle(ball_noise(r), gradient_trigger(**JUMPS), KEY), 0.1, 0.2),
    "perturb, hessian": (
        lambda eta: perturb_at_saddle(hessian_product_noise(eta), gradient_trigger(**JUMPS), KEY),
        0.1,
        0.2,
    ),
    "pgd": (lambda r: pgd(0.1, radius=r, **JUMPS, key=KEY), 0.1, 0.2),
    "saddle-free newton": (lambda beta: scale_by_saddle_free_newton(beta, depth=3), 0.1, 0.2),
    "cubic newton": (lambda M: cubic_newton(M, key=KEY, depth=3), 6.0, 8.0),
    "negative curvature": (
        lambda eps: negative_curvature_descent(**KNOWN | {"eps": eps}, **SEARCH, key=KEY),
        1e-2,
        1e-6,
    ),
    "zeroth order": (lambda L: zeroth_order_descent(**KNOWN | {"smoothness": L}, **SEARCH, key=KEY), 2.0, 3.0),
    "dimer": (lambda beta: dimer(**DIMER, strength=beta), 1.0, 2.0),
    "compressed sgd": (lambda eta: compressed_sgd(eta, top_k(1), noise_radius=0.1, reset_every=3, key=KEY), 0.1, 0.2),
    "constrained": (
        lambda M: constrained_escape(ball(2.0), **KNOWN | {"hessian_lipschitz": M}, gamma=0.1, key=KEY),
        6.0,
        8.0,
    ),
    "scale by measure": (lambda _: optax.with_extra_args_support(scale_by_measure()), None, None),
    "ssrgd": (
        lambda r: ssrgd(0.1, **SUM, epoch=2, radius=r, eps=1e-3, f_thres=1e-4, t_thres=4),
        0.1,
        0.2,
    ),
    "zo sgd": (lambda rho: zo_sgd_ncf(**KNOWN | {"hessian_lipschitz": rho}, **SUM, **SEARCH), 6.0, 8.0),
    "zo scsg": (
        lambda rho: zo_scsg_ncf(**KNOWN | {"hessian_lipschitz": rho}, **SUM, **SEARCH, large_batch=4),
        6.0,
        8.0,
    ),
    "zo spider": (
        lambda rho: zo_spider_ncf(**KNOWN | {"hessian_lipschitz": rho}, **SUM, **SEARCH, large_batch=4, epoch=2),
        6.0,
        8.0,
    ),
}
TRANSFORMS: dict[str, Any] = {name: lambda make=make, at=at: make(at) for name, (make, at, _) in BY_NUMBER.items()}
NEEDS_NOTHING = {"compressed sgd", "scale by measure"}
NEEDS_TERMS = {"ssrgd", "zo sgd", "zo scsg", "zo spider"}  # what optax's line searches are passed is not enough


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
