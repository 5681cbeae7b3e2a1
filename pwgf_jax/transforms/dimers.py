"""The dimer: curvature along one direction from pairs of gradients, turned toward where it is least."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PyTree

from pwgf_jax import arguments, trees
from pwgf_jax.arguments import check_key
from pwgf_jax.transforms.isometry import transformation

__all__ = ["DimerState", "dimer"]


class DimerState(NamedTuple):
    """State of :func:`dimer`.

    Args:
        direction: N, shaped like the parameters, of float32 at least, of norm one over all of them together.
        curvature: along N, when it was last measured (zero before), just before N was turned.
        count: updates made, int32.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> transform = dimer(separation=1e-3, rotation_rate=0.1, every=1, strength=1.0, key=jax.random.key(0))
        >>> round(float(optax.tree.norm(transform.init({"a": jnp.zeros(3), "b": jnp.zeros(2)}).direction)), 5)
        1.0
    """

    direction: PyTree
    curvature: Float[Array, ""]
    count: Int[Array, ""]


def _plus(tree: PyTree, factor: Any, direction: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf, n: leaf + jnp.asarray(factor, leaf.dtype) * n.astype(leaf.dtype), tree, direction)


def dimer(
    *,
    separation: float | Array,
    rotation_rate: float | Array,
    every: int,
    mode: str = "repel",
    strength: float | Array,
    kick: float | Array = 0.0,
    tolerance: float | Array = 0.0,
    key: Array,
) -> optax.GradientTransformationExtraArgs:
    r"""Change the gradient g along a direction N of least curvature, at one extra gradient every few updates.

    With :math:`g_2=\nabla f(x+\Delta R\,N)` and :math:`y=(g_2-g)/\Delta R`, every ``every`` updates

    .. math:: c=N\cdot y,\qquad N\leftarrow\frac{N-\eta_{rot}(y-cN)}{|N-\eta_{rot}(y-cN)|},

    which descends the Rayleigh quotient of the Hessian if :math:`\eta_{rot}<2/(\lambda_{\max}-\lambda_{\min})`. Then

    * ``"repel"`` (ours) adds :math:`\beta(g\cdot N)N` where c < −tolerance, and leaves g alone elsewhere: saddles are
      left faster by the factor 1 + β in the rate. With a kick s, :math:`\pm s|c|N` is added as well where
      :math:`|g\cdot N|<s|c|`: an exact saddle is left too.
    * ``"translate"`` subtracts :math:`\alpha(g\cdot N)N` at any curvature: 0 < α < 1 leaves saddles more slowly, α = 1
      stands still along N, and α = 2 climbs along N to a saddle: the classical dimer search.
    * ``"as_published"`` subtracts the same, with the published rotation
      :math:`N\leftarrow\text{normalise}(N+\eta_{rot}((g_2-g)-((g_2-g)\cdot N)N))`: its sign turns N to the *largest*
      curvature, and its rate is not divided by ΔR. It is here for comparisons.

    The updates that come in are taken as g, and N is one direction over all parameters (one per tensor in the
    published code): put it first in a chain, and pass the ``value_fn`` that g is the gradient of.

    Args:
        separation: ΔR [units of the parameters].
        rotation_rate: η_rot [1 / curvature]; for ``"as_published"`` [1 / (curvature ΔR)].
        every: updates from one rotation to the next.
        mode: ``"repel"``, ``"translate"`` or ``"as_published"``.
        strength: β or α.
        kick: s ≥ 0 [units of the parameters], for ``"repel"``.
        tolerance: ≥ 0 [curvature], for ``"repel"``.
        key: typed random key, of the first direction.

    Returns:
        A transformation whose ``update`` needs ``params`` and ``value_fn``.

    Raises:
        ValueError: if a number is out of range, the mode is unknown, or it has no use for a kick or a tolerance.
        TypeError: if the key is no typed key or an extra argument is missing.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> f = lambda x: x[0] ** 4 / 4 - x[0] ** 2 / 2 + x[1] ** 2 / 2
        >>> key = jax.random.key(0)
        >>> push = dimer(separation=1e-2, rotation_rate=0.5, every=5, strength=2.0, kick=1e-3, key=key)
        >>> optimizer = optax.chain(push, optax.sgd(0.1))
        >>> def step(_, carry):
        ...     x, state = carry
        ...     updates, state = optimizer.update(jax.grad(f)(x), state, x, value_fn=f)
        ...     return optax.apply_updates(x, updates), state
        >>> saddle = jnp.zeros(2)
        >>> x, _ = jax.lax.fori_loop(0, 200, step, (saddle, optimizer.init(saddle)))
        >>> round(float(f(x)), 3)
        -0.25

    References:
        Hu, Cao, Liu, arXiv:2507.19968, for ``"as_published"``; Henkelman, Jónsson, J. Chem. Phys. 111 (1999), for the
        search.
    """
    check_key(key, "dimer")
    if mode not in ("repel", "translate", "as_published"):
        raise ValueError(f'dimer: mode={mode!r}; choose "repel", "translate" or "as_published".')
    arguments.all_positive("dimer", separation=separation, rotation_rate=rotation_rate, strength=strength)
    for name, number in {"kick": kick, "tolerance": tolerance}.items():
        arguments.not_negative(f"dimer: {name}", number)
        if not isinstance(number, Tracer) and number > 0 and mode != "repel":
            raise ValueError(f'dimer: {name}={number} has no use in mode="{mode}"; leave it out or choose "repel".')
    every = arguments.whole("dimer: every", every)
    rate = rotation_rate if mode == "as_published" else -rotation_rate / separation

    def init(params: PyTree) -> DimerState:
        arguments.real("dimer", params)
        drawn = optax.tree.random_like(key, trees.zeros(params), jax.random.normal)
        direction, length = trees.unit(drawn)
        return trees.copied(DimerState(direction, jnp.zeros_like(length), jnp.zeros((), jnp.int32)))

    def update(
        updates: PyTree, state: Any, params: PyTree = None, *, value_fn: Any = None, **extra_args: Any
    ) -> tuple[PyTree, DimerState]:
        del extra_args
        arguments.needed("dimer", params=params, value_fn=value_fn)

        def rotated(direction: PyTree, curvature: Array) -> tuple[PyTree, Array]:
            with jax.default_matmul_precision("highest"):
                ahead = jax.grad(value_fn)(_plus(params, separation, direction))
            change = jax.tree.map(lambda a, g, n: a.astype(n.dtype) - g.astype(n.dtype), ahead, updates, direction)
            along = trees.inner(change, direction)
            turned, length = trees.unit(_plus(direction, rate, _plus(change, -along, direction)))
            usable = jnp.isfinite(length) & (length > 0)  # one gradient that overflows must not cost the direction
            turned = jax.tree.map(lambda t, n: jnp.where(usable, t, n), turned, direction)
            return turned, (along / separation).astype(curvature.dtype)

        direction, curvature = jax.lax.cond(
            state.count % every == 0, rotated, lambda *same: same, state.direction, state.curvature
        )
        slope = trees.inner(updates, direction)
        if mode == "repel":
            least = kick * jnp.abs(curvature).astype(slope.dtype)
            push = strength * slope + jnp.where(jnp.abs(slope) < least, jnp.where(slope < 0, -least, least), 0)
            push = jnp.where(curvature < -tolerance, push, 0)
        else:
            push = -strength * slope
        return _plus(updates, push, direction), DimerState(direction, curvature, state.count + 1)

    return transformation(init, update)
