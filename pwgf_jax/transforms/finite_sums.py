r"""Gradients of :math:`f=\frac1n\sum_if_i` from batches, and with less noise from batches that correct an estimate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from pwgf_jax import arguments, trees

__all__ = [
    "Epoch",
    "Estimator",
    "check_batches",
    "draw",
    "reduced_gradient",
    "scsg",
    "sgd",
    "spider",
    "times",
    "total",
]

_INT32 = 2**31 - 1


def check_batches(caller: str, size: int, **batches: int) -> None:
    """Refuse batches that are empty or larger than the sum.

    Example:
        >>> check_batches("ssrgd", 4, batch=5)
        Traceback (most recent call last):
        ...
        ValueError: ssrgd: batch=5 of 4 terms; give a whole number, 1 to 4.
    """
    for name, batch in {"size": size, **batches}.items():
        if arguments.whole(f"{caller}: {name}", batch, least=0) < 1 or batch > size:
            raise ValueError(f"{caller}: {name}={batch} of {size} terms; give a whole number, 1 to {size}.")


def draw(key: Array, batch: int, size: int) -> Int[Array, " b"]:
    """Indices of independent uniform terms; every term once if the batch is the sum.

    Example:
        >>> import jax
        >>> draw(jax.random.key(0), 3, 3).tolist()
        [0, 1, 2]
    """
    if batch == size:
        return jnp.arange(size, dtype=jnp.int32)
    return jax.random.randint(key, (batch,), 0, size, jnp.int32)


class Estimator(NamedTuple):
    """How gradients of a finite sum are estimated: by :func:`sgd`, :func:`scsg` or :func:`spider`.

    Args:
        size: n, number of terms.
        batch: b, terms of a step; all of them if it is n.
        large_batch: B, terms of the estimate that opens an epoch, the only one that is trusted to be small.
        recursive: whether a batch corrects the estimate of the step before, or that of where its epoch opened.
        ends: (key, steps made, this one included) -> whether the epoch ends.

    Example:
        >>> sgd(9, 3).large_batch
        3
    """

    size: int
    batch: int
    large_batch: int
    recursive: bool
    ends: Callable[[Array, Array], Array]

    def after(self, epoch: Epoch, params: PyTree, gradient: PyTree, key: Array) -> Epoch:
        """The epoch after an estimate at these parameters."""
        inner = jnp.where(self.ends(key, epoch.inner + 1), 0, epoch.inner + 1)
        moves = (epoch.inner == 0) | self.recursive
        new = (params, gradient)
        return Epoch(inner, *jax.tree.map(lambda a, b: jnp.where(moves, a, b), new, (epoch.point, epoch.gradient)))


def sgd(size: int, batch: int) -> Estimator:
    """A new batch at every step, by itself.

    Args:
        size: n, number of terms.
        batch: b, terms of a step; large enough that its gradient is right to ε/4 or so, or it is never below.

    Returns:
        An :class:`Estimator`.

    Raises:
        ValueError: if a batch is empty or larger than the sum.

    Example:
        >>> sgd(9, 3).batch
        3
    """
    check_batches("sgd", size, batch=batch)
    return Estimator(size, batch, batch, False, lambda key, inner: inner >= 1)


def scsg(size: int, batch: int, large_batch: int) -> Estimator:
    r"""Batches that correct the estimate of where their epoch opened.

    An epoch opens at x̃ with :math:`\tilde g=\hat g_B(\tilde x)`; its steps are along
    :math:`\hat g_I(x)-\hat g_I(\tilde x)+\tilde g`. Its length is geometric, with mean 1 + B/b.

    Args:
        size: n, number of terms.
        batch: b, terms of a step.
        large_batch: B, terms of the estimate that opens an epoch; all of them if it is n.

    Returns:
        An :class:`Estimator`.

    Raises:
        ValueError: if a batch is empty or larger than the sum.

    Example:
        >>> scsg(9, 3, 9).recursive
        False

    References:
        Lei, Ju, Chen, Jordan, arXiv:1706.09156.
    """
    check_batches("scsg", size, batch=batch, large_batch=large_batch)
    chance = batch / (batch + large_batch)
    return Estimator(size, batch, large_batch, False, lambda key, inner: jax.random.bernoulli(key, chance))


def spider(size: int, batch: int, large_batch: int, epoch: int) -> Estimator:
    r"""Batches that correct the step before's estimate, :math:`v\leftarrow v+\hat g_I(x)-\hat g_I(x_\text{before})`.

    Args:
        size: n, number of terms.
        batch: b, terms of a step.
        large_batch: B, terms of the estimate that opens an epoch; all of them if it is n.
        epoch: steps of an epoch.

    Returns:
        An :class:`Estimator`.

    Raises:
        ValueError: if a batch is empty or larger than the sum, or the epoch no whole number.

    Example:
        >>> spider(9, 3, 9, epoch=3).recursive
        True

    References:
        Fang, Li, Lin, Zhang, arXiv:1807.01695.
    """
    check_batches("spider", size, batch=batch, large_batch=large_batch)
    epoch = arguments.whole("spider: epoch", epoch)
    return Estimator(size, batch, large_batch, True, lambda key, inner: inner >= epoch)


class Epoch(NamedTuple):
    """Where an estimate stands.

    Args:
        inner: steps made in this epoch, int32; zero where the next one opens another.
        point: the parameters that the next small batch is compared with.
        gradient: the estimate there, structured like the parameters, of float32 at least.

    Example:
        >>> import jax.numpy as jnp
        >>> int(Epoch.before(jnp.ones(2)).inner)
        0
    """

    inner: Int[Array, ""]
    point: PyTree
    gradient: PyTree

    @classmethod
    def before(cls, params: PyTree) -> Epoch:
        """Before any step."""
        return cls(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params), trees.zeros(params))


def reduced_gradient(
    grad_fn: Callable[[PyTree, Array], PyTree], params: PyTree, epoch: Epoch, estimator: Estimator, key: Array
) -> tuple[PyTree, Int[Array, ""]]:
    r"""∇f on a large batch where an epoch opens, else :math:`v'+\nabla f_I(x)-\nabla f_I(x')` from its (x', v').

    Args:
        grad_fn: (params, indices) -> mean gradient of those terms.
        params: x.
        epoch: holds x' and v'.
        estimator: the sizes of the batches.
        key: typed random key, of the batch.

    Returns:
        The estimate, and how many gradients of terms it took. Under ``jax.vmap`` both kinds are computed.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> a, x = jnp.array([1.0, 3.0]), jnp.ones(())
        >>> gradient = lambda x, i: jnp.mean(a[i]) * x
        >>> v, terms = reduced_gradient(gradient, x, Epoch.before(x), scsg(2, 1, 2), jax.random.key(0))
        >>> float(v), int(terms)
        (2.0, 2)
    """
    size, opens = estimator.size, epoch.inner == 0

    def at(x: PyTree, indices: Array) -> PyTree:
        return jax.tree.map(lambda g, v: g.astype(v.dtype), grad_fn(x, indices), epoch.gradient)

    def anew(_: Any) -> PyTree:
        return at(params, draw(key, estimator.large_batch, size))

    def corrected(_: Any) -> PyTree:
        indices = draw(key, estimator.batch, size)
        new, old = at(params, indices), at(epoch.point, indices)
        return jax.tree.map(lambda v, a, b: v + (a - b), epoch.gradient, new, old)

    terms = jnp.where(opens, estimator.large_batch, 2 * estimator.batch).astype(jnp.int32)
    return jax.lax.cond(opens, anew, corrected, None), terms


def total(count: Array, more: Array) -> Array:
    """The sum of two int32 counters, or 2³¹ − 1 where it is larger.

    Example:
        >>> import jax.numpy as jnp
        >>> int(total(jnp.int32(2**31 - 2), jnp.int32(5))) == 2**31 - 1
        True
    """
    return count + jnp.minimum(more, _INT32 - count)


def times(count: Array, factor: int) -> Array:
    """A multiple of an int32 counter, or 2³¹ − 1 where it is larger.

    Example:
        >>> import jax.numpy as jnp
        >>> int(times(jnp.int32(3), 2)), int(times(jnp.int32(3), 2**30)) == 2**31 - 1
        (6, True)
    """
    most = _INT32 // factor
    return jnp.where(count > most, _INT32, jnp.minimum(count, most) * min(factor, _INT32))
