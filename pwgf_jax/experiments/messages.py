"""What a user is told is wrong: the file, the key, what was given, what is allowed, and the nearest of it."""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ConfigError", "Place", "literal", "said", "say", "show", "suggestion"]

_SHOWN = 120  # characters of a value that messages quote


class ConfigError(ValueError):
    """What a user asked for cannot be done; one sentence says what was given and what is allowed."""


@dataclass(frozen=True)
class Place:
    """A dotted key of a file, for messages.

    Args:
        file: the file, as the user wrote it.
        key: the dotted key; empty for the file itself.

    Example:
        >>> raise (Place("a.toml") / "arms" / "static").error("give a table.")
        Traceback (most recent call last):
        ...
        pwgf_jax.experiments.messages.ConfigError: a.toml: arms.static: give a table.
    """

    file: str
    key: str = ""

    def __truediv__(self, name: str) -> Place:
        return Place(self.file, f"{self.key}.{_key(name)}" if self.key else _key(name))

    def error(self, message: str) -> ConfigError:
        """The message, under this place's name."""
        return ConfigError(f"{self.file}: {self.key}: {message}" if self.key else f"{self.file}: {message}")


def suggestion(name: str, allowed: Iterable[str]) -> str:
    """The end of a message about an unknown name: what is allowed, and the nearest of it.

    Example:
        >>> suggestion("pwfg", ["pwgf", "wgf"])
        'allowed: pwgf, wgf; did you mean pwgf?'
    """
    allowed = list(allowed)
    near = difflib.get_close_matches(name[:_SHOWN], allowed, n=1)
    return f"allowed: {', '.join(allowed) or 'nothing'}" + (f"; did you mean {near[0]}?" if near else "")


def show(value: Any) -> str:
    """A given value and its kind, as messages quote it: on one line, and not all of what is long.

    Example:
        >>> show(True), show({"kind": 1})
        ('true (a boolean)', '{kind = 1} (a table)')
    """
    kinds = {bool: "a boolean", int: "a whole number", float: "a number", str: "a string", list: "a list"}
    kind = "a table" if isinstance(value, Mapping) else kinds.get(type(value), "a date or time")
    shown = literal(value)
    return f"{shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '…'} ({kind})"


def literal(value: Any) -> str:
    """A value as TOML writes it, on one line.

    Example:
        >>> literal([True, {"a": "b"}])
        '[true, {a = "b"}]'
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_key(name)} = {literal(each)}' for name, each in value.items())}}}"
    if isinstance(value, int):
        return hex(value) if value.bit_length() > 1024 else str(value)  # Python writes no 5000 digits
    return repr(value) if isinstance(value, float) else value.isoformat()


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else literal(name)


def said(error: BaseException) -> str:
    """The first sentence of an error, for a message of one line."""
    sentence = str(error).partition("\n")[0] or type(error).__name__
    if isinstance(error, OverflowError):
        return f"a number is too large to compute with, or what follows from it ({sentence})."
    return sentence


def say(sentence: str) -> None:
    """Something that the user ought to know, on the standard error stream."""
    print(f"pwgf: {sentence}", file=sys.stderr)
