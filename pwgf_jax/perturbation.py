r"""Random fields that push a measure off a saddle.

Hessian-guided noise is a draw of :math:`\xi\sim\mathrm{GP}(0,K_\mu)`, where K_μ is the kernel of :math:`H_\mu^2`: it is
large along directions of strong curvature, negative ones included, and one draw is a vector field defined
everywhere. Isotropic noises are the baselines; :func:`hessian_energy` gives the scale that matches their energies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from pwgf_jax.calculus import Functional, integral_product, wasserstein_hessian
from pwgf_jax.krylov import check_key, matrix_function
from pwgf_jax.measures import Field, Particles, norm_squared, per_particle

__all__ = [
    "hessian_energy",
    "hessian_guided",
    "hessian_guided_field",
    "isotropic",
    "smooth_isotropic",
    "white_noise",
]


def _normal(key: Array, points: PyTree) -> PyTree:
    """Standard normal numbers, structured like the points."""
    leaves, structure = jax.tree.flatten(points)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        structure, [jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
    )


def white_noise(key: Array, mu: Particles) -> Field:
    r"""White noise of :math:`L^2(\mu)`: :math:`W_i=w_i^{-1/2}z_i`, so that :math:`\langle W,u\rangle\sim N(0,\|u\|^2)`.

    Args:
        key: typed random key.
        mu: the measure.

    Returns:
        A field on ``mu``; zero on particles of weight zero.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> white_noise(jax.random.key(0), Particles.uniform(jnp.zeros((4, 2)))).shape
        (4, 2)
    """
    check_key(key, "white_noise")
    present = mu.weights > 0
    scale = jnp.where(present, 1 / jnp.sqrt(jnp.where(present, mu.weights, 1)), 0)
    return jax.tree.map(lambda z: per_particle(scale, z).astype(z.dtype) * z, _normal(key, mu.points))


def hessian_guided(
    key: Array, F: Functional, mu: Particles, method: Literal["direct", "lanczos"] = "direct", *, depth: int = 32
) -> Field:
    r"""One draw of the Hessian-guided field ξ ~ GP(0, K_μ) at the particles.

    * ``"direct"``: :math:`\xi = H_\mu W` with W the white noise of L²(μ) (√N·H z for uniform weights): one
      Hessian product, exact in law.
    * ``"lanczos"``: :math:`\xi=(H_\mu^2)^{1/2}W` by Lanczos on H², two products a step: the same law up to the Krylov
      error, exact once ``depth`` exceeds the rank of H, to half of the digits (a square root of a singular operator).

    Args:
        key: typed random key; the same key gives the same W to both methods and to
            :func:`hessian_guided_field`.
        F: the functional.
        mu: the measure.
        method: which route.
        depth: Krylov dimension of ``"lanczos"``, capped by the size of a field.

    Returns:
        A field with :math:`\mathbb E\|\xi\|^2_{L^2(\mu)}=\mathrm{tr}\,H_\mu^2`. Coincident particles
        get the same vector.

    Raises:
        ValueError: if ``method`` is neither.
        TypeError: if ``key`` is not a typed key.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> F = lambda mu: -0.5 * jnp.sum((mu.weights @ mu.points) ** 2)  # K is the identity: one common shift
        >>> xi = hessian_guided(jax.random.key(0), F, Particles.uniform(jnp.zeros((3, 2))))
        >>> bool(jnp.allclose(xi, xi[:1]))
        True

    References:
        Yamamoto, Kim, Suzuki, arXiv:2509.16974, Eq. (11), Alg. 1 and 2.
    """
    noise = white_noise(key, mu)
    H = wasserstein_hessian(F, mu, "integral")
    if method == "direct":
        return H(noise)
    if method == "lanczos":
        size = sum(leaf.size for leaf in jax.tree.leaves(noise))
        # Rounding leaves Ritz values of H² slightly negative; the square root is of the positive part.
        return matrix_function(H.squared(), noise, lambda t: jnp.sqrt(jnp.maximum(t, 0)), min(depth, size))
    raise ValueError(f'hessian_guided: method={method!r}; choose "direct" or "lanczos".')


def hessian_guided_field(key: Array, F: Functional, mu: Particles) -> Callable[[PyTree], PyTree]:
    r"""The same draw as :func:`hessian_guided` (``"direct"``) as a function on the whole space.

    Args:
        key: typed random key.
        F: the functional.
        mu: the measure.

    Returns:
        The map from query points (m, d), or one point (d,), to ξ there.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> F = lambda mu: -0.5 * jnp.sum((mu.weights @ mu.points) ** 2)
        >>> mu = Particles.uniform(jnp.zeros((3, 2)))
        >>> xi = hessian_guided_field(jax.random.key(0), F, mu)
        >>> bool(jnp.allclose(xi(jnp.ones((5, 2)))[0], hessian_guided(jax.random.key(0), F, mu)[0]))
        True

    References:
        Yamamoto, Kim, Suzuki, arXiv:2509.16974, Eq. (11).
    """
    noise = white_noise(key, mu)
    return lambda at: integral_product(F, mu, noise, at)


def hessian_energy(key: Array, F: Functional, mu: Particles, probes: int = 8) -> Float[Array, ""]:
    r"""The energy of Hessian-guided noise, :math:`\mathbb E\|\xi\|^2_{L^2(\mu)}=\mathrm{tr}\,H_\mu^2`, without bias.

    Args:
        key: typed random key.
        F: the functional.
        mu: the measure.
        probes: how many draws to average, one Hessian product each.

    Returns:
        The estimate [units of F per length², squared].

    Example:
        >>> import jax, jax.numpy as jnp
        >>> F = lambda mu: -0.5 * jnp.sum((mu.weights @ mu.points) ** 2)  # H has eigenvalue -1 twice
        >>> energy = hessian_energy(jax.random.key(0), F, Particles.uniform(jnp.zeros((3, 2))), probes=4000)
        >>> bool(abs(energy - 2) < 0.2)
        True
    """
    check_key(key, "hessian_energy")
    H = wasserstein_hessian(F, mu, "integral")
    energies = jax.lax.map(lambda k: norm_squared(mu, H(white_noise(k, mu))), jax.random.split(key, probes))
    return jnp.mean(energies)


def isotropic(key: Array, mu: Particles, scale: float | Float[Array, ""]) -> Field:
    r"""Independent Gaussian noise, one draw per particle: :math:`\xi_i\sim N(0,\mathrm{scale}^2 I_d)`.

    Args:
        key: typed random key.
        mu: the measure.
        scale: standard deviation of each coordinate, so that :math:`\mathbb E\|\xi\|^2_{L^2(\mu)}=\mathrm{scale}^2\,d`.

    Returns:
        A field on ``mu``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> isotropic(jax.random.key(0), Particles.uniform(jnp.zeros((4, 2))), 0.1).shape
        (4, 2)

    References:
        The isotropic baseline of arXiv:2509.16974, Sec. 6, read as i.i.d. noise.
    """
    check_key(key, "isotropic")
    return jax.tree.map(lambda z: jnp.asarray(scale).astype(z.dtype) * z, _normal(key, mu.points))


def smooth_isotropic(
    key: Array, mu: Particles, scale: float | Float[Array, ""], lengthscale: float, *, features: int = 256
) -> Field:
    r"""A smooth isotropic random field on the particles.

    :math:`\xi\sim\mathrm{GP}(0,\mathrm{scale}^2 e^{-|x-y|^2/2\ell^2}I_d)`.

    Drawn by random Fourier features: :math:`\xi(x)=\mathrm{scale}\sqrt{2/R}\sum_r a_r\cos(\omega_r\cdot x/\ell+b_r)`,
    :math:`a_r\sim N(0,I_d)`, :math:`\omega_r\sim N(0,I_d)`, b uniform; its covariance is exact in the mean, and
    given the frequencies it is Gaussian.

    Args:
        key: typed random key.
        mu: the measure.
        scale: standard deviation of each coordinate.
        lengthscale: ℓ, over which the field varies [units of the points].
        features: R, the number of frequencies.

    Returns:
        A field on ``mu``; nearby particles move alike and coincident ones together.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> xi = smooth_isotropic(jax.random.key(0), Particles.uniform(jnp.ones((4, 2))), 0.1, lengthscale=1.0)
        >>> bool(jnp.allclose(xi, xi[:1]))
        True

    References:
        Kim, Suzuki, arXiv:2402.01258 (Gaussian-process perturbation); Rahimi and Recht, NeurIPS 2007.
    """
    check_key(key, "smooth_isotropic")
    flat = jax.vmap(lambda points: ravel_pytree(points)[0])(mu.points)
    _, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], mu.points))
    dimension, dtype = flat.shape[1], flat.dtype
    frequency_key, phase_key, amplitude_key = jax.random.split(key, 3)
    frequencies = jax.random.normal(frequency_key, (dimension, features), dtype) / lengthscale
    phases = jax.random.uniform(phase_key, (1, features), dtype, maxval=2 * jnp.pi)
    amplitudes = jax.random.normal(amplitude_key, (features, dimension), dtype)
    factor = jnp.asarray(scale).astype(dtype) * (2 / features) ** 0.5
    return jax.vmap(unravel)(factor * (jnp.cos(flat @ frequencies + phases) @ amplitudes))
