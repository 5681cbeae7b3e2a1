"""An optax user's loop, compiled."""

from typing import Any

import jax
import optax


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
