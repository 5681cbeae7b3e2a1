"""What a kernel is, and sums of kernels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

__all__ = ["Kernel", "Sum"]


class Kernel(ABC):
    r"""A symmetric function k of two points, with the sums over many points that particle methods need.

    Every kernel is a frozen pytree whose parameters are leaves. Kernels add, multiply, and take scalar factors:
    ``0.5 * gaussian(1.0) + energy()``. A kernel of one's own derives from this class and is registered as a pytree.
    ``chunk_size`` is the number of rows x_i per pass, None for one chosen so that a pass takes a few MB.

    Example:
        >>> import jax.numpy as jnp
        >>> from pwgf_jax.kernels import energy, gaussian
        >>> k, x = gaussian(1.0) + 0.5 * energy(), jnp.array([[0.0], [2.0]])
        >>> isinstance(k, Kernel), k(x, x).shape
        (True, (2, 2))
    """

    @abstractmethod
    def __call__(self, x: PyTree, y: PyTree) -> Float[Array, "n m"]:
        """The matrix k(x_i, y_j)."""

    @abstractmethod
    def diagonal(self, x: PyTree) -> Float[Array, " n"]:
        """The values k(x_i, x_i)."""

    @abstractmethod
    def sums(
        self, x: PyTree, y: PyTree, w: Float[Array, " m"], *, chunk_size: int | None = None
    ) -> tuple[Float[Array, " n"], PyTree]:
        r""":math:`\sum_jw_jk(x_i,y_j)` and :math:`\sum_jw_j\nabla_1k(x_i,y_j)`, in one pass."""

    @abstractmethod
    def mixed(self, x: PyTree, y: PyTree, v: PyTree, *, chunk_size: int | None = None) -> PyTree:
        r""":math:`\sum_j\nabla_1\nabla_2k(x_i,y_j)\,v_j`, a vector per x_i."""

    @abstractmethod
    def local(self, x: PyTree, y: PyTree, w: Float[Array, " m"], v: PyTree, *, chunk_size: int | None = None) -> PyTree:
        r""":math:`\sum_jw_j\nabla_1\nabla_1k(x_i,y_j)\,v_i`, a vector per x_i."""

    @abstractmethod
    def scaled(self, factor: Any) -> Kernel:
        """The kernel times a number."""

    def values(
        self, x: PyTree, y: PyTree, w: Float[Array, " m"], *, chunk_size: int | None = None
    ) -> Float[Array, " n"]:
        r""":math:`\sum_jw_jk(x_i,y_j)` alone, the function whose gradient in x is the second of :meth:`sums`."""
        return self.sums(x, y, w, chunk_size=chunk_size)[0]

    def quadratic(self, x: PyTree, a: Float[Array, " n"], *, chunk_size: int | None = None) -> Float[Array, ""]:
        r""":math:`\sum_{ij}a_ia_jk(x_i,x_j)`, pairs i = j included."""
        return a @ self.values(x, x, a, chunk_size=chunk_size)

    def __add__(self, other: Any) -> Kernel:
        return Sum(self, other) if isinstance(other, Kernel) else NotImplemented

    def __mul__(self, other: Any) -> Kernel:
        if not isinstance(other, Kernel):
            return self.scaled(other)
        raise TypeError(
            f"no closed form for {type(self).__name__} * {type(other).__name__}; products are of two radial kernels, "
            "of two feature kernels, or of a kernel and a number."
        )

    def __rmul__(self, factor: Any) -> Kernel:
        return self * factor


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sum(Kernel):
    """The sum of two kernels of different kinds, made by ``+``.

    Example:
        >>> import jax.numpy as jnp
        >>> from pwgf_jax.kernels import feature, gaussian
        >>> k = gaussian(1.0) + feature(lambda x: x)
        >>> float(k(jnp.ones((1, 1)), jnp.ones((1, 1)))[0, 0])
        2.0
    """

    first: Kernel
    second: Kernel

    def __call__(self, x: PyTree, y: PyTree) -> Float[Array, "n m"]:
        """The matrix of the sum."""
        return self.first(x, y) + self.second(x, y)

    def diagonal(self, x: PyTree) -> Float[Array, " n"]:
        """The diagonal of the sum."""
        return self.first.diagonal(x) + self.second.diagonal(x)

    def _both(self, method: str, *arguments: Any, chunk_size: int | None) -> Any:
        parts = [getattr(k, method)(*arguments, chunk_size=chunk_size) for k in (self.first, self.second)]
        return jax.tree.map(jnp.add, *parts)

    def sums(
        self, x: PyTree, y: PyTree, w: Float[Array, " m"], *, chunk_size: int | None = None
    ) -> tuple[Float[Array, " n"], PyTree]:
        """Term by term."""
        return self._both("sums", x, y, w, chunk_size=chunk_size)

    def values(
        self, x: PyTree, y: PyTree, w: Float[Array, " m"], *, chunk_size: int | None = None
    ) -> Float[Array, " n"]:
        """Term by term."""
        return self._both("values", x, y, w, chunk_size=chunk_size)

    def mixed(self, x: PyTree, y: PyTree, v: PyTree, *, chunk_size: int | None = None) -> PyTree:
        """Term by term."""
        return self._both("mixed", x, y, v, chunk_size=chunk_size)

    def local(self, x: PyTree, y: PyTree, w: Float[Array, " m"], v: PyTree, *, chunk_size: int | None = None) -> PyTree:
        """Term by term."""
        return self._both("local", x, y, w, v, chunk_size=chunk_size)

    def quadratic(self, x: PyTree, a: Float[Array, " n"], *, chunk_size: int | None = None) -> Float[Array, ""]:
        """Term by term."""
        return self._both("quadratic", x, a, chunk_size=chunk_size)

    def scaled(self, factor: Any) -> Kernel:
        """Term by term."""
        return Sum(self.first.scaled(factor), self.second.scaled(factor))
