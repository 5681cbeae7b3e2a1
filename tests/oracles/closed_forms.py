"""Closed forms, in float64 NumPy, of what the package computes by autodiff, and the test problems they belong to.

Everything about a mean-field network F(μ) = R(h_μ) follows from three things about its loss: the value, the
gradient G with dR = E[G·dh], and the second derivative D. Both carry the mean over the data.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from scipy import special

Vector = NDArray[np.float64]


# --- F = −½|m|² + ¼|m|⁴ with m = ∫x dμ: saddles at m = 0, minima −¼ on |m| = 1 ----------------------------------------


def mean_quartic(mu):
    """The functional, as a user would write it: a plain function with no structure declared."""
    square = jnp.sum((mu.weights @ mu.points) ** 2)
    return square**2 / 4 - square / 2


def mean_quartic_gradient(mean: Vector) -> Vector:
    """The same at every point."""
    return (mean @ mean - 1) * mean


def mean_quartic_kernel(mean: Vector) -> Vector:
    """∇²_μF(x, y), the same for all x and y; the local part is zero."""
    return (mean @ mean - 1) * np.eye(mean.size) + 2 * np.outer(mean, mean)


# --- networks ---------------------------------------------------------------------------------------------------------


def _gelu(t: Vector) -> Vector:
    return t / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (t + 0.044715 * t**3)))


ACTIVATIONS: dict[str, Callable[[Vector], Vector]] = {
    "tanh": np.tanh,
    "sigmoid": special.expit,
    "softplus": lambda t: np.logaddexp(t, 0),
    "erf": special.erf,
    "gelu": _gelu,  # with the tanh, as jax and most networks have it
    "relu": lambda t: np.maximum(t, 0),
    "identity": lambda t: t,
}

# (σ, σ', σ'')
DERIVATIVES: dict[str, tuple[Callable[[Vector], Vector], ...]] = {
    "tanh": (np.tanh, lambda t: 1 - np.tanh(t) ** 2, lambda t: -2 * np.tanh(t) * (1 - np.tanh(t) ** 2)),
    "sigmoid": (
        special.expit,
        lambda t: special.expit(t) * special.expit(-t),
        lambda t: special.expit(t) * special.expit(-t) * (1 - 2 * special.expit(t)),
    ),
    "identity": (lambda t: t, np.ones_like, np.zeros_like),
}


@dataclass
class Loss:
    """A loss R at given outputs h (M, k)."""

    value: float
    gradient: Vector  # (M, k)
    second: Vector  # (M, k, M, k)


def _pointwise(blocks: Vector) -> Vector:
    return np.einsum("mpq,mn->mpnq", blocks, np.eye(len(blocks)))


def square_loss(h: Vector, y: Vector) -> Loss:
    """½E|h − y|²."""
    blocks = np.broadcast_to(np.eye(h.shape[1]), (len(h), h.shape[1], h.shape[1]))
    return Loss(np.sum((h - y) ** 2) / 2 / len(h), (h - y) / len(h), _pointwise(blocks) / len(h))


def matrix_loss(h: Vector, g: Vector, prefactor: float = 1.0) -> Loss:
    """(c/2)·E‖hhᵀ − ggᵀ‖²."""
    R = h[:, :, None] * h[:, None] - g[:, :, None] * g[:, None]
    blocks = 2 * h[:, :, None] * h[:, None] - g[:, :, None] * g[:, None]
    blocks = blocks + np.sum(h**2, axis=1)[:, None, None] * np.eye(h.shape[1])
    G = 2 * prefactor * np.einsum("mpq,mq->mp", R, h)
    return Loss(prefactor / 2 * np.sum(R**2) / len(h), G / len(h), 2 * prefactor * _pointwise(blocks) / len(h))


def profiled_readout(h: Vector, f: Vector, ridge: float = 0.0) -> tuple[Vector, Vector]:
    """(S, B): the second moment of h with the ridge, and the readout V = C S⁻¹ at its optimum."""
    S = h.T @ h / len(h) + ridge * np.eye(h.shape[1])
    return S, np.asarray(np.linalg.solve(S, h.T @ f / len(h)).T, np.float64)


def profiled_loss(h: Vector, f: Vector, ridge: float = 0.0) -> Loss:
    """min over V of ½E|f − Vh|² + (λ/2)‖V‖²; the second variation is the one of the reference, §7.2."""
    count, width = h.shape
    S, B = profiled_readout(h, f, ridge)
    zeta = f - h @ B.T
    value = np.sum(zeta**2) / 2 / count + ridge / 2 * np.sum(B**2)
    # M_u = E[ζuᵀ] − B E[uhᵀ] for u = e_q at data point n, as a tensor (n, q) -> (k, k)
    M = np.zeros((count, width, width, width))
    for q in range(width):
        M[:, q, :, q] += zeta / count
        M[:, q] -= B[:, q][None, :, None] * h[:, None, :] / count
    second = _pointwise(np.broadcast_to(B.T @ B, (count, width, width))) / count
    second -= np.einsum("mpab,bc,nqac->mpnq", M, np.linalg.inv(S), M)
    return Loss(float(value), -zeta @ B / count, second)


@dataclass
class Network:
    """A loss of the network with neurons (a, w) of given weights, at those neurons and at query neurons."""

    points: Vector  # (N, k + l)
    weights: Vector  # (N,)
    inputs: Vector  # (M, l)
    loss: Callable[[Vector], Loss]
    width: int  # k
    activation: str = "tanh"

    def __post_init__(self) -> None:
        self.outputs = np.einsum("n,nmp->mp", self.weights, self.features(self.points))
        self.at_outputs = self.loss(self.outputs)
        self.value = self.at_outputs.value

    def features(self, neurons: Vector) -> Vector:
        """h_θ(z), shape (neurons, M, k)."""
        a, w = neurons[:, : self.width], neurons[:, self.width :]
        return DERIVATIVES[self.activation][0](w @ self.inputs.T)[:, :, None] * a[:, None]

    def jacobian(self, neurons: Vector) -> Vector:
        """Dh_θ(z), shape (neurons, M, k, k + l)."""
        sigma, slope, _ = DERIVATIVES[self.activation]
        a, w = neurons[:, : self.width], neurons[:, self.width :]
        t = w @ self.inputs.T
        by_a = np.einsum("nm,pq->nmpq", sigma(t), np.eye(self.width))
        by_w = np.einsum("np,nm,ml->nmpl", a, slope(t), self.inputs)
        return np.concatenate([by_a, by_w], axis=-1)

    def first_variation(self, neurons: Vector) -> Vector:
        return np.einsum("nmp,mp->n", self.features(neurons), self.at_outputs.gradient)

    def gradient(self, neurons: Vector) -> Vector:
        return np.einsum("nmpi,mp->ni", self.jacobian(neurons), self.at_outputs.gradient)

    def kernel(self, neurons: Vector, others: Vector) -> Vector:
        """∇²_μF(θ, θ'), shape (neurons, d, others, d)."""
        D = self.at_outputs.second
        return np.einsum("xmpi,mpnq,ynqj->xiyj", self.jacobian(neurons), D, self.jacobian(others), optimize=True)

    def local(self, neurons: Vector) -> Vector:
        """∇∇_μF(θ), shape (neurons, d, d)."""
        _, slope, curvature = DERIVATIVES[self.activation]
        a, w = neurons[:, : self.width], neurons[:, self.width :]
        t, G, z, k = w @ self.inputs.T, self.at_outputs.gradient, self.inputs, self.width
        out = np.zeros((len(neurons), neurons.shape[1], neurons.shape[1]))
        mixed = np.einsum("mp,nm,ml->npl", G, slope(t), z)
        out[:, :k, k:], out[:, k:, :k] = mixed, mixed.transpose(0, 2, 1)
        out[:, k:, k:] = np.einsum("np,mp,nm,mi,mj->nij", a, G, curvature(t), z, z, optimize=True)
        return out

    def integral_matrix(self) -> Vector:
        """H_μ at the neurons, (N·d, N·d): block (i, j) is ∇²_μF(θ_i, θ_j) w_j."""
        kernel = self.kernel(self.points, self.points) * self.weights[None, None, :, None]
        return kernel.reshape(self.points.size, self.points.size)

    def local_matrix(self) -> Vector:
        N, d = self.points.shape
        return np.einsum("nij,nm->nimj", self.local(self.points), np.eye(N)).reshape(N * d, N * d)

    def noise_kernel(self, neurons: Vector, others: Vector) -> Vector:
        """K_μ(θ, θ') = ∫ ∇²F(θ, ·) ∇²F(·, θ') dμ, shape (neurons, d, others, d)."""
        left, right = self.kernel(neurons, self.points), self.kernel(self.points, others)
        return np.einsum("xizk,z,zkyj->xiyj", left, self.weights, right)

    def noise_kernel_by_features(self, neurons: Vector, others: Vector) -> Vector:
        """The same from the covariance of DΦ(x)ᵀ D S^{1/2} z: DΦᵀ D S D DΦ with S = ∫ DΦ DΦᵀ dμ."""
        D, J = self.at_outputs.second, self.jacobian(self.points)
        S = np.einsum("z,zmpi,znqi->mpnq", self.weights, J, J)
        M = np.einsum("mpab,abcd,cdnq->mpnq", D, S, D, optimize=True)
        return np.einsum("xmpi,mpnq,ynqj->xiyj", self.jacobian(neurons), M, self.jacobian(others), optimize=True)


# --- data and measures that make saddles ------------------------------------------------------------------------------


def antithetic(a: Vector, w: Vector) -> Vector:
    """Neurons (a, w) and (−a, w): the network is identically zero."""
    return np.concatenate([np.concatenate([a, w], axis=1), np.concatenate([-a, w], axis=1)])


def sign_pairs(left: Vector, right: Vector) -> Vector:
    """Data (±x_A, ±x_B) with all sign pairs: odd functions of one block are uncorrelated with those of the other."""
    rows = [np.concatenate([s * left, t * right], axis=1) for s in (1, -1) for t in (1, -1)]
    return np.concatenate(rows)


def whitened(rows: Vector) -> Vector:
    """Rows with E[x xᵀ] = I exactly."""
    return np.linalg.qr(rows)[0] * np.sqrt(len(rows))


def rotated(spectrum: Vector, generator: np.random.Generator) -> Vector:
    """A symmetric matrix of given spectrum."""
    Q = np.linalg.qr(generator.normal(size=(len(spectrum), len(spectrum))))[0]
    return (Q * spectrum) @ Q.T
