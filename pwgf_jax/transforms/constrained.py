"""Escaping saddles inside a convex set: first-order steps, and a second-order step where they end."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from pwgf_jax import trees
from pwgf_jax.krylov import check_key, eigh
from pwgf_jax.transforms.isometry import transformation

__all__ = ["ConstrainedState", "Domain", "ball", "box", "constrained_escape", "polytope", "simplex"]

# Of the heuristic search: random starts, and Frank–Wolfe steps from each.
_STARTS, _STEPS = 16, 32
# Dense second derivatives in the ball: 1000² numbers and their eigenvectors.
_DENSE = 1000


class Domain(NamedTuple):
    r"""A convex and bounded set C of parameters, ravelled into one vector x of shape (d,).

    Args:
        project: x -> its nearest point of C, or None where there is no cheap projection.
        oracle: g -> a minimiser of :math:`g\cdot v` over v in C.
        diameter: x -> D, bound on the distance of two points of C; of x it uses shape and dtype only.
        search: (key, product, x, g) -> u in C with :math:`g\cdot(u-x)\le0` and :math:`(u-x)^\top H(u-x)` small,
            where ``product`` is v -> Hv.

    Example:
        >>> import jax.numpy as jnp
        >>> domain = ball(2.0)
        >>> domain.project(jnp.array([3.0, 4.0])).tolist(), domain.oracle(jnp.array([0.0, 1.0])).tolist()
        ([1.2, 1.6], [0.0, -2.0])
    """

    project: Callable[[Array], Array] | None
    oracle: Callable[[Array], Array]
    diameter: Callable[[Array], Any]
    search: Callable[[Array, Callable[[Array], Array], Array, Array], Array]


def _unit(x: Array) -> tuple[Array, Array]:
    """x/|x| and |x|; zero for zero."""
    length = jnp.linalg.norm(x)
    return jnp.where(length > 0, x / jnp.where(length > 0, length, 1), 0), length


def _vector(name: str, given: PyTree, x: Array) -> Array:
    flat = trees.ravel(given)[0].astype(x.dtype)
    if flat.size not in (1, x.size):
        raise ValueError(f"{name} has {flat.size} numbers for {x.size} parameters; give one, or as many.")
    return jnp.broadcast_to(flat, x.shape)


def ball(radius: float, center: PyTree = 0.0) -> Domain:
    r"""The ball :math:`|x-c|\le R`. Its search is exact: an eigendecomposition and the secular equation.

    The Hessian is formed, so at most 1000 parameters.

    Args:
        radius: R > 0.
        center: c, one number or as many as there are parameters.

    Returns:
        A :class:`Domain`.

    Raises:
        ValueError: if the radius is not positive, or if there are too many parameters (when it is used).

    Example:
        >>> import jax.numpy as jnp
        >>> ball(1.0, center=2.0).project(jnp.array([5.0, 2.0])).tolist()
        [3.0, 2.0]

    References:
        Moré, Sorensen, SIAM J. Sci. Stat. Comput. 4 (1983), for the trust-region problem and its hard case.
    """
    trees.positive("ball: radius", radius)

    def project(x: Float[Array, " d"]) -> Float[Array, " d"]:
        c = _vector("ball: center", center, x)
        return c + optax.projections.projection_l2_ball(x - c, radius)

    def oracle(g: Float[Array, " d"]) -> Float[Array, " d"]:
        return _vector("ball: center", center, g) - radius * _unit(g)[0]

    def search(key: Any, product: Any, x: Float[Array, " d"], g: Float[Array, " d"]) -> Float[Array, " d"]:
        del key
        if x.size > _DENSE:
            raise ValueError(f"ball: {x.size} parameters; its search forms the Hessian, give at most {_DENSE}.")
        hessian = jax.vmap(product)(jnp.eye(x.size, dtype=x.dtype))
        hessian = (hessian + hessian.T) / 2
        back = _vector("ball: center", center, x) - x
        return x + _descent_in_ball(hessian, g, back, radius)

    return Domain(project, oracle, lambda x: 2 * radius, search)


def _least_in_ball(hessian: Array, back: Array, radius: Array) -> Array:
    """Minimise d'Hd over |d − back| ≤ R: the global solution."""
    values, vectors = eigh(hessian)
    slopes = values * (vectors.T @ back)  # of w'Hw + 2 w'H back, w = d − back, in eigen-coordinates
    positive = values + jnp.maximum(-values[0], 0)

    def coordinates(shift: Array) -> Array:
        shifted = positive + shift
        safe = shifted > 0
        return jnp.where(safe, -slopes / jnp.where(safe, shifted, 1), 0)

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        longer = jnp.linalg.norm(coordinates(middle)) > radius
        return jnp.where(longer, middle, low), jnp.where(longer, high, middle)

    tiny = jnp.finfo(values.dtype).tiny
    upper = jnp.linalg.norm(slopes) / jnp.maximum(radius, tiny) + tiny  # no longer than R there
    w = coordinates(jax.lax.fori_loop(0, 80, halve, (jnp.zeros_like(upper), upper))[1])
    # The hard case: with negative curvature the solution is on the sphere, and the least eigenvector takes it there.
    first = jnp.sqrt(jnp.maximum(radius**2 - jnp.sum(w[1:] ** 2), 0))
    w = jnp.where(values[0] < 0, w.at[0].set(jnp.where(slopes[0] > 0, -first, first)), w)
    return vectors @ w + back


def _descent_in_ball(hessian: Array, g: Array, back: Array, radius: float) -> Array:
    """The least d'Hd found with g·d ≤ 0, no larger than the least one with g·d = 0."""
    unit, _ = _unit(g)
    level = jnp.eye(g.size, dtype=g.dtype) - jnp.outer(unit, unit)
    level_radius = jnp.sqrt(jnp.maximum(radius**2 - (unit @ back) ** 2, 0))
    free, along = jax.vmap(_least_in_ball)(
        jnp.stack([hessian, level @ hessian @ level]),
        jnp.stack([back, level @ back]),
        jnp.stack([jnp.asarray(radius, g.dtype), level_radius]),
    )
    along = level @ along
    # Where the free solution climbs, its opposite descends, as far as the ball reaches.
    square = free @ free
    reach = jnp.sqrt(jnp.maximum((free @ back) ** 2 + square * (radius**2 - back @ back), 0)) - free @ back
    opposite = -jnp.maximum(reach, 0) / jnp.where(square > 0, square, 1) * free
    free = jnp.where(g @ free > 0, opposite, free)
    return jnp.where(free @ hessian @ free < along @ hessian @ along, free, along)


def _search_by_oracle(oracle: Callable[[Array], Array]) -> Callable[[Array, Any, Array, Array], Array]:
    """Frank–Wolfe with exact line search on d'Hd over C and g·d ≤ 0, from random vertices: a heuristic."""

    def search(key: Array, product: Any, x: Float[Array, " d"], g: Float[Array, " d"]) -> Float[Array, " d"]:
        unit, _ = _unit(g)

        def restricted(cost: Array) -> Array:
            """Minimise cost·v over C and g·(v − x) ≤ 0, by bisection on the multiplier of the inequality."""
            cost, _ = _unit(cost)
            excess = lambda v: unit @ (v - x)  # noqa: E731
            first, last = oracle(cost), oracle(unit)
            slack = 16 * jnp.finfo(x.dtype).eps * (jnp.linalg.norm(x) + jnp.linalg.norm(first))

            def halve(_: Any, ends: tuple[Array, ...]) -> tuple[Array, ...]:
                low, high, outside, inside = ends
                middle = (low + high) / 2
                v = oracle((1 - middle) * cost + middle * unit)
                beyond = excess(v) > slack
                return (
                    jnp.where(beyond, middle, low),
                    jnp.where(beyond, high, middle),
                    jnp.where(beyond, v, outside),
                    jnp.where(beyond, inside, v),
                )

            zero, one = jnp.zeros((), x.dtype), jnp.ones((), x.dtype)
            _, _, outside, inside = jax.lax.fori_loop(0, 50, halve, (zero, one, first, last))
            over, under = excess(outside), excess(inside)
            share = jnp.where(over > under, jnp.clip(over / jnp.where(over > under, over - under, 1), 0, 1), 1)
            return jnp.where(excess(first) > slack, outside + share * (inside - outside), first)

        def step(_: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            d, curved = carry
            p = restricted(curved) - x - d
            curved_p = product(p)
            slope, bend = p @ curved, p @ curved_p
            best = jnp.clip(-slope / jnp.where(bend > 0, bend, 1), 0, 1)
            t = jnp.where(bend > 0, best, jnp.where(slope <= 0, 1, 0).astype(x.dtype))
            return d + t * p, curved + t * curved_p

        def descend(cost: Array) -> tuple[Array, Array]:
            d = restricted(cost) - x
            d, _ = jax.lax.fori_loop(0, _STEPS, step, (d, product(d)))
            return x + d, d @ product(d)

        ends, values = jax.vmap(descend)(jax.random.normal(key, (_STARTS, x.size), x.dtype))
        return ends[jnp.argmin(values)]

    return search


def box(lower: PyTree, upper: PyTree) -> Domain:
    r"""The box :math:`l_i\le x_i\le u_i`.

    Its search is a heuristic, as it must be (the exact problem is NP-hard): Frank–Wolfe with exact line search from 16
    random vertices. What it finds is feasible and its curvature exact; that it finds nothing proves nothing.

    Args:
        lower: l, one number or as many as there are parameters.
        upper: u, likewise.

    Returns:
        A :class:`Domain`.

    Raises:
        ValueError: if a lower bound exceeds the upper one, or a bound is infinite.

    Example:
        >>> import jax.numpy as jnp
        >>> box(-1.0, 2.0).oracle(jnp.array([1.0, -1.0])).tolist()
        [-1.0, 2.0]
    """
    low, high = (np.asarray(trees.ravel(each)[0]) for each in (lower, upper))
    if low.size != high.size and 1 not in (low.size, high.size):
        raise ValueError(f"box: lower has {low.size} numbers and upper {high.size}; give one, or as many.")
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low <= high).all()):
        raise ValueError(f"box: lower={lower}, upper={upper}; give finite bounds, lower <= upper.")

    def bounds(x: Array) -> tuple[Array, Array]:
        return _vector("box: lower", lower, x), _vector("box: upper", upper, x)

    def oracle(g: Float[Array, " d"]) -> Float[Array, " d"]:
        return jnp.where(g > 0, *bounds(g))

    def diameter(x: Float[Array, " d"]) -> Float[Array, ""]:
        low, high = bounds(x)
        return jnp.linalg.norm(high - low)

    return Domain(
        lambda x: optax.projections.projection_box(x, *bounds(x)), oracle, diameter, _search_by_oracle(oracle)
    )


def simplex(total: float = 1.0) -> Domain:
    r"""The simplex :math:`x_i\ge0,\ \sum_ix_i=s`. Its search is the heuristic of :func:`box`.

    Args:
        total: s > 0.

    Returns:
        A :class:`Domain`.

    Raises:
        ValueError: if the total is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> simplex().oracle(jnp.array([1.0, -1.0, 0.0])).tolist()
        [0.0, 1.0, 0.0]
    """
    trees.positive("simplex: total", total)

    def oracle(g: Float[Array, " d"]) -> Float[Array, " d"]:
        return total * jax.nn.one_hot(jnp.argmin(g), g.size, dtype=g.dtype)

    def project(x: Float[Array, " d"]) -> Float[Array, " d"]:
        with jax.numpy_dtype_promotion("standard"):  # optax divides by integers, which gives the default dtype
            return optax.projections.projection_simplex(x.astype(float), total).astype(x.dtype)

    return Domain(project, oracle, lambda x: math.sqrt(2) * total, _search_by_oracle(oracle))


def polytope(
    linear_oracle: Callable[[Array], Array], *, diameter: float, project: Callable[[Array], Array] | None = None
) -> Domain:
    r"""Any convex and bounded set that linear functions can be minimised over.

    Its search is the heuristic of :func:`box`.

    Args:
        linear_oracle: g (d,) -> a minimiser of :math:`g\cdot v` over the set.
        diameter: D, bound on the distance of two of its points.
        project: x -> its nearest point of the set; None leaves ``first_order="frank_wolfe"`` only.

    Returns:
        A :class:`Domain`.

    Raises:
        ValueError: if the diameter is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> corners = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> triangle = polytope(lambda g: corners[jnp.argmin(corners @ g)], diameter=2**0.5)
        >>> triangle.oracle(jnp.array([-2.0, -1.0])).tolist()
        [1.0, 0.0]
    """
    trees.positive("polytope: diameter", diameter)
    return Domain(project, linear_oracle, lambda x: diameter, _search_by_oracle(linear_oracle))


class ConstrainedState(NamedTuple):
    r"""State of :func:`constrained_escape`.

    Args:
        key: for the next heuristic search.
        gap: the Frank–Wolfe gap :math:`\max_{v\in C}g\cdot(x-v)` before the last update.
        curvature: the least :math:`(u-x)^\top H(u-x)` of the last second-order stage; zero before any.
        searches: second-order stages made, int32.
        stopped: whether a second-order stage found nothing below −γ; updates are zero from then on.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> options = dict(smoothness=1.0, hessian_lipschitz=1.0, eps=0.1, gamma=0.1, key=jax.random.key(0))
        >>> bool(constrained_escape(ball(1.0), **options).init(jnp.zeros(2)).stopped)
        False
    """

    key: Array
    gap: Float[Array, ""]
    curvature: Float[Array, ""]
    searches: Int[Array, ""]
    stopped: Bool[Array, ""]


def constrained_escape(
    domain: Domain,
    *,
    smoothness: float | Array,
    hessian_lipschitz: float | Array,
    eps: float | Array,
    gamma: float | Array,
    first_order: str = "projected",
    key: Array,
) -> optax.GradientTransformationExtraArgs:
    r"""Minimise over a convex set C without ending at its saddles.

    While the Frank–Wolfe gap :math:`\max_{v\in C}g\cdot(x-v)` exceeds ε, a first-order step: ``"projected"``,
    :math:`x\leftarrow P_C(x-g/L)`, or ``"frank_wolfe"``, toward the maximiser v by
    :math:`\min\{1,\text{gap}/(L|v-x|^2)\}`. Else the second-order stage looks for u in C with
    :math:`q(u)=(u-x)^\top H(u-x)` small: if q(u) < −γ the update is :math:`s(u-x)`, :math:`s=\min\{1,\gamma/(MD^3)\}`,
    which lowers f by :math:`\gamma^3/(3M^2D^6)` at least; if not, the run stops: ``state.stopped``.

    The paper searches :math:`g\cdot(u-x)=0`; here it is ≤ 0, for which the same decrease holds. Next to a saddle, where
    a tiny gradient points along the escape, the equality forbids just the direction that is needed. On
    :func:`ball` q(u) is at most the paper's minimum (ϱ = 1), so a stop is certain; on the other sets the search is a
    heuristic, and a stop is none but its own word. For a solver of known quality ϱ give ϱγ as ``gamma``.

    The updates that come in are taken as the gradient; parameters start in C, and no learning rate belongs after it.

    Args:
        domain: C: :func:`ball`, :func:`box`, :func:`simplex` or :func:`polytope`.
        smoothness: L, Lipschitz constant of the gradient on C.
        hessian_lipschitz: M, of the Hessian.
        eps: ε > 0 [units of the objective].
        gamma: γ > 0 [units of the objective]: curvature times D².
        first_order: ``"projected"`` or ``"frank_wolfe"``.
        key: typed random key.

    Returns:
        A transformation whose ``update`` needs ``params`` and ``value_fn``.

    Raises:
        ValueError: if a number is out of range, the stage is unknown, or the domain has no projection for it.
        TypeError: if the key is no typed key or an extra argument is missing.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> f = lambda x: (x[1] ** 2 - x[0] ** 2) / 2
        >>> optimizer = constrained_escape(
        ...     ball(1.0), smoothness=1.0, hessian_lipschitz=1.0, eps=1e-3, gamma=0.1, key=jax.random.key(0)
        ... )
        >>> def step(_, carry):
        ...     x, state = carry
        ...     updates, state = optimizer.update(jax.grad(f)(x), state, x, value_fn=f)
        ...     return optax.apply_updates(x, updates), state
        >>> saddle = jnp.zeros(2)
        >>> x, state = jax.lax.fori_loop(0, 20, step, (saddle, optimizer.init(saddle)))
        >>> round(float(f(x)), 3), bool(state.stopped)
        (-0.5, True)

    References:
        Mokhtari, Ozdaglar, Jadbabaie, NeurIPS 2018, arXiv:1809.02162; the inequality and the step lengths of the
        first-order stage, which are no shorter than the paper's, are ours.
    """
    check_key(key, "constrained_escape")
    given = {"smoothness": smoothness, "hessian_lipschitz": hessian_lipschitz, "eps": eps, "gamma": gamma}
    for name, number in given.items():
        trees.positive(f"constrained_escape: {name}", number)
    if first_order not in ("projected", "frank_wolfe"):
        raise ValueError(f'constrained_escape: first_order={first_order!r}; choose "projected" or "frank_wolfe".')
    project = domain.project
    if first_order == "projected" and project is None:
        raise ValueError('constrained_escape: the domain has no projection; choose first_order="frank_wolfe".')

    def init(params: PyTree) -> ConstrainedState:
        trees.real("constrained_escape", params)
        zero = jnp.zeros((), trees.dtype(params))
        state = ConstrainedState(key, zero + jnp.inf, zero, jnp.zeros((), jnp.int32), jnp.zeros((), bool))
        return trees.copied(state)

    def update(
        updates: PyTree, state: Any, params: PyTree = None, *, value_fn: Any = None, **extra_args: Any
    ) -> tuple[PyTree, ConstrainedState]:
        del extra_args
        trees.needed("constrained_escape", params=params, value_fn=value_fn)
        x, unravel = trees.ravel(params)
        kept = state.curvature.dtype
        g = trees.ravel(updates)[0].astype(x.dtype)
        L, M, enough, curved = (jnp.asarray(n, x.dtype) for n in (smoothness, hessian_lipschitz, eps, gamma))
        next_key, search_key = jax.random.split(state.key)
        with jax.default_matmul_precision("highest"):
            toward = domain.oracle(g) - x
            gap = -(g @ toward)

            def first() -> tuple[Array, Array, Array]:
                if project is not None and first_order == "projected":
                    move = project(x - g / L) - x
                else:
                    square = L * (toward @ toward)
                    move = jnp.clip(gap / jnp.where(square > 0, square, 1), 0, 1) * toward
                return move, state.curvature, jnp.zeros((), bool)

            def second() -> tuple[Array, Array, Array]:
                product = jax.linearize(jax.grad(lambda flat: value_fn(unravel(flat))), x)[1]
                d = domain.search(search_key, product, x, g) - x
                curvature = d @ product(d)
                length = curved / (M * jnp.asarray(domain.diameter(x), x.dtype) ** 3)
                saddle = curvature < -curved
                return jnp.where(saddle, jnp.minimum(length, 1), 0) * d, curvature.astype(kept), curvature >= -curved

            # A gap that is no number is no small one; and who has stopped looks no further.
            searches = (gap <= enough) & ~state.stopped
            move, curvature, ends = jax.lax.cond(searches, second, first)
        stopped = state.stopped | ends
        count = state.searches + searches.astype(jnp.int32)
        return unravel(jnp.where(stopped, 0, move)), ConstrainedState(
            next_key, gap.astype(kept), curvature, count, stopped
        )

    return transformation(init, update)
