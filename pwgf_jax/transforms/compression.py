"""Compressed SGD with error feedback, for one worker or many."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PyTree

from pwgf_jax import arguments, trees
from pwgf_jax.arguments import check_key
from pwgf_jax.transforms.isometry import transformation

__all__ = [
    "Compressor",
    "ErrorFeedbackState",
    "average_over",
    "compressed_sgd",
    "error_feedback",
    "random_k",
    "top_k",
]


class Compressor(NamedTuple):
    r"""A lossy map C with :math:`E|C(x)-x|^2\le(1-\mu)|x|^2`, on all parameters ravelled into one vector.

    Args:
        compress: (key, x) -> C(x), of the shape (d,) and dtype of x.
        bits: (d, width of one number in bits) -> what C(x) costs to send.

    Example:
        >>> import jax.numpy as jnp
        >>> signs = Compressor(lambda key, x: jnp.mean(jnp.abs(x)) * jnp.sign(x), lambda d, width: d + width)
        >>> signs.compress(None, jnp.array([3.0, -1.0])).tolist()
        [2.0, -2.0]
    """

    compress: Callable[[Any, Array], Array]
    bits: Callable[[int, int], float]


def _keep(x: Array, indices: Array) -> Array:
    return jnp.zeros_like(x).at[indices].set(x[indices])


def _check_size(caller: str, k: int, x: Array) -> None:
    if k > x.size:
        raise ValueError(f"{caller}: k={k} of {x.size} parameters; give at most that many.")


def top_k(k: int) -> Compressor:
    r"""Keep the K coordinates largest in magnitude: μ = K/d, at K(32 + log₂ d) bits in float32.

    Args:
        k: K ≥ 1.

    Returns:
        A :class:`Compressor`.

    Raises:
        ValueError: if K is no whole number, or above the number of parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> top_k(1).compress(None, jnp.array([1.0, -3.0, 2.0])).tolist()
        [0.0, -3.0, 0.0]

    References:
        Avdiukhin, Yaroslavtsev, arXiv:2105.10090.
    """
    k = arguments.whole("top_k: k", k)

    def compress(key: Any, x: Float[Array, " d"]) -> Float[Array, " d"]:
        del key
        _check_size("top_k", k, x)
        return _keep(x, jax.lax.top_k(jnp.abs(x), k)[1])

    return Compressor(compress, lambda d, width: k * (width + math.log2(d)))


def random_k(k: int) -> Compressor:
    r"""Keep K coordinates drawn at random, unscaled: μ = K/d, at 32K bits in float32.

    Workers with the same key draw the same coordinates: no indices are sent, and C is linear over the workers.

    Args:
        k: K ≥ 1.

    Returns:
        A :class:`Compressor`.

    Raises:
        ValueError: if K is no whole number, or above the number of parameters.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> int(jnp.sum(random_k(2).compress(jax.random.key(0), jnp.ones(5))))
        2

    References:
        Avdiukhin, Yaroslavtsev, arXiv:2105.10090.
    """
    k = arguments.whole("random_k: k", k)

    def compress(key: Any, x: Float[Array, " d"]) -> Float[Array, " d"]:
        _check_size("random_k", k, x)
        return _keep(x, jax.random.permutation(key, x.size)[:k])

    return Compressor(compress, lambda d, width: k * width)


class ErrorFeedbackState(NamedTuple):
    """State of :func:`error_feedback`, one per worker.

    Args:
        key: for the compressor's next draw; the same on all workers.
        count: updates made, int32.
        error: what has not been sent yet, shaped like the parameters, of float32 at least.
        bits: what this worker has sent so far, float32.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> transform = error_feedback(top_k(1), reset_every=10, key=jax.random.key(0))
        >>> transform.init(jnp.ones(3)).error.tolist()
        [0.0, 0.0, 0.0]
    """

    key: Array
    count: Int[Array, ""]
    error: PyTree
    bits: Float[Array, ""]


def error_feedback(compressor: Compressor, *, reset_every: int, key: Array) -> optax.GradientTransformationExtraArgs:
    r"""Send compressed updates and remember the loss: :math:`u=e+g`, :math:`v=C(u)`, :math:`e\leftarrow u-v`.

    Every ``reset_every`` updates u is sent whole and e is zero again. Put before it what each worker does by itself,
    after it :func:`average_over`. With the learning rate before it, the parameters plus e follow exactly the
    uncompressed method on the same gradients, under any schedule.

    Args:
        compressor: such as :func:`top_k` or :func:`random_k`.
        reset_every: updates from one uncompressed one to the next; ⌈1/μ⌉ is a fair choice.
        key: typed random key, the same on all workers.

    Returns:
        A transformation that needs no extra argument; updates leave it in the dtypes of the parameters, if it is given
        these.

    Raises:
        ValueError: if ``reset_every`` is no whole number.
        TypeError: if the key is no typed key or a parameter no real number.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> transform = error_feedback(top_k(1), reset_every=10, key=jax.random.key(0))
        >>> x = jnp.zeros(2, "float32")
        >>> sent, state = transform.update(jnp.array([1.0, 3.0]), transform.init(x), x)
        >>> sent.tolist(), state.error.tolist(), float(state.bits)
        ([0.0, 3.0], [1.0, 0.0], 33.0)

    References:
        Avdiukhin, Yaroslavtsev, NeurIPS 2021, arXiv:2105.10090; the fixed period of the reset is ours.
    """
    check_key(key, "error_feedback")
    reset_every = arguments.whole("error_feedback: reset_every", reset_every)

    def init(params: PyTree) -> ErrorFeedbackState:
        arguments.real("error_feedback", params)
        zero = jnp.zeros((), jnp.int32)
        return trees.copied(ErrorFeedbackState(key, zero, trees.zeros(params), jnp.zeros((), jnp.float32)))

    def update(
        updates: PyTree, state: Any, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, ErrorFeedbackState]:
        del extra_args
        next_key, draw_key = jax.random.split(state.key)
        count = state.count + 1
        whole, unravel = trees.ravel(jax.tree.map(lambda e, g: e + g.astype(e.dtype), state.error, updates))
        sent = jnp.where(count % reset_every == 0, whole, compressor.compress(draw_key, whole))
        fixed = updates if params is None else params
        leaves = jax.tree.map(lambda v, x: v.astype(jnp.result_type(x)), unravel(sent), fixed)
        error = unravel(whole - trees.ravel(leaves)[0].astype(whole.dtype))  # what their dtype drops is not sent
        width = max((jnp.finfo(leaf.dtype).bits for leaf in jax.tree.leaves(leaves)), default=0)
        resets = count // reset_every
        # From the counts, not by adding up: a float32 sum would stand still after 2²⁴ terms.
        bits = resets.astype(jnp.float32) * float(width * whole.size)
        bits += (count - resets).astype(jnp.float32) * float(compressor.bits(whole.size, width))
        return leaves, ErrorFeedbackState(next_key, count, error, bits)

    return transformation(init, update)


def average_over(axis_name: str) -> optax.GradientTransformationExtraArgs:
    r"""Average the updates over workers, :math:`\frac1W\sum_wu_w`.

    Workers are simulated by ``jax.vmap(..., axis_name=...)``, or are devices under ``jax.shard_map``: the same code.

    Args:
        axis_name: of the workers' axis.

    Returns:
        A stateless transformation.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> transform = average_over("workers")
        >>> step = lambda g: transform.update(g, transform.init(g))[0]
        >>> jax.vmap(step, axis_name="workers")(jnp.array([1.0, 3.0])).tolist()
        [2.0, 2.0]
    """
    average = optax.stateless(lambda updates, params: jax.lax.pmean(updates, axis_name))
    return optax.with_extra_args_support(average)


def _spread_noise(radius: float | Array, key: Array) -> optax.GradientTransformation:
    """White noise of root-mean-square length ``radius`` over all parameters together."""

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        size = trees.size(updates)
        with jax.numpy_dtype_promotion("standard"):  # optax raises its int32 count to a float
            return optax.add_noise(radius**2 / size, 0.0, key).update(updates, state, params)

    return optax.GradientTransformation(optax.add_noise(0.0, 0.0, key).init, update)


def compressed_sgd(
    learning_rate: Any,
    compressor: Compressor,
    *,
    noise_radius: float | Array,
    reset_every: int,
    key: Array,
    axis_name: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SGD with artificial noise that sends compressed updates and still escapes saddles.

    .. math:: u=e+\eta(g+\xi),\quad\xi\sim N(0,\tfrac{r^2}dI),\quad x\leftarrow x-\tfrac1W\sum_wC(u_w),
        \quad e\leftarrow u-C(u)

    The learning rate comes before the compression, so that e stays right under a schedule. Workers share the key: ξ
    is then the same for all, of variance r²/d after averaging for any number of workers, and :func:`random_k` linear.

    Args:
        learning_rate: η, or a schedule.
        compressor: such as :func:`top_k` or :func:`random_k`.
        noise_radius: r ≥ 0, root-mean-square length of ξ [units of the gradient]; zero for no noise.
        reset_every: as in :func:`error_feedback`.
        key: typed random key, the same on all workers.
        axis_name: of the workers, as in :func:`average_over`; None for a single one.

    Returns:
        A transformation that needs no extra argument.

    Raises:
        ValueError: if the radius is negative or ``reset_every`` below one.
        TypeError: if the key is no typed key.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from pwgf_jax.problems import double_well
        >>> problem = double_well(10)
        >>> optimizer = compressed_sgd(0.1, random_k(2), noise_radius=0.01, reset_every=5, key=jax.random.key(0))
        >>> def step(_, carry):
        ...     x, state = carry
        ...     updates, state = optimizer.update(jax.grad(problem.value)(x), state, x)
        ...     return optax.apply_updates(x, updates), state
        >>> saddle = problem.saddles[0].point
        >>> x, _ = jax.lax.fori_loop(0, 300, step, (saddle, optimizer.init(saddle)))
        >>> round(float(problem.value(x)), 2)
        -0.25

    References:
        Avdiukhin, Yaroslavtsev, NeurIPS 2021, arXiv:2105.10090.
    """
    check_key(key, "compressed_sgd")
    arguments.not_negative("compressed_sgd: noise_radius", noise_radius)
    noise_key, compressor_key = jax.random.split(key)
    parts = [
        optax.scale_by_learning_rate(learning_rate),
        error_feedback(compressor, reset_every=reset_every, key=compressor_key),
    ]
    if isinstance(noise_radius, Tracer) or noise_radius > 0:
        parts.insert(0, _spread_noise(noise_radius, noise_key))
    if axis_name is not None:
        parts.append(average_over(axis_name))
    chain = optax.with_extra_args_support(optax.chain(*parts))
    return optax.GradientTransformationExtraArgs(lambda params: trees.copied(chain.init(params)), chain.update)
