"""Held-out data: what is measured on them, of the seed that they are drawn with."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pwgf_jax.forms import Functional, Predictor, Summand, summands
from pwgf_jax.functionals import Combinable, functional
from pwgf_jax.measures import Particles

__all__ = ["Measured"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class Measured(Combinable):
    """A functional with the test data of its seed, for the records; a sum of it alone, so that it keeps its form.

    Args:
        train: the functional that is minimised.
        test: what it is measured by: a functional, or test data (inputs (t, l), targets (t, k)) for a functional with
            a summand that predicts.
        classes: whether the largest target names a class.
    """

    train: Any
    test: Any
    classes: bool = field(default=False, metadata={"static": True})

    @classmethod
    def on(cls, train: Functional, test: Functional, data: tuple[Array, ...], classes: bool) -> Measured:
        """Measured by its predictions on the data if one summand predicts, else by the value of the test functional."""
        predictors = [part for _, part in summands(train) if isinstance(part, Predictor)]
        return cls(functional(train), data if len(predictors) == 1 else functional(test), classes)

    @property
    def terms(self) -> tuple[Summand, ...]:
        """The functional alone."""
        return ((None, self.train),)

    def __call__(self, mu: Particles) -> Float[Array, ""]:
        """The value on the training data."""
        return self.train(mu)

    def batch(self, key: Array, size: int) -> Measured:
        """The same on a minibatch of the training data."""
        return replace(self, train=self.train.batch(key, size))

    def measured(self, mu: Particles) -> dict[str, Float[Array, ""]]:
        """How the measure does on the test data."""
        if not isinstance(self.test, tuple):
            return {"test_loss": self.test(mu)}
        inputs, targets = self.test
        outputs = self.train.predict(mu, inputs)
        measured = {"test_loss": jnp.mean(jnp.sum((outputs - targets) ** 2, axis=1)) / 2}
        if self.classes:
            right = jnp.argmax(outputs, axis=1) == jnp.argmax(targets, axis=1)
            measured["test_accuracy"] = jnp.mean(right, dtype=outputs.dtype)
        return measured
