"""The pieces that flows are composed of and that an optax user can call by themselves."""

from pwgf_jax.transforms.newton import CubicState, absolute_inverse, cubic_newton, scale_by_saddle_free_newton
from pwgf_jax.transforms.perturb import (
    PerturbState,
    PGDConstants,
    ball_noise,
    gaussian_noise,
    hessian_product_noise,
    perturb_at_saddle,
    pgd,
    pgd_constants,
    scale_by_measure,
)
from pwgf_jax.transforms.trigger import Examination, Trigger, Window, certificate_trigger, gradient_trigger

__all__ = [
    "CubicState",
    "Examination",
    "PGDConstants",
    "PerturbState",
    "Trigger",
    "Window",
    "absolute_inverse",
    "ball_noise",
    "certificate_trigger",
    "cubic_newton",
    "gaussian_noise",
    "gradient_trigger",
    "hessian_product_noise",
    "perturb_at_saddle",
    "pgd",
    "pgd_constants",
    "scale_by_measure",
    "scale_by_saddle_free_newton",
]
