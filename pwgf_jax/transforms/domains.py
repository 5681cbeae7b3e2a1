"""Convex sets of parameters: projections, linear oracles, and searches for negative curvature that stays inside."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from pwgf_jax import arguments, trees
from pwgf_jax.transforms.secular import secular
from pwgf_jax.tridiagonal import eigh

__all__ = ["Domain", "ball", "box", "polytope", "simplex"]

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
    arguments.positive("ball: radius", radius)

    def project(x: Float[Array, " d"]) -> Float[Array, " d"]:
        c = _vector("ball: center", center, x)
        return c + optax.projections.projection_l2_ball(x - c, radius)

    def oracle(g: Float[Array, " d"]) -> Float[Array, " d"]:
        return _vector("ball: center", center, g) - radius * trees.unit(g)[0]

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
    most = trees.divided(trees.norm(slopes), radius)
    return vectors @ secular(values, slopes, lambda s: radius, most) + back


def _descent_in_ball(hessian: Array, g: Array, back: Array, radius: float) -> Array:
    """The least d'Hd found with g·d ≤ 0, no larger than the least one with g·d = 0."""
    unit, _ = trees.unit(g)
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
    opposite = -trees.divided(jnp.maximum(reach, 0), square) * free
    free = jnp.where(g @ free > 0, opposite, free)
    return jnp.where(free @ hessian @ free < along @ hessian @ along, free, along)


def _search_by_oracle(oracle: Callable[[Array], Array]) -> Callable[[Array, Any, Array, Array], Array]:
    """Frank–Wolfe with exact line search on d'Hd over C and g·d ≤ 0, from random vertices: a heuristic."""

    def search(key: Array, product: Any, x: Float[Array, " d"], g: Float[Array, " d"]) -> Float[Array, " d"]:
        unit, _ = trees.unit(g)

        def restricted(cost: Array) -> Array:
            """Minimise cost·v over C and g·(v − x) ≤ 0, by bisection on the multiplier of the inequality."""
            cost, _ = trees.unit(cost)
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
            share = jnp.where(over > under, jnp.clip(trees.divided(over, over - under), 0, 1), 1)
            return jnp.where(excess(first) > slack, outside + share * (inside - outside), first)

        def step(_: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            d, curved = carry
            p = restricted(curved) - x - d
            curved_p = product(p)
            slope, bend = p @ curved, p @ curved_p
            t = jnp.where(
                bend > 0, jnp.clip(-trees.divided(slope, bend), 0, 1), jnp.where(slope <= 0, 1, 0).astype(x.dtype)
            )
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
    arguments.positive("simplex: total", total)

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
    arguments.positive("polytope: diameter", diameter)
    return Domain(project, linear_oracle, lambda x: diameter, _search_by_oracle(linear_oracle))
