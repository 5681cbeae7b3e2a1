"""Figures of runs: mean and standard deviation over the seeds, against steps or cost, and what a varied key does."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jax.numpy as jnp
import numpy as np

from pwgf_jax.density import Eigenpairs, SpectralDensity
from pwgf_jax.experiments.costs import gradients, seconds
from pwgf_jax.experiments.reading import ConfigError
from pwgf_jax.experiments.report.tables import NEVER, halved, to_second_order, varied
from pwgf_jax.experiments.results import Arm
from pwgf_jax.solve.files import replacing

__all__ = [
    "Axis",
    "band",
    "canvas",
    "draw",
    "draw_profile",
    "draw_snapshots",
    "draw_varied",
    "plot_spectrum",
    "style",
    "thinned",
]

Axis: TypeAlias = Literal["steps", "gradients", "seconds", "bits"]

# Okabe and Ito's colours, which all kinds of colour vision tell apart, without the yellow that white paper swallows;
# in an order of falling contrast of lightness, and with a line style each, so that they also work in grey.
_COLOURS = ("#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
_LINES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
_POINTS = 2000  # of the curve of a spectrum
_LEAST = 0.1  # of one eigenvalue: the lowest height that its axis shows
_STRETCHES = 1000  # of an axis: more than a printer's dots across a panel
_LANDMARKS = 12  # values of critical points that a panel has room for
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


def draw(arms: Mapping[str, Arm], path: Path, x: Axis = "steps") -> list[Path]:
    """Draw a figure of several arms, as PNG and as PDF.

    Args:
        arms: by label.
        path: where to, without a suffix.
        x: what to draw against; what cost means is in :mod:`.costs`.

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
    shown = [name for name in _PANELS if any(name in arm.records for arm in arms.values())]
    for telling, other in {"test_accuracy": "test_loss", "tail_accuracy": "gradient_norm"}.items():
        if telling in shown and other in shown:
            shown.remove(other)
    jumps = {label: arm for label, arm in arms.items() if arm.records["perturbed"].any()}
    strip = 0.12 + 0.09 * len(jumps)
    with canvas(path, (3.4 * len(shown), 2.5 + strip)) as (figure, files):
        axes = figure.subplots(
            2 if jumps else 1,
            len(shown),
            squeeze=False,
            sharex=True,
            height_ratios=[2.5, strip] if jumps else [1],
        )
        if engine := figure.get_layout_engine():
            engine.set(hspace=0, h_pad=0.02)  # pyright: ignore[reportCallIssue]
        styles = {label: style(i) for i, label in enumerate(arms)}
        at = {label: _reading(arm, x) for label, arm in arms.items()}
        for column, name in enumerate(shown):
            _panel(axes[0, column], name, arms, at, styles)
            if jumps:
                _strip(axes[1, column], jumps, at, styles, labelled=column == 0)
            axes[-1, column].set_xlabel(_AXES[x])
            ends = [float(readings[-1]) for readings in at.values()]
            if max(ends) > 5 * min(ends) > 0:  # arms of very different lengths
                axes[-1, column].set_xscale("symlog", linthresh=min(ends) / 10)
        # Where curves fall, the upper right is free.
        if len(arms) <= 7:
            axes[0, 0].legend(frameon=False, handlelength=2.6, loc="best")
        else:
            lines, names = axes[0, 0].get_legend_handles_labels()
            figure.legend(lines, names, frameon=False, handlelength=2.6, loc="outside right center", fontsize=7)
    return files


def style(i: int) -> dict[str, Any]:
    """Colour and line of the i-th curve of a figure.

    Example:
        >>> style(0)
        {'color': '#000000', 'linestyle': '-'}
    """
    return {"color": _COLOURS[i % len(_COLOURS)], "linestyle": _LINES[i % len(_LINES)]}


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

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, canvas(Path(folder) / "a", (1.0, 1.0)) as (figure, files):
        ...     ax = figure.subplots()
        >>> [file.name for file in files]
        ['a.png', 'a.pdf']
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("figures need matplotlib: pip install 'pwgf_jax[viz]', then `pwgf plot`.") from error
    logging.getLogger("fontTools").setLevel(logging.ERROR)  # it remarks on the time stamps of fonts
    files = [path.with_name(f"{path.name}.{kind}") for kind in ("png", "pdf")]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure, files
        for file in files:
            with replacing(file) as new:
                figure.savefig(new, dpi=300, format=file.suffix[1:])


def draw_varied(arms: Mapping[str, Arm], path: Path) -> list[Path]:
    """Draw what a varied key does: when seeds leave their start and what they end at, medians and quartiles of them.

    A seed has left where its objective is half of what it was. A median that was not reached is not drawn. Where
    small classes are measured, how these end is drawn instead.

    Args:
        arms: those of a run with a varied key.
        path: where to, without a suffix.

    Returns:
        The files written.

    Raises:
        ConfigError: if matplotlib is not installed.

    Example:
        >>> import tempfile
        >>> arms = {}
        >>> for n in (50, 100):
        ...     records = {"step": np.array([0, n]), "value": np.array([[4.0, 1.0], [4.0, 2.0]])}
        ...     about = {"varied": {"arm": "hessian", "key": "problem.particles", "value": n}}
        ...     arms[f"hessian-{n}"] = Arm(records, np.array([2, 2]), about)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [file.name for file in draw_varied(arms, Path(folder) / "figure")]
        ['figure.png', 'figure.pdf']
    """
    families = varied(arms)
    values = list(dict.fromkeys(value for runs in families.values() for value, _ in runs))
    numeric = all(isinstance(value, int | float) and value > 0 for value in values)
    every = [arm for runs in families.values() for _, arm in runs]
    common = [name for name in _PANELS if all(name in arm.records for arm in every)]
    end = next((name for name in ("free_energy", "test_loss", "test_accuracy") if name in common), "value")
    classes = "tail_accuracy" in common
    with canvas(path, (7.2, 2.8)) as (figure, files):
        left, right = figure.subplots(1, 2)
        ends = []
        for i, (name, runs) in enumerate(families.items()):
            beside = 0.08 * (i - (len(families) - 1) / 2)  # words leave room for it, and errors hide each other
            at = np.array([value if numeric else values.index(value) + beside for value, _ in runs])
            look = {"marker": "osD^vPX"[i % 7], "markersize": 3.5, "capsize": 2, "label": name, **style(i)}
            if not numeric:  # nothing lies between two names
                look["linestyle"] = "none"
            left_of = [arm.of("tail_accuracy")[:, -1] if classes else halved(arm) for _, arm in runs]
            low, middle, high = np.array([np.quantile(values, [0.25, 0.5, 0.75]) for values in left_of]).T
            longest = np.array([arm.records["step"][-1] for _, arm in runs])
            there = middle <= longest
            spread = np.stack([middle - low, np.minimum(high, longest) - middle])[:, there]
            left.errorbar(at[there], middle[there], spread, **look)
            last = [arm.of(arm.objective if end == "value" else end)[:, -1] for _, arm in runs]
            low, middle, high = np.array([np.quantile(values, [0.25, 0.5, 0.75]) for values in last]).T
            right.errorbar(at, middle, [middle - low, high - middle], **look)
            ends.append(low)
        for ax in (left, right):
            if numeric:
                ax.set_xscale("log")
            ax.set_xticks(values if numeric else range(len(values)), [str(value) for value in values])
            ax.minorticks_off()
            ax.set_xlabel(next(arm.info["varied"]["key"] for arm in arms.values() if "varied" in arm.info))
        left.set_ylabel(f"final {_PANELS['tail_accuracy']}" if classes else r"steps to $F_0/2$")
        if not classes:
            left.set_ylim(bottom=0)
        right.set_ylabel(f"final {_PANELS[end]}")
        if np.concatenate(ends).min() > 0 and not classes:
            right.set_yscale("log")
        right.legend(frameon=False, handlelength=2.6)
    return files


def draw_profile(arms: Mapping[str, Arm], path: Path) -> list[Path]:
    """Draw performance profiles: the share of objectives and seeds on which a method needs at most τ times the least.

    Compared is the cost of coming to a second-order point, in gradients.

    Args:
        arms: those of a run over several objectives.
        path: where to, without a suffix.

    Returns:
        The files written.

    Raises:
        ConfigError: if matplotlib is not installed.

    Example:
        >>> import tempfile
        >>> arms = {}
        >>> for name, steps in {"pgd": 5, "sgd": 10}.items():
        ...     records = {"step": np.array([0, steps]), "perturbed": np.zeros((1, 2), bool)}
        ...     records |= {"gradient_norm": np.array([[1.0, 0.0]]), "curvature": np.array([[-1.0, 1.0]])}
        ...     about = {"second_order": {"eps": 0.1, "delta": 0.1}, "varied": {"arm": name, "value": "a"}}
        ...     arms[name] = Arm(records, np.array([2]), about)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [file.name for file in draw_profile(arms, Path(folder) / "figure")]
        ['figure.png', 'figure.pdf']

    References:
        Dolan, Moré, Math. Program. 91 (2002).
    """
    families = varied(arms)
    costs = {
        name: np.concatenate([to_second_order(arm, gradients(arm)) for _, arm in runs])
        for name, runs in families.items()
    }
    every = np.stack(list(costs.values()))
    solved = every < NEVER
    best = np.maximum(every.min(axis=0), 1.0)
    ratios = np.where(solved, np.maximum(every, 1.0) / best, np.inf)
    largest = 2 * max(float(np.max(ratios[solved], initial=1.0)), 1.5)
    with canvas(path, (6.2, 3.2)) as (figure, files):
        ax = figure.subplots()
        for i, (name, row) in enumerate(zip(costs, ratios, strict=True)):
            at = np.sort(row[np.isfinite(row)])
            share = np.arange(1, at.size + 1) / row.size
            ax.step(
                [1, *at, largest], [0, *share, share[-1] if share.size else 0], where="post", label=name, **style(i)
            )
        ax.set_xscale("log")
        ax.set_xlim(1, largest)
        ax.set_ylim(0, 1.02)
        ax.set_xlabel(r"cost, in multiples $\tau$ of the cheapest method's")
        ax.set_ylabel("share of problems and seeds solved")
        ax.legend(frameon=False, handlelength=2.6, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7)
    return files


def draw_snapshots(arms: Mapping[str, Mapping[str, np.ndarray]], path: Path) -> list[Path]:
    """Draw where the particles are: an arm a row, a step a column, the target in grey; the first two coordinates.

    The frame leaves out the outermost 0.2 % of all points on each side, so that a few that fly off do not shrink the
    picture, and says how many particles it does not show.

    Args:
        arms: snapshots by label, each with "step" (k,), "points" (k, N, d) and perhaps "target" (M, d).
        path: where to, without a suffix.

    Returns:
        The files written.

    Raises:
        ConfigError: if matplotlib is not installed.

    Example:
        >>> import tempfile
        >>> snapshots = {"step": np.array([0, 9]), "points": np.ones((2, 5, 2)), "target": np.zeros((3, 2))}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [file.name for file in draw_snapshots({"static": snapshots}, Path(folder) / "particles")]
        ['particles.png', 'particles.pdf']
    """
    steps = sorted({int(step) for arm in arms.values() for step in arm["step"]})
    clouds = [cloud for arm in arms.values() for cloud in (*arm["points"], arm.get("target")) if cloud is not None]
    everywhere = np.concatenate([_plane(cloud) for cloud in clouds])
    everywhere = everywhere[np.isfinite(everywhere).all(axis=1)]
    low, high = np.quantile(everywhere, [0.002, 0.998], axis=0)
    margin = 0.08 * max(*(high - low), 1e-6)
    low, high = low - margin, high + margin
    with canvas(path, (1.5 * len(steps) + 0.2, 1.55 * len(arms) + 0.2)) as (figure, files):
        axes = figure.subplots(len(arms), len(steps), squeeze=False, sharex=True, sharey=True)
        for row, (label, arm) in zip(axes, arms.items(), strict=True):
            row[0].set_ylabel(label)
            for ax, step in zip(row, steps, strict=True):
                ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
                ax.set_aspect("equal")
                ax.tick_params(labelsize=6, length=2)
                there = arm["points"][arm["step"] == step]
                ax.set_visible(len(there) > 0)  # an arm may end before the others
                for points in there:
                    if "target" in arm:
                        ax.scatter(*_plane(arm["target"]).T, s=1.5, color="0.75", linewidths=0)
                    at = _plane(points)
                    ax.scatter(*at.T, s=2.5, color=_COLOURS[2], linewidths=0)
                    if outside := int(np.sum(~np.all((at > low) & (at < high), axis=1))):
                        ax.text(0.98, 0.02, f"{outside} outside", transform=ax.transAxes, fontsize=5, ha="right")
        for ax, step in zip(axes[0], steps, strict=True):
            ax.set_title(f"$k={step}$", fontsize=8)
    return files


def thinned(*curves: np.ndarray) -> np.ndarray:
    """Which points of some curves over the same axis to draw: of every stretch those where one is lowest or highest.

    A figure shows no more, and a PDF keeps every point that it is given.

    Example:
        >>> curve = np.zeros(100_000)
        >>> curve[54321] = 1.0
        >>> kept = thinned(curve)
        >>> len(kept) < 3000, 54321 in kept, [int(i) for i in kept[[0, -1]]]
        (True, True, [0, 99999])
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


def _plane(points: np.ndarray) -> np.ndarray:
    """The first two coordinates; of a line, heights of zero."""
    return points[:, :2] if points.shape[1] > 1 else np.pad(points, ((0, 0), (0, 1)))


def _reading(arm: Arm, x: Axis) -> np.ndarray:
    """Where the records lie on an axis, shape (records,); the mean over the seeds of what differs between them."""
    if x == "steps":
        return arm.records["step"]
    if x == "bits":
        if "bits" not in arm.records:
            raise ConfigError('bits are counted by transform = "compressed_sgd" only; draw against something else.')
        return arm.records["bits"].mean(axis=0)
    return seconds(arm) if x == "seconds" else gradients(arm).mean(axis=0)


def _panel(
    ax: Any, name: str, arms: Mapping[str, Arm], at: Mapping[str, np.ndarray], styles: Mapping[str, Any]
) -> None:
    curves = []
    for label, arm in arms.items():
        if name not in arm.records or not arm.finite.any():
            continue
        values, step = arm.of(arm.objective if name == "value" else name), at[label]
        mean, low, high = band(values)
        kept = thinned(mean, low, high)
        step, mean, low, high = step[kept], mean[kept], low[kept], high[kept]
        missing = int(arm.finite.size - arm.finite.sum())
        said = f"{label} ({arm.finite.sum()} of {arm.finite.size} seeds)" if missing else label
        ax.plot(step, mean, label=said, **styles[label])
        if len(values) > 1:
            ax.fill_between(step, low, high, color=styles[label]["color"], alpha=0.15, linewidth=0)
        curves.append(mean)
    known = {level for arm in arms.values() for level in arm.info.get("landmarks", {}).values()}
    if name == "value" and len(known) <= _LANDMARKS:
        for level in known:  # of the critical points: where a staircase has its steps
            ax.axhline(level, color="0.85", linewidth=0.6, zorder=0)
    ax.set_ylabel(_PANELS[name])
    ax.margins(x=0.01)
    every = np.concatenate(curves) if curves else np.ones(1)
    if not name.endswith("accuracy") and every.min() > 0 and every.max() > 8 * every.min():
        ax.set_yscale("log")
    elif name == "value" and every.min() <= 0 and every.max() > 100 * -every.min():
        # An unbiased estimate of a discrepancy goes below zero where it is nothing but noise.
        smallest = max(-every.min(), 1e-6 * every.max())
        linear, highest = np.ceil(np.log10(smallest)), np.ceil(np.log10(every.max()))
        ax.set_yscale("symlog", linthresh=10**linear)
        ax.set_yticks([-(10**linear), 0, *(10 ** np.arange(linear, highest + 1))])


def _strip(
    ax: Any, jumps: Mapping[str, Arm], at: Mapping[str, np.ndarray], styles: Mapping[str, Any], *, labelled: bool
) -> None:
    """A row of ticks per arm where seeds jumped; the darker, the more of them."""
    for row, (label, arm) in enumerate(jumps.items()):
        share = arm.records["perturbed"].mean(axis=0)
        some = np.flatnonzero(share)
        some = some[thinned(share[some])]
        ax.scatter(
            at[label][some],
            np.full(some.size, -row),
            marker="|",
            s=28,
            linewidths=1,
            color=styles[label]["color"],
            alpha=np.clip(0.25 + 0.75 * share[some], 0, 1),
        )
    ax.set_ylim(-len(jumps) + 0.4, 0.6)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    if labelled:
        ax.set_ylabel("jumps", rotation=0, ha="right", va="center")


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
        ax = plt.subplots(figsize=(6, 3.2), layout="constrained")[1]
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
    ax.legend(frameon=False)
    return ax
