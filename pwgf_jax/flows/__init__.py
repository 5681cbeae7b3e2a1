"""Flows of measures: a direction, an optax step, a perturbation and a trigger, composed."""

from pwgf_jax.flows.base import flow, gradient, minibatch
from pwgf_jax.flows.damping import levenberg_marquardt
from pwgf_jax.flows.diffusion import langevin
from pwgf_jax.flows.discrepancy import drmmd_descent, drmmd_direction
from pwgf_jax.flows.injection import adaptive_level, injected, noise_injection
from pwgf_jax.flows.optimizers import Seeded, descent, seeded
from pwgf_jax.flows.presets import certified_pwgf, isotropic_pwgf, pwgf, wgf
from pwgf_jax.flows.protocol import Evaluation, Flow, FlowState, Status, StepInfo, preset
from pwgf_jax.flows.spectral import saddle_free_newton, sobolev_descent, wasserstein_newton
from pwgf_jax.flows.stein import ksd_descent, ksd_direction, svgd, svgd_direction
from pwgf_jax.flows.weights import Mirror, mirror, reweighted

__all__ = [
    "Evaluation",
    "Flow",
    "FlowState",
    "Mirror",
    "Seeded",
    "Status",
    "StepInfo",
    "adaptive_level",
    "certified_pwgf",
    "descent",
    "drmmd_descent",
    "drmmd_direction",
    "flow",
    "gradient",
    "injected",
    "isotropic_pwgf",
    "ksd_descent",
    "ksd_direction",
    "langevin",
    "levenberg_marquardt",
    "minibatch",
    "mirror",
    "noise_injection",
    "preset",
    "pwgf",
    "reweighted",
    "saddle_free_newton",
    "seeded",
    "sobolev_descent",
    "svgd",
    "svgd_direction",
    "wasserstein_newton",
    "wgf",
]
