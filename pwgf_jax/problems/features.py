r"""Saddles of mean-field networks: features that cancel, that see nothing of the targets, or that miss a direction.

The points are measures of neurons (a, w), rows of k outgoing and l ingoing weights. At all these saddles the first
variation is zero for every neuron, so that the local Hessian vanishes on particles too, and both Hessians are one.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pwgf_jax.functionals import ACTIVATIONS, MeanFieldNetwork, icfl, matrix_factorization
from pwgf_jax.measures import Particles
from pwgf_jax.problems.base import CriticalPoint, Problem, around, numbers

__all__ = ["antithetic_factorization", "linear_icfl", "uncorrelated_icfl"]

_SETS = 5000  # critical points that are listed


def _features(F: MeanFieldNetwork, neurons: Float[Array, "n d"]) -> tuple[np.ndarray, ...]:
    """In float64 a (N, k), σ(w·z) and σ'(w·z) (N, M), the inputs and the targets."""
    outgoing, ingoing = neurons[:, : F.targets.shape[1]], neurons[:, F.targets.shape[1] :]
    angles = ingoing @ F.inputs.T
    activation = ACTIVATIONS[F.activation]
    slopes = jax.vmap(jax.vmap(jax.grad(activation)))(angles)
    return tuple(np.asarray(each, float) for each in (outgoing, activation(angles), slopes, F.inputs, F.targets))


def _downward(jacobian: np.ndarray, neurons: int) -> np.ndarray:
    """The spectrum of −JJᵀ/N, where the rows of J are the coordinates of all neurons."""
    squares = np.linalg.svd(jacobian, compute_uv=False) ** 2 / neurons
    squares[squares < 1e-12 * squares.max(initial=0)] = 0
    return np.sort(np.concatenate([-squares, np.zeros(jacobian.shape[0] - squares.size)]))


def antithetic_factorization(
    inputs: Float[Array, "m l"],
    targets: Float[Array, "m k"],
    neurons: Float[Array, "n d"],
    *,
    prefactor: float = 1.0,
    activation: str = "tanh",
    scale: float = 0.0,
) -> Problem:
    r""":func:`pwgf_jax.functionals.matrix_factorization` at neurons in antithetic pairs (a, w), (−a, w).

    The output h_μ is zero, the first variation too, and :math:`F=\frac c2\mathbb E|h^\circ|^4`. The Hessian is
    :math:`-2c\,\mathbb E[\nabla(h_\theta\cdot h^\circ)\nabla(h_{\theta'}\cdot h^\circ)^\top]`: its eigenvalues are −2c
    times those of the M×M Gram matrix of these gradients over data and neurons, and zeros; the index is its rank.

    Args:
        inputs: z, shape (M, l).
        targets: h°(z), shape (M, k).
        neurons: one of each pair, shape (N/2, k + l).
        prefactor: c.
        activation: σ, a name in :data:`pwgf_jax.functionals.ACTIVATIONS`.
        scale: standard deviation of the start about the saddle.

    Returns:
        The problem; whether N neurons attain the minimum F = 0 depends on the targets.

    Raises:
        ValueError: if the shapes disagree, the activation is unknown, or no curvature is negative: where all weights
            are zero, nothing descends (the trap of :func:`pwgf_jax.functionals.matrix_factorization`).

    Example:
        >>> import jax.numpy as jnp
        >>> z = jnp.array([[1.0], [-1.0]])
        >>> saddle = antithetic_factorization(z, z, jnp.array([[1.0, 0.5]])).saddles[0]
        >>> saddle.value, saddle.index
        (0.5, 1)

    References:
        Yamamoto, Kim, Suzuki, arXiv:2509.16974, Example 1 (the functional); the spectrum is elementary.
    """
    F = matrix_factorization(inputs, targets, prefactor=prefactor, activation=activation)
    pairs = _neurons("antithetic_factorization", neurons, F)
    pairs = jnp.concatenate([pairs, pairs.at[:, : F.targets.shape[1]].multiply(-1)])
    a, values, slopes, z, y = _features(F, pairs)
    by_a = np.einsum("nm,mp->npm", values, y)
    by_w = np.einsum("np,mp,nm,ml->nlm", a, y, slopes, z, optimize=True)
    jacobian = np.concatenate([by_a, by_w], axis=1).reshape(pairs.size, len(z))
    spectrum = _downward(jacobian * math.sqrt(2 * prefactor / len(z)), len(a))
    if not spectrum[0] < 0:
        raise ValueError("antithetic_factorization: no curvature is negative here; give neurons that are not zero.")
    saddle = Particles.uniform(pairs)
    level = prefactor / 2 * float(np.mean(np.sum(y**2, axis=1) ** 2))
    point = CriticalPoint("h = 0", saddle, level, float(spectrum[0]), spectrum, integral_spectrum=spectrum)
    return Problem(F, around(saddle, scale), (point,), None)


def uncorrelated_icfl(
    inputs: Float[Array, "m l"],
    targets: Float[Array, "m k"],
    neurons: Float[Array, "n d"],
    *,
    ridge: float = 0.0,
    activation: str = "tanh",
    scale: float = 0.0,
) -> Problem:
    r""":func:`pwgf_jax.functionals.icfl` where the features have no covariance C with the targets.

    The readout is zero, the first variation too, and :math:`L=\frac12\mathbb E|f^\circ|^2` is the largest value there
    is. With :math:`S=\mathbb E[hh^\top]+\lambda I` and :math:`\mathcal Lv=\mathbb E[f^\circ(\int Dh\,v\,d\mu)^\top]`
    the Hessian is :math:`-\mathcal L^*(\mathcal L\,\cdot\,S^{-1})`: of rank k² at most, the rest of its spectrum is
    zero. Such neurons are those with an odd activation that see one block of the inputs, where targets depend on
    another and data come in all sign pairs.

    Args:
        inputs: z, shape (M, l).
        targets: f°(z), shape (M, k).
        neurons: all of them, shape (N, k + l).
        ridge: λ ≥ 0.
        activation: σ, a name in :data:`pwgf_jax.functionals.ACTIVATIONS`.
        scale: standard deviation of the start about the saddle.

    Returns:
        The problem; the minimum depends on the data.

    Raises:
        ValueError: if the shapes disagree, the activation is unknown, S is singular, features and targets are
            correlated, or no curvature is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> z = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> problem = uncorrelated_icfl(z, z[:, :1], jnp.array([[1.0, 0.0, 1.0]]), activation="identity")
        >>> problem.saddles[0].value, problem.saddles[0].spectrum.tolist()
        (0.5, [-1.0, 0.0, 0.0])

    References:
        Kim, Suzuki, arXiv:2402.01258 (the landscape); the spectrum is elementary, by the second variation of the loss.
    """
    F = icfl(inputs, targets, ridge=ridge, activation=activation)
    points = _neurons("uncorrelated_icfl", neurons, F)
    a, values, slopes, z, y = _features(F, points)
    outputs = values.T @ a / len(a)
    second, cross = outputs.T @ outputs / len(z), y.T @ outputs / len(z)
    size = math.sqrt(np.trace(second) * np.mean(np.sum(y**2, axis=1)))
    if np.abs(cross).max() > 1e-5 * size:
        raise ValueError(
            f"uncorrelated_icfl: features and targets have a covariance up to {np.abs(cross).max():.3g}; give neurons "
            "blind to what the targets depend on, and data in all sign pairs."
        )
    moments, axes = np.linalg.eigh(second + ridge * np.eye(len(second)))
    if moments[0] <= 1e-12 * moments[-1]:
        raise ValueError("uncorrelated_icfl: E[hhᵀ] is singular; give more neurons or data, or a ridge.")
    white = (axes / np.sqrt(moments)) @ axes.T
    by_a = np.einsum("nt,kp->nktp", values @ y / len(z), white)
    by_w = np.einsum("nlt,np->nltp", np.einsum("mt,nm,ml->nlt", y, slopes, z, optimize=True) / len(z), a @ white)
    jacobian = np.concatenate([by_a, by_w], axis=1).reshape(points.size, -1)
    spectrum = _downward(jacobian, len(a))
    if not spectrum[0] < 0:
        raise ValueError("uncorrelated_icfl: no curvature is negative here; give neurons that are not zero.")
    saddle = Particles.uniform(points)
    level = float(np.mean(np.sum(y**2, axis=1))) / 2
    point = CriticalPoint("C = 0", saddle, level, float(spectrum[0]), spectrum, integral_spectrum=spectrum)
    return Problem(F, around(saddle, scale), (point,), None)


def _neurons(name: str, neurons: Any, F: MeanFieldNetwork) -> Float[Array, "n d"]:
    neurons, size = jnp.asarray(neurons), F.inputs.shape[1] + F.targets.shape[1]
    if neurons.ndim != 2 or neurons.shape[0] == 0 or neurons.shape[1] != size or neurons.dtype != F.inputs.dtype:
        raise ValueError(
            f"{name}: neurons are {neurons.dtype} of shape {neurons.shape}; give rows of k + l = {size} numbers in the "
            f"data's {F.inputs.dtype}."
        )
    return neurons


def linear_icfl(
    eigenvalues: Any, inputs: int, *, copies: int = 1, scale: float = 0.0, dtype: Any = jnp.float32
) -> Problem:
    r"""In-context feature learning with linear features: every choice of k of l directions is stationary.

    Inputs are white, :math:`f^\circ_r=\sqrt{t_r}\,x_r` for r < k, and t is 0 for the other directions. Neurons
    :math:`(\sqrt k\,e_r,\sqrt k\,e_{i_r})` learn the directions I = {i_0, i_1, …}, for which

    .. math:: L=\tfrac12\sum_{j\notin I}t_j,\qquad\text{spectrum }\{t_i-t_j:i\in I,\,j\notin I\}\text{ and zeros},

    so the index counts the pairs in which a larger t is missed. The sets with the k largest t are the minima, L = 0.

    Args:
        eigenvalues: t, k positive numbers, the largest first.
        inputs: l > k.
        copies: of every neuron, N = copies · k.
        scale: standard deviation of the start about the saddle that misses the largest t only.
        dtype: of data and particles.

    Returns:
        The problem.

    Raises:
        ValueError: if a number is out of range, or there are too many sets to list.

    Example:
        >>> problem = linear_icfl([2.0, 1.0], 3)
        >>> [(each.name, each.value, each.index, each.curvature) for each in problem.saddles]
        [('{0, 2}', 0.5, 1, -1.0), ('{1, 2}', 1.0, 2, -2.0)]

    References:
        Kim, Suzuki, arXiv:2402.01258 (the loss); critical points are those of principal components, after Baldi and
        Hornik, Neural Networks 2 (1989), and the spectrum is that of H_μ by the chain rule.
    """
    t = numbers("linear_icfl: eigenvalues", eigenvalues, 1)
    k = t.size
    if t.min() <= 0 or np.any(np.diff(t) > 0) or inputs <= k or copies < 1 or math.comb(inputs, k) > _SETS:
        raise ValueError(
            f"linear_icfl: eigenvalues={eigenvalues}, inputs={inputs}, copies={copies}; give positive eigenvalues, the "
            f"largest first, more inputs than these, one copy or more, and no more than {_SETS} choices of directions."
        )
    data = np.concatenate([np.eye(inputs), -np.eye(inputs)]) * math.sqrt(inputs)
    F = icfl(jnp.asarray(data, dtype), jnp.asarray(data[:, :k] * np.sqrt(t), dtype), activation="identity")
    all_t = np.append(t, np.zeros(inputs - k))

    def at(chosen: tuple[int, ...]) -> CriticalPoint:
        neurons = math.sqrt(k) * np.concatenate([np.eye(k), np.eye(inputs)[list(chosen)]], axis=1)
        missed = np.delete(all_t, chosen)
        differences = np.subtract.outer(all_t[list(chosen)], missed).ravel()
        spectrum = np.sort(np.append(differences, np.zeros(copies * k * (k + inputs) - differences.size)))
        name = "{" + ", ".join(map(str, chosen)) + "}"
        point = Particles.uniform(jnp.asarray(np.tile(neurons, (copies, 1)), dtype))
        return CriticalPoint(
            name, point, float(missed.sum() / 2), float(spectrum[0]), spectrum, bool(spectrum[0] >= 0), spectrum
        )

    minimum, *others = map(at, itertools.combinations(range(inputs), k))
    init = around(at(tuple(range(1, k + 1))).point, scale)
    return Problem(F, init, tuple(others), minimum)
