"""A table of configs/README.md is what the command in its first heading prints, from the code as it is.

``notebooks/figures/results.py`` fills them from the folders of runs. Of some configs one arm is run here and compared.
"""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from notebooks.figures import results
from pwgf_jax.experiments import load
from pwgf_jax.experiments.report.tables import summarise
from pwgf_jax.experiments.run import run

CONFIGS = Path(__file__).parents[1] / "configs"
PAGE = (CONFIGS / "README.md").read_text(encoding="utf-8")
TABLES = list(results.tables(PAGE))
HELD = {
    "matrix_factorization": "hessian",  # in float64: in float32 rounding decides when a seed jumps
    "constrained": "escape",
    "dimer_network": "adam",
}
MEDIAN = 0.05  # relative: medians of ten seeds on another machine, whose last digits differ


def of_command(config):
    """The tables of a config."""
    return [table for table in TABLES if table.command and table.command[0] == config]


def median(cell):
    """The median that a cell begins with, or the cell."""
    number = re.match(r"-?\d+(\.\d+)?(e[+-]?\d+)?", cell)
    return float(number[0]) if number else cell


def test_every_config_is_in_the_first_table():
    named = {name for row in TABLES[0].rows[1:] for name in re.findall(r"`(\w+)`", row[0])}
    assert named == {path.stem for path in CONFIGS.glob("*.toml")}


def test_every_command_is_of_a_config_and_every_cell_is_filled():
    for table in TABLES[1:]:
        if table.command:
            assert (CONFIGS / f"{table.command[0]}.toml").exists()
            assert all(all(row) for row in table.rows), table.command


def test_every_figure_is_there_and_small():
    shown = set(re.findall(r"figures/results/(\w+)\.webp", PAGE))
    assert shown == {path.stem for path in results.FIGURES.iterdir()}
    assert sum(path.stat().st_size for path in results.FIGURES.iterdir()) < 2.5e6


def test_a_table_is_filled_from_a_summary():
    """Whichever way round it is printed, with or without a quantity."""
    summary = "| arm | F |\n| :-- | :-- |\n| a | 1 |\n\n| cost, key = | a |\n| :-- | :-- |\n| 2 | 3 |\n"
    page = "| `pwgf run x`: cost | F | 2 |\n| :-- | --: | --: |\n| a | | |\n"
    (table,) = results.tables(page)
    cells = results.printed(summary)
    assert results.filled(table, cells) == page.replace("| a | | |", "| a | 1 | 3 |")
    with pytest.raises(KeyError, match="'a', 'G'"):
        results.filled(next(results.tables(page.replace("F", "G"))), cells)


@pytest.fixture
def optimised():
    """A run of minutes is worth compiling as users do."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize(("config", "arm"), HELD.items())
def test_an_arm_is_what_the_command_prints(config, arm, tmp_path):
    folder = run(load(CONFIGS / f"{config}.toml").only(arm), tmp_path / "run")
    cells, compared = results.printed(summarise(folder)), 0
    for table in of_command(config):
        of = table.command[1] if table.command else ""
        head, *rows = table.rows
        for row in rows:
            for column, cell in zip(head[1:], row[1:], strict=True):
                if arm in {re.sub(r"-.*", "", name) for name in (row[0], column)} and "seconds" not in row[0] + column:
                    ours, theirs = median(cell), median(results.found(cells, of, row[0], column))
                    compared += 1
                    if isinstance(ours, str) or isinstance(theirs, str):
                        assert ours == theirs, (row[0], column)
                    else:
                        np.testing.assert_allclose(ours, theirs, rtol=MEDIAN, err_msg=f"{row[0]}, {column}")
    assert compared
