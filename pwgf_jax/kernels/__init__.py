"""Kernels k(x, y), and their sums over particles in closed form."""

from pwgf_jax.kernels.base import Kernel, Sum
from pwgf_jax.kernels.families import coulomb, energy, gaussian, imq, laplace, median_heuristic
from pwgf_jax.kernels.features import Feature, feature, random_features
from pwgf_jax.kernels.radial import Profile, Radial
from pwgf_jax.kernels.regularised import DeRegularised, de_regularised

__all__ = [
    "DeRegularised",
    "Feature",
    "Kernel",
    "Profile",
    "Radial",
    "Sum",
    "coulomb",
    "de_regularised",
    "energy",
    "feature",
    "gaussian",
    "imq",
    "laplace",
    "median_heuristic",
    "random_features",
]
