"""What a run shows, in numbers: medians and quartiles over the seeds, as Markdown tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from pwgf_jax.experiments.costs import gradients, seconds
from pwgf_jax.experiments.folder import RunFolder
from pwgf_jax.experiments.messages import ConfigError
from pwgf_jax.experiments.results import NEVER, Arm, families
from pwgf_jax.flows import Status

__all__ = ["arranged", "comparison", "labelled", "objectives", "spoken", "summarise", "table"]

_Rows: TypeAlias = list[list[str]]  # under a row of headings
_Columns: TypeAlias = dict[str, Callable[[Arm], str]]  # what an arm has below each heading

_WIDE = 12  # arms that a page or a terminal has columns for
_FRACTIONS = {"1/2": 0.5, "1/10": 0.1, "1/100": 0.01}
_FINAL = {
    "free_energy": "final free energy",
    "test_loss": "final test loss",
    "test_accuracy": "final test accuracy",
    "head_accuracy": "that of the head",
    "tail_accuracy": "that of the tail",
    "effective_particles": "effective particles 1/Σw²",
}
_FORMER = (
    "Version 0.1.0 said so where a perturbation bought no decrease within its window, and where a certificate held; "
    "which of the two, it did not record."
)
_ESCAPE = (
    "Escape: where the gradient norm peaks as a seed's objective first falls by a tenth of the largest fall that "
    "any arm has on record. What a later jump adds to the gradient is none."
)
_LEGEND = (
    "Medians over the seeds, with quartiles in brackets where they differ. "
    "F₀ is a seed's objective at the start; a level that fewer than half of them reach is not reached. "
    "Gradients: a step counts as many as pwgf_jax.experiments.costs says. The seconds beside the arm's end are those "
    "of the arm in all; seconds to a level are of the steps of all seeds together, without compilation, "
    f"recording and checkpoints. {_ESCAPE}"
)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows under a heading as Markdown whose columns also line up in a terminal.

    Example:
        >>> print(table([["arm", "F"], ["static", "1"]]))
        | arm    | F |
        | :----- | :- |
        | static | 1 |
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    rule = " | ".join(":" + "-" * max(width - 1, 1) for width in widths)
    return "\n".join(f"| {line} |" for line in [lines[0], rule, *lines[1:]])


def summarise(folder: RunFolder) -> str:
    """The text of summary.md."""
    info, arms = folder.info, folder.arms()
    part = f" (part {info['part']} of the run's)" if "part" in info else ""
    parts = [
        f"# {info['name']}",
        f"{info['seeds']} seeds{part}, {info['steps']} steps, {info['dtype']}, {info['devices']} × {info['device']} "
        f"({info['backend']}), jax {info['jax']}, pwgf_jax {info['pwgf_jax']}.",
        f"Problem: {info['problem']}." if "problem" in info else "",
    ]
    if arms:
        parts += [arranged(rows) for rows in (overview(arms), trajectory(arms), *_asked_for(folder, arms))]
        parts.append(_LEGEND)
    parts += _notes(arms, folder.seeds.start)
    meaning = {name: sentence for arm in arms.values() for name, sentence in arm.info["meaning"].items()}
    meaning |= {name: _FORMER for arm in arms.values() for name in arm.statuses if name not in Status.__members__}
    parts.append("\n".join(f"- `{name}`: {sentence}" for name, sentence in meaning.items()))
    if folder.unfinished:
        parts.append(f"Not finished: {', '.join(folder.unfinished)}. Go on with `pwgf resume {folder.path}`.")
    again = f"pwgf run config.toml --part {info['part']}" if part else "pwgf run config.toml"
    parts.append(f"Made by `{info['command']}`; `{again} --out NEW` in this folder repeats it.")
    return "\n\n".join(filter(None, parts)) + "\n"


def spoken(folder: RunFolder) -> str:
    """What a terminal is told of a run: the tables that it has columns for, and who was left out of them."""
    arms = folder.arms()
    first = [arranged(overview(arms))] if len(arms) <= _WIDE and not families(arms) else []
    return "\n".join([*first, *map(arranged, _asked_for(folder, arms)), *_notes(arms, folder.seeds.start)])


def comparison(runs: Mapping[Path, RunFolder], command: str) -> tuple[str, str]:
    """Several runs side by side, as the text of summary.md and as the table for a terminal."""
    arms = labelled(runs)
    problems = "\n".join(f"- {path}: {run.info['problem']}" for path, run in runs.items() if "problem" in run.info)
    shown = arranged(overview(arms))
    parts = [f"# Comparison of {len(runs)} runs", problems, shown, _ESCAPE, arranged(trajectory(arms)), *_notes(arms)]
    return "\n\n".join(filter(None, [*parts, f"Made by `{command}`."])) + "\n", shown


def labelled(runs: Mapping[Path, RunFolder]) -> dict[str, Arm]:
    """The arms of all runs, under their own names where these are unique, else with the run's before it."""
    arms = [(path, name, arm) for path, run in runs.items() for name, arm in run.arms().items()]
    if not arms:
        raise ConfigError(": ".join(filter(None, [", ".join(map(str, runs)), "no arm is finished yet."])))
    if len({name for _, name, _ in arms}) == len(arms):
        return {name: arm for _, name, arm in arms}
    folders = {path: path.resolve().name for path in runs}
    short = len(set(folders.values())) == len(folders)
    return {f"{folders[path] if short else path}: {name}": arm for path, name, arm in arms}


def arranged(rows: _Rows) -> str:
    """A table with an arm a column while there are few: they have many numbers, and pages and terminals are narrow."""
    return table(list(zip(*rows, strict=True)) if len(rows) <= _WIDE + 1 else rows)


def _rows(arms: Mapping[str, Arm], columns: _Columns, title: str = "arm") -> _Rows:
    return [[title, *columns], *([name, *(cell(arm) for cell in columns.values())] for name, arm in arms.items())]


def _grid(title: str, arms: Mapping[str, Mapping[Any, Arm]], cell: Callable[[Arm], str]) -> _Rows:
    """A row for each arm of the config, and a column for each value of the varied key."""
    turns = dict.fromkeys(turn for runs in arms.values() for turn in runs)
    rows = [[name, *(cell(runs[turn]) if turn in runs else "–" for turn in turns)] for name, runs in arms.items()]
    return [[title, *map(str, turns)], *rows]


# Cells


def _number(value: float) -> str:
    whole = 100 <= abs(value) < 1e7
    return f"{value:.0f}" if whole else f"{value:.3g}"


def _spread(values: np.ndarray, say: Callable[[float], str] = _number) -> str:
    """Median and quartiles in three digits."""
    if values.size == 0:
        return "–"
    low, middle, high = map(say, np.quantile(values, [0.25, 0.5, 0.75]))
    return middle if low == middle == high else f"{middle} [{low}, {high}]"


def _reached(clock: np.ndarray) -> str:
    """The same of readings of a clock that some seeds may never come to."""
    reached = int(np.sum(clock < NEVER))
    if reached == 0:
        return "not reached"
    said = _spread(clock, lambda each: "not reached" if each >= NEVER / 10 else _number(each))
    return said if reached == clock.size else f"{said} ({reached} of {clock.size})"


def _last(name: str) -> Callable[[Arm], str]:
    return lambda arm: _spread(arm.of(name)[:, -1]) if name in arm.records else "–"


# Tables


def overview(arms: Mapping[str, Arm]) -> _Rows:
    """How each arm ended, and when it got where."""
    depths = _depths(arms)
    columns: _Columns = {"final F": _final}
    columns["final gradient norm"] = _last("gradient_norm")
    present = {name: title for name, title in _FINAL.items() if any(name in arm.records for arm in arms.values())}
    columns |= {title: _last(name) for name, title in present.items()}
    columns["escape at step"] = lambda arm: _reached(escape(arm, depths[_turn(arm)]))
    if not all("landmarks" in arm.info for arm in arms.values()):
        # The value of an objective may be zero or below at the start: it has its own tables.
        for label, fraction in _FRACTIONS.items():
            columns[f"steps to {label} of F₀"] = lambda arm, fraction=fraction: _reached(
                arm.first_below(fraction * arm.records[arm.objective][:, :1])
            )
    columns |= {"jumps": _jumps, "stopped at step": lambda arm: _spread(arm.taken[arm.finite]), "ended as": _ended}
    columns["seconds"] = lambda arm: f"{arm.info.get('seconds', float('nan')):.1f}"
    return _rows(arms, columns)


def _final(arm: Arm) -> str:
    return _spread(arm.of(arm.objective)[:, -1])


def _jumps(arm: Arm) -> str:
    return _spread(arm.of("perturbed").sum(axis=1).astype(float))


def _ended(arm: Arm) -> str:
    return ", ".join(f"{n} {status}" for status, n in Counter(arm.statuses).most_common())


def escape(arm: Arm, depth: float) -> np.ndarray:
    """The step at which each finite seed first escapes: where its gradient norm peaks as its objective first falls.

    It has fallen at the first record that is a tenth of ``depth`` below the start. The peak is the largest gradient
    norm of the records around that one, as far as they do not drop below half of the norm there: the hill that the
    seed comes down. Jumps that come later, or lead nowhere, make peaks of their own, which are not on it.
    """
    values, norms, steps = arm.of(arm.objective), arm.of("gradient_norm"), arm.records["step"]
    fallen = (values <= values[:, :1] - depth / 10) & (depth > 0)
    found = np.full(len(values), NEVER)
    for seed in np.flatnonzero(fallen.any(axis=1)):
        at = int(np.argmax(fallen[seed]))
        off = np.flatnonzero(norms[seed] < norms[seed, at] / 2)
        left, right = off[off < at], off[off > at]
        hill = slice(left[-1] + 1 if left.size else 0, right[0] if right.size else None)
        found[seed] = steps[hill][np.argmax(norms[seed, hill])]
    return found


def _turn(arm: Arm) -> str:
    """The value of the varied key, which makes another problem."""
    return str(arm.info.get("varied", {}).get("value"))


def _depths(arms: Mapping[str, Arm]) -> dict[str, float]:
    """The largest fall of any arm, by the value of the varied key."""
    depths: dict[str, float] = {}
    for arm in arms.values():
        values = arm.of(arm.objective)
        fall = float(np.max(values[:, 0] - values.min(axis=1), initial=0.0))
        depths[_turn(arm)] = max(fall, depths.get(_turn(arm), 0.0))
    return depths


def trajectory(arms: Mapping[str, Arm], count: int = 5) -> _Rows:
    """The objective at a few recorded steps."""
    recorded = max((arm.records["step"] for arm in arms.values()), key=lambda steps: int(steps[-1]))

    def at(step: int) -> Callable[[Arm], str]:
        def cell(arm: Arm) -> str:
            i = int(np.searchsorted(arm.records["step"], step))
            return _spread(arm.of(arm.objective)[:, i]) if i < arm.records["step"].size else "–"

        return cell

    steps = sorted({int(recorded[round(i)]) for i in np.linspace(0, recorded.size - 1, count)})
    return _rows(arms, {str(step): at(step) for step in steps}, "F at step")


def _asked_for(folder: RunFolder, arms: Mapping[str, Arm]) -> list[_Rows]:
    """The tables that a config asks for: of targets, of a varied key, of an objective, and of its classes."""
    tables = [_reaching(arms, folder.info.get("targets", [])), *_varied(arms), *objectives(arms), extremes(arms)]
    return [rows for rows in tables if rows]


def _reaching(arms: Mapping[str, Arm], targets: Sequence[float]) -> _Rows:
    """When every arm came down to absolute values: in steps, in gradients of the whole objective, and in seconds."""
    clocks: dict[str, Callable[[Arm], Any]] = {"steps": lambda arm: None, "gradients": gradients, "seconds": seconds}
    columns: _Columns = {
        f"{unit} to F ≤ {target:g}": lambda arm, clock=clock, target=target: _reached(
            arm.first_below(target, clock(arm))
        )
        for target in targets
        for unit, clock in clocks.items()
    }
    return _rows(arms, columns) if columns else []


def _varied(arms: Mapping[str, Arm]) -> list[_Rows]:
    """When seeds leave and how they end, where a key is varied."""
    grown = families(arms)
    if not grown or any("landmarks" in arm.info for arm in arms.values()):
        return []
    key = next(arm.info["varied"]["key"] for runs in grown.values() for arm in runs.values())
    key = key.removeprefix("arms.*.")
    columns: _Columns = {"steps to F₀/2": lambda arm: _reached(arm.halved), "final F": _final}
    if any(arm.records["perturbed"].any() for arm in arms.values()):
        columns["jumps"] = _jumps
    if {status for arm in arms.values() for status in arm.statuses} - {"budget_spent"}:
        columns["ended as"] = _ended
    return [_grid(f"{title}, {key} =", grown, cell) for title, cell in columns.items()]


def objectives(arms: Mapping[str, Arm]) -> list[_Rows]:
    """The tables of objectives: what it costs to get to a second-order point, and at which critical point runs end."""
    known = {name: arm for name, arm in arms.items() if {"landmarks", "second_order"} & arm.info.keys()}
    every, grown, columns = list(known.values()), families(known), _Columns()
    if grown and all("landmarks" in arm.info for arm in every):
        depths = _depths(known)
        columns["cost of a tenth of the fall"] = lambda arm: _reached(
            arm.first_below(arm.records[arm.objective][:, :1] - depths[_turn(arm)] / 10, gradients(arm))
        )
    if every and all("second_order" in arm.info for arm in every):
        columns["cost of a second-order point"] = lambda arm: _reached(arm.to_second_order(gradients(arm)))
        counted = ("gradients", "products", "values", *(() if grown else ("bits",)))
        units = [unit for unit in counted if any(unit in arm.records for arm in every)]
        if grown and units:
            columns[f"{' / '.join(units)} to it"] = lambda arm: _counts(arm, units)
        if not grown:
            columns["steps"] = lambda arm: _reached(arm.to_second_order())
            columns |= {unit: lambda arm, unit=unit: _counted(arm, unit) for unit in units}
        columns["seconds to it" if grown else "seconds"] = lambda arm: _reached(arm.to_second_order(seconds(arm)))
    if any(set(landing(arm)) - {"elsewhere", "not finite"} for arm in every):
        columns["seeds end at"] = lambda arm: ", ".join(f"{n} {name}" for name, n in landing(arm).most_common())
    if any("alignment" in arm.records for arm in every):
        columns["final alignment"] = _last("alignment")
    if grown:
        grids = [_grid(title, grown, cell) for title, cell in columns.items()]
        return [_solved(grown), *grids] if "cost of a second-order point" in columns else grids
    return [_rows(known, columns)] if columns else []


def _solved(grown: Mapping[str, Mapping[Any, Arm]]) -> _Rows:
    """On how many objectives and seeds each method came to a second-order point."""
    there = {name: [arm.to_second_order() < NEVER for arm in runs.values()] for name, runs in grown.items()}
    most = max(sum(map(len, each)) for each in there.values())
    return [["arm", f"reached of {most}"], *([name, str(sum(map(np.sum, each)))] for name, each in there.items())]


def _counted(arm: Arm, unit: str) -> str:
    return _reached(arm.to_second_order(arm.records[unit])) if unit in arm.records else "–"


def _counts(arm: Arm, units: Sequence[str]) -> str:
    """Medians of several units in one cell."""
    middle = [np.median(arm.to_second_order(arm.records[unit])) for unit in units if unit in arm.records]
    return " / ".join(_number(float(each)) if each < NEVER / 10 else "–" for each in middle)


def landing(arm: Arm) -> Counter[str]:
    """At which known critical point each seed ended, by the value there."""
    known = arm.info.get("landmarks", {})
    if not known:
        return Counter()
    names, levels = list(known), np.array(list(known.values()))
    near = 1e-3 * max(np.ptp(levels) if levels.size > 1 else abs(levels[0]), 1e-3)
    ends: Counter[str] = Counter()
    for value, finite in zip(arm.records[arm.objective][:, -1], arm.finite, strict=True):
        closest = int(np.argmin(np.abs(levels - value))) if finite else 0
        found = finite and abs(levels[closest] - value) <= near
        ends["not finite" if not finite else names[closest] if found else "elsewhere"] += 1
    return ends


def extremes(arms: Mapping[str, Arm]) -> _Rows:
    """Ends of the spectra of classes' Hessians, of large classes (head) and small ones (tail), before and after."""
    ends = {"curvature": "λ_min", "sharpness": "λ_max"}
    titles = {f"{part}_{end}": f"{said}, {part}" for part in ("head", "tail") for end, said in ends.items()}
    measured = {name: arm for name, arm in arms.items() if any(record in arm.records for record in titles)}

    def change(name: str) -> Callable[[Arm], str]:
        cell = lambda values: f"{_spread(values[:, 0])} → {_spread(values[:, -1])}"  # noqa: E731
        return lambda arm: cell(arm.of(name)) if name in arm.records else "–"

    present = [name for name in titles if any(name in arm.records for arm in measured.values())]
    return _rows(measured, {titles[name]: change(name) for name in present}, "start → end") if measured else []


def _notes(arms: Mapping[str, Arm], first: int = 0) -> list[str]:
    """What a reader of the tables has to know about seeds that were left out."""
    said = []
    for name, arm in arms.items():
        if lost := (first + np.flatnonzero(~arm.finite)).tolist():
            word, verb, are = ("seed", "turned", "is") if len(lost) == 1 else ("seeds", "turned", "are")
            which = ", ".join(map(str, lost))
            said.append(f"{name}: {word} {which} {verb} non-finite and {are} left out of medians and figures.")
    return said
