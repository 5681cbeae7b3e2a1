"""Pictures of particles at the steps that a run kept: side by side, and as an animation."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pwgf_jax.experiments.report.look import canvas, drawing, style
from pwgf_jax.solve.files import replacing

__all__ = ["animate", "draw_snapshots"]

_WIDE = 4  # panels of an animation side by side
_SECONDS = 6  # that an animation lasts, if its pictures are many; if few, they come two a second


class _View(NamedTuple):
    """The plane that particles are drawn in, and the frame in it."""

    centre: np.ndarray
    axes: np.ndarray  # (d, 2)
    low: np.ndarray
    high: np.ndarray

    def __call__(self, points: np.ndarray) -> np.ndarray:
        return (points - self.centre) @ self.axes

    def dress(self, ax: Any) -> None:
        ax.set(xlim=(self.low[0], self.high[0]), ylim=(self.low[1], self.high[1]))
        ax.set_aspect("equal")
        ax.tick_params(labelsize=6, length=2)

    def label(self, figure: Any) -> None:
        """Say so where the axes are not the particles' own."""
        if len(self.axes) > 2:
            figure.supxlabel("first principal axis of all recorded points", fontsize=7)
            figure.supylabel("second principal axis", fontsize=7)


def _view(arms: Mapping[str, Mapping[str, np.ndarray]]) -> _View:
    """The particles' own plane; of more dimensions, the one in which all recorded points spread the most."""
    every = np.concatenate([arm["points"].reshape(-1, arm["points"].shape[-1]) for arm in arms.values()])
    every = every[np.isfinite(every).all(axis=1)]
    dimension = every.shape[1]
    if dimension > 2:
        centre = every.mean(axis=0)
        axes = np.linalg.eigh(np.cov((every - centre).T))[1][:, :-3:-1]
        axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])  # or the picture flips from machine to machine
    else:
        centre, axes = np.zeros(dimension), np.eye(dimension, 2)
    targets = [arm["target"] for arm in arms.values() if "target" in arm]
    flat = (np.concatenate([every, *targets]) - centre) @ axes
    low, high = np.quantile(flat, [0.002, 0.998], axis=0)
    margin = 0.08 * max(*(high - low), 1e-6)
    return _View(centre, axes, low - margin, high + margin)


def _cloud(ax: Any, view: _View, arm: Mapping[str, np.ndarray], at: int, size: float) -> tuple[Any, Any]:
    """The particles of one record over their target; what to change for the next picture."""
    points = arm["points"][at]
    if "target" in arm:
        ax.scatter(*view(arm["target"]).T, s=0.6 * size, color="0.75", linewidths=0)
    dots = ax.scatter(*view(points).T, s=_sizes(arm, at, size), color=style(2)["color"], linewidths=0)
    said = ax.text(0.98, 0.02, _outside(view, points), transform=ax.transAxes, fontsize=2 * size, ha="right")
    return dots, said


def _sizes(arm: Mapping[str, np.ndarray], at: int, size: float) -> np.ndarray:
    """Areas of the dots: as the weights are, where these move."""
    count = arm["points"].shape[1]
    return size * (count * arm["weights"][at] if "weights" in arm else np.ones(count))


def _outside(view: _View, points: np.ndarray) -> str:
    at = view(points)
    outside = int(np.sum(~np.all((at > view.low) & (at < view.high), axis=1)))
    return f"{outside} outside" if outside else ""


def _steps(arms: Mapping[str, Mapping[str, np.ndarray]]) -> list[int]:
    return sorted({int(step) for arm in arms.values() for step in arm["step"]})


def draw_snapshots(arms: Mapping[str, Mapping[str, np.ndarray]], path: Path) -> list[Path]:
    """Draw where the particles are: an arm a row, a step a column, the target in grey.

    Particles in a plane are drawn as they are; those of more dimensions by their shadow on the two leading principal
    axes of all recorded points, which the figure says. Where weights move, a particle's area is as its weight. The
    frame leaves out the outermost 0.2 % of all points on each side, so that a few that fly off do not shrink the
    picture, and says how many particles it does not show.

    Args:
        arms: snapshots by label, each with "step" (k,), "points" (k, N, d), perhaps "target" (M, d), "weights" (k, N).
        path: where to, without a suffix.
    """
    steps, view = _steps(arms), _view(arms)
    with canvas(path, (1.5 * len(steps) + 0.2, 1.55 * len(arms) + 0.2)) as (figure, files):
        axes = figure.subplots(len(arms), len(steps), squeeze=False, sharex=True, sharey=True)
        for row, (label, arm) in zip(axes, arms.items(), strict=True):
            row[0].set_ylabel(label, fontsize=min(9, 170 / len(label)))
            for ax, step in zip(row, steps, strict=True):
                view.dress(ax)
                there = np.flatnonzero(arm["step"] == step)
                ax.set_visible(there.size > 0)  # an arm may end before the others
                for at in there:
                    _cloud(ax, view, arm, int(at), 2.5)
        for ax, step in zip(axes[0], steps, strict=True):
            ax.set_title(f"$k={step}$", fontsize=8)
        view.label(figure)
    return files


def animate(arms: Mapping[str, Mapping[str, np.ndarray]], path: Path) -> list[Path]:
    """The same as a moving picture, an arm a panel: a GIF, and an MP4 beside it where ffmpeg is installed.

    A panel whose arm has ended, or was not recorded at a step, shows the last that was.

    Args:
        arms: as in :func:`draw_snapshots`.
        path: where to, without a suffix.
    """
    steps, view = _steps(arms), _view(arms)
    rows = -(-len(arms) // _WIDE)
    columns = -(-len(arms) // rows)
    with drawing((2.2 * columns + 0.2, 2.4 * rows + 0.4)) as figure:
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        shown = []
        for ax, (label, arm) in zip(axes, arms.items(), strict=False):
            view.dress(ax)
            ax.set_title(label, fontsize=8)
            shown.append((arm, *_cloud(ax, view, arm, 0, 4.0)))
        for ax in axes[len(arms) :]:
            ax.set_visible(False)
        view.label(figure)
        title = figure.suptitle("", fontsize=8)

        def pictures() -> Iterator[int]:
            for step in steps:
                title.set_text(f"$k={step}$")
                for arm, dots, said in shown:
                    at = max(int(np.searchsorted(arm["step"], step, side="right")) - 1, 0)
                    dots.set_offsets(view(arm["points"][at]))
                    dots.set_sizes(_sizes(arm, at, 4.0))
                    said.set_text(_outside(view, arm["points"][at]))
                yield step

        rate = max(2, len(steps) // _SECONDS)
        return [_film(figure, pictures(), path, kind, rate) for kind in ("gif", "mp4") if kind == "gif" or _can_film()]


def _can_film() -> bool:
    return shutil.which("ffmpeg") is not None


def _film(figure: Any, pictures: Iterator[int], path: Path, kind: str, rate: int) -> Path:
    """Write the figure at every picture; by way of another folder, as writers want a path and take their time."""
    from matplotlib.animation import FFMpegWriter, PillowWriter

    file = path.with_name(f"{path.name}.{kind}")
    with tempfile.TemporaryDirectory() as place:
        writer = PillowWriter(fps=rate) if kind == "gif" else FFMpegWriter(fps=rate)
        with writer.saving(figure, str(Path(place) / file.name), dpi=120):
            for _ in pictures:
                writer.grab_frame()
        with replacing(file) as new:
            new.write((Path(place) / file.name).read_bytes())
    return file
