"""Negative curvature in finite sums: Neon2online, and the zeroth-order methods that estimate on batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from pwgf_jax import trees
from pwgf_jax.krylov import check_key
from pwgf_jax.transforms.curvature import (
    NegativeCurvature,
    NegativeCurvatureState,
    check_positive,
    check_search,
    coordinate_gradient,
    difference_width,
    differencing_radius,
    escape,
    opening,
)
from pwgf_jax.transforms.isometry import transformation
from pwgf_jax.transforms.ssrgd import check_batches, draw, reduced_gradient

__all__ = [
    "StochasticCurvatureState",
    "negative_curvature_online",
    "zo_scsg_ncf",
    "zo_sgd_ncf",
    "zo_spider_ncf",
]


def negative_curvature_online(
    grad_fn: Callable[[PyTree, Array], PyTree],
    params: PyTree,
    key: Array,
    *,
    size: int,
    batch: int,
    smoothness: float | Array,
    delta: float | Array,
    hessian_lipschitz: float | Array | None = None,
    radius: float | Array | None = None,
    learning_rate: float | Array | None = None,
    failure: float | Array = 0.01,
    steps: int | None = None,
    repeats: int = 3,
    verification: int | None = None,
) -> NegativeCurvature:
    r"""A direction of negative curvature from gradients on batches (Neon2online).

    :math:`y\leftarrow y-\eta H_Iy` with a new batch I at every step grows along negative curvature, and not along
    positive for η ≤ 1/L; :math:`H_Iy` is a central difference of gradients on the batch. The direction is then verified
    on a larger sample, and accepted where :math:`v^\top Hv\le-\frac34\delta` there, so that it is at most −δ/2 in all
    likelihood. If not, there is another attempt.

    Args:
        grad_fn: (params, indices) -> mean gradient of those terms.
        params: x.
        key: typed random key.
        size: n, number of terms.
        batch: terms of a step; all of them if it is n.
        smoothness: L, Lipschitz constant of the gradient of every term.
        delta: δ > 0, curvature looked for.
        hessian_lipschitz: ρ, Lipschitz constant of the Hessian, if it is known.
        radius: length at which gradients are differenced, as in :func:`negative_curvature`.
        learning_rate: η; None takes :math:`\min\{\frac1L,\frac{b\delta}{L^2(1+\log d)}\}`. The published rate, for
            batches of one, has a square of a constant more in the denominator.
        failure: p, probability that the start of an attempt has too little of the direction, and that a sample errs.
        steps: of an attempt; None takes :math:`\frac2{\eta\delta}\log\frac{4d}{(1.25p)^2}`: a share of
            :math:`1.25\,p/\sqrt d` at −δ then outweighs all above −3δ/4, were there no noise.
        repeats: attempts at most.
        verification: terms of the sample that verifies; None takes :math:`\min\{n,32(L/\delta)^2\log\frac2p\}`, of
            error δ/4 with probability 1 − p (Hoeffding). They are taken in batches of the same size, or, from n on, all
            at once.

    Returns:
        A :class:`NegativeCurvature`, with ``found`` and ``curvature`` as seen by the sample that verified, and the
        gradients of terms counted, 2b a step and twice the sample an attempt.

    Raises:
        ValueError: if a number is out of range.
        TypeError: if the key is no typed key, or a parameter no real number.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> a = jnp.array([[-0.6, 0.2, 1.0], [0.0, 0.2, 0.0]])  # two diagonal Hessians
        >>> seen = negative_curvature_online(
        ...     lambda x, i: jnp.mean(a[i], axis=0) * x, jnp.zeros(3), jax.random.key(0),
        ...     size=2, batch=1, smoothness=1.0, delta=0.25)
        >>> bool(seen.found), round(float(seen.curvature), 2)
        (True, -0.3)

    References:
        Allen-Zhu, Li, arXiv:1711.06673, Neon2online and Neon2online-weak. Rescaling, and the last iterate in the place
        of a random one, are ours: the sample verifies what they give.
    """
    name = "negative_curvature_online"
    check_key(key, name)
    trees.real(name, params)
    check_search(name, smoothness, delta, hessian_lipschitz, radius, failure, steps)
    check_batches(name, size, batch=batch, verification=size if verification is None else verification)
    repeats = trees.whole(f"{name}: repeats", repeats)
    flat, unravel = trees.ravel(params)
    L, least, p = (jnp.asarray(number, flat.dtype) for number in (smoothness, delta, failure))
    apart = differencing_radius(params, least, hessian_lipschitz, 1e-3) if radius is None else radius
    apart = jnp.asarray(apart, flat.dtype)
    if learning_rate is None:
        rate = jnp.minimum(1 / L, batch * least / (L**2 * (1 + jnp.log(flat.size))))
    else:
        check_positive(name, learning_rate=learning_rate)
        rate = jnp.asarray(learning_rate, flat.dtype)
    length = jnp.ceil(2 / (rate * least) * jnp.log(4 * flat.size / (1.25 * p) ** 2)) if steps is None else steps
    length = jnp.asarray(length, jnp.int32)
    sample = 32 * (L / least) ** 2 * jnp.log(2 / p) if verification is None else jnp.asarray(verification, flat.dtype)
    batches = jnp.ceil(jnp.minimum(sample, size) / batch).astype(jnp.int32)
    tiny = jnp.finfo(flat.dtype).tiny

    def product(v: Array, batch: int, key: Array) -> Array:
        """H_I v for a unit vector, by a difference on one batch."""
        indices = draw(key, batch, size)
        ahead, behind = (trees.ravel(grad_fn(unravel(flat + step * v), indices))[0] for step in (apart, -apart))
        return (ahead - behind).astype(flat.dtype) / (2 * apart)

    def verified(v: Array, key: Array) -> Array:
        def add(i: Array, curvature: Array) -> Array:
            return curvature + v @ product(v, batch, jax.random.fold_in(key, i))

        def sampled() -> Array:
            return jax.lax.fori_loop(0, batches, add, jnp.zeros((), flat.dtype)) / batches.astype(flat.dtype)

        return jax.lax.cond(sample >= size, lambda: v @ product(v, size, key), sampled)

    def attempt(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        tried, best, lowest = carry
        start_key, walk_key, verify_key = jax.random.split(jax.random.fold_in(key, tried), 3)

        def advance(t: Array, v: Array) -> Array:
            moved = v - rate * product(v, batch, jax.random.fold_in(walk_key, t))
            return moved / jnp.maximum(jnp.linalg.norm(moved), tiny)

        start = jax.random.normal(start_key, flat.shape, flat.dtype)
        v = jax.lax.fori_loop(0, length, advance, start / jnp.linalg.norm(start))
        curvature = verified(v, verify_key)
        return tried + 1, jnp.where(curvature < lowest, v, best), jnp.minimum(curvature, lowest)

    def unverified(carry: tuple[Array, Array, Array]) -> Array:
        tried, _, lowest = carry
        return (tried < repeats) & (lowest > -0.75 * least)

    none = (jnp.zeros((), jnp.int32), jnp.zeros_like(flat), jnp.full((), jnp.inf, flat.dtype))
    tried, direction, curvature = jax.lax.while_loop(unverified, attempt, none)
    seen = jnp.where(sample >= size, size, batch * batches).astype(jnp.int32)
    once = trees.total(trees.times(length, 2 * batch), trees.times(seen, 2))
    spent = jax.lax.fori_loop(0, tried, lambda _, sum: trees.total(sum, once), jnp.zeros((), jnp.int32))
    return NegativeCurvature(curvature <= -0.75 * least, unravel(direction), curvature, spent)


class StochasticCurvatureState(NamedTuple):
    """State of :func:`zo_sgd_ncf`, :func:`zo_scsg_ncf` and :func:`zo_spider_ncf`.

    Args:
        search: a :class:`NegativeCurvatureState`; its ``queries`` are values of single terms.
        inner: steps made in this epoch, int32; zero where the next update opens one.
        point: the parameters that the next small batch is compared with.
        gradient: the estimate there, structured like the parameters.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> optimizer = zo_sgd_ncf(smoothness=1.0, hessian_lipschitz=1.0, eps=0.1, delta=0.3, size=9, batch=3,
        ...                        key=jax.random.key(0))
        >>> int(optimizer.init(jnp.zeros(2)).search.queries)
        0
    """

    search: NegativeCurvatureState
    inner: Int[Array, ""]
    point: PyTree
    gradient: PyTree


def _descent(
    name: str,
    ends: Callable[[Array, Array], Array],
    recursive: bool,
    *,
    smoothness: float | Array,
    hessian_lipschitz: float | Array,
    eps: float | Array,
    delta: float | Array,
    size: int,
    batch: int,
    large_batch: int,
    key: Array,
    mu: float | Array | None,
    radius: float | Array | None,
    failure: float | Array,
    steps: int | None,
) -> optax.GradientTransformationExtraArgs:
    """What the three share: (key, steps made) -> whether an epoch ends, and whether the last step is the anchor."""
    check_key(key, name)
    check_search(name, smoothness, delta, hessian_lipschitz, radius, failure, steps)
    check_positive(name, eps=eps, **({} if mu is None else {"mu": mu}))
    check_batches(name, size, batch=batch, large_batch=large_batch)

    def init(params: PyTree) -> StochasticCurvatureState:
        search, point = opening(name, key)(params), jax.tree.map(jnp.zeros_like, params)
        return StochasticCurvatureState(search, jnp.zeros((), jnp.int32), point, trees.zeros(params))

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree = None,
        *,
        components: Any = None,
        **extra_args: Any,
    ) -> tuple[PyTree, StochasticCurvatureState]:
        del updates, extra_args
        trees.needed(name, params=params, components=components)
        dimension, width = trees.size(params), difference_width(params, mu)
        next_key, draw_key, end_key = jax.random.split(state.search.key, 3)

        def estimate(x: PyTree, indices: Array) -> PyTree:
            return coordinate_gradient(lambda y: jnp.mean(components(y, indices)), x, width)

        def search(key: Array) -> NegativeCurvature:
            apart = radius
            if apart is None:
                least = jnp.asarray(delta, trees.dtype(params))
                apart = differencing_radius(params, least, hessian_lipschitz, 1e-2)
            found = negative_curvature_online(
                estimate,
                params,
                key,
                size=size,
                batch=batch,
                smoothness=smoothness,
                delta=delta,
                radius=apart,
                failure=failure,
                steps=steps,
            )
            return found._replace(gradients=trees.times(found.gradients, 2 * dimension))

        opens = state.inner == 0
        anchor = (state.point, state.gradient)
        v, terms = reduced_gradient(
            estimate, params, anchor, opens, draw_key, size=size, batch=batch, large_batch=large_batch
        )
        length = trees.norm(v)
        small = opens & (length <= 0.75 * jnp.asarray(eps, length.dtype))  # only the large batch is trusted to say so
        step, seen = escape(
            v,
            state.search._replace(key=next_key),
            search,
            small,
            1 / (3 * smoothness),
            delta / hessian_lipschitz,
            trees.times(terms, 2 * dimension),
        )
        step = jax.tree.map(lambda s, x: s.astype(jnp.result_type(x)), step, params)
        inner = jnp.where(small | ends(end_key, state.inner + 1), 0, state.inner + 1)
        moves = opens | recursive
        anchor = jax.tree.map(lambda new, old: jnp.where(moves, new, old), (params, v), anchor)
        return step, StochasticCurvatureState(seen, inner, *anchor)

    return transformation(init, update)


def zo_sgd_ncf(
    *,
    smoothness: float | Array,
    hessian_lipschitz: float | Array,
    eps: float | Array,
    delta: float | Array,
    size: int,
    batch: int,
    key: Array,
    mu: float | Array | None = None,
    radius: float | Array | None = None,
    failure: float | Array = 0.01,
    steps: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""ZO-SGD-NCF: steps and searches for negative curvature from values of a batch of terms.

    The step is :math:`-\hat g_I/3L`, with :func:`coordinate_gradient` on a new batch I. Where
    :math:`|\hat g_I|\le\frac34\epsilon`, :func:`negative_curvature_online` looks, on differences of values too: if it
    finds v, the update is :math:`\pm\frac\delta\rho v`; if not, the parameters stay.

    Args:
        smoothness: L, of every term.
        hessian_lipschitz: ρ.
        eps: ε; the batch has to be large enough that its gradient is right to ε/4 or so, or it is never below.
        delta: δ.
        size: n, number of terms.
        batch: b, terms of a step, and of a step of a search; all of them if it is n.
        key: typed random key.
        mu: length of the differences; None takes the cube root of the dtype's precision.
        radius: as in :func:`negative_curvature_online`, but :math:`\min\{10^{-2},\delta/10\rho\}`, since a difference
            of differences loses digits.
        failure: as in :func:`negative_curvature_online`.
        steps: as in :func:`negative_curvature_online`.

    Returns:
        A transformation whose ``update`` needs ``params`` and ``components``: (params, indices (b,)) -> values (b,).
        The updates that come in are not looked at. ``state.search.queries`` counts values of single terms: 2db a step,
        and 2d times the gradients of a search.

    Raises:
        ValueError: if a number is out of range.
        TypeError: if the key is no typed key or an extra argument is missing.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> scale = jnp.array([0.5, 1.5])
        >>> components = lambda x, i: scale[i] * (x[0] ** 4 / 4 - x[0] ** 2 / 2 + x[1] ** 2 / 2)
        >>> optimizer = zo_sgd_ncf(smoothness=3.0, hessian_lipschitz=6.0, eps=1e-2, delta=0.5, size=2, batch=1,
        ...                        steps=30, key=jax.random.key(0))
        >>> x = jnp.zeros(2)
        >>> update = jax.jit(lambda x, state: optimizer.update(x, state, x, components=components))
        >>> step, state = update(x, optimizer.init(x))  # from the saddle
        >>> round(abs(float(step[0])), 3), int(state.search.queries)
        (0.083, 260)

    References:
        Zhang, Xiong, Gu, arXiv:2210.01496, ZO-SGD-NCF.
    """
    return _descent(
        "zo_sgd_ncf",
        lambda key, inner: inner >= 1,
        False,
        smoothness=smoothness,
        hessian_lipschitz=hessian_lipschitz,
        eps=eps,
        delta=delta,
        size=size,
        batch=batch,
        large_batch=batch,
        key=key,
        mu=mu,
        radius=radius,
        failure=failure,
        steps=steps,
    )


def zo_scsg_ncf(
    *,
    smoothness: float | Array,
    hessian_lipschitz: float | Array,
    eps: float | Array,
    delta: float | Array,
    size: int,
    batch: int,
    large_batch: int,
    key: Array,
    mu: float | Array | None = None,
    radius: float | Array | None = None,
    failure: float | Array = 0.01,
    steps: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""ZO-SCSG-NCF: as :func:`zo_sgd_ncf`, with batches that correct the estimate of where their epoch opened.

    An epoch opens at x̃ with :math:`\tilde g=\hat g_B(\tilde x)`, the only estimate that is held against ε; its steps
    are along :math:`\hat g_I(x)-\hat g_I(\tilde x)+\tilde g`. Its length is geometric, with mean 1 + B/b.

    Args:
        smoothness: as in :func:`zo_sgd_ncf`.
        hessian_lipschitz: as in :func:`zo_sgd_ncf`.
        eps: as in :func:`zo_sgd_ncf`, for the large batch.
        delta: as in :func:`zo_sgd_ncf`.
        size: as in :func:`zo_sgd_ncf`.
        batch: as in :func:`zo_sgd_ncf`.
        large_batch: B, terms of the estimate that opens an epoch; all of them if it is n.
        key: as in :func:`zo_sgd_ncf`.
        mu: as in :func:`zo_sgd_ncf`.
        radius: as in :func:`zo_sgd_ncf`.
        failure: as in :func:`zo_sgd_ncf`.
        steps: as in :func:`zo_sgd_ncf`.

    Returns:
        As :func:`zo_sgd_ncf`; queries are 2dB for a step that opens an epoch, and 4db for another.

    Raises:
        ValueError: if a number is out of range.
        TypeError: if the key is no typed key or an extra argument is missing.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> optimizer = zo_scsg_ncf(smoothness=1.0, hessian_lipschitz=1.0, eps=0.1, delta=0.5, size=4, batch=1,
        ...                         large_batch=4, key=jax.random.key(0))
        >>> scale, x = jnp.arange(4.0), jnp.ones(1)
        >>> components = lambda x, i: scale[i] * jnp.sum(x**2)
        >>> update = jax.jit(lambda x, state: optimizer.update(x, state, x, components=components))
        >>> step, state = update(x, optimizer.init(x))
        >>> round(float(step[0]), 6), int(state.search.queries)  # −∇f/3L = −2 · 1.5/3
        (-1.0, 8)

    References:
        Zhang, Xiong, Gu, arXiv:2210.01496, ZO-SCSG-NCF; Lei, Ju, Chen, Jordan, arXiv:1706.09156 (SCSG).
    """
    return _descent(
        "zo_scsg_ncf",
        lambda key, inner: jax.random.bernoulli(key, batch / (batch + large_batch)),
        False,
        smoothness=smoothness,
        hessian_lipschitz=hessian_lipschitz,
        eps=eps,
        delta=delta,
        size=size,
        batch=batch,
        large_batch=large_batch,
        key=key,
        mu=mu,
        radius=radius,
        failure=failure,
        steps=steps,
    )


def zo_spider_ncf(
    *,
    smoothness: float | Array,
    hessian_lipschitz: float | Array,
    eps: float | Array,
    delta: float | Array,
    size: int,
    batch: int,
    large_batch: int,
    epoch: int,
    key: Array,
    mu: float | Array | None = None,
    radius: float | Array | None = None,
    failure: float | Array = 0.01,
    steps: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""ZO-SPIDER-NCF: as :func:`zo_scsg_ncf`, with batches that correct the estimate of the step before.

    :math:`v\leftarrow v+\hat g_I(x)-\hat g_I(x_\text{before})`, the estimate that :func:`ssrgd` makes of gradients;
    epochs have a fixed length.

    Args:
        smoothness: as in :func:`zo_sgd_ncf`.
        hessian_lipschitz: as in :func:`zo_sgd_ncf`.
        eps: as in :func:`zo_scsg_ncf`.
        delta: as in :func:`zo_sgd_ncf`.
        size: as in :func:`zo_sgd_ncf`.
        batch: as in :func:`zo_sgd_ncf`.
        large_batch: as in :func:`zo_scsg_ncf`.
        epoch: steps of an epoch.
        key: as in :func:`zo_sgd_ncf`.
        mu: as in :func:`zo_sgd_ncf`.
        radius: as in :func:`zo_sgd_ncf`.
        failure: as in :func:`zo_sgd_ncf`.
        steps: as in :func:`zo_sgd_ncf`.

    Returns:
        As :func:`zo_scsg_ncf`.

    Raises:
        ValueError: if a number is out of range.
        TypeError: if the key is no typed key or an extra argument is missing.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> optimizer = zo_spider_ncf(smoothness=1.0, hessian_lipschitz=1.0, eps=0.1, delta=0.5, size=4, batch=1,
        ...                           large_batch=4, epoch=2, key=jax.random.key(0))
        >>> scale, x = jnp.arange(4.0), jnp.ones(1)
        >>> components = lambda x, i: scale[i] * jnp.sum(x**2)
        >>> update = jax.jit(lambda x, state: optimizer.update(x, state, x, components=components))
        >>> _, state = update(x, update(x, optimizer.init(x))[1])
        >>> int(state.search.queries), int(state.inner)  # 2dB and 4db, and the next opens an epoch
        (12, 0)

    References:
        Zhang, Xiong, Gu, arXiv:2210.01496, ZO-SPIDER-NCF; Fang, Li, Lin, Zhang, arXiv:1807.01695 (SPIDER).
    """
    epoch = trees.whole("zo_spider_ncf: epoch", epoch)
    return _descent(
        "zo_spider_ncf",
        lambda key, inner: inner >= epoch,
        True,
        smoothness=smoothness,
        hessian_lipschitz=hessian_lipschitz,
        eps=eps,
        delta=delta,
        size=size,
        batch=batch,
        large_batch=large_batch,
        key=key,
        mu=mu,
        radius=radius,
        failure=failure,
        steps=steps,
    )
