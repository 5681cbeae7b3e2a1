"""The one composition that every method is a point of: direction, optimizer, noise, weights, perturbation, trigger."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from pwgf_jax import arguments
from pwgf_jax.arguments import check_key
from pwgf_jax.calculus import Functional, value_and_wasserstein_gradient
from pwgf_jax.flows.protocol import Evaluation, Flow, FlowState, Reweighting, Status, StepInfo
from pwgf_jax.flows.weights import reweighted
from pwgf_jax.measures import Field, Particles, norm, per_particle
from pwgf_jax.perturbation import Noise
from pwgf_jax.transforms.branches import where_it_fires
from pwgf_jax.transforms.isometry import OfParticles
from pwgf_jax.transforms.trigger import Trigger, leap

__all__ = [
    "Direction",
    "StepSize",
    "flow",
    "gradient",
    "minibatch",
]


StepSize: TypeAlias = float | Float[Array, ""] | optax.Schedule | optax.GradientTransformation
"""A step size: a float, an optax schedule, or any optax transformation that turns a field into an update."""


Direction: TypeAlias = Callable[..., Evaluation]
"""(key, F, mu, step) -> :class:`Evaluation`. The direction at step k is the one that update k descends along."""


def gradient(key: Array, F: Functional, mu: Particles, step: Any = 0) -> Evaluation:
    """The direction of the Wasserstein gradient flow: the gradient itself.

    Args:
        key: not used; directions that draw noise do.
        F: the functional.
        mu: the measure.
        step: of the run, not used; directions that change with it do.

    Returns:
        An :class:`Evaluation`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> F = lambda mu: mu.weights @ jnp.sum(mu.points**2, axis=-1)
        >>> gradient(jax.random.key(0), F, Particles.uniform(jnp.ones((4, 1)))).field[0].tolist()
        [2.0]
    """
    del key, step
    value, field = value_and_wasserstein_gradient(F, mu)
    return Evaluation(value, norm(mu, field), field)


def _choose(condition: Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _optimizer(step_size: StepSize) -> optax.GradientTransformationExtraArgs:
    if isinstance(step_size, optax.GradientTransformation):
        return optax.with_extra_args_support(step_size)
    if callable(step_size):
        return optax.with_extra_args_support(optax.sgd(_checked_schedule(step_size)))
    if isinstance(step_size, jax.Array) and step_size.ndim == 0:
        return optax.with_extra_args_support(optax.sgd(step_size))
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


def flow(
    direction: Direction,
    optimizer: StepSize,
    perturbation: Noise | None = None,
    trigger: Trigger | None = None,
    *,
    noise: Noise | None = None,
    weights: Reweighting | None = None,
) -> Flow:
    r"""Compose a method: :math:`\mu_{k+1}=(\mathrm{Id}+u_k)_\sharp\mu_k`, u_k the optimizer's update for the direction.

    With a trigger, a step at which it fires first moves the measure by the perturbation and takes the gradient step
    from there; a window that ends without enough decrease, k_thres + 1 gradient steps after its jump, ends the run and
    returns the measure from before. The objective and the direction are evaluated once per step, and once more in a
    step that jumps. An optimizer that looks for saddles itself, as those of :mod:`pwgf_jax.transforms` do, sees the
    particles in the coordinates in which L²(μ) is Euclidean, ends the run where it says ``stopped`` and marks the steps
    where it says ``perturbed``.

    Args:
        direction: (key, F, mu, step) -> :class:`Evaluation`; :func:`gradient` for a Wasserstein gradient flow.
        optimizer: step size, schedule or optax transformation. It sees the field at the Wasserstein scale
            (N·∂F), and as extra arguments ``value``, ``grad`` (the Euclidean gradient) and ``value_fn``.
        perturbation: (key, F, mu, step) -> displacement field, such as :func:`pwgf_jax.perturbation.hessian_noise`.
            None with a trigger that examines takes the escape direction that it finds.
        trigger: when to jump, see :func:`pwgf_jax.transforms.gradient_trigger` and ``certificate_trigger``, and
            :func:`pwgf_jax.transforms.leap` for what it then does.
        noise: (key, F, mu, step) -> displacement field, drawn afresh in every step at the measure that the update
            leaves from and added to the update, so that the optimizer neither sees nor scales it; see
            :func:`pwgf_jax.perturbation.gaussian_noise`.
        weights: (key, F, mu, step) -> new weights, a step on them after every step in the points, such as
            :func:`pwgf_jax.flows.mirror`; None keeps them.

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

    def init(key: Array, F: Functional, mu: Particles) -> FlowState:
        check_key(key, "Flow.init")
        zero = jnp.zeros((), jnp.int32)
        evaluation = direction(key, F, mu, zero)
        window = None
        if trigger is not None:
            window = _observed(trigger, trigger.init((mu, evaluation), evaluation.value), evaluation)
        status = _finite_status(evaluation, jnp.asarray(Status.running, jnp.int32))
        return FlowState(mu, evaluation, transform.init(mu.points), window, zero, status)

    def step(key: Array, F: Functional, state: FlowState) -> tuple[FlowState, StepInfo]:
        check_key(key, "Flow.step")
        jump_key, next_key = jax.random.split(key)
        active, jumps, moved = state.status == Status.running, jnp.zeros((), bool), state
        if trigger is not None:
            fires = active & trigger.should_perturb(state.window, state.step, state.window.gradient_norm)
            moved, jumps = _jump(fires, jump_key, F, state, direction, perturbation, trigger)
        if noise is not None:
            next_key, noise_key = jax.random.split(next_key)
        after = _descend(F, moved, transform, None if noise is None else noise(noise_key, F, moved.mu, moved.step))
        if weights is not None:
            weights_key = jax.random.fold_in(next_key, 3)
            mu = Particles(after.mu.points, weights(weights_key, F, after.mu, moved.step))
            after = after._replace(mu=mu)
        evaluation = direction(next_key, F, after.mu, after.step)
        after = after._replace(evaluation=evaluation, status=_finite_status(evaluation, after.status))
        # A measure that is not finite is never entered: the one before it is kept.
        after = _choose(after.status == Status.not_finite, state._replace(status=after.status), after)
        if trigger is not None:
            after = _judge(state.step, after, trigger)
        after, told = _told(after)
        after = _choose(moved.status == Status.running, after, moved)
        jumps = jumps | (active & told)
        return after, StepInfo(after.evaluation.value, after.evaluation.gradient_norm, jumps, after.status)

    def reweigh(weights: Reweighting) -> Flow:
        return flow(direction, optimizer, perturbation, trigger, noise=noise, weights=weights)

    return Flow(init, step, reweigh=reweigh)


def minibatch(method: Flow, size: int) -> Flow:
    """A flow whose every step sees a fresh ``F.batch(key, size)`` in the place of F.

    One batch serves a step: the noise of a jump and the gradient after it, and the direction, with its Hessian
    products, at the measure that the step leads to. Values and gradient norms are then the batch's; give a trigger a
    ``decay``, so that it compares averages of them and not two single batches.

    Args:
        method: any flow.
        size: data points of a batch.

    Returns:
        A :class:`Flow` of functionals that have a method ``batch(key, size)``.

    Raises:
        ValueError: if the size is no positive whole number.
        TypeError: where it starts, if the functional has no batches.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pwgf_jax import run
        >>> from pwgf_jax.functionals import mean_field_regression
        >>> F = mean_field_regression(jnp.ones((8, 3)), jnp.ones((8, 1)))
        >>> method = minibatch(flow(gradient, 0.1), 2)
        >>> solution = run(method, F, Particles.uniform(jnp.ones((4, 4))), jax.random.key(0), steps=500)
        >>> round(float(solution.value), 3)
        0.0
    """
    arguments.whole("minibatch: size", size)

    def sampled(key: Array, F: Any) -> tuple[Array, Functional]:
        if not hasattr(F, "batch"):
            raise TypeError(f"minibatch: size={size} but the functional has no batch(key, size) method; add one.")
        key, batch_key = jax.random.split(key)
        return key, F.batch(batch_key, size)

    def init(key: Array, F: Functional, mu: Particles) -> FlowState:
        check_key(key, "Flow.init")
        return method.init(*sampled(key, F), mu)

    def step(key: Array, F: Functional, state: FlowState) -> tuple[FlowState, StepInfo]:
        check_key(key, "Flow.step")
        return method.step(*sampled(key, F), state)

    return Flow(init, step, reweigh=lambda weights: minibatch(reweighted(method, weights), size))


def _jump(
    fires: Array,
    key: Array,
    F: Functional,
    state: FlowState,
    direction: Direction,
    perturbation: Noise | None,
    trigger: Trigger,
) -> tuple[FlowState, Array]:
    """Where the trigger fires: examine, perturb the measure and open a window. Returns who has jumped."""

    def look(still: tuple[FlowState, Array]) -> tuple[FlowState, Array]:
        before, _ = still
        made = leap(key, F, before.mu, trigger, perturbation, before.window, before.step)
        certified = jnp.asarray(Status.certified, jnp.int32)
        before = before._replace(status=jnp.where(made.certified, certified, before.status))
        mu = before.mu.push_forward(made.displacement)
        window = trigger.jump(before.window, before.step, (before.mu, before.evaluation), made.held)
        evaluation = direction(jax.random.fold_in(key, 2), F, mu, before.step)
        after = before._replace(mu=mu, evaluation=evaluation, window=window)
        return _choose(made.jumps, after, before), made.jumps

    return where_it_fires(fires, look, (state, jnp.zeros_like(fires)))


def _descend(
    F: Functional, state: FlowState, transform: optax.GradientTransformationExtraArgs, noise: Field | None
) -> FlowState:
    """One step of the optimizer along the direction, and the noise; what is there is yet to be evaluated."""
    mu, evaluation = state.mu, state.evaluation
    # optax mixes dtypes (adam raises a float to an int32 power): strict users need not give it up.
    with jax.numpy_dtype_promotion("standard"):
        updates, optimizer = transform.update(
            evaluation.field,
            state.optimizer,
            mu.points,
            value=evaluation.value,
            grad=jax.tree.map(lambda u: per_particle(mu.weights, u).astype(u.dtype) * u, evaluation.field),
            value_fn=OfParticles(lambda points: F(mu.moved_to(points)), mu.weights),
        )
    # An optimizer that widens its state may not change the carry's dtypes.
    optimizer = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), optimizer, state.optimizer)
    if noise is not None:
        updates = jax.tree.map(operator.add, updates, noise)
    mu = mu.moved_to(optax.apply_updates(mu.points, updates))
    return state._replace(mu=mu, optimizer=optimizer, step=state.step + 1)


def _judge(step: Array, state: FlowState, trigger: Trigger) -> FlowState:
    """Return to the measure saved before the jump where the window that ends here bought too little."""
    window = _observed(trigger, state.window, state.evaluation)
    state = state._replace(window=window)
    stops = (state.status == Status.running) & trigger.should_stop(window, step, window.value)
    mu, evaluation = window.saved
    status = jnp.asarray(Status.no_decrease, jnp.int32)
    return _choose(stops, state._replace(mu=mu, evaluation=evaluation, status=status), state)


def _told(state: FlowState) -> tuple[FlowState, Array]:
    """The status that an optimizer which looks for saddles asks for, and whether it has jumped."""

    def flag(name: str) -> Array:
        found = [jnp.any(jnp.asarray(each)) for _, each in optax.tree.get_all_with_path(state.optimizer, name)]
        return jnp.any(jnp.stack(found)) if found else jnp.zeros((), bool)

    ended = jnp.where(flag("certified"), Status.certified, Status.no_decrease).astype(jnp.int32)
    stops = (state.status == Status.running) & flag("stopped")
    return state._replace(status=jnp.where(stops, ended, state.status)), flag("perturbed")


def _observed(trigger: Trigger, window: Any, evaluation: Evaluation) -> Any:
    return trigger.observe(window, evaluation.value, evaluation.gradient_norm)


def _finite_status(evaluation: Evaluation, otherwise: Array) -> Array:
    finite = jnp.isfinite(evaluation.value) & jnp.isfinite(evaluation.gradient_norm)
    return jnp.where(finite, otherwise, jnp.asarray(Status.not_finite, jnp.int32))
