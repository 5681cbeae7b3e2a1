"""Functionals that ship with the library; any function of :class:`pwgf_jax.Particles` works beside them."""

from pwgf_jax.functionals.interaction import interaction
from pwgf_jax.functionals.network import (
    ACTIVATIONS,
    MeanFieldNetwork,
    icfl,
    matrix_factorization,
    mean_field_regression,
)
from pwgf_jax.functionals.potential import potential

__all__ = [
    "ACTIVATIONS",
    "MeanFieldNetwork",
    "icfl",
    "interaction",
    "matrix_factorization",
    "mean_field_regression",
    "potential",
]
