"""Flows of measures: a direction, an optax step, a perturbation and a trigger, composed."""

from pwgf_jax.flows.base import Evaluation, Flow, FlowState, Status, StepInfo, flow, gradient
from pwgf_jax.flows.noise import hessian_noise, isotropic_noise
from pwgf_jax.flows.presets import isotropic_pwgf, pwgf, wgf
from pwgf_jax.flows.spectral import saddle_free_newton, sobolev_descent, wasserstein_newton

__all__ = [
    "Evaluation",
    "Flow",
    "FlowState",
    "Status",
    "StepInfo",
    "flow",
    "gradient",
    "hessian_noise",
    "isotropic_noise",
    "isotropic_pwgf",
    "pwgf",
    "saddle_free_newton",
    "sobolev_descent",
    "wasserstein_newton",
    "wgf",
]
