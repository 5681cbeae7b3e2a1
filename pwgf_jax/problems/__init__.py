"""Test problems: objectives and functionals with what closed forms say of their minima, saddles and spectra, and laws.

Those of measures are ``mean_quartic``, ``antithetic_factorization``, ``uncorrelated_icfl``, ``linear_icfl``,
``coulomb_axis`` and ``attention_heads``: their points are :class:`pwgf_jax.Particles`.
"""

from pwgf_jax.problems.base import CriticalPoint, Problem
from pwgf_jax.problems.features import antithetic_factorization, linear_icfl, uncorrelated_icfl
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
from pwgf_jax.problems.measures import attention_heads, coulomb_axis, mean_quartic
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
    "antithetic_factorization",
    "asymmetric_factorization",
    "attention_heads",
    "attention_pca",
    "class_balanced_weights",
    "class_extremes",
    "copy_average",
    "coulomb_axis",
    "cross_entropy",
    "cubic",
    "deep_linear",
    "double_well",
    "imbalanced_classification",
    "ldam",
    "leading_eigenvector",
    "linear_icfl",
    "long_tailed",
    "matrix_sensing",
    "mean_quartic",
    "octopus",
    "phase_retrieval",
    "predict",
    "quartic",
    "spiked_wishart_prompts",
    "symmetric_factorization",
    "uncorrelated_icfl",
    "vector_scaling",
]
