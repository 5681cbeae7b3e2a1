"""The pieces that flows are composed of and that an optax user can call by themselves."""

from pwgf_jax.transforms.compression import (
    Compressor,
    ErrorFeedbackState,
    average_over,
    compressed_sgd,
    error_feedback,
    random_k,
    top_k,
)
from pwgf_jax.transforms.constrained import (
    ConstrainedState,
    Domain,
    ball,
    box,
    constrained_escape,
    polytope,
    simplex,
)
from pwgf_jax.transforms.curvature import (
    NegativeCurvature,
    NegativeCurvatureState,
    coordinate_gradient,
    gaussian_gradient,
    negative_curvature,
    negative_curvature_descent,
    zeroth_order_descent,
)
from pwgf_jax.transforms.dimer import DimerState, dimer
from pwgf_jax.transforms.masked import masked
from pwgf_jax.transforms.newton import CubicState, absolute_inverse, cubic_newton, scale_by_saddle_free_newton
from pwgf_jax.transforms.perturb import (
    PerturbState,
    ball_noise,
    gaussian_noise,
    hessian_product_noise,
    perturb_at_saddle,
    pgd,
    scale_by_measure,
)
from pwgf_jax.transforms.ssrgd import SSRGDState, ssrgd
from pwgf_jax.transforms.stochastic import (
    StochasticCurvatureState,
    negative_curvature_online,
    zo_scsg_ncf,
    zo_sgd_ncf,
    zo_spider_ncf,
)
from pwgf_jax.transforms.trigger import Examination, Trigger, Window, certificate_trigger, gradient_trigger

__all__ = [
    "Compressor",
    "ConstrainedState",
    "CubicState",
    "DimerState",
    "Domain",
    "ErrorFeedbackState",
    "Examination",
    "NegativeCurvature",
    "NegativeCurvatureState",
    "PerturbState",
    "SSRGDState",
    "StochasticCurvatureState",
    "Trigger",
    "Window",
    "absolute_inverse",
    "average_over",
    "ball",
    "ball_noise",
    "box",
    "certificate_trigger",
    "compressed_sgd",
    "constrained_escape",
    "coordinate_gradient",
    "cubic_newton",
    "dimer",
    "error_feedback",
    "gaussian_gradient",
    "gaussian_noise",
    "gradient_trigger",
    "hessian_product_noise",
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
    "simplex",
    "ssrgd",
    "top_k",
    "zeroth_order_descent",
    "zo_scsg_ncf",
    "zo_sgd_ncf",
    "zo_spider_ncf",
]
