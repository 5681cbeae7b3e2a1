"""Figures of runs: mean and standard deviation over the seeds, against steps or cost, and what a varied key does."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np

from pwgf_jax.density import Eigenpairs, SpectralDensity
from pwgf_jax.experiments.costs import gradients, seconds
from pwgf_jax.experiments.folder import RunFolder
from pwgf_jax.experiments.messages import ConfigError
from pwgf_jax.experiments.report import particles
from pwgf_jax.experiments.report.look import beside, canvas, style
from pwgf_jax.experiments.results import NEVER, Arm, families

__all__ = ["Axis", "draw", "draw_profile", "draw_run", "draw_varied", "plot_spectrum"]

Axis: TypeAlias = Literal["steps", "gradients", "seconds", "bits"]

_POINTS = 2000  # of the curve of a spectrum
_LEAST = 0.1  # of one eigenvalue: the lowest height that its axis shows
_STRETCHES = 1000  # of an axis: more than a printer's dots across a panel
_LANDMARKS = 12  # values of critical points that a panel has room for
_DEEP = 1e-6  # of what an objective falls by: how near to its least value an axis goes
_STILL = 1e-9  # of the largest gradient norm: what is less is drawn as much, zero included
_PANELS = {
    "value": r"objective $F(\mu_k)$",
    "gradient_norm": r"gradient norm $\|\nabla_{\!\mu} F(\mu_k)\|$",
    "free_energy": r"free energy $F(\mu_k)+\tau\int\rho_k\log\rho_k$",
    "test_loss": "test loss",
    "test_accuracy": "test accuracy",
    "tail_accuracy": "test accuracy, rarest third",
    "tail_curvature": r"$\lambda_{\min}$, rarest third",
}
_AXES: dict[Axis, str] = {
    "steps": "step $k$",
    "gradients": "cost in gradients of the whole objective",
    "seconds": "seconds, all seeds together",
    "bits": "bits sent",
}
_KEYS = {
    "beta": r"$\beta$",
    "delta": r"$\delta$",
    "eps": r"$\varepsilon$",
    "eta_p": r"$\eta_p$",
    "f_thres": r"$f_{\mathrm{thres}}$",
    "k_thres": r"$k_{\mathrm{thres}}$",
    "learning_rate": r"step size $\eta$",
    "points": "data points",
    "step_size": r"step size $\eta$",
}


def draw(arms: Mapping[str, Arm], path: Path, x: Axis = "steps") -> list[Path]:
    """Draw a figure of several arms, as PNG and as PDF.

    Where the least objective is not near zero, its height above that is drawn on a logarithmic axis. Above what, the
    label says: the lowest of the known critical points if no arm came lower, or else the least value that any seed of
    any arm has on record. A curve goes no lower than a millionth of the largest height, or than rounding: at its own
    minimum it would leave the axis. Gradient norms go no lower than a billionth of the largest, as where symmetry
    makes them zero.
    """
    shown = [name for name in _PANELS if any(name in arm.records for arm in arms.values())]
    for telling, other in {"test_accuracy": "test_loss", "tail_accuracy": "gradient_norm"}.items():
        if telling in shown and other in shown:
            shown.remove(other)
    jumps = {label: arm for label, arm in arms.items() if arm.records["perturbed"].any()}
    strip = 0.12 + 0.09 * len(jumps)
    with canvas(path, (3.4 * len(shown), 2.5 + strip)) as (figure, files):
        heights = [2.5, strip] if jumps else [1]
        axes = figure.subplots(len(heights), len(shown), squeeze=False, sharex=True, height_ratios=heights)
        if engine := figure.get_layout_engine():
            engine.set(hspace=0, h_pad=0.02)
        styles = {label: style(i) for i, label in enumerate(arms)}
        at = {label: _reading(arm, x) for label, arm in arms.items()}
        ends = [float(readings[-1]) for readings in at.values()]
        for column, name in enumerate(shown):
            _panel(axes[0, column], name, arms, at, styles)
            if jumps:
                _strip(axes[1, column], jumps, at, styles)
            axes[-1, column].set_xlabel(_AXES[x])
            if max(ends) > 5 * min(ends) > 0:  # arms of very different lengths
                axes[-1, column].set_xscale("symlog", linthresh=min(ends) / 10)
        if jumps:
            axes[1, 0].set_ylabel("jumps", rotation=0, ha="right", va="center")
        beside(figure, axes[0, 0])
    return files


def _reading(arm: Arm, x: Axis) -> np.ndarray:
    """Where the records lie on an axis, shape (records,); the mean over the seeds of what differs between them."""
    if x == "bits":
        if "bits" not in arm.records:
            raise ConfigError('bits are counted by transform = "compressed_sgd" only; draw against something else.')
        return arm.records["bits"].mean(axis=0)
    if x == "steps":
        return arm.records["step"]
    return seconds(arm) if x == "seconds" else gradients(arm).mean(axis=0)


class _Zero(NamedTuple):
    """What an axis of the objective begins at."""

    level: float = 0.0
    floor: float = -np.inf  # the lowest that is drawn above it
    label: str = _PANELS["value"]


def _zero(arms: Mapping[str, Arm]) -> _Zero:
    """Zero where the least objective is near it; else the known minimum, or the least on record."""
    values = [arm.of(arm.objective) for arm in arms.values() if arm.finite.any()]
    if not values:
        return _Zero()
    least, most = min(float(each.min()) for each in values), max(float(each.mean(axis=0).max()) for each in values)
    marks = {level: name for arm in arms.values() for name, level in arm.info.get("landmarks", {}).items()}
    level = min(marks, default=np.inf)
    is_known = level <= least + _DEEP * (most - least)
    if not is_known:
        level = least
    height = most - level
    near = abs(level) <= _DEEP * height if is_known else most > 8 * least > 0 or (least <= 0 and most > -100 * least)
    if near or not height > 0:
        return _Zero()
    rounding = 4 * max(float(np.finfo(each.dtype).eps * np.abs(each).max()) for each in values)
    name = r"_{\mathrm{best}}$" if not is_known else "$({})".format(marks[level].replace("$", r"\$"))
    return _Zero(level, max(_DEEP * height, rounding), rf"objective $F(\mu_k)-F{name}")


def band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over the seeds, and the mean less and plus a standard deviation, cut where no seed has been.

    The cut keeps the band of a positive quantity positive, as a logarithmic axis needs.
    """
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    return mean, np.maximum(mean - deviation, values.min(axis=0)), mean + deviation


def thinned(*curves: np.ndarray) -> np.ndarray:
    """Which points of some curves over the same axis to draw: of every stretch those where one is lowest or highest.

    A figure shows no more, and a PDF keeps every point that it is given.
    """
    size = curves[0].size
    if size <= 2 * _STRETCHES:
        return np.arange(size)
    starts = np.arange(size, step=-(-size // _STRETCHES))
    kept = {0, size - 1}
    for curve in curves:
        for start, part in zip(starts, np.split(curve, starts[1:]), strict=True):
            kept |= {int(start + np.argmin(part)), int(start + np.argmax(part))}
    return np.array(sorted(kept))


def _panel(
    ax: Any, name: str, arms: Mapping[str, Arm], at: Mapping[str, np.ndarray], styles: Mapping[str, Any]
) -> None:
    zero = _zero(arms) if name == "value" else _Zero(label=_PANELS[name])
    if name == "gradient_norm":
        peaks = [float(arm.of(name).max()) for arm in arms.values() if name in arm.records and arm.finite.any()]
        zero = zero._replace(floor=_STILL * max(peaks, default=0.0))
    curves = [np.zeros(0)]
    for label, arm in arms.items():
        if name not in arm.records or not arm.finite.any():
            continue
        values = arm.of(arm.objective if name == "value" else name) - zero.level
        mean, low, high = (np.maximum(curve, zero.floor) for curve in band(values))
        kept = thinned(mean, low, high)
        lost = "" if arm.finite.all() else f" ({arm.finite.sum()} of {arm.finite.size} seeds)"
        ax.plot(at[label][kept], mean[kept], label=label + lost, **styles[label])
        if len(values) > 1:
            colour = styles[label]["color"]
            ax.fill_between(at[label][kept], low[kept], high[kept], color=colour, alpha=0.15, linewidth=0)
        curves.append(mean)
    known = {level for arm in arms.values() for level in arm.info.get("landmarks", {}).values()}
    if name == "value" and len(known) <= _LANDMARKS:
        for level in known:  # of the critical points: where a staircase has its steps
            if level - zero.level > zero.floor:
                ax.axhline(level - zero.level, color="0.85", linewidth=0.6, zorder=0)
    ax.set_ylabel(zero.label)
    ax.margins(x=0.01)
    if zero.level:
        ax.set_yscale("log")
    else:
        _scale(ax, name, np.concatenate(curves))


def _scale(ax: Any, name: str, drawn: np.ndarray) -> None:
    """A logarithmic axis for what falls by much."""
    least, most = np.min(drawn, initial=np.inf), np.max(drawn, initial=-np.inf)
    if not name.endswith("accuracy") and least > 0 and most > 8 * least:
        ax.set_yscale("log")
    elif name == "value" and least <= 0 and most > -100 * least:
        # An unbiased estimate of a discrepancy goes below zero where it is nothing but noise.
        linear, highest = np.ceil(np.log10(max(-least, 1e-6 * most))), np.ceil(np.log10(most))
        ax.set_yscale("symlog", linthresh=10**linear)
        ax.set_yticks([-(10**linear), 0, *(10 ** np.arange(linear, highest + 1))])


def _strip(ax: Any, jumps: Mapping[str, Arm], at: Mapping[str, np.ndarray], styles: Mapping[str, Any]) -> None:
    """A row of ticks per arm where seeds jumped; the darker, the more of them."""
    for row, (label, arm) in enumerate(jumps.items()):
        share = arm.records["perturbed"].mean(axis=0)
        some = np.flatnonzero(share)
        some = some[thinned(share[some])]
        shade = np.clip(0.25 + 0.75 * share[some], 0, 1)
        look = {"marker": "|", "s": 28, "linewidths": 1, "color": styles[label]["color"], "alpha": shade}
        ax.scatter(at[label][some], np.full(some.size, -row), **look)
    ax.set_ylim(-len(jumps) + 0.4, 0.6)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)


def draw_run(folder: RunFolder, x: Axis | None = None) -> list[Path]:
    """Draw a run: its curves, or what a varied key does if there is one and no axis is asked for.

    Of several methods on several objectives, performance profiles, where any of them comes to a second-order point.
    """
    arms, path = folder.arms(), folder.path / "figure"
    if x is not None:
        return draw(arms, folder.path / f"figure-{x}", x)
    grown = families(arms)
    if all({"varied", "second_order"} <= set(arm.info) for arm in arms.values()):
        solved = any(np.any(arm.to_second_order() < NEVER) for arm in arms.values())
        files = (draw_profile if solved and len(grown) > 1 else draw_varied)(arms, path)
        for i, turn in enumerate(dict.fromkeys(turn for runs in grown.values() for turn in runs)):
            own = {name: runs[turn] for name, runs in grown.items() if turn in runs}
            plain = re.fullmatch(r"[\w+-][\w.+-]*", str(turn))  # a folder from elsewhere may say ../x
            files += draw(own, folder.path / f"figure-{turn if plain else i}")
        return files
    files = (draw_varied if grown else draw)(arms, path)
    if snapshots := folder.snapshots():
        files += particles.draw_snapshots(snapshots, folder.path / "particles")
    return files


def draw_varied(arms: Mapping[str, Arm], path: Path) -> list[Path]:
    """Draw what a varied key does: when seeds leave their start and what they end at, medians and quartiles of them.

    A seed has left where its objective is half of what it was. A median that was not reached is not drawn. Where
    small classes are measured, how these end is drawn instead.
    """
    grown = families(arms)
    turns = list(dict.fromkeys(turn for runs in grown.values() for turn in runs))
    every = [arm for runs in grown.values() for arm in runs.values()]
    numeric = all(isinstance(turn, int | float) and turn > 0 for turn in turns)
    common = [name for name in _PANELS if all(name in arm.records for arm in every)]
    end = next((name for name in ("free_energy", "test_loss", "test_accuracy") if name in common), "value")
    classes = "tail_accuracy" in common
    with canvas(path, (6.4, 2.6)) as (figure, files):
        left, right = figure.subplots(1, 2)
        lows = []
        for i, (name, runs) in enumerate(grown.items()):
            aside = 0.08 * (i - (len(grown) - 1) / 2)  # words leave room for it, and errors hide each other
            at = np.array([turn if numeric else turns.index(turn) + aside for turn in runs])
            look = {"marker": "osD^vPX"[i % 7], "markersize": 3.5, "capsize": 2, "label": name, **style(i)}
            look |= {} if numeric else {"linestyle": "none"}  # nothing lies between two names
            leaving = [arm.of("tail_accuracy")[:, -1] if classes else arm.halved for arm in runs.values()]
            longest = np.inf if classes else np.array([arm.records["step"][-1] for arm in runs.values()])
            _quartiles(left, at, leaving, longest, look)
            final = [arm.of(arm.objective if end == "value" else end)[:, -1] for arm in runs.values()]
            lows.append(_quartiles(right, at, final, np.inf, look))
        for ax in (left, right):
            if numeric:
                ax.set_xscale("log")
            ax.set_xticks(turns if numeric else range(len(turns)), [str(turn) for turn in turns])
            ax.minorticks_off()
            ax.set_xlabel(_named(every[0].info["varied"]["key"]))
        left.set_ylabel(f"final {_PANELS['tail_accuracy']}" if classes else r"steps to $F_0/2$")
        right.set_ylabel(f"final {_PANELS[end]}")
        if not classes:
            left.set_ylim(bottom=0)
        if np.min(np.concatenate(lows), initial=np.inf) > 0 and not classes:
            right.set_yscale("log")
        beside(figure, right)
    return files


def _named(key: str) -> str:
    """A key of a config in words, or in the symbol it has."""
    last = key.rpartition(".")[2]
    return _KEYS.get(last, last.replace("_", " "))


def _quartiles(ax: Any, at: np.ndarray, values: Sequence[np.ndarray], longest: Any, look: Mapping) -> np.ndarray:
    """Medians with bars to the quartiles, as far as they are reached; the lower quartiles."""
    quartiles = [np.quantile(each, [0.25, 0.5, 0.75]) if each.size else np.full(3, np.nan) for each in values]
    low, middle, high = np.array(quartiles).T
    there = middle <= longest
    bars = np.stack([middle - low, np.minimum(high, longest) - middle])
    ax.errorbar(at[there], middle[there], bars[:, there], **look)
    return low[there]


def draw_profile(arms: Mapping[str, Arm], path: Path) -> list[Path]:
    """Draw performance profiles: the share of objectives and seeds on which a method needs at most τ times the least.

    Compared is the cost of coming to a second-order point, in gradients.

    References:
        Dolan, Moré, Math. Program. 91 (2002).
    """
    grown = families(arms)
    costs = np.stack(
        [np.concatenate([arm.to_second_order(gradients(arm)) for arm in runs.values()]) for runs in grown.values()]
    )
    ratios = np.where(costs < NEVER, np.maximum(costs, 1.0) / np.maximum(costs.min(axis=0), 1.0), np.inf)
    largest = 2 * max(float(np.max(ratios[ratios < np.inf], initial=1.0)), 1.5)
    with canvas(path, (4.4, 3.2)) as (figure, files):
        ax = figure.subplots()
        for i, (name, row) in enumerate(zip(grown, ratios, strict=True)):
            at = np.sort(row[np.isfinite(row)])
            share = [0, *(np.arange(1, at.size + 1) / row.size)]
            ax.step([1, *at, largest], [*share, share[-1]], where="post", label=name, **style(i))
        ax.set(xscale="log", xlim=(1, largest), ylim=(0, 1.02), ylabel="share of problems and seeds solved")
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter("{x:g}" if largest < 5 else "")
        ax.set_xlabel(r"cost, in multiples $\tau$ of the cheapest method's")
        beside(figure, ax)
    return files


def plot_spectrum(
    density: SpectralDensity, pairs: Eigenpairs, delta: float, ax: Any = None, *, width: float | None = None
) -> Any:
    """Draw a spectral density, with zero, −δ and the extreme eigenvalues marked, on a logarithmic axis.

    Args:
        density: of :func:`pwgf_jax.spectral_density`.
        pairs: of :func:`pwgf_jax.extreme_eigenpairs`.
        delta: the curvature that counts as negative.
        ax: matplotlib axes; new ones if None.
        width: standard deviation that every node is broadened by; 1 % of the spectrum's width if None.

    Returns:
        The axes.

    Example:
        >>> import jax, jax.numpy as jnp, matplotlib
        >>> matplotlib.use("Agg")
        >>> from pwgf_jax import extreme_eigenpairs, spectral_density
        >>> loss, x, key = lambda x: jnp.sum(jnp.cos(x) * jnp.arange(4.0)), jnp.zeros(4), jax.random.key(0)
        >>> axes = plot_spectrum(spectral_density(loss, x, key), extreme_eigenpairs(loss, x, key, 1), delta=0.5)
        >>> axes.get_xlabel()
        'eigenvalue'
    """
    import matplotlib.pyplot as plt

    if ax is None:
        ax = plt.subplots(figsize=(7.6, 3.2), layout="constrained")[1]
    values = np.asarray(pairs.eigenvalues, float)
    low, high = min(values[0], -delta, 0.0), max(values[-1], 0.0)
    span = (high - low) or 1.0
    broad = span / 100 if width is None else width
    grid = np.linspace(low - 0.05 * span, high + 0.05 * span, _POINTS)
    heights = np.asarray(density.density(jnp.asarray(grid, density.nodes.dtype), broad))
    ax.semilogy(grid, heights, color="#0072B2", linewidth=1.2, label="density")
    floor = _LEAST / (density.size * broad * np.sqrt(2 * np.pi))
    ax.set_ylim(floor, 3 * heights.max())
    ax.axvline(0.0, color="#000000", linewidth=0.8, label="0")
    ax.axvline(-delta, color="#D55E00", linewidth=0.8, linestyle="--", label=f"−δ = {-delta:.3g}")
    foot = np.full(values.size, 1.6 * floor)
    ax.plot(values, foot, "^", color="#009E73", markersize=5, label="extreme eigenvalues", zorder=3)
    ax.set(xlabel="eigenvalue", ylabel="density of the spectrum")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax
