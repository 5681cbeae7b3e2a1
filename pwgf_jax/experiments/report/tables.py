"""What a run shows, in numbers: medians and quartiles over the seeds, as a Markdown table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pwgf_jax.experiments.costs import gradients, seconds
from pwgf_jax.experiments.folder import RunFolder
from pwgf_jax.experiments.results import Arm
from pwgf_jax.flows import Status

__all__ = [
    "ESCAPE",
    "escape",
    "first_second_order",
    "landing",
    "notes",
    "overview",
    "reaching",
    "spread",
    "summarise",
    "table",
    "to_second_order",
    "trajectory",
    "varied",
]

FRACTIONS = {"1/2": 0.5, "1/10": 0.1, "1/100": 0.01}
_FORMER = (
    "Version 0.1.0 said so where a perturbation bought no decrease within its window, and where a certificate held; "
    "which of the two, it did not record."
)
NEVER = 1e18  # a step that no run reaches: quartiles with infinities would not be numbers


def spread(values: np.ndarray) -> str:
    """Median and quartiles in three digits.

    Example:
        >>> spread(np.array([1.0, 2.0, 3.0]))
        '2 [1.5, 2.5]'
    """
    if values.size == 0:
        return "–"
    low, middle, high = (
        "not reached" if q >= NEVER / 10 else _number(q) for q in np.quantile(values, [0.25, 0.5, 0.75])
    )
    return middle if low == middle == high else f"{middle} [{low}, {high}]"


def _number(value: float) -> str:
    whole = 100 <= abs(value) < 1e7
    return f"{value:.0f}" if whole else f"{value:.3g}"


def first_below(arm: Arm, level: float | np.ndarray, clock: np.ndarray | None = None) -> np.ndarray:
    """The step, or the reading of another clock, at which each finite seed's objective is first recorded at a level.

    Args:
        arm: what ran.
        level: the value to come down to, one for all seeds or (seeds, 1).
        clock: what to read, (records,) or (seeds, records); steps if None.

    Returns:
        One number per finite seed, huge for those that never get there.

    Example:
        >>> arm = Arm({"step": np.array([0, 9]), "value": np.array([[4.0, 1.0], [4.0, 3.0]])}, np.array([2, 2]), {})
        >>> first_below(arm, 1.0).tolist()[0]
        9.0
    """
    read = np.broadcast_to(arm.records["step"] if clock is None else clock, arm.records["value"].shape)[arm.finite]
    below = arm.of(arm.objective) <= level
    at = np.take_along_axis(read, below.argmax(axis=1)[:, None], axis=1)[:, 0]
    return np.where(below.any(axis=1), at, NEVER).astype(float)


def halved(arm: Arm) -> np.ndarray:
    """The step at which each finite seed has left its start: where the objective is half of what it was."""
    return first_below(arm, 0.5 * arm.of(arm.objective)[:, :1])


ESCAPE = (
    "Escape: where the gradient norm peaks as a seed's objective first falls by a tenth of the largest fall that "
    "any arm has on record. What a later jump adds to the gradient is none."
)


def escape(arm: Arm, depth: float) -> np.ndarray:
    """The step at which each finite seed first escapes: where its gradient norm peaks as its objective first falls.

    It has fallen at the first record that is a tenth of ``depth`` below the start. The peak is the largest gradient
    norm of the records around that one, as far as they do not drop below half of the norm there: the hill that the
    seed comes down. Jumps that come later, or lead nowhere, make peaks of their own, which are not on it.

    Args:
        arm: what ran.
        depth: how far the objective can fall.

    Returns:
        One number per finite seed, huge for those that do not fall.

    Example:
        >>> values, norms = np.array([[1.0, 1.0, 0.8, 0.2, 0.0, 0.0]]), np.array([[0.0, 0.1, 0.3, 0.6, 0.0, 9.0]])
        >>> arm = Arm({"step": np.arange(6) * 10, "value": values, "gradient_norm": norms}, np.array([2]), {})
        >>> escape(arm, 1.0).tolist()
        [30.0]
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


def _depths(arms: Mapping[str, Arm]) -> dict[str, float]:
    """The largest fall of any arm, for each arm among those that have the same value of the varied key."""
    problem = lambda arm: str(arm.info.get("varied", {}).get("value"))  # noqa: E731
    falls = {
        name: float(np.max(arm.of(arm.objective)[:, 0] - arm.of(arm.objective).min(axis=1), initial=0.0))
        for name, arm in arms.items()
    }
    return {
        name: max(falls[other] for other in arms if problem(arms[other]) == problem(arm)) for name, arm in arms.items()
    }


def _statuses(arm: Arm) -> list[str]:
    """How each seed ended, in the words of the version that ran it."""
    return arm.info.get("status") or [Status(int(code)).name for code in arm.status]


def _reached(steps: np.ndarray) -> str:
    reached = int(np.sum(steps < NEVER))
    if reached == 0:
        return "not reached"
    return spread(steps) if reached == steps.size else f"{spread(steps)} ({reached} of {steps.size})"


def overview(arms: Mapping[str, Arm]) -> list[list[str]]:
    """One row per arm, under a row of headings: how each method ended, and when it got where.

    Example:
        >>> values = np.array([[4.0, 1.0], [4.0, 3.0]])
        >>> records = {"step": np.array([0, 9]), "value": values, "gradient_norm": values, "perturbed": values > 9}
        >>> arm = Arm(records, np.array([2, 2]), {"seconds": 1.5})
        >>> [row[:3] for row in overview({"static": arm})]
        [['arm', 'final F', 'final gradient norm'], ['static', '2 [1.5, 2.5]', '2 [1.5, 2.5]']]
    """
    extra = {"free_energy": "final free energy", "test_loss": "final test loss", "test_accuracy": "final test accuracy"}
    extra |= {f"{part}_accuracy": f"that of the {part}" for part in ("head", "tail")}
    present = [name for name in extra if any(name in arm.records for arm in arms.values())]
    heading = ["arm", "final F", "final gradient norm", *(extra[name] for name in present), "escape at step"]
    # The value of an objective may be zero or below at the start: it has its own tables.
    fractions = {} if all("landmarks" in arm.info for arm in arms.values()) else FRACTIONS
    heading += [f"steps to {label} of F₀" for label in fractions] + ["jumps", "stopped at step", "ended as", "seconds"]
    rows, depths = [heading], _depths(arms)
    for name, arm in arms.items():
        ended = Counter(_statuses(arm))
        row = [name, *(spread(arm.of(record)[:, -1]) for record in (arm.objective, "gradient_norm"))]
        row += [spread(arm.of(record)[:, -1]) if record in arm.records else "–" for record in present]
        start = arm.of(arm.objective)[:, :1]
        row += [_reached(escape(arm, depths[name]))]
        row += [_reached(first_below(arm, fraction * start)) for fraction in fractions.values()]
        row += [spread(arm.of("perturbed").sum(axis=1).astype(float))]
        taken = np.asarray(arm.info.get("steps", np.full(arm.finite.shape, arm.records["step"][-1])), float)
        row += [spread(taken[arm.finite])]
        row += [", ".join(f"{count} {status}" for status, count in ended.items())]
        rows.append([*row, f"{arm.info.get('seconds', float('nan')):.1f}"])
    return rows


def trajectory(arms: Mapping[str, Arm], count: int = 5) -> list[list[str]]:
    """The objective at a few steps, one row per arm under a row of headings.

    Example:
        >>> values = np.array([[4.0, 1.0], [4.0, 3.0]])
        >>> arm = Arm({"step": np.array([0, 9]), "value": values}, np.array([2, 2]), {})
        >>> trajectory({"static": arm}, count=2)
        [['F at step', '0', '9'], ['static', '4', '2 [1.5, 2.5]']]
    """
    last = max(int(arm.records["step"][-1]) for arm in arms.values())
    steps = sorted({round(last * i / max(count - 1, 1)) for i in range(count)})
    rows = [["F at step", *(str(step) for step in steps)]]
    for name, arm in arms.items():
        at = [int(np.searchsorted(arm.records["step"], step)) for step in steps]
        rows.append([name, *(spread(arm.of(arm.objective)[:, i]) if i < arm.records["step"].size else "–" for i in at)])
    return rows


def reaching(arms: Mapping[str, Arm], targets: Sequence[float]) -> list[list[str]]:
    """When every arm came down to absolute values: in steps, in gradients of the whole objective, and in seconds.

    Example:
        >>> records = {"step": np.array([0, 9]), "value": np.array([[4.0, 1.0]]), "perturbed": np.zeros((1, 2), bool)}
        >>> reaching({"static": Arm(records, np.array([2]), {})}, [1.0])[1][:3]
        ['static', '9', '9']
    """
    heading = [f"{unit} to F ≤ {target:g}" for target in targets for unit in ("steps", "gradients", "seconds")]
    rows = [["arm", *heading]]
    for name, arm in arms.items():
        clocks = (None, gradients(arm), seconds(arm))
        rows.append([name, *(_reached(first_below(arm, target, clock)) for target in targets for clock in clocks)])
    return rows


def varied(arms: Mapping[str, Arm]) -> dict[str, list[tuple[Any, Arm]]]:
    """The arms that one varied key has made, by the arm of the config that they are, with the value of the key.

    Example:
        >>> arm = Arm({}, np.array([2]), {"varied": {"arm": "hessian", "key": "problem.particles", "value": 50}})
        >>> [(name, [value for value, _ in runs]) for name, runs in varied({"hessian-50": arm}).items()]
        [('hessian', [50])]
    """
    families: dict[str, list[tuple[Any, Arm]]] = {}
    for arm in arms.values():
        if "varied" in arm.info:
            families.setdefault(arm.info["varied"]["arm"], []).append((arm.info["varied"]["value"], arm))
    return families


def first_second_order(arm: Arm) -> np.ndarray:
    """The first record at which each seed is at an (ε, δ)-second-order point; −1 for those that never are.

    Example:
        >>> records = {"gradient_norm": np.array([[0.0, 1.0, 0.0]]), "curvature": np.array([[-1.0, 1.0, 1.0]])}
        >>> first_second_order(Arm(records, np.array([2]), {"second_order": {"eps": 0.1, "delta": 0.1}})).tolist()
        [2]
    """
    wanted = arm.info["second_order"]
    there = (arm.records["gradient_norm"] <= wanted["eps"]) & (arm.records["curvature"] >= -wanted["delta"])
    return np.where(there.any(axis=1), there.argmax(axis=1), -1)


def to_second_order(arm: Arm, clock: np.ndarray) -> np.ndarray:
    """What a clock, (records,) or (seeds, records), reads there; huge for seeds that never are.

    Example:
        >>> records = {"gradient_norm": np.array([[0.0, 1.0, 0.0]]), "curvature": np.array([[-1.0, 1.0, 1.0]])}
        >>> arm = Arm(records, np.array([2]), {"second_order": {"eps": 0.1, "delta": 0.1}})
        >>> to_second_order(arm, np.array([0, 10, 20])).tolist()
        [20.0]
    """
    first = first_second_order(arm)
    read = np.broadcast_to(clock, arm.records["gradient_norm"].shape)
    return np.where(first < 0, NEVER, np.take_along_axis(read, np.maximum(first, 0)[:, None], axis=1)[:, 0])


def landing(arm: Arm) -> Counter[str]:
    """At which known critical point each seed ended, by the value there.

    Example:
        >>> values = np.array([[1.0, 1e-5], [1.0, 0.3]])
        >>> arm = Arm({"value": values}, np.array([2, 2]), {"landmarks": {"well": 0.0, "origin": 1.0}})
        >>> dict(landing(arm))
        {'well': 1, 'elsewhere': 1}
    """
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


def objectives(arms: Mapping[str, Arm]) -> list[list[list[str]]]:
    """The tables of objectives: what it costs to get to a second-order point, and at which critical point runs end.

    Example:
        >>> objectives({})
        []
    """
    known = {name: arm for name, arm in arms.items() if {"landmarks", "second_order"} & arm.info.keys()}
    if not known:
        return []
    families = varied(known) or {name: [("", arm)] for name, arm in known.items()}
    turns = list(dict.fromkeys(value for runs in families.values() for value, _ in runs))
    single = turns == [""]

    def rows(title: str, cell: Callable[[Arm], str]) -> list[list[str]]:
        heading = [title] if not single else ["arm"]
        made = [heading + ([title] if single else [str(turn) for turn in turns])]
        for name, runs in families.items():
            found = {value: cell(arm) for value, arm in runs}
            made.append([name, *(found.get(turn, "–") for turn in turns)])
        return made

    tables = []
    if all("second_order" in arm.info for arm in known.values()):
        tables.append(rows("cost of a second-order point", lambda arm: _reached(to_second_order(arm, gradients(arm)))))
    counted = ("gradients", "products", "values", *(["bits"] if single else []))
    units = [unit for unit in counted if any(unit in arm.records for arm in known.values())]
    if not single and tables and units:

        def counts(arm: Arm) -> str:
            middle = [np.median(to_second_order(arm, arm.records[unit])) for unit in units if unit in arm.records]
            return " / ".join(_number(each) if each < NEVER / 10 else "–" for each in middle)

        tables.append(rows(f"{' / '.join(units)} to it", counts))
        tables.append(rows("seconds to it", lambda arm: _reached(to_second_order(arm, seconds(arm)))))
    if single and tables:
        tables[0][0] += ["steps", *units, "seconds"]
        for row, arm in zip(tables[0][1:], known.values(), strict=True):
            row.append(_reached(to_second_order(arm, arm.records["step"])))
            row += [_reached(to_second_order(arm, arm.records[unit])) if unit in arm.records else "–" for unit in units]
            row.append(_reached(to_second_order(arm, seconds(arm))))
    said = lambda arm: ", ".join(f"{count} {name}" for name, count in landing(arm).most_common())  # noqa: E731
    if any(set(landing(arm)) - {"elsewhere", "not finite"} for arm in known.values()):
        tables.append(rows("seeds end at", said))
    if any("alignment" in arm.records for arm in known.values()):
        last = lambda arm: spread(arm.of("alignment")[:, -1]) if "alignment" in arm.records else "–"  # noqa: E731
        tables.append(rows("final alignment", last))
    return tables


def extremes(arms: Mapping[str, Arm]) -> list[list[str]]:
    """Ends of the spectra of classes' Hessians, of large classes (head) and small ones (tail), before and after.

    Example:
        >>> records = {"value": np.ones((1, 3)), "tail_curvature": np.array([[-2.0, -1.0, 0.0]])}
        >>> extremes({"sam": Arm(records, np.array([2]), {})})
        [['start → end', 'λ_min, tail'], ['sam', '-2 → 0']]
    """
    ends = {"curvature": "λ_min", "sharpness": "λ_max"}
    titles = {f"{part}_{end}": f"{said}, {part}" for part in ("head", "tail") for end, said in ends.items()}
    measured = {name: arm for name, arm in arms.items() if any(record in arm.records for record in titles)}
    present = [record for record in titles if any(record in arm.records for arm in measured.values())]
    if not measured:
        return []
    cell = lambda values: f"{spread(values[:, 0])} → {spread(values[:, -1])}"  # noqa: E731
    rows = [
        [name, *(cell(arm.of(record)) if record in arm.records else "–" for record in present)]
        for name, arm in measured.items()
    ]
    return [["start → end", *(titles[record] for record in present)], *rows]


def escapes(arms: Mapping[str, Arm]) -> list[list[str]]:
    """Steps to half of the start's objective, an arm of the config a row and a value of the varied key a column.

    Example:
        >>> escapes({})
        []
    """
    families = varied(arms)
    if not families or any("landmarks" in arm.info for arm in arms.values()):
        return []
    key = next(arm.info["varied"]["key"] for runs in families.values() for _, arm in runs)
    values = list(dict.fromkeys(value for runs in families.values() for value, _ in runs))
    rows = [[f"steps to F₀/2, {key} =", *map(str, values)]]
    for name, runs in families.items():
        found = {value: _reached(halved(arm)) for value, arm in runs}
        rows.append([name, *(found.get(value, "–") for value in values)])
    return rows


def notes(arms: Mapping[str, Arm]) -> list[str]:
    """What a reader of the tables has to know about seeds that were left out.

    Example:
        >>> arm = Arm({"step": np.arange(1), "value": np.ones((2, 1))}, np.array([2, 3]), {})
        >>> notes({"static": arm})
        ['static: seed 1 turned non-finite and is left out of medians and figures.']
    """
    said = []
    for name, arm in arms.items():
        lost = np.flatnonzero(~arm.finite).tolist()
        if lost:
            word, verb, are = ("seed", "turned", "is") if len(lost) == 1 else ("seeds", "turned", "are")
            which = ", ".join(map(str, lost))
            said.append(f"{name}: {word} {which} {verb} non-finite and {are} left out of medians and figures.")
    return said


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows under a heading as Markdown whose columns also line up in a terminal.

    Example:
        >>> print(table([["arm", "F"], ["static", "1"]]))
        | arm    | F |
        | :----- | :- |
        | static | 1 |
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    rule = "| " + " | ".join(":" + "-" * max(width - 1, 1) for width in widths) + " |"
    return "\n".join([lines[0], rule, *lines[1:]])


def extras(folder: RunFolder) -> list[list[list[str]]]:
    """The tables that a config asks for: of targets, of a varied key, of an objective, and of its classes.

    Example:
        >>> from pathlib import Path
        >>> extras(RunFolder(Path("no/such")))
        Traceback (most recent call last):
        ...
        FileNotFoundError: ...
    """
    arms, targets = folder.arms(), folder.info.get("targets", [])
    tables = [reaching(arms, targets) if targets else [], escapes(arms), *objectives(arms), extremes(arms)]
    return [rows for rows in tables if rows]


def summarise(folder: RunFolder) -> str:
    """The text of summary.md.

    Args:
        folder: of a run.

    Returns:
        Markdown.

    Example:
        >>> from pathlib import Path
        >>> summarise(RunFolder(Path("no/such")))
        Traceback (most recent call last):
        ...
        FileNotFoundError: ...
    """
    info, arms = folder.info, folder.arms()
    parts = [
        f"# {info['name']}",
        f"{info['seeds']} seeds, {info['steps']} steps, {info['dtype']}, {info['devices']} × {info['device']} "
        f"({info['backend']}), jax {info['jax']}, pwgf_jax {info['pwgf_jax']}.",
        f"Problem: {info['problem']}." if "problem" in info else "",
    ]
    if arms:
        parts += [table(overview(arms)), table(trajectory(arms))]
        parts += [table(rows) for rows in extras(folder)]
        parts.append(
            "Medians over the seeds, with quartiles in brackets where they differ. "
            "F₀ is a seed's objective at the start; a level that fewer than half of them reach is not reached. "
            "Gradients: a step counts as many as pwgf_jax.experiments.costs says. The last column's seconds are those "
            "of the arm in all; seconds to a level are of the steps of all seeds together, without compilation, "
            f"recording and checkpoints. {ESCAPE}"
        )
    parts += notes(arms)
    meaning = {name: sentence for arm in arms.values() for name, sentence in arm.info["meaning"].items()} | {
        name: _FORMER for arm in arms.values() for name in _statuses(arm) if name not in Status.__members__
    }
    parts.append("\n".join(f"- `{name}`: {sentence}" for name, sentence in meaning.items()))
    if folder.unfinished:
        parts.append(f"Not finished: {', '.join(folder.unfinished)}. Go on with `pwgf resume {folder.path}`.")
    parts.append(f"Made by `{info['command']}`; `pwgf run config.toml --out NEW` in this folder repeats it.")
    return "\n\n".join(part for part in parts if part) + "\n"
