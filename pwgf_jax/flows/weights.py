r"""Weights that move: a mirror step on the weights beside the step in the points.

With it a Wasserstein gradient flow is one of Wasserstein–Fisher–Rao: mass goes where the first variation is low, and
need not travel there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from pwgf_jax import arguments
from pwgf_jax.calculus import Functional, first_variation
from pwgf_jax.flows.protocol import Flow, Reweighting
from pwgf_jax.measures import Particles, single

__all__ = ["Mirror", "mirror", "reweighted"]


@dataclass(frozen=True)
class Mirror:
    """The step on the weights made by :func:`mirror`.

    Args:
        step_size: τ, a number or a schedule.

    Example:
        >>> mirror(0.1)
        Mirror(step_size=0.1)
    """

    step_size: float | Array | optax.Schedule

    def __call__(self, key: Array, F: Functional, mu: Particles, step: Any = 0) -> Float[Array, " n"]:
        """The weights after a step, in the measure's dtype; the key is not used."""
        del key
        dtype = single(mu.weights.dtype)
        variation = first_variation(F, mu)(mu.points).astype(dtype)
        size = arguments.schedule("mirror: step_size", self.step_size)(step).astype(dtype)
        present = mu.weights > 0
        logs = jnp.log(jnp.where(present, mu.weights, 1).astype(dtype)) - size * variation
        logs = jax.nn.log_softmax(logs, where=present)
        # A weight that rounds to zero is lost for good, and one below this has a gradient without digits.
        least = jnp.log(jnp.finfo(dtype).tiny / jnp.finfo(dtype).eps)
        return jnp.where(present, jnp.exp(jnp.maximum(logs, least.astype(dtype))), 0).astype(mu.weights.dtype)


def mirror(step_size: float | optax.Schedule) -> Mirror:
    r"""A step of mirror descent in the weights, :math:`w_i\leftarrow w_ie^{-\tau F'(\mu)(x_i)}`, normalised.

    F' is the first variation and the mirror map the entropy: a step of length τ in time along the Fisher–Rao gradient
    flow :math:`\dot w_i=-w_i(F'(\mu)(x_i)-\int F'(\mu)\,d\mu)`. Beside steps η in the points it splits the
    Wasserstein–Fisher–Rao flow, :math:`\dot x_i=-\nabla_\mu F(\mu,x_i)` and :math:`\dot w_i` as above times τ/η, with
    an error of first order.

    Mass is kept, and a weight of zero stays zero: there is no birth where no particle is. A positive weight stays
    above 10⁻³¹ (float32), so that it can come back. F falls for τ ≤ 1/L where
    :math:`F''(\mu)(\nu,\nu)\le L\|\nu\|_1^2`: for ½MMD², L is the largest k(x, x). A particle split in two moves as the
    whole one.

    Args:
        step_size: τ, a number or a schedule of the step [1 / units of F].

    Returns:
        What ``weights`` of :func:`pwgf_jax.flow` takes, and :func:`reweighted`.

    Raises:
        ValueError: if the number is negative.
        TypeError: if it is neither a number nor a schedule.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pwgf_jax import flow
        >>> from pwgf_jax.flows import gradient
        >>> F = lambda mu: mu.weights @ mu.points[:, 0] ** 2 / 2  # the points stay for so small a step size
        >>> method, key = flow(gradient, 1e-9, weights=mirror(2.0)), jax.random.key(0)
        >>> state = method.init(key, F, Particles.uniform(jnp.array([[0.0], [1.0]])))
        >>> state, _ = method.step(key, F, state)
        >>> [round(float(w), 4) for w in state.mu.weights]  # 1 : 1/e
        [0.7311, 0.2689]

    References:
        Chizat, Sparse optimization on measures with over-parameterized gradient descent, arXiv:1907.10300, for the
        conic form; Kim, Suzuki, arXiv:2402.01258, whose landscape theorem for ICFL assumes such birth and death.
    """
    arguments.schedule("mirror: step_size", step_size)
    return Mirror(step_size)


def reweighted(method: Flow, weights: Reweighting) -> Flow:
    """The same flow with a step on the weights after every step in the points.

    It costs a first variation a step. What an optimizer remembers of √w x from step to step, as second-order
    transforms do, it remembers in the weights of then.

    Args:
        method: any flow that :func:`pwgf_jax.flow` has made, the named ones and those of batches and seeds among them.
        weights: (key, F, mu, step) -> new weights, such as :func:`mirror`.

    Returns:
        A :class:`pwgf_jax.Flow`.

    Raises:
        TypeError: if the flow is made of other functions.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pwgf_jax import run, wgf
        >>> F = lambda mu: mu.weights @ jnp.cos(mu.points[:, 0])  # the second particle is nearer to a minimum
        >>> start = Particles.uniform(jnp.array([[0.0], [3.0]]))
        >>> found = run(reweighted(wgf(0.1), mirror(0.1)), F, start, jax.random.key(0), steps=100)
        >>> [round(float(w), 3) for w in found.mu.weights]
        [0.0, 1.0]
    """
    if method.reweigh is None:
        raise TypeError(
            "reweighted: this flow is made of functions of your own; give one that pwgf_jax.flow has made, or move the "
            "weights in its step."
        )
    return method.reweigh(weights)
