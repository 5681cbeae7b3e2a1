"""What a user can look up: configs, what they may name, and a template to begin with."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pwgf_jax.experiments.catalogue import (
    FLOWS,
    FUNCTIONALS,
    OBJECTIVES,
    SADDLES,
    SAMPLES,
    SOURCES,
    STARTS,
    TRANSFORMS,
)
from pwgf_jax.experiments.messages import ConfigError, literal, suggestion
from pwgf_jax.experiments.reading import OWN, STANDS_FOR, Entry, describe

__all__ = ["about", "overview", "shipped", "template"]

_TITLES: dict[str, tuple[str, Mapping[str, Entry]]] = {
    "Functionals": ("problem.functional", FUNCTIONALS | OWN),
    "Data sources": ("problem.data.source", SOURCES | OWN),
    "Target samples": ("problem.data.source", SAMPLES | OWN),
    "Starts": ("problem.start.kind", STARTS | OWN),
    "Flows": ("arms.NAME.flow", FLOWS),
    "Saddles of measures": ("problem.saddle", SADDLES),
    "Objectives of finitely many parameters": ("problem.objective", OBJECTIVES | OWN),
    "Methods for objectives": ("arms.NAME.transform", TRANSFORMS),
    **dict(STANDS_FOR.values()),
}


def shipped() -> dict[str, Path]:
    """The configs that come with the package, by name.

    Example:
        >>> "matrix_factorization" in shipped()
        True
    """
    inside = Path(__file__).parent / "configs"  # where a wheel has them; a checkout has them beside the package
    folder = inside if inside.is_dir() else Path(__file__).parents[2] / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def overview(configs: Mapping[str, Path]) -> str:
    """Configs, and everything that one can name, a line each.

    Example:
        >>> print(overview({}).splitlines()[1])
        Functionals (problem.functional)
    """
    lines = ["Configs (pwgf run NAME)"]
    for name, path in configs.items():
        text = path.read_text(encoding="utf-8").splitlines()
        first = next((line for line in text if not line.startswith("#:")), "")
        lines.append(f"  {name}: {first.lstrip('# ') if first.startswith('#') else '(no comment)'}")
    for title, (key, entries) in _TITLES.items():
        lines += [
            f"{title} ({key})",
            *(f"  {name}({each.signature}): {each.summary}" for name, each in entries.items()),
        ]
    return "\n".join([*lines, "`pwgf list NAME` says all there is to know of one."])


def about(name: str) -> str:
    """All there is to know of what a config can name: its keys, what they allow, and its documentation.

    Raises:
        ConfigError: if there is nothing of the name.

    Example:
        >>> print(about("wgf").splitlines()[0])
        wgf (Flows): arms.NAME.flow
    """
    found = [(title, key, entries[name]) for title, (key, entries) in _TITLES.items() if name in entries]
    if not found:
        near = suggestion(name, dict.fromkeys(each for _, entries in _TITLES.values() for each in entries))
        raise ConfigError(f"{name}: nothing has the name; {near}")
    return "\n\n".join(_about(name, *each) for each in found)


def _about(name: str, title: str, key: str, entry: Entry) -> str:
    text = re.sub(r":\w+:`~?\.?([^`]*)`", r"\1", inspect.getdoc(entry.make) or "").replace("``", "")
    lines = [f"{name} ({title}): {key}", "", "  Keys of its table:"]
    for each, (hint, default) in entry.fields.items():
        said = (
            "required"
            if default is ...
            else "may be left out"
            if default is None
            else f"{literal(default)} if not given"
        )
        lines.append(f"    {each}: {describe(hint)}; {said}")
    if not entry.fields:
        lines.append("    those that your code takes" if entry.own else "    none")
    given = ", ".join(f"{each} = {_example(hint)}" for each, (hint, default) in entry.fields.items() if default is ...)
    tag = f'{key.rpartition(".")[2]} = "{name}"'
    lines += ["", f"  For example {{ {tag}{', ' + given if given else ''} }}", ""]
    return "\n".join([*lines, *(f"  {line}".rstrip() for line in text.splitlines())])


def _example(hint: Any) -> str:
    """A value of a type, to show how it is written."""
    words = describe(hint)
    whole, number, text = ("a whole number", "10"), ("a number", "0.1"), ("a string", '"..."')
    return next((value for start, value in (whole, number, text) if words.startswith(start)), "...")


_TEMPLATE = """\
#:schema {schema}
# {name}: what it asks, in one line; `pwgf list` shows this line.
#
# Run it by `pwgf run {name}.toml`. `pwgf list` says what can stand at a key, `pwgf list NAME` all about one of them.
name = "{name}"
seed = 0 # the base seed, from which every seed's key is split
seeds = 10 # runs of every arm, with the same data, start and key in all arms
steps = 2000
record_every = 10
dtype = "float32" # or "float64"
# targets = [0.1] # the summary says when each arm came below these values
# snapshots = [0, 1000, 2000] # steps at which the particles of the first seed are kept, drawn and animated

[problem]
functional = "matrix_factorization" # or one of your own: "my_file.py:F"
particles = 100

[problem.options]
activation = "tanh"

[problem.data]
source = "teacher" # or your own: "data.csv", "data.npz", "my_file.py:draw"
points = 200
inputs = 10
outputs = 3

[problem.start]
kind = "antithetic" # or your own: "my_file.py:start"
scale = 0.3

# One table a method.
[arms.static]
flow = "wgf"
step_size = 0.5

[arms.hessian]
flow = "pwgf"
step_size = 0.5
eps = 0.02 # jump where the gradient norm is at most this,
eta_p = 0.02 # so far,
k_thres = 100 # and at most every so many steps,
f_thres = 0.0 # and stop where a jump did not bring this decrease

# To run every arm for several values of one key:
# [vary]
# key = "problem.particles"
# values = [50, 100, 200]
"""


def template(name: str) -> str:
    """A commented config to begin with.

    Example:
        >>> import tomllib
        >>> tomllib.loads(template("mine"))["name"]
        'mine'
    """
    return _TEMPLATE.format(name=name, schema="./pwgf.schema.json")
