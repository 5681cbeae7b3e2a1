"""Test problems: objectives with what closed forms say of their minima, saddles and spectra, and laws to meet."""

from pwgf_jax.problems.base import CriticalPoint, Problem
from pwgf_jax.problems.imbalanced import (
    ClassExtremes,
    class_balanced_weights,
    class_extremes,
    cross_entropy,
    imbalanced_classification,
    ldam,
    long_tailed,
    predict,
    vector_scaling,
)
from pwgf_jax.problems.laws import Law, Normal, ThreeRings
from pwgf_jax.problems.matrices import (
    asymmetric_factorization,
    deep_linear,
    matrix_sensing,
    phase_retrieval,
    symmetric_factorization,
)
from pwgf_jax.problems.networks import attention_pca, copy_average, spiked_wishart_prompts
from pwgf_jax.problems.saddle_chain import octopus
from pwgf_jax.problems.small import cubic, double_well, leading_eigenvector, quartic

__all__ = [
    "ClassExtremes",
    "CriticalPoint",
    "Law",
    "Normal",
    "Problem",
    "ThreeRings",
    "asymmetric_factorization",
    "attention_pca",
    "class_balanced_weights",
    "class_extremes",
    "copy_average",
    "cross_entropy",
    "cubic",
    "deep_linear",
    "double_well",
    "imbalanced_classification",
    "ldam",
    "leading_eigenvector",
    "long_tailed",
    "matrix_sensing",
    "octopus",
    "phase_retrieval",
    "predict",
    "quartic",
    "spiked_wishart_prompts",
    "symmetric_factorization",
    "vector_scaling",
]
