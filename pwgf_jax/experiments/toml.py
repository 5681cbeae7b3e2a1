"""Writing TOML, which the standard library only reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["key", "literal", "write"]


def write(document: Mapping[str, Any]) -> str:
    """A document as TOML text; ``tomllib`` reads the same back.

    Args:
        document: strings, booleans, numbers, dates, lists of these, and tables of all.

    Returns:
        The text, values of a table before its subtables.

    Example:
        >>> print(write({"a": 1, "b": {"c": [True, 0.5], "d e": "x"}}))
        a = 1
        <BLANKLINE>
        [b]
        c = [true, 0.5]
        "d e" = "x"
        <BLANKLINE>
    """
    return "\n".join(_lines(document, "")) + "\n"


def _lines(table: Mapping[str, Any], prefix: str) -> list[str]:
    plain = {name: value for name, value in table.items() if not isinstance(value, Mapping)}
    lines = [f"{key(name)} = {literal(value)}" for name, value in plain.items()]
    if prefix and (lines or not table):
        lines = ["", f"[{prefix}]", *lines]
    for name, value in table.items():
        if isinstance(value, Mapping):
            lines += _lines(value, f"{prefix}.{key(name)}" if prefix else key(name))
    return lines


def key(name: str) -> str:
    """A key as TOML writes it, one line whatever is in it.

    Example:
        >>> key("step_size"), key("step.size")
        ('step_size', '"step.size"')
    """
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else literal(name)


def literal(value: Any) -> str:
    """A value as TOML writes it.

    Example:
        >>> literal([True, "a"])
        '[true, "a"]'
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key(name)} = {literal(each)}' for name, each in value.items())}}}"
    if isinstance(value, int):
        return hex(value) if value.bit_length() > 1024 else str(value)  # Python writes no 5000 digits
    return repr(value) if isinstance(value, float) else value.isoformat()
