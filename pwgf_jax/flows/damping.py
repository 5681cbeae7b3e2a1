"""Dampings of φ(H)∇F: numbers, functions of the gradient norm, and the rule of Levenberg and Marquardt."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array

__all__ = ["Damping", "LevenbergMarquardt", "levenberg_marquardt", "rule"]


class LevenbergMarquardt(NamedTuple):
    """A damping λ that follows the gradient norm, see :func:`levenberg_marquardt`.

    Args:
        factor: λ per gradient norm [1 / length].
        floor: least λ [units of F per length²].

    Example:
        >>> levenberg_marquardt(2.0)
        LevenbergMarquardt(factor=2.0, floor=0.0)
    """

    factor: float
    floor: float

    def damping(self, gradient_norm: Array) -> Array:
        """λ, for (H + λ)⁻¹ [curvature]."""
        return jnp.maximum(self.factor * gradient_norm, self.floor)

    def beta(self, gradient_norm: Array) -> Array:
        """β = λ², for (H² + β)^(-1/2) [curvature squared]."""
        return self.damping(gradient_norm) ** 2


Damping: TypeAlias = float | Array | LevenbergMarquardt | Callable[[Array], Array]
"""β or λ: a positive number, a function of the gradient norm in the units asked for, or a rule that knows both."""


def levenberg_marquardt(factor: float, floor: float = 0.0) -> LevenbergMarquardt:
    r"""The damping rule :math:`\lambda=\max(\mathrm{factor}\cdot\|\nabla_\mu F\|,\mathrm{floor})`.

    Where a β is asked for, inside :math:`(H^2+\beta)^{-1/2}`, it is λ². Steps are short far from stationarity, where
    the quadratic model is not to be trusted, and tend to Newton's as the gradient vanishes.

    Args:
        factor: λ per gradient norm [1 / length].
        floor: least λ [units of F per length²].

    Returns:
        A rule for ``beta`` and ``damping`` of the methods here.

    Raises:
        ValueError: if the factor is not positive or the floor negative.

    Example:
        >>> import jax.numpy as jnp
        >>> rule = levenberg_marquardt(6.0)
        >>> float(rule.damping(jnp.float32(1.0))), float(rule.beta(jnp.float32(1.0)))
        (6.0, 36.0)

    References:
        Fan and Yuan, Computing 74 (2005): damping by a power of the gradient norm keeps fast local convergence.
    """
    if not 0 < factor < float("inf") or not 0 <= floor < float("inf"):
        raise ValueError(f"levenberg_marquardt: factor={factor}, floor={floor}; give factor > 0 and floor >= 0.")
    return LevenbergMarquardt(factor, floor)


def rule(name: str, value: Damping, form: str) -> Callable[[Array], Array]:
    """A damping as a function of the gradient norm, never zero; ``form`` is "beta" or "damping".

    Example:
        >>> import jax.numpy as jnp
        >>> float(rule("beta", levenberg_marquardt(2.0), "beta")(jnp.float32(0.5)))
        1.0
    """
    if isinstance(value, LevenbergMarquardt):
        return rule(name, value.beta if form == "beta" else value.damping, form)
    if callable(value):
        # Zero is infinite on the null space, where a gradient of zero has nothing to be multiplied with.
        return lambda gradient_norm: jnp.maximum(value(gradient_norm), jnp.finfo(gradient_norm.dtype).tiny)
    if not isinstance(value, Tracer) and not 0 < value < float("inf"):
        raise ValueError(f"{name}={value}; give a positive number, or a function of the gradient norm.")
    return lambda gradient_norm: jnp.full_like(gradient_norm, value)
