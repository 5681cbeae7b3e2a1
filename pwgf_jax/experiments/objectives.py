"""Functions of finitely many parameters that a config can name, from numbers that TOML can write."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pwgf_jax import problems, trees
from pwgf_jax.experiments import tables
from pwgf_jax.experiments.sizes import check_fits
from pwgf_jax.problems import Problem

__all__ = ["OBJECTIVES", "Objective"]


class Objective(NamedTuple):
    """A problem, and what an experiment on it needs beyond it.

    Args:
        problem: what is minimised.
        later: what a method may change to on its way, in the same parameters; None if nothing.
        stats: parameters -> what to record of them; None if nothing.

    Example:
        >>> made = Objective(problems.double_well(2), stats=lambda x: {"size": jnp.sum(x**2)})
        >>> made.later is None, float(made.stats(jnp.ones(2))["size"])
        (True, 2.0)
    """

    problem: Problem
    later: Problem | None = None
    stats: Callable[[Any], dict[str, Array]] | None = None


_DEEPEST = 1000  # layers, which are traced one by one
_LISTED = 5000  # saddles of an objective that makes them all
_NUMBER = 8  # bytes


def _check_numbers(count: int, **given: Any) -> None:
    """Refuse an objective of no numbers, or of more than there is memory for."""
    for name, value in given.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} = {value}; give at least 1.")
    check_fits(_NUMBER * count, " and ".join(f"{name} = {value}" for name, value in given.items()), "give less.")


def _rotated(key: Array, eigenvalues: Any) -> np.ndarray:
    """A symmetric matrix with these eigenvalues in a random basis: no axis of the coordinates is special."""
    d = len(eigenvalues)
    if d == 0:
        raise ValueError("a list of eigenvalues or singular values is empty; give one number or more.")
    basis = np.linalg.qr(np.asarray(jax.random.normal(key, (d, d))))[0]
    return (basis * np.asarray(eigenvalues, float)) @ basis.T


def _octopus(
    key: Array,
    dtype: Any,
    *,
    dimension: int,
    smoothness: float = float(np.e),
    gamma: float = 1.0,
    tau: float = float(np.e),
    scale: float = 1e-3,
) -> Problem:
    """A chain of saddles that gradient descent takes exponentially long to pass."""
    del key
    if dimension > _LISTED:
        raise ValueError(f"dimension = {dimension}; as many saddles are listed: give up to {_LISTED}.")
    return problems.octopus(dimension, smoothness=smoothness, gamma=gamma, tau=tau, scale=scale, dtype=dtype)


def _double_well(key: Array, dtype: Any, *, dimension: int, scale: float = 0.0) -> Problem:
    """A strict saddle between two wells; by default runs start at it exactly."""
    del key
    _check_numbers(8 * dimension, dimension=dimension)
    return problems.double_well(dimension, scale=scale, dtype=dtype)


def _quartic(key: Array, dtype: Any, *, dimension: int, scale: float = 0.0) -> Problem:
    """Lucchi's quartic: one direction down, one up, all others flat; by default runs start at its saddle."""
    del key
    _check_numbers(8 * dimension, dimension=dimension)
    return problems.quartic(dimension, scale=scale, dtype=dtype)


def _cubic(key: Array, dtype: Any, *, eigenvalues: list[float], scale: float = 1e-3) -> Problem:
    """An indefinite quadratic form with a cubic wall."""
    del key
    return problems.cubic(eigenvalues, scale=scale, dtype=dtype)


def _leading_eigenvector(
    key: Array, dtype: Any, *, samples: int, eigenvalues: list[float], scale: float = 1e-3
) -> Problem:
    """The leading eigenvector of random samples, a finite sum; the other eigenvectors are saddles."""
    _check_numbers(samples * len(eigenvalues), samples=samples)
    if any(value < 0 for value in eigenvalues):
        raise ValueError(f"eigenvalues = {eigenvalues}; those of a covariance are not negative.")
    covariance_key, sample_key = jax.random.split(key)
    root = _rotated(covariance_key, np.sqrt(eigenvalues))
    drawn = np.asarray(jax.random.normal(sample_key, (samples, len(eigenvalues)))) @ root
    return problems.leading_eigenvector(jnp.asarray(drawn, dtype), scale=scale)


def _symmetric_factorization(
    key: Array, dtype: Any, *, eigenvalues: list[float], rank: int, scale: float = 1e-3
) -> Problem:
    """Symmetric matrix factorisation; every subset of eigenvectors is a critical point."""
    return problems.symmetric_factorization(jnp.asarray(_rotated(key, eigenvalues), dtype), rank, scale=scale)


def _asymmetric_factorization(
    key: Array, dtype: Any, *, singular_values: list[float], rank: int, scale: float = 1e-3
) -> Problem:
    """Matrix factorisation into two factors, from near their common zero."""
    return problems.asymmetric_factorization(jnp.asarray(_rotated(key, singular_values), dtype), rank, scale=scale)


def _deep_linear(
    key: Array, dtype: Any, *, singular_values: list[float], depth: int, width: int | None = None, scale: float = 0.1
) -> Problem:
    """A deep linear network: the origin is a strict saddle for two layers only."""
    if depth > _DEEPEST:
        raise ValueError(f"depth = {depth}; give up to {_DEEPEST} layers.")
    _check_numbers(depth * (width or 1) ** 2, depth=depth, width=width)
    return problems.deep_linear(jnp.asarray(_rotated(key, singular_values), dtype), depth, width=width, scale=scale)


def _phase_retrieval(key: Array, dtype: Any, *, dimension: int, scale: float = 1e-3) -> Problem:
    """Phase retrieval of a unit signal from infinitely many measurements."""
    _check_numbers(8 * dimension, dimension=dimension)
    signal = jax.random.normal(key, (dimension,))
    return problems.phase_retrieval((signal / jnp.linalg.norm(signal)).astype(dtype), scale=scale)


def _matrix_sensing(
    key: Array, dtype: Any, *, dimension: int, rank: int, measurements: int, scale: float = 1e-3
) -> Problem:
    """Recovery of a matrix of low rank from Gaussian measurements, a finite sum."""
    _check_numbers(measurements * dimension**2, measurements=measurements, dimension=dimension)
    measure_key, factor_key = jax.random.split(key)
    drawn = jax.random.normal(measure_key, (measurements, dimension, dimension), dtype)
    factor = jnp.linalg.qr(jax.random.normal(factor_key, (dimension, rank), dtype))[0]
    return problems.matrix_sensing(drawn, factor, scale=scale)


def _copy_average(
    key: Array,
    dtype: Any,
    *,
    teachers: int,
    students: int,
    dimension: int | None = None,
    activation: Literal["erf", "relu"] = "erf",
) -> Problem:
    """A student network with too few neurons for its teacher: every partition is a critical point."""
    del key
    if teachers * students > 100_000:  # even to count the partitions takes so many additions
        raise ValueError(f"teachers = {teachers} and students = {students}; give a product up to 100000.")
    _check_numbers(teachers * max(dimension or 1, teachers), teachers=teachers, dimension=dimension)
    return problems.copy_average(teachers, students, dimension=dimension, activation=activation, dtype=dtype)


def _aligned(problem: Problem) -> Objective:
    """Record how well the parameters align with the minimum, |cos| of their angle."""
    leading = problem.minimum.point

    def stats(u: Array) -> dict[str, Array]:
        length = jnp.linalg.norm(u) * jnp.linalg.norm(leading)
        return {"alignment": trees.divided(jnp.abs(u @ leading), length)}

    return Objective(problem, stats=stats)


def _attention_pca(
    key: Array, dtype: Any, *, eigenvalues: list[float], prompt: int | None = None, scale: float = 1e-3
) -> Objective:
    """One attention head that learns the leading principal component; its alignment with that is recorded."""
    covariance = jnp.asarray(_rotated(key, eigenvalues), dtype)
    return _aligned(problems.attention_pca(covariance, prompt=prompt, scale=scale))


def _spiked_attention(
    key: Array,
    dtype: Any,
    *,
    prompts: int,
    tokens: int,
    dimension: int,
    spike: float,
    head: Literal["linear", "softmax"] = "linear",
    scale: float = 1e-3,
) -> Objective:
    """The same head on random prompts of tokens N(0, I + spike·wwᵀ), a finite sum; its alignment with w is recorded."""
    _check_numbers(prompts * tokens * dimension, prompts=prompts, tokens=tokens, dimension=dimension)
    direction_key, prompt_key = jax.random.split(key)
    w = jax.random.normal(direction_key, (dimension,), dtype)
    w /= jnp.linalg.norm(w)
    drawn = problems.spiked_wishart_prompts(prompt_key, prompts, tokens, dimension, spike, direction=w, dtype=dtype)
    covariance = jnp.eye(dimension, dtype=dtype) + spike * jnp.outer(w, w)
    return _aligned(problems.attention_pca(covariance, prompts=drawn, head=head, scale=scale))


def _long_tailed_digits(
    key: Array,
    dtype: Any,
    *,
    imbalance: float,
    hidden: int,
    loss: Literal["cross_entropy", "ldam", "vs"] = "cross_entropy",
    beta: float = 0.9999,
    test_points: int = 50,
    ldam_scale: float = 1.0,
    depth: int = 20,
) -> Objective:
    """Digits of which some classes are rare, and a small network; later, classes count by their weights beta.

    Which digits are rare is drawn; class 0 is the largest. The test data are balanced, ``test_points`` of every
    class. Recorded are the accuracy on them, of all classes and of the third of the largest (head) and smallest
    (tail), and the extreme eigenvalues of the Hessians of the classes' own mean cross-entropy, in training, whatever
    the loss: the smallest of a third is its curvature, the largest its sharpness; ``depth`` is that of Lanczos.
    """
    _check_numbers(8 * 100 * hidden, hidden=hidden)
    digits = tables.digits()
    order_key, test_key, tail_key = jax.random.split(key, 3)
    classes = digits.targets.shape[1]
    third = classes // 3
    renamed = np.asarray(jax.random.permutation(order_key, classes))
    labels = renamed[digits.targets.argmax(axis=1)]
    smallest = int(np.bincount(labels).min())
    if not 1 <= test_points < smallest:
        raise ValueError(f"test_points = {test_points}; a class has {smallest} images, give 1 to {smallest - 1}.")
    shuffled = np.asarray(jax.random.permutation(test_key, labels.size))
    by_class = [shuffled[labels[shuffled] == c] for c in range(classes)]
    test = jnp.asarray(digits.inputs[np.concatenate([each[:test_points] for each in by_class])], dtype)
    rest = np.concatenate([each[test_points:] for each in by_class])
    rows = rest[problems.long_tailed(labels[rest], imbalance, tail_key)]
    x, y = digits.inputs[rows], labels[rows]
    counts = np.bincount(y)
    chosen: Any = partial(problems.ldam, scale=ldam_scale) if loss == "ldam" else loss
    first, later = (
        problems.imbalanced_classification(x, y, hidden=hidden, loss=chosen, beta=b, dtype=dtype) for b in (0.0, beta)
    )
    plain: Any = problems.imbalanced_classification(x, y, hidden=hidden, dtype=dtype)
    # The examples of a class side by side, filled up to the largest class with examples that do not count.
    members = jnp.asarray(np.stack([np.resize(np.flatnonzero(y == c), counts.max()) for c in range(classes)]))
    counted = jnp.arange(counts.max())[None, :] < jnp.asarray(counts)[:, None]

    def own_mean(params: Any, c: Array) -> Array:
        return jnp.mean(plain.components(params, members[c]), where=counted[c])

    def stats(params: Any) -> dict[str, Array]:
        found = jnp.argmax(problems.predict(params, test), axis=1).reshape(classes, test_points)
        right = jnp.mean(found == jnp.arange(classes)[:, None], axis=1, dtype=dtype)
        ends = problems.class_extremes(own_mean, params, classes, jax.random.key(0), depth=depth)
        recorded = {"test_accuracy": jnp.mean(right)}
        for name, part in {"head": slice(third), "tail": slice(classes - third, None)}.items():
            recorded[f"{name}_accuracy"] = jnp.mean(right[part])
            recorded[f"{name}_curvature"] = jnp.min(ends.smallest[part])
            recorded[f"{name}_sharpness"] = jnp.max(ends.largest[part])
        return recorded

    return Objective(first, later, stats)


OBJECTIVES: dict[str, Callable[..., Problem | Objective]] = {
    "octopus": _octopus,
    "double_well": _double_well,
    "quartic": _quartic,
    "cubic": _cubic,
    "leading_eigenvector": _leading_eigenvector,
    "symmetric_factorization": _symmetric_factorization,
    "asymmetric_factorization": _asymmetric_factorization,
    "deep_linear": _deep_linear,
    "phase_retrieval": _phase_retrieval,
    "matrix_sensing": _matrix_sensing,
    "copy_average": _copy_average,
    "attention_pca": _attention_pca,
    "spiked_attention": _spiked_attention,
    "long_tailed_digits": _long_tailed_digits,
}
"""By name: (key of the data, dtype, numbers) -> the problem, which all seeds share; they differ in start and noise."""
