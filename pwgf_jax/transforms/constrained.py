"""Escaping saddles inside a convex set: first-order steps, and a second-order step where they end."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from pwgf_jax import arguments, trees
from pwgf_jax.arguments import check_key
from pwgf_jax.transforms.domains import Domain
from pwgf_jax.transforms.isometry import transformation

__all__ = ["ConstrainedState", "constrained_escape"]


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
        >>> from pwgf_jax.transforms import ball
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
        >>> from pwgf_jax.transforms import ball
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
    arguments.all_positive("constrained_escape", **given)
    if first_order not in ("projected", "frank_wolfe"):
        raise ValueError(f'constrained_escape: first_order={first_order!r}; choose "projected" or "frank_wolfe".')
    if (project := domain.project) is None and first_order == "projected":
        raise ValueError('constrained_escape: the domain has no projection; choose first_order="frank_wolfe".')

    def init(params: PyTree) -> ConstrainedState:
        arguments.real("constrained_escape", params)
        zero, no = jnp.zeros((), trees.dtype(params)), jnp.zeros((), bool)
        return trees.copied(ConstrainedState(key, zero + jnp.inf, zero, no.astype(jnp.int32), no))

    def update(
        updates: PyTree, state: Any, params: PyTree = None, *, value_fn: Any = None, **extra_args: Any
    ) -> tuple[PyTree, ConstrainedState]:
        del extra_args
        arguments.needed("constrained_escape", params=params, value_fn=value_fn)
        (x, unravel), kept = trees.ravel(params), state.curvature.dtype
        g = trees.ravel(updates)[0].astype(x.dtype)
        L, M, enough, curved = (jnp.asarray(n, x.dtype) for n in (smoothness, hessian_lipschitz, eps, gamma))
        next_key, search_key = jax.random.split(state.key)
        with jax.default_matmul_precision("highest"):
            toward = domain.oracle(g) - x
            gap = -trees.inner(g, toward)

            def first() -> tuple[Array, Array, Array]:
                if project is not None and first_order == "projected":
                    move = project(x - g / L) - x
                else:
                    move = jnp.clip(trees.divided(gap, L * trees.inner(toward, toward)), 0, 1) * toward
                return move, state.curvature, jnp.zeros((), bool)

            def second() -> tuple[Array, Array, Array]:
                product = jax.linearize(jax.grad(lambda flat: value_fn(unravel(flat))), x)[1]
                d = domain.search(search_key, product, x, g) - x
                curvature = trees.inner(d, product(d))
                length = curved / (M * jnp.asarray(domain.diameter(x), x.dtype) ** 3)
                saddle = curvature < -curved
                return jnp.where(saddle, jnp.minimum(length, 1), 0) * d, curvature.astype(kept), curvature >= -curved

            # A gap that is no number is no small one; and who has stopped looks no further.
            searches = (gap <= enough) & ~state.stopped
            move, curvature, ends = jax.lax.cond(searches, second, first)
        stopped = state.stopped | ends
        count = state.searches + searches.astype(jnp.int32)
        state = ConstrainedState(next_key, gap.astype(kept), curvature, count, stopped)
        return unravel(jnp.where(stopped, 0, move)), state

    return transformation(init, update)
