"""Optimising over probability measures, and escaping saddle points, in JAX.

A problem is a functional F(μ): any function of :class:`Particles`. Its derivatives are in :mod:`pwgf_jax.calculus`,
functions of its Hessian in :mod:`pwgf_jax.krylov`, random fields in :mod:`pwgf_jax.perturbation`, kernels in
:mod:`pwgf_jax.kernels`, methods in :mod:`pwgf_jax.flows`, and running them in :mod:`pwgf_jax.solve`.
"""

from pwgf_jax import compatibility, functionals, kernels, problems, transforms
from pwgf_jax.calculus import (
    first_variation,
    hessian_matrix,
    value_and_wasserstein_gradient,
    wasserstein_gradient,
    wasserstein_hessian,
)
from pwgf_jax.certificate import Certificate, Verdict, certify
from pwgf_jax.contract import check_functional
from pwgf_jax.density import extreme_eigenpairs, spectral_density
from pwgf_jax.flows import (
    Flow,
    Status,
    certified_pwgf,
    descent,
    drmmd_descent,
    flow,
    isotropic_pwgf,
    ksd_descent,
    langevin,
    minibatch,
    mirror,
    noise_injection,
    pwgf,
    reweighted,
    saddle_free_newton,
    sobolev_descent,
    svgd,
    wasserstein_newton,
    wgf,
)
from pwgf_jax.krylov import lanczos, matrix_function, smallest_eigenpair
from pwgf_jax.measures import Particles, inner, norm
from pwgf_jax.perturbation import (
    ball_noise,
    gaussian_noise,
    hessian_guided,
    hessian_guided_field,
    hessian_noise,
    isotropic,
    isotropic_noise,
    smooth_isotropic,
)
from pwgf_jax.solve import Record, Solution, continuous_pwgf, run, sweep
from pwgf_jax.theory import estimate_smoothness, suggest_parameters, theory_parameters

__version__ = "0.1.0"

__all__ = [
    "Certificate",
    "Flow",
    "Particles",
    "Record",
    "Solution",
    "Status",
    "Verdict",
    "ball_noise",
    "certified_pwgf",
    "certify",
    "check_functional",
    "compatibility",
    "continuous_pwgf",
    "descent",
    "drmmd_descent",
    "estimate_smoothness",
    "extreme_eigenpairs",
    "first_variation",
    "flow",
    "functionals",
    "gaussian_noise",
    "hessian_guided",
    "hessian_guided_field",
    "hessian_matrix",
    "hessian_noise",
    "inner",
    "isotropic",
    "isotropic_noise",
    "isotropic_pwgf",
    "kernels",
    "ksd_descent",
    "lanczos",
    "langevin",
    "matrix_function",
    "minibatch",
    "mirror",
    "noise_injection",
    "norm",
    "problems",
    "pwgf",
    "reweighted",
    "run",
    "saddle_free_newton",
    "smallest_eigenpair",
    "smooth_isotropic",
    "sobolev_descent",
    "spectral_density",
    "suggest_parameters",
    "svgd",
    "sweep",
    "theory_parameters",
    "transforms",
    "value_and_wasserstein_gradient",
    "wasserstein_gradient",
    "wasserstein_hessian",
    "wasserstein_newton",
    "wgf",
]
