r"""Certificates of second-order optimality: the smallest eigenvalues of the Hessian, with what bounds them.

The Rayleigh quotient of any unit field is an upper bound of :math:`\lambda_{\min}`: negative curvature, once seen, is
certain. That nothing smaller was missed is a statement of probability: it rests on the random start of Lanczos
(:func:`pwgf_jax.spectrum.spectrum_bound`). A verdict that neither supports is ``undecided``.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from pwgf_jax.arguments import check_key
from pwgf_jax.calculus import Part
from pwgf_jax.empirical import hessian, prepared, value_and_gradient
from pwgf_jax.measures import Particles, inner, norm
from pwgf_jax.objective import Objective, Point, coordinates
from pwgf_jax.spectrum import FIRST_LOOK, Budget, Curvature, along, deepest, search
from pwgf_jax.symmetries import pinned

__all__ = ["Certificate", "Verdict", "certify"]


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


class Certificate(NamedTuple):
    """The outcome of :func:`certify`; ``print(certificate.summary())`` reads it out.

    Args:
        verdict: a :class:`Verdict`.
        decided_by: "gradient"; "full" where only the full Hessian shows the saddle or its absence; "integral" where
            the integral one shows the saddle as well, "both" where it shows its absence as well.
        gradient_norm: ‖∇_μF‖ in L²(μ); of parameters, Euclidean.
        gradient_rounding: what rounding makes of that norm, by the backward error of the points.
        integral: :class:`pwgf_jax.spectrum.Curvature` of the integral Hessian H_μ; None where there is no measure.
        full: that of the full Hessian H_μ + H'_μ, or of ∇²f; its direction is one along which the objective does not
            rise first.
        direction: the escape direction of a saddle, None otherwise; shaped like the points or the parameters, with
            None at leaves that are no parameters.
        eps: the tolerance asked for.
        delta: the curvature asked for.
        failure: upper bound of the probability that ``second_order_stationary`` is wrong.
        rounding_decides: whether the verdict is undecided because of the floating-point precision.
        across: how many symmetries the full Hessian is looked at across.

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
    integral: Any  # a Curvature wherever F is a functional
    full: Curvature
    direction: PyTree | None
    eps: float
    delta: float
    failure: float
    rounding_decides: bool
    across: int = 0

    @property
    def strict_minimum(self) -> bool:
        """Whether the full Hessian is certified to be positive, across the symmetries, at a stationary point."""
        return self.verdict == Verdict.second_order_stationary and self.full.lower > 0

    def summary(self) -> str:
        """The certificate in a few lines."""
        lines = [
            self.verdict.sentence,
            f"  decided by       {self.decided_by}",
            f"  gradient norm    {self.gradient_norm:.3e} ± {self.gradient_rounding:.0e}   (eps = {self.eps:g})",
        ]
        for name, part in (("integral", self.integral), ("full", self.full)):
            if part is None:
                continue
            lines.append(
                f"  {name:8s} lambda {part.eigenvalue:+.3e}   residual {part.residual:.1e}, "
                f"not below {part.lower:+.3e} with probability {1 - self.failure:g}, {part.products} products"
            )
        lines.append(f"  delta            {self.delta:g}")
        if self.strict_minimum:
            but = " but for the symmetries" if self.across else ""
            lines.append(f"  a strict local minimum{but}, up to the gradient: the full Hessian is positive")
        if self.rounding_decides:
            lines.append("  rounding decides: the distance to -delta or eps is within the rounding of this precision")
        return "\n".join(lines)


class _Slope(NamedTuple):
    """The gradient, its norm, what rounding makes of that, and whether value and gradient are finite."""

    field: PyTree
    norm: Float[Array, ""]
    rounding: Float[Array, ""]
    finite: Array


@jax.jit
def _slope(F: Objective, point: Point, key: Array) -> _Slope:
    at = coordinates(point)
    with jax.default_matmul_precision("highest"):
        value, gradient = value_and_gradient(F, point)
        length = norm(point, gradient)
        # Backward error: the gradient computed is that of points off by their rounding, of signs that nobody knows.
        leaves, structure = jax.tree.flatten(at)
        keys = jax.random.split(key, len(leaves))
        signs = [jax.random.rademacher(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
        moved = jax.tree.map(jnp.multiply, at, jax.tree.unflatten(structure, signs))
        change = norm(point, hessian(F, point)(moved))
    rounding = 4 * jnp.finfo(length.dtype).eps * (length + change)
    return _Slope(gradient, length, rounding, jnp.isfinite(value) & jnp.isfinite(length))


def certify(
    objective: Callable[..., Any],
    point: Point,
    eps: float,
    delta: float,
    key: Array,
    *,
    batches: Any = None,
    has_aux: bool = False,
    symmetries: Sequence[PyTree] = (),
    max_products: int = 512,
    max_depth: int | None = None,
    failure: float = 1e-3,
    check: bool = True,
) -> Certificate:
    r"""Is μ, or x, an (ε, δ)-second-order stationary point of F, or of a loss f, a saddle, or neither?

    Stationary means :math:`\|\nabla_\mu F\|_{L^2(\mu)}\le\varepsilon`, or ‖∇f‖ ≤ ε; second order, that the full
    Hessian H_μ + H'_μ, the second variation of F along moves of the particles, or ∇²f, has no eigenvalue below −δ.
    For measures, the integral Hessian H_μ, the papers' criterion, is looked at beside it: the two agree at a stationary
    density, but on particles H_μ can be blind to a direction of descent (a Dirac on top of a hill) and can show one
    that the local part closes (a Dirac in a valley of a repulsive F); the certificate says whether they agreed. Lanczos
    is deepened until the question is decided or ``max_products`` are spent on either operator, and each is tried on the
    direction that the other found.

    Everything is computed at the highest matmul precision, in float32 at least, and a verdict holds only if rounding
    cannot turn it. That nothing below −δ was missed rests on the random start, see
    :func:`pwgf_jax.spectrum.spectrum_bound`: on one event of it at all depths. Only where a recurrence had to start
    anew do depths differ in their events, and so each of the looks has its share of ``failure``.

    Args:
        objective: F(μ), or a loss f(params); with ``batches``, of (μ, batch) or (params, batch).
        point: the measure, or any pytree of parameters, such as an equinox module: its floating arrays are the
            parameters, all else (integers, random keys, functions, Python's numbers, None) is held fixed.
        eps: ε > 0, gradient norm that counts as stationary.
        delta: δ > 0, curvature that counts as negative [units of F per length²]. H_μ always has eigenvalues
            arbitrarily near zero, so δ = 0 cannot be certified.
        key: typed random key, for the starts of Lanczos.
        batches: data to average the objective over, in the memory of one batch: a list of batches of one shape, or a
            pytree of arrays whose leading axis counts them, see :func:`pwgf_jax.empirical.stacked`. A product then
            costs one gradient more.
        has_aux: whether the objective returns (value, anything), as in ``jax.grad``.
        symmetries: fields like the points, or the parameters, along which the objective is constant, such as the
            velocity Ax of a rotation. The full Hessian is looked at across them, and a minimum that is strict but for
            them is called one.
        max_products: Hessian products to spend on each operator at most.
        max_depth: longest Krylov basis kept: memory max_depth·n numbers, n those of a field; None for what one GiB
            holds, at least 32. Past it Lanczos is restarted from its best vector.
        failure: upper bound of the probability that the verdict second-order stationary is wrong.
        check: whether a functional that is new here is tried first, see :func:`pwgf_jax.contract.check_functional`.

    Returns:
        A :class:`Certificate`. ``undecided`` is an honest answer.

    Raises:
        ValueError: if a tolerance is not positive, a budget too small, F no function of the measure, batches differ in
            shape, there are no parameters, or a symmetry is none.
        TypeError: if the key is no typed key, the value no floating scalar, or a functional is given no measure.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def F(mu):
        ...     square = jnp.sum((mu.weights @ mu.points) ** 2)
        ...     return square**2 / 4 - square / 2
        >>> saddle = Particles.uniform(jnp.zeros((8, 2)))
        >>> certify(F, saddle, eps=1e-3, delta=0.1, key=jax.random.key(0)).verdict.name
        'saddle'
        >>> def loss(params, batch):
        ...     return jnp.mean((batch * params["a"] * params["b"] - batch) ** 2)
        >>> params, data = {"a": jnp.zeros(1), "b": jnp.zeros(1), "steps": 7}, [jnp.ones(3), -jnp.ones(3)]
        >>> found = certify(loss, params, eps=1e-3, delta=0.1, key=jax.random.key(0), batches=data)
        >>> found.verdict.name, found.direction["a"].shape, found.direction["steps"]
        ('saddle', (1,), None)
        >>> ring = lambda x: (jnp.sum(x**2) - 1) ** 2
        >>> x, turned = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
        >>> found = certify(ring, x, eps=1e-3, delta=0.1, key=jax.random.key(0), symmetries=[turned])
        >>> found.strict_minimum, certify(ring, x, eps=1e-3, delta=0.1, key=jax.random.key(0)).strict_minimum
        (True, False)

    References:
        Yamamoto, Kim, Suzuki, arXiv:2509.16974, Defs. 3.4, 3.5.
    """
    check_key(key, "certify")
    _check_numbers(eps, delta, failure, max_products, max_depth)
    F, point, like = prepared(objective, point, "certify", batches=batches, has_aux=has_aux, check=check)
    slope_key, *keys = jax.random.split(key, 3)
    slope = _slope(F, point, slope_key)
    gradient_norm, rounding = float(slope.norm), float(slope.rounding)
    beside = not slope.finite or gradient_norm - rounding > eps  # the verdict is the gradient's, whatever is found
    budget = Budget(min(FIRST_LOOK, max_products) if beside else max_products, deepest(point, max_depth), failure)
    held = pinned(F, point, symmetries, delta, slope_key) if symmetries else F
    found = _curvatures(held, point, delta, keys, budget)
    found = {part: _pointed(curvature, point, slope.field, like) for part, curvature in found.items()}
    integral, full = found.get("integral"), found["full"]
    if not slope.finite:
        verdict, decided_by = Verdict.not_finite, "gradient"
    elif gradient_norm - rounding > eps:
        verdict, decided_by = Verdict.not_stationary, "gradient"
    elif gradient_norm + rounding > eps:
        verdict, decided_by = Verdict.undecided, "gradient"
    else:
        verdict, decided_by = _of_second_order(integral, full, delta)
    close = decided_by == "gradient" or abs(full.eigenvalue + delta) <= 2 * full.rounding
    return Certificate(
        verdict,
        decided_by,
        gradient_norm,
        rounding,
        integral,
        full,
        full.direction if verdict == Verdict.saddle else None,
        eps,
        delta,
        failure,
        verdict == Verdict.undecided and close,
        len(symmetries),
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


def _curvatures(F: Objective, point: Point, delta: float, keys: list[Array], budget: Budget) -> dict[Part, Curvature]:
    """What is known of each operator: of a measure two, each tried on the direction that the other found."""
    if not isinstance(point, Particles):
        return {"full": search(F, point, "full", delta, keys[1], budget)}
    integral = search(F, point, "integral", delta, keys[0], budget)
    full = search(F, point, "full", delta, keys[1], budget)
    return {
        "integral": _tried(F, point, "integral", integral, full, budget),
        "full": _tried(F, point, "full", full, integral, budget),
    }


def _tried(F: Objective, point: Point, part: Part, curvature: Curvature, other: Curvature, budget: Budget) -> Curvature:
    """What is known of one operator, once the direction that the other one found is tried on it."""
    if not other.eigenvalue < curvature.eigenvalue or curvature.products >= budget.products:
        return curvature
    seen, residual = along(F, point, part, other.direction)
    curvature = curvature._replace(products=curvature.products + 1)
    if not seen < curvature.eigenvalue:
        return curvature
    return curvature._replace(
        eigenvalue=float(seen), residual=float(residual) + curvature.rounding, direction=other.direction
    )


def _pointed(curvature: Curvature, point: Point, gradient: PyTree, like: PyTree) -> Curvature:
    """The direction in the dtypes of the points, turned so that the objective does not rise first along it."""
    sign = jnp.where(inner(point, gradient, curvature.direction) > 0, -1, 1)
    direction = jax.tree.map(lambda v, x: (sign.astype(v.dtype) * v).astype(x.dtype), curvature.direction, like)
    return curvature._replace(direction=direction)


def _of_second_order(integral: Curvature | None, full: Curvature, delta: float) -> tuple[Verdict, str]:
    # The full Hessian is the second variation; the integral one is blind to the local part, for better and worse.
    below = full.below(delta)
    agreed = integral is not None and below is not None and integral.below(delta) == below
    if below:
        return Verdict.saddle, "integral" if agreed else "full"
    if below is None:
        return Verdict.undecided if math.isfinite(full.eigenvalue) else Verdict.not_finite, "full"
    return Verdict.second_order_stationary, "both" if agreed else "full"
