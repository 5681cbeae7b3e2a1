"""What a functional owes: a scalar of the measure, not of the particles that stand for it, smooth in the weights."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from pwgf_jax.calculus import AVERAGES, Functional, first_variation, wasserstein_gradient
from pwgf_jax.forms import summands
from pwgf_jax.measures import Particles, traceable

__all__ = ["check_functional", "check_once", "is_own"]

_KEPT = 8  # particles of a measure that F is tried on


class _Trial(NamedTuple):
    """What a trial of F measures; arrays, so that one compiled program does it."""

    value: Float[Array, ""]
    ghost: Float[Array, ""]  # F with a particle of weight zero more
    faint: Float[Array, ""]  # F with one of little weight more
    split: Float[Array, ""]  # F with every particle in two halves
    variation: Float[Array, ""]  # the first variation where there is no particle
    gradients: tuple[PyTree, PyTree]  # by the points, and by the weights and then the points
    products: tuple[PyTree, PyTree]  # of their derivatives, full Hessian and integral + local, with a field


def _with(mu: Particles, points: PyTree, weights: Array) -> Particles:
    both = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), mu.points, points)
    return Particles(both, jnp.concatenate([mu.weights, weights]))


def _waves(shape: tuple[int, ...]) -> Array:
    return jnp.cos(1.0 + jnp.arange(math.prod(shape), dtype=jnp.float32) ** 1.5).reshape(shape)


@jax.jit
def _trial(F: Functional, mu: Particles) -> _Trial:
    few = min(_KEPT, mu.size)
    points = jax.tree.map(lambda x: x[:few], mu.points)
    # Probability weights that differ, whatever the measure's are: no chance symmetry, no weight of zero.
    weights = jnp.arange(1, few + 1).astype(mu.weights.dtype)
    nu = Particles(points, weights / jnp.sum(weights))
    far = jax.tree.map(lambda x: 2 * x[:1] + 1, points)
    halves = Particles(points, nu.weights / 2)
    # A field of no symmetry, of the size of the points.
    field = jax.tree.map(lambda x: (1 + jnp.abs(x)) * _waves(x.shape).astype(x.dtype), points)

    def both(points: PyTree) -> tuple[PyTree, PyTree]:
        here = nu.moved_to(points)
        return wasserstein_gradient(F, here), wasserstein_gradient(F, here, at=points)

    gradients, products = jax.jvp(both, (points,), (field,))
    one = jnp.ones_like(nu.weights[:1])
    return _Trial(
        F(nu),
        F(_with(nu, far, 0 * one)),
        F(_with(nu, far, 1e-3 * one)),
        F(_with(halves, halves.points, halves.weights)),
        first_variation(F, nu)(far)[0],
        gradients,
        products,
    )


def _size(tree: PyTree) -> float:
    return float(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree))) ** 0.5


def _apart(pair: tuple[PyTree, PyTree], floor: float) -> bool:
    """Whether two fields differ by more than any rounding."""
    sizes = [_size(tree) for tree in pair]
    difference = _size(jax.tree.map(jnp.subtract, *pair))
    return difference > 0.05 * sum(sizes) and difference > floor


def check_functional(F: Functional, mu: Particles, name: str = "F") -> None:
    r"""Refuse a functional that breaks the contract that its derivatives rest on.

    F must return a scalar, ignore particles of weight zero, and see only the measure: splitting a particle into
    two halves changes nothing. It must be differentiable in the weights, at weight zero too, and that derivative must
    be the one in the points, :math:`w_i^{-1}\partial_{x_i}F=\nabla\frac{\delta F}{\delta\mu}(x_i)`, and so their
    derivatives along a field, :math:`Hv=(H_\mu+H'_\mu)v`. An average over particles that forgets the weights fails
    here, and so does a function of sorted particles that is piecewise constant in them. F is tried on the first few
    particles of the measure, with weights of the check's own.

    Args:
        F: the functional.
        mu: a measure to try it on.
        name: how to call it in the message.

    Raises:
        TypeError: if the value is no floating scalar.
        ValueError: if the contract is broken.

    Example:
        >>> import jax.numpy as jnp
        >>> check_functional(lambda mu: jnp.mean(mu.points), Particles.uniform(jnp.ones((2, 1))))
        Traceback (most recent call last):
        ...
        ValueError: F never uses mu.weights; write averages over particles as mu.weights @ phi(mu.points), not ...
    """
    out: Any = jax.eval_shape(F, mu)
    if not hasattr(out, "shape") or out.shape != () or not jnp.issubdtype(out.dtype, jnp.floating):
        kind = f"{out.dtype}{list(out.shape)}" if hasattr(out, "shape") else type(out).__name__
        raise TypeError(f"{name} returns {kind}; a functional returns one floating scalar (sum over data and outputs).")
    try:
        found = _trial(traceable(F), mu)
    except ValueError as error:
        if AVERAGES not in str(error):
            raise
        raise ValueError(f"{name} never uses mu.weights; {AVERAGES}") from error
    value, ghost, faint, split, variation = (float(number) for number in found[:5])
    if not jnp.isfinite(value):
        return  # a status of the run, and nothing to compare with
    eps = float(jnp.finfo(out.dtype).eps)
    bound = 1e3 * eps * max(abs(value), 1)
    if jnp.isfinite(faint) and not (jnp.isfinite(ghost) and jnp.isfinite(variation)):
        raise ValueError(
            f"{name} is {ghost} and its first variation {variation} where a particle has weight zero; it has to be "
            "defined and differentiable there: entropies of the weights, log(mu.weights), are not."
        )
    if abs(ghost - value) > bound:
        raise ValueError(
            f"{name} changes by {abs(ghost - value):.3g} when a particle of weight zero is added: it does not use "
            f"mu.weights everywhere; {AVERAGES}"
        )
    if abs(split - value) > bound:
        raise ValueError(
            f"{name} changes by {abs(split - value):.3g} when every particle is split in two: it sees the particles "
            f"and not only their measure; {AVERAGES}"
        )
    floor = 1e4 * eps * (1 + abs(value) + _size(found.products[0]))
    for order, pair in (("gradient", found.gradients), ("Hessian product", found.products)):
        if _apart(pair, floor):
            raise ValueError(
                f"{name}: its {order} by the points has the norm {_size(pair[0]):.3g} and by the weights "
                f"{_size(pair[1]):.3g}: it is not a smooth function of the measure. It forgets the weights "
                "somewhere, or is piecewise constant in them (sorted particles, quantiles)."
            )


@lru_cache(maxsize=128)
def _ledger(functional: Any, shapes: Any) -> list[bool]:
    """A list for every functional and shape: empty until it is checked."""
    del functional, shapes
    return []


def is_own(F: Functional) -> bool:
    """Whether F is one of the library's functionals, which its tests hold to the contract.

    Example:
        >>> from pwgf_jax.functionals import potential
        >>> is_own(potential(jnp.sum)), is_own(potential(jnp.sum) + (lambda mu: 0.0))
        (True, False)
    """
    package = __name__.partition(".")[0]
    return all(type(part).__module__.partition(".")[0] == package for _, part in summands(F))


def check_once(F: Functional, mu: Particles, name: str = "F") -> None:
    """:func:`check_functional`, once for every functional and shape of measure; what a run does at its door.

    The library's own functionals are not tried again, see :func:`is_own`.

    Args:
        F: the functional.
        mu: a measure to try it on; a concrete one.
        name: how to call it in the message.

    Raises:
        TypeError: as :func:`check_functional`.
        ValueError: as :func:`check_functional`.

    Example:
        >>> import jax.numpy as jnp
        >>> check_once(lambda mu: mu.weights @ mu.points[:, 0], Particles.uniform(jnp.ones((2, 1))))
    """
    if is_own(F):
        return
    leaves, structure = jax.tree.flatten((traceable(F), mu))
    try:
        entry = _ledger(structure, tuple((jnp.shape(leaf), str(jnp.result_type(leaf))) for leaf in leaves))
    except TypeError:  # a functional that cannot be hashed
        entry = []
    if not entry:
        check_functional(F, mu, name)
        entry.append(True)
