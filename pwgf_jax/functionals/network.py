r"""Mean-field two-layer networks: functionals of :math:`h_\mu(z)=\int a\,\sigma(w^\top z)\,\mu(da,dw)` on data.

All are of moment form, F(μ) = R(h_μ on the data), and differ in the loss R alone. A neuron θ = (a, w) is a row of an
array (N, k + l), outgoing weights a first, or of a dict ``{"a": (N, k), "w": (N, l)}``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pwgf_jax import memory
from pwgf_jax.functionals.base import Combinable
from pwgf_jax.measures import Particles

__all__ = [
    "ACTIVATIONS",
    "Icfl",
    "MatrixFactorization",
    "MeanFieldNetwork",
    "MeanFieldRegression",
    "icfl",
    "matrix_factorization",
    "mean_field_regression",
]

ACTIVATIONS = MappingProxyType(
    {
        "tanh": jnp.tanh,
        "sigmoid": jax.nn.sigmoid,
        "softplus": jax.nn.softplus,
        "erf": jax.scipy.special.erf,
        "gelu": jax.nn.gelu,
        "relu": jax.nn.relu,
        "identity": lambda x: x,
    }
)
"""Activations by name. ``relu`` has no second derivative: its local Hessian misses the kinks."""


Pointwise: TypeAlias = Callable[[Float[Array, "k m"], Float[Array, "k m"]], Float[Array, " m"]]


def _outputs(
    activation: str, layers: tuple[Float[Array, "n k"], Float[Array, "n l"]], inputs: Float[Array, "m l"]
) -> Float[Array, "k m"]:
    """The sum over neurons of outgoing weights (with the neurons' own) times activations."""
    outgoing, ingoing = layers
    # Data last, particles contracted from the left, and inputs whose transpose is really made: of the orders of these
    # two products this one is the fastest on CPU, by half (tests/benchmarks).
    transposed = jax.lax.optimization_barrier(inputs.T)
    return outgoing.T @ ACTIVATIONS[activation](jax.lax.dot_general(ingoing.T, transposed, (((0,), (0,)), ((), ()))))


def _losses(pointwise: Pointwise, activation: str, layers: Any, data: tuple[Array, Array]) -> Float[Array, " m"]:
    return pointwise(_outputs(activation, layers, data[0]), data[1].T)


@dataclass(frozen=True, repr=False)
class MeanFieldNetwork(Combinable):
    r"""A loss R of a mean-field two-layer network on data: :math:`F(\mu)=R\big((h_\mu(z_i))_{i\le M}\big)`.

    What :func:`mean_field_regression`, :func:`matrix_factorization` and :func:`icfl` have in common.

    Args:
        inputs: z, shape (M, l).
        targets: shape (M, k).
        activation: σ, a name in :data:`ACTIVATIONS`.
        chunk_size: data points per pass; bounds memory to N·chunk_size activations. None for passes over data or
            particles that this machine's memory suits, see :mod:`pwgf_jax.memory`; activations are never stored but
            where all of them fit.

    Example:
        >>> import jax.numpy as jnp
        >>> F = mean_field_regression(jnp.ones((8, 3)), jnp.zeros((8, 2)))
        >>> F.outputs(Particles.uniform(jnp.zeros((4, 5))), jnp.ones((6, 3))).shape
        (6, 2)
    """

    inputs: Float[Array, "*batch m l"]
    targets: Float[Array, "*batch m k"]
    activation: str = field(default="tanh", metadata={"static": True})
    chunk_size: int | None = field(default=None, metadata={"static": True})

    @abstractmethod
    def of_moments(self, moments: Float[Array, "k m"]) -> Float[Array, ""]:
        """The loss R of given outputs."""

    def separate(self) -> tuple[Any, Pointwise] | None:
        """The factor and the loss of each datum of which R is the mean; value and gradient then take one pass."""
        return None

    def outputs(self, mu: Particles, inputs: Float[Array, "m l"]) -> Float[Array, "m k"]:
        """The network's outputs h_μ on any inputs."""
        return self._hidden_mean(mu, inputs).T

    def moments(self, mu: Particles) -> Float[Array, "k m"]:
        """The outputs on the data, an output a row; linear in the weights."""
        return self._hidden_mean(mu, self.inputs)

    def _hidden_mean(self, mu: Particles, inputs: Float[Array, "m l"]) -> Float[Array, "k m"]:
        layers, count, size = self._layers(mu), inputs.shape[0], self.chunk_size
        outputs = partial(_outputs, self.activation)
        if size is None and mu.size * count <= memory.rows_per_tile(1, inputs.dtype):
            return outputs(layers, inputs)
        if size is None and count <= mu.size:
            size = memory.rows_per_tile(count, inputs.dtype)
            return memory.sum_over(lambda neurons: outputs(neurons, inputs), layers, size)
        size = memory.rows_per_tile(mu.size, inputs.dtype) if size is None else size
        return memory.by_rows(lambda rows: outputs(layers, rows).T, inputs, size).T

    def __call__(self, mu: Particles) -> Float[Array, ""]:
        """The value F(μ)."""
        parts, size = self.separate(), self.chunk_size
        if size is None:  # fewer data in a pass than make a tile of all particles are dearer than a second pass
            most = memory.rows_per_tile(mu.size, self.inputs.dtype, fewest=1)
            size = most if most >= memory.FEWEST_ROWS else self.inputs.shape[0]
        if parts is None or size >= self.inputs.shape[0]:
            return self.of_moments(self.moments(mu))
        factor, pointwise = parts
        losses = partial(_losses, pointwise, self.activation)
        return factor * memory.mean_over(losses, size, self._layers(mu), (self.inputs, self.targets))

    def batch(self, key: Array, size: int) -> MeanFieldNetwork:
        """The same functional on ``size`` data points drawn without replacement."""
        if not 1 <= size <= self.inputs.shape[0]:
            raise ValueError(f"batch: size={size}; there are {self.inputs.shape[0]} data points to draw from.")
        rows = jax.random.choice(key, self.inputs.shape[0], (size,), replace=False)
        return replace(self, inputs=self.inputs[rows], targets=self.targets[rows])

    def _layers(self, mu: Particles) -> tuple[Float[Array, "n k"], Float[Array, "n l"]]:
        """The outgoing weights times the neurons' own, and the ingoing ones."""
        points = mu.points
        outputs, width = self.targets.shape[-1], self.inputs.shape[-1]
        if isinstance(points, dict):
            outgoing, ingoing = points["a"], points["w"]
        else:
            outgoing, ingoing = points[:, :outputs], points[:, outputs:]
        if outgoing.shape[-1] != outputs or ingoing.shape[-1] != width:
            raise ValueError(
                f"neurons have {outgoing.shape[-1]} outgoing and {ingoing.shape[-1]} ingoing weights; the data need "
                f"{outputs} and {width}: particles (N, {outputs + width}), or a dict with a (N, {outputs}) "
                f"and w (N, {width})."
            )
        return outgoing * mu.weights[:, None].astype(outgoing.dtype), ingoing


def _squares(outputs: Float[Array, "k m"], targets: Float[Array, "k m"]) -> Float[Array, " m"]:
    return jnp.sum((outputs - targets) ** 2, axis=0) / 2


def _outer_squares(outputs: Float[Array, "k m"], targets: Float[Array, "k m"]) -> Float[Array, " m"]:
    # |hhᵀ − ggᵀ|² = (|u|²|v|² + (u·v)²)/2 with u = h − g, v = h + g: no cancellation near the minimum.
    u, v = outputs - targets, outputs + targets
    return (jnp.sum(u**2, axis=0) * jnp.sum(v**2, axis=0) + jnp.sum(u * v, axis=0) ** 2) / 4


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class MeanFieldRegression(MeanFieldNetwork):
    """The functional made by :func:`mean_field_regression`.

    Example:
        >>> import jax.numpy as jnp
        >>> mean_field_regression(jnp.ones((8, 3), "float32"), jnp.ones((8, 2), "float32"))
        MeanFieldRegression(inputs=float32[8,3], targets=float32[8,2], activation='tanh', chunk_size=None)
    """

    def of_moments(self, moments: Float[Array, "k m"]) -> Float[Array, ""]:
        """Half the mean squared distance from the targets."""
        return jnp.mean(_squares(moments, self.targets.T))

    def separate(self) -> tuple[Any, Pointwise]:
        """Half the squared distances."""
        return 1.0, _squares

    def residuals(self, mu: Particles) -> Float[Array, "k m"]:
        """The distances from the targets, over √M."""
        return (self.moments(mu) - self.targets.T) / self.targets.shape[0] ** 0.5

    def predict(self, mu: Particles, inputs: Float[Array, "b l"]) -> Float[Array, "b k"]:
        """The network's outputs."""
        return self.outputs(mu, inputs)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class MatrixFactorization(MeanFieldNetwork):
    """The functional made by :func:`matrix_factorization`; it knows its outputs up to sign, and does not predict.

    Args:
        prefactor: c.

    Example:
        >>> import jax.numpy as jnp
        >>> float(matrix_factorization(jnp.ones((8, 3)), jnp.ones((8, 2)), prefactor=3.0).prefactor)
        3.0
    """

    prefactor: Any = 1.0

    def of_moments(self, moments: Float[Array, "k m"]) -> Float[Array, ""]:
        """The squared distance of the outer products."""
        return self.prefactor * jnp.mean(_outer_squares(moments, self.targets.T))

    def separate(self) -> tuple[Any, Pointwise]:
        """c, and the squared distances over two."""
        return self.prefactor, _outer_squares


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class Icfl(MeanFieldNetwork):
    """The functional made by :func:`icfl`.

    Args:
        ridge: λ.

    Example:
        >>> import jax.numpy as jnp
        >>> z, y = jnp.array([[1.0], [-1.0]]), jnp.array([[2.0], [-2.0]])
        >>> mu = Particles.uniform(jnp.ones((4, 2)))
        >>> float(icfl(z, y).predict(mu, z)[0, 0])  # tanh z, times what the readout finds
        2.0
    """

    ridge: Any = 0.0

    def readout(self, outputs: Float[Array, "k m"]) -> Float[Array, "k t"]:
        """The transpose S⁻¹Cᵀ of the optimal linear layer, on given outputs on the data."""
        width, count = outputs.shape
        second_moment = outputs @ outputs.T / count + self.ridge * jnp.eye(width, dtype=outputs.dtype)
        return jnp.linalg.solve(second_moment, outputs @ self.targets / count)

    def of_moments(self, moments: Float[Array, "k m"]) -> Float[Array, ""]:
        """The square loss with the optimal readout."""
        readout = self.readout(moments)
        return jnp.mean(_squares(readout.T @ moments, self.targets.T)) + self.ridge / 2 * jnp.sum(readout**2)

    def predict(self, mu: Particles, inputs: Float[Array, "b l"]) -> Float[Array, "b k"]:
        """The outputs through the readout that is optimal on the data."""
        return self.outputs(mu, inputs) @ self.readout(self.moments(mu))


def _checked(inputs: Any, targets: Any, activation: str, chunk_size: int | None) -> tuple[Any, ...]:
    inputs, targets = jnp.asarray(inputs), jnp.asarray(targets)
    if inputs.ndim != 2 or targets.ndim != 2 or inputs.shape[0] != targets.shape[0] or inputs.shape[0] == 0:
        raise ValueError(
            f"inputs have shape {inputs.shape} and targets {targets.shape}; give (M, l) and (M, k), M >= 1."
        )
    if not jnp.issubdtype(inputs.dtype, jnp.floating) or inputs.dtype != targets.dtype:
        raise TypeError(f"inputs are {inputs.dtype} and targets {targets.dtype}; give both in one floating dtype.")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r}; choose one of {', '.join(ACTIVATIONS)}.")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size}; give a positive number of data points, or None for all at once.")
    return inputs, targets, activation, chunk_size


def mean_field_regression(
    inputs: Float[Array, "m l"],
    targets: Float[Array, "m k"],
    *,
    activation: str = "tanh",
    chunk_size: int | None = None,
) -> MeanFieldRegression:
    r"""Least squares with a two-layer network: :math:`F(\mu)=\frac12\mathbb E|h_\mu(z)-y|^2`.

    Convex under mixtures, so :math:`H_\mu\succeq0` everywhere; E is the mean over the data.

    Args:
        inputs: z, shape (M, l).
        targets: y, shape (M, k), same dtype.
        activation: σ, a name in :data:`ACTIVATIONS`.
        chunk_size: data points per pass, see :class:`MeanFieldNetwork`.

    Returns:
        The functional.

    Raises:
        ValueError: if shapes disagree, or the activation is unknown.
        TypeError: if the dtypes differ or are not floating.

    Example:
        >>> import jax.numpy as jnp
        >>> F = mean_field_regression(jnp.ones((8, 3)), jnp.ones((8, 2)))
        >>> float(F(Particles.uniform(jnp.zeros((4, 5)))))
        1.0
    """
    return MeanFieldRegression(*_checked(inputs, targets, activation, chunk_size))


def matrix_factorization(
    inputs: Float[Array, "m l"],
    targets: Float[Array, "m k"],
    *,
    prefactor: float = 1.0,
    activation: str = "tanh",
    chunk_size: int | None = None,
) -> MatrixFactorization:
    r"""Rank-one matrix factorisation: :math:`F(\mu)=\frac c2\mathbb E\|h_\mu h_\mu^\top-h^\circ h^{\circ\top}\|_F^2`.

    Minima: :math:`h_\mu=\pm h^\circ` pointwise, F = 0. Saddle: :math:`h_\mu\equiv0` (antithetic pairs of neurons):
    gradient and local Hessian vanish, :math:`F=\frac c2\mathbb E|h^\circ|^4` and :math:`H_\mu\preceq0`.

    A trap: at δ₍₀,₀₎, all weights zero, with σ(0) = 0 (tanh, erf), :math:`Dh_\mu=0`. Gradient and Hessian vanish, no
    curvature is negative, and every noise whose energy is matched to tr H_μ² is zero, the isotropic one included: PWGF
    does not move. Start elsewhere, or give :func:`pwgf_jax.isotropic_pwgf` a scale. With a sigmoid δ₍₀,w₎ is a saddle.

    Args:
        inputs: z, shape (M, l).
        targets: h°(z), shape (M, k), same dtype.
        prefactor: c; the paper's is not known, 1 is our choice.
        activation: σ, a name in :data:`ACTIVATIONS`.
        chunk_size: data points per pass, see :class:`MeanFieldNetwork`.

    Returns:
        The functional.

    Raises:
        ValueError: if shapes disagree, or the activation is unknown.
        TypeError: if the dtypes differ or are not floating.

    Example:
        >>> import jax.numpy as jnp
        >>> F = matrix_factorization(jnp.ones((8, 3)), jnp.ones((8, 2)))
        >>> float(F(Particles.uniform(jnp.zeros((4, 5)))))
        2.0

    References:
        Yamamoto, Kim, Suzuki, arXiv:2509.16974, Example 1 and Experiment 2.
    """
    return MatrixFactorization(*_checked(inputs, targets, activation, chunk_size), prefactor=prefactor)


def icfl(
    inputs: Float[Array, "m l"],
    targets: Float[Array, "m k"],
    *,
    ridge: float = 0.0,
    activation: str = "tanh",
    chunk_size: int | None = None,
) -> Icfl:
    r"""The in-context feature learning (ICFL) loss.

    :math:`L(\mu)=\min_V\frac12\mathbb E|f^\circ-Vh_\mu|^2+\frac\lambda2\|V\|_F^2`.
    This is at once the loss of a linear attention layer on MLP features with its attention matrix at the
    optimum, and that of a three-layer network whose linear last layer is at the optimum. With
    :math:`S=\mathbb E[hh^\top]+\lambda I` and :math:`C=\mathbb E[f^\circ h^\top]`, V = C S⁻¹. Without ridge the value
    is undefined where S is singular (every neuron at zero, or fewer data than outputs); never start there. Every μ with
    C = 0 and E[hhᵀ] ≻ 0 is a saddle of the highest value, ½E|f°|². With ridge, neurons that are all zero have C = 0
    too, and there with σ(0) = 0 gradient and Hessian vanish: no saddle, and no noise of the Hessian's leaves it.

    Args:
        inputs: z, shape (M, l).
        targets: f°(z), shape (M, k), same dtype.
        ridge: λ ≥ 0 [units of h²].
        activation: σ, a name in :data:`ACTIVATIONS`.
        chunk_size: data points per pass, see :class:`MeanFieldNetwork`.

    Returns:
        The functional; k outputs of the network meet k targets.

    Raises:
        ValueError: if shapes disagree, the ridge is negative, or the activation is unknown.
        TypeError: if the dtypes differ or are not floating.

    Example:
        >>> import jax.numpy as jnp
        >>> F = icfl(jnp.ones((8, 3)), jnp.ones((8, 2)), ridge=0.1)
        >>> float(F(Particles.uniform(jnp.zeros((4, 5)))))
        1.0

    References:
        Kim, Suzuki, arXiv:2402.01258, Eqs. (2), (3), Lemma 3.1; Yamamoto, Kim, Suzuki, arXiv:2509.16974, Experiment 1.
    """
    if ridge < 0:
        raise ValueError(f"icfl: ridge={ridge}; give a non-negative number.")
    return Icfl(*_checked(inputs, targets, activation, chunk_size), ridge=ridge)
