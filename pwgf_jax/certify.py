r"""Certificates of second-order optimality: the smallest eigenvalues of the Hessian, with what bounds them.

The Rayleigh quotient of any unit field is an upper bound of :math:`\lambda_{\min}`: negative curvature, once seen, is
certain. That nothing smaller was missed is a statement of probability: it rests on the random start of Lanczos
(:func:`pwgf_jax.spectrum.spectrum_bound`). A verdict that neither supports is ``undecided``.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from pwgf_jax import krylov
from pwgf_jax.calculus import Functional, HessianOperator, Part, value_and_wasserstein_gradient, wasserstein_hessian
from pwgf_jax.contract import check_once
from pwgf_jax.krylov import check_key
from pwgf_jax.measures import Field, Particles, check_measure, inner, norm, single, traceable
from pwgf_jax.spectrum import Sighting, flat_hessian, sighting

__all__ = ["Certificate", "Curvature", "Verdict", "certify"]


class Verdict(enum.IntEnum):
    """What a certificate says.

    Example:
        >>> Verdict.saddle.sentence
        'Saddle: the gradient is small and a direction of curvature below -delta is known.'
    """

    second_order_stationary = 0
    saddle = 1
    not_stationary = 2
    undecided = 3
    not_finite = 4

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        return {
            Verdict.second_order_stationary: "Second-order stationary: the gradient is small and, with the stated "
            "probability, no curvature is below -delta.",
            Verdict.saddle: "Saddle: the gradient is small and a direction of curvature below -delta is known.",
            Verdict.not_stationary: "Not stationary: the gradient norm exceeds eps.",
            Verdict.undecided: "Undecided: the gradient norm is within rounding of eps, or the smallest eigenvalue too "
            "close to -delta for the products spent or for the precision; raise max_products, use float64, or ask for "
            "another delta.",
            Verdict.not_finite: "Not finite: the value, the gradient or a Hessian product is not a number or infinite; "
            "nothing can be said.",
        }[self]


class Curvature(NamedTuple):
    """What is known of the smallest eigenvalue of one operator.

    Args:
        eigenvalue: Rayleigh quotient of ``direction``: an upper bound of λ_min, up to ``rounding``.
        residual: an eigenvalue lies within this distance of ``eigenvalue``, rounding included.
        lower: λ_min is not below this, with probability at least 1 − failure, rounding included.
        rounding: what rounding can move an eigenvalue by, in this precision.
        direction: unit field in L²(μ) that attains ``eigenvalue``, along which the objective does not rise first.
        products: Hessian products spent.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> F = lambda mu: mu.weights @ jnp.sum(mu.points**2, axis=-1)
        >>> found = certify(F, Particles.uniform(jnp.zeros((4, 2))), eps=0.1, delta=0.1, key=jax.random.key(0))
        >>> round(float(found.full.eigenvalue), 4)
        2.0
    """

    eigenvalue: float
    residual: float
    lower: float
    rounding: float
    direction: Field
    products: int


class Certificate(NamedTuple):
    """The outcome of :func:`certify`; ``print(certificate.summary())`` reads it out.

    Args:
        verdict: a :class:`Verdict`.
        decided_by: "gradient"; "full" where only the full Hessian shows the saddle or its absence; "integral" where
            the integral one shows the saddle as well, "both" where it shows its absence as well.
        gradient_norm: ‖∇_μF‖ in L²(μ).
        gradient_rounding: what rounding makes of that norm, by the backward error of the points.
        integral: :class:`Curvature` of the integral Hessian H_μ.
        full: that of the full Hessian H_μ + H'_μ.
        direction: the escape direction of a saddle, None otherwise.
        eps: the tolerance asked for.
        delta: the curvature asked for.
        failure: upper bound of the probability that ``second_order_stationary`` is wrong.
        rounding_decides: whether the verdict is undecided because of the floating-point precision.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> F = lambda mu: -mu.weights @ jnp.sum(mu.points**2, axis=-1)  # all curvature is local: H_mu sees nothing
        >>> found = certify(F, Particles.uniform(jnp.zeros((4, 2))), eps=0.1, delta=0.1, key=jax.random.key(0))
        >>> found.verdict.name, found.decided_by
        ('saddle', 'full')
    """

    verdict: Verdict
    decided_by: str
    gradient_norm: float
    gradient_rounding: float
    integral: Curvature
    full: Curvature
    direction: Field | None
    eps: float
    delta: float
    failure: float
    rounding_decides: bool

    @property
    def strict_minimum(self) -> bool:
        """Whether the smallest eigenvalue of the full Hessian is certified to be positive at a stationary point."""
        return self.verdict == Verdict.second_order_stationary and self.full.lower > 0

    def summary(self) -> str:
        """The certificate in a few lines."""
        lines = [
            self.verdict.sentence,
            f"  decided by       {self.decided_by}",
            f"  gradient norm    {self.gradient_norm:.3e} ± {self.gradient_rounding:.0e}   (eps = {self.eps:g})",
        ]
        for name, part in (("integral", self.integral), ("full", self.full)):
            lines.append(
                f"  {name:8s} lambda {part.eigenvalue:+.3e}   residual {part.residual:.1e}, "
                f"not below {part.lower:+.3e} with probability {1 - self.failure:g}, {part.products} products"
            )
        lines.append(f"  delta            {self.delta:g}")
        if self.strict_minimum:
            lines.append("  a strict local minimum, up to the gradient: the full Hessian is positive")
        if self.rounding_decides:
            lines.append("  rounding decides: the distance to -delta or eps is within the rounding of this precision")
        return "\n".join(lines)


class _Slope(NamedTuple):
    """The gradient, its norm, what rounding makes of that, and whether value and gradient are finite."""

    field: Field
    norm: Float[Array, ""]
    rounding: Float[Array, ""]
    finite: Array


@jax.jit
def _slope(F: Functional, mu: Particles, key: Array) -> _Slope:
    with jax.default_matmul_precision("highest"):
        value, gradient = value_and_wasserstein_gradient(F, mu)
        length = norm(mu, gradient)
        # Backward error: the gradient computed is that of points off by their rounding, of signs that nobody knows.
        leaves, structure = jax.tree.flatten(mu.points)
        keys = jax.random.split(key, len(leaves))
        signs = [jax.random.rademacher(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
        moved = jax.tree.map(jnp.multiply, mu.points, jax.tree.unflatten(structure, signs))
        change = norm(mu, wasserstein_hessian(F, mu, "full")(moved))
    rounding = 4 * jnp.finfo(length.dtype).eps * (length + change)
    return _Slope(gradient, length, rounding, jnp.isfinite(value) & jnp.isfinite(length))


def _geometry(mu: Particles) -> krylov.FlatOperator:
    """Fields as flat vectors; no functional is needed for that, nor compiled."""
    return krylov.flatten(HessianOperator(lambda v: v, mu), mu.points)


@partial(jax.jit, static_argnums=2)
def _begin(mu: Particles, key: Array, depth: int) -> krylov.Recurrence:
    flat = _geometry(mu)
    return krylov.begin(krylov.random_start(key, flat), depth, flat.support)


@partial(jax.jit, static_argnums=(2, 7))
def _deepen(
    F: Functional,
    mu: Particles,
    part: Part,
    recurrence: krylov.Recurrence,
    first: Array,
    last: Array,
    key: Array,
    failure: float,
) -> tuple[krylov.Recurrence, Sighting]:
    """Steps ``first`` to ``last``, and what is known after them."""
    with jax.default_matmul_precision("highest"):
        flat = flat_hessian(F, mu, part)
        recurrence = krylov.extend(flat, recurrence, first, last, key)
        return recurrence, sighting(flat, recurrence, failure)


@partial(jax.jit, static_argnums=2)
def _restart(mu: Particles, direction: Field, depth: int) -> krylov.Recurrence:
    flat = _geometry(mu)
    return krylov.begin(flat.to_flat(direction), depth, flat.support)


@partial(jax.jit, static_argnums=2)
def _along(F: Functional, mu: Particles, part: Part, direction: Field) -> tuple[Array, Array]:
    """Rayleigh quotient and residual of a direction."""
    with jax.default_matmul_precision("highest"):
        flat = flat_hessian(F, mu, part)
        eigenvalue, _, residual = krylov.rayleigh(flat, flat.to_flat(direction))
        return eigenvalue, residual


class _Budget(NamedTuple):
    """What a search may spend, and how often its bound may fail."""

    products: int
    depth: int
    failure: float


_FIRST_LOOK = 16  # steps


def _search(
    F: Functional, mu: Particles, part: Part, delta: float, key: Array, budget: _Budget
) -> tuple[Curvature, Verdict]:
    """Deepen until curvature below −δ is seen or excluded, or the budget is spent."""
    size = sum(leaf.size for leaf in jax.tree.leaves(mu.points))
    cap = min(budget.depth, budget.products - 1, size)  # every look costs one product more than its steps
    depth, done, products, lower = min(_FIRST_LOOK, cap), 0, 0, -math.inf
    looks = 1 + math.ceil(math.log2(max(cap / depth, 1)))
    start_key, fresh_key = jax.random.split(key)
    recurrence = _begin(mu, start_key, depth)
    restarted = False
    while True:
        recurrence, seen = _deepen(
            F, mu, part, recurrence, jnp.int32(done), jnp.int32(depth), fresh_key, budget.failure / looks
        )
        products += depth - done + 1
        eigenvalue, rounding = float(seen.eigenvalue), float(seen.rounding)
        if not restarted:
            lower = max(lower, float(seen.lower))
        curvature = Curvature(eigenvalue, float(seen.residual), lower, rounding, seen.direction, products)
        if eigenvalue + rounding < -delta:
            return curvature, Verdict.saddle
        if lower >= -delta:
            return curvature, Verdict.second_order_stationary
        if not math.isfinite(eigenvalue):
            return curvature, Verdict.not_finite
        affordable = budget.products - products - 1
        if affordable < 1 or (recurrence.room <= 0 and not restarted):
            return curvature, Verdict.undecided
        if depth < cap:
            done, depth = depth, min(2 * depth, cap, depth + affordable)
            recurrence = krylov.grown(recurrence, depth)
        else:
            # No room for a longer basis: go on from the best vector. It can only still find a saddle.
            restarted, done, depth = True, 0, min(cap, affordable)
            recurrence = _restart(mu, seen.direction, depth)


_BASIS = 2**30  # bytes of a Krylov basis, where nothing else is said


def _single(tree: PyTree) -> PyTree:
    """Half-precision numbers in float32."""

    def widened(leaf: Any) -> Any:
        floating = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)  # a Python number stays weak
        return leaf.astype(single(leaf.dtype)) if floating else leaf

    return jax.tree.map(widened, tree)


def certify(
    F: Functional,
    mu: Particles,
    eps: float,
    delta: float,
    key: Array,
    *,
    max_products: int = 512,
    max_depth: int | None = None,
    failure: float = 1e-3,
    check: bool = True,
) -> Certificate:
    r"""Is μ an (ε, δ)-second-order stationary point, a saddle, or neither?

    Stationary means :math:`\|\nabla_\mu F\|_{L^2(\mu)}\le\varepsilon`; second order, that the full Hessian H_μ + H'_μ,
    the second variation of F along moves of the particles, has no eigenvalue below −δ. The integral Hessian H_μ, the
    papers' criterion, is looked at beside it: the two agree at a stationary density, but on particles H_μ can be blind
    to a direction of descent (a Dirac on top of a hill) and can show one that the local part closes (a Dirac in a
    valley of a repulsive F); the certificate says whether they agreed. Lanczos is deepened until the question is
    decided or ``max_products`` are spent on either operator, and each is tried on the direction that the other found.

    Everything is computed at the highest matmul precision, in float32 at least, and a verdict holds only if rounding
    cannot turn it. That nothing below −δ was missed rests on the random start, see
    :func:`pwgf_jax.spectrum.spectrum_bound`: on one event of it at all depths. Only where a recurrence had to start
    anew do depths differ in their events, and so each of the looks has its share of ``failure``.

    Args:
        F: the functional.
        mu: the measure.
        eps: ε > 0, gradient norm that counts as stationary.
        delta: δ > 0, curvature that counts as negative [units of F per length²]. H_μ always has eigenvalues
            arbitrarily near zero, so δ = 0 cannot be certified.
        key: typed random key, for the starts of Lanczos.
        max_products: Hessian products to spend on each operator at most.
        max_depth: longest Krylov basis kept: memory max_depth·N·d numbers; None for what one GiB holds, at least 32.
            Past it Lanczos is restarted from its best vector.
        failure: upper bound of the probability that the verdict second-order stationary is wrong.
        check: whether a functional that is new here is tried first, see :func:`pwgf_jax.contract.check_functional`.

    Returns:
        A :class:`Certificate`. ``undecided`` is an honest answer.

    Raises:
        ValueError: if a tolerance is not positive, a budget too small, or F no function of the measure.
        TypeError: if the key is no typed key, or ``mu`` no measure.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def F(mu):
        ...     square = jnp.sum((mu.weights @ mu.points) ** 2)
        ...     return square**2 / 4 - square / 2
        >>> saddle = Particles.uniform(jnp.zeros((8, 2)))
        >>> certify(F, saddle, eps=1e-3, delta=0.1, key=jax.random.key(0)).verdict.name
        'saddle'

    References:
        Yamamoto, Kim, Suzuki, arXiv:2509.16974, Defs. 3.4, 3.5.
    """
    check_key(key, "certify")
    _check_numbers(eps, delta, failure, max_products, max_depth)
    check_measure(mu, "certify")
    if check:
        check_once(F, mu)
    like, functional, mu = mu.points, _single(traceable(F)), _single(mu)
    slope_key, *keys = jax.random.split(key, 3)
    slope = _slope(functional, mu, slope_key)
    gradient_norm, rounding = float(slope.norm), float(slope.rounding)
    if max_depth is None:
        bytes_per_field = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(mu.points))
        max_depth = max(32, _BASIS // bytes_per_field)
    beside = not slope.finite or gradient_norm - rounding > eps  # the verdict is the gradient's, whatever is found
    budget = _Budget(min(_FIRST_LOOK, max_products) if beside else max_products, max_depth, failure)
    parts: tuple[Part, ...] = ("integral", "full")
    found = {
        part: _search(functional, mu, part, delta, part_key, budget) for part, part_key in zip(parts, keys, strict=True)
    }
    found = {part: _tried(functional, mu, part, found, delta, budget) for part in parts}
    curvatures = {part: _pointed(curvature, mu, slope.field, like) for part, (curvature, _) in found.items()}
    if not slope.finite:
        verdict, decided_by = Verdict.not_finite, "gradient"
    elif gradient_norm - rounding > eps:
        verdict, decided_by = Verdict.not_stationary, "gradient"
    elif gradient_norm + rounding > eps:
        verdict, decided_by = Verdict.undecided, "gradient"
    else:
        verdict, decided_by = _of_second_order(found["integral"][1], found["full"][1])
    full = curvatures["full"]
    close = decided_by == "gradient" or abs(full.eigenvalue + delta) <= 2 * full.rounding
    return Certificate(
        verdict,
        decided_by,
        gradient_norm,
        rounding,
        curvatures["integral"],
        full,
        full.direction if verdict == Verdict.saddle else None,
        eps,
        delta,
        failure,
        verdict == Verdict.undecided and close,
    )


def _check_numbers(eps: float, delta: float, failure: float, max_products: int, max_depth: int | None) -> None:
    for name, number in (("eps", eps), ("delta", delta)):
        if not 0 < number < math.inf:
            raise ValueError(f"certify: {name}={number}; give a positive number.")
    if max_products < 2 or (max_depth is not None and max_depth < 1):
        raise ValueError(
            f"certify: max_products={max_products}, max_depth={max_depth}; need max_products >= 2, max_depth >= 1."
        )
    if not 0 < failure < 1:
        raise ValueError(f"certify: failure={failure}; give a probability between 0 and 1.")


def _tried(
    F: Functional,
    mu: Particles,
    part: Part,
    found: Mapping[str, tuple[Curvature, Verdict]],
    delta: float,
    budget: _Budget,
) -> tuple[Curvature, Verdict]:
    """What is known of one operator, once the direction that the other one found is tried on it."""
    curvature, verdict = found[part]
    other, _ = found["full" if part == "integral" else "integral"]
    if not other.eigenvalue < curvature.eigenvalue or curvature.products >= budget.products:
        return curvature, verdict
    seen, residual = _along(F, mu, part, other.direction)
    curvature = curvature._replace(products=curvature.products + 1)
    if seen < curvature.eigenvalue:
        curvature = curvature._replace(
            eigenvalue=float(seen), residual=float(residual) + curvature.rounding, direction=other.direction
        )
    saddle = curvature.eigenvalue + curvature.rounding < -delta
    return curvature, Verdict.saddle if saddle else verdict


def _pointed(curvature: Curvature, mu: Particles, gradient: Field, like: PyTree) -> Curvature:
    """The direction in the dtypes of the points, turned so that the objective does not rise first along it."""
    sign = jnp.where(inner(mu, gradient, curvature.direction) > 0, -1, 1)
    direction = jax.tree.map(lambda v, x: (sign.astype(v.dtype) * v).astype(x.dtype), curvature.direction, like)
    return curvature._replace(direction=direction)


def _of_second_order(integral: Verdict, full: Verdict) -> tuple[Verdict, str]:
    # The full Hessian is the second variation; the integral one is blind to the local part, for better and worse.
    if full == Verdict.saddle:
        return full, "integral" if integral == Verdict.saddle else "full"
    if full == Verdict.second_order_stationary:
        return full, "both" if integral == full else "full"
    return full, "full"
