"""When to perturb, and when a perturbation that bought nothing ends the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PyTree

from pwgf_jax.measures import inner, single
from pwgf_jax.objective import Objective, Point
from pwgf_jax.perturbation import Noise
from pwgf_jax.spectrum import sight

__all__ = [
    "Averages",
    "Examination",
    "Leap",
    "Trigger",
    "Window",
    "certificate_trigger",
    "gradient_trigger",
    "leap",
]


class Averages(NamedTuple):
    """What a trigger has seen of the objective: sums with weights that fade, so that a batch's noise averages out.

    Args:
        value: weighted sum of values, float32 at least.
        gradient_norm: of gradient norms.
        weight: sum of the weights.

    Example:
        >>> import jax.numpy as jnp
        >>> seen = gradient_trigger(eps=0.1, k_thres=5, f_thres=0.0, decay=0.5).init(jnp.ones(2), jnp.ones(())).seen
        >>> float(seen.weight)
        0.0
    """

    value: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    weight: Float[Array, ""]


class Window(NamedTuple):
    """The waiting window after a jump.

    Args:
        jumped_at: step of the last jump, int32; before any jump, one that lies a whole window in the past.
        saved: what was current just before it (any pytree), which a failed test returns.
        saved_value: the objective there, float32 at least.
        seen: :class:`Averages` of what was observed.

    Example:
        >>> import jax.numpy as jnp
        >>> window = gradient_trigger(eps=0.1, k_thres=5, f_thres=0.01).init(jnp.ones(2), jnp.ones(()))
        >>> int(window.jumped_at)
        -6
    """

    jumped_at: Int[Array, ""]
    saved: PyTree
    saved_value: Float[Array, ""]
    seen: Averages

    @property
    def value(self) -> Array:
        """The average value observed."""
        return self.seen.value / jnp.where(self.seen.weight > 0, self.seen.weight, 1)

    @property
    def gradient_norm(self) -> Array:
        """The average gradient norm observed."""
        return self.seen.gradient_norm / jnp.where(self.seen.weight > 0, self.seen.weight, 1)


class Examination(NamedTuple):
    """What a second look at a candidate saddle says. Neither flag set is undecided.

    Args:
        saddle: negative curvature is certain: jump, and never hold the jump against the run.
        optimal: its absence is certified: stop here.
        escape: a displacement along the direction of least curvature.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> F = lambda mu: -0.5 * jnp.sum((mu.weights @ mu.points) ** 2)
        >>> from pwgf_jax import Particles
        >>> trigger = certificate_trigger(eps=0.1, delta=0.5, k_thres=5, f_thres=0.0, depth=4)
        >>> bool(trigger.examine(jax.random.key(0), F, Particles.uniform(jnp.zeros((4, 2)))).saddle)
        True
    """

    saddle: Bool[Array, ""]
    optimal: Bool[Array, ""]
    escape: PyTree


class Trigger(NamedTuple):
    """A rule for perturbing and stopping, as pure functions over a :class:`Window`.

    Args:
        init: (current, value) -> window, at the start of a run.
        observe: (window, value, gradient_norm) -> window, whose averages then hold these numbers too.
        should_perturb: (window, step, gradient_norm) -> whether to jump at this step.
        jump: (window, step, current, value) -> the window that opens with a jump.
        should_stop: (window, step, value) -> whether the step just taken ends the window without enough
            decrease; ``value`` is the one after the step.
        examine: (key, objective, point) -> :class:`Examination`, a second look before a jump; None jumps without.

    Example:
        >>> import jax.numpy as jnp
        >>> trigger = gradient_trigger(eps=0.1, k_thres=5, f_thres=0.01)
        >>> window = trigger.init(jnp.ones(2), jnp.ones(()))
        >>> bool(trigger.should_perturb(window, jnp.int32(0), jnp.float32(0.05)))
        True
    """

    init: Callable[[PyTree, Array], Window]
    observe: Callable[[Window, Array, Array], Window]
    should_perturb: Callable[[Window, Array, Array], Bool[Array, ""]]
    jump: Callable[[Window, Array, PyTree, Array], Window]
    should_stop: Callable[[Window, Array, Array], Bool[Array, ""]]
    examine: Callable[[Array, Objective, Point], Examination] | None = None


class Leap(NamedTuple):
    """A jump as it is about to be made, see :func:`leap`.

    Args:
        displacement: from the point.
        jumps: whether it is made.
        certified: whether the point is certified to be second-order stationary instead.
        held: the value that the window which opens has to get below by ``f_thres``.

    Example:
        >>> Leap._fields
        ('displacement', 'jumps', 'certified', 'held')
    """

    displacement: PyTree
    jumps: Bool[Array, ""]
    certified: Bool[Array, ""]
    held: Array


def leap(
    key: Array, objective: Objective, point: Point, trigger: Trigger, noise: Noise | None, window: Window, step: Array
) -> Leap:
    """What to do where a trigger has fired: examine, and jump by the noise or along the direction found.

    A jump from a certain saddle is never held against the run. Hessian-guided noise on a measure is zero along what the
    local part alone bends, and any noise may be small along the direction of escape by chance: where it has less than a
    tenth of the standard deviation there, the direction found is added to it.

    Args:
        key: typed random key.
        objective: the functional, or the loss.
        point: the measure, or the parameters.
        trigger: that fired.
        noise: (key, objective, point, step) -> displacement; None takes the escape that the examination finds.
        window: of the trigger.
        step: of the run.

    Returns:
        A :class:`Leap`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> trigger = certificate_trigger(eps=0.1, delta=0.5, k_thres=5, f_thres=0.0, eta_p=0.1, depth=2)
        >>> f, x = (lambda x: x[0] ** 2 - x[1] ** 2), jnp.zeros(2)
        >>> made = leap(jax.random.key(0), f, x, trigger, None, trigger.init(x, f(x)), jnp.int32(0))
        >>> bool(made.jumps), [abs(round(float(each), 3)) for each in made.displacement]
        (True, [0.0, 0.2])
    """
    examine_key, noise_key = jax.random.split(key)
    drawn = None if noise is None else noise(noise_key, objective, point, step)
    yes = jnp.ones((), bool)
    if trigger.examine is None:
        return Leap(drawn, yes, ~yes, window.value)
    found = trigger.examine(examine_key, objective, point)
    escape, held = found.escape, jnp.where(found.saddle, jnp.inf, window.value)
    if drawn is not None:
        missed = found.saddle & (jnp.abs(inner(point, drawn, escape)) < 0.1 * inner(point, escape, escape))
        escape = jax.tree.map(lambda xi, v: jnp.where(missed, xi + v.astype(xi.dtype), xi), drawn, escape)
    return Leap(escape, ~found.optimal, found.optimal, held)


def _wide(number: Any) -> Array:
    """A value or norm in float32 at least: bfloat16 does not tell a falling loss from a constant one."""
    number = jnp.asarray(number)
    return number.astype(single(number.dtype))


def gradient_trigger(
    *, eps: float | Array, k_thres: int, f_thres: float | Array, decay: float | Array = 0.0
) -> Trigger:
    r"""The papers' indirect saddle test.

    Jump where :math:`\|\nabla_\mu F\|\le\varepsilon` and the last jump is more than ``k_thres`` steps ago; stop where,
    at the end of step ``jumped_at + k_thres``, the objective has fallen by no more than ``f_thres`` below its value
    *before* the jump. As the algorithm is printed, step ``jumped_at`` itself is one of the window's: it holds
    k_thres + 1 gradient steps. No eigenvalue is computed.

    Args:
        eps: gradient norm below which a point counts as stationary, in :math:`L^2(\mu)`.
        k_thres: length of the waiting window [steps].
        f_thres: decrease that a window has to exceed [units of the objective].
        decay: γ in [0, 1). Values and gradient norms are averaged over some 1/(1 − γ) steps,
            :math:`\sum_j\gamma^jF_{k-j}/\sum_j\gamma^j`, so that on minibatches averages are compared and not two
            single batches; keep k_thres a few times that. No jump comes before so many steps. Zero takes each as it
            is.

    Returns:
        A :class:`Trigger`.

    Raises:
        ValueError: if ``eps`` or ``f_thres`` is negative, ``k_thres`` below one or beyond 32 bits, or ``decay`` not in
            [0, 1).

    Example:
        >>> gradient_trigger(eps=0.1, k_thres=0, f_thres=0.01)
        Traceback (most recent call last):
        ...
        ValueError: gradient_trigger: k_thres=0; give a whole number of steps, 1 to 1073741824.

    References:
        Yamamoto, Kim, Suzuki, arXiv:2509.16974, Alg. 2.
    """
    # What is traced, as under optax.inject_hyperparams, cannot be looked at.
    if not isinstance(eps, Tracer) and not eps >= 0:
        raise ValueError(f"gradient_trigger: eps={eps}; give a non-negative gradient norm.")
    if not 1 <= k_thres <= _LONGEST or int(k_thres) != k_thres:
        raise ValueError(f"gradient_trigger: k_thres={k_thres}; give a whole number of steps, 1 to {_LONGEST}.")
    if not isinstance(f_thres, Tracer) and not f_thres >= 0:
        raise ValueError(f"gradient_trigger: f_thres={f_thres}; give a non-negative decrease.")
    if not isinstance(decay, Tracer) and not 0 <= decay < 1:
        raise ValueError(f"gradient_trigger: decay={decay}; give a number in [0, 1), 0 for no average.")
    length, averages = int(k_thres), isinstance(decay, Tracer | Array) or decay > 0

    def init(current: PyTree, value: Any) -> Window:
        value = _wide(value)
        zero = jnp.zeros_like(value)
        return Window(jnp.asarray(-length - 1, jnp.int32), current, value, Averages(zero, zero, zero))

    def observe(window: Window, value: Any, gradient_norm: Any) -> Window:
        old = window.seen
        numbers = zip((value, gradient_norm, jnp.ones(())), old, strict=True)
        new = Averages(*(_wide(number).astype(sum_.dtype) for number, sum_ in numbers))
        if not averages:
            return window._replace(seen=new)
        finite = jnp.isfinite(new.value) & jnp.isfinite(new.gradient_norm)  # one bad batch spoils no average
        fade = jnp.asarray(decay, new.value.dtype)
        return window._replace(
            seen=jax.tree.map(lambda a, b: jnp.where(finite, fade * a + (1 - fade) * b, a), old, new)
        )

    def should_perturb(window: Window, step: Any, gradient_norm: Any) -> Any:
        known = window.seen.weight >= 0.6 if averages else True  # of 1/(1 − γ) steps: an average of few is none
        return (gradient_norm <= eps) & (step - window.jumped_at > length) & known

    def jump(window: Window, step: Any, current: PyTree, value: Any) -> Window:
        return Window(step, current, _wide(value).astype(window.saved_value.dtype), window.seen)

    def should_stop(window: Window, step: Any, value: Any) -> Any:
        return (step == window.jumped_at + length) & (window.saved_value - value <= f_thres)

    return Trigger(init, observe, should_perturb, jump, should_stop)


_LONGEST = 2**30  # step counters are int32, and a window is added to one


def certificate_trigger(
    *,
    eps: float | Array,
    delta: float | Array,
    k_thres: int,
    f_thres: float | Array,
    eta_p: float | Array = 1.0,
    depth: int = 32,
    failure: float = 1e-3,
    decay: float | Array = 0.0,
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
        decay: as in :func:`gradient_trigger`.

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
    if not isinstance(delta, Tracer) and not delta > 0:
        raise ValueError(
            f"certificate_trigger: delta={delta}; give a positive curvature, H has eigenvalues near zero anywhere."
        )
    if depth < 1 or not 0 < failure < 1:
        raise ValueError(f"certificate_trigger: depth={depth}, failure={failure}; give depth >= 1, 0 < failure < 1.")
    if not isinstance(eta_p, Tracer) and not 0 <= eta_p < float("inf"):
        raise ValueError(f"certificate_trigger: eta_p={eta_p}; give a non-negative factor.")

    def examine(key: Array, objective: Objective, point: Point) -> Examination:
        seen = sight(objective, point, "full", key, depth, failure)
        amplitude = eta_p * jnp.abs(seen.eigenvalue)
        return Examination(
            seen.eigenvalue + seen.rounding < -delta,
            seen.lower >= -delta,
            jax.tree.map(lambda leaf: amplitude.astype(leaf.dtype) * leaf, seen.direction),
        )

    return gradient_trigger(eps=eps, k_thres=k_thres, f_thres=f_thres, decay=decay)._replace(examine=examine)
