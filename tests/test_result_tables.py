"""A table of configs/README.md is what the command beside it prints, from the code as it is.

Its first heading is the command, its rows are arms, its other headings those of numbers in the run's ``summary.md``.
One row that runs in a minute is held here; the others are made in the same way by hand.
"""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from pwgf_jax.experiments import load
from pwgf_jax.experiments.report.tables import summarise
from pwgf_jax.experiments.run import run

ROOT = Path(__file__).parents[1]
HELD = {"matrix_factorization": "hessian"}  # in float64: in float32 rounding decides when a seed jumps
MEDIAN = 0.05  # relative: medians of ten seeds on another machine, whose last digits differ


def tables(text):
    """All tables of a Markdown text, each a list of rows of cells."""
    blocks = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    return [
        [
            [cell.strip() for cell in line.strip("|\n").split(" | ")]
            for line in block.splitlines()
            if set(line) - set("|:- ")
        ]
        for block in blocks
    ]


def of_command(config):
    """The table that a command stands beside."""
    wanted = f"`pwgf run configs/{config}.toml`"
    found = [
        rows for rows in tables((ROOT / "configs" / "README.md").read_text(encoding="utf-8")) if rows[0][0] == wanted
    ]
    assert len(found) == 1, f"{len(found)} tables of {wanted}"
    return found[0]


def median(cell):
    """The first number of a cell; what is no number as it is."""
    number = re.match(r"-?\d+(\.\d+)?(e[+-]?\d+)?", cell)
    return float(number[0]) if number else cell


def test_every_config_is_in_the_first_table():
    first = tables((ROOT / "configs" / "README.md").read_text(encoding="utf-8"))[0]
    named = {name for row in first[1:] for name in re.findall(r"`(\w+)`", row[0])}
    assert named == {path.stem for path in (ROOT / "configs").glob("*.toml")}


@pytest.mark.parametrize("config", HELD)
def test_every_heading_and_row_is_one_of_the_summary(config):
    rows = of_command(config)
    arms = re.findall(
        r"^\[arms\.(\w+)\]", (ROOT / "configs" / f"{config}.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert [row[0] for row in rows[1:]] == arms


@pytest.fixture
def optimised():
    """A run of minutes is worth compiling as users do."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize(("config", "held"), HELD.items())
def test_the_row_is_what_the_command_prints(config, held, tmp_path):
    folder = run(load(ROOT / "configs" / f"{config}.toml").only(held), tmp_path / "run")
    printed = {}
    for rows in tables(summarise(folder)):
        for arm, *cells in rows[1:]:
            for heading, cell in zip(rows[0][1:], cells, strict=True):
                printed |= {(arm, heading): cell, (heading, arm): cell}  # whichever of them has the columns
    header, *rows = of_command(config)
    for arm, *cells in (row for row in rows if row[0] == held):
        for heading, cell in zip(header[1:], cells, strict=True):
            ours, theirs = median(cell), median(printed[arm, heading])
            if isinstance(ours, str):
                assert cell == printed[arm, heading], (arm, heading)
            else:
                np.testing.assert_allclose(ours, theirs, rtol=MEDIAN, err_msg=f"{arm}, {heading}")
