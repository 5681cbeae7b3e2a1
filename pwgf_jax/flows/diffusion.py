"""Langevin dynamics: the gradient flow with Gaussian noise added to the particles in every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array

from pwgf_jax import arguments
from pwgf_jax.flows.base import StepSize, flow, gradient
from pwgf_jax.flows.protocol import Flow, preset
from pwgf_jax.perturbation import gaussian_noise

__all__ = ["langevin"]


@preset
def langevin(
    step_size: StepSize,
    *,
    temperature: float | optax.Schedule | None = None,
    noise_level: float | optax.Schedule | None = None,
) -> Flow:
    r"""Langevin dynamics of a measure, :math:`x_i\leftarrow x_i-\eta\,\nabla_\mu F(\mu,x_i)+\sigma_ku_i`, u ~ N(0, I).

    * ``temperature`` τ: :math:`\sigma=\sqrt{2\eta\tau}`, mean-field Langevin, which descends F + τ∫ρ log ρ. A confining
      potential is a part of F: ``lambda mu: G(mu) + confinement(mu)`` with :func:`pwgf_jax.functionals.potential`.
    * ``noise_level`` β: :math:`\sigma=\beta`, whatever the step size: the "diffusion" that noise injection is
      compared with.

    Value and gradient norm are those of F, without τ∫ρ log ρ.

    Args:
        step_size: η, a number or a schedule; with a noise level also an optax transformation.
        temperature: τ, a number or a schedule of the step [units of F].
        noise_level: β, a number or a schedule of the step [units of the points].

    Returns:
        A :class:`pwgf_jax.Flow`.

    Raises:
        ValueError: if not exactly one of temperature and noise level is given, or a number is out of range.
        TypeError: if a temperature meets an optax transformation.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pwgf_jax import Particles, run
        >>> F = lambda mu: mu.weights @ jnp.sum(mu.points**2, axis=-1) / 2
        >>> start = Particles.uniform(jnp.zeros((4096, 1)))
        >>> solution = run(langevin(0.1, temperature=2.0), F, start, jax.random.key(0), steps=50)
        >>> round(float(solution.value))  # half the temperature for each dimension
        1

    References:
        Arbel, Korba, Salim, Gretton, arXiv:1906.04370, Sec. 4 (noise level); Nitanda, Wu, Suzuki, arXiv:2201.10469
        (mean-field Langevin).
    """
    if temperature is not None and noise_level is None:
        noise = gaussian_noise(_thermal(step_size, temperature))
    elif noise_level is not None and temperature is None:
        noise = gaussian_noise(noise_level)
    else:
        raise ValueError("langevin: give exactly one of temperature and noise_level.")
    return flow(gradient, step_size, noise=noise)


def _thermal(step_size: StepSize, temperature: float | Array | optax.Schedule) -> Callable[[Any], Array]:
    if isinstance(step_size, optax.GradientTransformation):
        raise TypeError(
            "langevin: an optax transformation has no single step size to scale thermal noise by; give step_size as "
            "a float or a schedule, or the noise as noise_level."
        )
    eta = arguments.schedule("langevin: step_size", step_size)
    tau = arguments.schedule("langevin: temperature", temperature)
    return lambda step: jnp.sqrt(2 * eta(step) * tau(step))
