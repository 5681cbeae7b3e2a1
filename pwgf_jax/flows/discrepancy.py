"""Descent of the de-regularised MMD (DrMMD), to the target that an MMD is about."""

from __future__ import annotations

import operator
from functools import reduce
from typing import Any

from jaxtyping import Array

from pwgf_jax.calculus import Functional, value_and_wasserstein_gradient, wasserstein_gradient
from pwgf_jax.flows.base import Direction, StepSize, flow
from pwgf_jax.flows.damping import Damping, rule
from pwgf_jax.flows.protocol import Evaluation, Flow, preset
from pwgf_jax.forms import summands
from pwgf_jax.functionals import functional
from pwgf_jax.measures import Particles, norm

__all__ = ["drmmd_descent", "drmmd_direction"]


def drmmd_direction(damping: Damping) -> Direction:
    r"""The direction of :func:`drmmd_descent`, to compose flows with.

    Args:
        damping: as in :func:`drmmd_descent`.

    Returns:
        A direction for :func:`pwgf_jax.flow`.

    Raises:
        ValueError: if the damping is not positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pwgf_jax.functionals import mmd
        >>> from pwgf_jax.kernels import feature
        >>> F = mmd(jnp.ones((1, 1)), feature(lambda x: x))  # ½(mean − 1)²; DrMMD² in the metric (1 + λ)/(1 + λ)
        >>> mu = Particles.uniform(jnp.array([[3.0]]))
        >>> drmmd_direction(0.5)(jax.random.key(0), F, mu).field.round(3).tolist()
        [[2.0]]
    """
    damped = rule("drmmd_descent: damping", damping, "damping")

    def direction(key: Array, F: Functional, mu: Particles, step: Any = 0) -> Evaluation:
        del key, step
        value, gradient = value_and_wasserstein_gradient(F, mu)
        gradient_norm = norm(mu, gradient)
        return Evaluation(value, gradient_norm, wasserstein_gradient(_de_regularised(F, damped(gradient_norm)), mu))

    return direction


def _de_regularised(F: Functional, damping: Array) -> Functional:
    """A sum with every discrepancy in it de-regularised."""
    terms = summands(F)
    if not any(hasattr(part, "de_regularised") for _, part in terms):
        raise TypeError(f"drmmd_descent: {F!r} is no discrepancy; give mmd or student_teacher, or a sum with one.")
    changed: Any = [(c, part.de_regularised(damping) if hasattr(part, "de_regularised") else part) for c, part in terms]
    return reduce(operator.add, (functional(part) if c is None else c * functional(part) for c, part in changed))


@preset
def drmmd_descent(step_size: StepSize, *, damping: Damping) -> Flow:
    r"""Descent of the de-regularised MMD: :math:`x\leftarrow x-\eta\,\nabla_\mu\frac12\mathrm{DrMMD}_\lambda^2`.

    With f the witness of F = ½MMD² and Σ the covariance of the target, the velocity is
    :math:`-(1+\lambda)\nabla(\Sigma+\lambda)^{-1}f`: Sobolev descent, with the features of the target in place of the
    gradients of the features of the particles. Value and gradient norm are those of F. To record the DrMMD itself, or
    to certify with it, run :func:`pwgf_jax.wgf` on ``F.de_regularised(damping)``.

    A step factors a matrix of the target's M points, M³/3 operations, and holds it.

    Args:
        step_size: η, a schedule, or an optax transformation. The published step γλ on DrMMD², without our half, is
            η = 2γλ.
        damping: λ, a number or a function of the gradient norm.

    Returns:
        A :class:`pwgf_jax.Flow` of functionals :func:`pwgf_jax.functionals.mmd` and
        :func:`pwgf_jax.functionals.student_teacher`, in sums with others too.

    Raises:
        ValueError: if the damping is not positive.
        TypeError: where it starts, if the functional is no discrepancy.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pwgf_jax import run
        >>> from pwgf_jax.functionals import mmd
        >>> from pwgf_jax.kernels import gaussian
        >>> F = mmd(jnp.array([[-1.0], [1.0]]), gaussian(0.5))
        >>> start = Particles.uniform(jnp.array([[-0.3], [0.2]]))
        >>> x = run(drmmd_descent(0.02, damping=0.1), F, start, jax.random.key(0), steps=100).mu.points
        >>> [round(float(each), 2) for each in x[:, 0]]
        [-1.0, 1.0]

    References:
        Chen, Mustafi, Glaser, Korba, Gretton, Sriperumbudur, (De)-regularized maximum mean discrepancy gradient flow,
        JMLR 26 (2025), arXiv:2409.14980.
    """
    return flow(drmmd_direction(damping), step_size)
