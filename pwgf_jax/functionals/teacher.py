r"""The student–teacher problem of MMD flows: particles that are small networks, compared by their outputs on data.

A particle x = (a, w) is a network of one output, :math:`\psi(z,x)=G(a^\top\mathrm{relu}(wz))` with
:math:`G(u)=e^{-u^2/s^2}`. In the kernel :math:`k(x,x')=\mathbb E_z\,\psi(z,x)\psi(z,x')` the objective is half a
squared maximum mean discrepancy, and of moment form: least squares of the mean network's outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from pwgf_jax import memory
from pwgf_jax.functionals.base import Combinable
from pwgf_jax.functionals.network import ACTIVATIONS
from pwgf_jax.measures import Particles

__all__ = ["StudentTeacher", "small_networks", "student_teacher"]

Coupling: TypeAlias = Literal["block", "dense"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class StudentTeacher(Combinable):
    """The functional made by :func:`student_teacher`.

    Args:
        inputs: z, shape (M, p).
        targets: the teacher's outputs, shape (M, 1).
        width: s, of the output non-linearity.
        coupling: ``"block"`` or ``"dense"``.
        damping: λ of :meth:`de_regularised`; None of the plain functional.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> F = student_teacher(jnp.ones((8, 5)), jnp.zeros((8, 1)))
        >>> mu = small_networks(jax.random.key(0), 4, 5)
        >>> F.outputs(mu, jnp.zeros((6, 5)))[0].tolist()  # a network of inputs zero is G(0) = 1
        [1.0]
    """

    inputs: Float[Array, "*batch m p"]
    targets: Float[Array, "*batch m 1"]
    width: float = field(default=2.0, metadata={"static": True})
    coupling: Coupling = field(default="block", metadata={"static": True})
    damping: Any = None

    def features(self, points: PyTree, inputs: Float[Array, "b p"]) -> Float[Array, "n b"]:
        r"""Every particle's outputs :math:`\psi(z_b,x_i)`."""
        outgoing, ingoing = self._layers(points)
        count, hidden, size = ingoing.shape
        # One product for all hidden units, data last, and inputs whose transpose is really made (tests/benchmarks).
        transposed = jax.lax.optimization_barrier(inputs.T)
        units = ACTIVATIONS["relu"](ingoing.reshape(count * hidden, size) @ transposed)
        if self.coupling == "dense":
            sums = outgoing.reshape(count, count * hidden) @ units
        else:
            sums = jnp.sum(outgoing[:, :, None] * units.reshape(count, hidden, -1), axis=1)
        return jnp.exp(-((sums / self.width) ** 2))

    def kernel(self, points: PyTree, others: PyTree) -> Float[Array, "n m"]:
        r"""The kernel :math:`\mathbb E_z\,\psi(z,x)\psi(z,x')` on these data; on a batch, the conditional kernel."""
        return self.features(points, self.inputs) @ self.features(others, self.inputs).T / self.inputs.shape[0]

    def outputs(self, mu: Particles, inputs: Float[Array, "b p"]) -> Float[Array, "b 1"]:
        """The mean network's outputs on any inputs."""
        return self._mean(mu, inputs).T

    def moments(self, mu: Particles) -> Float[Array, "1 m"]:
        """The outputs on the data; linear in the weights."""
        return self._mean(mu, self.inputs)

    def _mean(self, mu: Particles, inputs: Float[Array, "b p"]) -> Float[Array, "1 b"]:
        hidden = jax.tree.leaves(mu.points)[0].shape[-1]  # of the units of all networks there are N·H·b at a time
        size = memory.rows_per_tile(mu.size * hidden, inputs.dtype)
        return memory.by_rows(lambda rows: mu.weights @ self.features(mu.points, rows), inputs, size)[None]

    def of_moments(self, moments: Float[Array, "1 m"]) -> Float[Array, ""]:
        """Half the mean squared distance from the teacher's outputs."""
        if self.damping is None:
            return jnp.mean((moments - self.targets.T) ** 2) / 2
        return jnp.sum(self._residuals(moments) ** 2) / 2

    def __call__(self, mu: Particles) -> Float[Array, ""]:
        """The value F(μ)."""
        return self.of_moments(self.moments(mu))

    def residuals(self, mu: Particles) -> Float[Array, "1 m"]:
        """The distances from the teacher's outputs, over √M; de-regularised, in the root of its metric."""
        return self._residuals(self.moments(mu))

    def _residuals(self, moments: Float[Array, "1 m"]) -> Float[Array, "1 m"]:
        plain, teacher = (each / self.targets.shape[0] ** 0.5 for each in (moments - self.targets.T, self.targets.T))
        if self.damping is None:
            return plain
        # The covariance is uuᵀ with u the teacher's outputs over √M: λ/(uuᵀ + λ) is λ/(|u|² + λ) along u, else one.
        damping = jnp.asarray(self.damping, plain.dtype)
        square = jnp.sum(teacher * teacher)
        along = jnp.sum(plain * teacher) / jnp.where(square > 0, square, 1)
        shrunk = 1 - jnp.sqrt(damping / (square + damping))
        return jnp.sqrt((1 + damping) / damping) * (plain - shrunk * along * teacher)

    def de_regularised(self, damping: float | Array) -> StudentTeacher:
        r"""The de-regularised discrepancy, ½DrMMD², for a teacher of one network, whose outputs are its features.

        In the dual of the data :math:`\frac{1+\lambda}{2}r^\top(uu^\top+\lambda)^{-1}r`, r and u the residuals and the
        teacher's outputs over √M. A direction of r differs from the others, that of u.
        """
        return replace(self, damping=damping)

    def predict(self, mu: Particles, inputs: Float[Array, "b p"]) -> Float[Array, "b 1"]:
        """The mean network's outputs."""
        return self.outputs(mu, inputs)

    def batch(self, key: Array, size: int) -> StudentTeacher:
        """The same functional on ``size`` data points drawn without replacement."""
        if not 1 <= size <= self.inputs.shape[0]:
            raise ValueError(f"batch: size={size}; there are {self.inputs.shape[0]} data points to draw from.")
        rows = jax.random.choice(key, self.inputs.shape[0], (size,), replace=False)
        return replace(self, inputs=self.inputs[rows], targets=self.targets[rows])

    def _layers(self, points: Any) -> tuple[Array, Array]:
        if not isinstance(points, dict) or set(points) != {"a", "w"}:
            raise TypeError(
                'student_teacher: particles are networks, points {"a": ..., "w": ...}; make them by small_networks.'
            )
        outgoing, ingoing = points["a"], points["w"]
        count, size = ingoing.shape[0], self.inputs.shape[-1]
        hidden = ingoing.shape[1] if ingoing.ndim == 3 else -1
        wanted = (count, hidden) if self.coupling == "block" else (count, count, hidden)
        if ingoing.shape != (count, hidden, size) or outgoing.shape != wanted:
            axes = "(N, H)" if self.coupling == "block" else "(N, N, H), all N particles,"
            raise ValueError(
                f"student_teacher: particles have a {outgoing.shape} and w {ingoing.shape}; "
                f'coupling="{self.coupling}" needs a {axes} and w (N, H, {size}).'
            )
        return outgoing, ingoing


def _data(inputs: Any, targets: Any) -> tuple[Array, Array]:
    inputs, targets = jnp.asarray(inputs), jnp.asarray(targets)
    if inputs.ndim != 2 or inputs.shape[0] == 0 or targets.shape != (inputs.shape[0], 1):
        raise ValueError(
            f"student_teacher: inputs have shape {inputs.shape} and targets {targets.shape}; "
            "give (M, p) and (M, 1), M >= 1."
        )
    if not jnp.issubdtype(inputs.dtype, jnp.floating) or inputs.dtype != targets.dtype:
        raise TypeError(
            f"student_teacher: inputs are {inputs.dtype} and targets {targets.dtype}; give both in one floating dtype."
        )
    return inputs, targets


def student_teacher(
    inputs: Float[Array, "m p"],
    targets: Float[Array, "m 1"],
    *,
    width: float = 2.0,
    coupling: Coupling = "block",
) -> StudentTeacher:
    r"""Student–teacher, :math:`F(\mu)=\frac12\mathbb E_z|y_\mu(z)-y_T(z)|^2`, ½MMD² of networks as particles.

    With ``coupling="block"`` every particle is a network of its own, :math:`a_i\in\mathbb R^H`,
    :math:`w_i\in\mathbb R^{H\times p}`, and :math:`y_\mu=\int\psi\,d\mu`. With ``coupling="dense"`` the output of
    every particle is fed by the hidden units of all, :math:`a_i\in\mathbb R^{N\times H}`, as in the authors' code.

    Dense is no functional of a measure: it is defined on N indexed particles of equal weight. Kept are the permutation
    of particles together with the units that ``a`` reads, outputs linear in the weights, the gradient, also at N noisy
    points, and the integral Hessian. Lost: a particle of weight zero still feeds the others, particles cannot be split
    or added, and single query points mean nothing.

    The gradient at noisy points, ``wasserstein_gradient(F, mu, at=noisy)``, has the residual at the clean particles:
    noise injection. Units are relu: second derivatives miss their kinks.

    Args:
        inputs: z, shape (M, p).
        targets: the teacher's outputs y_T, shape (M, 1), same dtype.
        width: s of the output non-linearity :math:`G(u)=e^{-u^2/s^2}`, positive.
        coupling: ``"block"`` or ``"dense"``.

    Returns:
        A functional in moment form, of measures with points ``{"a": (N, H), "w": (N, H, p)}``; dense,
        ``{"a": (N, N, H), "w": (N, H, p)}``.

    Raises:
        ValueError: if shapes disagree, there are no data, the width is not positive or the coupling unknown.
        TypeError: if the dtypes differ or are not floating.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> student_key, teacher_key, data_key = jax.random.split(jax.random.key(0), 3)
        >>> z = jax.random.normal(data_key, (20, 5))
        >>> mu, teacher = small_networks(student_key, 8, 5), small_networks(teacher_key, 1, 5)
        >>> F = student_teacher(z, student_teacher(z, jnp.zeros((20, 1))).outputs(teacher, z))
        >>> float(F(teacher)), float(F(mu)) > 0
        (0.0, True)

    References:
        Arbel, Korba, Salim, Gretton, arXiv:1906.04370, Sec. 5 (block, without biases); their code is dense.
    """
    inputs, targets = _data(inputs, targets)
    if not 0 < width < float("inf"):
        raise ValueError(f"student_teacher: width={width}; give a positive number.")
    _check_coupling("student_teacher", coupling)
    return StudentTeacher(inputs, targets, width, coupling)


def small_networks(
    key: Array,
    count: int,
    size: int,
    *,
    hidden: int = 3,
    mean: float = 0.0,
    scale: float = 1.0,
    coupling: Coupling = "block",
    dtype: Any = float,
) -> Particles:
    r"""Networks with independent Gaussian parameters, :math:`N(\mathrm{mean},\mathrm{scale}^2)`, of equal weights.

    A teacher is ``small_networks(key, 1, p)``; the published student starts from ``mean=1e-3``.

    Args:
        key: typed random key.
        count: N, how many.
        size: p, of the inputs.
        hidden: H, units of each.
        mean: of every parameter.
        scale: standard deviation of every parameter.
        coupling: of :func:`student_teacher`; ``"dense"`` gives every particle outgoing weights of all N·H units.
        dtype: of the parameters; JAX's default floating type if not given.

    Returns:
        A measure with points ``{"a": (N, H), "w": (N, H, p)}``; dense, ``{"a": (N, N, H), "w": (N, H, p)}``.

    Raises:
        ValueError: if a size is below one, the scale not positive or the coupling unknown.

    Example:
        >>> import jax
        >>> mu = small_networks(jax.random.key(0), 4, 5, coupling="dense")
        >>> mu.points["a"].shape, mu.points["w"].shape
        ((4, 4, 3), (4, 3, 5))

    References:
        Arbel, Korba, Salim, Gretton, arXiv:1906.04370, Sec. 5.
    """
    _check_coupling("small_networks", coupling)
    if min(count, size, hidden) < 1:
        raise ValueError(f"small_networks: count={count}, size={size}, hidden={hidden}; give at least 1 of each.")
    if not scale > 0:
        raise ValueError(f"small_networks: scale={scale}; give a positive number.")
    outgoing_key, ingoing_key = jax.random.split(key)
    fan = (hidden,) if coupling == "block" else (count, hidden)

    def draw(key: Array, *shape: int) -> Array:
        return mean + scale * jax.random.normal(key, shape, dtype)

    return Particles.uniform({"a": draw(outgoing_key, count, *fan), "w": draw(ingoing_key, count, hidden, size)})


def _check_coupling(name: str, coupling: str) -> None:
    if coupling not in ("block", "dense"):
        raise ValueError(f'{name}: coupling={coupling!r}; choose "block" or "dense".')
