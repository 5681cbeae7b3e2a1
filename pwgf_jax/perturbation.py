r"""Random displacements that push a measure, or the parameters of a loss, off a saddle.

Hessian-guided noise is a draw of :math:`\xi\sim\mathrm{GP}(0,K_\mu)`, where K_μ is the kernel of :math:`H_\mu^2`: it is
large along directions of strong curvature, negative ones included, and one draw is a vector field defined
everywhere. Isotropic noises are the baselines; :func:`hessian_energy` gives the scale that matches their energies.

What flows and transforms are composed with are *noises*: functions (key, objective, point, step) of a functional at a
measure or of a loss at parameters, made by :func:`hessian_noise`, :func:`isotropic_noise`, :func:`gaussian_noise` and
:func:`ball_noise`. At parameters the Hessian is ∇²f, and white noise is white.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from pwgf_jax import arguments, trees
from pwgf_jax.arguments import check_key
from pwgf_jax.calculus import Functional, Part, integral_product
from pwgf_jax.krylov import matrix_function
from pwgf_jax.measures import Field, Isometry, Particles, norm, norm_squared
from pwgf_jax.objective import Objective, Point, coordinates, hessian

__all__ = [
    "Noise",
    "ball_noise",
    "gaussian_noise",
    "hessian_energy",
    "hessian_guided",
    "hessian_guided_field",
    "hessian_noise",
    "isotropic",
    "isotropic_noise",
    "smooth_isotropic",
    "white_noise",
]


Noise: TypeAlias = Callable[..., PyTree]
"""(key, objective, point, step) -> displacement of the point; the step is that of the run, 0 if left out."""


def white_noise(key: Array, mu: Point) -> PyTree:
    r"""White noise of :math:`L^2(\mu)`: :math:`W_i=w_i^{-1/2}z_i`, so that :math:`\langle W,u\rangle\sim N(0,\|u\|^2)`.

    Args:
        key: typed random key.
        mu: the measure; at parameters white noise is z.

    Returns:
        A field at ``mu``; zero on particles of weight zero.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> white_noise(jax.random.key(0), Particles.uniform(jnp.zeros((4, 2)))).shape
        (4, 2)
    """
    check_key(key, "white_noise")
    chart = Isometry(mu.weights if isinstance(mu, Particles) else None, coordinates(mu))
    return chart.down(trees.white(key, coordinates(mu)))


def hessian_guided(
    key: Array,
    F: Objective,
    mu: Point,
    method: Literal["direct", "lanczos"] = "direct",
    *,
    part: Part = "integral",
    depth: int = 32,
) -> PyTree:
    r"""One draw of the Hessian-guided field ξ ~ GP(0, K_μ) at the particles; N(0, (∇²f)²) at parameters.

    * ``"direct"``: :math:`\xi = H_\mu W` with W the white noise of L²(μ) (√N·H z for uniform weights): one
      Hessian product, exact in law.
    * ``"lanczos"``: :math:`\xi=(H_\mu^2)^{1/2}W` by Lanczos on H², two products a step: the same law up to the Krylov
      error, exact once ``depth`` exceeds the rank of H, to half of the digits (a square root of a singular operator).

    Args:
        key: typed random key; the same key gives the same W to both methods and to
            :func:`hessian_guided_field`.
        F: the functional, or a loss.
        mu: the measure, or parameters.
        method: which route.
        part: which Hessian of a measure: the papers' ``"integral"``, or ``"full"``.
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
    H = hessian(F, mu, part if isinstance(mu, Particles) else "full")
    if method == "direct":
        return H(noise)
    if method == "lanczos":
        size = trees.size(noise)
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


def hessian_energy(key: Array, F: Objective, mu: Point, probes: int = 8) -> Float[Array, ""]:
    r"""The energy of Hessian-guided noise, :math:`\mathbb E\|\xi\|^2_{L^2(\mu)}=\mathrm{tr}\,H_\mu^2`, without bias.

    Args:
        key: typed random key.
        F: the functional, or a loss.
        mu: the measure, or parameters.
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
    H = hessian(F, mu, "integral" if isinstance(mu, Particles) else "full")
    energies = jax.lax.map(lambda k: norm_squared(mu, H(white_noise(k, mu))), jax.random.split(key, probes))
    return jnp.mean(energies)


def isotropic(key: Array, mu: Point, scale: float | Float[Array, ""]) -> PyTree:
    r"""Independent Gaussian noise, one draw per particle: :math:`\xi_i\sim N(0,\mathrm{scale}^2 I_d)`.

    Args:
        key: typed random key.
        mu: the measure, or parameters.
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
    return _times(scale, trees.white(key, coordinates(mu)))


def _times(factor: float | Array, field: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.asarray(factor).astype(leaf.dtype) * leaf, field)


def smooth_isotropic(
    key: Array, mu: Particles, scale: float | Float[Array, ""], lengthscale: float | Array, *, features: int = 256
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


def hessian_noise(
    eta_p: float | Array, sampler: Literal["direct", "lanczos"] = "direct", *, part: Part = "integral"
) -> Noise:
    r"""The displacement :math:`\eta_p\,\xi`, ξ as in :func:`hessian_guided`.

    At parameters, and at a measure with ``part="full"``, it is large where the curvature is, of either sign, and zero
    where there is none; along an eigenvector of curvature −δ it has the standard deviation η_p δ.

    Args:
        eta_p: factor of the noise [length per curvature].
        sampler: ``"direct"`` or ``"lanczos"``.
        part: which Hessian of a measure, as in :func:`hessian_guided`.

    Returns:
        A :data:`Noise`.

    Raises:
        ValueError: if the factor is negative or a name unknown.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> F = lambda mu: -0.5 * jnp.sum((mu.weights @ mu.points) ** 2)
        >>> hessian_noise(0.1)(jax.random.key(0), F, Particles.uniform(jnp.zeros((3, 2)))).shape
        (3, 2)
        >>> xi = hessian_noise(0.1)(jax.random.key(0), lambda x: -(x[0] ** 2), jnp.zeros(2))
        >>> bool(xi[0] != 0), float(xi[1])
        (True, 0.0)

    References:
        Yamamoto, Kim, Suzuki, arXiv:2509.16974, Alg. 2; at parameters its finite-dimensional counterpart.
    """
    _not_negative("hessian_noise: eta_p", eta_p)
    if sampler not in ("direct", "lanczos"):
        raise ValueError(f'hessian_noise: sampler={sampler!r}; choose "direct" or "lanczos".')
    if part not in ("integral", "full"):
        raise ValueError(f'hessian_noise: part={part!r}; choose "integral" or "full".')

    def noise(key: Array, objective: Any, point: Point, step: Any = 0) -> PyTree:
        del step
        if objective is None:
            raise TypeError("hessian_noise: value_fn missing; call update(updates, state, params, value_fn=...).")
        return _times(eta_p, hessian_guided(key, objective, point, sampler, part=part))

    return noise


def isotropic_noise(
    eta_p: float | Array, scale: float | Array | None = None, lengthscale: float | Array | None = None
) -> Noise:
    r"""The displacement η_p ξ with isotropic ξ, of the energy of Hessian-guided noise unless a scale is given.

    Args:
        eta_p: factor of the noise.
        scale: standard deviation of each coordinate; None takes that of the energy tr H², from eight Hessian products.
        lengthscale: None draws every particle independently, a number one smooth field over that length.

    Returns:
        A :data:`Noise`.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> F = lambda mu: -0.5 * jnp.sum((mu.weights @ mu.points) ** 2)
        >>> isotropic_noise(0.1)(jax.random.key(0), F, Particles.uniform(jnp.zeros((3, 2)))).shape
        (3, 2)
    """
    _not_negative("isotropic_noise: eta_p", eta_p)
    for name, number in (("scale", scale), ("lengthscale", lengthscale)):
        if number is not None and not isinstance(number, Tracer) and not number > 0:
            raise ValueError(f"isotropic_noise: {name}={number}; give a positive number, or None.")

    def noise(key: Array, objective: Any, point: Point, step: Any = 0) -> PyTree:
        del step
        energy_key, field_key = jax.random.split(key)
        if scale is None:
            one = jax.tree.map(lambda leaf: leaf[0], point.points) if isinstance(point, Particles) else point
            deviation = jnp.sqrt(hessian_energy(energy_key, objective, point) / trees.size(one))
        else:
            deviation = jnp.asarray(scale)
        if lengthscale is None:
            return _times(eta_p, isotropic(field_key, point, deviation))
        return _times(eta_p, smooth_isotropic(field_key, point, deviation, lengthscale))

    return noise


def gaussian_noise(level: float | Array | optax.Schedule) -> Noise:
    r"""The displacement :math:`\beta_k u`, u ~ N(0, I) for every particle, or for the parameters.

    Args:
        level: β, a number or a schedule of the step [units of the points]; no step size is applied to it.

    Returns:
        A :data:`Noise`.

    Raises:
        ValueError: if the level is a negative number.
        TypeError: if it is neither a number nor a schedule.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> gaussian_noise(0.1)(jax.random.key(0), None, jnp.zeros(3)).shape
        (3,)
    """
    at = arguments.schedule("gaussian_noise: level", level)
    return lambda key, objective, point, step=0: isotropic(key, point, at(step))


def ball_noise(radius: float | Array) -> Noise:
    r"""Noise uniform in the ball of a radius, over all parameters together; of L²(μ) at a measure.

    Args:
        radius: r [units of the parameters, or points].

    Returns:
        A :data:`Noise`.

    Raises:
        ValueError: if the radius is not positive.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> noise = ball_noise(0.5)(jax.random.key(0), None, {"a": jnp.zeros(3), "b": jnp.zeros(())})
        >>> bool(optax.tree.norm(noise) <= 0.5)
        True

    References:
        Jin, Ge, Netrapalli, Kakade, Jordan, arXiv:1703.00887, Alg. 4.
    """
    arguments.positive("ball_noise: radius", radius)

    def noise(key: Array, objective: Any, point: Point, step: Any = 0) -> PyTree:
        del objective, step
        direction_key, length_key = jax.random.split(key)
        z = white_noise(direction_key, point)
        length = norm(point, z)
        reach = jax.random.uniform(length_key, dtype=length.dtype) ** (1 / trees.size(z))
        return _times(radius * reach / length, z)

    return noise


def _not_negative(name: str, number: float | Array) -> None:
    if not isinstance(number, Tracer) and not 0 <= number < float("inf"):
        raise ValueError(f"{name}={number}; give a non-negative factor of the noise.")
