"""What methods see of an objective: what they may know of it, and its gradient, whole, on batches, or changed later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from pwgf_jax import trees
from pwgf_jax.problems import Problem
from pwgf_jax.theory import Constants

__all__ = ["Setting"]


class Setting(NamedTuple):
    """An objective, and what its methods may know of it.

    Args:
        problem: the objective.
        constants: ℓ, ρ, ε and δ, and the numbers that follow from them.
        later: what a method that defers changes to; None if the objective offers nothing.

    Example:
        >>> from pwgf_jax import problems
        >>> setting = Setting.of(problems.double_well(3), smoothness=2.0, hessian_lipschitz=6.0, eps=1e-3, delta=0.1)
        >>> setting.constants.dimension, round(setting.constants.reach, 4)
        (3, 0.0167)
    """

    problem: Problem
    constants: Constants
    later: Problem | None = None

    @classmethod
    def of(cls, problem: Problem, later: Problem | None = None, **known: float) -> Setting:
        """With the dimension and the number of terms that the problem has."""
        shapes = jax.eval_shape(problem.init, jax.random.key(0))
        return cls(problem, Constants(**known, dimension=trees.size(shapes), size=problem.size or 1), later)

    def components(self, params: Any, indices: Array) -> Array:
        """The terms of these indices."""
        if self.problem.components is None:
            return jnp.full(indices.shape, self.problem.value(params))
        return self.problem.components(params, indices)

    def share(self, batch: int | None) -> float:
        """What a gradient on a batch costs, of one of the whole."""
        return 1.0 if batch is None else batch / self.constants.size

    def seen(self, batch: int | None, defer: int | None) -> Callable[..., Any]:
        """((key, step), value_fn, grad_fn) -> the gradient that this step sees, and the next key and step.

        Of a random batch of terms if there is a batch size, and of what comes later from the step ``defer`` on.
        """
        size = self.constants.size
        later: Any = self.later
        if batch is not None and not 1 <= batch <= size:
            raise ValueError(f"batch = {batch}; the objective has {size} terms, give 1 to {size}.")
        if defer is not None and later is None:
            raise ValueError(f"defer = {defer}; this objective has nothing to change to later, leave it out.")
        if defer is not None and defer < 0:
            raise ValueError(f"defer = {defer}; give a step, at least 0.")

        def at(state: tuple[Array, Array], value_fn: Any, grad_fn: Any) -> tuple[Callable[[PyTree], PyTree], Any]:
            (key, draw), step = jax.random.split(state[0]), state[1]
            indices = None if batch is None else jax.random.randint(draw, (batch,), 0, size)
            now = jax.grad(value_fn) if indices is None else lambda x: grad_fn(x, indices)
            if defer is None:
                return now, (key, step + 1)
            then = jax.grad(later.value if indices is None else lambda x: jnp.mean(later.components(x, indices)))
            changed = step >= defer
            return lambda x: jax.lax.cond(changed, then, now, x), (key, step + 1)

        return at

    def batches(
        self, batch: int | None, defer: int | None = None
    ) -> Callable[[Array], optax.GradientTransformationExtraArgs]:
        """With a key, put the gradient that a step sees in the place of the whole; nothing where they are the same."""
        at = self.seen(batch, defer)
        if batch is None and defer is None:
            return lambda key: optax.with_extra_args_support(optax.identity())

        def update(
            updates: PyTree,
            state: Any,
            params: PyTree = None,
            *,
            value_fn: Any = None,
            grad_fn: Any = None,
            **extra_args: Any,
        ) -> tuple[PyTree, Any]:
            del updates, extra_args
            gradient, state = at(state, value_fn, grad_fn)
            return gradient(params), state

        start = lambda key: (key, jnp.zeros((), jnp.int32))  # noqa: E731
        return lambda key: optax.GradientTransformationExtraArgs(lambda params: start(key), update)
