"""Noise ready for :func:`pwgf_jax.flow`, to jump by or to add in every step: a random field times a factor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from pwgf_jax.calculus import Functional
from pwgf_jax.flows.base import Perturbation, Scheduled, schedule
from pwgf_jax.measures import Field, Particles
from pwgf_jax.perturbation import hessian_energy, hessian_guided, isotropic, smooth_isotropic

__all__ = ["gaussian_noise", "hessian_noise", "isotropic_noise"]


def _scaled(noise: Callable[[Array, Functional, Particles], Field], factor: float) -> Perturbation:
    if not 0 <= factor < float("inf"):
        raise ValueError(f"eta_p={factor}; give a non-negative factor of the noise.")
    return lambda key, F, mu: jax.tree.map(lambda leaf: factor * leaf, noise(key, F, mu))


def hessian_noise(eta_p: float, sampler: Literal["direct", "lanczos"] = "direct") -> Perturbation:
    r"""The displacement :math:`\eta_p\,\xi`, ξ ~ GP(0, K_μ), see :func:`pwgf_jax.hessian_guided`.

    Args:
        eta_p: factor of the noise.
        sampler: ``"direct"`` or ``"lanczos"``.

    Returns:
        (key, F, mu) -> displacement field.

    Raises:
        ValueError: if the factor is negative or the sampler unknown.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> F = lambda mu: -0.5 * jnp.sum((mu.weights @ mu.points) ** 2)
        >>> hessian_noise(0.1)(jax.random.key(0), F, Particles.uniform(jnp.zeros((3, 2)))).shape
        (3, 2)
    """
    if sampler not in ("direct", "lanczos"):
        raise ValueError(f'sampler={sampler!r}; choose "direct" or "lanczos".')
    return _scaled(lambda key, F, mu: hessian_guided(key, F, mu, sampler), eta_p)


def isotropic_noise(eta_p: float, scale: float | None = None, lengthscale: float | None = None) -> Perturbation:
    r"""The displacement η_p ξ with isotropic ξ, of the energy of Hessian-guided noise unless a scale is given.

    Args:
        eta_p: factor of the noise.
        scale: standard deviation of each coordinate; None takes scale² = tr H_μ²/d, from eight Hessian products.
        lengthscale: None draws every particle independently, a number one smooth field over that length.

    Returns:
        (key, F, mu) -> displacement field.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> F = lambda mu: -0.5 * jnp.sum((mu.weights @ mu.points) ** 2)
        >>> isotropic_noise(0.1)(jax.random.key(0), F, Particles.uniform(jnp.zeros((3, 2)))).shape
        (3, 2)
    """
    for name, number in (("scale", scale), ("lengthscale", lengthscale)):
        if number is not None and not number > 0:
            raise ValueError(f"isotropic noise: {name}={number}; give a positive number, or None.")

    def noise(key: Array, F: Functional, mu: Particles) -> Field:
        energy_key, field_key = jax.random.split(key)
        if scale is None:
            dimension = sum(leaf[0].size for leaf in jax.tree.leaves(mu.points))
            deviation = jnp.sqrt(hessian_energy(energy_key, F, mu) / dimension)
        else:
            deviation = jnp.asarray(scale)
        if lengthscale is None:
            return isotropic(field_key, mu, deviation)
        return smooth_isotropic(field_key, mu, deviation, lengthscale)

    return _scaled(noise, eta_p)


def gaussian_noise(level: float | optax.Schedule) -> Scheduled:
    r"""The displacement :math:`\beta_k u`, u ~ N(0, I) for every particle and step, for ``flow(..., noise=)``.

    Args:
        level: β, a number or a schedule of the step [units of the points]; no step size is applied to it.

    Returns:
        A :class:`pwgf_jax.flows.Scheduled` (key, F, mu) -> displacement field.

    Raises:
        ValueError: if the level is a negative number.
        TypeError: if it is neither a number nor a schedule.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> noise = gaussian_noise(0.1).at(jnp.int32(0))
        >>> noise(jax.random.key(0), None, Particles.uniform(jnp.zeros((3, 2)))).shape
        (3, 2)
    """
    at = schedule("gaussian_noise: level", level)
    return Scheduled(lambda step: lambda key, F, mu: isotropic(key, mu, at(step)))
