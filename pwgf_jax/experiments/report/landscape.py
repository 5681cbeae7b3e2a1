"""The critical points of an objective, found from many starts: is every one that is not minimal a strict saddle?"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pwgf_jax.certificate import Verdict
from pwgf_jax.experiments.config import Config
from pwgf_jax.experiments.folder import RunFolder
from pwgf_jax.experiments.messages import ConfigError, suggestion
from pwgf_jax.experiments.report.certificates import Certified, certify_run
from pwgf_jax.experiments.report.look import beside, canvas, style
from pwgf_jax.experiments.report.tables import table
from pwgf_jax.experiments.run import run, settings
from pwgf_jax.spectrum import eigenvalues

__all__ = ["explore", "prepare", "report", "write"]

_ENDS = 4  # Ritz values at either end of a large spectrum, which tell critical points apart


class Found(NamedTuple):
    """Where one start ended."""

    value: float
    gradient_norm: float
    integral: float  # smallest eigenvalue of the integral Hessian, as far as it is known
    full: float  # that of the full one
    index: int  # how many eigenvalues of the full Hessian are below −δ
    exact: bool  # whether the index was counted in the whole spectrum; otherwise it is a lower bound
    verdict: Verdict
    delta: float  # curvature that counted as negative there
    spectrum: tuple[float, ...]  # of the full Hessian, whole where it is small, else its ends


class CriticalPoint(NamedTuple):
    """Ends that are one critical point, or one family of them, up to the tolerance."""

    members: list[Found]
    minimal: bool  # whether no other has a smaller value, up to the tolerance

    def median(self, name: str) -> float:
        """Of the members' numbers of a name."""
        return float(np.median([getattr(each, name) for each in self.members]))

    @property
    def strict(self) -> bool:
        """Whether every member has curvature below −δ for certain."""
        return all(each.verdict == Verdict.saddle for each in self.members)


class Survey(NamedTuple):
    """What was found."""

    points: list[CriticalPoint]  # in the order of their values
    starts: int
    eps: float  # gradient norm that counts as stationary

    @property
    def deltas(self) -> list[float]:
        """The curvatures that counted as negative, from the smallest to the largest; mostly one for all."""
        return sorted({end.delta for point in self.points for end in point.members})


def prepare(config: Config, arms: Sequence[str], starts: int | None, steps: int | None) -> Config:
    """The config of a survey: a seed per start, and the same data for all.

    Args:
        config: any.
        arms: those that start from everywhere; the first of the config if there are none.
        starts: how many; as many as the config has seeds if None.
        steps: of every start; as the config says if None.

    Raises:
        ConfigError: if there is no such arm, a number is below one, or the config varies a key.
    """
    if config.vary is not None:
        raise ConfigError(f"{config.file}: vary: a landscape is that of one problem; leave the table out.")
    chosen = list(arms) or list(config.arms)[:1]
    for arm in chosen:
        if arm not in config.arms:
            raise ConfigError(f'{config.file}: arms: it has no "{arm}"; {suggestion(arm, config.arms)}')
    keys: dict[tuple[str, ...], Any] = {("seeds",): config.seeds if starts is None else starts}
    if steps is not None:
        keys |= {("steps",): steps} | {("arms", arm, "steps"): steps for arm in chosen}
    if config.problem.key == "functional":
        keys["problem", "same_data"] = True
    return config.only(*chosen).changed(keys)


def explore(
    config: Config,
    path: Path,
    *,
    eps: float | None = None,
    delta: float | None = None,
    tolerance: float = 0.01,
    command: str = "",
    quiet: bool = True,
) -> Survey:
    """Run every start to where it ends, certify the ends, and put those together that are one critical point.

    Args:
        config: as :func:`prepare` returns it.
        path: the run folder to make.
        eps: as in :func:`.certify_run`, the smallest of the arms; ends with a larger gradient are left out, for they
            are no critical points.
        delta: as in :func:`.certify_run`.
        tolerance: as in :func:`cluster`.
        command: what the user typed.
        quiet: whether to show no progress.

    Raises:
        ConfigError: as running and certifying do, or if the tolerance is not positive.
    """
    for name, number in (("tolerance", tolerance), ("eps", eps), ("delta", delta)):
        if number is not None and not 0 < number < math.inf:
            raise ConfigError(f"{name} = {number}; give a positive number.")
    folder = run(config, path, command=command, quiet=quiet)
    certified = certify_run(folder, eps=eps, delta=delta, trust=True)  # what it names was run just now
    small = eps or min(each.certificate.eps for each in certified)
    start = max(float(np.max(np.abs(arm.of(arm.objective)[:, 0]), initial=0.0)) for arm in folder.arms().values())
    with settings(config):
        ends = [_end(each) for each in certified if each.certificate.gradient_norm <= small]
    return Survey(cluster(ends, tolerance, start), len(certified), small)


def _end(certified: Certified) -> Found:
    found = certified.certificate
    spectrum = eigenvalues(certified.functional, certified.mu, "full", jax.random.key(0))
    values = np.asarray(spectrum.values, float)
    if not spectrum.exact:  # as many of each, however soon Lanczos had seen everything
        values = np.concatenate([np.resize(values[:_ENDS], _ENDS), np.resize(values[-_ENDS:], _ENDS)])
    numbers = (found.gradient_norm, found.integral.eigenvalue, found.full.eigenvalue)
    index = spectrum.below(-found.delta)
    told = (index, spectrum.exact, found.verdict, found.delta, tuple(values.tolist()))
    return Found(certified.value, *numbers, *told)


def cluster(ends: Sequence[Found], tolerance: float, start: float = 0.0) -> list[CriticalPoint]:
    """Ends that are one critical point: neighbours in value and in all of the spectrum that is known.

    A rotation, or a permutation of the particles, that leaves the objective as it is moves a critical point to
    another and keeps both: such copies are one family.

    Args:
        ends: of all starts.
        tolerance: how far neighbours may be apart: of the values relative to the largest of them and of the start's, of
            every eigenvalue relative to the largest of all.
        start: the largest objective that anything started at: where all ends are at zero, nearly, none of them tells
            what is much.

    Returns:
        Critical points in the order of their values.
    """
    if not ends:
        return []
    values, spectra = np.array([end.value for end in ends]), np.array([end.spectrum for end in ends])
    scale = max(np.abs(values).max(), start)
    near = np.abs(values[:, None] - values) <= tolerance * scale
    near &= np.abs(spectra[:, None] - spectra).max(axis=2) <= tolerance * np.abs(spectra).max()
    label = np.arange(len(ends))
    for i, j in zip(*np.nonzero(near), strict=True):
        label[label == label[j]] = label[i]
    groups = [
        [end for end, own in zip(ends, label, strict=True) if own == each] for each in dict.fromkeys(label.tolist())
    ]
    groups.sort(key=lambda members: min(end.value for end in members))
    least = values.min() + tolerance * scale
    return [CriticalPoint(members, bool(min(end.value for end in members) <= least)) for members in groups]


def conclusion(survey: Survey) -> str:
    """What the survey says about strict saddles, in a sentence."""
    if not survey.points:
        return (
            f"No start of {survey.starts} came to a critical point (gradient norm at most {survey.eps:.3g}): "
            "take more steps or another arm."
        )
    others = [point for point in survey.points if not point.minimal]
    loose = [point for point in others if not point.strict]
    low, high = survey.deltas[0], survey.deltas[-1]
    below = f"λ_min < −δ, δ = {low:.3g}" if low == high else f"λ_min < −δ, δ = {low:.3g} to {high:.3g}"
    if not others:
        said = "Every critical point found is minimal: these starts say nothing about saddles."
    elif not loose:
        blind = sum(point.median("integral") >= -point.median("delta") for point in others)
        only = f", {blind} of them in the full Hessian only" if blind else ""
        count = len(others)
        those = "The non-minimal critical point" if count == 1 else f"Each of the {count} non-minimal critical points"
        said = f"{those} found has {below}{only}."
    else:
        said = (
            f"{len(loose)} of {len(others)} non-minimal critical points found have no certain {below}: "
            "local minima, or saddles that are not strict at this δ."
        )
    if all(point.strict for point in survey.points):
        said += " So has the lowest: no minimum was found."
    return said


def report(survey: Survey) -> str:
    """The table of critical points as Markdown, and the conclusion."""
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

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    folder = RunFolder(path)
    folder.write_text("landscape.md", f"# Critical points\n\n{report(survey)}\n\nMade by `{command}`.\n")
    points = [{"minimal": point.minimal, "ends": [_plain(end) for end in point.members]} for point in survey.points]
    whole = {"eps": survey.eps, "starts": survey.starts, "points": points}
    folder.write_text("landscape.json", json.dumps(whole, indent=2) + "\n")
    return [path / "landscape.md", path / "landscape.json", *_draw(survey, path / "landscape")]


def _plain(end: Found) -> dict[str, Any]:
    """The numbers as JSON can hold them, without the spectrum, which is as long as there are coordinates."""
    return {name: value for name, value in end._asdict().items() if name != "spectrum"} | {"verdict": end.verdict.name}


def _draw(survey: Survey, path: Path) -> list[Path]:
    if not survey.points:
        return []
    with canvas(path, (3.4, 2.8)) as (figure, files):
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
        beside(figure, ax)
    return files
