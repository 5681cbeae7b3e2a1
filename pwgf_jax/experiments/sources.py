r"""Where data come from, and what every source of data offers: it draws with a seed's key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pwgf_jax.experiments.messages import suggestion
from pwgf_jax.functionals import ACTIVATIONS, small_networks, student_teacher
from pwgf_jax.problems import Law, Normal, ThreeRings

__all__ = [
    "Data",
    "Sampled",
    "SignPairs",
    "SmallTeacher",
    "Source",
    "Teacher",
    "gaussian",
    "three_rings",
]


class Data(NamedTuple):
    """One seed's data.

    Args:
        inputs: shape (M, l); of a target's sample its points (M, d).
        targets: shape (M, k); None of a target's sample.
        test_inputs: held out; None without a test split.
        test_targets: likewise.
        teacher_block: how many inputs, the first ones, the targets depend on; None where all may matter.
    """

    inputs: Float[Array, "m l"]
    targets: Float[Array, "m k"] | None = None
    test_inputs: Float[Array, "t l"] | None = None
    test_targets: Float[Array, "t k"] | None = None
    teacher_block: int | None = None

    @property
    def arguments(self) -> tuple[Array, ...]:
        """What a functional is made of."""
        return (self.inputs,) if self.targets is None else (self.inputs, self.targets)

    @property
    def test_arguments(self) -> tuple[Array, ...] | None:
        """The same of what is held out."""
        if self.test_inputs is None:
            return None
        return (self.test_inputs,) if self.test_targets is None else (self.test_inputs, self.test_targets)


@runtime_checkable
class Source(Protocol):
    """What draws a seed's data."""

    @property
    def classes(self) -> bool:
        """Whether the largest target names a class."""
        ...

    @property
    def held_out(self) -> int:
        """How many points are for testing."""
        ...

    def draw(self, key: Array, dtype: Any) -> Data:
        """The data of one seed; traced by jax."""
        ...


def _positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} = {number}; give at least 1.")


def _network(key: Array, z: Array, outputs: int, neurons: int, activation: str) -> Array:
    """A random network of 1/√neurons scale, evaluated at z."""
    outgoing_key, ingoing_key = jax.random.split(key)
    outgoing = jax.random.normal(outgoing_key, (neurons, outputs), z.dtype)
    ingoing = jax.random.normal(ingoing_key, (neurons, z.shape[1]), z.dtype) / z.shape[1] ** 0.5
    return ACTIVATIONS[activation](z @ ingoing.T) @ outgoing / neurons**0.5


@dataclass(frozen=True)
class Teacher:
    r"""Gaussian inputs and a random two-layer teacher, :math:`K^{-1/2}\sum_{j\le K}a_j\sigma(w_j^\top z)`.

    Here :math:`z\sim N(0,I_l)`, :math:`a_j\sim N(0,I_k)` and :math:`w_j\sim N(0,I_l/l)`, so that the targets are of
    order one for every K.

    Args:
        points: M, how many.
        inputs: l.
        outputs: k.
        teacher_neurons: K.
        activation: σ of the teacher, a name in :data:`pwgf_jax.functionals.ACTIVATIONS`.

    Raises:
        ValueError: if a size is below one or the activation unknown.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> Teacher(points=8, inputs=3, outputs=2).draw(jax.random.key(0), jnp.float32).targets.shape
        (8, 2)
    """

    points: int
    inputs: int
    outputs: int
    teacher_neurons: int = 50
    activation: str = "tanh"

    classes: ClassVar[bool] = False
    held_out: ClassVar[int] = 0

    def __post_init__(self) -> None:
        _positive(points=self.points, inputs=self.inputs, outputs=self.outputs, teacher_neurons=self.teacher_neurons)
        if self.activation not in ACTIVATIONS:
            raise ValueError(f'activation: given "{self.activation}"; {suggestion(self.activation, ACTIVATIONS)}')

    def draw(self, key: Array, dtype: Any) -> Data:
        """The data of one seed."""
        input_key, teacher_key = jax.random.split(key)
        z = jax.random.normal(input_key, (self.points, self.inputs), dtype)
        return Data(z, _network(teacher_key, z, self.outputs, self.teacher_neurons, self.activation))


@dataclass(frozen=True)
class SignPairs(Teacher):
    r"""A teacher on the first half of the inputs, with every input in all four sign pairs (±x_A, ±x_B).

    A student with an odd activation whose ingoing weights live on the second half then has a covariance with
    the targets that is zero exactly, on finite data: a saddle of the in-context feature learning loss.

    Args:
        points: M, a multiple of four.
        inputs: l, at least two; the teacher sees the first ⌊l/2⌋.
        outputs: k.
        teacher_neurons: K.
        activation: an odd one, so that the signs cancel.

    Raises:
        ValueError: if the sizes do not allow sign pairs, or the activation is unknown.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> data = SignPairs(points=8, inputs=4, outputs=2).draw(jax.random.key(0), jnp.float32)
        >>> bool(jnp.allclose(jnp.sum(data.inputs, axis=0), 0, atol=1e-5)), data.teacher_block
        (True, 2)
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.points % 4:
            raise ValueError(f"points = {self.points}; sign pairs come by four: give a multiple of 4.")
        if self.inputs < 2:
            raise ValueError(f"inputs = {self.inputs}; give at least 2, one for the teacher and one for the student.")

    def draw(self, key: Array, dtype: Any) -> Data:
        """The data of one seed."""
        input_key, teacher_key = jax.random.split(key)
        block = self.inputs // 2
        z = jax.random.normal(input_key, (self.points // 4, self.inputs), dtype)
        seen, unseen = z[:, :block], z[:, block:]
        signed = [jnp.concatenate([s * seen, t * unseen], axis=1) for s in (1, -1) for t in (1, -1)]
        inputs = jnp.concatenate(signed)
        targets = _network(teacher_key, inputs[:, :block], self.outputs, self.teacher_neurons, self.activation)
        return Data(inputs, targets, teacher_block=block)


@dataclass(frozen=True)
class SmallTeacher:
    """Inputs uniform on the unit sphere, and one small network as teacher, with standard Gaussian parameters.

    Args:
        points: M, how many a gradient sees.
        inputs: p.
        hidden: H, units of the teacher.
        width: of its output non-linearity, as in :func:`pwgf_jax.functionals.student_teacher`.
        test_points: how many are for validation.

    Raises:
        ValueError: if a size or the width is not positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> data = SmallTeacher(points=8, inputs=3, test_points=4).draw(jax.random.key(0), jnp.float32)
        >>> data.targets.shape, data.test_inputs.shape
        ((8, 1), (4, 3))

    References:
        Arbel, Korba, Salim, Gretton, arXiv:1906.04370, Sec. 5.
    """

    points: int
    inputs: int
    hidden: int = 3
    width: float = 2.0
    test_points: int = 0

    classes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _positive(points=self.points, inputs=self.inputs, hidden=self.hidden)
        _check_test_points(self.test_points)
        if not self.width > 0:
            raise ValueError(f"width = {self.width}; give a positive number.")

    @property
    def held_out(self) -> int:
        """How many points are for validation."""
        return self.test_points

    def draw(self, key: Array, dtype: Any) -> Data:
        """The data of one seed."""
        input_key, teacher_key = jax.random.split(key)
        z = jax.random.normal(input_key, (self.points + self.test_points, self.inputs), dtype)
        z = z / jnp.linalg.norm(z, axis=1, keepdims=True)
        teacher = small_networks(teacher_key, 1, self.inputs, hidden=self.hidden, dtype=dtype)
        y = student_teacher(z, jnp.zeros_like(z[:, :1]), width=self.width).outputs(teacher, z)
        count = self.points
        return Data(z[:count], y[:count], z[count:], y[count:]) if self.test_points else Data(z, y)


def _check_test_points(count: int) -> None:
    if count < 0:
        raise ValueError(f"test_points = {count}; give 0 or more.")


@dataclass(frozen=True)
class Sampled:
    """A sample of a law that is to be met.

    Args:
        law: the target.
        points: M, how many a gradient sees.
        test_points: how many fresh ones there are to compare with.

    Raises:
        ValueError: if there are no points.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> Sampled(Normal(), 8, 4).draw(jax.random.key(0), jnp.float32).test_inputs.shape
        (4, 2)
    """

    law: Law
    points: int
    test_points: int = 0

    classes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _positive(points=self.points)
        _check_test_points(self.test_points)

    @property
    def held_out(self) -> int:
        """How many points are for testing."""
        return self.test_points

    def draw(self, key: Array, dtype: Any) -> Data:
        """The sample of one seed."""
        points_key, test_key = jax.random.split(key)
        points = self.law.sample(points_key, self.points, dtype)
        tests = self.law.sample(test_key, self.test_points, dtype) if self.test_points else None
        return Data(points, test_inputs=tests)


def gaussian(
    points: int, *, test_points: int = 0, dimension: int = 2, mean: float = 0.0, scale: float = 1.0
) -> Sampled:
    """A sample of the Gaussian law N(mean, scale² I).

    Args:
        points: how many a gradient sees.
        test_points: how many fresh ones there are to compare with.
        dimension: of a point.
        mean: of every coordinate.
        scale: standard deviation of every coordinate.

    Returns:
        The source.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> gaussian(100, scale=2.0).law
        Normal(dimension=2, mean=0.0, scale=2.0)
    """
    return Sampled(Normal(dimension, mean, scale), points, test_points)


def three_rings(points: int, *, test_points: int = 0, radius: float = 1.0, width: float = 0.1) -> Sampled:
    """A sample of three rings in the plane.

    Args:
        points: how many a gradient sees.
        test_points: how many fresh ones there are to compare with.
        radius: of a ring.
        width: standard deviation across a ring.

    Returns:
        The source.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> three_rings(100, test_points=50).held_out
        50
    """
    return Sampled(ThreeRings(radius, width), points, test_points)
