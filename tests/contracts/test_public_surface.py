"""What every module of the package owes its readers and its neighbours.

Modules are read as syntax trees, and imported only to ask for documentation; a module that is not there yet
breaks nothing, and a new one is held to the same rules without being listed.
"""

import ast
import doctest
import enum
import importlib
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import is_typeddict

import pytest

PACKAGE = "pwgf_jax"
_spec = find_spec(PACKAGE)
assert _spec is not None
HOME = Path(next(iter(_spec.submodule_search_locations or [])))

MATHEMATICS = {
    "trees",
    "arguments",
    "measures",
    "forms",
    "calculus",
    "objective",
    "contract",
    "empirical",
    "krylov",
    "tridiagonal",
    "gram",
    "perturbation",
    "symmetries",
    "spectrum",
    "density",
    "certificate",
}
BELOW_EXPERIMENTS = {
    *MATHEMATICS,
    "theory",
    "kernels",
    "functionals",
    "problems",
    "transforms",
    "flows",
    "solve",
    "compatibility",
}
# Room (a module or a package below pwgf_jax) -> the rooms it may import: the arrows of the design. Private
# rooms (pwgf_jax._name) are for what has no room of its own: they know measures only, and everyone may use them.
MAY_IMPORT: dict[str, set[str]] = {
    "compatibility": set(),
    "trees": set(),
    "arguments": {"trees"},
    "measures": {"trees"},
    "memory": {"measures"},
    "kernels": {"trees", "arguments", "measures", "memory"},
    "forms": {"measures"},
    "functionals": {"trees", "arguments", "measures", "memory", "forms", "kernels"},
    "problems": {"trees", "arguments", "measures", "kernels", "functionals", "calculus", "krylov", "tridiagonal"},
    "calculus": {"trees", "arguments", "measures", "memory", "forms"},
    "objective": {"trees", "arguments", "measures", "memory", "calculus"},
    "contract": {"trees", "arguments", "measures", "forms", "calculus"},
    "tridiagonal": {"trees", "measures", "calculus"},
    "krylov": {"trees", "arguments", "objective", "measures", "calculus", "tridiagonal"},
    "gram": {"measures", "forms", "krylov", "tridiagonal"},
    "empirical": {"trees", "arguments", "objective", "measures", "calculus", "contract"},
    "symmetries": {"trees", "objective", "measures", "calculus", "empirical"},
    "spectrum": {
        "trees",
        "arguments",
        "objective",
        "measures",
        "calculus",
        "empirical",
        "krylov",
        "tridiagonal",
        "symmetries",
    },
    "density": {
        "trees",
        "arguments",
        "objective",
        "measures",
        "calculus",
        "empirical",
        "krylov",
        "tridiagonal",
        "spectrum",
    },
    "perturbation": {"trees", "arguments", "objective", "measures", "kernels", "calculus", "krylov", "tridiagonal"},
    "certificate": {
        "trees",
        "arguments",
        "objective",
        "measures",
        "calculus",
        "empirical",
        "krylov",
        "tridiagonal",
        "symmetries",
        "spectrum",
    },
    "theory": {"trees", "arguments", "objective", "measures", "calculus", "krylov", "tridiagonal", "perturbation"},
    "transforms": {*MATHEMATICS, "kernels"},
    "flows": {*MATHEMATICS, "kernels", "functionals", "transforms"},
    "solve": {*MATHEMATICS, "kernels", "transforms", "flows"},
    "experiments": {*BELOW_EXPERIMENTS, ""},
    "": BELOW_EXPERIMENTS,  # pwgf_jax/__init__.py: the library, which works without the extras of experiments
}

BANNED_BELOW_EXPERIMENTS = {
    "print": "printing belongs to experiments",
    "jax.debug.print": "printing belongs to experiments",
    "jax.config.update": "configuring jax belongs to the user",
    "jax.random.key": "keys are arguments: seeds belong to experiments",
    "jax.random.PRNGKey": "keys are typed, and arguments",
    "jax.numpy.linalg.inv": "solve instead of inverting",
    "matplotlib": "plotting belongs to experiments",
    "numpy.random": "randomness comes from a jax key",
    "random": "randomness comes from a jax key",
}


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def room_of(name: str) -> str:
    """The room of a dotted name below pwgf_jax; pwgf_jax itself is ""."""
    return name.split(".")[1] if "." in name else ""


@dataclass(frozen=True)
class Module:
    """A source file of the package, and what can be said about it without importing it."""

    path: Path

    @cached_property
    def name(self) -> str:
        parts = self.path.relative_to(HOME).with_suffix("").parts
        return ".".join([PACKAGE, *parts[: -1 if parts[-1] == "__init__" else None]])

    @property
    def public(self) -> bool:
        return not any(part.startswith("_") for part in self.name.split("."))

    @property
    def room(self) -> str:
        return room_of(self.name)

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(encoding="utf-8"), str(self.path))

    @cached_property
    def imports(self) -> list[tuple[ast.stmt, str, str]]:
        """(statement, the name it binds, the dotted name of the thing itself), at any depth."""
        found: list[tuple[ast.stmt, str, str]] = []
        package = self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    # `import a.b` binds a; `import a.b as c` binds a.b
                    found.append((node, alias.asname or alias.name.split(".")[0], alias.name))
            elif isinstance(node, ast.ImportFrom):
                source = node.module or ""
                if node.level:
                    base = package.split(".")[: len(package.split(".")) - node.level + 1]
                    source = ".".join([*base, source] if source else base)
                found.extend((node, a.asname or a.name, f"{source}.{a.name}") for a in node.names)
        return found

    @cached_property
    def used(self) -> list[tuple[int, str]]:
        """(line, dotted name) of all that is used, aliases resolved: with jr imported, jr.key is jax.random.key."""
        bound = {}
        for node, name, thing in self.imports:
            whole = isinstance(node, ast.ImportFrom) or name != thing.split(".")[0]
            bound[name] = thing if whole else name
        found = [(node.lineno, thing) for node, _, thing in self.imports]
        for node in ast.walk(self.tree):
            attributes: list[str] = []
            inner = node
            while isinstance(inner, ast.Attribute):
                attributes.insert(0, inner.attr)
                inner = inner.value
            # A bare name means what was imported under it, or a builtin; never a local spelt like it.
            if isinstance(inner, ast.Name) and (inner.id in bound or inner.id == "print"):
                found.append((inner.lineno, ".".join([bound.get(inner.id, inner.id), *attributes])))
        return found

    def where(self, line: int) -> str:
        return f"{self.path.relative_to(HOME.parent)}:{line}"


MODULES = [Module(path) for path in sorted(HOME.rglob("*.py"))]
PUBLIC = [module for module in MODULES if module.public]
LIBRARY = [module for module in MODULES if module.room != "experiments"]
every_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
public_module = pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.name)
library_module = pytest.mark.parametrize("module", LIBRARY, ids=lambda module: module.name)


# Documentation


@public_module
def test_a_public_module_says_what_it_is_and_what_it_offers(module):
    imported = importlib.import_module(module.name)
    assert (imported.__doc__ or "").strip(), f"{module.name} has no docstring"
    assert hasattr(imported, "__all__"), f"{module.name} has no __all__"
    assert len(set(imported.__all__)) == len(imported.__all__), f"{module.name}: a name twice in __all__"
    missing = [name for name in imported.__all__ if not hasattr(imported, name)]
    assert not missing, f"{module.name}.__all__ promises {missing}, which it does not have"


def needs_example(thing: object) -> bool:
    """Functions and classes, but not the records, interfaces and errors that users receive, not make."""
    if not inspect.isclass(thing):
        return True
    received = (enum.Enum, BaseException)
    named_tuple = issubclass(thing, tuple) and hasattr(thing, "_fields")
    protocol = bool(getattr(thing, "_is_protocol", False))
    return not (issubclass(thing, received) or named_tuple or protocol or is_typeddict(thing))


def defined_here(thing: object) -> bool:
    """Not a module, a constant, or an alias of a type: something of ours with a name of its own."""
    ours = within(getattr(thing, "__module__", None) or "", PACKAGE)
    return ours and hasattr(thing, "__qualname__") and (callable(thing) or inspect.isclass(thing))


def examples_that_run(module_name: str) -> set[str]:
    """The dotted names in a module whose examples doctest finds, and runs."""
    return {
        test.name
        for test in doctest.DocTestFinder().find(sys.modules[module_name])
        if any(not example.options.get(doctest.SKIP) for example in test.examples)
    }


@public_module
def test_every_exported_symbol_has_a_docstring_with_an_example_that_runs(module):
    imported = importlib.import_module(module.name)
    lacking = []
    # Of experiments users see the command, and what the room itself offers; its modules know each other.
    seen = imported if module.room != "experiments" else importlib.import_module("pwgf_jax.experiments")
    for name in getattr(imported, "__all__", ()):
        thing = getattr(imported, name)
        if not defined_here(thing):
            continue
        doc = thing.__doc__ or ""
        if not doc.strip() or doc.startswith(f"{name}("):  # what dataclass and NamedTuple write by themselves
            lacking.append(f"{name}: docstring")
        elif needs_example(thing):
            whole = f"{thing.__module__}.{thing.__qualname__}"
            if name in seen.__all__ and whole not in examples_that_run(thing.__module__):
                lacking.append(f"{name}: example (>>>) in its docstring")
        else:
            fields = getattr(thing, "_fields", ())
            lacking.extend(f"{name}: what its field {field} is" for field in fields if field not in doc)
    assert not lacking, f"{module.name} lacks, for {'; for '.join(lacking)}"


def test_no_module_is_shadowed_by_what_is_in_it():
    """``import pwgf_jax.a.b as c`` is the module b, and never a function of that name."""
    for module in PUBLIC:
        parent, _, name = module.name.rpartition(".")
        if parent:
            assert getattr(importlib.import_module(parent), name) is importlib.import_module(module.name), module.name


def test_types_are_shipped():
    assert (HOME / "py.typed").is_file()


# Structure


@every_module
def test_every_room_has_its_place_in_the_design(module):
    room = module.room
    assert room in MAY_IMPORT or room.startswith("_"), (
        f"{module.name}: a new room; say in MAY_IMPORT of {Path(__file__).name} what it may import"
    )


def rooms_imported(module: Module) -> Iterator[tuple[int, str]]:
    rooms = {each.room for each in MODULES} - {""}
    for node, _, thing in module.imports:
        if within(thing, PACKAGE):
            room = room_of(thing)
            yield node.lineno, room if room in rooms else ""  # a symbol of pwgf_jax itself


@every_module
def test_imports_point_one_way(module):
    own = module.room
    allowed = {"measures"} if own.startswith("_") else MAY_IMPORT.get(own, set())
    wrong = [
        f"{module.where(line)} imports {f'{PACKAGE}.{room}' if room else PACKAGE}"
        for line, room in rooms_imported(module)
        if room != own and room not in allowed and not room.startswith("_")
    ]
    assert not wrong, f"{'; '.join(wrong)}; {own or PACKAGE} may import {sorted(filter(None, allowed)) or 'no room'}"


@library_module
def test_nothing_below_experiments_does_what_belongs_to_users(module):
    wrong = {
        f"{module.where(line)} uses {name}: {reason}"
        for line, name in module.used
        for banned, reason in BANNED_BELOW_EXPERIMENTS.items()
        if within(name, banned)
    }
    assert not wrong, "; ".join(sorted(wrong))


@every_module
def test_users_errors_are_exceptions_and_not_assertions(module):
    lines = [module.where(node.lineno) for node in ast.walk(module.tree) if isinstance(node, ast.Assert)]
    assert not lines, f"assert is stripped by python -O; raise instead: {lines}"


@every_module
def test_no_key_has_a_default(module):
    wrong = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            positional = [*node.args.posonlyargs, *node.args.args]
            with_default = positional[len(positional) - len(node.args.defaults) :]
            keyword_only = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            with_default += [argument for argument, default in keyword_only if default is not None]
            wrong += [module.where(a.lineno) for a in with_default if a.arg == "key"]
    assert not wrong, f"a default key makes runs that look random and are not: {wrong}"


# The rules themselves


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import numpy as np\nnp.random.normal()", "numpy.random"),
        ("from numpy import random as r\nr.normal()", "numpy.random"),
        ("import jax.random as jr\njr.key(0)", "jax.random.key"),
        ("import jax\njax.random.key(0)", "jax.random.key"),
        ("from jax.random import PRNGKey\nPRNGKey(0)", "jax.random.PRNGKey"),
        ("import jax\njax.config.update('jax_enable_x64', True)", "jax.config.update"),
        ("from jax import config as c\nc.update('jax_enable_x64', True)", "jax.config.update"),
        ("def f():\n    import matplotlib.pyplot as plt", "matplotlib"),
        ("print(1)", "print"),
    ],
)
def test_banned_names_are_seen_through_aliases(tmp_path, monkeypatch, source, name):
    monkeypatch.setattr(sys.modules[__name__], "HOME", tmp_path)
    path = tmp_path / "measures.py"
    path.write_text(source, encoding="utf-8")
    with pytest.raises(AssertionError, match=name.replace(".", r"\.")):
        test_nothing_below_experiments_does_what_belongs_to_users(Module(path))


@pytest.mark.parametrize(
    "source",
    [
        "from pwgf_jax.flows import x",
        "from ..flows import x",
        "import pwgf_jax.flows.pwgf",
        "from pwgf_jax import wgf",
    ],
)
def test_an_import_against_the_arrows_is_seen(tmp_path, monkeypatch, source):
    (tmp_path / "transforms").mkdir()
    path, flows = tmp_path / "transforms" / "noise.py", tmp_path / "flows.py"
    path.write_text(source, encoding="utf-8")
    here = sys.modules[__name__]
    monkeypatch.setattr(here, "HOME", tmp_path)
    monkeypatch.setattr(here, "MODULES", [Module(path), Module(flows)])
    with pytest.raises(AssertionError, match="imports pwgf_jax"):
        test_imports_point_one_way(Module(path))
