"""A figure of the spectrum of a Hessian."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from pwgf_jax.density import Eigenpairs, SpectralDensity

__all__ = ["plot_spectrum"]

_POINTS = 2000  # of the curve
_LEAST = 0.1  # of one eigenvalue: the lowest height that the axis shows


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
