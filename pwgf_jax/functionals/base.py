"""The algebra of functionals: what adds, scales and confines, and the sums that this makes."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from pwgf_jax.forms import Batched, Functional, Predictor, Summand, summands, times
from pwgf_jax.measures import Particles

__all__ = ["Combinable", "Confinement", "Sum", "functional"]


class Combinable(ABC):
    r"""What linear combinations are made of: a functional that adds, takes scalar factors, and is confined.

    ``F + G``, ``F - G``, ``-F``, ``c * F`` and ``F.confined(strength)``, with G any function of measures and c a number
    or a scalar array of any sign, which is a leaf of the result. Every summand keeps its form and its cost.
    A functional of one's own derives from this class and is registered as a pytree, or is wrapped by
    :func:`functional`.

    Example:
        >>> import jax.numpy as jnp
        >>> from pwgf_jax.functionals import interaction, potential
        >>> F = potential(jnp.sum) + 2.0 * interaction(jnp.dot)
        >>> float(F(Particles.uniform(jnp.ones((2, 3)))))
        6.0
    """

    __array_ufunc__: ClassVar[None] = None  # or NumPy's numbers would make an array of the product

    @abstractmethod
    def __call__(self, mu: Particles) -> Float[Array, ""]:
        """The value F(μ)."""

    def confined(self, strength: Any) -> Sum:
        r"""The functional with a quadratic confinement, :math:`F(\mu)+\frac\lambda2\int|x|^2\,d\mu`.

        Args:
            strength: λ, a number or a scalar array [units of F per length²].
        """
        return self + strength * Confinement()

    def __add__(self, other: Functional) -> Sum:
        return _sum(self, other) if callable(other) else NotImplemented

    def __radd__(self, other: Functional) -> Sum:
        return _sum(other, self) if callable(other) else NotImplemented

    def __sub__(self, other: Functional) -> Sum:
        return _sum(self, -functional(other)) if callable(other) else NotImplemented

    def __rsub__(self, other: Functional) -> Sum:
        return _sum(other, -self) if callable(other) else NotImplemented

    def __mul__(self, factor: Any) -> Sum:
        if callable(factor):
            raise TypeError(f"{type(self).__name__} * {type(factor).__name__}: functionals have no product; write one.")
        if isinstance(factor, int | float):
            factor = float(factor)  # a leaf of a weak type
        kind = getattr(factor, "dtype", type(factor))
        if not (kind is float or jnp.issubdtype(kind, jnp.floating)) or jnp.ndim(factor) != 0:
            raise TypeError(f"a functional times {factor!r}: give a real number, or an array of shape () of one.")
        terms = summands(self)
        factors = tuple(factor if c is None else factor * c for c, _ in terms)
        return Sum(tuple(_part(part) for _, part in terms), factors)

    def __rmul__(self, factor: Any) -> Sum:
        return self * factor

    def __neg__(self) -> Sum:
        return self * -1.0

    def __repr__(self) -> str:
        """The names and the shapes of what it holds."""
        shown = (f"{name}={_short(value)}" for name, value in vars(self).items())
        return f"{type(self).__name__}({', '.join(shown)})"


def _short(value: Any) -> str:
    """A value on few characters: an array by its dtype and shape, a function by its name."""
    if isinstance(value, Array):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    if isinstance(value, jax.tree_util.Partial):
        held = "" if not jax.tree.leaves((value.args, value.keywords)) else ", ..."
        return _short(value.func) + held
    if callable(value) and hasattr(value, "__name__"):
        return value.__name__
    if isinstance(value, Particles):
        return f"Particles({value.size})"
    return repr(value)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Opaque:
    """A callable that jax cannot look into, as a pytree without leaves."""

    function: Functional


def _part(F: Functional) -> Any:
    """A functional as a part of a pytree."""
    return Opaque(F) if jax.tree_util.all_leaves([F]) else F


def _sum(first: Any, second: Any) -> Sum:
    terms = (*summands(first), *summands(second))
    return Sum(tuple(_part(part) for _, part in terms), tuple(factor for factor, _ in terms))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class Sum(Combinable):
    r"""A linear combination :math:`\sum_kc_kF_k`, made by ``+``, ``*``, ``confined`` and :func:`functional`.

    Args:
        parts: the F_k, which are no sums themselves.
        factors: the c_k, one of each; None is one.

    Example:
        >>> import jax.numpy as jnp
        >>> from pwgf_jax.functionals import potential
        >>> potential(jnp.sum) - 0.5 * potential(jnp.max).confined(2.0)
        Potential(energy=sum) + -0.5 * Potential(energy=max) + -1.0 * Confinement()
    """

    parts: tuple[Any, ...]
    factors: tuple[Any, ...]

    @property
    def terms(self) -> tuple[Summand, ...]:
        """The pairs (c_k, F_k)."""
        parts = (part.function if isinstance(part, Opaque) else part for part in self.parts)
        return tuple(zip(self.factors, parts, strict=True))

    def __call__(self, mu: Particles) -> Float[Array, ""]:
        """The value F(μ)."""
        return reduce(operator.add, (times(factor, part(mu)) for factor, part in self.terms))

    def batch(self, key: Array, size: int) -> Sum:
        """The same with a minibatch in every summand over data; those over the same data see the same rows.

        Raises:
            TypeError: if no summand has a ``batch(key, size)``.
        """
        parts = [part for _, part in self.terms]
        if not any(isinstance(part, Batched) for part in parts):
            raise TypeError(f"batch: no summand of {self!r} has a batch(key, size) method; add one.")
        drawn = (part.batch(key, size) if isinstance(part, Batched) else part for part in parts)
        return Sum(tuple(map(_part, drawn)), self.factors)

    def predict(self, mu: Particles, inputs: Float[Array, "b l"]) -> Float[Array, "b k"]:
        """The outputs of the one summand that has any.

        Raises:
            TypeError: if it is not one.
        """
        predictors = [part for _, part in self.terms if isinstance(part, Predictor)]
        if len(predictors) != 1:
            raise TypeError(f"predict: {len(predictors)} summands of {self!r} predict; ask one that does.")
        return predictors[0].predict(mu, inputs)

    def __repr__(self) -> str:
        """The sum as it is written."""
        shown = ((factor, part if isinstance(part, Combinable) else _short(part)) for factor, part in self.terms)
        return " + ".join(str(part) if factor is None else f"{_short(factor)} * {part}" for factor, part in shown)


def functional(F: Functional) -> Combinable:
    """Any function of measures, as a functional that adds and scales; what it declares of itself stays.

    Args:
        F: a function of :class:`pwgf_jax.Particles`; what it holds is traced if it is a pytree, else compiled in.

    Returns:
        F itself if it is one of the algebra.

    Example:
        >>> import jax.numpy as jnp
        >>> F = 2.0 * functional(lambda mu: jnp.sum(mu.weights @ mu.points) ** 2)
        >>> float(F(Particles.uniform(jnp.ones((4, 3)))))
        18.0
    """
    if not callable(F):
        raise TypeError(f"functional: given a {type(F).__name__}; give a function of Particles.")
    return F if isinstance(F, Combinable) else Sum((_part(F),), (None,))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class Confinement(Combinable):
    r"""The potential energy :math:`\frac12\int|x|^2\,d\mu`, over all coordinates of a point.

    Example:
        >>> import jax.numpy as jnp
        >>> float(Confinement()(Particles.uniform(jnp.ones((4, 3)))))
        1.5
    """

    def potential(self, points: PyTree) -> Float[Array, " n"]:
        """|x|²/2 of every particle."""
        rows = (jnp.sum(leaf.reshape(leaf.shape[0], -1) ** 2, axis=1) for leaf in jax.tree.leaves(points))
        return reduce(operator.add, rows) / 2

    def __call__(self, mu: Particles) -> Float[Array, ""]:
        """The value F(μ)."""
        return mu.weights @ self.potential(mu.points)
