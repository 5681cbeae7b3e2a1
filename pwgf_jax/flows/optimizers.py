"""optax methods that draw random numbers, as flows: every run makes its own, of a key of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, PyTree

from pwgf_jax.calculus import Functional
from pwgf_jax.flows.base import Direction, flow, gradient
from pwgf_jax.flows.protocol import Flow, FlowState, Reweighting, StepInfo
from pwgf_jax.measures import Particles

__all__ = ["Seeded", "descent", "seeded"]


class Seeded(NamedTuple):
    """The optimizer's state in a flow that is :func:`seeded`.

    Args:
        key: what the optimizer was made with.
        state: its optax state.

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


def seeded(make: Callable[[Array], optax.GradientTransformation], direction: Direction = gradient) -> Flow:
    """A flow whose optimizer each run makes of a key of its own, so that the seeds of a sweep draw independent noise.

    Args:
        make: key -> optax transformation.
        direction: as in :func:`pwgf_jax.flow`.

    Returns:
        A :class:`pwgf_jax.Flow`.

    Raises:
        TypeError: if ``make`` is no function of a key that returns an optax transformation.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pwgf_jax import Particles, sweep
        >>> from pwgf_jax.transforms import cubic_newton
        >>> def F(mu):
        ...     square = jnp.sum((mu.weights @ mu.points) ** 2)
        ...     return square**2 / 4 - square / 2
        >>> method = seeded(lambda key: cubic_newton(6.0, key=key))
        >>> saddle = lambda key: (F, Particles.uniform(jnp.zeros((3, 2))))
        >>> solution = sweep(method, saddle, jax.random.split(jax.random.key(0), 2), steps=30)
        >>> [round(float(value), 3) for value in solution.value]
        [-0.25, -0.25]
    """
    return _seeded("seeded", make, lambda made: made, direction)


def descent(make: Callable[[Array], optax.GradientTransformation], **extra_args: Any) -> Flow:
    r"""An optax method on a function f of finitely many parameters: the flow of a Dirac under :math:`\int f\,d\mu`.

    The measure has one particle, the parameters; the functional is ``functionals.potential(f)``. The optimizer is
    :func:`seeded` and sees the parameters themselves. The integral Hessian of a Dirac's potential energy is zero and
    the full one is ∇²f, which is what certificates then speak of.

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

    def of_one(made: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
        inner = optax.with_extra_args_support(made)

        def init(params: PyTree) -> Any:
            count = jax.tree.leaves(params)[0].shape[0]
            if count != 1:
                raise ValueError(f"descent: the start has {count} particles; give one, Particles.uniform(x[None]).")
            return inner.init(_first(params))

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

        return optax.GradientTransformationExtraArgs(init, update)

    return _seeded("descent", make, of_one, gradient)


def _seeded(
    caller: str, make: Any, seen: Callable[..., Any], direction: Direction, weights: Reweighting | None = None
) -> Flow:
    if not callable(make):
        raise TypeError(
            f"{caller}: make is a {type(make).__name__}; give a function of a key, such as lambda key: optax.sgd(0.1)."
        )

    def method(key: Array) -> Flow:
        made = make(key)
        if not isinstance(made, optax.GradientTransformation):
            raise TypeError(f"{caller}: make(key) returns a {type(made).__name__}; return an optax transformation.")
        return flow(direction, seen(made), weights=weights)

    def init(key: Array, F: Functional, mu: Particles) -> FlowState:
        seed, key = jax.random.split(key)
        state = method(seed).init(key, F, mu)
        return state._replace(optimizer=Seeded(seed, state.optimizer))

    def step(key: Array, F: Functional, state: FlowState) -> tuple[FlowState, StepInfo]:
        seed, inner = state.optimizer
        after, info = method(seed).step(key, F, state._replace(optimizer=inner))
        return after._replace(optimizer=Seeded(seed, after.optimizer)), info

    return Flow(init, step, reweigh=lambda weights: _seeded(caller, make, seen, direction, weights))


def _first(points: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[0], points)


def _alone(point: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[None], point)
