"""Negative curvature from gradients alone, or from function values alone: Neon2 and its zeroth-order form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PyTree

from pwgf_jax import trees
from pwgf_jax.krylov import check_key
from pwgf_jax.transforms.isometry import transformation

__all__ = [
    "NegativeCurvature",
    "NegativeCurvatureState",
    "coordinate_gradient",
    "gaussian_gradient",
    "negative_curvature",
    "negative_curvature_descent",
    "zeroth_order_descent",
]


def check_positive(caller: str, **numbers: float | Array) -> None:
    """Refuse numbers that are not positive and finite."""
    for name, number in numbers.items():
        trees.positive(f"{caller}: {name}", number)


def differencing_radius(params: PyTree, delta: Array, hessian_lipschitz: float | Array | None, most: float) -> Array:
    """min(most, δ/10ρ), at which vᵀHv by a difference is wrong by δ/20 at most; no less than 16 roundings of x."""
    radius = jnp.asarray(most, delta.dtype)
    if hessian_lipschitz is not None:
        radius = jnp.minimum(radius, delta / (10 * jnp.asarray(hessian_lipschitz, delta.dtype)))
    return jnp.maximum(radius, 16 * trees.precision(params) * trees.norm(params).astype(delta.dtype))


def difference_width(params: PyTree, mu: float | Array | None) -> float | Array:
    """μ, or the cube root of the precision of the parameters."""
    return trees.precision(params) ** (1 / 3) if mu is None else mu


def coordinate_gradient(value_fn: Callable[[PyTree], Array], params: PyTree, mu: float | Array) -> PyTree:
    r"""The gradient by central differences along the coordinates, 2d function queries.

    :math:`\hat g=\sum_i\frac{f(x+\mu e_i)-f(x-\mu e_i)}{2\mu}e_i`, with
    :math:`|\hat g-\nabla f|\le\rho\sqrt d\,\mu^2/6` for a ρ-Lipschitz Hessian.

    Args:
        value_fn: f.
        params: x, a pytree of d numbers.
        mu: μ > 0; in floating point the best is near eps^(1/3) of the scale of x.

    Returns:
        An estimate structured like ``params``.

    Raises:
        ValueError: if μ is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> coordinate_gradient(lambda x: x[0] ** 2 + x[1], jnp.array([1.0, 0.0]), 0.25).tolist()
        [2.0, 1.0]

    References:
        Zhang, Xiong, Gu, arXiv:2210.01496, Sec. 3.
    """
    check_positive("coordinate_gradient", mu=mu)
    flat, unravel = trees.ravel(params)
    width = jnp.asarray(mu, flat.dtype)

    def slope(i: Array) -> Array:
        ahead, behind = (value_fn(unravel(flat.at[i].add(step))) for step in (width, -width))
        return (ahead.astype(flat.dtype) - behind.astype(flat.dtype)) / (2 * width)

    return unravel(jax.lax.map(slope, jnp.arange(flat.size)))


def gaussian_gradient(
    key: Array, value_fn: Callable[[PyTree], Array], params: PyTree, mu: float | Array, samples: int
) -> PyTree:
    r"""The gradient by differences along random directions, :math:`\frac1s\sum\frac{f(x+\mu z)-f(x-\mu z)}{2\mu}z`.

    Unbiased up to O(μ²); its variance is about (d + 1)/s times \|∇f\|². Costs 2s function queries.

    Args:
        key: typed random key.
        value_fn: f.
        params: x.
        mu: μ > 0.
        samples: s ≥ 1 directions z ~ N(0, I).

    Returns:
        An estimate structured like ``params``.

    Raises:
        ValueError: if μ is not positive or the number of samples no whole number.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> gaussian_gradient(jax.random.key(0), jnp.sum, jnp.ones(2), 0.1, 4).shape
        (2,)

    References:
        Ren, Tang, Li, ICML 2023 (two-point estimates); Nesterov, Spokoiny, Found. Comput. Math. 17 (2017).
    """
    check_key(key, "gaussian_gradient")
    check_positive("gaussian_gradient", mu=mu)
    samples = trees.whole("gaussian_gradient: samples", samples)
    flat, unravel = trees.ravel(params)
    width = jnp.asarray(mu, flat.dtype)

    def one(key: Array) -> Array:
        z = jax.random.normal(key, flat.shape, flat.dtype)
        ahead, behind = (value_fn(unravel(flat + step * z)) for step in (width, -width))
        return (ahead.astype(flat.dtype) - behind.astype(flat.dtype)) / (2 * width) * z

    return unravel(jnp.mean(jax.lax.map(one, jax.random.split(key, samples)), axis=0))


class NegativeCurvature(NamedTuple):
    """What a search for negative curvature found.

    Args:
        found: whether ``curvature`` is at most what the search accepts: −δ/2, or −3δ/4 on a sample.
        direction: a unit vector, structured like the parameters.
        curvature: v·Hv along it by a difference of gradients; where nothing is found, only the best seen.
        gradients: gradient evaluations spent, int32.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> seen = negative_curvature(lambda x: -x, jnp.zeros(3), jax.random.key(0), smoothness=1.0, delta=0.5)
        >>> bool(seen.found), round(float(seen.curvature), 2)
        (True, -1.0)
    """

    found: Bool[Array, ""]
    direction: PyTree
    curvature: Float[Array, ""]
    gradients: Int[Array, ""]


def negative_curvature(
    gradient: Callable[[PyTree], PyTree],
    params: PyTree,
    key: Array,
    *,
    smoothness: float | Array,
    delta: float | Array,
    hessian_lipschitz: float | Array | None = None,
    radius: float | Array | None = None,
    failure: float | Array = 0.01,
    steps: int | None = None,
) -> NegativeCurvature:
    r"""A direction of negative curvature from differences of gradients, by Chebyshev's recurrence (Neon2).

    With :math:`My=(1-\frac{3\delta}{4L})y-\frac1L(\nabla f(x+y)-\nabla f(x))` and :math:`y_{t+1}=2My_t-y_{t-1}` the
    iterate :math:`y_{t+1}-My_t=T_t(M)\xi` grows like :math:`\frac12e^{t\sqrt{\delta/2L}}` along eigenvalues below −δ
    and stays bounded along those above −3δ/4. A random start in d dimensions has a share below
    :math:`1.25\,p/\sqrt d` in a given direction with probability p at most; else, where λ_min ≤ −δ,

    .. math:: T=\Big\lceil\sqrt{\tfrac{2L}\delta}\,\log\frac{2\sqrt{(2L/\delta+1)\,d}}{1.25\,p}\Big\rceil

    steps make :math:`v^\top Hv\le-\delta/2`. That is verified before it is returned, by a central difference.

    Args:
        gradient: ∇f as a function of the parameters; an estimate from function values does.
        params: x.
        key: typed random key for the start.
        smoothness: L, Lipschitz constant of the gradient.
        delta: δ > 0, curvature looked for.
        hessian_lipschitz: ρ, Lipschitz constant of the Hessian, if it is known.
        radius: length at which gradients are differenced [units of the parameters]; iterates are rescaled to it, which
            for a quadratic changes nothing. None takes :math:`\min\{10^{-3},\delta/10\rho\}`, but no less than 16
            rounding errors of x.
        failure: p, probability of missing a λ_min ≤ −δ.
        steps: how many; None takes T.

    Returns:
        A :class:`NegativeCurvature`.

    Raises:
        ValueError: if a number is out of range.
        TypeError: if the key is no typed key, or a parameter no real number.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> gradient = lambda x: jnp.array([-0.3, 0.2, 1.0]) * x
        >>> seen = negative_curvature(gradient, jnp.zeros(3), jax.random.key(0), smoothness=1.0, delta=0.25)
        >>> round(float(seen.curvature), 2), [abs(round(float(v), 2)) for v in seen.direction]
        (-0.3, [1.0, 0.0, 0.0])

    References:
        Allen-Zhu, Li, arXiv:1711.06673, Neon2det; Zhang, Xiong, Gu, arXiv:2210.01496, Alg. 2. Rescaling is ours, and T
        has the constants of the argument above in the place of the papers'.
    """
    check_key(key, "negative_curvature")
    trees.real("negative_curvature", params)
    check_search("negative_curvature", smoothness, delta, hessian_lipschitz, radius, failure, steps)
    flat, unravel = trees.ravel(params)
    L, least, p = (jnp.asarray(number, flat.dtype) for number in (smoothness, delta, failure))
    length = jnp.asarray(
        differencing_radius(params, least, hessian_lipschitz, 1e-3) if radius is None else radius, flat.dtype
    )
    needs = jnp.sqrt(2 * L / least) * jnp.log(2 * jnp.sqrt((2 * L / least + 1) * flat.size) / (1.25 * p))
    many = jnp.asarray(jnp.maximum(1, jnp.ceil(needs)) if steps is None else steps, jnp.int32)
    tiny = jnp.finfo(flat.dtype).tiny

    def at(y: Array) -> Array:
        return trees.ravel(gradient(unravel(flat + y)))[0].astype(flat.dtype)

    here = trees.ravel(gradient(params))[0].astype(flat.dtype)

    def mapped(v: Array) -> Array:
        """M v, by a difference over the radius along v, which is of any length."""
        step = length / jnp.maximum(jnp.linalg.norm(v), tiny)
        return (1 - 3 * least / (4 * L)) * v - (at(step * v) - here) / (step * L)

    def advance(_: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        before, now = carry
        after = 2 * mapped(now) - before
        # Both are scaled alike, which the linear recurrence does not see, so that nothing overflows.
        scale = 1 / jnp.maximum(jnp.linalg.norm(after), tiny)
        return scale * now, scale * after

    start = jax.random.normal(key, flat.shape, flat.dtype)
    before, now = jax.lax.fori_loop(0, many, advance, (jnp.zeros_like(start), start))
    chebyshev = now - mapped(before)  # T_t(M)ξ from the second kind, y_t = U_{t−1}(M)ξ
    direction = chebyshev / jnp.maximum(jnp.linalg.norm(chebyshev), tiny)
    curvature = direction @ (at(length * direction) - at(-length * direction)) / (2 * length)
    return NegativeCurvature(curvature <= -least / 2, unravel(direction), curvature, many + 4)


def check_search(
    caller: str,
    smoothness: float | Array,
    delta: float | Array,
    hessian_lipschitz: float | Array | None,
    radius: float | Array | None,
    failure: float | Array,
    steps: int | None,
) -> None:
    """Refuse what no search for negative curvature can use."""
    given = {"hessian_lipschitz": hessian_lipschitz, "radius": radius}
    optional = {name: number for name, number in given.items() if number is not None}
    check_positive(caller, smoothness=smoothness, delta=delta, **optional)
    if not isinstance(failure, Tracer) and not 0 < failure < 1:
        raise ValueError(f"{caller}: failure={failure}; give a probability, 0 < failure < 1.")
    if steps is not None and not isinstance(steps, Tracer):
        trees.whole(f"{caller}: steps", steps)


class NegativeCurvatureState(NamedTuple):
    """State of :func:`negative_curvature_descent` and :func:`zeroth_order_descent`.

    Args:
        key: for the next search.
        queries: gradient (first order) or function (zeroth order) evaluations spent, int32; it ends at 2³¹ − 1.
        curvature: what the last search found, +inf before any.
        stopped: whether a search at a small gradient found none: the parameters stay.

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


def negative_curvature_descent(
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

    Args:
        smoothness: L.
        hessian_lipschitz: ρ.
        eps: ε.
        delta: δ; :math:`\sqrt{\rho\epsilon}` balances the two.
        key: typed random key.
        radius: as in :func:`negative_curvature`, which knows ρ here.
        failure: as in :func:`negative_curvature`, of every search.
        steps: as in :func:`negative_curvature`.

    Returns:
        A transformation whose ``update`` needs ``params`` and ``value_fn``; the updates that come in are the gradient.

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
    check_key(key, "negative_curvature_descent")
    check_search("negative_curvature_descent", smoothness, delta, hessian_lipschitz, radius, failure, steps)
    check_positive("negative_curvature_descent", eps=eps)

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree = None,
        *,
        value_fn: Any = None,
        **extra_args: Any,
    ) -> tuple[PyTree, NegativeCurvatureState]:
        del extra_args
        trees.needed("negative_curvature_descent", params=params, value_fn=value_fn)

        def search(key: Array) -> NegativeCurvature:
            return negative_curvature(
                jax.grad(value_fn),
                params,
                key,
                smoothness=smoothness,
                delta=delta,
                hessian_lipschitz=hessian_lipschitz,
                radius=radius,
                failure=failure,
                steps=steps,
            )

        length = trees.norm(updates)
        small = length <= jnp.asarray(eps, length.dtype)
        return escape(updates, state, search, small, 1 / smoothness, delta / hessian_lipschitz, 1)

    return transformation(opening("negative_curvature_descent", key), update)


def opening(caller: str, key: Array) -> Any:
    """The state before any step."""

    def init(params: PyTree) -> NegativeCurvatureState:
        trees.real(caller, params)
        curvature = jnp.full((), jnp.inf, trees.dtype(params))
        return trees.copied(NegativeCurvatureState(key, jnp.zeros((), jnp.int32), curvature, jnp.zeros((), bool)))

    return init


def escape(
    gradient: PyTree,
    state: NegativeCurvatureState,
    search: Callable[[Array], NegativeCurvature],
    small: Array,
    rate: float | Array,
    length: float | Array,
    queries: Any,
) -> tuple[PyTree, NegativeCurvatureState]:
    """A step of size ``rate`` along the gradient; where it is small, ``length`` along negative curvature or the end."""
    g, unravel = trees.ravel(gradient)
    rate, length = jnp.asarray(rate, g.dtype), jnp.asarray(length, g.dtype)
    next_key, search_key, sign_key = jax.random.split(state.key, 3)
    looks = small & ~state.stopped

    def look(_: Any) -> tuple[Array, Array, Array, Array]:
        seen = search(search_key)
        v = trees.ravel(seen.direction)[0].astype(g.dtype)
        slope = g @ v
        flip = jnp.where(slope == 0, jax.random.rademacher(sign_key, (), g.dtype), -jnp.sign(slope))
        jump = jnp.where(seen.found, length * flip * v, 0)
        return jump, seen.curvature.astype(state.curvature.dtype), ~seen.found, seen.gradients

    def descend(_: Any) -> tuple[Array, Array, Array, Array]:
        return -rate * g, state.curvature, jnp.zeros((), bool), jnp.zeros((), jnp.int32)

    step, curvature, ends, spent = jax.lax.cond(looks, look, descend, None)
    stopped = state.stopped | ends
    step = jnp.where(stopped, 0, step)
    spent = jnp.where(state.stopped, 0, trees.total(jnp.asarray(queries, jnp.int32), spent))
    return unravel(step), NegativeCurvatureState(next_key, trees.total(state.queries, spent), curvature, stopped)


def zeroth_order_descent(
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
    r"""ZO-GD-NCF: the same with function values alone.

    :func:`coordinate_gradient` in the place of the gradient, for the steps (−ĝ/3L where
    :math:`|\hat g|>\frac34\epsilon`) and inside the search for negative curvature. Function queries are counted in
    ``state.queries``: 2d a step, and 2d times the gradients of a search. The gradient that optax is given is not
    looked at.

    Args:
        smoothness: L.
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
        A transformation whose ``update`` needs ``params`` and ``value_fn``.

    Raises:
        ValueError: if a number is not positive.
        TypeError: if the key is no typed key or an extra argument is missing.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> f = lambda x: x[0] ** 4 / 4 - x[0] ** 2 / 2 + x[1] ** 2 / 2
        >>> optimizer = zeroth_order_descent(
        ...     smoothness=2.0, hessian_lipschitz=6.0, eps=1e-2, delta=0.5, key=jax.random.key(0))
        >>> x = jnp.zeros(2)
        >>> step, state = optimizer.update(x, optimizer.init(x), x, value_fn=f)  # the saddle
        >>> round(abs(float(step[0])), 3), int(state.queries)
        (0.083, 96)

    References:
        Zhang, Xiong, Gu, arXiv:2210.01496, Alg. 1 and 2. Unlike the published code, whose random signs are drawn for
        each coordinate, the step is along the direction found.
    """
    check_key(key, "zeroth_order_descent")
    check_search("zeroth_order_descent", smoothness, delta, hessian_lipschitz, radius, failure, steps)
    check_positive("zeroth_order_descent", eps=eps, **({} if mu is None else {"mu": mu}))

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree = None,
        *,
        value_fn: Any = None,
        **extra_args: Any,
    ) -> tuple[PyTree, NegativeCurvatureState]:
        del extra_args, updates
        trees.needed("zeroth_order_descent", params=params, value_fn=value_fn)
        dimension, width = trees.size(params), difference_width(params, mu)

        def estimate(x: PyTree) -> PyTree:
            return coordinate_gradient(value_fn, x, width)

        def search(key: Array) -> NegativeCurvature:
            apart = radius
            if apart is None:
                least = jnp.asarray(delta, trees.dtype(params))
                apart = differencing_radius(params, least, hessian_lipschitz, 1e-2)
            found = negative_curvature(
                estimate, params, key, smoothness=smoothness, delta=delta, radius=apart, failure=failure, steps=steps
            )
            return found._replace(gradients=trees.times(found.gradients, 2 * dimension))

        g, rate = estimate(params), 1 / (3 * smoothness)
        length = trees.norm(g)
        small = length <= 0.75 * jnp.asarray(eps, length.dtype)
        return escape(g, state, search, small, rate, delta / hessian_lipschitz, 2 * dimension)

    return transformation(opening("zeroth_order_descent", key), update)
