"""The named methods, each one line of composition."""

from __future__ import annotations

from typing import Literal

from pwgf_jax.flows.base import StepSize, flow, gradient
from pwgf_jax.flows.protocol import Flow, preset
from pwgf_jax.perturbation import Noise, hessian_noise, isotropic_noise
from pwgf_jax.transforms import certificate_trigger, gradient_trigger

__all__ = ["certified_pwgf", "isotropic_pwgf", "pwgf", "wgf"]


@preset
def wgf(step_size: StepSize) -> Flow:
    r"""Wasserstein gradient flow by explicit Euler steps, the papers' "static".

    :math:`x_i\leftarrow x_i-\eta\,\nabla_\mu F(\mu,x_i)`.

    Args:
        step_size: η, a schedule, or an optax transformation.

    Returns:
        A :class:`Flow`. Descends for η ≤ 1/L with L the Lipschitz constant of the gradient.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pwgf_jax import Particles, run
        >>> F = lambda mu: mu.weights @ jnp.sum(mu.points**2, axis=-1) / 2
        >>> float(run(wgf(0.5), F, Particles.uniform(jnp.ones((4, 1))), jax.random.key(0), steps=2).value)
        0.03125

    References:
        Yamamoto, Kim, Suzuki, arXiv:2509.16974, Sec. 2.
    """
    return flow(gradient, step_size)


@preset
def pwgf(
    step_size: StepSize,
    *,
    eps: float,
    eta_p: float,
    k_thres: int,
    f_thres: float,
    sampler: Literal["direct", "lanczos"] = "direct",
) -> Flow:
    r"""Perturbed Wasserstein gradient flow, the papers' discrete algorithm.

    Where :math:`\|\nabla_\mu F\|_{L^2(\mu)}\le\varepsilon` and the last jump is more than ``k_thres`` steps ago, every
    particle moves by :math:`\eta_p\,\xi(x_i)`, ξ ~ GP(0, K_μ). If ``k_thres`` steps later F has not fallen by more than
    ``f_thres`` below its value before the jump, the run stops and returns the measure before the jump.

    Args:
        step_size: η, a schedule, or an optax transformation.
        eps: ε, gradient norm that counts as stationary.
        eta_p: η_p, factor of the noise, whose energy is tr H_μ²: the displacement scales with the curvature.
        k_thres: length of the waiting window [steps].
        f_thres: decrease that a window has to exceed [units of F].
        sampler: ``"direct"`` (one Hessian product) or ``"lanczos"``; the same law.

    Returns:
        A :class:`Flow`.

    Raises:
        ValueError: if a threshold or the step size is out of range, or the sampler unknown.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pwgf_jax import Particles, run
        >>> def F(mu):  # minima on |mean| = 1 with F = -1/4; every centred measure is a saddle
        ...     mean_square = jnp.sum((mu.weights @ mu.points) ** 2)
        ...     return mean_square**2 / 4 - mean_square / 2
        >>> method = pwgf(0.1, eps=1e-3, eta_p=0.01, k_thres=200, f_thres=1e-4)
        >>> solution = run(method, F, Particles.uniform(jnp.zeros((8, 2))), jax.random.key(0), steps=1000)
        >>> round(float(solution.value), 4)
        -0.25

    References:
        Yamamoto, Kim, Suzuki, arXiv:2509.16974, Alg. 2.
    """
    trigger = gradient_trigger(eps=eps, k_thres=k_thres, f_thres=f_thres)
    return flow(gradient, step_size, hessian_noise(eta_p, sampler), trigger)


@preset
def certified_pwgf(
    step_size: StepSize,
    *,
    eps: float,
    delta: float,
    eta_p: float,
    k_thres: int,
    f_thres: float,
    depth: int = 32,
    perturbation: Noise | None = None,
) -> Flow:
    r"""PWGF with the direct saddle test: the smallest eigenvalue is looked at before a jump.

    From a certain saddle it jumps, at a certified (ε, δ)-second-order point it stops at once, and only where neither
    is certain it waits for a decrease as :func:`pwgf` does.

    Args:
        step_size: as in :func:`pwgf`.
        eps: as in :func:`pwgf`.
        delta: δ > 0, curvature that counts as negative.
        eta_p: without a perturbation a jump is η_p·abs(λ)·v, v the direction of least curvature λ: what
            Hessian-guided noise of the factor η_p has along v in standard deviation.
        k_thres: as in :func:`pwgf`.
        f_thres: as in :func:`pwgf`.
        depth: Lanczos steps per examination.
        perturbation: a noise to jump by, such as ``hessian_noise(eta_p)``; None jumps along v.

    Returns:
        A :class:`Flow`.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pwgf_jax import Particles, run
        >>> def F(mu):
        ...     mean_square = jnp.sum((mu.weights @ mu.points) ** 2)
        ...     return mean_square**2 / 4 - mean_square / 2
        >>> method = certified_pwgf(0.1, eps=1e-3, delta=0.1, eta_p=0.01, k_thres=200, f_thres=0.0, depth=8)
        >>> solution = run(method, F, Particles.uniform(jnp.zeros((8, 2))), jax.random.key(0), steps=1000)
        >>> round(float(solution.value), 4), solution.status.tolist()
        (-0.25, 4)

    References:
        The algorithm of Yamamoto, Kim, Suzuki, arXiv:2509.16974, with the test that its indirect one stands for.
    """
    trigger = certificate_trigger(eps=eps, delta=delta, k_thres=k_thres, f_thres=f_thres, eta_p=eta_p, depth=depth)
    return flow(gradient, step_size, perturbation, trigger)


@preset
def isotropic_pwgf(
    step_size: StepSize,
    *,
    eps: float,
    eta_p: float,
    k_thres: int,
    f_thres: float,
    scale: float | None = None,
    lengthscale: float | None = None,
) -> Flow:
    r"""The same algorithm with isotropic noise in the place of the Hessian-guided one.

    Args:
        step_size: as in :func:`pwgf`.
        eps: as in :func:`pwgf`.
        eta_p: factor of the noise.
        k_thres: as in :func:`pwgf`.
        f_thres: as in :func:`pwgf`.
        scale: standard deviation of each coordinate before the factor η_p. None matches the energy of
            Hessian-guided noise at every jump, scale² = tr H_μ²/d, estimated from eight Hessian products.
        lengthscale: None draws every particle's noise independently; a number draws one smooth field that
            varies over that length [units of the points].

    Returns:
        A :class:`Flow`.

    Raises:
        ValueError: if a threshold, the step size, the scale or the lengthscale is out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pwgf_jax import Particles, run
        >>> F = lambda mu: mu.weights @ jnp.sum(jnp.cos(mu.points), axis=-1)
        >>> method = isotropic_pwgf(0.1, eps=1e-3, eta_p=0.01, k_thres=200, f_thres=1e-4, scale=1.0)
        >>> solution = run(method, F, Particles.uniform(jnp.zeros((8, 1))), jax.random.key(0), steps=1000)
        >>> round(float(solution.value), 4)
        -1.0

    References:
        The "isotropic" arm of Yamamoto, Kim, Suzuki, arXiv:2509.16974, Sec. 6, after Kim, Suzuki, arXiv:2402.01258;
        i.i.d. or smooth is not settled there, so both are here.
    """
    trigger = gradient_trigger(eps=eps, k_thres=k_thres, f_thres=f_thres)
    return flow(gradient, step_size, isotropic_noise(eta_p, scale, lengthscale), trigger)
