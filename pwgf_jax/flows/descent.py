"""Optimisation of one point, as a flow of its Dirac measure: optax methods run, swept and certified like the flows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, PyTree

from pwgf_jax.calculus import Functional
from pwgf_jax.flows.base import Flow, FlowState, StepInfo, flow, gradient
from pwgf_jax.measures import Particles

__all__ = ["Seeded", "descent"]


class Seeded(NamedTuple):
    """The optimizer's state in a :func:`descent`.

    Args:
        key: what the optimizer was made with.
        state: its optax state, of one point.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from pwgf_jax import Particles, functionals
        >>> F, start = functionals.potential(jnp.sum), Particles.uniform(jnp.ones((1, 2)))
        >>> state = descent(lambda key: optax.adam(0.1)).init(jax.random.key(0), F, start)
        >>> optax.tree.get(state.optimizer.state, "mu").shape
        (2,)
    """

    key: Array
    state: PyTree


def descent(make: Callable[[Array], optax.GradientTransformation], **extra_args: Any) -> Flow:
    r"""An optax method on a function f of finitely many parameters: the flow of a Dirac under :math:`\int f\,d\mu`.

    The measure has one particle, the parameters; the functional is ``functionals.potential(f)``. Each run makes its
    optimizer with a key of its own, so that the seeds of a sweep draw independent noise. A run ends when its optimizer
    says ``stopped``, as those of :mod:`pwgf_jax.transforms` that look for saddles do: with ``Status.certified`` if it
    says ``certified`` too, else with ``no_decrease``. ``perturbed`` is what the optimizer calls so.
    The integral Hessian of a Dirac's potential energy is zero and the full one is ∇²f, which is what certificates then
    speak of.

    Args:
        make: key -> optax transformation. It is given ``value``, ``grad`` and ``value_fn`` of f itself.
        **extra_args: what else its ``update`` needs, such as ``grad_fn`` or ``components`` of a finite sum.

    Returns:
        A :class:`pwgf_jax.Flow`.

    Raises:
        TypeError: if ``make`` is no function of a key that returns an optax transformation.
        ValueError: where it starts, if the measure has more than one particle.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pwgf_jax import Particles, functionals, problems, sweep, transforms
        >>> well = problems.double_well(2)
        >>> def problem(key):
        ...     return functionals.potential(well.value), Particles.uniform(jnp.zeros((1, 2)))  # its saddle
        >>> def method(key):
        ...     return transforms.pgd(0.3, radius=0.01, eps=1e-2, k_thres=50, f_thres=1e-3, key=key)
        >>> solution = sweep(descent(method), problem, jax.random.split(jax.random.key(0), 4), steps=300)
        >>> [round(float(value), 3) for value in solution.value]
        [-0.25, -0.25, -0.25, -0.25]
    """
    if not callable(make):
        raise TypeError(
            f"descent: make is a {type(make).__name__}; give a function of a key, such as lambda key: optax.sgd(0.1)."
        )

    def optimizer(key: Array) -> optax.GradientTransformationExtraArgs:
        made = make(key)
        if not isinstance(made, optax.GradientTransformation):
            raise TypeError(f"descent: make(key) returns a {type(made).__name__}; return an optax transformation.")
        inner = optax.with_extra_args_support(made)

        def update(
            updates: PyTree,
            state: Any,
            params: PyTree = None,
            *,
            grad: PyTree = None,
            value_fn: Any = None,
            **given: Any,
        ) -> tuple[PyTree, Any]:
            given |= {"grad": _first(grad), "value_fn": lambda x: value_fn(_alone(x))}
            updates, state = inner.update(_first(updates), state, _first(params), **given, **extra_args)
            return _alone(updates), state

        return optax.GradientTransformationExtraArgs(lambda params: inner.init(_first(params)), update)

    def init(key: Array, F: Functional, mu: Particles) -> FlowState:
        if mu.size != 1:
            raise ValueError(f"descent: the start has {mu.size} particles; give one, Particles.uniform(x[None]).")
        seed, key = jax.random.split(key)
        state = flow(gradient, optimizer(seed)).init(key, F, mu)
        return state._replace(optimizer=Seeded(seed, state.optimizer))

    def step(key: Array, F: Functional, state: FlowState) -> tuple[FlowState, StepInfo]:
        seed, inner = state.optimizer
        before = state._replace(optimizer=inner)
        after, info = flow(gradient, optimizer(seed)).step(key, F, before)
        return after._replace(optimizer=Seeded(seed, after.optimizer)), info

    return Flow(init, step)


def _first(points: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[0], points)


def _alone(point: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[None], point)
