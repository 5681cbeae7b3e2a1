"""Refusals of what callers may get wrong, in a sentence that says what was given and what to give."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, PyTree

from pwgf_jax import trees

__all__ = ["all_positive", "check_key", "needed", "not_negative", "positive", "real", "schedule", "whole"]

_INT32 = 2**31 - 1


def check_key(key: Any, caller: str) -> None:
    """Refuse anything but a typed random key.

    Example:
        >>> check_key(0, "run")
        Traceback (most recent call last):
        ...
        TypeError: run: key is a int, not a typed key; make one with jax.random.key(seed).
    """
    if not hasattr(key, "dtype") or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        kind = f"{key.dtype} array" if hasattr(key, "dtype") else type(key).__name__
        raise TypeError(f"{caller}: key is a {kind}, not a typed key; make one with jax.random.key(seed).")


def needed(caller: str, **arguments: Any) -> None:
    """Name the extra arguments that are missing, and refuse parameters that these cannot be taken at.

    Example:
        >>> needed("pgd", params=1.0, grad=None)
        Traceback (most recent call last):
        ...
        TypeError: pgd: grad missing; call update(updates, state, params, grad=...).
    """
    missing = [name for name, given in arguments.items() if given is None]
    if missing:
        passed = ", ".join(f"{name}=..." for name in missing)
        raise TypeError(f"{caller}: {' and '.join(missing)} missing; call update(updates, state, params, {passed}).")
    params = arguments.get("params")
    functions = [name for name, given in arguments.items() if callable(given) and name != "params"]
    if functions and any(map(trees.hidden, jax.tree.leaves(params, is_leaf=trees.hidden))):
        raise TypeError(
            f"{caller}: {' and '.join(functions)} takes all parameters, and optax.masked or multi_transform "
            "hides some; use pwgf_jax.transforms.masked(transform, mask), for several groups a chain of them."
        )
    real(caller, params)


def real(caller: str, params: PyTree) -> None:
    """Refuse leaves that are no real floating-point numbers.

    Example:
        >>> real("pgd", {"count": 3})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        TypeError: pgd: params['count'] is int; give real floating-point parameters, and leave the rest out: ...
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        kind = getattr(leaf, "dtype", type(leaf))
        if not (kind is float or jnp.issubdtype(kind, jnp.floating)):
            name = kind.__name__ if isinstance(kind, type) else kind
            raise TypeError(
                f"{caller}: params{jax.tree_util.keystr(path)} is {name}; give real floating-point parameters, and "
                "leave the rest out: pwgf_jax.transforms.masked(transform, mask), or None at those leaves."
            )


def positive(name: str, number: float | Array) -> None:
    """Refuse a number that is not positive and finite.

    Example:
        >>> positive("pgd: radius", 0.0)
        Traceback (most recent call last):
        ...
        ValueError: pgd: radius=0.0; give a positive number.
    """
    # What is traced, as under optax.inject_hyperparams, cannot be looked at.
    if not isinstance(number, Tracer) and not 0 < number < math.inf:
        raise ValueError(f"{name}={number}; give a positive number.")


def all_positive(caller: str, **numbers: float | Array | None) -> None:
    """The same for several numbers of one caller; None stands for its default.

    Example:
        >>> all_positive("dimer", separation=0.1, strength=-1.0, kick=None)
        Traceback (most recent call last):
        ...
        ValueError: dimer: strength=-1.0; give a positive number.
    """
    for name, number in numbers.items():
        if number is not None:
            positive(f"{caller}: {name}", number)


def not_negative(name: str, number: float | Array) -> None:
    """Refuse a number that is negative or not finite.

    Example:
        >>> not_negative("dimer: kick", -1.0)
        Traceback (most recent call last):
        ...
        ValueError: dimer: kick=-1.0; give zero or a positive number.
    """
    if not isinstance(number, Tracer) and not 0 <= number < math.inf:
        raise ValueError(f"{name}={number}; give zero or a positive number.")


def whole(name: str, number: Any, least: int = 1) -> int:
    """The number as an integer; refuse what is none of at least ``least`` that fits in 32 bits.

    Example:
        >>> whole("ssrgd: epoch", 2**40)
        Traceback (most recent call last):
        ...
        ValueError: ssrgd: epoch=1099511627776; give a whole number, 1 to 2147483647.
    """
    if isinstance(number, Tracer):
        argument = name.rpartition(" ")[2]
        raise TypeError(
            f"{name} is traced, and shapes or loops depend on it; name it in "
            f'optax.inject_hyperparams(..., static_args="{argument}").'
        )
    if not (least <= number <= _INT32 and int(number) == number):
        raise ValueError(f"{name}={number}; give a whole number, {least} to {_INT32}.")
    return int(number)


def schedule(name: str, value: Any) -> Callable[[Any], Array]:
    """A number or an optax schedule as a function of the step; a number has to be non-negative.

    Example:
        >>> import jax.numpy as jnp
        >>> float(schedule("noise: level", 0.5)(jnp.int32(3)))
        0.5
        >>> schedule("noise: level", -1.0)
        Traceback (most recent call last):
        ...
        ValueError: noise: level=-1.0; give a non-negative number.
    """
    if not callable(value):
        traced = isinstance(value, jax.Array) and jnp.ndim(value) == 0
        if not traced and (not isinstance(value, int | float) or isinstance(value, bool)):
            raise TypeError(f"{name} is a {type(value).__name__}; give a float or an optax schedule.")
        if not isinstance(value, Tracer) and not 0 <= value < math.inf:
            raise ValueError(f"{name}={value}; give a non-negative number.")
        value = optax.constant_schedule(value)

    def at(step: Any) -> Array:
        with jax.numpy_dtype_promotion("standard"):  # optax's schedules mix dtypes
            return jnp.asarray(value(step))

    return at
