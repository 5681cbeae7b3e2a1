r"""Noise injection: descend along the gradient of the clean measure, looked up at noisy points.

The level β may be a number, an optax schedule or a rule that adapts. Schedules are optax's own: to halve it every k
steps, ``optax.exponential_decay(beta, k, 0.5, staircase=True)``; to cut it off after n,
``optax.piecewise_constant_schedule(beta, {n: 0.0})``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from pwgf_jax import arguments
from pwgf_jax.calculus import Functional, value_and_wasserstein_gradient, wasserstein_gradient
from pwgf_jax.flows.base import Direction, StepSize, flow
from pwgf_jax.flows.protocol import Evaluation, Flow, preset
from pwgf_jax.measures import Field, Particles, norm, norm_squared, per_particle
from pwgf_jax.perturbation import isotropic

__all__ = ["AdaptiveLevel", "adaptive_level", "injected", "noise_injection"]

Velocity: TypeAlias = Callable[[Functional, Particles], Callable[[PyTree], PyTree]]
"""(F, mu) -> a velocity on the whole space, such as :func:`pwgf_jax.flows.spectral.spectral_velocity`."""


@dataclass(frozen=True)
class AdaptiveLevel:
    """The rule made by :func:`adaptive_level`.

    Args:
        largest: the first β tried.
        smoothness: λ, or None.
        trials: how often β is tried, each time half of the one before.

    Example:
        >>> adaptive_level(1.0).trials
        12
    """

    largest: float
    smoothness: float | None
    trials: int

    def choose(
        self, noisy: Callable[[Array], Field], mu: Particles, value: Array, gradient: Field
    ) -> tuple[Array, Field]:
        """The level and the gradient at its noisy points; zero and the clean gradient where every trial fails.

        Args:
            noisy: β -> the gradient at x + βu.
            mu: the measure.
            value: F(μ).
            gradient: ∇_μF on the particles.
        """
        start = jnp.asarray(self.largest, value.dtype)

        def holds(level: Array, field: Field) -> Array:
            if self.smoothness is None:
                change = jax.tree.map(jnp.subtract, field, gradient)
                return 4 * norm_squared(mu, change) <= norm_squared(mu, field)
            return 8 * (self.smoothness * level) ** 2 * value <= norm_squared(mu, field)

        def attempt(carry: tuple[Array, Array, Array, Field]) -> tuple[Array, Array, Array, Field]:
            trial, _, level, _ = carry
            field = noisy(level / 2)
            return trial + 1, holds(level / 2, field), level / 2, field

        trials, found = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        unfinished = lambda carry: ~carry[1] & (carry[0] < self.trials)  # noqa: E731
        _, found, level, field = jax.lax.while_loop(unfinished, attempt, (trials, found, 2 * start, gradient))
        field = jax.tree.map(lambda tried, clean: jnp.where(found, tried, clean), field, gradient)
        return jnp.where(found, level, 0), field


def adaptive_level(largest: float, *, smoothness: float | None = None, trials: int = 12) -> AdaptiveLevel:
    r"""The largest noise under which the next step still descends.

    With :math:`\mathcal D_\beta=\mathbb E\|\nabla_\mu F(x+\beta u)\|^2`, both sides estimated on the particles with the
    u of the step itself, the largest of β_max, β_max/2, β_max/4, … for which

    * λ given: :math:`8\lambda^2\beta^2F(\mu)\le\mathcal D_\beta`, the published inequality, for F = ½MMD² and others
      whose least value is 0. λ bounds how fast the gradient changes:
      :math:`\mathbb E|\nabla_\mu F(x+\beta u)-\nabla_\mu F(x)|^2\le2\lambda^2\beta^2F`; for a Gaussian kernel of
      lengthscale ℓ in d dimensions λ = √(3d)/ℓ² will do.
    * λ omitted: :math:`4\,\mathbb E|\nabla_\mu F(x+\beta u)-\nabla_\mu F(x)|^2\le\mathcal D_\beta`: the same, with that
      change measured instead of bounded. It needs no constant, asks nothing of F, and allows more noise.

    Either makes the inner product of the noisy gradient with the clean one at least :math:`\mathcal D_\beta/2`, so that
    ½MMD² falls at every step size below 1/(3L), L the Lipschitz constant of the kernel's gradient. Where no β will do
    there is no noise. At a stationary point none will: this rule keeps descent, it does not leave plateaus.

    Args:
        largest: β_max [units of the points].
        smoothness: λ [for ½MMD², units of the kernel per length²]; None measures.
        trials: how many levels are tried; each is one evaluation of the gradient.

    Returns:
        A level for :func:`noise_injection`.

    Raises:
        ValueError: if a number is not positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pwgf_jax import run
        >>> F = lambda mu: mu.weights @ jnp.sum(jnp.cos(mu.points), axis=-1) + 1
        >>> method = noise_injection(0.1, adaptive_level(10.0))
        >>> solution = run(method, F, Particles.uniform(jnp.ones((8, 1))), jax.random.key(0), steps=200)
        >>> round(float(solution.value), 3)
        0.0

    References:
        Arbel, Korba, Salim, Gretton, arXiv:1906.04370, Sec. 4, which asks for the inequality and leaves open how
        to keep it; the measured form is ours.
    """
    if not 0 < largest < float("inf"):
        raise ValueError(f"adaptive_level: largest={largest}; give a positive number.")
    if smoothness is not None and not 0 < smoothness < float("inf"):
        raise ValueError(f"adaptive_level: smoothness={smoothness}; give a positive number, or None to measure it.")
    if trials < 1:
        raise ValueError(f"adaptive_level: trials={trials}; give at least one.")
    return AdaptiveLevel(largest, smoothness, trials)


def injected(level: float | Array | optax.Schedule | AdaptiveLevel, velocity: Velocity | None = None) -> Direction:
    r"""The direction :math:`\nabla_\mu F(\mu,x+\beta_ku)`, u ~ N(0, I) for every particle and step.

    Only the point of evaluation is noisy; the measure in the gradient, the value and the gradient norm are those of the
    clean particles. To compose it with a perturbation: ``flow(injected(0.1), step_size, hessian_noise(0.1), trigger)``.

    Args:
        level: β [units of the points]: a number, a schedule of the step, or :func:`adaptive_level`.
        velocity: (F, mu) -> a velocity on the whole space, to inject noise into another direction than the gradient,
            such as ``lambda F, mu: spectral_velocity(F, mu, phi)``.

    Returns:
        A direction for :func:`pwgf_jax.flow`.

    Raises:
        ValueError: if the level is a negative number, or adaptive with a velocity.
        TypeError: if the level is of no known kind.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> F = lambda mu: 0.5 * jnp.sum((mu.weights @ mu.points) ** 2)  # the same gradient everywhere
        >>> mu = Particles.uniform(jnp.array([[1.0], [3.0]]))
        >>> injected(5.0)(jax.random.key(0), F, mu).field.tolist()
        [[2.0], [2.0]]

    References:
        Arbel, Korba, Salim, Gretton, arXiv:1906.04370, Sec. 4.
    """
    if isinstance(level, AdaptiveLevel):
        if velocity is not None:
            raise ValueError(
                "injected: an adaptive level speaks of the gradient; with a velocity give a number or a schedule."
            )
    else:
        at = arguments.schedule("noise injection: level", level)

    def direction(key: Array, F: Functional, mu: Particles, step: Any = 0) -> Evaluation:
        value, gradient = value_and_wasserstein_gradient(F, mu)
        moves = None if velocity is None else velocity(F, mu)

        def noisy(beta: Array) -> Field:
            at = mu.push_forward(isotropic(key, mu, beta)).points
            field = wasserstein_gradient(F, mu, at) if moves is None else jax.tree.map(jnp.negative, moves(at))
            # Fields are zero on particles of weight zero, which a query point cannot know.
            return jax.tree.map(lambda leaf: jnp.where(per_particle(mu.weights != 0, leaf), leaf, 0), field)

        if isinstance(level, AdaptiveLevel):
            field = level.choose(noisy, mu, value, gradient)[1]
        else:
            field = noisy(at(step).astype(mu.weights.dtype))
        return Evaluation(value, norm(mu, gradient), field)

    return direction


@preset
def noise_injection(step_size: StepSize, level: float | optax.Schedule | AdaptiveLevel) -> Flow:
    r"""Gradient flow with noise injection: :math:`x_i\leftarrow x_i-\gamma\,\nabla_\mu F(\mu,x_i+\beta_ku_i)`.

    The noise leaves the particles where they are, and lets them feel the gradient around them:
    particles stuck in a plateau of the first variation see what is beyond it. At β = 0 it is :func:`pwgf_jax.wgf`.

    Args:
        step_size: γ, a schedule, or an optax transformation.
        level: β [units of the points]: a number, a schedule of the step (see the module's opening lines), or
            :func:`adaptive_level`.

    Returns:
        A :class:`pwgf_jax.Flow`. Two gradients a step: the clean one gives value and norm.

    Raises:
        ValueError: if a number is out of range.
        TypeError: if the step size or the level is of no known kind.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from pwgf_jax import Particles, run
        >>> F = lambda mu: -mu.weights @ jnp.exp(-jnp.sum(mu.points**2, axis=-1) / 2)  # flat at a distance
        >>> cut_off = optax.piecewise_constant_schedule(3.0, {400: 0.0})
        >>> start, key = Particles.uniform(jnp.full((8, 1), 6.0)), jax.random.key(0)
        >>> [round(float(run(noise_injection(1.0, b), F, start, key, steps=500).value), 2) for b in (0.0, cut_off)]
        [-0.0, -1.0]

    References:
        Arbel, Korba, Salim, Gretton, arXiv:1906.04370, Sec. 4.
    """
    return flow(injected(level), step_size)
