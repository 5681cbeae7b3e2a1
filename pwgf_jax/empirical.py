r"""Objectives as searches take them: of the floating leaves of any parameters, and averages over batches of data.

The gradient and the Hessian products of an average :math:`\frac1B\sum_b f(x,b)` are accumulated batch by batch: one
batch is linearised at a time and forgotten, so that memory is that of one batch, however many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from pwgf_jax import objective, trees
from pwgf_jax.calculus import HessianOperator, Part
from pwgf_jax.contract import check_functional, check_once
from pwgf_jax.measures import Particles, single, traceable
from pwgf_jax.objective import Objective, Point, coordinates

__all__ = ["Empirical", "Prepared", "hessian", "prepared", "stacked", "value_and_gradient"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Value:
    """A user's function at a point that consists of floating arrays alone, and of its value without what comes along.

    Args:
        function: the user's, as a pytree.
        whole: from the floating leaves to what the function takes; None where that is the same.
        has_aux: whether the function returns (value, anything).
    """

    function: Any
    whole: Any
    has_aux: bool = field(metadata={"static": True})

    def __call__(self, point: Point, *batch: PyTree) -> Any:
        out = self.function(point if self.whole is None else self.whole(point), *batch)
        return out[0] if self.has_aux else out


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _OfBatch:
    """What is averaged, at one batch."""

    per_batch: Any
    batch: PyTree

    def __call__(self, point: Point) -> Any:
        return self.per_batch(point, self.batch)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Empirical:
    r"""The average :math:`\frac1B\sum_b f(x,b)` of an objective over batches of data, as a pytree.

    Args:
        per_batch: (point, batch) -> scalar; a pytree, see :func:`pwgf_jax.measures.traceable`.
        batches: a pytree of arrays, whose leading axis counts the batches.

    Example:
        >>> import jax.numpy as jnp
        >>> average = Empirical(traceable(lambda x, b: jnp.sum((x - b) ** 2)), jnp.array([[0.0], [2.0]]))
        >>> float(average(jnp.array([1.0])))
        1.0
    """

    per_batch: Any
    batches: PyTree

    def __call__(self, point: Point) -> Float[Array, ""]:
        """The value."""
        return self.average(lambda f: f(point))

    def average(self, of: Callable[[Objective], PyTree]) -> PyTree:
        """The average over the batches of anything that is said of the objective at one."""
        first = jax.tree.map(lambda leaf: leaf[0], self.batches)
        start = trees.zeros(jax.eval_shape(lambda batch: of(_OfBatch(self.per_batch, batch)), first))

        def add(total: PyTree, batch: PyTree) -> tuple[PyTree, None]:
            found = of(_OfBatch(self.per_batch, batch))
            return jax.tree.map(lambda sum_, more: sum_ + more.astype(sum_.dtype), total, found), None

        total, _ = jax.lax.scan(add, start, self.batches)
        count = jax.tree.leaves(self.batches)[0].shape[0]
        return jax.tree.map(lambda leaf: leaf / count, total)


def value_and_gradient(F: Objective, point: Point) -> tuple[Float[Array, ""], PyTree]:
    """:func:`pwgf_jax.objective.value_and_gradient`, of an average batch by batch.

    Args:
        F: a functional, a loss, or an :class:`Empirical` of either.
        point: the measure or the parameters.

    Returns:
        The value, and the gradient as a field.

    Example:
        >>> import jax.numpy as jnp
        >>> average = Empirical(traceable(lambda x, b: jnp.sum((x - b) ** 2)), jnp.array([[0.0], [2.0]]))
        >>> value_and_gradient(average, jnp.array([3.0]))[1].tolist()
        [4.0]
    """
    if isinstance(F, Empirical):
        return F.average(lambda f: objective.value_and_gradient(f, point))
    return objective.value_and_gradient(F, point)


def hessian(F: Objective, point: Point, part: Part = "full") -> HessianOperator:
    """:func:`pwgf_jax.objective.hessian`, of an average linearised anew at every batch of every product.

    A product of an average costs one gradient more than one of an objective that is linearised once.

    Args:
        F: a functional, a loss, or an :class:`Empirical` of either.
        point: the measure or the parameters.
        part: as in :func:`pwgf_jax.objective.hessian`.

    Returns:
        An operator on fields.

    Raises:
        ValueError: if parameters are asked for another part than ``"full"``.

    Example:
        >>> import jax.numpy as jnp
        >>> average = Empirical(traceable(lambda x, b: jnp.sum(b * x**2)), jnp.array([[0.0], [2.0]]))
        >>> hessian(average, jnp.array([3.0]))(jnp.array([1.0])).tolist()
        [2.0]
    """
    if not isinstance(F, Empirical):
        return objective.hessian(F, point, part)
    if not isinstance(point, Particles) and part != "full":
        raise ValueError(f'hessian: part={part!r} at parameters; they have the "full" one alone.')
    mu = point if isinstance(point, Particles) else None
    return HessianOperator(lambda v: F.average(lambda f: objective.hessian(f, point, part)(v)), mu)


def stacked(batches: Any, caller: str) -> PyTree:
    """Batches as one pytree of arrays with a leading axis.

    Args:
        batches: a list of batches of one shape (or an iterator, or a tuple of containers such as (inputs, targets)),
            which are stacked; any other pytree of arrays has the leading axis already, as in ``jax.lax.scan``.
        caller: who asks, for the message.

    Returns:
        A pytree of arrays.

    Raises:
        ValueError: if the batches differ in structure or shape, or there are none.

    Example:
        >>> import jax.numpy as jnp
        >>> x, y = jnp.zeros((5, 2)), jnp.zeros(5)
        >>> [leaf.shape for leaf in stacked([(x, y), (x, y), (x, y)], "certify")]
        [(3, 5, 2), (3, 5)]
        >>> [leaf.shape for leaf in stacked((jnp.zeros((3, 5, 2)), jnp.zeros((3, 5))), "certify")]
        [(3, 5, 2), (3, 5)]
    """
    if isinstance(batches, Iterator):
        batches = list(batches)
    pairs = type(batches) is tuple and batches and not any(map(_is_leaf, batches)) and len(_shapes(batches)) == 1
    if isinstance(batches, list) or pairs:
        if len(_shapes(batches)) != 1:
            shapes = [[jnp.shape(leaf) for leaf in jax.tree.leaves(batch)] for batch in batches]
            raise ValueError(
                f"{caller}: batches of shapes {shapes}; give at least one, all of one structure and shape: leave the "
                "last one out if it is smaller. A tuple, a dict or an array has the batches on its leading axis."
            )
        return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *batches)
    batches = jax.tree.map(jnp.asarray, batches)
    counts = {leaf.shape[:1] for leaf in jax.tree.leaves(batches)}
    if len(counts) != 1 or counts & {(), (0,)}:
        shapes = [leaf.shape for leaf in jax.tree.leaves(batches)]
        raise ValueError(
            f"{caller}: batches is a pytree of arrays of shapes {shapes}; the leading axis counts the batches, is that "
            "of all of them, and not empty. Or give a list of batches of one shape."
        )
    return batches


def _is_leaf(thing: Any) -> bool:
    return jax.tree_util.all_leaves([thing])


def _shapes(batches: Any) -> set:
    return {(jax.tree.structure(batch), tuple(jnp.shape(leaf) for leaf in jax.tree.leaves(batch))) for batch in batches}


class Prepared(NamedTuple):
    """An objective and a point that can cross ``jax.jit``, in float32 at least.

    Args:
        objective: a pytree, of the point alone.
        point: the measure, or the floating leaves of the parameters, with None elsewhere.
        like: the coordinates as they were given, for the dtypes of what is handed back.

    Example:
        >>> import jax.numpy as jnp
        >>> ready = prepared(lambda x: jnp.sum(x["w"] ** 2) * x["n"], {"w": jnp.ones(3), "n": 2}, "certify")
        >>> float(ready.objective(ready.point)), ready.point["n"] is None
        (6.0, True)
    """

    objective: Any
    point: Point
    like: PyTree


def prepared(
    function: Callable[..., Any],
    point: Point,
    caller: str,
    *,
    batches: Any = None,
    has_aux: bool = False,
    check: bool = True,
) -> Prepared:
    """What users give, as searches take it.

    Args:
        function: the functional or the loss, of (point) or of (point, batch).
        point: a measure, or any pytree: its floating arrays are the parameters; what else there is (integers, keys,
            functions, Python's numbers, None) is held fixed.
        caller: who asks, for the messages.
        batches: None, or what the function is averaged over, as in :func:`stacked`.
        has_aux: whether the function returns (value, anything).
        check: whether a functional that is new here is tried first, see :func:`pwgf_jax.contract.check_functional`.

    Returns:
        A :class:`Prepared`.

    Raises:
        TypeError: if the value is no floating scalar, a parameter is complex, or a functional is given no measure.
        ValueError: if there are no parameters, batches differ, or a functional is no function of the measure.

    Example:
        >>> import jax.numpy as jnp
        >>> prepared(lambda x: x, jnp.ones(3, "float32"), "certify")
        Traceback (most recent call last):
        ...
        TypeError: certify: the objective returns float32[3]; give a function with one floating scalar as its value.
    """
    measure = isinstance(point, Particles)
    floating, whole = (point, None) if measure else trees.partition(point)
    if not measure:
        _check_parameters(point, floating, caller)
    of = traceable(function) if measure and not has_aux else _Value(traceable(function), whole, has_aux)
    if batches is not None:
        batches = stacked(batches, caller)
        first = _OfBatch(of, jax.tree.map(lambda leaf: leaf[0], batches))
        of = Empirical(of, batches)
    else:
        first = of
    if not measure:
        _check_value(first, floating, caller)
    elif check and batches is None and not has_aux:
        check_once(function, point)
    elif check:  # what is wrapped is ours by its type alone
        check_functional(first, point)
    return Prepared(_widened(of), _widened(floating), coordinates(floating))


def _check_parameters(point: PyTree, floating: PyTree, caller: str) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(point):
        if isinstance(leaf, complex) or (hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.complexfloating)):
            raise TypeError(
                f"{caller}: params{jax.tree_util.keystr(path)} is complex; give its real and imaginary part as two "
                "real parameters."
            )
    if trees.size(floating) == 0:
        raise ValueError(
            f"{caller}: the point is a {type(point).__name__} without floating arrays; give Particles.uniform(points) "
            "or a pytree of parameters. Python's numbers are held fixed: jnp.asarray makes parameters of them."
        )


def _check_value(first: Objective, floating: PyTree, caller: str) -> None:
    try:
        out: Any = jax.eval_shape(first, floating)
    except AttributeError as error:
        if error.name not in ("weights", "points"):
            raise
        raise TypeError(
            f"{caller}: the objective asks for .{error.name}, and parameters have none; a functional of measures takes "
            "Particles.uniform(points)."
        ) from error
    if not hasattr(out, "shape") or out.shape != () or not jnp.issubdtype(out.dtype, jnp.floating):
        kind = f"{out.dtype}{list(out.shape)}" if hasattr(out, "shape") else f"a {type(out).__name__}"
        aux = "; where it returns (value, aux), say has_aux=True" if isinstance(out, tuple) else ""
        raise TypeError(
            f"{caller}: the objective returns {kind}; give a function with one floating scalar as its value{aux}."
        )


def _widened(tree: PyTree) -> PyTree:
    """Half-precision numbers in float32."""

    def wide(leaf: Any) -> Any:
        floating = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)  # a Python number stays weak
        return leaf.astype(single(leaf.dtype)) if floating and leaf.dtype != single(leaf.dtype) else leaf

    return jax.tree.map(wide, tree)
