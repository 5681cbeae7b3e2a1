"""One key of a config that takes several values in turn, and what the arms are called then."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, model_validator
from pydantic_core import PydanticCustomError

from pwgf_jax.experiments.messages import show
from pwgf_jax.experiments.reading import Table

__all__ = ["Name", "Vary"]

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_TURN = re.compile(r"[^/\\\x00-\x1f]{1,100}")
_FILES = "use letters, digits, - and _, at most 100, for files are named after it."


def _names_files(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise PydanticCustomError("given", "{text}", {"text": f"given {show(name)}; {_FILES}"})
    return name


Name: TypeAlias = Annotated[str, AfterValidator(_names_files)]
"""What files can be named after."""


class Vary(Table):
    """One key of a config and the values that it takes in turn.

    Args:
        key: dotted, below ``problem`` or an arm, or ``problem`` itself; ``arms.*`` is every arm.
        values: what it becomes, a list, or whole tables by name; every arm that it concerns is run once for each.

    Raises:
        ValueError: if the key is elsewhere, or the values are none, equal or not plain.

    Example:
        >>> Vary(key="problem.particles", values=[50, 100]).label("hessian", 50)
        'hessian-50'
    """

    key: str
    values: list[Any] | dict[str, Any]

    @model_validator(mode="after")
    def _possible(self) -> Vary:
        if not re.fullmatch(r"problem(\..+)?|arms\.[^.]+\..+", self.key):
            raise ValueError(f'key: given "{self.key}"; give a key below problem or below an arm.')
        if isinstance(self.values, dict):
            if not self.values or not all(isinstance(value, dict) for value in self.values.values()):
                raise ValueError(f"values: given {show(self.values)}; give a list of values, or tables by name.")
            for name in self.values:
                if not _TURN.fullmatch(name):
                    raise ValueError(
                        f"values: given {show(name)}; give one line without slashes, of at most 100 characters, "
                        "for figures are named after it."
                    )
            return self
        for value in self.values:
            if not isinstance(value, bool | int | float | str):
                raise ValueError(f"values: given {show(value)}; give numbers, strings or booleans.")
        if not self.values or len(set(self.values)) < len(self.values):
            raise ValueError(f"values: given {show(self.values)}; give at least one, all different.")
        return self

    def concerns(self, arm: str) -> bool:
        """Whether the runs of an arm depend on the value."""
        return self.key.split(".")[0] == "problem" or self.key.split(".")[1] in (arm, "*")

    def keys(self, arms: Iterable[str]) -> list[str]:
        """What the key stands for among these arms."""
        return [self.key.replace("*", arm, 1) for arm in arms] if self.key.startswith("arms.*.") else [self.key]

    def turns(self) -> list[Any]:
        """What labels and tables call each value: the name of a table, of a file without its folder, or the value."""
        whole = lambda value: isinstance(value, str) and PurePath(value).is_absolute()  # noqa: E731
        return [PurePath(value).name if whole(value) else value for value in self.values]

    def label(self, arm: str, turn: Any) -> str:
        """The name of an arm in a turn."""
        return f"{arm}-{re.sub('[^A-Za-z0-9_.-]', '_', str(turn))}"

    def check_labels(self, arms: Iterable[str]) -> None:
        """Refuse two arms of one name in all turns, or one that is too long for the name of a file."""
        first: dict[str, str] = {}
        for arm in arms:
            for turn in self.turns() if self.concerns(arm) else [None]:
                label, said = (arm, f"arm {arm}") if turn is None else (self.label(arm, turn), f"{arm} at {turn}")
                if label in first:
                    raise ValueError(
                        f'vary.values: {first[label]} and {said} would both be named "{label}"; rename one.'
                    )
                if not _NAME.fullmatch(label):
                    raise ValueError(f"vary.values: given {show(label)}; {_FILES}")
                first[label] = said
