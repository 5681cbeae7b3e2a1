"""What a step costs, in gradients of the whole objective: a model, to compare methods on any machine."""

from __future__ import annotations

import numpy as np

from pwgf_jax.experiments.folder import Arm
from pwgf_jax.experiments.schema import Call

__all__ = ["PRODUCT", "VALUE", "cost_model", "gradients", "seconds"]

PRODUCT = 1.3
"""One Hessian product, in gradients: a linearised gradient, whose linearisation is reused within a step."""
VALUE = 1 / 3
"""One value, in gradients: the forward pass of a reverse-mode gradient."""

_SPECTRAL = ("saddle_free_newton", "sobolev_descent", "wasserstein_newton")
_DEPTH = 32  # of Lanczos, where a flow does not say


def cost_model(flow: Call, points: int | None) -> dict[str, float]:
    """The cost of a step and of a jump, in gradients of the whole objective.

    A gradient counts 1 and a Hessian product 1.3, so that a φ(H)∇F by Lanczos counts 1 + 1.3 · depth; noise injection
    takes two gradients, and a score of SVGD counts as one. A jump adds
    the products of its noise (1 for Hessian-guided noise, 32 by its Lanczos sampler, 8 for the energy of isotropic
    noise), the examination of a certificate trigger, and the direction where it leads; an examination that ends in no
    jump is not counted, as it is not recorded. On a batch everything costs the batch's share.
    The dense and the Gram solver are linear algebra of another kind, which no number of products stands for: they
    count as the depth that Lanczos would have had.

    Args:
        flow: a flow and its arguments.
        points: size of the data; None without.

    Returns:
        "step" and "jump".

    Example:
        >>> cost_model(Call("wgf", {"step_size": 0.1}), 800)
        {'step': 1.0, 'jump': 0.0}
        >>> cost_model(Call("saddle_free_newton", {"beta": 1e-3, "depth": 10}), 800)
        {'step': 14.0, 'jump': 0.0}
    """
    arguments, depth = flow.arguments, flow.arguments.get("depth", _DEPTH)
    share = min(arguments.get("batch_size", points) / points, 1.0) if points else 1.0
    step = 1 + (PRODUCT * depth if flow.name in _SPECTRAL else flow.name == "noise_injection")
    jumps = arguments.get("perturbation") or (arguments if "k_thres" in arguments else None)
    if jumps is None:
        return {"step": share * step, "jump": 0.0}
    products = 8 if flow.name == "isotropic_pwgf" else _DEPTH if jumps.get("sampler") == "lanczos" else 1
    if arguments.get("trigger") == "certificate":
        products += depth + 1
    return {"step": share * step, "jump": share * (step + PRODUCT * products)}


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

    Measured at the ends of chunks and linear between them. The first chunk holds the compilation; it counts with
    the mean speed of the others. So does what was run before an interruption.

    Example:
        >>> clock = {"step": [10, 20, 30], "seconds": [9.0, 10.0, 11.0]}
        >>> seconds(Arm({"step": np.array([0, 20, 30])}, np.array([2]), {"clock": clock})).tolist()
        [0.0, 2.0, 3.0]
    """
    clock = arm.info.get("clock")
    if not clock or len(clock["step"]) < 2:
        return np.full(arm.records["step"].shape, np.nan)
    steps, at = np.asarray(clock["step"], float), np.asarray(clock["seconds"], float)
    first = steps[0] * (at[-1] - at[0]) / (steps[-1] - steps[0])
    return np.interp(arm.records["step"], [0, *steps], [0, *(at - at[0] + first)])
