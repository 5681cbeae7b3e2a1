"""What a test problem knows about itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from pwgf_jax.measures import Particles

__all__ = ["CriticalPoint", "Problem"]


@dataclass(frozen=True, eq=False)
class CriticalPoint:
    """A point of zero gradient, with what is known of it in closed form.

    Args:
        name: what it is.
        point: parameters, a pytree; or a measure, :class:`pwgf_jax.Particles`.
        value: the objective there.
        curvature: smallest eigenvalue of the Hessian there, None where no closed form is known. Of a functional it is
            the full Hessian, on fields with the inner product of L²(μ).
        spectrum: all its eigenvalues, ascending, None where no closed form is known.
        is_minimum: whether it is a local minimum; a saddle otherwise.
        integral_spectrum: of a functional, that of the integral Hessian H_μ alone, likewise.

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
    integral_spectrum: Any = None

    @property
    def index(self) -> int | None:
        """The number of directions of negative curvature; None where the spectrum is not known."""
        if self.spectrum is None:
            return None
        spectrum = np.asarray(self.spectrum, float)
        return int(np.sum(spectrum < -1e-12 * np.abs(spectrum).max(initial=0)))


@dataclass(frozen=True, eq=False)
class OnDemand(Sequence[CriticalPoint]):
    """Critical points that are made when they are asked for.

    Args:
        size: how many; it may be more than a machine could hold.
        at: index from 0 to size - 1 -> critical point.
    """

    size: int
    at: Callable[[int], CriticalPoint]

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> CriticalPoint: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[CriticalPoint, ...]: ...
    def __getitem__(self, index: int | slice) -> CriticalPoint | tuple[CriticalPoint, ...]:
        where = range(self.size)[index]  # it counts from behind, and refuses what is out of range
        return tuple(map(self.at, where)) if isinstance(where, range) else self.at(where)


@dataclass(frozen=True, eq=False)
class Problem:
    """A function of finitely many parameters, or a functional of measures, whose saddles and minima are known.

    Args:
        value: parameters -> objective; or a functional, and what is said of parameters here is said of particles.
        init: key -> parameters, where runs start.
        saddles: critical points that are no local minimum; of very many each is made when it is asked for.
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
    saddles: Sequence[CriticalPoint]
    minimum: CriticalPoint | Any  # None is the exception: callers of problems that know theirs need not ask
    local_minima: tuple[CriticalPoint, ...] = ()
    components: Callable[[PyTree, Array], Float[Array, " b"]] | None = None
    size: int | None = None


def around(point: PyTree, scale: float) -> Callable[[Array], PyTree]:
    """Gaussian starts about a point, N(point, scale²); of a measure the particles are moved."""
    if isinstance(point, Particles):
        moved = around(point.points, scale)
        return lambda key: point.moved_to(moved(key))
    leaves, structure = jax.tree.flatten(point)

    def init(key: Array) -> PyTree:
        keys = jax.random.split(key, len(leaves))
        shaken = [x + scale * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(structure, shaken)

    return init


def numbers(name: str, given: Any, dimensions: int) -> np.ndarray:
    """An array of finite numbers with so many axes, none of them empty."""
    try:
        found = np.asarray(given, float)
    except (TypeError, ValueError):
        raise ValueError(f"{name}={given!r:.80}; give numbers, in rows of one length.") from None
    if found.ndim != dimensions or found.size == 0 or not np.all(np.isfinite(found)):
        kind = {1: "a list of numbers", 2: "a matrix"}[dimensions]
        raise ValueError(f"{name} has shape {found.shape}; give {kind}, finite and not empty.")
    return found
