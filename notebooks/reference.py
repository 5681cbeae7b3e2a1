"""Pages of the reference, one for each public room, and a build that fails where a public name is on none."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

import pwgf_jax

FOLDER = Path(__file__).parent / "reference"

# The order in which somebody looks things up; what a room holds says its module.
ROOMS = {
    "pwgf_jax": "The whole at a glance",
    "measures": "Measures",
    "functionals": "Functionals",
    "kernels": "Kernels",
    "forms": "Structures of functionals",
    "calculus": "Gradients and Hessians",
    "krylov": "Krylov methods",
    "perturbation": "Noise",
    "flows": "Flows",
    "solve": "Runs and sweeps",
    "certificate": "Certificates",
    "symmetries": "Symmetries",
    "spectrum": "Smallest eigenvalues",
    "density": "Spectra",
    "theory": "Constants of the theorems",
    "transforms": "Optax transformations",
    "problems": "Test problems",
    "objective": "Points and objectives",
    "contract": "The contract of functionals",
    "experiments": "Experiments",
    "empirical": "Averages over batches",
    "gram": "Functions of a Hessian of low rank",
    "tridiagonal": "The Lanczos recurrence",
    "memory": "Large sums",
    "trees": "Arithmetic of pytrees",
    "arguments": "Checks of arguments",
    "compatibility": "Versions of jax",
}


def module_of(room: str) -> Any:
    """The module of a room."""
    return importlib.import_module("pwgf_jax" if room == "pwgf_jax" else f"pwgf_jax.{room}")


def write_pages(app: Sphinx) -> None:
    """A page for each room: what its module says, and every name of its ``__all__``."""
    del app
    FOLDER.mkdir(exist_ok=True)
    for room, title in ROOMS.items():
        module = module_of(room)
        name = module.__name__
        if room == "pwgf_jax":
            body = "\n".join(f"* {{py:obj}}`{each} <{origin(module, each)}>`" for each in module.__all__)
        else:
            known = [
                each for each in module.__all__ if inspect.isroutine(it := getattr(module, each)) or inspect.isclass(it)
            ]
            lines = [f".. automodule:: {name}", f"   :members: {', '.join(known)}", ""]
            lines += [f".. autodata:: {name}.{each}\n   :no-value:\n" for each in module.__all__ if each not in known]
            body = "\n".join(["```{eval-rst}", *lines, "```"])
        _write(FOLDER / f"{room}.md", f"# {title}\n\n{body}\n")
    listed = "\n".join(f"reference/{room}" for room in ROOMS)
    _write(FOLDER.parent / "reference.md", REFERENCE.format(listed=listed))


REFERENCE = """# Reference

Every public name, with its mathematics, shapes, units, errors, source and an example that is tested.

```{{toctree}}
:maxdepth: 1

{listed}
```
"""


def _write(path: Path, text: str) -> None:
    """Only what has changed, or everything would be built again."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def origin(module: Any, name: str) -> str:
    """The room that a name of the package comes from, and so its place in the reference."""
    thing = getattr(module, name)
    for room in list(ROOMS)[1:]:
        home = module_of(room)
        if home is thing:
            return home.__name__
        if name in getattr(home, "__all__", ()) and getattr(home, name) is thing:
            return f"{home.__name__}.{name}"
    return f"{module.__name__}.{name}"


def public() -> set[str]:
    """Every name of an ``__all__``, by its room."""
    rooms = [module_of(each.name) for each in pkgutil.iter_modules(pwgf_jax.__path__)]
    found = {f"{room.__name__}.{name}" for room in rooms for name in room.__all__}
    return found | {origin(pwgf_jax, name) for name in pwgf_jax.__all__}


def check_pages(app: Sphinx, env: Any) -> None:
    """Fail where a public name is on no page."""
    del app
    known = set(env.get_domain("py").objects) | {module_of(room).__name__ for room in ROOMS}
    if missing := sorted(public() - known):
        raise ExtensionError(
            f"public names without a page: {', '.join(missing)}; add their rooms to ROOMS in {__file__}"
        )


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", write_pages)
    app.connect("env-check-consistency", check_pages)
    return {"parallel_read_safe": True}
