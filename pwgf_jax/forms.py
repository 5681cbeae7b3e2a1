r"""What a functional may declare about itself, as methods; none derives from anything here.

The derivative of F at μ along a measure ν, :math:`\int\frac{\delta F}{\delta\mu}(\mu)\,d\nu`, is all that the calculus
asks for. A functional of a declared form makes that number cheaper, and nothing else changes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from pwgf_jax.measures import Particles

__all__ = [
    "Batched",
    "Functional",
    "LeastSquares",
    "LinearForm",
    "MomentForm",
    "PairwiseForm",
    "Piecewise",
    "Predictor",
    "SumForm",
    "VariationForm",
    "derivative",
    "least_squares",
    "summands",
    "times",
]

Functional: TypeAlias = Callable[[Particles], Float[Array, ""]]
"""A scalar function of a measure, defined for signed measures, that does not renormalise the weights."""

Summand: TypeAlias = tuple[Any, Functional]
"""A factor and a functional; the factor None is one, without a product."""


@runtime_checkable
class LinearForm(Protocol):
    r"""A functional that declares :math:`F(\mu)=\int V\,d\mu`; its integral Hessian is zero.

    Example:
        >>> import jax.numpy as jnp
        >>> class Height:
        ...     def potential(self, x):
        ...         return x[:, 0]
        ...     def __call__(self, mu):
        ...         return mu.weights @ self.potential(mu.points)
        >>> isinstance(Height(), LinearForm)
        True
    """

    def potential(self, points: PyTree) -> Float[Array, " n"]:
        """The potential V(x_i)."""
        ...


@runtime_checkable
class MomentForm(Protocol):
    r"""A functional that declares :math:`F(\mu)=R(\int\phi\,d\mu)`.

    The integral Hessian product is then one jvp of the moments, one small product with D²R and one vjp, instead of a
    third derivative of F.

    Example:
        >>> import jax.numpy as jnp
        >>> class Spread:
        ...     def moments(self, mu):
        ...         return mu.weights @ mu.points**2
        ...     def of_moments(self, m):
        ...         return jnp.sum(m**2)
        ...     def __call__(self, mu):
        ...         return self.of_moments(self.moments(mu))
        >>> isinstance(Spread(), MomentForm)
        True
    """

    def moments(self, mu: Particles) -> PyTree:
        """The vector ∫φ dμ (any pytree), linear in the weights."""
        ...

    def of_moments(self, moments: PyTree) -> Float[Array, ""]:
        """The scalar R of the moments."""
        ...


@runtime_checkable
class PairwiseForm(Protocol):
    r"""A functional that declares :math:`F(\mu)=\frac12\iint k\,d\mu\,d\mu+\int V\,d\mu+c` with symmetric k.

    Example:
        >>> import jax.numpy as jnp
        >>> class Repulsion:
        ...     def interaction(self, x, y):
        ...         return -jnp.sum((x[:, None] - y[None]) ** 2, axis=-1)
        ...     def external(self, x):
        ...         return jnp.zeros(x.shape[0], x.dtype)
        ...     def __call__(self, mu):
        ...         return 0.5 * mu.weights @ self.interaction(mu.points, mu.points) @ mu.weights
        >>> isinstance(Repulsion(), PairwiseForm)
        True
    """

    def interaction(self, points: PyTree, others: PyTree) -> Any:
        """The matrix k(x_i, y_j), or anything that weights (m,) multiply from the right by ``@``."""
        ...

    def external(self, points: PyTree) -> Float[Array, " n"]:
        """The potential V(x_i)."""
        ...


@runtime_checkable
class VariationForm(Protocol):
    r"""A functional that declares its first variation, :math:`\frac{\delta F}{\delta\mu}(\mu)(x)`.

    Example:
        >>> import jax.numpy as jnp
        >>> class Square:
        ...     def variation(self, mu, x):
        ...         return x @ (mu.weights @ mu.points)
        ...     def __call__(self, mu):
        ...         return jnp.sum((mu.weights @ mu.points) ** 2) / 2
        >>> isinstance(Square(), VariationForm)
        True
    """

    def variation(self, mu: Particles, points: PyTree) -> Float[Array, " n"]:
        """The first variation at any points, differentiable in them and in μ."""
        ...


@runtime_checkable
class SumForm(Protocol):
    r"""A functional that declares :math:`F=\sum_kc_kF_k`: every derivative is that of the summands, each of its form.

    What ``F + G`` and ``c * F`` make is of this form, see :mod:`pwgf_jax.functionals`; so is a functional that only
    carries something along, with itself as the one summand.
    """

    @property
    def terms(self) -> tuple[Summand, ...]:
        """The pairs (c_k, F_k), c_k a number, or None for one."""
        ...


@runtime_checkable
class LeastSquares(Protocol):
    r"""A functional that declares :math:`F(\mu)=\frac12|r(\mu)|^2` with a residual r that is affine in μ.

    With J the derivative of r along displacements, :math:`H_\mu=J^\top J`, and functions of it are functions of the
    small matrix :math:`JJ^\top`, see :func:`pwgf_jax.gram.gram_function`.
    """

    def residuals(self, mu: Particles) -> Float[Array, "..."]:
        """The residual r, an array of any shape with the scale of F in it: (outputs − targets)/√M for a mean of M."""
        ...


@runtime_checkable
class Piecewise(Protocol):
    """A functional that is differentiable piece by piece, and has no Hessian: what jumps between pieces is not seen."""

    @property
    def no_hessian(self) -> str:
        """Why, and what to do, in a sentence."""
        ...


@runtime_checkable
class Predictor(Protocol):
    """A functional of data whose measures are models: they have outputs on inputs that were never seen."""

    def predict(self, mu: Particles, inputs: Float[Array, "b l"]) -> Float[Array, "b k"]:
        """The outputs of the model μ, to compare with targets."""
        ...


@runtime_checkable
class Batched(Protocol):
    """A functional that is a mean over data."""

    def batch(self, key: Array, size: int) -> Functional:
        """The same functional on ``size`` of the data, drawn without replacement."""
        ...


def summands(F: Functional) -> tuple[Summand, ...]:
    """The terms of a sum, down to functionals that are none; of any other functional itself.

    Args:
        F: the functional.

    Returns:
        Pairs of a factor (a number, or None for one) and a functional.

    Example:
        >>> from pwgf_jax.functionals import potential
        >>> F = 2.0 * potential(jnp.sum)
        >>> [(factor, type(part).__name__) for factor, part in summands(F + F)]
        [(2.0, 'Potential'), (2.0, 'Potential')]
    """
    if not isinstance(F, SumForm):
        return ((None, F),)
    return tuple((_product(c, d), part) for c, whole in F.terms for d, part in summands(whole))


def _product(c: Any, d: Any) -> Any:
    return d if c is None else c if d is None else c * d


def times(factor: Any, value: Array) -> Array:
    """A factor of a sum times an array, in the array's dtype; None is one.

    Example:
        >>> float(times(None, jnp.float32(3.0))), float(times(2, jnp.float32(3.0)))
        (3.0, 6.0)
    """
    return value if factor is None else jnp.asarray(factor, value.dtype) * value


def _mixture(mu: Particles, nu: Particles, amount: Float[Array, ""]) -> Particles:
    """The signed measure μ + amount·ν."""
    if mu.size == nu.size:  # side by side: where particles are spread over devices, none of them moves

        def together(x: Array, y: Array) -> Array:
            return jnp.stack([x, y], axis=1).reshape(-1, *x.shape[1:])
    else:

        def together(x: Array, y: Array) -> Array:
            return jnp.concatenate([x, y])

    return Particles(jax.tree.map(together, mu.points, nu.points), together(mu.weights, amount * nu.weights))


def derivative(F: Functional) -> Callable[[Particles, Particles], Float[Array, ""]]:
    r"""The map :math:`(\mu,\nu)\mapsto\int\frac{\delta F}{\delta\mu}(\mu)\,d\nu`, linear in ν.

    Args:
        F: the functional, of any form or none.

    Returns:
        A function of two measures, ν signed, to be differentiated in the points and weights of either.

    Example:
        >>> F = lambda mu: jnp.sum(mu.weights @ mu.points) ** 2 / 2
        >>> mu, nu = (Particles.uniform(jnp.full((1, 1), x)) for x in (3.0, 2.0))
        >>> float(derivative(F)(mu, nu))
        6.0
    """
    if isinstance(F, SumForm):
        parts = [(factor, derivative(part)) for factor, part in F.terms]
        return lambda mu, nu: reduce(operator.add, (times(factor, part(mu, nu)) for factor, part in parts))
    if isinstance(F, LinearForm):
        return lambda mu, nu: nu.weights @ F.potential(nu.points)
    if isinstance(F, MomentForm):
        return lambda mu, nu: jax.jvp(F.of_moments, (F.moments(mu),), (F.moments(nu),))[1]
    if isinstance(F, PairwiseForm):
        return lambda mu, nu: nu.weights @ (F.interaction(nu.points, mu.points) @ mu.weights + F.external(nu.points))

    if isinstance(F, VariationForm):
        return lambda mu, nu: nu.weights @ F.variation(mu, nu.points)

    def along(mu: Particles, nu: Particles) -> Float[Array, ""]:
        zero = jnp.zeros((), mu.weights.dtype)
        return jax.jvp(lambda amount: F(_mixture(mu, nu, amount)), (zero,), (jnp.ones_like(zero),))[1]

    return along


def _negative(factor: Any) -> bool:
    return isinstance(factor, float) and factor < 0


def least_squares(
    F: Functional,
) -> tuple[Callable[[Particles], Float[Array, " b"]], Callable[[PyTree], Float[Array, " n"]] | None]:
    r"""The parts r and V of :math:`F(\mu)=\frac12|r(\mu)|^2+\int V\,d\mu`, of which r alone is in the integral Hessian.

    A sum is of this kind if each summand is linear in μ, such as a confinement, or of least squares with a factor
    c ≥ 0, which enters r as √c (inside jit, where a number is not known, a negative one gives NaN).

    Args:
        F: the functional.

    Returns:
        The residual, a function of measures, as one vector; and V, a function of points, None where it is zero.

    Raises:
        ValueError: if F is not of this kind.

    Example:
        >>> from pwgf_jax.functionals import mean_field_regression
        >>> F = mean_field_regression(jnp.ones((4, 2)), jnp.ones((4, 1)))
        >>> residuals, V = least_squares(2.0 * F.confined(1.0))
        >>> mu = Particles.uniform(jnp.zeros((3, 3)))
        >>> float(F(mu)), float(jnp.sum(residuals(mu) ** 2) / 2)
        (0.5, 1.0)
    """
    terms = summands(F)
    squares = [(c, part) for c, part in terms if isinstance(part, LeastSquares) and not _negative(c)]
    linear = [(c, part) for c, part in terms if isinstance(part, LinearForm)]
    if not squares or len(squares) + len(linear) < len(terms):
        kinds = ", ".join(sorted({type(part).__name__ for _, part in terms}))
        raise ValueError(
            "the Gram matrix needs a least-squares functional (mean_field_regression, student_teacher), or a sum of "
            f"such ones and potentials without a negative factor; given {kinds}."
        )

    def residuals(mu: Particles) -> Float[Array, " b"]:
        found = [(factor, part.residuals(mu).ravel()) for factor, part in squares]
        return jnp.concatenate([r if c is None else times(jnp.sqrt(jnp.asarray(c, r.dtype)), r) for c, r in found])

    def potential(points: PyTree) -> Float[Array, " n"]:
        return reduce(operator.add, (times(factor, part.potential(points)) for factor, part in linear))

    return residuals, potential if linear else None
