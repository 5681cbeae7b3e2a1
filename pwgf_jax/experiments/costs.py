"""What a step costs, in gradients of the whole objective: a model, to compare methods on any machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pwgf_jax.experiments.reading import Call
from pwgf_jax.experiments.results import Arm

__all__ = ["PRODUCT", "VALUE", "cost_model", "gradients", "seconds"]

PRODUCT = 1.3
"""One Hessian product, in gradients: a linearised gradient, whose linearisation is reused within a step."""
VALUE = 1 / 3
"""One value, in gradients: the forward pass of a reverse-mode gradient."""

_SPECTRAL = ("saddle_free_newton", "sobolev_descent", "wasserstein_newton")
_DEPTH = 32  # of Lanczos, where a flow does not say


def cost_model(flow: Call, points: int | None) -> dict[str, float]:
    """The cost of a step and of a jump, in gradients of the whole objective.

    A gradient counts 1 and a Hessian product 1.3, so that a φ(H)∇F by Lanczos counts 1 + 1.3 · depth. Noise injection
    takes two gradients; with an adaptive level one and as many as it may try, since seeds that share a step wait for
    the one that tries longest. The first variation of a step on the weights counts as a gradient. A score of an energy
    counts as one too: SVGD has one beside the gradient of F if its energy is not F, and KSD descent, which
    differentiates its scores, one and a product. DrMMD descent has a gradient beside that of F; what it factors is not
    counted.
    A jump adds the products of its noise (1 for Hessian-guided noise, 64 by its Lanczos sampler, which takes 32 steps
    on H²; 8 for the energy of isotropic noise, none if its scale is given), the examination of a certificate trigger,
    and the direction where it leads; an examination that ends in no jump is not counted, as it is not recorded. On a
    batch everything costs the batch's share.
    The dense and the Gram solver are linear algebra of another kind, which no number of products stands for: they
    count as the depth that Lanczos would have had.

    Args:
        flow: a flow and its arguments, defaults included.
        points: size of the data; None without.

    Returns:
        "step" and "jump".

    Example:
        >>> from pwgf_jax.experiments.catalogue import method
        >>> cost_model(method(flow="wgf", step_size=0.1), 800)
        {'step': 1.0, 'jump': 0.0}
        >>> cost_model(method(flow="saddle_free_newton", step_size=1.0, beta=1e-3, depth=10), 800)
        {'step': 14.0, 'jump': 0.0}
    """
    arguments = flow.arguments
    share = min(arguments.get("batch_size", points) / points, 1.0) if points else 1.0
    step = _step(flow.name, arguments) + ("weights" in arguments)
    jumps = arguments if "k_thres" in arguments else arguments.get("perturbation")
    if jumps is None:
        return {"step": share * step, "jump": 0.0}
    return {"step": share * step, "jump": share * (step + PRODUCT * _jump(flow.name, jumps))}


def _step(name: str, arguments: Mapping[str, Any]) -> float:
    """A direction, in gradients of what the flow sees."""
    if name in _SPECTRAL:
        return 1 + PRODUCT * arguments.get("depth", _DEPTH)
    if name == "noise_injection":
        level = arguments["level"]
        return 1.0 + (level["trials"] if isinstance(level, dict) and level.get("kind") == "adaptive" else 1)
    if name == "ksd_descent":
        return 2 + PRODUCT
    if name == "drmmd_descent":
        return 2.0
    return 2.0 if name == "svgd" and "energy" in arguments else 1.0


def _jump(name: str, arguments: Mapping[str, Any]) -> int:
    """The Hessian products before a jump."""
    if name == "isotropic_pwgf":
        return 0 if "scale" in arguments else 8
    examined = arguments.get("depth", _DEPTH) + 1 if name == "certified_pwgf" else 0
    if examined and "perturbation" not in arguments:
        return examined
    sampler = arguments.get("perturbation", arguments).get("sampler")
    return examined + (2 * _DEPTH if sampler == "lanczos" else 1)


def gradients(arm: Arm) -> np.ndarray:
    """The cost of every seed up to each record, in gradients of the whole objective, shape (seeds, records).

    Counted where the method of an objective counts for itself; else by the model.

    Example:
        >>> records = {"step": np.array([0, 5]), "value": np.ones((1, 2)), "perturbed": np.array([[True, False]])}
        >>> gradients(Arm(records, np.array([2]), {"cost": {"step": 1.0, "jump": 2.5}})).tolist()
        [[0.0, 7.5]]
    """
    if "gradients" in arm.records:
        return arm.records["gradients"] + PRODUCT * arm.records["products"] + VALUE * arm.records["values"]
    cost = arm.info.get("cost", {"step": 1.0, "jump": 0.0})
    jumps = np.cumsum(arm.records["perturbed"], axis=1) - arm.records["perturbed"]
    return cost["step"] * arm.records["step"] + cost["jump"] * jumps


def seconds(arm: Arm) -> np.ndarray:
    """The time of the arm, all seeds together, up to each record, shape (records,).

    Measured at the ends of chunks, of the steps alone, and linear between them up to the step at which the last seed
    stopped: what comes after takes no time. Runs of version 0.1.0 timed compilation with the first chunk, which for
    them counts with the speed of the second.

    Example:
        >>> clock = {"step": [10, 20, 30], "seconds": [1.0, 3.0, 3.0], "seed_steps": [10, 15, 15]}
        >>> seconds(Arm({"step": np.array([0, 12, 20, 30])}, np.array([2]), {"clock": clock, "steps": [15]})).tolist()
        [0.0, 1.8, 3.0, 3.0]
    """
    clock, step = arm.info.get("clock"), np.asarray(arm.records["step"], float)
    if not clock or not clock["step"]:
        return np.full(step.shape, np.nan)
    ends, at = np.asarray(clock["step"], float), np.asarray(clock["seconds"], float)
    last = max(arm.info.get("steps", [np.inf]))
    if "seed_steps" not in clock:
        second = min(ends[1], last) - ends[0] if len(ends) > 1 else 0
        if second <= 0:
            return np.full(step.shape, np.nan)
        at = at - at[0] + ends[0] * (at[1] - at[0]) / second
    live = np.concatenate([[True], ends[:-1] < last])
    return np.interp(step, [0, *np.minimum(ends[live], last)], [0, *at[live]])
