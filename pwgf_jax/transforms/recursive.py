"""Stochastic recursive gradients for finite sums, with perturbations: SSRGD."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, PyTree

from pwgf_jax import arguments, trees
from pwgf_jax.arguments import check_key
from pwgf_jax.perturbation import ball_noise
from pwgf_jax.transforms.finite_sums import Epoch, check_batches, reduced_gradient, spider, total
from pwgf_jax.transforms.isometry import transformation
from pwgf_jax.transforms.trigger import Window, gradient_trigger

__all__ = ["SSRGDState", "ssrgd"]


class SSRGDState(NamedTuple):
    """State of :func:`ssrgd`.

    Args:
        key: for the next draws.
        count: updates made, int32.
        epoch: a :class:`pwgf_jax.transforms.Epoch`; its estimate v is that at the parameters of the last update.
        gradients: gradients of single terms spent, int32; it ends at 2³¹ − 1.
        window: the last super-epoch, a :class:`pwgf_jax.transforms.Window`; ``saved`` are the parameters before its
            jump, a second-order point with high probability if it then ended without decrease.
        perturbed: whether the last update was a jump.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> optimizer = ssrgd(0.1, size=9, batch=3, epoch=3, radius=0.01, eps=0.01, f_thres=0.01, k_thres=50,
        ...                   key=jax.random.key(0))
        >>> int(optimizer.init(jnp.zeros(2)).gradients)
        0
    """

    key: Array
    count: Int[Array, ""]
    epoch: Epoch
    gradients: Int[Array, ""]
    window: Window
    perturbed: Bool[Array, ""]


def ssrgd(
    learning_rate: Any,
    *,
    size: int,
    batch: int,
    epoch: int,
    radius: float | Array,
    eps: float | Array,
    f_thres: float | Array,
    k_thres: int,
    large_batch: int | None = None,
    key: Array,
) -> optax.GradientTransformationExtraArgs:
    r"""SSRGD: stochastic recursive gradient descent with perturbations, for :math:`f=\frac1n\sum_if_i`.

    An epoch opens with :math:`v=\nabla f(x)` and goes on with :math:`x\leftarrow x-\eta v` and
    :math:`v\leftarrow v+\nabla f_I(x)-\nabla f_I(x_\text{before})`. It ends after a number of steps that is uniform in
    1, …, m. Where it opens with :math:`|v|\le\epsilon`, the update is instead a jump, uniform in a ball, and a
    super-epoch begins: its epochs are m steps long, and no other jump is made until f has fallen by ``f_thres`` or
    ``k_thres`` steps have passed. The decrease is tested where an epoch opens, not at every step as in the paper, since
    f costs n terms.

    Args:
        learning_rate: η, or a schedule.
        size: n, number of terms.
        batch: b, terms of a step; the theory takes b = m = √n.
        epoch: m, steps of an epoch at most.
        radius: of the ball.
        eps: ε, gradient norm that triggers a jump.
        f_thres: decrease that ends a super-epoch.
        k_thres: steps that end it.
        large_batch: terms of the gradient that opens an epoch; None takes all of them.
        key: typed random key.

    Returns:
        A transformation whose ``update`` needs ``params``, ``value_fn`` and ``grad_fn``: (params, indices) -> the mean
        gradient of those terms. The updates that come in are not looked at. An update costs n (or ``large_batch``)
        gradients of terms where it opens an epoch, and else 2b; ``state.gradients`` counts them. Under ``jax.vmap``
        both kinds are computed at every update, whatever is counted.

    Raises:
        ValueError: if a number is out of range.
        TypeError: if the key is no typed key or an extra argument is missing.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> a = jnp.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> terms = lambda x, i: (jnp.sum(x**2) ** 2 - 2 * (a[i] @ x) ** 2) / 4
        >>> value_fn = lambda x: jnp.mean(terms(x, jnp.arange(4)))
        >>> grad_fn = jax.grad(lambda x, i: jnp.mean(terms(x, i)))
        >>> optimizer = ssrgd(0.1, size=4, batch=2, epoch=2, radius=0.01, eps=0.01, f_thres=0.01, k_thres=100,
        ...                   key=jax.random.key(0))
        >>> def step(_, carry):
        ...     x, state = carry
        ...     updates, state = optimizer.update(x, state, x, value_fn=value_fn, grad_fn=grad_fn)
        ...     return optax.apply_updates(x, updates), state
        >>> x = jnp.array([0.0, 0.5**0.5])  # the second eigenvector
        >>> x, state = jax.lax.fori_loop(0, 150, step, (x, optimizer.init(x)))
        >>> round(float(value_fn(x)), 3)
        -1.0

    References:
        Zhize Li, NeurIPS 2019, arXiv:1904.09265, Alg. 2.
    """
    check_key(key, "ssrgd")
    large = size if large_batch is None else large_batch
    check_batches("ssrgd", size, batch=batch, large_batch=large)
    estimator = spider(size, batch, large, arguments.whole("ssrgd: epoch", epoch))
    window_length = arguments.whole("ssrgd: k_thres", k_thres)
    noise = ball_noise(radius)
    trigger = gradient_trigger(eps=eps, k_thres=window_length, f_thres=f_thres)

    def init(params: PyTree) -> SSRGDState:
        arguments.real("ssrgd", params)
        window = trigger.init(jax.tree.map(jnp.zeros_like, params), jnp.full((), jnp.inf, trees.dtype(params)))
        zero, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        return trees.copied(SSRGDState(key, zero, Epoch.before(params), zero, window, no))

    def update(
        updates: PyTree, state: Any, params: PyTree = None, *, value_fn: Any = None, grad_fn: Any = None, **extra: Any
    ) -> tuple[PyTree, SSRGDState]:
        del updates, extra
        arguments.needed("ssrgd", params=params, value_fn=value_fn, grad_fn=grad_fn)
        next_key, draw_key, noise_key, end_key = jax.random.split(state.key, 4)
        count, inner, window = state.count, state.epoch.inner, state.window
        opens = inner == 0
        v, terms = reduced_gradient(grad_fn, params, state.epoch, estimator, draw_key)
        held = window.saved_value
        value = jax.lax.cond(opens, lambda x: jnp.asarray(value_fn(x), held.dtype), lambda x: held, params)

        # A decrease that is large enough puts the jump a whole window into the past: the super-epoch is over.
        fallen = opens & (held - value >= f_thres)
        window = window._replace(jumped_at=jnp.where(fallen, count - window_length - 1, window.jumped_at))
        jumps = opens & trigger.should_perturb(window, count, trees.norm(v))
        rate = learning_rate(count) if callable(learning_rate) else learning_rate

        xi = jax.lax.cond(
            jumps, lambda: noise(noise_key, value_fn, params), lambda: jax.tree.map(jnp.zeros_like, params)
        )
        descent = jax.tree.map(lambda g, x: (-jnp.asarray(rate, g.dtype) * g).astype(jnp.result_type(x)), v, params)
        step = jax.tree.map(lambda n, s: jnp.where(jumps, n.astype(s.dtype), s), xi, descent)
        # To end with probability 1/m, 1/(m − 1), …, 1 makes the length of an epoch uniform.
        since, chance = count - window.jumped_at, jax.random.randint(end_key, (), 0, epoch - inner) == 0
        ends = jnp.where(since <= window_length, (since == window_length) | (inner + 1 == epoch), chance)
        inner = jnp.where(jumps | ends, 0, inner + 1)
        opened = trigger.jump(window, count, params, value)
        window = jax.tree.map(lambda new, old: jnp.where(jumps, new, old), opened, window)
        spent = total(state.gradients, terms)
        return step, SSRGDState(next_key, count + 1, Epoch(inner, params, v), spent, window, jumps)

    return transformation(init, update)
