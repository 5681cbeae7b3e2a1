"""Held-out data: a functional that carries them along, and what is measured on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pwgf_jax.calculus import Functional, MomentForm
from pwgf_jax.experiments.data import Data
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
        inputs: of the test data, shape (t, l).
        targets: shape (t, k).
        predict: (train, mu, inputs) -> outputs; None where the functional has no rule of prediction.
        classes: whether the largest target names a class.

    Example:
        >>> import jax.numpy as jnp
        >>> mu = Particles.uniform(jnp.ones((2, 1)))
        >>> train, test = (lambda mu: jnp.sum(mu.weights)), (lambda mu: 2 * jnp.sum(mu.weights))
        >>> F = HeldOut(train, test, jnp.ones((1, 1)), jnp.ones((1, 1)))
        >>> float(F(mu)), {name: float(value) for name, value in F.measure(mu).items()}
        (1.0, {'test_loss': 2.0})
    """

    train: Functional
    test: Functional
    inputs: Float[Array, "t l"]
    targets: Float[Array, "t k"]
    predict: Predict | None = field(default=None, metadata={"static": True})
    classes: bool = field(default=False, metadata={"static": True})

    def __call__(self, mu: Particles) -> Float[Array, ""]:
        """The value on the training data."""
        return self.train(mu)

    @property
    def batch(self) -> Callable[[Array, int], HeldOut]:
        """The same on a minibatch of the training data; missing where the training functional offers none."""
        draw = getattr(self.train, "batch")  # noqa: B009, a functional need not have one
        return lambda key, size: replace(self, train=draw(key, size))

    def measure(self, mu: Particles) -> dict[str, Float[Array, ""]]:
        """How the measure does on the test data: by prediction where there is a rule, else the functional's value."""
        if self.predict is None:
            return {"test_loss": self.test(mu)}
        outputs = self.predict(self.train, mu, self.inputs)
        measured = {"test_loss": jnp.mean(jnp.sum((outputs - self.targets) ** 2, axis=1)) / 2}
        if self.classes:
            right = jnp.argmax(outputs, axis=1) == jnp.argmax(self.targets, axis=1)
            measured["test_accuracy"] = jnp.mean(right, dtype=outputs.dtype)
        return measured


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HeldOutMoments(HeldOut):
    """The same for a functional of moment form, which keeps its cheap Hessian."""

    def moments(self, mu: Particles) -> Any:
        """Those of the training functional."""
        return self._form.moments(mu)

    def of_moments(self, moments: Any) -> Float[Array, ""]:
        """That of the training functional."""
        return self._form.of_moments(moments)

    @property
    def _form(self) -> MomentForm:
        if not isinstance(self.train, MomentForm):
            raise TypeError("the training functional has no moments.")
        return self.train


def _outputs(F: MeanFieldNetwork, mu: Particles, inputs: Array) -> Array:
    return F.outputs(mu, inputs)


def _refitted(F: MeanFieldNetwork, mu: Particles, inputs: Array) -> Array:
    """The outputs through the readout that is optimal on the training data."""
    h = F.outputs(mu, F.inputs)
    second_moment = h.T @ h / h.shape[0] + F.loss.keywords["ridge"] * jnp.eye(h.shape[1], dtype=h.dtype)
    return F.outputs(mu, inputs) @ jnp.linalg.solve(second_moment, h.T @ F.targets / h.shape[0])


# The matrix functional knows its outputs only up to sign: it has no prediction.
_PREDICT: dict[str, Predict] = {"icfl": _refitted, "mean_field_regression": _outputs}


def _has_moments(F: Any) -> bool:
    return isinstance(F, MomentForm)


def _own(F: Any, mu: Particles, inputs: Array) -> Array:
    return F.predict(mu, inputs)


def hold_out(F: Any, test: Any, data: Data, name: str, classes: bool) -> HeldOut:
    """The training functional with the test data attached.

    Args:
        F: the functional of the training data; it predicts by a method ``predict(mu, inputs)`` if it has one.
        test: the same of the test data.
        data: with a test split.
        name: of the functional, which tells the rule of prediction of those that are shipped.
        classes: whether the largest target names a class.

    Returns:
        A functional of moment form if F is of moment form.

    Example:
        >>> import jax.numpy as jnp
        >>> from pwgf_jax.functionals import mean_field_regression as regression
        >>> z, y = jnp.ones((4, 2)), jnp.ones((4, 1))
        >>> F = hold_out(regression(z, y), regression(z, y), Data(z, y, z, y), "mean_field_regression", False)
        >>> float(measure(F, Particles.uniform(jnp.zeros((3, 3))))["test_loss"])
        0.5
    """
    kind = HeldOutMoments if _has_moments(F) else HeldOut
    rule = _own if callable(getattr(F, "predict", None)) else _PREDICT.get(name)
    return kind(F, test, jnp.asarray(data.test_inputs), jnp.asarray(data.test_targets), rule, classes)


def measure(F: Functional, mu: Particles) -> dict[str, Array]:
    """What to record about the held-out data, if F carries any; a ``Record.stats``.

    Example:
        >>> measure(lambda mu: mu.weights[0], Particles.uniform(jnp.ones((1, 1))))
        {}
    """
    return F.measure(mu) if isinstance(F, HeldOut) else {}
