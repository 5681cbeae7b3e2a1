r"""First and second derivatives of a functional of a measure, by autodiff alone.

Everything follows from one number, the derivative of F at μ along a measure ν,
:math:`\int \frac{\delta F}{\delta\mu}(\mu)\,d\nu`: differentiated in ν's weights it is the first variation, in ν's
points the Wasserstein gradient, and then in μ's points the integral Hessian. A functional that declares a
form (:mod:`pwgf_jax.forms`) makes that number cheaper; nothing else changes.

Scale: gradients are :math:`\nabla_\mu F(x_i) = w_i^{-1}\partial_{x_i}F`, that is N times the Euclidean ones for
uniform weights. On particles of weight zero (a μ-null set) every field is zero; query points see the true value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from pwgf_jax.forms import (
    Functional,
    LinearForm,
    MomentForm,
    PairwiseForm,
    Piecewise,
    SumForm,
    VariationForm,
    derivative,
    summands,
)
from pwgf_jax.measures import Field, Particles, per_particle
from pwgf_jax.memory import linearized

__all__ = [
    "Functional",
    "HessianOperator",
    "first_variation",
    "hessian_matrix",
    "integral_product",
    "value_and_wasserstein_gradient",
    "wasserstein_gradient",
    "wasserstein_hessian",
]

Part: TypeAlias = Literal["integral", "local", "full"]


def _sees_weights(F: Functional, mu: Particles) -> None:
    """Refuse, from the program alone, a function of the points that never looks at the weights."""
    if isinstance(F, SumForm):
        for _, part in F.terms:
            _sees_weights(part, mu)
    if isinstance(F, LinearForm | MomentForm | PairwiseForm | SumForm | VariationForm):
        return
    program: Any = jax.make_jaxpr(F)(mu).jaxpr
    reached = {id(variable) for variable in program.outvars}
    for equation in reversed(program.eqns):
        if any(id(variable) in reached for variable in equation.outvars):
            reached |= {id(variable) for variable in equation.invars}
    *points, weights = (id(variable) in reached for variable in program.invars)
    if any(points) and not weights:
        raise ValueError(f"the functional never uses mu.weights; {AVERAGES}")


def _has_hessian(F: Functional) -> None:
    for _, part in summands(F):
        if isinstance(part, Piecewise):
            raise ValueError(part.no_hessian)


AVERAGES = "write averages over particles as mu.weights @ phi(mu.points), not jnp.mean(phi(mu.points))."


def _gradient_at(F: Functional, mu: Particles, at: PyTree) -> PyTree:
    along = derivative(F)
    ones = jnp.ones(jax.tree.leaves(at)[0].shape[0], mu.weights.dtype)
    return jax.grad(lambda points: along(mu, Particles(points, ones)))(at)


def _per_mass(mu: Particles, covector: PyTree) -> Field:
    """Divide ∂F/∂x_i by w_i; zero where the weight is zero."""
    scale = jnp.where(mu.weights == 0, 0, 1 / jnp.where(mu.weights == 0, 1, mu.weights))
    return jax.tree.map(lambda leaf: per_particle(scale, leaf) * leaf, covector)


def _on_support(mu: Particles, values: Field) -> Field:
    present = mu.weights != 0
    return jax.tree.map(lambda leaf: jnp.where(per_particle(present, leaf), leaf, 0), values)


def _queries(mu: Particles, at: PyTree) -> tuple[PyTree, bool]:
    """Query points with a leading axis, and whether a single point was given."""
    if jax.tree.structure(at) != jax.tree.structure(mu.points):
        raise ValueError(
            f"query points are structured {jax.tree.structure(at)} but the particles {jax.tree.structure(mu.points)}; "
            "give query points of the particles' structure."
        )
    at = jax.tree.map(jnp.asarray, at)
    pairs = list(zip(jax.tree.leaves(at), jax.tree.leaves(mu.points), strict=True))
    single = all(query.shape == point.shape[1:] for query, point in pairs)
    if not single and any(query.shape[1:] != point.shape[1:] for query, point in pairs):
        raise ValueError(
            f"query points have shapes {[query.shape for query, _ in pairs]}; "
            f"a query point has shapes {[point.shape[1:] for _, point in pairs]}, a batch one more leading axis."
        )
    return (jax.tree.map(lambda leaf: leaf[None], at) if single else at), single


def first_variation(F: Functional, mu: Particles) -> Callable[[PyTree], Float[Array, "..."]]:
    r"""The first variation :math:`\frac{\delta F}{\delta\mu}(\mu)(x)` as a function of the query point.

    It is determined up to a constant; this one is :math:`\frac{d}{ds}F(\mu+s\,\delta_x)` at s = 0.

    Args:
        F: the functional.
        mu: the measure.

    Returns:
        A function of query points (m, d) giving (m,), or of one point (d,) giving a scalar; points may be
        pytrees, as in ``mu`` [units of F per unit of mass].

    Example:
        >>> import jax.numpy as jnp
        >>> F = lambda mu: 0.5 * jnp.sum((mu.weights @ mu.points) ** 2)
        >>> mu = Particles.uniform(jnp.array([[1.0], [3.0]]))
        >>> first_variation(F, mu)(jnp.array([[1.0], [5.0]])).tolist()
        [2.0, 10.0]

    References:
        Yamamoto, Kim, Suzuki, arXiv:2509.16974, Sec. 2.
    """
    _sees_weights(F, mu)
    along = derivative(F)

    def variation(at: PyTree) -> Float[Array, "..."]:
        queries, single = _queries(mu, at)
        mass = jnp.zeros(jax.tree.leaves(queries)[0].shape[0], mu.weights.dtype)
        values = jax.grad(lambda weights: along(mu, Particles(queries, weights)))(mass)
        return values[0] if single else values

    return variation


def value_and_wasserstein_gradient(F: Functional, mu: Particles) -> tuple[Float[Array, ""], Field]:
    r"""The value F(μ) and the Wasserstein gradient at the particles, for the price of one reverse pass.

    Args:
        F: the functional.
        mu: the measure.

    Returns:
        F(μ), and the field :math:`\nabla_\mu F(x_i)=w_i^{-1}\partial_{x_i}F`, shaped like the points
        [units of F per unit of length]. Zero on particles of weight zero.

    Example:
        >>> import jax.numpy as jnp
        >>> F = lambda mu: mu.weights @ jnp.sum(mu.points**2, axis=-1)
        >>> value, gradient = value_and_wasserstein_gradient(F, Particles.uniform(jnp.ones((4, 2))))
        >>> float(value), gradient[0].tolist()
        (2.0, [2.0, 2.0])

    References:
        Yamamoto, Kim, Suzuki, arXiv:2509.16974, Sec. 2 and the particle form of Alg. 2.
    """
    _sees_weights(F, mu)
    value, covector = jax.value_and_grad(lambda points: F(mu.moved_to(points)))(mu.points)
    return value, _per_mass(mu, covector)


def wasserstein_gradient(F: Functional, mu: Particles, at: PyTree | None = None) -> PyTree:
    r"""The Wasserstein gradient :math:`\nabla_\mu F(\mu,x)=\nabla_x\frac{\delta F}{\delta\mu}(\mu)(x)`.

    Args:
        F: the functional.
        mu: the measure.
        at: query points (m, d), or one point (d,), structured like the particles; the particles if omitted.

    Returns:
        The gradient there, shaped like ``at`` [units of F per unit of length].

    Raises:
        ValueError: if the query points are not shaped like particles, or F never uses the weights.

    Example:
        >>> import jax.numpy as jnp
        >>> F = lambda mu: 0.5 * jnp.sum((mu.weights @ mu.points) ** 2)
        >>> mu = Particles.uniform(jnp.array([[1.0], [3.0]]))
        >>> wasserstein_gradient(F, mu, at=jnp.array([[10.0]])).tolist()
        [[2.0]]

    References:
        Yamamoto, Kim, Suzuki, arXiv:2509.16974, Sec. 2.
    """
    if at is None:
        return value_and_wasserstein_gradient(F, mu)[1]
    _sees_weights(F, mu)
    queries, single = _queries(mu, at)
    gradient = _gradient_at(F, mu, queries)
    return jax.tree.map(lambda leaf: leaf[0], gradient) if single else gradient


def integral_product(F: Functional, mu: Particles, v: Field, at: PyTree) -> PyTree:
    r"""The integral Hessian product :math:`(H_\mu v)(x)=\int\nabla^2_\mu F(\mu,x,y)\,v(y)\,\mu(dy)` at any points x.

    Args:
        F: the functional.
        mu: the measure.
        v: a field on it.
        at: query points (m, d).

    Returns:
        The field at the query points [units of F per length², times the units of v].

    Example:
        >>> import jax.numpy as jnp
        >>> F = lambda mu: 0.5 * jnp.sum((mu.weights @ mu.points) ** 2)
        >>> mu = Particles.uniform(jnp.zeros((2, 1)))
        >>> integral_product(F, mu, jnp.array([[1.0], [3.0]]), at=jnp.array([[7.0]])).tolist()
        [[2.0]]

    References:
        Yamamoto, Kim, Suzuki, arXiv:2509.16974, Sec. 3 (the operator H_μ).
    """
    _sees_weights(F, mu)
    _has_hessian(F)
    queries, single = _queries(mu, at)
    with jax.default_matmul_precision("highest"):
        product = jax.jvp(lambda points: _gradient_at(F, mu.moved_to(points), queries), (mu.points,), (v,))[1]
    return jax.tree.map(lambda leaf: leaf[0], product) if single else product


@dataclass(frozen=True, eq=False)
class HessianOperator:
    r"""A linear map on the fields of a measure, self-adjoint in :math:`L^2(\mu)`; call it on a field.

    Args:
        apply: the linear map.
        mu: the measure that its inner products belong to; None for parameters, whose inner product is Euclidean.

    Example:
        >>> import jax.numpy as jnp
        >>> F = lambda mu: mu.weights @ jnp.sum(mu.points**2, axis=-1)
        >>> H = wasserstein_hessian(F, Particles.uniform(jnp.ones((4, 2))), part="full")
        >>> H(jnp.ones((4, 2)))[0].tolist()
        [2.0, 2.0]
    """

    apply: Callable[[PyTree], PyTree] = field(repr=False)
    mu: Particles | None

    def __call__(self, v: PyTree) -> PyTree:
        """The product with a field."""
        return self.apply(v)

    def squared(self) -> HessianOperator:
        """The operator applied twice."""
        return HessianOperator(lambda v: self.apply(self.apply(v)), self.mu)


def wasserstein_hessian(F: Functional, mu: Particles, part: Part = "integral") -> HessianOperator:
    r"""The Wasserstein Hessian of F at μ, linearised once and ready for many products.

    * ``"integral"``: the papers' :math:`H_\mu v(x)=\int\nabla^2_\mu F(\mu,x,y)v(y)\,\mu(dy)`: the derivative of the
      gradient through the measure alone, query points held fixed.
    * ``"local"``: :math:`H'_\mu v(x)=\nabla\nabla_\mu F(\mu,x)\,v(x)`: through the query points alone.
    * ``"full"``: their sum, N·∇²F_N for uniform weights, the second derivative of F along push-forwards.

    Args:
        F: the functional.
        mu: the measure.
        part: which of the three.

    Returns:
        An operator on fields, self-adjoint in L²(μ), in full matmul precision on every device
        [units of F per length²].

    Raises:
        ValueError: if ``part`` is none of the three, or F declares that it has no Hessian.

    Example:
        >>> import jax.numpy as jnp
        >>> F = lambda mu: 0.5 * jnp.sum((mu.weights @ mu.points) ** 2)
        >>> H = wasserstein_hessian(F, Particles.uniform(jnp.zeros((2, 1))))
        >>> H(jnp.array([[1.0], [3.0]])).tolist()
        [[2.0], [2.0]]

    References:
        Yamamoto, Kim, Suzuki, arXiv:2509.16974, Sec. 3, Prop. 3.2.
    """
    derivatives: dict[str, Callable[[PyTree], Field]] = {
        "integral": lambda points: _gradient_at(F, mu.moved_to(points), mu.points),
        "local": lambda points: _gradient_at(F, mu, points),
        "full": lambda points: value_and_wasserstein_gradient(F, mu.moved_to(points))[1],
    }
    if part not in derivatives:
        raise ValueError(f'wasserstein_hessian: part={part!r}; choose "integral", "local" or "full".')
    _sees_weights(F, mu)
    _has_hessian(F)
    with jax.default_matmul_precision("highest"):
        linear = linearized(derivatives[part], mu.points)
    return HessianOperator(lambda v: _on_support(mu, linear(v)), mu)


def hessian_matrix(
    F: Functional, mu: Particles, part: Part = "integral", *, memory_limit: float = 4e9
) -> Float[Array, "nd nd"]:
    r"""The dense matrix of :func:`wasserstein_hessian` in the ravelled coordinates of ``mu.points``.

    ``ravel(H v) = matrix @ ravel(v)``. For uniform weights it is symmetric, with N×N blocks
    :math:`\frac1N\nabla^2_\mu F(x_i,x_j)` for the integral part; in general block (i, j) carries :math:`w_j`.

    Args:
        F: the functional.
        mu: the measure.
        part: ``"integral"``, ``"local"`` or ``"full"``.
        memory_limit: largest matrix allowed [bytes].

    Returns:
        A matrix of side N·d.

    Raises:
        ValueError: if the matrix would be larger than ``memory_limit``.

    Example:
        >>> import jax.numpy as jnp
        >>> F = lambda mu: 0.5 * jnp.sum((mu.weights @ mu.points) ** 2)
        >>> hessian_matrix(F, Particles.uniform(jnp.zeros((2, 1)))).tolist()
        [[0.5, 0.5], [0.5, 0.5]]
    """
    flat, unravel = ravel_pytree(mu.points)
    size = flat.size * flat.size * flat.dtype.itemsize
    if size > memory_limit:
        raise ValueError(
            f"hessian_matrix: a dense {flat.size} x {flat.size} matrix takes {size / 1e9:.3g} GB, over "
            f"memory_limit={memory_limit:.3g} bytes; use wasserstein_hessian with pwgf_jax.krylov, or fewer particles."
        )
    operator = wasserstein_hessian(F, mu, part)
    columns = jax.lax.map(lambda v: ravel_pytree(operator(unravel(v)))[0], jnp.eye(flat.size, dtype=flat.dtype))
    return columns.T
