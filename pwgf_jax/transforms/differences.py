"""Derivatives from differences: gradients from values, and the lengths at which gradients are differenced."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from pwgf_jax import arguments, trees
from pwgf_jax.arguments import check_key

__all__ = ["coordinate_gradient", "differencing_radius", "gaussian_gradient"]


def differencing_radius(
    params: PyTree, delta: float | Array, hessian_lipschitz: float | Array | None, most: float
) -> Float[Array, ""]:
    r"""Where gradients are differenced: :math:`\min\{r,\delta/10\rho\}`, but no less than 16 roundings of x.

    :math:`v^\top Hv` by a difference over that length is wrong by δ/20 at most.

    Args:
        params: x.
        delta: δ, the curvature that matters.
        hessian_lipschitz: ρ, or None if it is not known.
        most: r.

    Returns:
        A length [units of the parameters].

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(differencing_radius(jnp.zeros(2), 0.5, 100.0, 1e-3)), 6)
        0.0005
    """
    kind = trees.dtype(params)
    radius = jnp.asarray(most, kind)
    if hessian_lipschitz is not None:
        radius = jnp.minimum(radius, jnp.asarray(delta, kind) / (10 * jnp.asarray(hessian_lipschitz, kind)))
    return jnp.maximum(radius, 16 * trees.precision(params) * trees.norm(params))


def _slope(
    value_fn: Callable[[PyTree], Array], x: Array, unravel: Callable[[Array], PyTree], mu: float | Array
) -> Callable[[Array], Array]:
    """The slope of f along z, as a function of z, by a central difference over μz."""
    width = jnp.asarray(mu, x.dtype)

    def along(z: Array) -> Array:
        ahead, behind = (value_fn(unravel(x + step * z)).astype(x.dtype) for step in (width, -width))
        return (ahead - behind) / (2 * width)

    return along


def coordinate_gradient(value_fn: Callable[[PyTree], Array], params: PyTree, mu: float | Array) -> PyTree:
    r"""The gradient by central differences along the coordinates, 2d function queries.

    :math:`\hat g=\sum_i\frac{f(x+\mu e_i)-f(x-\mu e_i)}{2\mu}e_i`, with
    :math:`|\hat g-\nabla f|\le\rho\sqrt d\,\mu^2/6` for a ρ-Lipschitz Hessian.

    Args:
        value_fn: f.
        params: x, a pytree of d numbers.
        mu: μ > 0; in floating point the best is near eps^(1/3) of the scale of x.

    Returns:
        An estimate structured like ``params``.

    Raises:
        ValueError: if μ is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> coordinate_gradient(lambda x: x[0] ** 2 + x[1], jnp.array([1.0, 0.0]), 0.25).tolist()
        [2.0, 1.0]

    References:
        Zhang, Xiong, Gu, arXiv:2210.01496, Sec. 3.
    """
    arguments.positive("coordinate_gradient: mu", mu)
    flat, unravel = trees.ravel(params)
    slope = _slope(value_fn, flat, unravel, mu)
    return unravel(jax.lax.map(lambda i: slope(jnp.zeros_like(flat).at[i].set(1)), jnp.arange(flat.size)))


def gaussian_gradient(
    key: Array, value_fn: Callable[[PyTree], Array], params: PyTree, mu: float | Array, samples: int
) -> PyTree:
    r"""The gradient by differences along random directions, :math:`\frac1s\sum\frac{f(x+\mu z)-f(x-\mu z)}{2\mu}z`.

    Unbiased up to O(μ²); its variance is about (d + 1)/s times \|∇f\|². Costs 2s function queries.

    Args:
        key: typed random key.
        value_fn: f.
        params: x.
        mu: μ > 0.
        samples: s ≥ 1 directions z ~ N(0, I).

    Returns:
        An estimate structured like ``params``.

    Raises:
        ValueError: if μ is not positive or the number of samples no whole number.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> gaussian_gradient(jax.random.key(0), jnp.sum, jnp.ones(2), 0.1, 4).shape
        (2,)

    References:
        Ren, Tang, Li, ICML 2023 (two-point estimates); Nesterov, Spokoiny, Found. Comput. Math. 17 (2017).
    """
    check_key(key, "gaussian_gradient")
    arguments.positive("gaussian_gradient: mu", mu)
    samples = arguments.whole("gaussian_gradient: samples", samples)
    flat, unravel = trees.ravel(params)
    slope = _slope(value_fn, flat, unravel, mu)

    def one(key: Array) -> Array:
        z = jax.random.normal(key, flat.shape, flat.dtype)
        return slope(z) * z

    return unravel(jnp.mean(jax.lax.map(one, jax.random.split(key, samples)), axis=0))
