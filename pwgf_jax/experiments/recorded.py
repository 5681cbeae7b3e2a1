"""What is recorded of a run beside the value: on held-out data, of curvature, and of what a method has spent."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from pwgf_jax.experiments.catalogue import Method
from pwgf_jax.experiments.descents import Descent
from pwgf_jax.experiments.objectives import Objective
from pwgf_jax.flows import FlowState
from pwgf_jax.forms import Functional, Predictor, Summand, summands
from pwgf_jax.functionals import Combinable, entropy, functional
from pwgf_jax.measures import Isometry, Particles

__all__ = ["Measured", "at_point", "beside_value", "spent"]


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


def at_point(whole: Objective, dense: bool, F: Functional, mu: Particles) -> dict[str, Array]:
    """At the one particle: what the objective records, and λ_min of a Hessian that is small."""
    del F
    point = jax.tree.map(lambda leaf: leaf[0], mu.points)
    recorded = {} if whole.stats is None else whole.stats(point)
    if dense:
        x, unravel = ravel_pytree(point)
        hessian = jax.hessian(lambda flat: whole.problem.value(unravel(flat)))(x)
        recorded |= {"curvature": jnp.linalg.eigvalsh(hessian)[0]}
    return recorded


def spent(method: Descent, state: FlowState) -> dict[str, Array]:
    """What a method has used so far, bits of each worker included if it counts them."""
    inner = state.optimizer.state
    spent = method.spent(state.step.astype(float), inner)._asdict()  # shares of a batch are not whole
    bits = optax.tree.get_all_with_path(inner, "bits")
    return {name: jnp.asarray(count, float) for name, count in spent.items()} | (
        {"bits": jnp.max(bits[0][1])} if bits else {}
    )


def _least_curvature(F: Functional, mu: Particles) -> Array:
    """λ_min of the full Hessian in L²(μ), by the dense matrix in isometric coordinates."""
    chart = Isometry(mu.weights, mu.points)
    y, unravel = ravel_pytree(chart.up(mu.points))
    of_y = chart.of(lambda points: F(mu.moved_to(points)))
    return jnp.linalg.eigvalsh(jax.hessian(lambda flat: of_y(unravel(flat)))(y))[0]


def beside_value(tested: bool, pictured: bool, dense: bool, arm: Method) -> Any:
    """What is recorded beside the flow's own value.

    On held-out data; on all data where the flow sees a batch; what a flow at a constant temperature descends; and the
    points where they are asked for; the least curvature of a Hessian that is small; and where the weights move how
    many particles of equal weight they are worth, 1/Σw².
    """
    given = arm.arguments.get("temperature")
    temperature = given if isinstance(given, float) else None
    return _stats(tested, pictured, dense, "batch_size" in arm.arguments, "weights" in arm.arguments, temperature)


@cache  # arms that record the same are compiled once
def _stats(tested: bool, pictured: bool, dense: bool, batched: bool, weighted: bool, temperature: float | None) -> Any:
    if not (tested or batched or weighted or temperature is not None or pictured or dense):
        return None

    def stats(F: Functional, mu: Particles) -> dict[str, Array]:
        recorded = F.measured(mu) if isinstance(F, Measured) else {}
        if batched:
            recorded |= {"full_value": F(mu)}
        if weighted:
            recorded |= {"effective_particles": 1 / jnp.sum(mu.weights**2)}
        if dense:
            recorded |= {"curvature": _least_curvature(F, mu)}
        if temperature is not None:
            recorded |= {"free_energy": F(mu) - temperature * entropy(mu)}
        seen = {"points": mu.points} | ({"weights": mu.weights} if weighted else {})
        return recorded | (seen if pictured else {})

    return stats
