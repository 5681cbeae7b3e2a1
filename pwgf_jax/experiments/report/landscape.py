"""The critical points of an objective, found from many starts: is every one that is not minimal a strict saddle?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pwgf_jax.certificate import Verdict
from pwgf_jax.experiments.folder import RunFolder
from pwgf_jax.experiments.report.look import canvas, style
from pwgf_jax.experiments.report.tables import table

__all__ = ["CriticalPoint", "Found", "Survey", "cluster", "conclusion", "report", "write"]


class Found(NamedTuple):
    """Where one start ended.

    Args:
        value: the objective.
        gradient_norm: ‖∇F‖.
        integral: smallest eigenvalue of the integral Hessian, as far as it is known.
        full: that of the full one.
        index: how many eigenvalues of the full Hessian are below −δ.
        exact: whether the index was counted in the whole spectrum; otherwise it is a lower bound.
        verdict: of the certificate.
        delta: curvature that counted as negative there.
    """

    value: float
    gradient_norm: float
    integral: float
    full: float
    index: int
    exact: bool
    verdict: Verdict
    delta: float


class CriticalPoint(NamedTuple):
    """Ends that are one critical point, or one family of them, up to the tolerance.

    Args:
        members: the ends.
        minimal: whether no other has a smaller value, up to the tolerance.
    """

    members: list[Found]
    minimal: bool

    def median(self, name: str) -> float:
        """Of the members' numbers of a name."""
        return float(np.median([getattr(each, name) for each in self.members]))

    @property
    def strict(self) -> bool:
        """Whether every member has curvature below −δ for certain."""
        return all(each.verdict == Verdict.saddle for each in self.members)


class Survey(NamedTuple):
    """What was found.

    Args:
        points: critical points in the order of their values.
        starts: how many.
        eps: gradient norm that counts as stationary.
    """

    points: list[CriticalPoint]
    starts: int
    eps: float

    @property
    def deltas(self) -> list[float]:
        """The curvatures that counted as negative, from the smallest to the largest; mostly one for all."""
        return sorted({end.delta for point in self.points for end in point.members})


def cluster(ends: Sequence[Found], tolerance: float) -> list[CriticalPoint]:
    """Ends that are one critical point: neighbours in value, λ_min and gradient norm.

    Args:
        ends: of all starts.
        tolerance: how far neighbours may be apart: of the values relative to the largest of them, of
            λ_min (full) relative to its largest size, of gradient norms to the largest of them or absolutely.

    Returns:
        Critical points in the order of their values.

    Example:
        >>> at = lambda value, least: Found(value, 0.0, least, least, 0, True, Verdict.saddle, 0.1)
        >>> points = cluster([at(1.0, -2.0), at(0.0, 0.0), at(1.001, -2.0)], 0.01)
        >>> [(len(point.members), point.minimal) for point in points]
        [(1, True), (2, False)]
    """
    if not ends:
        return []
    rows = np.array([[end.value, end.full, end.gradient_norm] for end in ends])
    scale = np.maximum(np.abs(rows).max(axis=0), np.array([1e-30, 1e-30, 1.0]))
    near = np.all(np.abs(rows[:, None] - rows[None]) <= tolerance * scale, axis=2)
    label = np.arange(len(ends))
    for i in range(len(ends)):
        for j in np.flatnonzero(near[i]):
            label[label == label[j]] = label[i]
    groups = [
        [end for end, own in zip(ends, label, strict=True) if own == each] for each in dict.fromkeys(label.tolist())
    ]
    groups.sort(key=lambda members: min(end.value for end in members))
    least = rows[:, 0].min() + tolerance * scale[0]
    return [CriticalPoint(members, bool(min(end.value for end in members) <= least)) for members in groups]


def conclusion(survey: Survey) -> str:
    """What the survey says about strict saddles, in a sentence.

    Example:
        >>> conclusion(Survey([], 20, 1e-3))
        'No start of 20 came to a critical point (gradient norm at most 0.001): take more steps or another arm.'
    """
    if not survey.points:
        return (
            f"No start of {survey.starts} came to a critical point (gradient norm at most {survey.eps:.3g}): "
            "take more steps or another arm."
        )
    others = [point for point in survey.points if not point.minimal]
    loose = [point for point in others if not point.strict]
    low, high = survey.deltas[0], survey.deltas[-1]
    below = f"λ_min < −δ, δ = {low:.3g}" if low == high else f"λ_min < −δ, δ = {low:.3g} to {high:.3g},"
    if not others:
        said = "Every critical point found is minimal: these starts say nothing about saddles."
    elif not loose:
        blind = sum(point.median("integral") >= -point.median("delta") for point in others)
        only = f", {blind} of them in the full Hessian only" if blind else ""
        said = f"Each of the {len(others)} non-minimal critical points found has {below}{only}."
    else:
        said = (
            f"{len(loose)} of {len(others)} non-minimal critical points found have no certain {below}: "
            "local minima, or saddles that are not strict at this δ."
        )
    if all(point.strict for point in survey.points):
        said += " So has the lowest: no minimum was found."
    return said


def report(survey: Survey) -> str:
    """The table of critical points as Markdown, and the conclusion.

    Example:
        >>> print(report(Survey([], 2, 1e-3)))
        No start of 2 came to a critical point (gradient norm at most 0.001): take more steps or another arm.
    """
    rows = [["value", "‖∇F‖", "λ_min integral", "λ_min full", "index", "reached", "minimal", "verdicts"]]
    for point in survey.points:
        low, high = (f(end.index for end in point.members) for f in (min, max))
        bound = "" if point.members[0].exact else "≥ "
        rows.append(
            [
                *(f"{point.median(name):.4g}" for name in ("value", "gradient_norm", "integral", "full")),
                f"{bound}{low}" if low == high else f"{bound}{low} to {high}",
                str(len(point.members)),
                "yes" if point.minimal else "no",
                ", ".join(sorted({end.verdict.name for end in point.members})),
            ]
        )
    reached = sum(len(point.members) for point in survey.points)
    if not reached:
        return conclusion(survey)
    said = f"{reached} of {survey.starts} starts came to a gradient norm of at most {survey.eps:.3g}."
    return "\n\n".join([table(rows), said, conclusion(survey)])


def write(survey: Survey, path: Path, command: str) -> list[Path]:
    """Write landscape.md, landscape.json and the figure of value against λ_min.

    Args:
        survey: what was found.
        path: the folder.
        command: what the user typed.

    Returns:
        The files written.

    Raises:
        ConfigError: if matplotlib is not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [file.name for file in write(Survey([], 2, 1e-3), Path(folder), "")]
        ['landscape.md', 'landscape.json']
    """
    folder = RunFolder(path)
    folder.write_text("landscape.md", f"# Critical points\n\n{report(survey)}\n\nMade by `{command}`.\n")
    points = [
        {"minimal": point.minimal, "ends": [end._asdict() | {"verdict": end.verdict.name} for end in point.members]}
        for point in survey.points
    ]
    whole = {"eps": survey.eps, "starts": survey.starts, "points": points}
    folder.write_text("landscape.json", json.dumps(whole, indent=2) + "\n")
    return [path / "landscape.md", path / "landscape.json", *_draw(survey, path / "landscape")]


def _draw(survey: Survey, path: Path) -> list[Path]:
    if not survey.points:
        return []
    with canvas(path, (3.8, 2.8)) as (figure, files):
        ax = figure.subplots()
        for i, part in enumerate(("full", "integral")):
            ends = [end for point in survey.points for end in point.members]
            least = [getattr(end, part) for end in ends]
            marker = {"marker": "os"[i], "s": 14 + 12 * i, "facecolors": "none" if i else style(i)["color"]}
            colour = style(2 * i)["color"]
            ax.scatter(least, [end.value for end in ends], edgecolors=colour, linewidths=0.8, label=part, **marker)
        for delta in {survey.deltas[0], survey.deltas[-1]}:
            label = r"$-\delta$" if delta == survey.deltas[0] else None
            ax.axvline(-delta, color="0.6", linewidth=0.8, linestyle=":", label=label)
        ax.set_xlabel(r"smallest eigenvalue $\lambda_{\min}$ of the Hessian")
        ax.set_ylabel(r"objective $F(\mu)$")
        ax.legend(frameon=False)
    return files
