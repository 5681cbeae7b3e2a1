"""Held-out data: a functional that carries them along, and what is measured on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pwgf_jax.calculus import Functional, MomentForm, PairwiseForm
from pwgf_jax.experiments.free_energy import Confined, as_pytree
from pwgf_jax.functionals import MeanFieldNetwork
from pwgf_jax.measures import Particles

__all__ = ["HeldOut", "hold_out", "measure"]

Predict: TypeAlias = Callable[[Any, Particles, Array], Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HeldOut:
    """A functional of the training data that carries the test data along, for the records.

    Args:
        train: the functional that is minimised.
        test: the same of the test data.
        data: the test data, (inputs (t, l), targets (t, k)), or for a target (points (t, d),).
        predict: (train, mu, inputs) -> outputs; None where the functional has no rule of prediction.
        classes: whether the largest target names a class.

    Example:
        >>> import jax.numpy as jnp
        >>> mu = Particles.uniform(jnp.ones((2, 1)))
        >>> train, test = (lambda mu: jnp.sum(mu.weights)), (lambda mu: 2 * jnp.sum(mu.weights))
        >>> F = HeldOut(train, test, (jnp.ones((1, 1)), jnp.ones((1, 1))))
        >>> float(F(mu)), {name: float(value) for name, value in F.measure(mu).items()}
        (1.0, {'test_loss': 2.0})
    """

    train: Any  # a functional, of whose form the subclasses are
    test: Functional
    data: tuple[Array, ...]
    predict: Predict | None = field(default=None, metadata={"static": True})
    classes: bool = field(default=False, metadata={"static": True})

    def __call__(self, mu: Particles) -> Float[Array, ""]:
        """The value on the training data."""
        return self.train(mu)

    @property
    def batch(self) -> Callable[[Array, int], HeldOut]:
        """The same on a minibatch of the training data; missing where the training functional offers none."""
        draw = self.train.batch
        return lambda key, size: replace(self, train=as_pytree(draw(key, size)))

    def measure(self, mu: Particles) -> dict[str, Float[Array, ""]]:
        """How the measure does on the test data: by prediction where there is a rule, else the functional's value."""
        if self.predict is None:
            return {"test_loss": self.test(mu)}
        inputs, targets = self.data
        outputs = self.predict(self.train, mu, inputs)
        measured = {"test_loss": jnp.mean(jnp.sum((outputs - targets) ** 2, axis=1)) / 2}
        if self.classes:
            right = jnp.argmax(outputs, axis=1) == jnp.argmax(targets, axis=1)
            measured["test_accuracy"] = jnp.mean(right, dtype=outputs.dtype)
        return measured


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HeldOutMoments(HeldOut):
    """The same for a functional of moment form, which keeps its cheap Hessian."""

    def moments(self, mu: Particles) -> Any:
        """Those of the training functional."""
        return self.train.moments(mu)

    def of_moments(self, moments: Any) -> Float[Array, ""]:
        """That of the training functional."""
        return self.train.of_moments(moments)

    @property
    def least_squares(self) -> bool:
        """Whether the training functional is one of least squares."""
        return getattr(self.train, "least_squares", False)

    @property
    def targets(self) -> Array:
        """Those of the training functional of least squares."""
        return self.train.targets


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HeldOutPairs(HeldOut):
    """The same for a functional of pairwise form."""

    def interaction(self, points: Any, others: Any) -> Any:
        """That of the training functional."""
        return self.train.interaction(points, others)

    def external(self, points: Any) -> Float[Array, " n"]:
        """That of the training functional."""
        return self.train.external(points)


def _outputs(F: Any, mu: Particles, inputs: Array) -> Array:
    return F.outputs(mu, inputs)


def _refitted(F: MeanFieldNetwork, mu: Particles, inputs: Array) -> Array:
    """The outputs through the readout that is optimal on the training data."""
    h = F.outputs(mu, F.inputs)
    second_moment = h.T @ h / h.shape[0] + F.loss.keywords["ridge"] * jnp.eye(h.shape[1], dtype=h.dtype)
    return F.outputs(mu, inputs) @ jnp.linalg.solve(second_moment, h.T @ F.targets / h.shape[0])


# The matrix functional knows its outputs only up to sign: it has no prediction.
_PREDICT: dict[str, Predict] = {
    "icfl": _refitted,
    "mean_field_regression": _outputs,
    "student_teacher": _outputs,
}


def _kind(F: Any) -> type[HeldOut]:
    if isinstance(F, MomentForm):
        return HeldOutMoments
    return HeldOutPairs if isinstance(F, PairwiseForm) else HeldOut


def _own(F: Any, mu: Particles, inputs: Array) -> Array:
    return F.predict(mu, inputs)


def hold_out(F: Any, test: Any, data: tuple[Array, ...], name: str, classes: bool) -> HeldOut:
    """The training functional with the test data attached.

    Args:
        F: the functional of the training data; it predicts by a method ``predict(mu, inputs)`` if it has one.
        test: the same of the test data.
        data: of the test functional.
        name: of the functional, which tells the rule of prediction of those that are shipped.
        classes: whether the largest target names a class.

    Returns:
        A functional of the form that F has.

    Example:
        >>> import jax.numpy as jnp
        >>> from pwgf_jax.functionals import mean_field_regression as regression
        >>> z, y = jnp.ones((4, 2)), jnp.ones((4, 1))
        >>> F = hold_out(regression(z, y), regression(z, y), (z, y), "mean_field_regression", False)
        >>> float(measure(F, Particles.uniform(jnp.zeros((3, 3))))["test_loss"])
        0.5
    """
    rule = _own if callable(getattr(F, "predict", None)) else _PREDICT.get(name)
    return _kind(F)(as_pytree(F), as_pytree(test), data, rule, classes)


def measure(F: Functional, mu: Particles) -> dict[str, Array]:
    """What to record about the held-out data, if F carries any; a ``Record.stats``.

    Example:
        >>> measure(lambda mu: mu.weights[0], Particles.uniform(jnp.ones((1, 1))))
        {}
    """
    inner = F.base if isinstance(F, Confined) else F
    return inner.measure(mu) if isinstance(inner, HeldOut) else {}
