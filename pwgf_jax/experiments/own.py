"""What a config names of the user's own: Python files, ``file.py:NAME``, and files of data."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

from pwgf_jax.experiments.messages import Place, show, suggestion

__all__ = ["file_of", "files", "imported", "imports", "located"]


def file_of(value: Any) -> str:
    """The file of the user's own that a value names; empty where it names none.

    Example:
        >>> file_of("energy.py:F"), file_of("data.csv"), file_of("icfl")
        ('energy.py', 'data.csv', '')
    """
    if not isinstance(value, str):
        return ""
    file, _, name = value.rpartition(":")
    return file if file.endswith(".py") and name else value if value.endswith((".npz", ".csv")) else ""


def files(value: Any) -> Iterator[Path]:
    """The files that any value of a document names, in its order.

    Example:
        >>> [str(path) for path in files({"problem": {"functional": "a.py:F", "data": {"source": "b.csv"}}})]
        ['a.py', 'b.csv']
    """
    for each in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from files(each)
    if file := file_of(value):
        yield Path(file)


def located(value: Any, place: Place) -> Any:
    """The same document with whole paths to these files, which it may give relative to its own folder.

    Example:
        >>> located({"functional": "energy.py:F"}, Place("/home/me/a.toml"))
        {'functional': '/home/me/energy.py:F'}
    """
    if isinstance(value, Mapping):
        return {name: located(each, place / name) for name, each in value.items()}
    if isinstance(value, list):
        return [located(each, place) for each in value]
    if not (file := file_of(value)):
        return value
    if "\0" in file:
        raise place.error(f"given {show(value)}; no file has a zero byte in its name.")
    return str((Path(place.file).parent / file).resolve()) + value[len(file) :]


def imports(module: Path) -> list[Path]:
    """The Python files below a module's folder that it imports, and that these import; nothing is run.

    Example:
        >>> imports(Path("no/such.py"))
        []
    """
    finder = ModuleFinder([str(module.parent)])
    try:
        finder.run_script(str(module))
    except (OSError, SyntaxError, ValueError):  # the file itself counts: once it is put right the hash has changed
        return []
    found = [getattr(each, "__file__", None) for each in finder.modules.values()]
    return [Path(file) for file in found if file and Path(file) != module]


def imported(reference: str, place: Place) -> Callable[..., Any]:
    """The function or class ``path/to/file.py:NAME``; its file may import its neighbours, as they are now.

    Raises:
        ConfigError: if there is no such file, it does not import, or it has nothing callable of the name.

    Example:
        >>> imported("no_such.py:F", Place("a.toml", "problem.functional"))
        Traceback (most recent call last):
        ...
        pwgf_jax.experiments.messages.ConfigError: a.toml: problem.functional: no_such.py: there is no such file.
    """
    file, _, name = reference.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise place.error(f"{file}: there is no such file.")
    spec = importlib.util.spec_from_file_location(f"_pwgf_own_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise place.error(f"{file}: not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    importlib.invalidate_caches()
    before = set(sys.modules)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise place.error(f"{file} does not import: {type(error).__name__}: {error}.") from error
    finally:
        sys.path.remove(str(path.parent))
        # Kept, a neighbour would serve the next run as it is now, or a file of another folder that imports its name.
        for each in set(sys.modules) - before:
            if (getattr(sys.modules[each], "__file__", None) or "").startswith(f"{path.parent}{os.sep}"):
                del sys.modules[each]
    if not callable(getattr(module, name, None)):
        offered = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise place.error(f'{file} has no function "{name}"; {suggestion(name, offered)}')
    return getattr(module, name)
