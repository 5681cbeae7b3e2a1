"""What a test problem knows about itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array, Float, PyTree

__all__ = ["CriticalPoint", "Problem"]


@dataclass(frozen=True, eq=False)
class CriticalPoint:
    """A point of zero gradient, with what is known of it in closed form.

    Args:
        name: what it is.
        point: parameters, a pytree.
        value: the objective there.
        curvature: smallest eigenvalue of the Hessian there, None where no closed form is known.
        spectrum: all its eigenvalues, ascending, None where no closed form is known.
        is_minimum: whether it is a local minimum; a saddle otherwise.

    Example:
        >>> from pwgf_jax.problems import double_well
        >>> origin = double_well(3).saddles[0]
        >>> origin.name, origin.curvature, origin.spectrum.tolist()
        ('origin', -1.0, [-1.0, 1.0, 1.0])
    """

    name: str
    point: PyTree
    value: Any
    curvature: Any = None
    spectrum: Any = None
    is_minimum: bool = False


@dataclass(frozen=True, eq=False)
class Problem:
    """A function of finitely many parameters whose saddles and minima are known.

    Args:
        value: parameters -> objective.
        init: key -> parameters, where runs start.
        saddles: critical points that are no local minimum.
        minimum: the global minimum, one of them if there are several; None where none is known, or none is attained.
        local_minima: local minima of higher value.
        components: (parameters, indices (b,)) -> the terms (b,) whose mean over ``size`` is the objective; None if
            it is no finite sum.
        size: number of terms.

    Example:
        >>> import jax
        >>> from pwgf_jax.problems import double_well
        >>> problem = double_well(3)
        >>> float(problem.value(problem.minimum.point)), problem.init(jax.random.key(0)).shape
        (-0.25, (3,))
    """

    value: Callable[[PyTree], Float[Array, ""]]
    init: Callable[[Array], PyTree]
    saddles: tuple[CriticalPoint, ...]
    minimum: CriticalPoint | Any  # None is the exception: callers of problems that know theirs need not ask
    local_minima: tuple[CriticalPoint, ...] = ()
    components: Callable[[PyTree, Array], Float[Array, " b"]] | None = None
    size: int | None = None


def around(point: PyTree, scale: float) -> Callable[[Array], PyTree]:
    """Gaussian starts about a point, N(point, scale²)."""
    leaves, structure = jax.tree.flatten(point)

    def init(key: Array) -> PyTree:
        keys = jax.random.split(key, len(leaves))
        shaken = [x + scale * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(structure, shaken)

    return init
