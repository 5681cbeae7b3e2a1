"""Kernels given by their features, and random features: cost O((n + m)·features), no matrix of pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree

from pwgf_jax.kernels.base import Kernel
from pwgf_jax.kernels.families import Gaussian
from pwgf_jax.kernels.radial import Radial
from pwgf_jax.measures import traceable

__all__ = ["Feature", "feature", "random_features"]


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Feature(Kernel):
    r"""The kernel made by :func:`feature`, times a factor.

    Example:
        >>> import jax.numpy as jnp
        >>> k = 3.0 * feature(lambda x: x)
        >>> k(jnp.ones((2, 1)), jnp.ones((1, 1))).tolist()
        [[3.0], [3.0]]
    """

    phi: Callable[[PyTree], Float[Array, "n b"]]
    factor: Any = 1.0

    def _mean(self, y: PyTree, w: Array) -> Array:
        """The moment (c/b) Σ_j w_j φ(y_j)."""
        features = self.phi(y)
        return jnp.asarray(self.factor, features.dtype) / features.shape[1] * _dot(w, features)

    def _gradient(self, x: PyTree, moment: Array) -> tuple[Array, PyTree]:
        """⟨φ(x_i), moment⟩ and its gradient in x_i."""

        def total(x: PyTree) -> tuple[Array, Array]:
            values = _dot(self.phi(x), moment)
            return jnp.sum(values), values

        (_, values), gradients = jax.value_and_grad(total, has_aux=True)(x)
        return values, gradients

    def __call__(self, x: PyTree, y: PyTree) -> Float[Array, "n m"]:
        """The matrix k(x_i, y_j)."""
        left, right = self.phi(x), self.phi(y)
        return jnp.asarray(self.factor, left.dtype) / left.shape[1] * _dot(left, right.T)

    def diagonal(self, x: PyTree) -> Float[Array, " n"]:
        """The squared norms of the features, over b."""
        features = self.phi(x)
        return jnp.asarray(self.factor, features.dtype) * jnp.mean(features**2, axis=1)

    def sums(
        self, x: PyTree, y: PyTree, w: Float[Array, " m"], *, chunk_size: int | None = None
    ) -> tuple[Float[Array, " n"], PyTree]:
        """Σ_j w_j k(x_i,y_j) and Σ_j w_j ∇₁k(x_i,y_j)."""
        return self._gradient(x, self._mean(y, w))

    def values(
        self, x: PyTree, y: PyTree, w: Float[Array, " m"], *, chunk_size: int | None = None
    ) -> Float[Array, " n"]:
        """Σ_j w_j k(x_i,y_j)."""
        return _dot(self.phi(x), self._mean(y, w))

    def mixed(self, x: PyTree, y: PyTree, v: PyTree, *, chunk_size: int | None = None) -> PyTree:
        """Σ_j ∇₁∇₂k(x_i,y_j) v_j."""
        ones = jnp.ones_like(jax.tree.leaves(y)[0], shape=jax.tree.leaves(y)[0].shape[:1])
        return self._gradient(x, jax.jvp(lambda y: self._mean(y, ones), (y,), (v,))[1])[1]

    def local(self, x: PyTree, y: PyTree, w: Float[Array, " m"], v: PyTree, *, chunk_size: int | None = None) -> PyTree:
        """Σ_j w_j ∇₁∇₁k(x_i,y_j) v_i."""
        moment = self._mean(y, w)
        return jax.jvp(lambda x: self._gradient(x, moment)[1], (x,), (v,))[1]

    def scaled(self, factor: Any) -> Kernel:
        """The same features, another factor."""
        return Feature(self.phi, self.factor * factor)

    def __mul__(self, other: Any) -> Kernel:
        if not isinstance(other, Feature):
            return super().__mul__(other)
        return Feature(
            Partial(_pairs_of_features, traceable(self.phi), traceable(other.phi)), self.factor * other.factor
        )


def _pairs_of_features(first: Callable, second: Callable, x: PyTree) -> Array:
    left, right = first(x), second(x)
    return (left[:, :, None] * right[:, None, :]).reshape(left.shape[0], -1)


def feature(phi: Callable[[PyTree], Float[Array, "n b"]]) -> Feature:
    r"""The kernel of a feature map, :math:`k(x,y)=\frac1b\sum_{l\le b}\varphi_l(x)\varphi_l(y)`.

    With φ the outputs of a network x on b data points this is the student–teacher kernel. Never forms pairs: sums
    cost O((n + m) b). ``chunk_size`` has no effect.

    Args:
        phi: φ, from points (n, d), or a pytree of such, to (n, b), row by row. Arrays of its own as a
            :class:`jax.tree_util.Partial` make it cross ``jax.jit``.

    Returns:
        A kernel.

    Example:
        >>> import jax.numpy as jnp
        >>> k = feature(lambda x: jnp.tanh(x @ jnp.ones((2, 3))))
        >>> k.sums(jnp.zeros((4, 2)), jnp.ones((5, 2)), jnp.ones(5))[1].shape
        (4, 2)
    """
    return Feature(traceable(phi))


def _waves(frequencies: Array, x: Array) -> Array:
    phase = _dot(x, frequencies.astype(x.dtype).T)
    return jnp.sqrt(jnp.asarray(2, x.dtype)) * jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=1)


def random_features(key: Array, kernel: Radial, dimension: int, count: int) -> Feature:
    r"""Random Fourier features of the Gaussian kernel, :math:`\frac1p\sum_{l\le p}\cos\omega_l^\top(x-y)`.

    Unbiased over :math:`\omega\sim N(0,I/\ell^2)`, translation invariant and one on the diagonal; the error of a
    value is at most :math:`1/\sqrt{2p}` in root mean square.

    Args:
        key: a typed key.
        kernel: ``gaussian(lengthscale)``.
        dimension: d, that of the points.
        count: p ≥ 1, the number of frequencies; there are 2p features.

    Returns:
        A feature kernel.

    Raises:
        TypeError: if the kernel is not Gaussian.
        ValueError: if a size is not positive.

    Example:
        >>> import jax
        >>> from pwgf_jax.kernels import gaussian
        >>> k = random_features(jax.random.key(0), gaussian(1.0), dimension=2, count=100)
        >>> float(k(jax.numpy.ones((1, 2)), jax.numpy.ones((1, 2)))[0, 0])
        1.0

    References:
        Rahimi, Recht, Random features for large-scale kernel machines, NeurIPS 2007.
    """
    if not isinstance(kernel, Radial) or not isinstance(kernel.profile, Gaussian):
        raise TypeError("random_features: the kernel is not Gaussian; give gaussian(lengthscale).")
    if dimension < 1 or count < 1:
        raise ValueError(f"random_features: dimension={dimension}, count={count}; give positive numbers.")
    frequencies = jax.random.normal(key, (count, dimension))
    return Feature(Partial(_waves, frequencies / jnp.asarray(kernel.profile.lengthscale, frequencies.dtype)))
