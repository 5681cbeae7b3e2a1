"""A network of one hidden layer on some of the digits, every class as often; its loss on others is recorded."""

import jax
import jax.numpy as jnp

from pwgf_jax import problems
from pwgf_jax.experiments.objectives import Objective
from pwgf_jax.experiments.tables import digits


def network(key, dtype, *, hidden: int = 8, images: int = 300):
    """Cross-entropy of the images, and of as many others."""
    data = digits()
    order = jax.random.permutation(key, data.inputs.shape[0])
    x, y = jnp.asarray(data.inputs, dtype)[order], jnp.asarray(data.targets).argmax(axis=1)[order]
    train, test = (
        problems.imbalanced_classification(x[part], y[part], hidden=hidden, dtype=dtype)
        for part in (slice(images), slice(images, 2 * images))
    )

    def stats(params):
        right = jnp.argmax(problems.predict(params, x[images : 2 * images]), axis=1) == y[images : 2 * images]
        return {"test_loss": test.value(params), "test_accuracy": jnp.mean(right, dtype=dtype)}

    return Objective(train, stats=stats)
