"""The tables and figures of configs/README.md: ``python notebooks/figures/results.py RUNS [NAME ...]``.

RUNS holds a folder for each config, made by ``pwgf run NAME --out RUNS/NAME``; tables of those that are not there stay
as they are. A table is filled if its first heading is a command, with the numbers of the run's ``summary.md``:
"`pwgf run NAME`" names its tables of arms, "`pwgf run NAME`: QUANTITY" that of a quantity over the values of a varied
key, and those of arms. Rows and columns may change places, and may be left out; the prose stays as it is.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "configs" / "README.md"
FIGURES = Path(__file__).parent / "results"
COMMAND = re.compile(r"`pwgf run (\w+)`(?:: (.*))?")
WIDTH = 1600  # pixels of a figure at most


class Table(NamedTuple):
    """A table of Markdown: where it stands, its first line that is no row, and its rows of cells, headings first."""

    span: tuple[int, int]
    rule: str
    rows: list[list[str]]

    @property
    def command(self) -> tuple[str, str] | None:
        """The config and the quantity that its first heading names; no quantity is one of arms."""
        named = COMMAND.fullmatch(self.rows[0][0])
        return (named[1], named[2] or "") if named else None


def tables(text: str) -> Iterator[Table]:
    """All tables of a Markdown text."""
    for block in re.finditer(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        head, rule, *body = block[0].splitlines()
        cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in (head, *body)]
        yield Table(block.span(), rule, cells)


def printed(summary: str) -> dict[tuple[str, str, str], str]:
    """The cells of a ``summary.md`` by quantity (none in tables of arms), row and column, either way round."""
    cells = {}
    for table in tables(summary):
        head, *body = table.rows
        arms = head[0] in ("arm", "F at step", "start → end")
        quantity = "" if arms else re.sub(r", [^,]* =$", "", head[0])
        prefix = "F at step " if head[0] == "F at step" else ""
        for row in body:
            for column, cell in zip(head[1:], row[1:], strict=True):
                if prefix:  # the steps are numbers, on either side
                    step, arm = (row[0], column) if row[0].isdigit() else (column, row[0])
                    cells |= {(quantity, prefix + step, arm): cell, (quantity, arm, prefix + step): cell}
                else:
                    cells |= {(quantity, row[0], column): cell, (quantity, column, row[0]): cell}
    return cells


def found(cells: dict[tuple[str, str, str], str], quantity: str, row: str, column: str) -> str:
    """The cell of a quantity, or of the tables of arms where the quantity has none there.

    Raises:
        KeyError: if neither has it.
    """
    return cells[quantity, row, column] if (quantity, row, column) in cells else cells["", row, column]


def filled(table: Table, cells: dict[tuple[str, str, str], str]) -> str:
    """The table with the numbers of a run.

    Raises:
        KeyError: if the run has no such row, column or quantity.
    """
    _, quantity = table.command or ("", "")
    head, *body = table.rows
    rows = [[row[0], *(found(cells, quantity, row[0], column) for column in head[1:])] for row in body]
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], table.rule, *lines[1:]]) + "\n"


def fill(page: Path, runs: Path, chosen: list[str]) -> None:
    """Fill all tables of a page whose runs are there."""
    text = page.read_text(encoding="utf-8")
    for table in reversed(list(tables(text))):
        if table.command is None or (chosen and table.command[0] not in chosen):
            continue
        summary = runs / table.command[0] / "summary.md"
        if not summary.exists():
            continue
        try:
            new = filled(table, printed(summary.read_text(encoding="utf-8")))
        except KeyError as missing:
            raise SystemExit(f"{summary} has no {missing}: is it of the config as it is?") from None
        start, end = table.span
        text = text[:start] + new + text[end:]
    page.write_text(text, encoding="utf-8")


def shrink(figure: Path, to: Path) -> None:
    """A figure of a run as a small WebP."""
    from PIL import Image  # comes with matplotlib

    image = Image.open(figure).convert("RGB")
    if image.width > WIDTH:
        image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
    to.parent.mkdir(exist_ok=True)
    image.save(to, "WEBP", quality=80, method=6)


def main(runs: Path, *chosen: str) -> None:
    """Fill the tables, and draw the figures that the page shows."""
    fill(PAGE, runs, list(chosen))
    for name in re.findall(r"figures/results/(\w+)\.webp", PAGE.read_text(encoding="utf-8")):
        figure = runs / name / "figure.png"
        if figure.exists() and (not chosen or name in chosen):
            shrink(figure, FIGURES / f"{name}.webp")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
