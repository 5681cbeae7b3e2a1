"""Descent that looks for negative curvature where the gradient is small: from gradients, or from values alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from pwgf_jax import arguments, trees
from pwgf_jax.arguments import check_key
from pwgf_jax.transforms.curvature import (
    NegativeCurvature,
    check_search,
    negative_curvature,
    negative_curvature_online,
)
from pwgf_jax.transforms.differences import coordinate_gradient, differencing_radius
from pwgf_jax.transforms.finite_sums import Epoch, Estimator, reduced_gradient, times, total
from pwgf_jax.transforms.isometry import transformation

__all__ = ["NegativeCurvatureState", "negative_curvature_descent", "zeroth_order_descent"]


class NegativeCurvatureState(NamedTuple):
    """State of :func:`negative_curvature_descent` and :func:`zeroth_order_descent`.

    Args:
        key: for the next search.
        queries: gradients (first order) or values (zeroth order) spent, of the objective or, with an estimator, of
            single terms, int32; it ends at 2³¹ − 1.
        curvature: what the last search found, +inf before any.
        stopped: whether a search at a small gradient found none: the parameters stay.
        epoch: a :class:`pwgf_jax.transforms.Epoch` of the estimator; None without.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> transform = negative_curvature_descent(
        ...     smoothness=1.0, hessian_lipschitz=1.0, eps=0.1, delta=0.3, key=jax.random.key(0))
        >>> int(transform.init(jnp.zeros(2)).queries)
        0
    """

    key: Array
    queries: Int[Array, ""]
    curvature: Float[Array, ""]
    stopped: Bool[Array, ""]
    epoch: Epoch | None


class _Order(NamedTuple):
    """Of derivatives that may be asked for: what a gradient costs, and how it is made.

    ``queries`` of one gradient; ``gradient``: (function given, parameters) -> (x, *indices) -> gradient; ``radius``: at
    most, of differences of gradients. An estimate takes a third of the step, and is trusted to ε/4.
    """

    function: str
    exact: bool
    queries: Callable[[PyTree], int]
    gradient: Callable[[Any, PyTree], Callable[..., PyTree]]
    radius: float


def negative_curvature_descent(
    estimator: Estimator | None = None,
    *,
    smoothness: float | Array,
    hessian_lipschitz: float | Array,
    eps: float | Array,
    delta: float | Array,
    key: Array,
    radius: float | Array | None = None,
    failure: float | Array = 0.01,
    steps: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient steps, and where the gradient is small a step along negative curvature, or the end.

    While :math:`|\nabla f|>\epsilon` the update is :math:`-\nabla f/L`. Else :func:`negative_curvature` looks: if it
    finds v, the update is :math:`\pm\frac\delta\rho v`, downhill, or with a random sign where the gradient does not
    say; if not, this is an (ε, δ)-second-order point with high probability, and the parameters stay.

    With an estimator the gradient g is that of batches of terms, steps are −g/3L, and
    :func:`negative_curvature_online` looks where an epoch opens with :math:`|g|\le\frac34\epsilon`.

    Args:
        estimator: None for whole gradients; :func:`pwgf_jax.transforms.sgd`, ``scsg`` or ``spider`` for a finite sum.
        smoothness: L, of every term.
        hessian_lipschitz: ρ.
        eps: ε.
        delta: δ; :math:`\sqrt{\rho\epsilon}` balances the two.
        key: typed random key.
        radius: as in :func:`negative_curvature`, which knows ρ here.
        failure: as in :func:`negative_curvature`, of every search.
        steps: as in :func:`negative_curvature`.

    Returns:
        A transformation whose ``update`` needs ``params`` and ``value_fn``; the updates that come in are the gradient.
        With an estimator it needs ``grad_fn``, (params, indices) -> mean gradient of those terms, and does not look at
        the updates.

    Raises:
        ValueError: if a number is not positive.
        TypeError: if the key is no typed key or an extra argument is missing.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from pwgf_jax.problems import double_well
        >>> problem = double_well(2)
        >>> optimizer = negative_curvature_descent(
        ...     smoothness=2.0, hessian_lipschitz=6.0, eps=1e-3, delta=0.5, key=jax.random.key(0))
        >>> def step(_, carry):
        ...     x, state = carry
        ...     updates, state = optimizer.update(jax.grad(problem.value)(x), state, x, value_fn=problem.value)
        ...     return optax.apply_updates(x, updates), state
        >>> x = jnp.zeros(2)
        >>> x, state = jax.lax.fori_loop(0, 60, step, (x, optimizer.init(x)))
        >>> round(float(problem.value(x)), 4), bool(state.stopped)
        (-0.25, True)

    References:
        Allen-Zhu, Li, arXiv:1711.06673.
    """
    numbers: dict[str, Any] = {"smoothness": smoothness, "delta": delta, "hessian_lipschitz": hessian_lipschitz}
    numbers |= {"radius": radius, "failure": failure, "steps": steps}
    given = (lambda value_fn, params: jax.grad(value_fn)) if estimator is None else (lambda grad_fn, params: grad_fn)
    function = "value_fn" if estimator is None else "grad_fn"
    order = _Order(function, True, lambda params: 1, given, 1e-3)
    return _descent("negative_curvature_descent", order, estimator, key, eps, numbers)


def zeroth_order_descent(
    estimator: Estimator | None = None,
    *,
    smoothness: float | Array,
    hessian_lipschitz: float | Array,
    eps: float | Array,
    delta: float | Array,
    key: Array,
    mu: float | Array | None = None,
    radius: float | Array | None = None,
    failure: float | Array = 0.01,
    steps: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""The same with function values alone: ZO-GD-NCF, and with an estimator ZO-SGD-, ZO-SCSG- and ZO-SPIDER-NCF.

    :func:`coordinate_gradient` in the place of the gradient, for the steps (−ĝ/3L where
    :math:`|\hat g|>\frac34\epsilon`) and inside the search for negative curvature. The gradient that optax is given is
    not looked at.

    Args:
        estimator: None for values of the whole; :func:`pwgf_jax.transforms.sgd`, ``scsg`` or ``spider`` for values of
            single terms.
        smoothness: L, of every term.
        hessian_lipschitz: ρ.
        eps: ε.
        delta: δ.
        key: typed random key.
        mu: length of the differences; None takes the cube root of the dtype's precision, the best in floating point.
            The theory asks for at most :math:`\sqrt{3\epsilon/(2\rho\sqrt d)}`.
        radius: as in :func:`negative_curvature`, but :math:`\min\{10^{-2},\delta/10\rho\}`, since a difference of
            differences loses digits.
        failure: as in :func:`negative_curvature`, of every search.
        steps: as in :func:`negative_curvature`.

    Returns:
        A transformation whose ``update`` needs ``params`` and ``value_fn``, or with an estimator ``components``:
        (params, indices (b,)) -> values (b,). ``state.queries`` counts values: 2d times the gradients of a step (one;
        of terms b, B where an epoch opens, and else 2b) and of a search.

    Raises:
        ValueError: if a number is not positive.
        TypeError: if the key is no typed key or an extra argument is missing.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> f = lambda x: x[0] ** 4 / 4 - x[0] ** 2 / 2 + x[1] ** 2 / 2
        >>> known = dict(smoothness=2.0, hessian_lipschitz=6.0, eps=1e-2, delta=0.5, key=jax.random.key(0))
        >>> x = jnp.zeros(2)  # the saddle
        >>> optimizer = zeroth_order_descent(**known)
        >>> step, state = optimizer.update(x, optimizer.init(x), x, value_fn=f)
        >>> round(abs(float(step[0])), 3), int(state.queries)
        (0.083, 96)
        >>> from pwgf_jax.transforms import spider
        >>> scale, optimizer = jnp.array([0.5, 1.5]), zeroth_order_descent(spider(2, 1, 2, epoch=5), **known)
        >>> step, state = optimizer.update(x, optimizer.init(x), x, components=lambda x, i: scale[i] * f(x))
        >>> round(abs(float(step[0])), 3)
        0.083

    References:
        Zhang, Xiong, Gu, arXiv:2210.01496. Unlike the published code, whose random signs are drawn for each coordinate,
        the step is along the direction found.
    """
    numbers: dict[str, Any] = {"smoothness": smoothness, "delta": delta, "hessian_lipschitz": hessian_lipschitz}
    numbers |= {"radius": radius, "failure": failure, "steps": steps}
    arguments.all_positive("zeroth_order_descent", mu=mu)

    def gradient(values: Callable[..., Array], params: PyTree) -> Callable[..., PyTree]:
        width = trees.precision(params) ** (1 / 3) if mu is None else mu
        return lambda x, *indices: coordinate_gradient(lambda y: jnp.mean(values(y, *indices)), x, width)

    function = "value_fn" if estimator is None else "components"
    order = _Order(function, False, lambda params: 2 * trees.size(params), gradient, 1e-2)
    return _descent("zeroth_order_descent", order, estimator, key, eps, numbers)


def _descent(
    name: str, order: _Order, estimator: Estimator | None, key: Array, eps: float | Array, numbers: dict[str, Any]
) -> optax.GradientTransformationExtraArgs:
    """What both share, with and without batches."""
    check_key(key, name)
    check_search(name, **numbers)
    arguments.all_positive(name, eps=eps)
    exact = order.exact and estimator is None
    enough = eps if exact else 0.75 * eps
    rate = 1 / numbers["smoothness"] if exact else 1 / (3 * numbers["smoothness"])
    length = numbers["delta"] / numbers["hessian_lipschitz"]

    def init(params: PyTree) -> NegativeCurvatureState:
        arguments.real(name, params)
        infinite = jnp.full((), jnp.inf, trees.dtype(params))
        epoch = None if estimator is None else Epoch.before(params)
        return trees.copied(NegativeCurvatureState(key, jnp.zeros((), jnp.int32), infinite, jnp.zeros((), bool), epoch))

    def update(
        updates: PyTree, state: Any, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, NegativeCurvatureState]:
        function = extra_args.get(order.function)
        arguments.needed(name, params=params, **{order.function: function})
        gradient, queries = order.gradient(function, params), order.queries(params)
        if estimator is None:
            v, spent, trusted = updates if order.exact else gradient(params), queries, True
        else:
            next_key, draw_key, end_key = jax.random.split(state.key, 3)
            state, trusted = state._replace(key=next_key), state.epoch.inner == 0
            v, terms = reduced_gradient(gradient, params, state.epoch, estimator, draw_key)
            spent = times(terms, queries)
            state = state._replace(epoch=estimator.after(state.epoch, params, v, end_key))

        def search(key: Array) -> NegativeCurvature:
            known = dict(numbers)
            if known["radius"] is None:
                known["radius"] = differencing_radius(params, known["delta"], known["hessian_lipschitz"], order.radius)
            if estimator is None:
                found = negative_curvature(gradient, params, key, **known)
            else:
                sizes = {"size": estimator.size, "batch": estimator.batch}
                found = negative_curvature_online(gradient, params, key, **sizes, **known)
            return found._replace(gradients=times(found.gradients, queries))

        small = trusted & (trees.norm(v) <= jnp.asarray(enough, trees.dtype(v)))
        step, state = _escape(v, state, small, search, rate, length, spent)
        if estimator is not None:  # what looked opens another epoch
            state = state._replace(epoch=state.epoch._replace(inner=jnp.where(small, 0, state.epoch.inner)))
        return jax.tree.map(lambda s, x: s.astype(jnp.result_type(x)), step, params), state

    return transformation(init, update)


def _escape(
    gradient: PyTree,
    state: NegativeCurvatureState,
    small: Array,
    search: Callable[[Array], NegativeCurvature],
    rate: float | Array,
    length: float | Array,
    queries: Any,
) -> tuple[PyTree, NegativeCurvatureState]:
    """A step of size ``rate`` along the gradient; where it is small, ``length`` along negative curvature or the end."""
    g, unravel = trees.ravel(gradient)
    rate, length = jnp.asarray(rate, g.dtype), jnp.asarray(length, g.dtype)
    next_key, search_key, sign_key = jax.random.split(state.key, 3)

    def look(_: Any) -> tuple[Array, Array, Array, Array]:
        seen = search(search_key)
        v = trees.ravel(seen.direction)[0].astype(g.dtype)
        slope = trees.inner(g, v)
        flip = jnp.where(slope == 0, jax.random.rademacher(sign_key, (), g.dtype), -jnp.sign(slope))
        jump = jnp.where(seen.found, length * flip * v, 0)
        return jump, seen.curvature.astype(state.curvature.dtype), ~seen.found, seen.gradients

    def descend(_: Any) -> tuple[Array, Array, Array, Array]:
        return -rate * g, state.curvature, jnp.zeros((), bool), jnp.zeros((), jnp.int32)

    step, curvature, ends, spent = jax.lax.cond(small & ~state.stopped, look, descend, None)
    stopped = state.stopped | ends
    spent = jnp.where(state.stopped, 0, total(jnp.asarray(queries, jnp.int32), spent))
    state = state._replace(key=next_key, queries=total(state.queries, spent), curvature=curvature, stopped=stopped)
    return unravel(jnp.where(stopped, 0, step)), state
