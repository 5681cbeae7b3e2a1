"""The named methods, each one line of composition."""

from __future__ import annotations

from typing import Literal

from pwgf_jax.flows.base import Flow, StepSize, flow, gradient
from pwgf_jax.flows.noise import hessian_noise, isotropic_noise
from pwgf_jax.transforms import certificate_trigger, gradient_trigger

__all__ = ["isotropic_pwgf", "pwgf", "wgf"]


def wgf(step_size: StepSize, *, batch_size: int | None = None) -> Flow:
    r"""Wasserstein gradient flow by explicit Euler steps, the papers' "static".

    :math:`x_i\leftarrow x_i-\eta\,\nabla_\mu F(\mu,x_i)`.

    Args:
        step_size: η, a schedule, or an optax transformation.
        batch_size: data points per evaluation, as in :func:`pwgf_jax.flow`; all of them if None.

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
    return flow(gradient, step_size, batch_size=batch_size)


def pwgf(
    step_size: StepSize,
    *,
    eps: float,
    eta_p: float,
    k_thres: int,
    f_thres: float,
    sampler: Literal["direct", "lanczos"] = "direct",
    trigger: Literal["gradient", "certificate"] = "gradient",
    delta: float | None = None,
    depth: int = 32,
    along: Literal["noise", "direction"] = "noise",
    batch_size: int | None = None,
) -> Flow:
    r"""Perturbed Wasserstein gradient flow, the papers' discrete algorithm.

    Where :math:`\|\nabla_\mu F\|_{L^2(\mu)}\le\varepsilon` and the last jump is more than ``k_thres`` steps ago, every
    particle moves by :math:`\eta_p\,\xi(x_i)`, ξ ~ GP(0, K_μ). If ``k_thres`` steps later F has not fallen by more than
    ``f_thres`` below its value before the jump, the run stops and returns the measure before the jump.

    With ``trigger="certificate"`` the smallest eigenvalue is looked at before a jump: from a certain saddle it jumps,
    at a certified (ε, δ)-second-order point it stops at once, and only where neither is certain it does as above.

    Args:
        step_size: η, a schedule, or an optax transformation.
        eps: ε, gradient norm that counts as stationary.
        eta_p: η_p, factor of the noise, whose energy is tr H_μ²: the displacement scales with the curvature.
        k_thres: length of the waiting window [steps].
        f_thres: decrease that a window has to exceed [units of F].
        sampler: ``"direct"`` (one Hessian product) or ``"lanczos"``; the same law.
        trigger: ``"gradient"``, the papers' indirect test, or ``"certificate"``.
        delta: δ, curvature that counts as negative; needed by ``"certificate"``.
        depth: Lanczos steps per examination of ``"certificate"``.
        along: what a certified jump moves along: the ``"noise"``, or the ``"direction"`` of least curvature, by the
            standard deviation that the noise has along it.
        batch_size: data points per evaluation, as in :func:`pwgf_jax.flow`; all of them if None.

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
    noise = hessian_noise(eta_p, sampler)
    if trigger == "gradient":
        if delta is not None or along != "noise":
            raise ValueError('pwgf: delta and along belong to trigger="certificate"; leave them out, or ask for it.')
        indirect = gradient_trigger(eps=eps, k_thres=k_thres, f_thres=f_thres)
        return flow(gradient, step_size, noise, indirect, batch_size=batch_size)
    if trigger != "certificate" or along not in ("noise", "direction"):
        raise ValueError(
            f'pwgf: trigger={trigger!r}, along={along!r}; choose "gradient" or "certificate", "noise" or "direction".'
        )
    if delta is None:
        raise ValueError('pwgf: trigger="certificate" needs delta, the curvature that counts as negative.')
    examined = certificate_trigger(eps=eps, delta=delta, k_thres=k_thres, f_thres=f_thres, eta_p=eta_p, depth=depth)
    return flow(gradient, step_size, noise if along == "noise" else None, examined, batch_size=batch_size)


def isotropic_pwgf(
    step_size: StepSize,
    *,
    eps: float,
    eta_p: float,
    k_thres: int,
    f_thres: float,
    scale: float | None = None,
    lengthscale: float | None = None,
    batch_size: int | None = None,
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
        batch_size: data points per evaluation, as in :func:`pwgf_jax.flow`; all of them if None.

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
    return flow(gradient, step_size, isotropic_noise(eta_p, scale, lengthscale), trigger, batch_size=batch_size)
