"""Methods that others are compared with, compositions of what there is: from function values, and Adam with a dimer."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from pwgf_jax import arguments, trees
from pwgf_jax.experiments.batches import Setting
from pwgf_jax.experiments.descents import Descent, Spent
from pwgf_jax.transforms import coordinate_gradient, dimer, gaussian_gradient
from pwgf_jax.transforms.branches import any_in_batch

__all__ = ["BASELINES", "adamw", "random_search", "zpsgd"]


def zpsgd(
    setting: Setting,
    *,
    samples: int | None = None,
    mu: float | None = None,
    learning_rate: float | None = None,
    radius: float | None = None,
) -> Descent:
    """Perturbed SGD on gradients from differences along Gaussian directions, d of them of length √(ε/ρd); rate 1/4ℓ.

    Example:
        >>> from pwgf_jax import problems
        >>> well = Setting.of(problems.double_well(4), smoothness=2.0, hessian_lipschitz=6.0, eps=1e-3, delta=0.1)
        >>> zpsgd(well).spent(10, None).values
        80

    References:
        Jin, Liu, Ge, Jordan, NeurIPS 2018, arXiv:1803.09357; differences on both sides are ours.
    """
    constants = setting.constants
    d, known = constants.dimension, constants.noisy_sgd(radius)
    directions = arguments.whole("zpsgd: samples", d if samples is None else samples)
    width = (constants.eps / constants.hessian_lipschitz / d) ** 0.5 if mu is None else mu
    known["learning_rate"] = 1 / (4 * constants.smoothness) if learning_rate is None else learning_rate

    def make(key: Array) -> optax.GradientTransformationExtraArgs:
        draw_key, noise_key = jax.random.split(key)

        def update(
            updates: PyTree, state: Any, params: PyTree = None, *, value_fn: Any = None, **extra: Any
        ) -> tuple[PyTree, Any]:
            del updates, extra
            state, draw = jax.random.split(state)
            return gaussian_gradient(draw, value_fn, params, width, directions), state

        estimate = optax.GradientTransformationExtraArgs(lambda params: draw_key, update)
        return optax.with_extra_args_support(optax.chain(estimate, optax.noisy_sgd(**known, key=noise_key)))

    return Descent(make, lambda steps, state: Spent(values=2 * directions * steps))


class SearchState(NamedTuple):
    """State of :func:`random_search`.

    Args:
        key: for the next direction.
        count: updates made.
        scale: σ₁, length of a random step.
    """

    key: Array
    count: Int[Array, ""]
    scale: Float[Array, ""]


def random_search(
    setting: Setting, *, every: int = 50, iterations: int = 20, scale: float | None = None, jump: float | None = None
) -> Descent:
    """The best of x and x ± σ₁s for a random s, and every so often of x and x ± σ₂s for s by power iterations: RSPI.

    The scale σ₁ is half as large again after a success, up to 10δ/ρ, and ∜1.5 times smaller after a failure, which is
    Rechenberg's rule; the paper's falls by a schedule. A tenth of δ/ρ to begin with, and σ₂ = δ/ρ, if not given. An
    iteration is s − (ĝ(x + rs) − ĝ(x − rs))/2rℓ of central differences, 4d values.

    Example:
        >>> from pwgf_jax import problems
        >>> well = Setting.of(problems.double_well(4), smoothness=2.0, hessian_lipschitz=6.0, eps=1e-3, delta=0.1)
        >>> random_search(well).spent(100, None).values
        840

    References:
        Lucchi, Orvieto, Solomou, NeurIPS 2021, arXiv:2110.13265.
    """
    constants = setting.constants
    d, every = constants.dimension, arguments.whole("random_search: every", every)
    iterations = arguments.whole("random_search: iterations", iterations)
    first = constants.reach / 10 if scale is None else scale
    far, longest = constants.reach if jump is None else jump, 10 * constants.reach

    def update(
        updates: PyTree, state: Any, params: PyTree = None, *, value: Any = None, value_fn: Any = None, **extra: Any
    ) -> tuple[PyTree, SearchState]:
        del updates, extra
        x, unravel = trees.ravel(params)
        key, draw = jax.random.split(state.key)
        s = trees.unit(jax.random.normal(draw, x.shape, x.dtype))[0]
        width = trees.precision(params) ** (1 / 3)
        gradient = lambda y: coordinate_gradient(lambda z: value_fn(unravel(z)), y, width)  # noqa: E731
        reach = jnp.asarray(1e-3, x.dtype)

        def iterate(_: Any, s: Array) -> Array:
            change = (gradient(x + reach * s) - gradient(x - reach * s)) / (2 * reach)
            return trees.unit(s - change / jnp.asarray(constants.smoothness, x.dtype))[0]

        turn = (state.count + 1) % every == 0
        searched = jax.lax.cond(
            any_in_batch(turn), lambda s: jax.lax.fori_loop(0, iterations, iterate, s), lambda s: s, s
        )
        step = jnp.where(turn, far * searched, state.scale * s)
        moves = jnp.stack([jnp.zeros_like(x), step, -step])
        values = jnp.stack([jnp.asarray(value, x.dtype), *(value_fn(unravel(x + move)) for move in moves[1:])])
        best = jnp.argmin(values)
        changed = state.scale * jnp.where(best > 0, 1.5, 1.5**-0.25).astype(x.dtype)
        scale = jnp.where(turn, state.scale, jnp.minimum(changed, longest))
        return unravel(moves[best]), SearchState(key, state.count + 1, scale)

    def make(key: Array) -> optax.GradientTransformationExtraArgs:
        start = lambda params: SearchState(key, jnp.zeros((), jnp.int32), jnp.asarray(first, trees.dtype(params)))  # noqa: E731
        return optax.GradientTransformationExtraArgs(start, update)

    return Descent(make, lambda steps, state: Spent(values=2 * steps + steps // every * 4 * d * iterations))


def adamw(
    setting: Setting,
    *,
    learning_rate: float,
    decay: float = 0.0,
    coupled: bool = False,
    mode: Literal["repel", "translate", "as_published"] | None = None,
    strength: float = 2.0,
    every: int = 10,
) -> Descent:
    """Adam (β₂ = 0.99, gradients clipped to length one) with weight decay, behind a :func:`.dimer` if it has a mode.

    Decoupled the decay is AdamW's; coupled it is of the gradient, as an L² penalty has it. The dimer's numbers follow
    from the constants, but for the published mode, which has the published ones.

    Example:
        >>> from pwgf_jax import problems
        >>> well = Setting.of(problems.double_well(4), smoothness=2.0, hessian_lipschitz=6.0, eps=1e-3, delta=0.1)
        >>> adamw(well, learning_rate=1e-3, mode="repel").spent(100, None).gradients
        110.0

    References:
        Hu, Cao, Liu, arXiv:2507.19968, and their code: its plain Adam has a coupled decay of 0.1, its dimers none.
    """
    numbers = setting.constants.dimer()
    if mode != "repel":
        numbers = {name: numbers[name] for name in ("separation", "rotation_rate")}
    if mode == "as_published":
        numbers = {"separation": 1e-3, "rotation_rate": 0.1}
    penalty, shrink = (decay, 0.0) if coupled else (0.0, decay)
    adam = optax.adamw(learning_rate, b2=0.99, weight_decay=shrink)

    def make(key: Array) -> optax.GradientTransformationExtraArgs:
        pushed = [] if mode is None else [dimer(mode=mode, strength=strength, every=every, **numbers, key=key)]
        chain = optax.chain(optax.clip_by_global_norm(1.0), optax.add_decayed_weights(penalty), adam)
        return optax.with_extra_args_support(optax.chain(*pushed, chain))

    return Descent(make, lambda steps, state: Spent(steps * (1 + (mode is not None) / every)))


BASELINES = {method.__name__: method for method in (zpsgd, random_search, adamw)}
"""By name, beside :data:`.DESCENTS`."""
