"""Several processes that make the same calls, over all their devices: what each must know of the others.

Everything here is the plain thing where there is one process: nothing is sent, and nothing waited for. Where there are
several (``jax.distributed.initialize``), every one of them makes every call, in the same order.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

__all__ = ["alike", "fetched", "first", "number", "several", "stopping"]

T = TypeVar("T")

_SYNC_POINTS = itertools.count()  # of this process, for all its runs: jax wants ids that go up by one


def number() -> int:
    """Which of the processes this is.

    Example:
        >>> number()
        0
    """
    return jax.process_index() if several() else 0


def several() -> bool:
    """Whether there are several processes; where there are not, jax's devices are left alone.

    Example:
        >>> several()
        False
    """
    return jax.distributed.is_initialized() and jax.process_count() > 1


def fetched(tree: PyTree) -> PyTree:
    """The numbers of arrays, wherever they are, on every process.

    Args:
        tree: any pytree of arrays, no typed keys among them.

    Returns:
        The same of NumPy arrays.

    Example:
        >>> fetched({"a": jax.numpy.ones(2)})
        {'a': array([1., 1.]...)}
    """

    def numbers(leaf: Any) -> np.ndarray:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(numbers, tree)


def first(call: Callable[[], T]) -> T:
    """What the first process gets by a call that it alone makes, on every process; what it raises, all raise.

    Args:
        call: makes something that can be pickled.

    Example:
        >>> first(lambda: 3)
        3
    """
    if not several():
        return call()
    return _result(_told(_outcome(call) if number() == 0 else b"")[0])


def alike(call: Callable[[], T]) -> T:
    """What every process gets by a call, if all of them get something; else all raise what the first of those does.

    Args:
        call: its errors can be pickled.

    Example:
        >>> alike(lambda: 3)
        3
    """
    if not several():
        return call()
    made: list[T] = []
    for outcome in _told(_outcome(lambda: made.append(call()))):
        _result(outcome)
    return made[0]


def stopping() -> bool:
    """Whether the processes are asked to stop, and here: one of them got SIGTERM, and all are at this call.

    Example:
        >>> stopping()
        False
    """
    if not jax.distributed.is_initialized() or not jax.config.jax_enable_preemption_service:  # pyright: ignore[reportAttributeAccessIssue]
        return False
    return multihost_utils.reached_preemption_sync_point(next(_SYNC_POINTS))


def _outcome(call: Callable[[], Any]) -> bytes:
    try:
        return pickle.dumps((call(), None))
    except Exception as error:
        try:
            return pickle.dumps((None, error))
        except Exception:  # or the others would wait for ever
            return pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}")))


def _result(outcome: bytes) -> Any:
    result, error = pickle.loads(outcome)  # of a process of this program
    if error is not None:
        raise error
    return result


def _told(said: bytes) -> list[bytes]:
    """What every process says; sent as bytes, which no precision of jax changes."""
    sizes = multihost_utils.process_allgather(np.int32(len(said)))
    room = np.zeros(1 << int(max(sizes)).bit_length(), np.uint8)  # few sizes, few compilations
    room[: len(said)] = np.frombuffer(said, np.uint8)
    everything = multihost_utils.process_allgather(room)
    return [each[:size].tobytes() for each, size in zip(everything, sizes, strict=True)]
