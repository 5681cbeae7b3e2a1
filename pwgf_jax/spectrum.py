r"""What Lanczos from a random start shows of a Hessian's smallest eigenvalue, and what it excludes.

The Rayleigh quotient of any unit field is an upper bound of :math:`\lambda_{\min}`. The lower bound is one of
probability: an eigenvalue further down would show in the moments of the start, unless the start has hardly any of its
eigenvector.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from pwgf_jax import trees, tridiagonal
from pwgf_jax.calculus import HessianOperator, Part
from pwgf_jax.empirical import hessian
from pwgf_jax.measures import Particles, traceable
from pwgf_jax.objective import Objective, Point, coordinates
from pwgf_jax.symmetries import Pinned

__all__ = [
    "FIRST_LOOK",
    "Budget",
    "Curvature",
    "Sighting",
    "Spectrum",
    "along",
    "begun",
    "deepest",
    "eigenvalues",
    "flat_geometry",
    "flat_hessian",
    "search",
    "sight",
    "sighting",
    "spectrum_bound",
]


class Sighting(NamedTuple):
    """What a Lanczos recurrence shows of the smallest eigenvalue, as arrays: usable inside ``jit``.

    Args:
        eigenvalue: Rayleigh quotient.
        residual: of the pair.
        lower: lower bound with the stated probability, −inf where nothing is known yet.
        rounding: absolute rounding level.
        direction: unit field.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pwgf_jax import Particles
        >>> F = lambda mu: -mu.weights @ jnp.sum(mu.points**2, axis=-1)
        >>> mu = Particles.uniform(jnp.zeros((4, 2)))
        >>> float(sight(F, mu, "full", jax.random.key(0), depth=4).eigenvalue)
        -2.0
    """

    eigenvalue: Float[Array, ""]
    residual: Float[Array, ""]
    lower: Float[Array, ""]
    rounding: Float[Array, ""]
    direction: PyTree


def _log_failure(x: Array, recurrence: tridiagonal.Recurrence, eps: float, dimension: Array) -> Array:
    """Of an eigenvalue at or below each x, the logarithm of the probability that this recurrence has missed it."""
    level = jnp.maximum(eps * recurrence.scale, jnp.finfo(x.dtype).tiny)
    small = jnp.log(2 * dimension.astype(x.dtype) / jnp.pi) / 2
    off = recurrence.off_diagonal
    # Past such a residual the vectors may be rounding: they count as another start. Too many starts are only cautious.
    ends = (off <= 100 * level) | (jnp.arange(off.size, dtype=jnp.int32) == recurrence.steps - 1)

    def step(j: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        pivot, log_pi, log_sum, log_failure, below = carry
        coupled = (j > 0) & ~ends[j - 1]
        pivot = recurrence.diagonal[j] - x - jnp.where(coupled, off[j - 1] ** 2 / pivot, 0)
        below = below & (pivot > 0)
        pivot = jnp.where(pivot > 0, pivot, 1)
        log_pi = log_pi + jnp.log(pivot) - jnp.log(jnp.maximum(off[j], level))
        log_sum = jnp.logaddexp(log_sum, 2 * log_pi)
        log_failure = log_failure + jnp.where(ends[j], jnp.minimum(small - log_sum / 2, 0), 0)
        return pivot, jnp.where(ends[j], 0, log_pi), jnp.where(ends[j], 0, log_sum), log_failure, below

    zero = jnp.zeros_like(x)
    start = (jnp.ones_like(x), zero, zero, zero, jnp.ones(x.shape, bool))
    *_, log_failure, below = jax.lax.fori_loop(0, recurrence.steps, step, start)
    return jnp.where(below, log_failure, 0)


def spectrum_bound(
    recurrence: tridiagonal.Recurrence, lowest: Array, eps: float, dimension: Array, failure: float
) -> Float[Array, ""]:
    r"""A number that λ_min is not below, with probability 1 − failure, after Lanczos from a random start.

    The vectors of Lanczos are :math:`q_{j+1}=\pi_j(A)q_1` with the polynomials of the recurrence,
    :math:`\beta_{j+1}\pi_{j+1}=(x-\alpha_{j+1})\pi_j-\beta_j\pi_{j-1}`, and orthonormal. So a unit eigenvector v of λ
    has :math:`\langle v,q_1\rangle^2\sum_{j\le m}\pi_j(\lambda)^2\le1`. A start uniform on the sphere of dimension n
    has :math:`\langle v,q_1\rangle^2\le\frac{\pi p^2}{2n}` with probability at most p. So λ_min is not below the x
    under all Ritz values with :math:`\sum_{j\le m}\pi_j(x)^2=\frac{2n}{\pi p^2}`, for all depths m on the same event.

    In floating point an off-diagonal β is no smaller than rounding, and vectors beyond one that might be
    rounding count as a new start, whose failures multiply; then the events of different depths differ.

    Args:
        recurrence: of :func:`pwgf_jax.tridiagonal.extend`, with a key.
        lowest: its smallest Ritz value.
        eps: relative precision of the products.
        dimension: n.
        failure: p.

    Returns:
        The bound; −∞ where nothing is excluded.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> spectrum = jnp.linspace(-1.0, 1.0, 100)
        >>> flat = tridiagonal.flatten(lambda v: spectrum * v, spectrum)
        >>> start_key, fresh_key = jax.random.split(jax.random.key(0))
        >>> begun = tridiagonal.begin(tridiagonal.random_start(start_key, flat), 30, flat.support)
        >>> found = tridiagonal.extend(flat, begun, 0, 30, fresh_key)
        >>> lowest = tridiagonal.ritz(tridiagonal.finish(found))[0][0]
        >>> bound = spectrum_bound(found, lowest, flat.eps, jnp.sum(flat.support), failure=1e-3)
        >>> bool(-1.1 < bound <= -1.0)
        True

    References:
        Golub and Meurant, Matrices, Moments and Quadrature, Ch. 2 and 6: no measure with these moments has more mass
        at x than the inverse of that sum. The random start is that of Kuczyński and Woźniakowski, SIAM J. Matrix
        Anal. Appl. 13 (1992).
    """
    dtype = lowest.dtype
    unit = jnp.maximum(recurrence.scale, jnp.finfo(dtype).tiny)
    grid = jnp.arange(1, 32, dtype=dtype)
    # Below the smallest Ritz value, the probability falls with the distance: first its order of magnitude, then digits.
    magnitudes = unit * 4.0 ** (grid - 22)

    def narrowed(turn: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        distances = jnp.where(turn == 0, magnitudes, low + (high - low) * grid / 32)
        log_failure = _log_failure(lowest - distances, recurrence, eps, dimension)
        first = jnp.sum(log_failure > math.log(failure))
        edges = jnp.concatenate([low[None], distances, high[None]])
        return edges[first], edges[first + 1]

    start = (jnp.zeros((), dtype), jnp.full((), jnp.inf, dtype))
    _, distance = jax.lax.fori_loop(0, 3, narrowed, start)
    distance = jnp.where(jnp.isnan(distance), jnp.inf, distance)
    return lowest - jnp.where(recurrence.room > 0, distance, 0)  # a basis of the whole space has missed nothing


def sighting(flat: tridiagonal.FlatOperator, recurrence: tridiagonal.Recurrence, failure: float) -> Sighting:
    """What a recurrence from a random start shows, for one Hessian product more.

    Args:
        flat: the operator.
        recurrence: of :func:`pwgf_jax.tridiagonal.extend`, with a key.
        failure: probability that the lower bound fails.

    Returns:
        A :class:`Sighting`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> spectrum = jnp.array([-1.0, 0.0, 2.0])
        >>> flat = tridiagonal.flatten(lambda v: spectrum * v, spectrum)
        >>> begun = tridiagonal.begin(jnp.ones(3), 3, flat.support)
        >>> seen = sighting(flat, tridiagonal.extend(flat, begun, 0, 3, jax.random.key(0)), failure=1e-3)
        >>> round(float(seen.eigenvalue), 4), round(float(seen.lower), 4)
        (-1.0, -1.0)
    """
    found = tridiagonal.finish(recurrence)
    values, vectors, _ = tridiagonal.ritz(found)
    eigenvalue, vector, residual = tridiagonal.rayleigh(flat, vectors[:, 0] @ found.basis)
    # The product and the recurrence would agree on the eigenvalue if it were not for rounding.
    rounding = tridiagonal.rounding(flat, recurrence.scale) + jnp.abs(eigenvalue - values[0])
    lower = spectrum_bound(recurrence, values[0], flat.eps, jnp.sum(flat.support), failure) - rounding
    return Sighting(eigenvalue, residual + rounding, lower, rounding, flat.to_field(vector))


def flat_hessian(F: Objective, mu: Point, part: Part) -> tridiagonal.FlatOperator:
    """A Hessian, of a functional at a measure or of a loss at parameters, as a symmetric matrix on flat vectors.

    Example:
        >>> import jax.numpy as jnp
        >>> from pwgf_jax import Particles
        >>> F = lambda mu: mu.weights @ jnp.sum(mu.points**2, axis=-1)
        >>> flat_hessian(F, Particles.uniform(jnp.zeros((2, 1))), "full").matvec(jnp.ones(2)).tolist()
        [2.0, 2.0]
    """
    of = F.hessian(mu, part) if isinstance(F, Pinned) else hessian(F, mu, part)
    return tridiagonal.flatten(of, coordinates(mu))


def sight(F: Objective, mu: Point, part: Part, key: Array, depth: int, failure: float = 1e-3) -> Sighting:
    r"""The smallest eigenvalue of a Hessian after ``depth`` Lanczos steps from a random start, with its bounds.

    Args:
        F: the functional, or a loss.
        mu: the measure, or parameters.
        part: ``"integral"`` or ``"full"``; of a loss, ``"full"``.
        key: typed random key.
        depth: Krylov dimension, capped by the size of a field.
        failure: probability that the lower bound fails.

    Returns:
        A :class:`Sighting`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pwgf_jax import Particles
        >>> F = lambda mu: 0.5 * jnp.sum((mu.weights @ mu.points) ** 2)
        >>> seen = sight(F, Particles.uniform(jnp.zeros((4, 2))), "integral", jax.random.key(0), depth=4)
        >>> bool(abs(seen.eigenvalue) < 1e-5), bool(seen.lower > -1e-4)
        (True, True)
    """
    start_key, fresh_key = jax.random.split(key)
    with jax.default_matmul_precision("highest"):
        flat = flat_hessian(F, mu, part)
        depth = min(depth, flat.support.size)
        begun = tridiagonal.begin(tridiagonal.random_start(start_key, flat), depth, flat.support)
        return sighting(flat, tridiagonal.extend(flat, begun, 0, depth, fresh_key), failure)


FIRST_LOOK = 16
"""Steps of Lanczos before the first look at what they show; then twice as many every time."""

_BASIS = 2**30  # bytes of a Krylov basis, where nothing else is said


class Curvature(NamedTuple):
    """What is known of the smallest eigenvalue of one operator.

    Args:
        eigenvalue: Rayleigh quotient of ``direction``: an upper bound of λ_min, up to ``rounding``.
        residual: an eigenvalue lies within this distance of ``eigenvalue``, rounding included.
        lower: λ_min is not below this, with probability at least 1 − failure, rounding included.
        rounding: what rounding can move an eigenvalue by, in this precision.
        direction: unit field that attains ``eigenvalue``.
        products: Hessian products spent.

    Example:
        >>> Curvature(-1.0, 0.1, -1.1, 1e-7, None, 16).below(0.5)
        True
    """

    eigenvalue: float
    residual: float
    lower: float
    rounding: float
    direction: PyTree
    products: int

    def below(self, delta: float) -> bool | None:
        """Whether λ_min is below −δ; None where that is open."""
        if self.eigenvalue + self.rounding < -delta:
            return True
        return False if self.lower >= -delta else None


class Budget(NamedTuple):
    """What a search may spend, and how often its bound may fail.

    Args:
        products: Hessian products at most.
        depth: longest Krylov basis kept.
        failure: upper bound of the probability that ``Curvature.lower`` is above λ_min.

    Example:
        >>> Budget(products=512, depth=32, failure=1e-3).depth
        32
    """

    products: int
    depth: int
    failure: float


def deepest(point: Point, max_depth: int | None) -> int:
    """The longest Krylov basis to keep: the one asked for, or what one GiB holds, at least 32.

    Example:
        >>> import jax.numpy as jnp
        >>> deepest(jnp.zeros(2**20, "float32"), None), deepest(jnp.zeros(3), 7)
        (256, 7)
    """
    if max_depth is not None:
        return max_depth
    at = coordinates(point)
    return max(32, _BASIS // max(trees.size(at) * trees.dtype(at).itemsize, 1))


def flat_geometry(point: Point) -> tridiagonal.FlatOperator:
    """Fields at a point as flat vectors, with the identity for an operator: what needs no objective.

    Example:
        >>> import jax.numpy as jnp
        >>> flat_geometry({"a": jnp.zeros(2), "b": jnp.zeros(())}).to_field(jnp.arange(3.0))["a"].tolist()
        [0.0, 1.0]
    """
    mu = point if isinstance(point, Particles) else None
    return tridiagonal.flatten(HessianOperator(lambda v: v, mu), coordinates(point))


@partial(jax.jit, static_argnums=2)
def begun(point: Point, key: Array, depth: int) -> tridiagonal.Recurrence:
    """The recurrence of Lanczos from a random start at a measure or at parameters, before its first step.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> begun(jnp.zeros(5), jax.random.key(0), 3).basis.shape
        (1, 15)
    """
    flat = flat_geometry(point)
    return tridiagonal.begin(tridiagonal.random_start(key, flat), depth, flat.support)


@partial(jax.jit, static_argnums=(2, 7))
def _deepen(
    F: Objective,
    point: Point,
    part: Part,
    recurrence: tridiagonal.Recurrence,
    first: Array,
    last: Array,
    key: Array,
    failure: float,
) -> tuple[tridiagonal.Recurrence, Sighting]:
    """Steps ``first`` to ``last``, and what is known after them."""
    with jax.default_matmul_precision("highest"):
        flat = flat_hessian(F, point, part)
        recurrence = tridiagonal.extend(flat, recurrence, first, last, key)
        return recurrence, sighting(flat, recurrence, failure)


@partial(jax.jit, static_argnums=2)
def along(F: Objective, point: Point, part: Part, direction: PyTree) -> tuple[Array, Array]:
    """Rayleigh quotient and residual of a direction.

    Example:
        >>> import jax.numpy as jnp
        >>> from pwgf_jax.measures import traceable
        >>> loss = traceable(lambda x: jnp.sum(jnp.array([1.0, 3.0]) * x**2))
        >>> [float(x) for x in along(loss, jnp.zeros(2), "full", jnp.array([0.0, 1.0]))]
        [6.0, 0.0]
    """
    with jax.default_matmul_precision("highest"):
        flat = flat_hessian(F, point, part)
        eigenvalue, _, residual = tridiagonal.rayleigh(flat, flat.to_flat(direction))
        return eigenvalue, residual


def search(F: Objective, point: Point, part: Part, delta: float, key: Array, budget: Budget) -> Curvature:
    """Lanczos, deepened until curvature below −δ is seen or excluded, or the budget is spent; not to be traced.

    Args:
        F: a functional or a loss, as a pytree.
        point: a measure, or parameters.
        part: of the Hessian, as in :func:`sight`.
        delta: δ.
        key: typed random key, for the start.
        budget: a :class:`Budget`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pwgf_jax.measures import traceable
        >>> loss = traceable(lambda x: jnp.sum(jnp.cos(x)))
        >>> found = search(loss, jnp.zeros(3), "full", 0.1, jax.random.key(0), Budget(32, 8, 1e-3))
        >>> round(found.eigenvalue, 4), found.below(0.1)
        (-1.0, True)
    """
    # Every look costs one product more than its steps.
    cap = min(budget.depth, budget.products - 1, trees.size(coordinates(point)))
    depth, done, products, lower = min(FIRST_LOOK, cap), 0, 0, -math.inf
    looks = 1 + math.ceil(math.log2(max(cap / depth, 1)))
    start_key, fresh_key = jax.random.split(key)
    recurrence = begun(point, start_key, depth)
    restarted = False
    while True:
        recurrence, seen = _deepen(
            F, point, part, recurrence, jnp.int32(done), jnp.int32(depth), fresh_key, budget.failure / looks
        )
        products += depth - done + 1
        if not restarted:
            lower = max(lower, float(seen.lower))
        numbers = float(seen.eigenvalue), float(seen.residual), lower, float(seen.rounding)
        curvature = Curvature(*numbers, seen.direction, products)
        affordable = budget.products - products - 1
        spent = affordable < 1 or (recurrence.room <= 0 and not restarted)
        if curvature.below(delta) is not None or spent or not math.isfinite(curvature.eigenvalue):
            return curvature
        if depth < cap:
            done, depth = depth, min(2 * depth, cap, depth + affordable)
            recurrence = tridiagonal.grown(recurrence, depth)
        else:
            # No room for a longer basis: go on from the best vector. It can only still find a saddle.
            restarted, done, depth = True, 0, min(cap, affordable)
            flat = flat_geometry(point)
            recurrence = tridiagonal.begin(flat.to_flat(seen.direction), depth, flat.support)


class Spectrum(NamedTuple):
    """Eigenvalues of a Hessian, or Ritz values, which lie between them.

    Args:
        values: ascending.
        exact: whether they are all the eigenvalues there are; else the outermost are nearly those of the Hessian, and
            there are never more of them below a number, or above it, than the Hessian has.

    Example:
        >>> import jax.numpy as jnp
        >>> spectrum = Spectrum(jnp.array([-3.0, -1.0, 2.0]), True)
        >>> spectrum.below(-0.5), spectrum.scale
        (2, 3.0)
    """

    values: Float[Array, " m"]
    exact: bool

    def below(self, threshold: float) -> int:
        """How many there are below a number: with −δ, the index of a critical point, or a lower bound of it."""
        return int(jnp.sum(self.values < float(threshold)))

    @property
    def scale(self) -> float:
        """The largest in size, and so the norm of the Hessian: if not exact, never more than that."""
        return float(jnp.max(jnp.abs(self.values)))


@partial(jax.jit, static_argnums=(2, 4))
def _eigenvalues(F: Objective, point: Point, part: Part, key: Array, depth: int | None) -> tuple[Array, Array]:
    """The values, ascending, and how many of them there are."""
    with jax.default_matmul_precision("highest"):
        flat = flat_hessian(F, point, part)
        if depth is None:
            matrix = jax.lax.map(flat.matvec, jnp.diag(flat.support))
            # What does not exist, particles of weight zero, goes above everything.
            above = 2 * jnp.max(jnp.sum(jnp.abs(matrix), axis=1)) + 1
            values, _ = tridiagonal.eigh((matrix + matrix.T) / 2 + jnp.diag(jnp.where(flat.support > 0, 0, above)))
            return values, jnp.sum(flat.support > 0)
        found = tridiagonal.decompose(flat, tridiagonal.random_start(key, flat), depth)
        return tridiagonal.ritz(found)[0], found.steps_taken


def eigenvalues(F: Objective, point: Point, part: Part, key: Array, *, depth: int = 200, dense: int = 1500) -> Spectrum:
    """The spectrum of a Hessian: all of it where it is small, else the Ritz values of Lanczos from a random start.

    Args:
        F: a functional or a loss.
        point: a measure, or parameters.
        part: of the Hessian, as in :func:`sight`.
        key: typed random key, for the start of Lanczos.
        depth: steps of Lanczos at most; n·depth numbers are kept.
        dense: the largest number of coordinates n for which the matrix is formed, n² numbers; 0 to form none.

    Returns:
        A :class:`Spectrum`; by depth products, or n.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> loss = lambda x: jnp.sum(jnp.array([-1.0, 0.5, 4.0]) * x**2) / 2
        >>> spectrum = eigenvalues(loss, jnp.zeros(3), "full", jax.random.key(0))
        >>> spectrum.values.round(3).tolist(), spectrum.below(-0.1)
        ([-1.0, 0.5, 4.0], 1)
    """
    size = trees.size(coordinates(point))
    exact = size <= dense
    values, count = _eigenvalues(traceable(F), point, part, key, None if exact else min(depth, size))
    return Spectrum(values[: int(count)], exact)
