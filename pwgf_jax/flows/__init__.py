"""Flows of measures: a direction, an optax step, a perturbation and a trigger, composed."""

from pwgf_jax.flows.base import Evaluation, Flow, FlowState, Status, StepInfo, flow, gradient
from pwgf_jax.flows.presets import isotropic_pwgf, pwgf, wgf

__all__ = [
    "Evaluation",
    "Flow",
    "FlowState",
    "Status",
    "StepInfo",
    "flow",
    "gradient",
    "isotropic_pwgf",
    "pwgf",
    "wgf",
]
