"""The smoothness constants that the theorems ask for, measured from below by sampling."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pwgf_jax.calculus import Functional, HessianOperator, Part, wasserstein_hessian
from pwgf_jax.krylov import check_key, lanczos
from pwgf_jax.measures import Field, Particles, norm, per_particle, traceable
from pwgf_jax.perturbation import hessian_guided, isotropic, white_noise

__all__ = ["Smoothness", "estimate_smoothness"]


class Smoothness(NamedTuple):
    """Smoothness constants as :func:`theory_parameters` takes them: ``theory_parameters(eps, delta, **s._asdict())``.

    Args:
        lipschitz_gradient: L₁, of the gradient [units of F per length²].
        lipschitz_hessian: L₂, of the integral part of the Hessian [units of F per length³].
        lipschitz_local: L₃, of its local part [units of F per length³].

    Example:
        >>> Smoothness(2.0, 6.0, 0.0)._asdict()
        {'lipschitz_gradient': 2.0, 'lipschitz_hessian': 6.0, 'lipschitz_local': 0.0}
    """

    lipschitz_gradient: Any
    lipschitz_hessian: Any
    lipschitz_local: Any


def estimate_smoothness(
    key: Array, F: Functional, mu: Particles, *, radius: float, probes: int = 8, depth: int = 16
) -> Smoothness:
    r"""Lower bounds on the smoothness constants of F near μ, by sampling.

    The measure is pushed along random fields v of :math:`L^2(\mu)` norm ``radius``, three a probe: a
    Hessian-guided one, a rigid shift, and independent noise. Between :math:`\nu=(\mathrm{Id}+\frac v2)_\sharp\mu` and
    :math:`\nu'=(\mathrm{Id}+v)_\sharp\mu`, whose points are coupled at distance ``radius``/2,

    * L₁: the largest :math:`\|H+H'\|`, at μ and at ν';
    * L₂: the largest :math:`\|H_{\nu'}-H_\nu\|` per distance, both by Lanczos;
    * L₃: the largest :math:`L^2(\mu)` norm per distance of the change of :math:`\nabla\nabla_\mu F` at the particles,
      in operator norm at each, by power iteration.

    What is returned is never above the true constants of the ball of that radius, up to rounding, but nothing
    bounds it from below: rare directions are missed. The papers' Lipschitz conditions are known to us in outline
    only; these norms are the weakest that fit it, so that the bounds hold for the stronger ones as well.

    Args:
        key: typed random key.
        F: the functional.
        mu: the measure.
        radius: size of the push-forwards [length]; the constants are those of this neighbourhood.
        probes: how many triples of fields, each some 10·depth Hessian products.
        depth: Krylov dimension, and power iterations, capped by the size of a field.

    Returns:
        A :class:`Smoothness` of scalars.

    Raises:
        TypeError: if the key is no typed key.
        ValueError: if the radius is not positive, or there is no probe.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> F = lambda mu: mu.weights @ jnp.sum(mu.points**2, axis=-1)  # quadratic: its Hessian is 2 everywhere
        >>> found = estimate_smoothness(jax.random.key(0), F, Particles.uniform(jnp.ones((4, 2))), radius=1.0)
        >>> [round(float(x), 4) for x in found]
        [2.0, 0.0, 0.0]

    References:
        Yamamoto, Kim, Suzuki, arXiv:2509.16974, Eqs. (12)-(14), read as above.
    """
    check_key(key, "estimate_smoothness")
    if not 0 < radius < math.inf:
        raise ValueError(f"estimate_smoothness: radius={radius}; give a positive length.")
    if probes < 1 or depth < 1:
        raise ValueError(f"estimate_smoothness: probes={probes}, depth={depth}; give at least one of each.")
    depth = min(depth, sum(leaf.size for leaf in jax.tree.leaves(mu.points)))
    return _sample(probes, depth, key, traceable(F), mu, jnp.asarray(radius, mu.weights.dtype))


@partial(jax.jit, static_argnums=(0, 1))
def _sample(probes: int, depth: int, key: Array, F: Functional, mu: Particles, radius: Float[Array, ""]) -> Smoothness:
    field_key, start_key = jax.random.split(key)
    start = white_noise(start_key, mu)

    def along(v: Field) -> Smoothness:
        length = norm(mu, v)
        unit = _scaled(_inverse(length), v)
        near, far = mu.push_forward(_scaled(radius / 2, unit)), mu.push_forward(_scaled(radius, unit))
        # A field that vanishes looks at μ itself, and tells nothing about changes.
        per_distance = jnp.where(length > 0, 2 / radius, 0)
        return Smoothness(
            _operator_norm(wasserstein_hessian(F, far, "full"), start, depth),
            per_distance * _operator_norm(_change(F, near, far, "integral"), start, depth),
            per_distance * _pointwise_norm(_change(F, near, far, "local"), start, depth),
        )

    triples = jax.lax.map(lambda k: _displacements(k, F, mu), jax.random.split(field_key, probes))
    here = jax.tree.map(jnp.zeros_like, mu.points)
    fields = jax.tree.map(lambda zero, v: jnp.concatenate([zero[None], v.reshape(-1, *zero.shape)]), here, triples)
    return jax.tree.map(jnp.max, jax.lax.map(along, fields))


def _displacements(key: Array, F: Functional, mu: Particles) -> Field:
    """Three random fields, stacked: along the curvature, every particle alike, and every particle by itself."""
    guided_key, free_key = jax.random.split(key)
    free = isotropic(free_key, mu, 1.0)
    fields = hessian_guided(guided_key, F, mu), jax.tree.map(lambda z: jnp.broadcast_to(z[:1], z.shape), free), free
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *fields)


def _change(F: Functional, near: Particles, far: Particles, part: Part) -> HessianOperator:
    """The Hessian at one measure minus that at the other, fields identified particle by particle."""
    before, after = wasserstein_hessian(F, near, part), wasserstein_hessian(F, far, part)
    return HessianOperator(lambda u: jax.tree.map(jnp.subtract, after(u), before(u)), near)


def _operator_norm(operator: HessianOperator, start: Field, depth: int) -> Float[Array, ""]:
    """The largest |Ritz value|, which lies within the spectrum."""
    return jnp.max(jnp.abs(jnp.linalg.eigvalsh(lanczos(operator, start, depth).tridiagonal)))


def _pointwise_norm(operator: HessianOperator, start: Field, iterations: int) -> Float[Array, ""]:
    r"""The L²(μ) norm of the norms of a field of matrices, by power iteration at every particle at once."""

    def directions(u: Field) -> Field:
        squares = jax.tree.map(lambda leaf: jnp.sum(leaf**2, axis=tuple(range(1, leaf.ndim))), u)
        inverse = _inverse(jnp.sqrt(sum(jax.tree.leaves(squares))))
        return jax.tree.map(lambda leaf: per_particle(inverse, leaf) * leaf, u)

    along = jax.lax.fori_loop(0, iterations, lambda _, u: directions(operator(u)), directions(start))
    return norm(operator.mu, operator(along))


def _inverse(length: Array) -> Array:
    """1/length, and 0 for 0."""
    return jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0)


def _scaled(factor: Any, u: Field) -> Field:
    return jax.tree.map(lambda leaf: jnp.asarray(factor).astype(leaf.dtype) * leaf, u)
