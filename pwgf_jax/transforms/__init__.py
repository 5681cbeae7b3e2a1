"""The pieces that flows are composed of and that an optax user can call by themselves."""

from pwgf_jax.transforms.accelerated import AcceleratedState, accelerated_descent
from pwgf_jax.transforms.compression import (
    Compressor,
    ErrorFeedbackState,
    average_over,
    compressed_sgd,
    error_feedback,
    random_k,
    top_k,
)
from pwgf_jax.transforms.constrained import ConstrainedState, constrained_escape
from pwgf_jax.transforms.curvature import NegativeCurvature, negative_curvature, negative_curvature_online
from pwgf_jax.transforms.curvature_descent import (
    NegativeCurvatureState,
    negative_curvature_descent,
    zeroth_order_descent,
)
from pwgf_jax.transforms.differences import coordinate_gradient, gaussian_gradient
from pwgf_jax.transforms.dimers import DimerState, dimer
from pwgf_jax.transforms.domains import Domain, ball, box, polytope, simplex
from pwgf_jax.transforms.finite_sums import Epoch, Estimator, scsg, sgd, spider
from pwgf_jax.transforms.isometry import OfParticles, chart, transformation
from pwgf_jax.transforms.masking import masked
from pwgf_jax.transforms.newton import CubicState, absolute_inverse, cubic_newton, scale_by_saddle_free_newton
from pwgf_jax.transforms.perturb import PerturbState, perturb_at_saddle, pgd, scale_by_measure
from pwgf_jax.transforms.recursive import SSRGDState, ssrgd
from pwgf_jax.transforms.trigger import Examination, Leap, Trigger, Window, certificate_trigger, gradient_trigger, leap

__all__ = [
    "AcceleratedState",
    "Compressor",
    "ConstrainedState",
    "CubicState",
    "DimerState",
    "Domain",
    "Epoch",
    "ErrorFeedbackState",
    "Estimator",
    "Examination",
    "Leap",
    "NegativeCurvature",
    "NegativeCurvatureState",
    "OfParticles",
    "PerturbState",
    "SSRGDState",
    "Trigger",
    "Window",
    "absolute_inverse",
    "accelerated_descent",
    "average_over",
    "ball",
    "box",
    "certificate_trigger",
    "chart",
    "compressed_sgd",
    "constrained_escape",
    "coordinate_gradient",
    "cubic_newton",
    "dimer",
    "error_feedback",
    "gaussian_gradient",
    "gradient_trigger",
    "leap",
    "masked",
    "negative_curvature",
    "negative_curvature_descent",
    "negative_curvature_online",
    "perturb_at_saddle",
    "pgd",
    "polytope",
    "random_k",
    "scale_by_measure",
    "scale_by_saddle_free_newton",
    "scsg",
    "sgd",
    "simplex",
    "spider",
    "ssrgd",
    "top_k",
    "transformation",
    "zeroth_order_descent",
]
