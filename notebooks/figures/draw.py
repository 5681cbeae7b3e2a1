"""The drawings of README and book: `python notebooks/figures/draw.py` writes them beside itself (half a minute).

`escape.svg` is computed; `which_method.svg` and `house.svg` are boxes and arrows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

from pwgf_jax import Particles, certify, isotropic_pwgf, pwgf, sweep, wgf
from pwgf_jax.functionals import matrix_factorization

HERE = Path(__file__).parent
BLACK, ORANGE, BLUE, GREY = "#000000", "#E69F00", "#0072B2", "#777777"
SEEDS, STEPS, PAIRS = 10, 500, 100


def network(outer: jax.Array, inner: jax.Array, inputs: jax.Array) -> jax.Array:
    """The teacher's outputs."""
    return jnp.tanh(inputs @ inner.T) @ outer / len(outer) ** 0.5


def problem(key: jax.Array) -> tuple[Any, Particles]:
    """Rank-one matrix factorisation, started where the network's output is zero, up to a jitter of 1e-6."""
    a, w, z, start, jitter = jax.random.split(key, 5)
    inputs = jax.random.normal(z, (200, 8))
    targets = network(jax.random.normal(a, (20, 3)), jax.random.normal(w, (20, 8)) / 8**0.5, inputs)
    half = 0.3 * jax.random.normal(start, (PAIRS, 11))
    points = jnp.concatenate([half, half * jnp.array([-1.0] * 3 + [1.0] * 8)])
    return matrix_factorization(inputs, targets), Particles.uniform(
        points + 1e-6 * jax.random.normal(jitter, points.shape)
    )


def escape() -> plt.Figure:
    """Three arms leave a saddle; a certificate of the start, and of the end of each arm."""
    jumps = {"eps": 0.02, "eta_p": 0.015, "k_thres": 100, "f_thres": 0.0}
    arms = {
        "no noise": (wgf(0.1), BLACK, ":"),
        "isotropic noise": (isotropic_pwgf(0.1, **jumps), ORANGE, "--"),
        "Hessian-guided noise": (pwgf(0.1, **jumps), BLUE, "-"),
    }
    keys = jax.random.split(jax.random.key(0), SEEDS)
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.6), width_ratios=[3, 2], layout="constrained")
    F, start = problem(keys[0])
    ends = {"start": (start, GREY)}
    for name, (method, colour, line) in arms.items():
        found = sweep(method, problem, keys, STEPS)
        values = np.asarray(found.records["value"])
        low, middle, high = np.quantile(values / values[:, :1], [0.25, 0.5, 0.75], axis=0)
        left.plot(middle, color=colour, linestyle=line, label=name)
        left.fill_between(np.arange(STEPS + 1), low, high, color=colour, alpha=0.15, linewidth=0)
        ends[name] = jax.tree.map(lambda leaf: leaf[0], found.mu), colour
    left.set(xlabel="step", ylabel=r"objective $F(\mu_k)/F(\mu_0)$", xlim=(0, STEPS), ylim=(0, 1.05))
    left.legend(frameon=False, fontsize=8)
    for row, (name, (mu, colour)) in enumerate(ends.items()):
        found = certify(F, mu, eps=0.1, delta=0.1, key=jax.random.key(1))
        right.plot([found.full.eigenvalue], [-row], "o", color=colour, markersize=5)
        text = found.verdict.name.replace("_", " ")
        right.annotate(f"{name}: {text}", (0.02, -row + 0.28), fontsize=7.5, xycoords=("axes fraction", "data"))
    right.axvline(-0.1, color=GREY, linewidth=0.8, linestyle="--")
    right.set(xlabel=r"certified $\lambda_{\min}$ of the Hessian", yticks=[], ylim=(-len(ends) + 0.6, 0.7))
    return figure


def boxes(
    size: tuple[float, float], places: Mapping[str, tuple[float, float]], arrows: list[tuple[str, str, str]]
) -> Any:
    """Boxes at places, and arrows with words between them."""
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    ax.set(xlim=(0, 10), ylim=(0, size[1] * 10 / size[0]))
    ax.axis("off")
    drawn = {}
    for text, (x, y) in places.items():
        leaf = text.startswith("`")
        face = "#E8F1F8" if leaf else "#F5F5F5"
        look = {"boxstyle": "round,pad=0.35", "facecolor": face, "edgecolor": GREY, "linewidth": 0.7}
        family = {"family": "monospace"} if leaf else {}
        drawn[text] = ax.text(x, y, text.strip("`"), ha="center", va="center", fontsize=8, bbox=look, **family)
    figure.canvas.draw()
    for start, end, words in arrows:
        look = {"arrowstyle": "-|>", "color": GREY, "linewidth": 0.8, "shrinkA": 3, "shrinkB": 3}
        ends = {"patchA": drawn[start].get_bbox_patch(), "patchB": drawn[end].get_bbox_patch()}
        ax.annotate("", places[end], places[start], arrowprops=look | ends)
        middle = np.mean([places[start], places[end]], axis=0)
        if words:
            white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            ax.text(*middle, words, ha="center", va="center", fontsize=7, color=GREY, bbox=white)
    return figure


def which_method() -> plt.Figure:
    """From the kind of problem to a method over measures."""
    places = {
        "many digits wanted?": (5, 5.6),
        "`saddle_free_newton`": (8.4, 5.6),
        "a density, no sample?": (5, 4.5),
        "`svgd, ksd_descent, langevin`": (8.4, 4.5),
        "F convex under mixtures\n(MMD, least squares)?": (5, 3.3),
        "particles lost far away?": (8.4, 3.3),
        "`noise_injection`": (8.4, 2.1),
        "jumps cheap to undo?": (5, 2.1),
        "`pwgf`": (3.2, 0.9),
        "`certified_pwgf`": (6.6, 0.9),
    }
    arrows = [
        ("many digits wanted?", "`saddle_free_newton`", "yes"),
        ("many digits wanted?", "a density, no sample?", "no"),
        ("a density, no sample?", "`svgd, ksd_descent, langevin`", "yes"),
        ("a density, no sample?", "F convex under mixtures\n(MMD, least squares)?", "no"),
        ("F convex under mixtures\n(MMD, least squares)?", "particles lost far away?", "yes"),
        ("F convex under mixtures\n(MMD, least squares)?", "jumps cheap to undo?", "no"),
        ("particles lost far away?", "`noise_injection`", "yes"),
        ("particles lost far away?", "`certified_pwgf`", "no"),
        ("jumps cheap to undo?", "`pwgf`", "yes"),
        ("jumps cheap to undo?", "`certified_pwgf`", "no"),
    ]
    return boxes((7.2, 4.5), places, arrows)


def house() -> plt.Figure:
    """What is derived from a functional."""
    places = {
        "functional F(μ)": (1.2, 3.4),
        "gradient ∇F": (3.7, 3.4),
        "Hessian H, an operator": (6.4, 3.4),
        "functions φ(H) by Lanczos": (8.9, 2.4),
        "certificates, spectra": (8.9, 3.4),
        "noise ξ = H z": (6.4, 1.4),
        "direction φ(H)∇F": (3.7, 2.4),
        "flow = direction ∘ optax ∘ noise ∘ trigger": (3.7, 1.4),
        "run, sweep: one compiled scan": (3.7, 0.5),
    }
    arrows = [
        ("functional F(μ)", "gradient ∇F", ""),
        ("gradient ∇F", "Hessian H, an operator", ""),
        ("Hessian H, an operator", "certificates, spectra", ""),
        ("Hessian H, an operator", "functions φ(H) by Lanczos", ""),
        ("Hessian H, an operator", "noise ξ = H z", ""),
        ("functions φ(H) by Lanczos", "direction φ(H)∇F", ""),
        ("gradient ∇F", "direction φ(H)∇F", ""),
        ("direction φ(H)∇F", "flow = direction ∘ optax ∘ noise ∘ trigger", ""),
        ("noise ξ = H z", "flow = direction ∘ optax ∘ noise ∘ trigger", ""),
        ("flow = direction ∘ optax ∘ noise ∘ trigger", "run, sweep: one compiled scan", ""),
    ]
    return boxes((7.6, 2.9), places, arrows)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)  # in float32 rounding decides when an arm without noise leaves
    # The same bytes whenever nothing has changed.
    mpl.rcParams.update({"svg.hashsalt": "pwgf_jax", "svg.fonttype": "path", "font.size": 9})
    for draw in (escape, which_method, house):
        draw().savefig(HERE / f"{draw.__name__}.svg", metadata={"Date": None})
