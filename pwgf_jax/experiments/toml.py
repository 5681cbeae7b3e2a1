"""Writing TOML, which the standard library only reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["literal", "write"]


def write(document: Mapping[str, Any]) -> str:
    """A document as TOML text; ``tomllib`` reads the same back.

    Args:
        document: strings, booleans, numbers, lists of these, and tables of all.

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
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    lines = [f"{_key(key)} = {literal(value)}" for key, value in plain.items()]
    if prefix and (lines or not table):
        lines = ["", f"[{prefix}]", *lines]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += _lines(value, f"{prefix}.{_key(key)}" if prefix else _key(key))
    return lines


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)


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
    return repr(value)
