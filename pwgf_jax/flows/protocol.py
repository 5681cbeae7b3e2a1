"""What a flow is: two pure functions, what they carry and tell, and how it is made of its numbers."""

from __future__ import annotations

import enum
import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeAlias

from jaxtyping import Array, Bool, Float, Int, PyTree

from pwgf_jax.calculus import Functional
from pwgf_jax.measures import Field, Particles

__all__ = ["Evaluation", "Flow", "FlowState", "Recipe", "Reweighting", "Status", "StepInfo", "is_preset", "preset"]

_Given = ParamSpec("_Given")

Reweighting: TypeAlias = Callable[[Array, Functional, Particles, Any], Float[Array, " n"]]
"""(key, F, mu, step) -> new weights of the same mass, the points held fixed."""


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
        >>> from pwgf_jax.flows import gradient
        >>> at = gradient(jax.random.key(0), F, Particles.uniform(jnp.ones((4, 1))))
        >>> float(at.value), float(at.gradient_norm)
        (0.5, 1.0)
    """

    value: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    field: Field


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


class Recipe(NamedTuple):
    """A call of a named method: what is compiled of it, and the numbers that may change without compiling again.

    Args:
        make: the method.
        rest: its other arguments, by name.
        numbers: its floating-point arguments, by name; None where they are given later.

    Example:
        >>> from pwgf_jax.flows import wgf
        >>> wgf(0.1).recipe
        wgf(step_size=0.1)
    """

    make: Callable[..., Flow]
    rest: tuple[tuple[str, Any], ...]
    numbers: tuple[tuple[str, float], ...] | None

    def __call__(self, numbers: dict[str, Any]) -> Flow:
        """The method made of these numbers, which may be traced."""
        return inspect.unwrap(self.make)(**dict(self.rest), **numbers)

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in (*(self.numbers or ()), *self.rest))
        return f"{self.make.__name__}({given})"


class _Itself(NamedTuple):
    flow: Flow

    def __call__(self, numbers: dict[str, Any]) -> Flow:
        del numbers
        return self.flow


def preset(make: Callable[_Given, Flow]) -> Callable[_Given, Flow]:
    """Mark a constructor of flows: runs of what it makes that differ in numbers alone share one compiled program.

    A number is an argument given as a float; all others have to be hashable for that, and are compiled in.

    Args:
        make: arguments -> :class:`Flow`; it takes traced scalars where it takes floats.

    Returns:
        The constructor.

    Example:
        >>> from pwgf_jax.flows import flow, gradient
        >>> @preset
        ... def half_speed(step_size):
        ...     return flow(gradient, step_size / 2)
        >>> half_speed(0.1).parted()[0] == half_speed(0.2).parted()[0]
        True
    """

    @functools.wraps(make)
    def constructed(*args: _Given.args, **kwargs: _Given.kwargs) -> Flow:
        made = make(*args, **kwargs)
        given = inspect.signature(make).bind(*args, **kwargs).arguments
        numbers = tuple((name, value) for name, value in given.items() if isinstance(value, float))
        rest = tuple((name, value) for name, value in given.items() if not isinstance(value, float))
        try:
            hash(rest)
        except TypeError:
            return made
        return made._replace(recipe=Recipe(constructed, rest, numbers))

    _PRESETS.add(constructed)
    return constructed


_PRESETS: weakref.WeakSet[Callable[..., Flow]] = weakref.WeakSet()


def is_preset(thing: Any) -> bool:
    """Whether something is a constructor of flows that :func:`preset` has marked: a method with a name.

    Example:
        >>> from pwgf_jax import flows
        >>> is_preset(flows.wgf), is_preset(flows.flow)
        (True, False)
    """
    return callable(thing) and thing in _PRESETS


class Flow(NamedTuple):
    """A method, as two pure functions.

    Args:
        init: (key, F, mu) -> state.
        step: (key, F, state) -> (state, info); the identity once the status is final.
        recipe: how a :func:`preset` makes it of its numbers, None of a flow composed by hand.
        reweigh: makes the same method with a step on the weights, see :func:`pwgf_jax.flows.reweighted`; None of a
            flow that :func:`pwgf_jax.flow` has not made.

    Example:
        >>> from pwgf_jax.flows import wgf
        >>> wgf(0.1)._fields
        ('init', 'step', 'recipe', 'reweigh')
    """

    init: Callable[[Array, Functional, Particles], FlowState]
    step: Callable[[Array, Functional, FlowState], tuple[FlowState, StepInfo]]
    recipe: Recipe | None = None
    reweigh: Callable[[Reweighting], Flow] | None = None

    def __repr__(self) -> str:
        return "Flow(init, step)" if self.recipe is None else repr(self.recipe)

    def parted(self) -> tuple[Callable[[dict[str, Any]], Flow], dict[str, float]]:
        """Something hashable that makes the flow of its numbers, and the numbers: what is compiled, and its arguments.

        Flows of one preset that differ in their numbers alone have the first in common.
        """
        if self.recipe is None:
            return _Itself(self), {}
        return self.recipe._replace(numbers=None), dict(self.recipe.numbers or ())
