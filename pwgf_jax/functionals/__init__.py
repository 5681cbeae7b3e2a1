"""Functionals that ship with the library; any function of :class:`pwgf_jax.Particles` works beside them."""

from pwgf_jax.functionals.interaction import interaction
from pwgf_jax.functionals.mmd import Mmd, coulomb, mmd
from pwgf_jax.functionals.network import (
    ACTIVATIONS,
    MeanFieldNetwork,
    icfl,
    matrix_factorization,
    mean_field_regression,
)
from pwgf_jax.functionals.potential import potential
from pwgf_jax.functionals.student_teacher import StudentTeacher, small_networks, student_teacher

__all__ = [
    "ACTIVATIONS",
    "MeanFieldNetwork",
    "Mmd",
    "StudentTeacher",
    "coulomb",
    "icfl",
    "interaction",
    "matrix_factorization",
    "mean_field_regression",
    "mmd",
    "potential",
    "small_networks",
    "student_teacher",
]
