r"""Where the particles start. A neuron of a network is a row (a, w): k outgoing weights, then l ingoing ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pwgf_jax.experiments.sources import Data
from pwgf_jax.functionals import small_networks
from pwgf_jax.measures import Particles

__all__ = ["Antithetic", "Gaussian", "IcflSaddle", "Start", "Students"]


@runtime_checkable
class Start(Protocol):
    """What draws a seed's start."""

    def draw(self, key: Array, particles: int, data: Data | None, dtype: Any) -> Particles:
        """The start of one seed; traced by jax."""
        ...


def _sizes(data: Data | None, kind: str) -> tuple[int, int]:
    if data is None or data.targets is None:
        raise ValueError(
            f'kind = "{kind}" places the neurons of a network on data of inputs and targets; '
            'without such problem.data use "gaussian".'
        )
    return data.targets.shape[1], data.inputs.shape[1]


def _shaken(key: Array, points: Float[Array, "n d"], jitter: float) -> Particles:
    return Particles.uniform(points + jitter * jax.random.normal(key, points.shape, points.dtype))


def _check(scale: float, jitter: float = 0.0) -> None:
    if not scale > 0:
        raise ValueError(f"scale = {scale}; give a positive number.")
    if not jitter >= 0:
        raise ValueError(f"jitter = {jitter}; give a non-negative number.")


@dataclass(frozen=True)
class Gaussian:
    """Independent Gaussian particles, N(mean, scale² I).

    Args:
        scale: standard deviation of every coordinate.
        dimension: of a particle; that of a network's neuron, or of a target's points, if there are data and nothing is
            given.
        mean: of every coordinate.

    Raises:
        ValueError: if scale or dimension is not positive, or no dimension is known.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> Gaussian(dimension=2).draw(jax.random.key(0), 8, None, jnp.float32).points.shape
        (8, 2)
    """

    scale: float = 1.0
    dimension: int | None = None
    mean: float = 0.0

    def __post_init__(self) -> None:
        _check(self.scale)
        if self.dimension is not None and self.dimension < 1:
            raise ValueError(f"dimension = {self.dimension}; give at least 1.")

    def draw(self, key: Array, particles: int, data: Data | None, dtype: Any) -> Particles:
        """The start of one seed."""
        dimension = self.dimension
        if dimension is None:
            if data is None:
                raise ValueError("dimension is missing; without problem.data, say how many coordinates a particle has.")
            dimension = data.inputs.shape[1] if data.targets is None else sum(_sizes(data, "gaussian"))
        return Particles.uniform(self.mean + self.scale * jax.random.normal(key, (particles, dimension), dtype))


@dataclass(frozen=True)
class Antithetic:
    """Gaussian neurons in pairs (a, w), (-a, w), whose outputs cancel: a network that is zero, with moving parts.

    Args:
        scale: standard deviation of every coordinate.
        jitter: standard deviation of what is added to all, which breaks the pairs.

    Raises:
        ValueError: if the scale is not positive, the jitter negative, or the number of particles odd.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> data = Data(jnp.ones((4, 2)), jnp.ones((4, 1)))
        >>> mu = Antithetic(jitter=0.0).draw(jax.random.key(0), 6, data, jnp.float32)
        >>> float(mu.weights @ mu.points[:, 0])  # the mean outgoing weight
        0.0
    """

    scale: float = 0.3
    jitter: float = 1e-6

    def __post_init__(self) -> None:
        _check(self.scale, self.jitter)

    def draw(self, key: Array, particles: int, data: Data | None, dtype: Any) -> Particles:
        """The start of one seed."""
        outputs, inputs = _sizes(data, "antithetic")
        if particles % 2:
            raise ValueError(f"problem.particles = {particles}; antithetic neurons come in pairs: give an even number.")
        neuron_key, jitter_key = jax.random.split(key)
        half = self.scale * jax.random.normal(neuron_key, (particles // 2, outputs + inputs), dtype)
        mirrored = half.at[:, :outputs].multiply(-1)
        return _shaken(jitter_key, jnp.concatenate([half, mirrored]), self.jitter)


@dataclass(frozen=True)
class IcflSaddle:
    """Gaussian neurons blind to the inputs that the targets depend on: with odd activation, an exact saddle of icfl.

    Needs data from ``sign_pairs``, where features of the one block have no covariance with the other.

    Args:
        scale: standard deviation of every coordinate that is not zero.
        jitter: standard deviation of what is added to all.

    Raises:
        ValueError: if the scale is not positive, the jitter negative, or the data have no such block.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> data = Data(jnp.ones((4, 4)), jnp.ones((4, 1)), teacher_block=2)
        >>> IcflSaddle(jitter=0.0).draw(jax.random.key(0), 6, data, jnp.float32).points[0, 1:3].tolist()
        [0.0, 0.0]
    """

    scale: float = 1.0
    jitter: float = 1e-6

    def __post_init__(self) -> None:
        _check(self.scale, self.jitter)

    def draw(self, key: Array, particles: int, data: Data | None, dtype: Any) -> Particles:
        """The start of one seed."""
        outputs, inputs = _sizes(data, "icfl_saddle")
        block = None if data is None else data.teacher_block
        if block is None:
            raise ValueError('kind = "icfl_saddle" needs problem.data.source = "sign_pairs".')
        neuron_key, jitter_key = jax.random.split(key)
        points = self.scale * jax.random.normal(neuron_key, (particles, outputs + inputs), dtype)
        return _shaken(jitter_key, points.at[:, outputs : outputs + block].set(0), self.jitter)


@dataclass(frozen=True)
class Students:
    """Small networks with independent Gaussian parameters, as :func:`pwgf_jax.functionals.student_teacher` takes them.

    Args:
        hidden: H, units of each.
        mean: of every parameter.
        scale: standard deviation of every parameter.
        coupling: that of the functional, ``"block"`` or ``"dense"``.

    Raises:
        ValueError: if the scale is not positive, or the data are no pairs of inputs and targets.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> data = Data(jnp.ones((4, 5)), jnp.ones((4, 1)))
        >>> Students().draw(jax.random.key(0), 6, data, jnp.float32).points["w"].shape
        (6, 3, 5)
    """

    hidden: int = 3
    mean: float = 1e-3
    scale: float = 1.0
    coupling: Literal["block", "dense"] = "block"

    def __post_init__(self) -> None:
        _check(self.scale)

    def draw(self, key: Array, particles: int, data: Data | None, dtype: Any) -> Particles:
        """The start of one seed."""
        _, size = _sizes(data, "students")
        shape = {"hidden": self.hidden, "mean": self.mean, "scale": self.scale, "coupling": self.coupling}
        return small_networks(key, particles, size, **shape, dtype=dtype)
