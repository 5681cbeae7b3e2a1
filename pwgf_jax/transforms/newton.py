"""Euclidean Newton methods that leave saddles: saddle-free and cubic-regularised, in a Krylov space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from pwgf_jax import arguments, trees, tridiagonal
from pwgf_jax.arguments import check_key
from pwgf_jax.krylov import matrix_function
from pwgf_jax.transforms.isometry import transformation
from pwgf_jax.transforms.secular import secular

__all__ = ["CubicState", "absolute_inverse", "cubic_newton", "scale_by_saddle_free_newton"]


def absolute_inverse(
    beta: float | Array | None = None, damping: float | Array | None = None
) -> Callable[[Array], Array]:
    r"""The factor of saddle-free Newton: :math:`(t^2+\beta)^{-1/2}`, or :math:`1/(|t|+\lambda)` with a damping.

    Args:
        beta: β > 0, a number or a scalar array [curvature squared].
        damping: λ > 0 [curvature]; exactly one of the two is given.

    Returns:
        φ, of eigenvalues.

    Raises:
        ValueError: if both are given, or neither.

    Example:
        >>> import jax.numpy as jnp
        >>> absolute_inverse(damping=0.5)(jnp.array([-1.5, 0.5])).tolist()
        [0.5, 1.0]
    """
    if beta is not None and damping is None:
        return lambda t: 1 / jnp.sqrt(t**2 + beta)
    if damping is not None and beta is None:
        return lambda t: 1 / (jnp.abs(t) + damping)
    raise ValueError(
        f"saddle-free Newton: beta={beta}, damping={damping}; give one: beta inside the root, or damping of |H|."
    )


def _hessian(value_fn: Callable[[PyTree], Array], params: PyTree) -> Callable[[PyTree], PyTree]:
    with jax.default_matmul_precision("highest"):
        return jax.linearize(jax.grad(value_fn), params)[1]


def _like(updates: PyTree, params: PyTree) -> PyTree:
    return jax.tree.map(lambda u, x: u.astype(jnp.result_type(x)), updates, params)


def scale_by_saddle_free_newton(
    beta: float | Array | None = None, *, damping: float | Array | None = None, depth: int = 20
) -> optax.GradientTransformationExtraArgs:
    r"""Precondition by \|H\|⁻¹, :math:`u\mapsto(H^2+\beta)^{-1/2}u`: the Euclidean twin of WSFN.

    By Lanczos from u, ``depth`` Hessian products of ``value_fn``. It sees the curvature that u has a component of: at
    an exact saddle put :func:`pwgf_jax.transforms.perturb_at_saddle` around it. Follow it by a learning rate near one.

    Args:
        beta: β > 0 [curvature squared].
        damping: λ > 0 [curvature], for :math:`(|H|+\lambda)^{-1}` in its place.
        depth: Krylov dimension, capped by the number of parameters.

    Returns:
        A transformation whose ``update`` needs ``params`` and ``value_fn``.

    Raises:
        ValueError: if not exactly one of β and λ is given, it is not positive, or the depth no whole number.
        TypeError: if a parameter is no real number or an extra argument is missing.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> f = lambda x: 2 * x[0] ** 2 - x[1] ** 2
        >>> optimizer = optax.chain(scale_by_saddle_free_newton(1e-6), optax.scale_by_learning_rate(1.0))
        >>> x = jnp.array([1.0, 0.1])
        >>> updates, _ = optimizer.update(jax.grad(f)(x), optimizer.init(x), x, value_fn=f)
        >>> [round(float(each), 3) for each in x + updates]
        [-0.0, 0.2]

    References:
        Dauphin et al., NeurIPS 2014, arXiv:1406.2572; the same function of the Hessian as
        :func:`pwgf_jax.saddle_free_newton`.
    """
    arguments.all_positive("scale_by_saddle_free_newton", beta=beta, damping=damping)
    depth = arguments.whole("scale_by_saddle_free_newton: depth", depth)
    phi = absolute_inverse(beta, damping)

    def init(params: PyTree) -> optax.EmptyState:
        arguments.real("scale_by_saddle_free_newton", params)
        return optax.EmptyState()

    def update(
        updates: PyTree, state: Any, params: PyTree = None, *, value_fn: Any = None, **extra_args: Any
    ) -> tuple[PyTree, optax.EmptyState]:
        del extra_args
        arguments.needed("scale_by_saddle_free_newton", params=params, value_fn=value_fn)
        hessian = _hessian(value_fn, params)
        with jax.numpy_dtype_promotion("standard"):  # leaves may differ in dtype
            return matrix_function(hessian, _like(updates, params), phi, min(depth, trees.size(params))), state

    return transformation(init, update)


class CubicState(NamedTuple):
    """State of :func:`cubic_newton`.

    Args:
        key: for the next Krylov start.
        length: of the last step: it bounds the gradient and the negative curvature where it led.
        curvature: smallest Ritz value seen before that step.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> float(cubic_newton(1.0, key=jax.random.key(0)).init(jnp.zeros(2)).length)
        inf
    """

    key: Array
    length: Float[Array, ""]
    curvature: Float[Array, ""]


def cubic_newton(lipschitz: float | Array, *, depth: int = 20, key: Array) -> optax.GradientTransformationExtraArgs:
    r"""Newton's method with cubic regularisation, :math:`\min_h\langle g,h\rangle+\frac12h^\top Hh+\frac M6|h|^3`.

    The minimiser solves :math:`(H+\frac{Mr}2)h=-g`, :math:`r=|h|`, :math:`H+\frac{Mr}2\succeq0`; it is found exactly in
    the Krylov space of g, slightly turned at random so that no eigenvector is missed. At a saddle with g = 0 (the hard
    case) the step is r = −2λ_min/M along the least eigenvector: exact saddles are left at once. The updates that come
    in are taken as the gradient; no learning rate belongs after it.

    Args:
        lipschitz: M, Lipschitz constant of the Hessian; larger is safer and slower.
        depth: Krylov dimension, capped by the number of parameters.
        key: typed random key.

    Returns:
        A transformation whose ``update`` needs ``params`` and ``value_fn``.

    Raises:
        ValueError: if M is not positive or the depth no whole number.
        TypeError: if the key is no typed key, a parameter no real number, or an extra argument is missing.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> f = lambda x: -(x[0] ** 2) / 2 + x[1] ** 2 / 2
        >>> optimizer, x = cubic_newton(4.0, key=jax.random.key(0)), jnp.zeros(2)
        >>> step, _ = optimizer.update(jax.grad(f)(x), optimizer.init(x), x, value_fn=f)
        >>> round(float(jnp.abs(step[0])), 3), round(float(jnp.abs(step[1])), 3)
        (0.5, 0.0)

    References:
        Nesterov, Polyak, Math. Program. 108 (2006); Carmon, Duchi, SIAM Review 62 (2020), for the Krylov space and the
        random turn.
    """
    check_key(key, "cubic_newton")
    arguments.positive("cubic_newton: lipschitz", lipschitz)
    depth = arguments.whole("cubic_newton: depth", depth)

    def init(params: PyTree) -> CubicState:
        arguments.real("cubic_newton", params)
        dtype = trees.dtype(params)
        return trees.copied(CubicState(key, jnp.full((), jnp.inf, dtype), jnp.zeros((), dtype)))

    def update(
        updates: PyTree, state: Any, params: PyTree = None, *, value_fn: Any = None, **extra_args: Any
    ) -> tuple[PyTree, CubicState]:
        del extra_args
        arguments.needed("cubic_newton", params=params, value_fn=value_fn)
        next_key, turn_key = jax.random.split(state.key)
        hessian = _hessian(value_fn, params)
        # Leaves may differ in dtype.
        with jax.default_matmul_precision("highest"), jax.numpy_dtype_promotion("standard"):
            flat = tridiagonal.flatten(hessian, params)
            gradient = flat.to_flat(_like(updates, params))
            turn = jax.random.normal(turn_key, gradient.shape, gradient.dtype)
            start = trees.unit(gradient)[0] + 1e-2 * trees.unit(turn)[0]
            found = tridiagonal.decompose(flat, start, min(depth, gradient.size))
            values, vectors, genuine = tridiagonal.ritz(found)
            slopes = jnp.where(genuine, vectors.T @ (found.basis @ gradient), 0)
            half = jnp.asarray(lipschitz, values.dtype) / 2
            most = jnp.sqrt(half * trees.norm(slopes))  # |c|/s is s/half there
            step = (vectors @ secular(values, slopes, lambda s: s / half, most)) @ found.basis
        length = jnp.linalg.norm(step).astype(state.length.dtype)
        return flat.to_field(step), CubicState(next_key, length, values[0].astype(state.curvature.dtype))

    return transformation(init, update)
