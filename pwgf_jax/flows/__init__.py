"""Flows of measures: a direction, an optax step, a perturbation and a trigger, composed."""

from pwgf_jax.flows.base import Evaluation, Flow, FlowState, Status, StepInfo, flow, gradient, minibatch, preset
from pwgf_jax.flows.descent import Seeded, descent
from pwgf_jax.flows.injection import adaptive_level, injected, noise_injection
from pwgf_jax.flows.langevin import langevin
from pwgf_jax.flows.presets import certified_pwgf, isotropic_pwgf, pwgf, wgf
from pwgf_jax.flows.spectral import saddle_free_newton, sobolev_descent, wasserstein_newton
from pwgf_jax.flows.stein import ksd_descent, ksd_direction, svgd, svgd_direction

__all__ = [
    "Evaluation",
    "Flow",
    "FlowState",
    "Seeded",
    "Status",
    "StepInfo",
    "adaptive_level",
    "certified_pwgf",
    "descent",
    "flow",
    "gradient",
    "injected",
    "isotropic_pwgf",
    "ksd_descent",
    "ksd_direction",
    "langevin",
    "minibatch",
    "noise_injection",
    "preset",
    "pwgf",
    "saddle_free_newton",
    "sobolev_descent",
    "svgd",
    "svgd_direction",
    "wasserstein_newton",
    "wgf",
]
