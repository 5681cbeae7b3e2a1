"""The smoothness that the theorems ask for, measured: of a functional at a measure, or of a loss at parameters."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from pwgf_jax import arguments, trees
from pwgf_jax.arguments import check_key
from pwgf_jax.calculus import HessianOperator, Part
from pwgf_jax.krylov import lanczos, smallest_eigenpair
from pwgf_jax.measures import Particles, norm, per_particle, traceable
from pwgf_jax.objective import Objective, Point, coordinates, hessian, moved, value_and_gradient
from pwgf_jax.perturbation import hessian_energy, hessian_guided, isotropic, white_noise
from pwgf_jax.theory.thresholds import TheoryParameters, theory_parameters

__all__ = ["Smoothness", "estimate_smoothness", "suggest_parameters"]


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
    objective: Objective, point: Point, *, key: Array, radius: float, probes: int = 8, depth: int = 16
) -> Smoothness:
    r"""Lower bounds on the smoothness constants near a measure μ, or near parameters, by sampling.

    The point is moved along random fields v of norm ``radius`` (that of :math:`L^2(\mu)`), three a probe: a
    Hessian-guided one, independent noise, and a rigid shift of all particles, or the gradient at parameters. Between
    :math:`\nu=(\mathrm{Id}+\frac v2)_\sharp\mu` and :math:`\nu'=(\mathrm{Id}+v)_\sharp\mu`, whose points are coupled at
    distance ``radius``/2,

    * L₁: the largest :math:`\|H+H'\|`, at μ and at ν';
    * L₂: the largest :math:`\|H_{\nu'}-H_\nu\|` per distance, both by Lanczos;
    * L₃: the largest :math:`L^2(\mu)` norm per distance of the change of :math:`\nabla\nabla_\mu F` at the particles,
      in operator norm at each, by power iteration.

    Parameters have one Hessian: its change per distance is L₂, and L₃ is zero.

    What is returned is never above the true constants of the ball of that radius, up to rounding, but nothing
    bounds it from below: rare directions are missed. The papers' Lipschitz conditions are known to us in outline
    only; these norms are the weakest that fit it, so that the bounds hold for the stronger ones as well.

    Args:
        objective: the functional, or a loss.
        point: the measure, or parameters.
        key: typed random key.
        radius: size of the displacements [length]; the constants are those of this neighbourhood.
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
        >>> found = estimate_smoothness(F, Particles.uniform(jnp.ones((4, 2))), key=jax.random.key(0), radius=1.0)
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
    depth = min(depth, trees.size(coordinates(point)))
    length = jnp.asarray(radius, trees.dtype(coordinates(point)))
    return _sample(probes, depth, key, traceable(objective), point, length)


@partial(jax.jit, static_argnums=(0, 1))
def _sample(probes: int, depth: int, key: Array, F: Objective, point: Point, radius: Float[Array, ""]) -> Smoothness:
    field_key, start_key = jax.random.split(key)
    start = white_noise(start_key, point)

    def along(v: PyTree) -> Smoothness:
        length = norm(point, v)
        unit = _scaled(trees.divided(jnp.ones_like(length), length), v)
        near, far = moved(point, _scaled(radius / 2, unit)), moved(point, _scaled(radius, unit))
        # A field that vanishes looks at the point itself, and tells nothing about changes.
        per_distance = jnp.where(length > 0, 2 / radius, 0)
        largest = _operator_norm(hessian(F, far, "full"), start, depth)
        if not isinstance(point, Particles):
            change = _operator_norm(_change(F, near, far, "full"), start, depth)
            return Smoothness(largest, per_distance * change, jnp.zeros_like(change))
        return Smoothness(
            largest,
            per_distance * _operator_norm(_change(F, near, far, "integral"), start, depth),
            per_distance * _pointwise_norm(_change(F, near, far, "local"), start, depth),
        )

    triples = jax.lax.map(lambda k: _displacements(k, F, point), jax.random.split(field_key, probes))
    here = jax.tree.map(jnp.zeros_like, coordinates(point))
    fields = jax.tree.map(lambda zero, v: jnp.concatenate([zero[None], v.reshape(-1, *zero.shape)]), here, triples)
    return jax.tree.map(jnp.max, jax.lax.map(along, fields))


def _displacements(key: Array, F: Objective, point: Point) -> PyTree:
    """Three random fields, stacked: along the curvature, every particle alike, and every particle by itself."""
    guided_key, free_key = jax.random.split(key)
    free = isotropic(free_key, point, 1.0)
    if isinstance(point, Particles):
        third = jax.tree.map(lambda z: jnp.broadcast_to(z[:1], z.shape), free)
    else:
        third = value_and_gradient(F, point)[1]
    fields = hessian_guided(guided_key, F, point), third, free
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *fields)


def _change(F: Objective, near: Point, far: Point, part: Part) -> HessianOperator:
    """The Hessian at one point minus that at the other, fields identified particle by particle."""
    before, after = hessian(F, near, part), hessian(F, far, part)
    return HessianOperator(lambda u: jax.tree.map(jnp.subtract, after(u), before(u)), before.mu)


def _operator_norm(operator: HessianOperator, start: PyTree, depth: int) -> Float[Array, ""]:
    """The largest |Ritz value|, which lies within the spectrum."""
    return jnp.max(jnp.abs(jnp.linalg.eigvalsh(lanczos(operator, start, depth).tridiagonal)))


def _pointwise_norm(operator: HessianOperator, start: PyTree, iterations: int) -> Float[Array, ""]:
    r"""The L²(μ) norm of the norms of a field of matrices, by power iteration at every particle at once."""

    def directions(u: PyTree) -> PyTree:
        squares = jax.tree.map(lambda leaf: jnp.sum(leaf**2, axis=tuple(range(1, leaf.ndim))), u)
        lengths = jnp.sqrt(sum(jax.tree.leaves(squares)))
        return jax.tree.map(lambda leaf: trees.divided(leaf, per_particle(lengths, leaf)), u)

    along = jax.lax.fori_loop(0, iterations, lambda _, u: directions(operator(u)), directions(start))
    return norm(operator.mu, operator(along))


def _scaled(factor: Any, u: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.asarray(factor).astype(leaf.dtype) * leaf, u)


class _Local(NamedTuple):
    """What :func:`suggest_parameters` measures; ``curvature`` is the least seen, ``gradient`` the larger norm."""

    smoothness: Any
    hessian_lipschitz: Any
    curvature: Any
    gradient: Any
    energy: Any
    changed: Any


def suggest_parameters(
    objective: Objective,
    point: Point,
    *,
    key: Array,
    delta: float | None = None,
    step_size: float | None = None,
    failure: float = 0.01,
    depth: int = 16,
) -> TheoryParameters:
    r"""ε, η_p, k_thres and f_thres for a functional at a measure, or for a loss at parameters, from what is measured.

    Measured are the least curvature, by Lanczos; and, along it and along Hessian-guided noise, the length r at which
    the Hessian has changed by half of itself. Then ℓ is the largest \|eigenvalue\| at both ends,
    :math:`\rho=\|H'-H\|/r`, and g the larger of the gradient's norms. From these

    * δ, if it is not given: ℓ/10, or half of the negative curvature seen if that is less;
    * :math:`\varepsilon=\min\{\delta^2/\rho,\,g/100\}`: the theorems allow the first;
    * the rest by :func:`theory_parameters`, with the energy of Hessian-guided noise at the point.

    It is advice, from one neighbourhood and a few directions: measure at a start that is typical, or at the saddle that
    has to be left. Costs some tens of ``depth`` Hessian products.

    Args:
        objective: the functional, or a loss.
        point: the measure, or parameters.
        key: typed random key.
        delta: δ, negative curvature that has to be left behind.
        step_size: η of the method that takes the steps; 1/2ℓ if omitted. The window is in its steps.
        failure: as in :func:`theory_parameters`.
        depth: Krylov dimension, capped by the size of a field.

    Returns:
        A :class:`TheoryParameters`: ``pwgf(found.step_size, **found)``, or ``hessian_noise(found.eta_p)`` and
        ``gradient_trigger(eps=found.eps, k_thres=found.k_thres, f_thres=found.f_thres)``.

    Raises:
        TypeError: if the key is no typed key.
        ValueError: if a number is out of range, or the Hessian is zero or the same wherever it is looked at.

    Warns:
        TheoryWarning: as :func:`theory_parameters`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pwgf_jax.problems import double_well
        >>> found = suggest_parameters(double_well(3).value, jnp.zeros(3), key=jax.random.key(0))
        >>> sorted(found), round(found.delta, 1)
        (['eps', 'eta_p', 'f_thres', 'k_thres'], 0.1)
    """
    check_key(key, "suggest_parameters")
    depth = min(arguments.whole("suggest_parameters: depth", depth), trees.size(coordinates(point)))
    seen = _Local(*map(float, _look(depth, key, traceable(objective), point)))
    if not seen.smoothness > 0 or not seen.changed > 1e-3 * seen.smoothness or not math.isfinite(sum(seen)):
        raise ValueError(
            f"suggest_parameters: the Hessian has the norm {seen.smoothness:.3g} and changes by {seen.changed:.3g}; "
            "such an objective has no scale to choose by (a quadratic one has not): give the numbers yourself."
        )
    resolved = min(seen.smoothness / 10, -seen.curvature / 2 if seen.curvature < 0 else math.inf)
    curvature = resolved if delta is None else delta
    return theory_parameters(
        min(curvature**2 / seen.hessian_lipschitz, seen.gradient / 100),
        curvature,
        lipschitz_gradient=seen.smoothness,
        lipschitz_hessian=seen.hessian_lipschitz,
        noise_energy=seen.energy if seen.energy > 1e-6 * seen.smoothness**2 else None,
        step_size=step_size,
        failure=failure,
    )


@partial(jax.jit, static_argnums=0)
def _look(depth: int, key: Array, F: Objective, point: Point) -> _Local:
    least_key, start_key, guided_key, energy_key = jax.random.split(key, 4)
    start = white_noise(start_key, point)
    here = hessian(F, point, "full")
    size = _operator_norm(here, start, depth)
    least = smallest_eigenpair(here, least_key, depth, like=coordinates(point))
    rounding = 100 * jnp.finfo(size.dtype).eps * size
    fields = least.eigenvector, hessian_guided(guided_key, F, point, part="full")
    units = [_scaled(trees.divided(jnp.ones_like(size), norm(point, v).astype(size.dtype)), v) for v in fields]
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), *units)

    def change(r: Array) -> Array:
        return jnp.max(
            jax.lax.map(
                lambda unit: _operator_norm(_change(F, point, moved(point, _scaled(r, unit)), "full"), start, depth),
                both,
            )
        )

    def further(carry: tuple[Array, Array]) -> Array:
        r, changed = carry
        return (changed < size / 2) & (r < 1024 * scale)

    def end(unit: PyTree) -> tuple[Array, Array]:
        at = moved(point, _scaled(r, unit))
        return _operator_norm(hessian(F, at, "full"), start, depth), norm(at, value_and_gradient(F, at)[1])

    # By doubling, from far below to far above the scale of the point.
    scale = norm(point, coordinates(point)).astype(size.dtype)
    scale = jnp.where(scale > 0, scale, 1)
    nothing = (scale / 1024, jnp.zeros_like(size))
    r, changed = jax.lax.while_loop(further, lambda carry: (2 * carry[0], change(2 * carry[0])), nothing)
    sizes, slopes = jax.lax.map(end, both)
    slope = norm(point, value_and_gradient(F, point)[1])
    return _Local(
        jnp.maximum(size, jnp.max(sizes)),
        changed / r,
        jnp.where(least.eigenvalue < -rounding, least.eigenvalue, 0),
        jnp.maximum(slope, jnp.max(slopes)),
        hessian_energy(energy_key, F, point),
        changed,
    )
