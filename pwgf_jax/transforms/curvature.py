"""Searches for negative curvature from gradients, of a function or of batches of its terms: Neon2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PyTree

from pwgf_jax import arguments, trees
from pwgf_jax.arguments import check_key
from pwgf_jax.transforms.differences import differencing_radius
from pwgf_jax.transforms.finite_sums import check_batches, draw, times, total

__all__ = ["NegativeCurvature", "check_search", "negative_curvature", "negative_curvature_online"]


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
    steps: int | Int[Array, ""] | None = None,
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
    known = (smoothness, delta, hessian_lipschitz, radius, failure, steps)
    L, least, p, apart = _numbers("negative_curvature", params, key, known)
    flat, unravel = trees.ravel(params)
    needs = jnp.sqrt(2 * L / least) * jnp.log(2 * jnp.sqrt((2 * L / least + 1) * flat.size) / (1.25 * p))
    many = jnp.asarray(jnp.maximum(1, jnp.ceil(needs)) if steps is None else steps, jnp.int32)

    def at(y: Array) -> Array:
        return trees.ravel(gradient(unravel(flat + y)))[0].astype(flat.dtype)

    here = trees.ravel(gradient(params))[0].astype(flat.dtype)

    def mapped(v: Array) -> Array:
        """M v, by a difference over the radius along v, which is of any length."""
        along, norm = trees.unit(v)
        return (1 - 3 * least / (4 * L)) * v - norm * (at(apart * along) - here) / (apart * L)

    def advance(_: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        before, now = carry
        after = 2 * mapped(now) - before
        # Both are scaled alike, which the linear recurrence does not see, so that nothing overflows. Either of them
        # may be zero, but not both: no two polynomials in succession have a root in common.
        scale = 1 / jnp.maximum(trees.norm(now), trees.norm(after))
        return scale * now, scale * after

    start = jax.random.normal(key, flat.shape, flat.dtype)
    before, now = jax.lax.fori_loop(0, many, advance, (jnp.zeros_like(start), start))
    chebyshev = now - mapped(before)  # T_t(M)ξ from the second kind, y_t = U_{t−1}(M)ξ
    # Where it vanishes U does not, for T_t² + (1 − M²) U_{t−1}² = 1: with M a number, as in one dimension, what is left
    # of T would be rounding, or nothing. Above −3δ/4, where |T| > |U| sqrt(δ/2L), that is never so.
    vanishes = trees.norm(chebyshev) <= jnp.sqrt(jnp.finfo(flat.dtype).eps) * trees.norm(before)
    direction, _ = trees.unit(jnp.where(vanishes, before, chebyshev))
    curvature = trees.inner(direction, at(apart * direction) - at(-apart * direction)) / (2 * apart)
    return NegativeCurvature(curvature <= -least / 2, unravel(direction), curvature, many + 4)


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
    name, known = "negative_curvature_online", (smoothness, delta, hessian_lipschitz, radius, failure, steps)
    L, least, p, apart = _numbers(name, params, key, known)
    check_batches(name, size, batch=batch, verification=size if verification is None else verification)
    arguments.all_positive(name, learning_rate=learning_rate)
    repeats = arguments.whole(f"{name}: repeats", repeats)
    flat, unravel = trees.ravel(params)
    rate = jnp.minimum(1 / L, batch * least / (L**2 * (1 + jnp.log(flat.size))))
    rate = rate if learning_rate is None else jnp.asarray(learning_rate, flat.dtype)
    enough = jnp.ceil(2 / (rate * least) * jnp.log(4 * flat.size / (1.25 * p) ** 2))
    length = jnp.asarray(enough if steps is None else steps, jnp.int32)
    sample = 32 * (L / least) ** 2 * jnp.log(2 / p) if verification is None else jnp.asarray(verification, flat.dtype)
    batches = jnp.ceil(jnp.minimum(sample, size) / batch).astype(jnp.int32)

    def product(v: Array, batch: int, key: Array) -> Array:
        """H_I v for a unit vector, by a difference on one batch."""
        indices = draw(key, batch, size)
        ahead, behind = (trees.ravel(grad_fn(unravel(flat + step * v), indices))[0] for step in (apart, -apart))
        return (ahead - behind).astype(flat.dtype) / (2 * apart)

    def attempt(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        tried, best, lowest = carry
        start_key, walk_key, verify_key = jax.random.split(jax.random.fold_in(key, tried), 3)

        def advance(t: Array, v: Array) -> Array:
            moved, norm = trees.unit(v - rate * product(v, batch, jax.random.fold_in(walk_key, t)))
            return jnp.where(norm > 0, moved, v)  # nothing is left of an eigenvector of 1/η

        v = jax.lax.fori_loop(0, length, advance, trees.unit(jax.random.normal(start_key, flat.shape, flat.dtype))[0])
        curvature = jax.lax.cond(
            sample >= size,
            lambda: trees.inner(v, product(v, size, verify_key)),
            lambda: _mean(lambda key: trees.inner(v, product(v, batch, key)), verify_key, batches, flat.dtype),
        )
        return tried + 1, jnp.where(curvature < lowest, v, best), jnp.minimum(curvature, lowest)

    none = (jnp.zeros((), jnp.int32), jnp.zeros_like(flat), jnp.full((), jnp.inf, flat.dtype))
    tried, direction, curvature = jax.lax.while_loop(
        lambda seen: (seen[0] < repeats) & (seen[2] > -0.75 * least), attempt, none
    )
    seen = jnp.where(sample >= size, size, batch * batches).astype(jnp.int32)
    once = total(times(length, 2 * batch), times(seen, 2))
    spent = jax.lax.fori_loop(0, tried, lambda _, sum: total(sum, once), jnp.zeros((), jnp.int32))
    return NegativeCurvature(curvature <= -0.75 * least, unravel(direction), curvature, spent)


def _mean(draw: Callable[[Array], Array], key: Array, count: Array, dtype: Any) -> Array:
    """The mean of as many draws."""
    add = lambda i, sum: sum + draw(jax.random.fold_in(key, i))  # noqa: E731
    return jax.lax.fori_loop(0, count, add, jnp.zeros((), dtype)) / count.astype(dtype)


def _numbers(caller: str, params: PyTree, key: Array, known: tuple[Any, ...]) -> tuple[Array, ...]:
    """L, δ, p and the length at which gradients are differenced, in the dtype of the parameters."""
    smoothness, delta, hessian_lipschitz, radius, failure, steps = known
    check_key(key, caller)
    arguments.real(caller, params)
    check_search(
        caller,
        smoothness=smoothness,
        delta=delta,
        hessian_lipschitz=hessian_lipschitz,
        radius=radius,
        failure=failure,
        steps=steps,
    )
    apart = differencing_radius(params, delta, hessian_lipschitz, 1e-3) if radius is None else radius
    return tuple(jnp.asarray(number, trees.dtype(params)) for number in (smoothness, delta, failure, apart))


def check_search(
    caller: str,
    *,
    smoothness: float | Array,
    delta: float | Array,
    hessian_lipschitz: float | Array | None = None,
    radius: float | Array | None = None,
    failure: float | Array = 0.01,
    steps: int | Int[Array, ""] | None = None,
) -> None:
    """Refuse what no search for negative curvature can use.

    Example:
        >>> check_search("negative_curvature", smoothness=1.0, delta=0.0)
        Traceback (most recent call last):
        ...
        ValueError: negative_curvature: delta=0.0; give a positive number.
    """
    arguments.all_positive(
        caller, smoothness=smoothness, delta=delta, hessian_lipschitz=hessian_lipschitz, radius=radius
    )
    if not isinstance(failure, Tracer) and not 0 < failure < 1:
        raise ValueError(f"{caller}: failure={failure}; give a probability, 0 < failure < 1.")
    if steps is not None and not isinstance(steps, Tracer):
        arguments.whole(f"{caller}: steps", steps)
