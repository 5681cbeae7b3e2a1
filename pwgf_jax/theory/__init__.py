r"""From what is known of an objective to the numbers that methods take.

:func:`theory_parameters` turns the accuracy (ε, δ) and the smoothness constants of a functional into the thresholds of
:func:`pwgf_jax.pwgf`, :func:`estimate_smoothness` measures those constants from below, :func:`suggest_parameters`
does both, and :class:`Constants` has the arguments of every transformation in :mod:`pwgf_jax.transforms`.
"""

from pwgf_jax.theory.constants import Constants
from pwgf_jax.theory.smoothness import Smoothness, estimate_smoothness, suggest_parameters
from pwgf_jax.theory.thresholds import Factors, TheoryParameters, TheoryWarning, theory_parameters

__all__ = [
    "Constants",
    "Factors",
    "Smoothness",
    "TheoryParameters",
    "TheoryWarning",
    "estimate_smoothness",
    "suggest_parameters",
    "theory_parameters",
]
