"""Certificates for the measures that a run ended in."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pwgf_jax.calculus import Functional
from pwgf_jax.certificate import Certificate, certify
from pwgf_jax.experiments.experiment import Experiment
from pwgf_jax.experiments.folder import RunFolder
from pwgf_jax.experiments.messages import ConfigError, suggestion
from pwgf_jax.experiments.reading import Call
from pwgf_jax.experiments.report.tables import table
from pwgf_jax.experiments.results import Arm
from pwgf_jax.experiments.run import experiments, settings, unchanged
from pwgf_jax.measures import Particles
from pwgf_jax.spectrum import Curvature, eigenvalues

__all__ = ["Certified", "certify_run", "report"]

_STREAM = 0x63657274  # keeps the starts of Lanczos apart from what the problem and the steps draw
_NEGATIVE = 0.01  # of |λ|_max, where nothing else says what counts as negative
_PRODUCTS = 512  # Hessian products per operator
_GLANCE = 16  # steps of Lanczos for |λ|_max
_MEMORY = 2**28  # bytes of a Krylov basis


class Certified(NamedTuple):
    """The certificate of one seed of one arm, with what it is about.

    Args:
        arm: the arm.
        seed: the seed's number.
        value: the objective at the final measure.
        certificate: of :func:`pwgf_jax.certify.certify`.
        functional: the seed's.
        mu: the final measure.
        scale: |λ|_max of the full Hessian there, as 16 steps of Lanczos see it: never more than it is.
    """

    arm: str
    seed: int
    value: float
    certificate: Certificate
    functional: Functional
    mu: Particles
    scale: float

    def plain(self) -> dict[str, Any]:
        """The numbers as JSON can hold them."""
        found = self.certificate
        said: dict[str, Any] = {"arm": self.arm, "seed": self.seed, "value": self.value}
        said |= {"verdict": found.verdict.name, "decided_by": found.decided_by, "gradient_norm": found.gradient_norm}
        for name, part in (("integral", found.integral), ("full", found.full)):
            numbers = {key: getattr(part, key) for key in ("eigenvalue", "residual", "lower", "rounding", "products")}
            said[name] = {key: number if math.isfinite(number) else None for key, number in numbers.items()}
        return said | {
            "eps": found.eps,
            "delta": found.delta,
            "scale": self.scale if math.isfinite(self.scale) else None,
        }


def certify_run(
    folder: RunFolder,
    *,
    arm: str | None = None,
    eps: float | None = None,
    delta: float | None = None,
    seeds: int | None = None,
    trust: bool = False,
) -> list[Certified]:
    """Certify what the arms of a run ended in.

    Args:
        folder: of the run.
        arm: one arm, or every finished one.
        eps: gradient norm that counts as stationary. If not given, it is that of an objective's constants; else the
            arm's own eps, if its gradient norm has ever been above that; else 1 % of the largest gradient norm on
            record for the arm, but at least 1e-3.
        delta: curvature that counts as negative. If not given, it is that of an objective's constants; else 1 % of
            the largest absolute eigenvalue of the full Hessian at the measure in question, a seed's own: where the
            Hessian has other sizes elsewhere, these say nothing of what is negative here.
        seeds: only the first so many of every arm.
        trust: whether to run a Python file that the folder's config names.

    Returns:
        The certificates, arm by arm.

    Raises:
        ConfigError: if there is no such arm, nothing is finished, a number is out of range, or the problem can no
            longer be made as it was.
    """
    for name, number in (("eps", eps), ("delta", delta), ("seeds", seeds)):
        if number is not None and not 0 < number < math.inf:
            raise ConfigError(f"{name} = {number}; give a positive number.")
    config, arms, final = unchanged(folder, trust=trust), folder.arms(), folder.arrays("final.npz")
    if not arms:
        raise ConfigError(f"{folder.path}: no arm is finished yet; go on with `pwgf resume {folder.path}`.")
    if arm is not None and arm not in arms:
        raise ConfigError(f'{folder.path}: it has no finished arm "{arm}"; {suggestion(arm, arms)}')
    certified = []
    with settings(config, len(folder.seeds)):
        for part, experiment in experiments(config, folder.seeds):
            chosen = [label for label in part.config.arms if label in (arms if arm is None else [arm])]
            said = part.config.problem.constants
            known = {} if said is None else said.arguments
            negative = delta or known.get("delta")
            for label in chosen:
                small = eps or known.get("eps") or _own_eps(part.config.arms[label], arms[label])
                chosen_seeds = folder.seeds[:seeds]
                certified += _certify_arm(label, experiment, final, small, negative, chosen_seeds)
    return certified


def _certify_arm(
    arm: str, experiment: Experiment, final: Mapping[str, np.ndarray], eps: float, delta: float | None, seeds: range
) -> list[Certified]:
    certified = []
    for seed, number in enumerate(seeds):
        key = experiment.keys[seed]
        F, mu0 = experiment.problem(key)
        mu = _final_measure(final, arm, seed, mu0)
        size = sum(leaf.size for leaf in jax.tree.leaves(mu.points))
        depth = max(_GLANCE, min(_PRODUCTS, _MEMORY // (size * mu.weights.dtype.itemsize)))
        stream = jax.random.fold_in(key, _STREAM)
        scale = eigenvalues(F, mu, "full", jax.random.fold_in(stream, 1), depth=_GLANCE, dense=0).scale
        # Where the Hessian vanishes, or is not finite, any number does: the certificate says what is the case.
        negative = delta or (_NEGATIVE * scale if 0 < scale < math.inf else float(jnp.finfo(mu.weights.dtype).eps))
        found = certify(F, mu, eps, negative, stream, max_products=_PRODUCTS, max_depth=depth)
        certified.append(Certified(arm, number, float(final[f"{arm}/value"][seed]), found, F, mu, scale))
    return certified


def _final_measure(final: Mapping[str, np.ndarray], arm: str, seed: int, like: Particles) -> Particles:
    """The measure that a seed returned, with its points in the shape of the start's."""

    def leaf(path: Any, _: Any) -> Array:
        name = "/".join(["points", *filter(None, [jax.tree_util.keystr(path, simple=True, separator="/")])])
        return jnp.asarray(final[f"{arm}/{name}"][seed])

    points = jax.tree_util.tree_map_with_path(leaf, like.points)
    return Particles(points, jnp.asarray(final[f"{arm}/weights"][seed]))


def _own_eps(flow: Call, arm: Arm) -> float:
    """The arm's own eps if it says anything about the arm's gradients."""
    peak = float(np.max(arm.of("gradient_norm"), initial=0.0))
    own = (flow.arguments | flow.arguments.get("perturbation", {})).get("eps", math.inf)
    return own if 0 < own < peak else max(1e-3, 0.01 * peak)


def report(certified: Sequence[Certified]) -> str:
    """The certificates as Markdown: a line per arm, and the table."""
    if not certified:
        return ""
    said = []
    for arm in dict.fromkeys(each.arm for each in certified):
        mine = [each.certificate for each in certified if each.arm == arm]
        counts = Counter(found.verdict.name for found in mine)
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        low, high = min(found.delta for found in mine), max(found.delta for found in mine)
        delta = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
        said.append(f"- {arm}: {verdicts} (eps = {mine[0].eps:.3g}, delta = {delta})")
    heading = ["arm", "seed", "verdict", "decided by", "‖∇F‖", "λ_min integral", "λ_min full", "λ_min / ‖H‖"]
    rows = [[*heading, "products"]]
    for each in certified:
        found = each.certificate
        row = [each.arm, str(each.seed), found.verdict.name, found.decided_by, f"{found.gradient_norm:.2e}"]
        products = f"{found.integral.products} + {found.full.products}"
        ratio = f"{found.full.eigenvalue / each.scale:.1e}" if each.scale > 0 else "–"
        rows.append([*row, curvature(found.integral), curvature(found.full), ratio, products])
    failure = certified[0].certificate.failure
    legend = (
        "λ_min: Rayleigh quotient ± residual, and after ≥ what λ_min is not below, each with probability "
        f"{1 - failure:g}. ‖H‖ is |λ|_max of the full Hessian there, by {_GLANCE} steps of Lanczos; without --delta, "
        f"delta is {100 * _NEGATIVE:g} % of it. Products of the integral + the full Hessian."
    )
    return "\n\n".join(["\n".join(said), table(rows), legend])


def curvature(part: Curvature) -> str:
    """A smallest eigenvalue with its bounds."""
    lower = f"{part.lower:.3g}" if math.isfinite(part.lower) else "unknown"
    return f"{part.eigenvalue:.3g} ± {part.residual:.0e}, ≥ {lower}"
