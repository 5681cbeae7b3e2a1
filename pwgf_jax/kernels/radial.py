r"""Radial kernels :math:`k(x,y)=\rho(\|x-y\|^2)`: everything from one profile ρ, by matrix products, in row chunks.

With Δ = x − y: :math:`\nabla_1k=2\rho'\Delta`, :math:`\nabla_1\nabla_1k=2\rho'I+4\rho''\Delta\Delta^\top` and
:math:`\nabla_1\nabla_2k=-\nabla_1\nabla_1k`. Sums over j never form Δ:
:math:`\sum_ja_{ij}\Delta_{ij}=x_i\sum_ja_{ij}-(Ay)_i`.

**Coincident points.** A kernel that is not smooth on the diagonal (Laplace, energy, Coulomb) has ρ' = ρ'' = 0 at
distance zero: a coincident pair exerts no force and has no curvature. Its value is ρ(0) where that is finite and 0
where it is not (Coulomb in two and more dimensions). Sums and products follow from their parts. In up to four
dimensions coincident means equal up to the last digits of the coordinates (a compiler may work out one point in two
places, and differently in the last digit); in more, a squared distance below the rounding error of its own computation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from pwgf_jax import memory
from pwgf_jax.kernels.base import Kernel

__all__ = ["Profile", "Radial"]

FEWEST_ROWS = 128  # in a pass: what matrix products need to be fast (tests/benchmarks)
# Up to here squared distances are sums of squared differences: accurate for near points, and faster on CPU.
DIRECT_DIMENSIONS = 4


Profile: TypeAlias = Callable[[Array], tuple[Array, Array, Array]]
"""The function ρ of squared distances, with two derivatives: s -> (ρ, ρ', ρ''). A pytree."""


@runtime_checkable
class LogLinear(Protocol):
    """A profile with ρ' = c ρ, as the Gaussian's; its sums take one matrix product less."""

    def rate(self, dtype: Any) -> Array:
        """The constant c."""
        ...


@runtime_checkable
class Kinked(Protocol):
    """A profile whose kernel is not smooth where points meet."""

    kink: ClassVar[bool]


def _dot(a: Array, b: Array) -> Array:
    # Full precision everywhere: TF32 would spoil small distances, and differences of near sums.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def squared_distances(
    x: Float[Array, "n d"], transposed: Float[Array, "d m"], reach: float | Float[Array, ""] = 0.0
) -> Float[Array, "n m"]:
    """The matrix ‖x_i − y_j‖² of centred points, y given as columns; exactly zero where rounding error begins.

    ``reach`` is the largest coordinate before the points were centred, whose last digits are not known.
    """
    dimension, eps = x.shape[1], jnp.finfo(x.dtype).eps
    if dimension <= DIRECT_DIMENSIONS:
        s = jnp.zeros((x.shape[0], transposed.shape[1]), x.dtype)
        for a, b in zip(x.T, transposed, strict=True):
            s += (a[:, None] - b[None]) ** 2
        rounding = dimension * (4 * eps * reach) ** 2
    else:
        squares = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(transposed**2, axis=0)[None]
        s = squares - 2 * _dot(x, transposed)
        rounding = (dimension + 3) * eps * squares  # a bound, whatever the order of the summation
    floored = jnp.where(s <= rounding, 0, s)
    return s + jax.lax.stop_gradient(floored - s)  # zero in value, but not in its derivatives


def transpose(y: Float[Array, "m d"]) -> Float[Array, "d m"]:
    """The transpose, really made: read in place it costs the loops over pairs a fifth of their time on CPU."""
    return jax.lax.optimization_barrier(y.T)


def _centred(x: Array, y: Array) -> tuple[Array, Array, Array]:
    """The points about their common mean, and the largest coordinate that they had."""
    # Radial kernels do not see the shift, their rounding errors do; so neither do derivatives need it.
    count = x.shape[0] + y.shape[0]
    centre = jax.lax.stop_gradient(jnp.sum(x, axis=0) + jnp.sum(y, axis=0)) / count
    reach = jnp.maximum(jnp.max(jnp.abs(x)), jnp.max(jnp.abs(y)))
    return x - centre[None], y - centre[None], jax.lax.stop_gradient(reach)


def by_rows(block: Callable[[Any], Any], rows: Any, columns: int, chunk_size: int | None) -> Any:
    """Apply ``block`` to row chunks of arrays with a common leading axis; memory O(chunk · columns)."""
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size}; give a positive number of rows, or None for automatic.")
    dtype = jax.tree.leaves(rows)[0].dtype
    return memory.by_rows(block, rows, chunk_size or memory.rows_per_tile(columns, dtype, FEWEST_ROWS))


def _with_ones(y: Array, w: Array) -> Array:
    """The columns (w y, w), so that one product gives Σ_j a_ij w_j y_j and Σ_j a_ij w_j."""
    return jnp.concatenate([w[:, None] * y, w[:, None]], axis=1)


def _moments(a: Array, x: Array, columns: Array) -> tuple[Array, Array]:
    """Σ_j a_ij w_j and Σ_j a_ij w_j (x_i − y_j) for columns (w y, w)."""
    product = _dot(a, columns)
    return product[:, -1], x * product[:, -1:] - product[:, :-1]


def _raw_sums(profile: Profile, x: Array, y: Array, w: Array, chunk_size: int | None) -> tuple[Array, Array]:
    x, y, reach = _centred(x, y)
    transposed, columns = transpose(y), _with_ones(y, w)

    def block(rows: Array) -> tuple[Array, Array]:
        value, slope, _ = profile(squared_distances(rows, transposed, reach))
        if isinstance(profile, LogLinear):  # one matrix is both, and one product
            values, moments = _moments(value, rows, columns)
            return values, 2 * profile.rate(x.dtype) * moments
        return _dot(value, w), 2 * _moments(slope, rows, columns)[1]

    return by_rows(block, x, y.shape[0], chunk_size)


def _slopes(profile: Profile, x: Array, y: Array, u: Array, chunk_size: int | None) -> Array:
    """Σ_j ∇₂k(x_i, y_j)·u_j."""
    x, y, reach = _centred(x, y)
    transposed, along = transpose(y), jnp.sum(y * u, axis=1)

    def block(rows: Array) -> Array:
        _, slope, _ = profile(squared_distances(rows, transposed, reach))
        return -2 * jnp.sum(slope * (_dot(rows, u.T) - along[None]), axis=1)

    return by_rows(block, x, y.shape[0], chunk_size)


def _second(
    profile: Profile, x: Array, y: Array, local: tuple[Array, Array] | None, u: Array | None, chunk_size: int | None
) -> Array:
    """Σ_j w_j ∇₁∇₁k(x_i,y_j) v_i for local = (w, v), plus Σ_j ∇₁∇₂k(x_i,y_j) u_j; either term may be left out."""
    x, y, reach = _centred(x, y)
    w, v = (None, None) if local is None else local
    transposed, columns = transpose(y), _with_ones(y, jnp.ones_like(y[:, 0]))

    def block(rows: Any) -> Array:
        x, v = rows
        _, slope, curvature = profile(squared_distances(x, transposed, reach))
        out, along = jnp.zeros_like(x), jnp.zeros_like(slope)  # along_ij = Δ_ij·(w_j v_i − u_j)
        if w is not None:
            along += w[None] * (jnp.sum(x * v, axis=1)[:, None] - _dot(v, transposed))
            out += 2 * _dot(slope, w)[:, None] * v
        if u is not None:
            along -= _dot(x, u.T) - jnp.sum(y * u, axis=1)[None]
            out -= 2 * _dot(slope, u)
        return out + 4 * _moments(curvature * along, x, columns)[1]

    return by_rows(block, (x, v), y.shape[0], chunk_size)


# The rules of differentiation. Tangents that are known to be zero (a constant target's) cost nothing; every other one
# enters linearly and elementwise, so that reverse mode is free, and no rule computes what only another one needs.


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, SymbolicZero)


def _in_profile(function: Callable[[Profile], Any], profile: Profile, tangent: Any) -> Any:
    """The derivative in the profile's own parameters, by autodiff; None if none of them moves."""
    if all(map(_is_zero, jax.tree.leaves(tangent, is_leaf=_is_zero))):
        return None
    dense = jax.tree.map(lambda t, p: jnp.zeros_like(p) if _is_zero(t) else t, tangent, profile, is_leaf=_is_zero)
    return jax.jvp(function, (profile,), (dense,))[1]


def _total(terms: list[Any], like: Array) -> Array:
    return sum((term for term in terms if term is not None), jnp.zeros_like(like))


def _values_tangent(chunk_size: int | None, primals: Any, tangents: Any, values: Array, gradients: Array) -> Array:
    profile, x, y, w = primals
    dprofile, dx, dy, dw = tangents
    terms = [
        None if _is_zero(dx) else jnp.sum(gradients * dx, axis=1),
        None if _is_zero(dy) else _slopes(profile, x, y, w[:, None] * dy, chunk_size),
        None if _is_zero(dw) else _raw_sums(profile, x, y, dw, chunk_size)[0],
        _in_profile(lambda p: _raw_sums(p, x, y, w, chunk_size)[0], profile, dprofile),
    ]
    return _total(terms, values)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _sums(chunk_size: int | None, profile: Profile, x: Array, y: Array, w: Array) -> tuple[Array, Array]:
    return _raw_sums(profile, x, y, w, chunk_size)


@partial(_sums.defjvp, symbolic_zeros=True)
def _sums_jvp(chunk_size, primals, tangents):
    profile, x, y, w = primals
    dprofile, dx, dy, dw = tangents
    values, gradients = _sums(chunk_size, *primals)
    local, u = None if _is_zero(dx) else (w, dx), None if _is_zero(dy) else w[:, None] * dy
    terms = [
        None if local is None and u is None else _second(profile, x, y, local, u, chunk_size),
        None if _is_zero(dw) else _raw_sums(profile, x, y, dw, chunk_size)[1],
        _in_profile(lambda p: _raw_sums(p, x, y, w, chunk_size)[1], profile, dprofile),
    ]
    dvalues = _values_tangent(chunk_size, primals, tangents, values, gradients)
    return (values, gradients), (dvalues, _total(terms, gradients))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _values(chunk_size: int | None, profile: Profile, x: Array, y: Array, w: Array) -> Array:
    return _raw_sums(profile, x, y, w, chunk_size)[0]


@partial(_values.defjvp, symbolic_zeros=True)
def _values_jvp(chunk_size, primals, tangents):
    values, gradients = _sums(chunk_size, *primals)
    return values, _values_tangent(chunk_size, primals, tangents, values, gradients)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _quadratic(chunk_size: int | None, profile: Profile, x: Array, a: Array) -> Array:
    return a @ _raw_sums(profile, x, x, a, chunk_size)[0]


@partial(_quadratic.defjvp, symbolic_zeros=True)
def _quadratic_jvp(chunk_size, primals, tangents):
    # By symmetry one pass over the pairs is the value and both halves of the derivative.
    profile, x, a = primals
    dprofile, dx, da = tangents
    values, gradients = _sums(chunk_size, profile, x, x, a)
    value = a @ values
    terms = [
        None if _is_zero(dx) else 2 * jnp.sum(a[:, None] * gradients * dx),
        None if _is_zero(da) else 2 * values @ da,
        _in_profile(lambda p: a @ _raw_sums(p, x, x, a, chunk_size)[0], profile, dprofile),
    ]
    return value, _total(terms, value)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Radial(Kernel):
    r"""The kernel :math:`k(x,y)=\rho(\|x-y\|^2)` of a profile ρ, on points (n, d).

    Args:
        profile: ρ, a pytree that maps squared distances to (ρ, ρ', ρ'').

    Example:
        >>> import jax.numpy as jnp
        >>> from pwgf_jax.kernels import gaussian
        >>> k, x = gaussian(1.0), jnp.array([[0.0], [1.0]])
        >>> values, gradients = k.sums(x, x, jnp.ones(2))
        >>> [round(float(v), 3) for v in values], [round(float(g), 3) for g in gradients[:, 0]]
        ([1.607, 1.607], [0.607, -0.607])
    """

    profile: Profile

    @property
    def smooth(self) -> bool:
        """Whether it has derivatives where points meet: no part of the profile says that it has a kink."""
        parts = jax.tree.leaves(self.profile, is_leaf=lambda part: isinstance(part, Kinked))
        return not any(isinstance(part, Kinked) for part in parts)

    def __call__(self, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """The matrix k(x_i, y_j)."""
        x, y, reach = _centred(x, y)
        return self.profile(squared_distances(x, transpose(y), reach))[0]

    def diagonal(self, x: Float[Array, "n d"]) -> Float[Array, " n"]:
        """The value ρ(0), everywhere."""
        return self.profile(jnp.zeros_like(x[:, 0]))[0]

    def sums(
        self, x: Float[Array, "n d"], y: Float[Array, "m d"], w: Float[Array, " m"], *, chunk_size: int | None = None
    ) -> tuple[Float[Array, " n"], Float[Array, "n d"]]:
        """Σ_j w_j k(x_i,y_j) and Σ_j w_j ∇₁k(x_i,y_j), in one pass."""
        return _sums(chunk_size, self.profile, x, y, w)

    def values(
        self, x: Float[Array, "n d"], y: Float[Array, "m d"], w: Float[Array, " m"], *, chunk_size: int | None = None
    ) -> Float[Array, " n"]:
        """Σ_j w_j k(x_i,y_j); with its gradient one pass too."""
        return _values(chunk_size, self.profile, x, y, w)

    def mixed(
        self, x: Float[Array, "n d"], y: Float[Array, "m d"], v: Float[Array, "m d"], *, chunk_size: int | None = None
    ) -> Float[Array, "n d"]:
        """Σ_j ∇₁∇₂k(x_i,y_j) v_j."""
        return _second(self.profile, x, y, None, v, chunk_size)

    def local(
        self,
        x: Float[Array, "n d"],
        y: Float[Array, "m d"],
        w: Float[Array, " m"],
        v: Float[Array, "n d"],
        *,
        chunk_size: int | None = None,
    ) -> Float[Array, "n d"]:
        """Σ_j w_j ∇₁∇₁k(x_i,y_j) v_i."""
        return _second(self.profile, x, y, (w, v), None, chunk_size)

    def quadratic(
        self, x: Float[Array, "n d"], a: Float[Array, " n"], *, chunk_size: int | None = None
    ) -> Float[Array, ""]:
        """Σ_ij a_i a_j k(x_i,x_j)."""
        return _quadratic(chunk_size, self.profile, x, a)

    def scaled(self, factor: Any) -> Kernel:
        """The profile times a number."""
        return Radial(Scaled(self.profile, factor))

    def __add__(self, other: Any) -> Kernel:
        return Radial(Added(self.profile, other.profile)) if isinstance(other, Radial) else super().__add__(other)

    def __mul__(self, other: Any) -> Kernel:
        return Radial(Multiplied(self.profile, other.profile)) if isinstance(other, Radial) else super().__mul__(other)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scaled:
    """A profile times a number."""

    profile: Profile
    factor: Any

    def __call__(self, s: Array) -> tuple[Array, Array, Array]:
        """Each derivative times the number."""
        factor = jnp.asarray(self.factor, s.dtype)
        value, slope, curvature = self.profile(s)
        return factor * value, factor * slope, factor * curvature


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Added:
    """The sum of two profiles."""

    first: Profile
    second: Profile

    def __call__(self, s: Array) -> tuple[Array, Array, Array]:
        """The sum of each derivative."""
        (f0, f1, f2), (g0, g1, g2) = self.first(s), self.second(s)
        return f0 + g0, f1 + g1, f2 + g2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Multiplied:
    """The product of two profiles."""

    first: Profile
    second: Profile

    def __call__(self, s: Array) -> tuple[Array, Array, Array]:
        """The product rule."""
        (f0, f1, f2), (g0, g1, g2) = self.first(s), self.second(s)
        return f0 * g0, f1 * g0 + f0 * g1, f2 * g0 + 2 * f1 * g1 + f0 * g2
