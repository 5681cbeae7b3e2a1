"""What cannot fit: how much memory there is, and how much a step would take, known before anything is computed."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

__all__ = ["check_fits", "largest", "memory", "size_of"]


@cache
def memory() -> float:
    """Bytes that arrays can take: of all devices, those of other processes like ours; or of this machine on CPU.

    Example:
        >>> memory() > 2**28
        True
    """
    known = [stats["bytes_limit"] for device in jax.local_devices() if (stats := device.memory_stats())]
    if known:
        return float(sum(known)) * jax.device_count() / jax.local_device_count()
    try:
        whole = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return math.inf
    share = Path("/sys/fs/cgroup/memory.max")  # of a container
    limit = share.read_text(encoding="utf-8").strip() if share.is_file() else ""
    return min(whole, float(limit)) if limit.isdecimal() else whole


def _said(size: int | float) -> str:
    exponent = min(max(int(math.log10(max(size, 1)) // 3), 0), 6)
    return f"{size / 1000**exponent:.3g} {('B', 'kB', 'MB', 'GB', 'TB', 'PB', 'EB')[exponent]}"


def check_fits(size: int | float, what: str, cure: str) -> None:
    """Refuse what is larger than the memory.

    Args:
        size: in bytes.
        what: takes so many.
        cure: what to give less of.

    Raises:
        ValueError: if it does not fit.

    Example:
        >>> check_fits(8e15, "the data of 3 seeds", "give fewer points.")
        Traceback (most recent call last):
        ...
        ValueError: the data of 3 seeds would take 8 PB, of ... there are; give fewer points.
    """
    if size > memory():
        raise ValueError(f"{what} would take {_said(size)}, of {_said(memory())} there are; {cure}")


def _bytes(shaped: Any) -> int:
    return math.prod(shaped.shape) * getattr(shaped.dtype, "itemsize", 8)


def size_of(tree: Any) -> int:
    """Bytes of the arrays of a tree, which may be their shapes only.

    Example:
        >>> size_of({"a": jax.ShapeDtypeStruct((2, 3), "float32")})
        24
    """
    return sum(_bytes(leaf) for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape"))


def largest(program: ClosedJaxpr) -> tuple[int, str]:
    """The largest array that a program has to hold, in bytes and in words.

    These are what products of matrices read and make, and what loops carry and collect; what is computed element by
    element need not exist as a whole.

    Example:
        >>> import jax.numpy as jnp
        >>> largest(jax.make_jaxpr(lambda x: jnp.sum(x @ x.T))(jax.ShapeDtypeStruct((8, 2), "float32")))
        (256, 'float32[8,8]')
    """
    held = [*program.in_avals, *program.out_avals, *_held(program.jaxpr)]
    return max(((_bytes(each), each.str_short()) for each in held if hasattr(each, "dtype")), default=(0, "nothing"))


def _held(jaxpr: Jaxpr) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "scan", "while"):
            yield from (each.aval for each in (*equation.invars, *equation.outvars))
        for inner in jax.tree.leaves(list(equation.params.values())):
            if isinstance(inner, Jaxpr | ClosedJaxpr):
                yield from _held(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner)
