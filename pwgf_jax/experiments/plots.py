"""Figures of runs: mean and standard deviation over the seeds, against steps."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pwgf_jax.experiments.folder import Arm
from pwgf_jax.experiments.reading import ConfigError

__all__ = ["band", "draw"]

# Okabe and Ito's colours, which all kinds of colour vision tell apart, without the yellow that white paper swallows;
# in an order of falling contrast of lightness, and with a line style each, so that they also work in grey.
_COLOURS = ("#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
_LINES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
_PANELS = {
    "value": r"objective $F(\mu_k)$",
    "gradient_norm": r"gradient norm $\|\nabla_{\!\mu} F(\mu_k)\|$",
    "test_loss": "test loss",
    "test_accuracy": "test accuracy",
}
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


def band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over the seeds, and the mean less and plus a standard deviation, cut where no seed has been.

    The cut keeps the band of a positive quantity positive, as a logarithmic axis needs.

    Example:
        >>> mean, low, high = band(np.array([[1.0], [1.0], [7.0]]))
        >>> float(mean[0]), float(low[0]), round(float(high[0]), 2)
        (3.0, 1.0, 5.83)
    """
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    return mean, np.maximum(mean - deviation, values.min(axis=0)), mean + deviation


def draw(arms: Mapping[str, Arm], path: Path) -> list[Path]:
    """Draw a figure of several arms, as PNG and as PDF.

    Args:
        arms: by label.
        path: where to; the suffix is replaced.

    Returns:
        The files written.

    Raises:
        ConfigError: if matplotlib is not installed.

    Example:
        >>> import tempfile
        >>> values = np.array([[4.0, 1.0], [4.0, 3.0]])
        >>> records = {"step": np.array([0, 9]), "value": values, "gradient_norm": values, "perturbed": values > 3}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [file.name for file in draw({"static": Arm(records, np.array([2, 2]), {})}, Path(folder) / "figure")]
        ['figure.png', 'figure.pdf']
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("figures need matplotlib: pip install 'pwgf_jax[viz]', then `pwgf plot`.") from error
    logging.getLogger("fontTools").setLevel(logging.ERROR)  # it remarks on the time stamps of fonts
    shown = [name for name in _PANELS if any(name in arm.records for arm in arms.values())]
    if "test_accuracy" in shown:
        shown.remove("test_loss")
    jumps = {label: arm for label, arm in arms.items() if arm.records["perturbed"].any()}
    files = [path.with_suffix(".png"), path.with_suffix(".pdf")]
    with matplotlib.rc_context(_STYLE):
        strip = 0.12 + 0.09 * len(jumps)
        figure = Figure(figsize=(3.4 * len(shown), 2.5 + strip), layout="constrained")
        axes = figure.subplots(
            2 if jumps else 1,
            len(shown),
            squeeze=False,
            sharex=True,
            height_ratios=[2.5, strip] if jumps else [1],
        )
        if engine := figure.get_layout_engine():
            engine.set(hspace=0, h_pad=0.02)  # pyright: ignore[reportCallIssue]
        styles = {
            label: {"color": _COLOURS[i % len(_COLOURS)], "linestyle": _LINES[i % len(_LINES)]}
            for i, label in enumerate(arms)
        }
        for column, name in enumerate(shown):
            _panel(axes[0, column], name, arms, styles)
            if jumps:
                _strip(axes[1, column], jumps, styles, labelled=column == 0)
            axes[-1, column].set_xlabel("step $k$")
        # Where curves fall, the upper right is free.
        axes[0, 0].legend(frameon=False, handlelength=2.6, loc="best")
        for file in files:
            figure.savefig(file, dpi=300)
    return files


def _panel(ax: Any, name: str, arms: Mapping[str, Arm], styles: Mapping[str, Any]) -> None:
    curves = []
    for label, arm in arms.items():
        if name not in arm.records or not arm.finite.any():
            continue
        values, step = arm.of(name), arm.records["step"]
        mean, low, high = band(values)
        missing = int(arm.finite.size - arm.finite.sum())
        said = f"{label} ({arm.finite.sum()} of {arm.finite.size} seeds)" if missing else label
        ax.plot(step, mean, label=said, **styles[label])
        if len(values) > 1:
            ax.fill_between(step, low, high, color=styles[label]["color"], alpha=0.15, linewidth=0)
        curves.append(mean)
    ax.set_ylabel(_PANELS[name])
    ax.margins(x=0.01)
    every = np.concatenate(curves) if curves else np.ones(1)
    if name != "test_accuracy" and every.min() > 0 and every.max() > 8 * every.min():
        ax.set_yscale("log")


def _strip(ax: Any, jumps: Mapping[str, Arm], styles: Mapping[str, Any], *, labelled: bool) -> None:
    """A row of ticks per arm where seeds jumped; the darker, the more of them."""
    for row, (label, arm) in enumerate(jumps.items()):
        share = arm.records["perturbed"].mean(axis=0)
        at = np.flatnonzero(share)
        ax.scatter(
            arm.records["step"][at],
            np.full(at.size, -row),
            marker="|",
            s=28,
            linewidths=1,
            color=styles[label]["color"],
            alpha=np.clip(0.25 + 0.75 * share[at], 0, 1),
        )
    ax.set_ylim(-len(jumps) + 0.4, 0.6)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    if labelled:
        ax.set_ylabel("jumps", rotation=0, ha="right", va="center")
