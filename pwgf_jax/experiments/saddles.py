"""Saddles of measures that a config can name, from numbers that TOML can write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from pwgf_jax import problems
from pwgf_jax.experiments.sources import SignPairs, Teacher
from pwgf_jax.experiments.starts import Antithetic, IcflSaddle
from pwgf_jax.problems import Problem

__all__ = ["SADDLES"]


def _mean_quartic(key: Array, dtype: Any, *, particles: int, dimension: int, scale: float = 0.0) -> Problem:
    """A double well of the mean: every centred measure is a saddle, whose Hessian is one common shift."""
    del key
    return problems.mean_quartic(particles, dimension, scale=scale, dtype=dtype)


def _antithetic_factorization(
    key: Array,
    dtype: Any,
    *,
    particles: int,
    points: int,
    inputs: int,
    outputs: int,
    teacher_neurons: int = 50,
    spread: float = 0.5,
    prefactor: float = 1.0,
    scale: float = 0.0,
) -> Problem:
    """Rank-one matrix factorisation where neurons cancel in pairs; ``spread`` is that of the neurons."""
    data_key, neuron_key = jax.random.split(key)
    data: Any = Teacher(points, inputs, outputs, teacher_neurons).draw(data_key, dtype)
    neurons = Antithetic(spread, 0.0).draw(neuron_key, particles, data, dtype).points[: particles // 2]
    return problems.antithetic_factorization(data.inputs, data.targets, neurons, prefactor=prefactor, scale=scale)


def _uncorrelated_icfl(
    key: Array,
    dtype: Any,
    *,
    particles: int,
    points: int,
    inputs: int,
    outputs: int,
    teacher_neurons: int = 50,
    spread: float = 1.0,
    ridge: float = 0.1,
    scale: float = 0.0,
) -> Problem:
    """In-context feature learning where neurons see what the targets do not depend on; ``spread`` is theirs."""
    data_key, neuron_key = jax.random.split(key)
    data: Any = SignPairs(points, inputs, outputs, teacher_neurons).draw(data_key, dtype)
    neurons = IcflSaddle(spread, 0.0).draw(neuron_key, particles, data, dtype).points
    return problems.uncorrelated_icfl(data.inputs, data.targets, neurons, ridge=ridge, scale=scale)


def _linear_icfl(
    key: Array, dtype: Any, *, eigenvalues: list[float], inputs: int, copies: int = 1, scale: float = 0.0
) -> Problem:
    """In-context feature learning with linear features that miss the most important direction."""
    del key
    return problems.linear_icfl(eigenvalues, inputs, copies=copies, scale=scale, dtype=dtype)


def _coulomb_axis(
    key: Array,
    dtype: Any,
    *,
    particles: int,
    distance: float = 1.0,
    softening: float = 0.5,
    scale: float = 0.0,
) -> Problem:
    """Charges on the axis between two blobs that attract them, where nothing pulls them off it."""
    del key
    return problems.coulomb_axis(particles, distance=distance, softening=softening, scale=scale, dtype=dtype)


def _attention_heads(
    key: Array, dtype: Any, *, eigenvalues: list[float], heads: int, at: int = 1, scale: float = 0.0
) -> Problem:
    """Attention heads that are all one, at the eigenvector ``at`` of the covariance."""
    del key
    return problems.attention_heads(eigenvalues, heads, start=at, scale=scale, dtype=dtype)


SADDLES: dict[str, Callable[..., Problem]] = {
    "mean_quartic": _mean_quartic,
    "antithetic_factorization": _antithetic_factorization,
    "uncorrelated_icfl": _uncorrelated_icfl,
    "linear_icfl": _linear_icfl,
    "coulomb_axis": _coulomb_axis,
    "attention_heads": _attention_heads,
}
"""By name: (key of the data, dtype, numbers) -> the problem, which all seeds share; they differ in start and noise."""
