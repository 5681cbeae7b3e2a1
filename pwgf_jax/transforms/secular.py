"""The secular equation: a quadratic model whose step is held to a length, as in a ball or by a cubic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pwgf_jax import trees

__all__ = ["secular"]


def secular(
    values: Float[Array, " k"], slopes: Float[Array, " k"], length: Callable[[Array], Array], most: Array
) -> Float[Array, " k"]:
    r"""The h with :math:`(\Lambda+s)h=-c` and \|h\| = length(s), where Λ + s ⪰ 0 and s ≥ 0 is least.

    Of :math:`c\cdot h+\frac12h^\top\Lambda h` it is the minimiser in a ball of radius R, for length(s) = R; and with
    :math:`\frac M6|h|^3` added, for length(s) = 2s/M. In a ball a convex model may have its minimiser inside: then
    s = 0. Found by bisection on s, with which \|h\| falls and the length does not. In the *hard case* c has no
    component along the least eigenvector, and no s makes h long enough: that eigenvector, either way, fills the length.

    Args:
        values: the eigenvalues Λ, the least one first.
        slopes: c, in eigen-coordinates.
        length: of s, and not falling with s.
        most: how far above max{0, −λ_min} s can be: \|c\|/most is no longer than the length there.

    Returns:
        h, in eigen-coordinates.

    Example:
        >>> import jax.numpy as jnp
        >>> values, slopes = jnp.array([1.0, 2.0]), jnp.array([3.0, 0.0])
        >>> h = secular(values, slopes, lambda s: jnp.asarray(1.0), jnp.asarray(3.0))  # (1 + s) · 1 = 3
        >>> [round(float(each), 4) for each in h]
        [-1.0, 0.0]
        >>> hard = secular(jnp.array([-1.0, 2.0]), jnp.zeros(2), lambda s: s / 2, jnp.asarray(0.0))  # s = 1, M = 4
        >>> [float(each) for each in hard]
        [0.5, 0.0]

    References:
        Moré, Sorensen, SIAM J. Sci. Stat. Comput. 4 (1983), for the ball and its hard case; Nesterov, Polyak, Math.
        Program. 108 (2006), for the cubic.
    """
    least = jnp.maximum(-values[0], 0)
    above = values + least  # exactly zero for a negative least one: s = least + t is not formed where t is small

    def step(t: Array) -> Array:
        return -trees.divided(slopes, above + t)

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        longer = trees.norm(step(middle)) > length(least + middle)
        return jnp.where(longer, middle, low), jnp.where(longer, high, middle)

    most = most + jnp.finfo(values.dtype).tiny
    _, t = jax.lax.fori_loop(0, 80, halve, (jnp.zeros_like(most), most))
    h = step(t)
    first = jnp.sqrt(jnp.maximum(length(least + t) ** 2 - jnp.sum(h[1:] ** 2), 0))
    return jnp.where(values[0] < 0, h.at[0].set(jnp.where(slopes[0] > 0, -first, first)), h)
