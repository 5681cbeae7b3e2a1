"""When to perturb, and when a perturbation that bought nothing ends the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PyTree

from pwgf_jax.calculus import Functional
from pwgf_jax.certify import sight
from pwgf_jax.measures import Field, Particles

__all__ = ["Examination", "Trigger", "Window", "certificate_trigger", "gradient_trigger"]


class Window(NamedTuple):
    """The waiting window after a jump.

    Args:
        jumped_at: step of the last jump, int32; before any jump, one that lies a whole window in the past.
        saved: what was current just before it (any pytree), which a failed test returns.
        saved_value: the objective there.

    Example:
        >>> import jax.numpy as jnp
        >>> window = gradient_trigger(eps=0.1, k_thres=5, f_thres=0.01).init(jnp.ones(2), jnp.ones(()))
        >>> int(window.jumped_at)
        -6
    """

    jumped_at: Int[Array, ""]
    saved: PyTree
    saved_value: Float[Array, ""]


class Examination(NamedTuple):
    """What a second look at a candidate saddle says. Neither flag set is undecided.

    Args:
        saddle: negative curvature is certain: jump, and never hold the jump against the run.
        optimal: its absence is certified: stop here.
        escape: a displacement along the direction of least curvature.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> F = lambda mu: -0.5 * jnp.sum((mu.weights @ mu.points) ** 2)
        >>> trigger = certificate_trigger(eps=0.1, delta=0.5, k_thres=5, f_thres=0.0, depth=4)
        >>> bool(trigger.examine(jax.random.key(0), F, Particles.uniform(jnp.zeros((4, 2)))).saddle)
        True
    """

    saddle: Bool[Array, ""]
    optimal: Bool[Array, ""]
    escape: Field


class Trigger(NamedTuple):
    """A rule for perturbing and stopping, as pure functions over a :class:`Window`.

    Args:
        init: (current, value) -> window, at the start of a run.
        should_perturb: (window, step, gradient_norm) -> whether to jump at this step.
        jump: (window, step, current, value) -> the window that opens with a jump.
        should_stop: (window, step, value) -> whether the step just taken ends the window without enough
            decrease; ``value`` is the one after the step.
        examine: (key, F, mu) -> :class:`Examination`, a second look before a jump; None jumps without.

    Example:
        >>> import jax.numpy as jnp
        >>> trigger = gradient_trigger(eps=0.1, k_thres=5, f_thres=0.01)
        >>> window = trigger.init(jnp.ones(2), jnp.ones(()))
        >>> bool(trigger.should_perturb(window, jnp.int32(0), jnp.float32(0.05)))
        True
    """

    init: Callable[[PyTree, Array], Window]
    should_perturb: Callable[[Window, Array, Array], Bool[Array, ""]]
    jump: Callable[[Window, Array, PyTree, Array], Window]
    should_stop: Callable[[Window, Array, Array], Bool[Array, ""]]
    examine: Callable[[Array, Functional, Particles], Examination] | None = None


def gradient_trigger(*, eps: float | Array, k_thres: int, f_thres: float | Array) -> Trigger:
    r"""The papers' indirect saddle test.

    Jump where :math:`\|\nabla_\mu F\|\le\varepsilon` and the last jump is more than ``k_thres`` steps ago; stop where,
    ``k_thres`` steps after a jump, the objective has fallen by no more than ``f_thres`` below its value *before* the
    jump. No eigenvalue is computed.

    Args:
        eps: gradient norm below which a point counts as stationary, in :math:`L^2(\mu)`.
        k_thres: length of the waiting window [steps].
        f_thres: decrease that a window has to exceed [units of the objective].

    Returns:
        A :class:`Trigger`.

    Raises:
        ValueError: if ``eps`` or ``f_thres`` is negative or ``k_thres`` is below one.

    Example:
        >>> gradient_trigger(eps=0.1, k_thres=0, f_thres=0.01)
        Traceback (most recent call last):
        ...
        ValueError: gradient_trigger: k_thres=0; give a window of at least one step.

    References:
        Yamamoto, Kim, Suzuki, arXiv:2509.16974, Alg. 2.
    """
    # What is traced, as under optax.inject_hyperparams, cannot be looked at.
    if not isinstance(eps, Tracer) and not eps >= 0:
        raise ValueError(f"gradient_trigger: eps={eps}; give a non-negative gradient norm.")
    if k_thres < 1 or int(k_thres) != k_thres:
        raise ValueError(f"gradient_trigger: k_thres={k_thres}; give a window of at least one step.")
    if not isinstance(f_thres, Tracer) and not f_thres >= 0:
        raise ValueError(f"gradient_trigger: f_thres={f_thres}; give a non-negative decrease.")
    length = int(k_thres)

    def init(current: PyTree, value: Any) -> Window:
        return Window(jnp.asarray(-length - 1, jnp.int32), current, value)

    def should_perturb(window: Window, step: Any, gradient_norm: Any) -> Any:
        return (gradient_norm <= eps) & (step - window.jumped_at > length)

    def jump(window: Window, step: Any, current: PyTree, value: Any) -> Window:
        del window
        return Window(step, current, value)

    def should_stop(window: Window, step: Any, value: Any) -> Any:
        return (step == window.jumped_at + length) & (window.saved_value - value <= f_thres)

    return Trigger(init, should_perturb, jump, should_stop)


def certificate_trigger(
    *,
    eps: float,
    delta: float,
    k_thres: int,
    f_thres: float,
    eta_p: float = 1.0,
    depth: int = 32,
    failure: float = 1e-3,
) -> Trigger:
    r"""The direct saddle test: where the gradient is small, look at the smallest eigenvalue before jumping.

    Curvature of the full Hessian below −δ is jumped from; if its absence is certified with probability 1 − failure,
    the run stops at once. Undecided falls back on the indirect test: jump, and stop if the
    window of :func:`gradient_trigger` buys no decrease.

    Args:
        eps: as in :func:`gradient_trigger`.
        delta: δ > 0, curvature that counts as negative.
        k_thres: steps between two examinations.
        f_thres: as in :func:`gradient_trigger`, for undecided examinations.
        eta_p: the displacement found is η_p·abs(λ)·v, v the unit direction of least curvature λ: what
            Hessian-guided noise of the factor η_p has along v in standard deviation.
        depth: Hessian products per examination.
        failure: probability that a certified stop is wrong.

    Returns:
        A :class:`Trigger`.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> certificate_trigger(eps=0.1, delta=0.0, k_thres=5, f_thres=0.0)
        Traceback (most recent call last):
        ...
        ValueError: certificate_trigger: delta=0.0; give a positive curvature, H has eigenvalues near zero anywhere.
    """
    if not delta > 0:
        raise ValueError(
            f"certificate_trigger: delta={delta}; give a positive curvature, H has eigenvalues near zero anywhere."
        )
    if depth < 1 or not 0 < failure < 1:
        raise ValueError(f"certificate_trigger: depth={depth}, failure={failure}; give depth >= 1, 0 < failure < 1.")
    if not 0 <= eta_p < float("inf"):
        raise ValueError(f"certificate_trigger: eta_p={eta_p}; give a non-negative factor.")

    def examine(key: Array, F: Functional, mu: Particles) -> Examination:
        seen = sight(F, mu, "full", key, depth, failure)
        amplitude = eta_p * jnp.abs(seen.eigenvalue)
        return Examination(
            seen.eigenvalue + seen.rounding < -delta,
            seen.lower >= -delta,
            jax.tree.map(lambda leaf: amplitude.astype(leaf.dtype) * leaf, seen.direction),
        )

    return gradient_trigger(eps=eps, k_thres=k_thres, f_thres=f_thres)._replace(examine=examine)
