"""Functionals that ship with the library; any function of :class:`pwgf_jax.Particles` works beside them.

They form an algebra, see :class:`Combinable`: ``F + 0.5 * G``, ``F.confined(strength)``.
"""

from pwgf_jax.functionals.base import Combinable, Sum, functional
from pwgf_jax.functionals.discrepancy import Mmd, coulomb_discrepancy, mmd
from pwgf_jax.functionals.energies import entropy, interaction, potential
from pwgf_jax.functionals.network import (
    ACTIVATIONS,
    MeanFieldNetwork,
    icfl,
    matrix_factorization,
    mean_field_regression,
)
from pwgf_jax.functionals.sliced import sliced_wasserstein
from pwgf_jax.functionals.stein import stein_discrepancy
from pwgf_jax.functionals.teacher import StudentTeacher, small_networks, student_teacher
from pwgf_jax.functionals.transport import sinkhorn_divergence

__all__ = [
    "ACTIVATIONS",
    "Combinable",
    "MeanFieldNetwork",
    "Mmd",
    "StudentTeacher",
    "Sum",
    "coulomb_discrepancy",
    "entropy",
    "functional",
    "icfl",
    "interaction",
    "matrix_factorization",
    "mean_field_regression",
    "mmd",
    "potential",
    "sinkhorn_divergence",
    "sliced_wasserstein",
    "small_networks",
    "stein_discrepancy",
    "student_teacher",
]
