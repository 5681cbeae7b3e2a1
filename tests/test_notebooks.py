"""Every notebook runs from top to bottom, and is stored without output and within reach of a laptop."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.slow

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))

# Sizes of the first cells, made small: a test asks whether a notebook works, not what it shows.
SMALL = {
    "any_network": {"= 128, 5, 4, 120": "= 16, 2, 2, 20"},
    "escape_with_optax": {"= 5, 400": "= 2, 200"},
    "first_escape": {"= 400, 5, 10, 400": "= 40, 5, 2, 300"},
    "linear_convergence": {"= 7, 10, 400": "= 7, 2, 400"},
    "mmd_flows": {"= 200, 5000, 1000": "= 20, 20, 10"},
    "rates": {"= 100, 60, 4000, 4": "= 10, 6, 4000, 2"},
    "second_order": {"= 100, 8, 3, 200, 5, 600": "= 20, 4, 2, 40, 2, 60"},
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    assert path.stem in SMALL, f"{path.name}: say in SMALL how to make it small"
    for full, small in SMALL[path.stem].items():
        cell = next(cell for cell in notebook.cells if full in cell.source)
        cell.source = cell.source.replace(full, small)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output
    )
    assert "smallest eigenvalue" in printed or "decided by" in printed
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))
