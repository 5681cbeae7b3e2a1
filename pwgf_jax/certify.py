r"""Certificates of second-order optimality: the smallest eigenvalues of the Hessian, with what bounds them.

The Rayleigh quotient of any unit field is an upper bound of :math:`\lambda_{\min}`: negative curvature, once seen, is
certain. That nothing smaller was missed is a statement of probability: it rests on the random start of Lanczos
(:func:`random_start_gap`). A verdict that neither supports is ``undecided``.
"""

from __future__ import annotations

import enum
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from pwgf_jax import krylov
from pwgf_jax.calculus import Functional, HessianOperator, Part, value_and_wasserstein_gradient, wasserstein_hessian
from pwgf_jax.krylov import check_key
from pwgf_jax.measures import Field, Particles, inner, norm, traceable

__all__ = ["Certificate", "Curvature", "Sighting", "Verdict", "certify", "random_start_gap", "sight"]


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

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        return {
            Verdict.second_order_stationary: "Second-order stationary: the gradient is small and, with the stated "
            "probability, no curvature is below -delta.",
            Verdict.saddle: "Saddle: the gradient is small and a direction of curvature below -delta is known.",
            Verdict.not_stationary: "Not stationary: the gradient norm exceeds eps.",
            Verdict.undecided: "Undecided: the smallest eigenvalue is too close to -delta for the products spent "
            "or for the precision; raise max_products, use float64, or ask for another delta.",
        }[self]


class Curvature(NamedTuple):
    """What is known of the smallest eigenvalue of one operator.

    Args:
        eigenvalue: Rayleigh quotient of ``direction``: an upper bound of λ_min, up to ``rounding``.
        residual: an eigenvalue lies within this distance of ``eigenvalue``.
        lower: λ_min is not below this, with probability at least 1 − failure.
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
        integral: :class:`Curvature` of the integral Hessian H_μ.
        full: that of the full Hessian H_μ + H'_μ.
        direction: the escape direction of a saddle, None otherwise.
        eps: the tolerance asked for.
        delta: the curvature asked for.
        failure: probability that a lower bound fails.
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
    integral: Curvature
    full: Curvature
    direction: Field | None
    eps: float
    delta: float
    failure: float
    rounding_decides: bool

    def summary(self) -> str:
        """The certificate in a few lines."""
        lines = [
            self.verdict.sentence,
            f"  decided by       {self.decided_by}",
            f"  gradient norm    {self.gradient_norm:.3e}   (eps = {self.eps:g})",
        ]
        for name, part in (("integral", self.integral), ("full", self.full)):
            lines.append(
                f"  {name:8s} lambda {part.eigenvalue:+.3e}   residual {part.residual:.1e}, "
                f"not below {part.lower:+.3e} with probability {1 - self.failure:g}, {part.products} products"
            )
        lines.append(f"  delta            {self.delta:g}")
        if self.rounding_decides:
            lines.append("  rounding decides: the distance to -delta is within the rounding of this precision")
        return "\n".join(lines)


def random_start_gap(size: int, steps: int, failure: float) -> float:
    r"""How far the extreme Ritz value of Lanczos from a random start can be from the extreme eigenvalue.

    Relative to the width of the spectrum, the gap after m steps in dimension n exceeds
    :math:`\varepsilon=\big(\ln(1.648\sqrt n/p)/(2m-1)\big)^2` with probability at most p.

    Args:
        size: n.
        steps: m.
        failure: p.

    Returns:
        ε; at least one means that nothing is known yet.

    Example:
        >>> round(random_start_gap(10_000, 100, 1e-3), 5)
        0.00364

    References:
        Kuczyński and Woźniakowski, SIAM J. Matrix Anal. Appl. 13 (1992), Thm 4.2.
    """
    return (math.log(1.648 * math.sqrt(size) / failure) / (2 * steps - 1)) ** 2


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


def _sighting(flat: krylov.FlatOperator, recurrence: krylov.Recurrence, failure: float) -> Sighting:
    """Read a recurrence from a random start."""
    found = krylov.finish(recurrence)
    values, _, genuine = krylov.ritz(found)
    eigenvalue, vector, residual = krylov.smallest_ritz_pair(flat.matvec, found)
    rounding = krylov.rounding_level(vector.size, vector.dtype) * recurrence.scale
    steps = jnp.maximum(recurrence.steps, 1).astype(eigenvalue.dtype)
    # Half of the failure for either end of the spectrum: the width is bounded from the Ritz values' one as well.
    gap = (math.log(1.648 * math.sqrt(vector.size) / (failure / 2)) / (2 * steps - 1)) ** 2
    width = jnp.max(jnp.where(genuine, values, values[0])) - values[0]
    open_lower = jnp.where(gap < 0.5, values[0] - gap * width / jnp.where(gap < 0.5, 1 - 2 * gap, 1), -jnp.inf)
    # A recurrence that closed has met every eigenvalue that its start has a component of: all, from a random one.
    lower = jnp.where(recurrence.alive, open_lower, values[0]) - rounding
    return Sighting(eigenvalue, residual, lower, rounding, flat.to_field(vector))


def _flat(F: Functional, mu: Particles, part: Part) -> krylov.FlatOperator:
    return krylov.flatten(wasserstein_hessian(F, mu, part), mu.points)


def _random_start(flat: krylov.FlatOperator, key: Array) -> Array:
    return jax.random.normal(key, flat.support.shape, flat.support.dtype) * flat.support


def sight(F: Functional, mu: Particles, part: Part, key: Array, depth: int, failure: float = 1e-3) -> Sighting:
    r"""The smallest eigenvalue of a Hessian after ``depth`` Lanczos steps from a random start, with its bounds.

    Args:
        F: the functional.
        mu: the measure.
        part: ``"integral"`` or ``"full"``.
        key: typed random key.
        depth: Krylov dimension, capped by the size of a field.
        failure: probability that the lower bound fails.

    Returns:
        A :class:`Sighting`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> F = lambda mu: 0.5 * jnp.sum((mu.weights @ mu.points) ** 2)
        >>> seen = sight(F, Particles.uniform(jnp.zeros((4, 2))), "integral", jax.random.key(0), depth=4)
        >>> bool(abs(seen.eigenvalue) < 1e-5), bool(seen.lower > -1e-4)
        (True, True)
    """
    flat = _flat(F, mu, part)
    start = _random_start(flat, key)
    with jax.default_matmul_precision("highest"):
        depth = min(depth, start.size)
        return _sighting(flat, krylov.extend(flat.matvec, krylov.begin(start, depth), 0, depth), failure)


@jax.jit
def _gradient(F: Functional, mu: Particles) -> tuple[Field, Float[Array, ""]]:
    _, gradient = value_and_wasserstein_gradient(F, mu)
    return gradient, norm(mu, gradient)


def _geometry(mu: Particles) -> krylov.FlatOperator:
    """Fields as flat vectors; no functional is needed for that, nor compiled."""
    return krylov.flatten(HessianOperator(lambda v: v, mu), mu.points)


@partial(jax.jit, static_argnums=2)
def _begin(mu: Particles, key: Array, depth: int) -> Any:
    return krylov.begin(_random_start(_geometry(mu), key), depth)


@partial(jax.jit, static_argnums=(2, 6))
def _deepen(
    F: Functional, mu: Particles, part: Part, recurrence: krylov.Recurrence, first: Array, last: Array, failure: float
) -> tuple[Any, Sighting]:
    """Steps ``first`` to ``last``, and what is known after them."""
    flat = _flat(F, mu, part)
    with jax.default_matmul_precision("highest"):
        recurrence = krylov.extend(flat.matvec, recurrence, first, last)
        return recurrence, _sighting(flat, recurrence, failure)


@partial(jax.jit, static_argnums=2)
def _restart(mu: Particles, direction: Field, depth: int) -> Any:
    return krylov.begin(_geometry(mu).to_flat(direction), depth)


def _grown(recurrence: krylov.Recurrence, depth: int) -> Any:
    """The same recurrence with room for more vectors."""
    missing = depth - recurrence.diagonal.size
    return recurrence._replace(
        basis=jnp.pad(recurrence.basis, (0, missing * recurrence.vector.size)),
        diagonal=jnp.pad(recurrence.diagonal, (0, missing)),
        off_diagonal=jnp.pad(recurrence.off_diagonal, (0, missing)),
    )


def _search(
    F: Functional,
    mu: Particles,
    part: Part,
    delta: float,
    key: Array,
    max_products: int,
    max_depth: int,
    failure: float,
) -> tuple[Curvature, Verdict]:
    """Deepen until curvature below −δ is seen or excluded, or the budget is spent."""
    size = sum(leaf.size for leaf in jax.tree.leaves(mu.points))
    cap = min(max_depth, max_products - 1, size)  # every look costs one product more than its steps
    depth, done, products, lower = min(16, cap), 0, 0, -math.inf
    recurrence = _begin(mu, key, depth)
    restarted = False
    while True:
        recurrence, seen = _deepen(F, mu, part, recurrence, jnp.int32(done), jnp.int32(depth), failure)
        products += depth - done + 1
        eigenvalue, rounding = float(seen.eigenvalue), float(seen.rounding)
        if not restarted:
            lower = float(seen.lower)
        curvature = Curvature(eigenvalue, float(seen.residual), lower, rounding, seen.direction, products)
        if eigenvalue + rounding < -delta:
            return curvature, Verdict.saddle
        if lower >= -delta:
            return curvature, Verdict.second_order_stationary
        closed = not bool(recurrence.alive)
        affordable = max_products - products - 1
        if affordable < 1 or (closed and not restarted) or not math.isfinite(eigenvalue):
            return curvature, Verdict.undecided
        if depth < cap:
            done, depth = depth, min(2 * depth, cap, depth + affordable)
            recurrence = _grown(recurrence, depth)
        else:
            # No room for a longer basis: go on from the best vector. It can only still find a saddle.
            restarted, done, depth = True, 0, min(cap, affordable)
            recurrence = _restart(mu, seen.direction, depth)


def certify(
    F: Functional,
    mu: Particles,
    eps: float,
    delta: float,
    key: Array,
    *,
    max_products: int = 512,
    max_depth: int = 128,
    failure: float = 1e-3,
) -> Certificate:
    r"""Is μ an (ε, δ)-second-order stationary point, a saddle, or neither?

    Stationary means :math:`\|\nabla_\mu F\|_{L^2(\mu)}\le\varepsilon`; second order, that the full Hessian H_μ + H'_μ,
    the second variation of F along moves of the particles, has no eigenvalue below −δ. The integral Hessian H_μ, the
    papers' criterion, is looked at beside it: the two agree at a stationary density, but on particles H_μ can be blind
    to a direction of descent (a Dirac on top of a hill) and can show one that the local part closes (a Dirac in a
    valley of a repulsive F); the certificate says whether they agreed. Lanczos is deepened until the question is
    decided or ``max_products`` are spent on either operator.

    Args:
        F: the functional.
        mu: the measure.
        eps: ε > 0, gradient norm that counts as stationary.
        delta: δ > 0, curvature that counts as negative [units of F per length²]. H_μ always has eigenvalues
            arbitrarily near zero, so δ = 0 cannot be certified.
        key: typed random key, for the starts of Lanczos.
        max_products: Hessian products to spend on each operator at most.
        max_depth: longest Krylov basis kept: memory max_depth·N·d numbers. Past it Lanczos is restarted from its
            best vector.
        failure: probability that a lower bound on an eigenvalue fails.

    Returns:
        A :class:`Certificate`. ``undecided`` is an honest answer.

    Raises:
        ValueError: if a tolerance is not positive, or a budget too small.
        TypeError: if the key is no typed key.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def F(mu):
        ...     square = jnp.sum((mu.weights @ mu.points) ** 2)
        ...     return square**2 / 4 - square / 2
        >>> saddle = Particles.uniform(jnp.zeros((8, 2)))
        >>> certify(F, saddle, eps=1e-3, delta=0.1, key=jax.random.key(0)).verdict.name
        'saddle'

    References:
        Yamamoto, Kim, Suzuki, arXiv:2509.16974, Defs. 3.4, 3.5; Kuczyński and Woźniakowski, SIAM J. Matrix Anal.
        Appl. 13 (1992).
    """
    check_key(key, "certify")
    for name, number in (("eps", eps), ("delta", delta)):
        if not 0 < number < math.inf:
            raise ValueError(f"certify: {name}={number}; give a positive number.")
    if max_products < 2 or max_depth < 1:
        raise ValueError(
            f"certify: max_products={max_products}, max_depth={max_depth}; need max_products >= 2, max_depth >= 1."
        )
    if not 0 < failure < 1:
        raise ValueError(f"certify: failure={failure}; give a probability between 0 and 1.")
    functional = traceable(F)
    gradient, gradient_norm = _gradient(functional, mu)
    # What is not a number is neither small nor large: nothing can be said there.
    stationary = None if math.isnan(gradient_norm) else float(gradient_norm) <= eps
    budget = max_products if stationary else min(16, max_products)
    keys = jax.random.split(key)
    curvatures, verdicts = {}, {}
    for part, part_key in zip(("integral", "full"), keys, strict=True):
        found, verdict = _search(functional, mu, part, delta, part_key, budget, max_depth, failure)
        # A direction and its opposite have the same curvature; the one along which F does not rise first is meant.
        sign = jnp.where(inner(mu, gradient, found.direction) > 0, -1, 1)
        direction = jax.tree.map(lambda leaf, s=sign: s.astype(leaf.dtype) * leaf, found.direction)
        curvatures[part], verdicts[part] = found._replace(direction=direction), verdict
    verdict, decided_by = _verdict(stationary, verdicts)
    full = curvatures["full"]
    return Certificate(
        verdict,
        decided_by,
        float(gradient_norm),
        curvatures["integral"],
        curvatures["full"],
        curvatures["full"].direction if verdict == Verdict.saddle else None,
        eps,
        delta,
        failure,
        verdict == Verdict.undecided and abs(full.eigenvalue + delta) <= 2 * full.rounding,
    )


def _verdict(stationary: bool | None, verdicts: dict[str, Verdict]) -> tuple[Verdict, str]:
    if not stationary:
        return (Verdict.undecided if stationary is None else Verdict.not_stationary), "gradient"
    # The full Hessian is the second variation; the integral one is blind to the local part, for better and worse.
    verdict = verdicts["full"]
    if verdict == Verdict.saddle:
        return verdict, "integral" if verdicts["integral"] == Verdict.saddle else "full"
    if verdict == Verdict.second_order_stationary:
        return verdict, "both" if verdicts["integral"] == verdict else "full"
    return verdict, "full"
