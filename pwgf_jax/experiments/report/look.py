"""What all figures share: colours and lines, the legend beside the data, and the files they are written to."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pwgf_jax.experiments.messages import ConfigError
from pwgf_jax.solve.files import replacing

__all__ = ["beside", "canvas", "drawing", "style"]

# Okabe and Ito's colours, which all kinds of colour vision tell apart, without the yellow that white paper swallows;
# in an order of falling contrast of lightness, and with a line style each, so that they also work in grey.
_COLOURS = ("#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
_LINES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
_STYLE: Any = {
    "font.size": 8,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "mathtext.fontset": "cm",
    "pdf.fonttype": 42,  # letters stay text in the PDF
}


def style(i: int) -> dict[str, Any]:
    """Colour and line of the i-th curve of a figure.

    Example:
        >>> style(0)
        {'color': '#000000', 'linestyle': '-'}
    """
    return {"color": _COLOURS[i % len(_COLOURS)], "linestyle": _LINES[i % len(_LINES)]}


@contextmanager
def drawing(size: tuple[float, float]) -> Iterator[Any]:
    """A figure in the style of all.

    Raises:
        ConfigError: if matplotlib is not installed.

    Example:
        >>> with drawing((1.0, 2.0)) as figure:
        ...     figure.get_size_inches().tolist()
        [1.0, 2.0]
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("figures need matplotlib: pip install 'pwgf_jax[viz]', then `pwgf plot`.") from error
    logging.getLogger("fontTools").setLevel(logging.ERROR)  # it remarks on the time stamps of fonts
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=size, layout="constrained")


@contextmanager
def canvas(path: Path, size: tuple[float, float]) -> Iterator[tuple[Any, list[Path]]]:
    """A figure in the style of all, written as PNG and as PDF in the end.

    Args:
        path: where to, without a suffix.
        size: in inches.

    Yields:
        The figure, and the files it will be in.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    files = [path.with_name(f"{path.name}.{kind}") for kind in ("png", "pdf")]
    with drawing(size) as figure:
        yield figure, files
        for file in files:
            with replacing(file) as new:
                figure.savefig(new, dpi=300, format=file.suffix[1:])


def beside(figure: Any, ax: Any) -> None:
    """The legend of a panel to the right of all panels, which keep their size: it never hides a curve."""
    lines, names = ax.get_legend_handles_labels()
    if names:
        width, height = figure.get_size_inches()
        size = min(8, 45 * height / len(names))
        figure.set_size_inches(width + (4 + 0.55 * max(map(len, names))) * size / 72, height)
        figure.legend(lines, names, frameon=False, handlelength=2.6, fontsize=size, loc="outside right center")
