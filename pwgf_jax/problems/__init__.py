"""Test problems of finite dimension whose minima, saddles and spectra are known in closed form."""

from pwgf_jax.problems.base import CriticalPoint, Problem
from pwgf_jax.problems.matrices import (
    asymmetric_factorization,
    deep_linear,
    matrix_sensing,
    phase_retrieval,
    symmetric_factorization,
)
from pwgf_jax.problems.networks import attention_pca, copy_average, spiked_wishart_prompts
from pwgf_jax.problems.octopus import octopus
from pwgf_jax.problems.small import cubic, double_well, leading_eigenvector, quartic

__all__ = [
    "CriticalPoint",
    "Problem",
    "asymmetric_factorization",
    "attention_pca",
    "copy_average",
    "cubic",
    "deep_linear",
    "double_well",
    "leading_eigenvector",
    "matrix_sensing",
    "octopus",
    "phase_retrieval",
    "quartic",
    "spiked_wishart_prompts",
    "symmetric_factorization",
]
