"""The one composition that every method is a point of: direction ∘ optimizer ∘ noise ∘ perturbation ∘ trigger."""

from __future__ import annotations

import enum
import operator
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from pwgf_jax.calculus import Functional, value_and_wasserstein_gradient
from pwgf_jax.krylov import check_key
from pwgf_jax.measures import Field, Particles, inner, norm, per_particle
from pwgf_jax.transforms.trigger import Trigger, reached

__all__ = ["Evaluation", "Flow", "FlowState", "Scheduled", "Status", "StepInfo", "StepSize", "flow", "gradient"]

StepSize: TypeAlias = float | optax.Schedule | optax.GradientTransformation
"""A step size: a float, an optax schedule, or any optax transformation that turns a field into an update."""


class Status(enum.IntEnum):
    """How a run stands. Held as an int32 array; the first final status of a run sticks.

    Example:
        >>> Status.not_finite.sentence
        'The value or the gradient stopped being finite; the last finite measure is kept. Try a smaller step size.'
    """

    running = 0
    no_decrease = 1
    budget_spent = 2
    not_finite = 3
    certified = 4

    @property
    def sentence(self) -> str:
        """What happened, and what to do about it."""
        return {
            Status.running: "The run is under way.",
            Status.no_decrease: "A perturbation bought no decrease within its window, or a search found no negative "
            "curvature: what was current before it is returned. That suggests a second-order stationary point and "
            "proves none; certify says what is known.",
            Status.budget_spent: "All steps were taken before the method stopped by itself; "
            "the last measure is returned.",
            Status.not_finite: "The value or the gradient stopped being finite; the last finite measure is kept. "
            "Try a smaller step size.",
            Status.certified: "A certificate says that the measure returned is second-order stationary.",
        }[self]


class Evaluation(NamedTuple):
    """What a direction finds at a measure.

    Args:
        value: F(μ).
        gradient_norm: ‖∇_μF‖ in L²(μ), whatever the direction is.
        field: the direction to descend along, a field on μ.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> F = lambda mu: mu.weights @ jnp.sum(mu.points**2, axis=-1) / 2
        >>> at = gradient(jax.random.key(0), F, Particles.uniform(jnp.ones((4, 1))))
        >>> float(at.value), float(at.gradient_norm)
        (0.5, 1.0)
    """

    value: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    field: Field


Direction: TypeAlias = Callable[[Array, Functional, Particles], Evaluation]
Perturbation: TypeAlias = Callable[[Array, Functional, Particles], Field]


class Scheduled(NamedTuple):
    """A part of a flow (a direction, a noise, a perturbation) that changes with the step.

    Args:
        at: step, int32 -> the part at that step. The direction at step k is the one that update k descends along.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pwgf_jax import run
        >>> def once(step):
        ...     def direction(key, F, mu):
        ...         found = gradient(key, F, mu)
        ...         return found._replace(field=jnp.where(step < 1, found.field, 0))
        ...     return direction
        >>> F = lambda mu: mu.weights @ jnp.sum(mu.points**2, axis=-1) / 2
        >>> start = Particles.uniform(jnp.ones((4, 1)))
        >>> run(flow(Scheduled(once), 0.5), F, start, jax.random.key(0), steps=3).mu.points[0].tolist()
        [0.5]
    """

    at: Callable[[Int[Array, ""]], Callable[..., Any]]


def _at(part: Any, step: Array) -> Any:
    return part.at(step) if isinstance(part, Scheduled) else part


class FlowState(NamedTuple):
    """What a flow carries from step to step.

    Args:
        mu: the measure; finite.
        evaluation: the direction's :class:`Evaluation` at ``mu``.
        optimizer: the optax state.
        window: the trigger's :class:`pwgf_jax.transforms.Window`, or None without a trigger.
        step: steps taken, int32.
        status: a :class:`Status`, int32.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pwgf_jax.flows import wgf
        >>> F = lambda mu: mu.weights @ jnp.sum(mu.points**2, axis=-1) / 2
        >>> state = wgf(0.5).init(jax.random.key(0), F, Particles.uniform(jnp.ones((4, 1))))
        >>> int(state.step), float(state.evaluation.value)
        (0, 0.5)
    """

    mu: Particles
    evaluation: Evaluation
    optimizer: PyTree
    window: Any
    step: Int[Array, ""]
    status: Int[Array, ""]


class StepInfo(NamedTuple):
    """What is worth looking at after a step; nobody carries it.

    Args:
        value: F at the measure after the step.
        gradient_norm: ‖∇_μF‖ there.
        perturbed: whether the step began with a jump.
        status: the :class:`Status` after it.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pwgf_jax.flows import wgf
        >>> F = lambda mu: mu.weights @ jnp.sum(mu.points**2, axis=-1) / 2
        >>> method, key = wgf(0.5), jax.random.key(0)
        >>> _, info = method.step(key, F, method.init(key, F, Particles.uniform(jnp.ones((4, 1)))))
        >>> float(info.value), bool(info.perturbed)
        (0.125, False)
    """

    value: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    perturbed: Bool[Array, ""]
    status: Int[Array, ""]


class Flow(NamedTuple):
    """A method, as two pure functions.

    Args:
        init: (key, F, mu) -> state.
        step: (key, F, state) -> (state, info); the identity once the status is final.

    Example:
        >>> from pwgf_jax.flows import wgf
        >>> wgf(0.1)._fields
        ('init', 'step')
    """

    init: Callable[[Array, Functional, Particles], FlowState]
    step: Callable[[Array, Functional, FlowState], tuple[FlowState, StepInfo]]


def gradient(key: Array, F: Functional, mu: Particles) -> Evaluation:
    """The direction of the Wasserstein gradient flow: the gradient itself.

    Args:
        key: not used; directions that draw noise do.
        F: the functional.
        mu: the measure.

    Returns:
        An :class:`Evaluation`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> F = lambda mu: mu.weights @ jnp.sum(mu.points**2, axis=-1)
        >>> gradient(jax.random.key(0), F, Particles.uniform(jnp.ones((4, 1)))).field[0].tolist()
        [2.0]
    """
    del key
    value, field = value_and_wasserstein_gradient(F, mu)
    return Evaluation(value, norm(mu, field), field)


@jax.custom_batching.custom_vmap
def any_in_batch(predicate: Array) -> Array:
    """The predicate itself; under ``vmap``, whether it holds anywhere in the batch, unbatched.

    A ``lax.cond`` on a batched predicate becomes a select that runs both branches for everybody; on this it stays
    a branch, taken only when somebody needs it.
    """
    return predicate


@any_in_batch.def_vmap
def _(axis_size: int, in_batched: list[bool], predicate: Array) -> tuple[Array, bool]:
    del axis_size, in_batched
    return any_in_batch(jnp.any(predicate)), False


def _choose(condition: Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _optimizer(step_size: StepSize) -> optax.GradientTransformationExtraArgs:
    if isinstance(step_size, optax.GradientTransformation):
        return optax.with_extra_args_support(step_size)
    if callable(step_size):
        return optax.with_extra_args_support(optax.sgd(_checked_schedule(step_size)))
    if not isinstance(step_size, int | float) or isinstance(step_size, bool):
        raise TypeError(
            f"step_size is a {type(step_size).__name__}; give a float, an optax schedule or an optax transformation."
        )
    if not 0 < step_size < float("inf"):
        raise ValueError(f"step_size={step_size}; give a positive number.")
    return optax.with_extra_args_support(optax.sgd(step_size))


def _checked_schedule(step_size: Any) -> optax.Schedule:
    """Refuse a function of something else than the step, such as an optax optimizer that nobody has called."""
    name = getattr(step_size, "__name__", type(step_size).__name__)
    try:
        with jax.numpy_dtype_promotion("standard"):  # optax's schedules mix dtypes
            out: Any = jax.eval_shape(step_size, jax.ShapeDtypeStruct((), jnp.int32))
    except TypeError:
        out = None
    if getattr(out, "shape", None) != ():
        raise TypeError(
            f"step_size is {name}, and {name}(step) is no number; give a float, a schedule (step -> number) or an "
            "optax transformation, such as optax.adam(0.1) for optax.adam."
        )
    return step_size


def schedule(name: str, value: float | optax.Schedule) -> Callable[[Any], Array]:
    """A number or an optax schedule as a function of the step; a number has to be non-negative."""
    if not callable(value):
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise TypeError(f"{name} is a {type(value).__name__}; give a float or an optax schedule.")
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name}={value}; give a non-negative number.")
        value = optax.constant_schedule(float(value))

    def at(step: Any) -> Array:
        with jax.numpy_dtype_promotion("standard"):  # optax's schedules mix dtypes
            return jnp.asarray(value(step))

    return at


def flow(
    direction: Direction | Scheduled,
    optimizer: StepSize,
    perturbation: Perturbation | Scheduled | None = None,
    trigger: Trigger | None = None,
    *,
    noise: Perturbation | Scheduled | None = None,
    batch_size: int | None = None,
) -> Flow:
    r"""Compose a method: :math:`\mu_{k+1}=(\mathrm{Id}+u_k)_\sharp\mu_k`, u_k the optimizer's update for the direction.

    With a trigger, a step at which it fires first moves the measure by the perturbation and takes the gradient step
    from there; a window that ends without enough decrease, k_thres + 1 gradient steps after its jump, ends the run and
    returns the measure from before. The objective and the direction are evaluated once per step, and once more in a
    step that jumps. The direction, the perturbation and the noise may each be :class:`Scheduled`.

    Args:
        direction: (key, F, mu) -> :class:`Evaluation`; :func:`gradient` for a Wasserstein gradient flow.
        optimizer: step size, schedule or optax transformation. It sees the field at the Wasserstein scale
            (N·∂F), and as extra arguments ``value``, ``grad`` (the Euclidean gradient) and ``value_fn``.
        perturbation: (key, F, mu) -> displacement field. None with a trigger that examines takes the escape
            direction that it finds.
        trigger: when to jump, see :func:`pwgf_jax.transforms.gradient_trigger` and ``certificate_trigger``. Where an
            examination is certain of a saddle, a perturbation that has nothing along the direction found gets it added.
        noise: (key, F, mu) -> displacement field, drawn afresh in every step at the measure that the update leaves from
            and added to the update, so that the optimizer neither sees nor scales it; see
            :func:`pwgf_jax.flows.gaussian_noise`.
        batch_size: evaluate on a fresh ``F.batch(key, batch_size)`` each time, so that one batch serves a gradient and
            the Hessian products that go with it: those of φ(H)∇F, and of the noise of a jump with the gradient after
            it. Values and gradient norms are then the batch's; give the trigger a ``decay``, so that it compares
            averages of them and not two single batches.

    Returns:
        A :class:`Flow`.

    Raises:
        ValueError: if a perturbation has no trigger or a trigger nothing to move by, or a number is not positive.
        TypeError: if the step size is none of the three kinds.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> F = lambda mu: mu.weights @ jnp.sum(mu.points**2, axis=-1) / 2
        >>> method, key = flow(gradient, optax.adam(0.1)), jax.random.key(0)
        >>> state = method.init(key, F, Particles.uniform(jnp.ones((4, 1))))
        >>> state, info = method.step(key, F, state)
        >>> round(float(state.mu.points[0, 0]), 4)
        0.9

    References:
        Yamamoto, Kim, Suzuki, arXiv:2509.16974, Alg. 2, generalised.
    """
    if perturbation is not None and trigger is None:
        raise ValueError("flow: a perturbation without a trigger is never used; give a trigger, or neither.")
    if perturbation is None and trigger is not None and trigger.examine is None:
        raise ValueError("flow: this trigger finds no direction to jump along; give a perturbation as well.")
    transform = _optimizer(optimizer)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"flow: batch_size={batch_size}; give a positive number of data points, or None for all.")

    def sampled(key: Array, F: Any) -> tuple[Array, Functional]:
        if batch_size is None:
            return key, F
        if not hasattr(F, "batch"):
            raise TypeError(
                f"flow: batch_size={batch_size} but the functional has no batch(key, size) method; add one."
            )
        key, batch_key = jax.random.split(key)
        return key, F.batch(batch_key, batch_size)

    def init(key: Array, F: Functional, mu: Particles) -> FlowState:
        check_key(key, "Flow.init")
        evaluation = _at(direction, jnp.zeros((), jnp.int32))(*sampled(key, F), mu)
        window = None if trigger is None else trigger.init((mu, evaluation), evaluation.value)
        return FlowState(
            mu,
            evaluation,
            transform.init(mu.points),
            None if trigger is None else _observed(trigger, window, evaluation),
            jnp.zeros((), jnp.int32),
            _finite_status(evaluation, jnp.asarray(Status.running, jnp.int32)),
        )

    def step(key: Array, F: Functional, state: FlowState) -> tuple[FlowState, StepInfo]:
        check_key(key, "Flow.step")
        jump_key, next_key = jax.random.split(key)
        active, jumps, moved = state.status == Status.running, jnp.zeros((), bool), state
        if trigger is not None:
            fires = active & trigger.should_perturb(state.window, state.step, state.window.gradient_norm)
            at_jump = _at(direction, state.step), _at(perturbation, state.step)
            moved, jumps = _jump(fires, *sampled(jump_key, F), state, *at_jump, trigger)
        after = _descend(
            *sampled(next_key, F), moved, _at(direction, state.step + 1), transform, _at(noise, state.step)
        )
        # A measure that is not finite is never entered: the one before it is kept.
        after = _choose(after.status == Status.not_finite, state._replace(status=after.status), after)
        if trigger is not None:
            after = _judge(state.step, after, trigger)
        after = _choose(moved.status == Status.running, after, moved)
        return after, StepInfo(after.evaluation.value, after.evaluation.gradient_norm, jumps, after.status)

    return Flow(init, step)


def _jump(
    fires: Array,
    key: Array,
    F: Functional,
    state: FlowState,
    direction: Direction,
    perturbation: Perturbation | None,
    trigger: Trigger,
) -> tuple[FlowState, Array]:
    """Where the trigger fires: examine, perturb the measure and open a window. Returns who has jumped."""

    def look(before: FlowState) -> tuple[FlowState, Array]:
        examine_key, noise_key, direction_key = jax.random.split(key, 3)
        jumps, held = fires, before.window.value
        displacement = None if perturbation is None else perturbation(noise_key, F, before.mu)
        if trigger.examine is not None:
            seen = trigger.examine(examine_key, F, before.mu)
            jumps = fires & ~seen.optimal
            held = jnp.where(seen.saddle, jnp.inf, held)  # a jump from a certain saddle is never held against the run
            along = partial(inner, before.mu)
            displacement = seen.escape if displacement is None else reached(displacement, seen, along)
            certified = jnp.asarray(Status.certified, jnp.int32)
            before = before._replace(status=jnp.where(fires & seen.optimal, certified, before.status))
        mu = before.mu.push_forward(displacement)
        window = trigger.jump(before.window, before.step, (before.mu, before.evaluation), held)
        after = before._replace(mu=mu, evaluation=direction(direction_key, F, mu), window=window)
        return _choose(jumps, after, before), jumps

    return jax.lax.cond(any_in_batch(fires), look, lambda before: (before, jnp.zeros_like(fires)), state)


def _descend(
    key: Array,
    F: Functional,
    state: FlowState,
    direction: Direction,
    transform: optax.GradientTransformationExtraArgs,
    noise: Perturbation | None,
) -> FlowState:
    """One step of the optimizer along the direction, the noise, and the evaluation where they lead."""
    mu, evaluation = state.mu, state.evaluation
    # optax mixes dtypes (adam raises a float to an int32 power): strict users need not give it up.
    with jax.numpy_dtype_promotion("standard"):
        updates, optimizer = transform.update(
            evaluation.field,
            state.optimizer,
            mu.points,
            value=evaluation.value,
            grad=jax.tree.map(lambda u: per_particle(mu.weights, u).astype(u.dtype) * u, evaluation.field),
            value_fn=lambda points: F(mu.moved_to(points)),
        )
    # An optimizer that widens its state may not change the carry's dtypes.
    optimizer = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), optimizer, state.optimizer)
    if noise is not None:
        key, noise_key = jax.random.split(key)
        updates = jax.tree.map(operator.add, updates, noise(noise_key, F, mu))
    mu = mu.moved_to(optax.apply_updates(mu.points, updates))
    evaluation = direction(key, F, mu)
    status = _finite_status(evaluation, state.status)
    return state._replace(mu=mu, evaluation=evaluation, optimizer=optimizer, step=state.step + 1, status=status)


def _judge(step: Array, state: FlowState, trigger: Trigger) -> FlowState:
    """Return to the measure saved before the jump where the window that ends here bought too little."""
    window = _observed(trigger, state.window, state.evaluation)
    state = state._replace(window=window)
    stops = (state.status == Status.running) & trigger.should_stop(window, step, window.value)
    mu, evaluation = window.saved
    status = jnp.asarray(Status.no_decrease, jnp.int32)
    return _choose(stops, state._replace(mu=mu, evaluation=evaluation, status=status), state)


def _observed(trigger: Trigger, window: Any, evaluation: Evaluation) -> Any:
    return trigger.observe(window, evaluation.value, evaluation.gradient_norm)


def _finite_status(evaluation: Evaluation, otherwise: Array) -> Array:
    finite = jnp.isfinite(evaluation.value) & jnp.isfinite(evaluation.gradient_norm)
    return jnp.where(finite, otherwise, jnp.asarray(Status.not_finite, jnp.int32))
