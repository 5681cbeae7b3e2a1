r"""Perturbing where the gradient is small, for the parameters of any optax user.

Extra arguments follow optax's line searches: ``value`` and ``grad`` at the parameters, and ``value_fn``, the objective
as a function of them. Whatever else is passed goes to the optimizer inside.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from pwgf_jax import arguments, trees
from pwgf_jax.arguments import check_key
from pwgf_jax.measures import Isometry
from pwgf_jax.perturbation import Noise, ball_noise
from pwgf_jax.transforms.branches import where_it_fires
from pwgf_jax.transforms.isometry import chart
from pwgf_jax.transforms.trigger import Leap, Trigger, Window, gradient_trigger, leap

__all__ = ["PerturbState", "perturb_at_saddle", "pgd", "scale_by_measure"]


class PerturbState(NamedTuple):
    """State of :func:`perturb_at_saddle`.

    Args:
        inner: of the optimizer inside.
        key: for the next noise.
        count: updates made, int32.
        window: the trigger's :class:`pwgf_jax.transforms.Window`; ``saved`` are the parameters before the last jump.
        perturbed: whether the last update began with a jump.
        jumps: how many there have been, int32.
        failures: how many windows have ended without decrease, int32.
        stopped: whether the run has ended; the parameters are then back at ``window.saved`` for good.
        certified: whether the trigger's last examination has certified a second-order point.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from pwgf_jax.perturbation import ball_noise
        >>> trigger = gradient_trigger(eps=0.1, k_thres=5, f_thres=0.0)
        >>> optimizer = perturb_at_saddle(optax.sgd(0.1), ball_noise(0.1), trigger, key=jax.random.key(0))
        >>> bool(optimizer.init(jnp.zeros(2)).stopped)
        False
    """

    inner: PyTree
    key: Array
    count: Int[Array, ""]
    window: Window
    perturbed: Bool[Array, ""]
    jumps: Int[Array, ""]
    failures: Int[Array, ""]
    stopped: Bool[Array, ""]
    certified: Bool[Array, ""]


class _Start(NamedTuple):
    """Where an update's step begins: the parameters, or where a jump has led from them."""

    shift: PyTree
    updates: PyTree
    value: Array
    grad: PyTree
    jumps: Array
    certified: Array
    held: Array

    @classmethod
    def still(cls, params: PyTree, updates: PyTree, value: Any, grad: PyTree, held: Array) -> _Start:
        """At the parameters."""
        no = jnp.zeros((), bool)
        return cls(jax.tree.map(jnp.zeros_like, params), updates, jnp.asarray(value), grad, no, no, held)

    def moved(self, made: Leap, at: Isometry, value_fn: Any, params: PyTree) -> _Start:
        """Where a jump leads, with the value and the gradient there."""
        shift = _where(made.jumps, _cast(at.down(made.displacement), self.shift), self.shift)
        value, grad = jax.value_and_grad(value_fn)(jax.tree.map(jnp.add, params, shift))
        there = _Start(shift, at.down(at.down(grad)), value, grad, made.jumps, made.certified, made.held)
        return _cast(there, self)


def perturb_at_saddle(
    optimizer: optax.GradientTransformation,
    noise: Noise | None,
    trigger: Trigger,
    *,
    key: Array,
    stop: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Perturb the parameters where a trigger fires, and take the optimizer's step from there.

    The k_thres + 1 steps that begin with a jump are the trigger's window. Where that ends without the decrease that
    the trigger asks for, the parameters return to those before the jump and stay: ``state.stopped``. That is an
    algorithm's end. In a training loop, where a window may fail because a batch was unlucky or a learning rate small,
    ``stop=False`` goes on from where it is, and counts: ``state.failures``.

    A trigger that examines (:func:`pwgf_jax.transforms.certificate_trigger`) looks before each jump: at a certified
    second-order point it does not jump, and stops if it may; from a certain saddle it leaves along the direction found
    if the noise does not.

    It is the jump, the window and the return of :func:`pwgf_jax.flow`, and takes the same steps; that a window has
    failed it learns from the next value, and so goes back one update later.

    Args:
        optimizer: any optax transformation, a whole chain as a rule; it sees the gradient at the perturbed parameters.
        noise: (key, value_fn, params, step) -> displacement, such as :func:`pwgf_jax.perturbation.ball_noise` or
            ``hessian_noise``; None takes the escape direction of a trigger that examines.
        trigger: a :func:`pwgf_jax.transforms.gradient_trigger` or ``certificate_trigger``, the pieces that the flows
            use. On minibatches give it a ``decay``, so that averages are compared.
        key: typed random key; the transform keeps it in its state.
        stop: whether a failed window, or a certificate, ends the run.

    Returns:
        A transformation whose ``update`` needs ``params``, ``value``, ``grad`` and ``value_fn``; the updates that come
        in are taken as the gradient.

    Raises:
        ValueError: if there is neither noise nor an examination.
        TypeError: if the key is no typed key, or an extra argument is missing.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from pwgf_jax.perturbation import ball_noise
        >>> f = lambda x: x[0] ** 4 / 4 - x[0] ** 2 / 2 + x[1] ** 2 / 2
        >>> trigger = gradient_trigger(eps=1e-3, k_thres=90, f_thres=1e-3)
        >>> descent = optax.sgd(0.1, momentum=0.9)
        >>> optimizer = perturb_at_saddle(descent, ball_noise(1e-2), trigger, key=jax.random.key(0))
        >>> def step(_, carry):
        ...     x, state = carry
        ...     value, grad = jax.value_and_grad(f)(x)
        ...     updates, state = optimizer.update(grad, state, x, value=value, grad=grad, value_fn=f)
        ...     return optax.apply_updates(x, updates), state
        >>> x = jnp.zeros(2)  # the saddle: momentum alone stays for ever
        >>> x, _ = jax.lax.fori_loop(0, 200, step, (x, optimizer.init(x)))
        >>> round(float(f(x)), 3)
        -0.25

    References:
        Jin et al., arXiv:1703.00887, Alg. 4, with the window of Yamamoto, Kim, Suzuki, arXiv:2509.16974, Alg. 2, a step
        longer. Alg. 4 of arXiv:1902.04811 has no stopping test: ``stop=False``.
    """
    check_key(key, "perturb_at_saddle")
    if noise is None and trigger.examine is None:
        raise ValueError("perturb_at_saddle: this trigger finds no direction to jump along; give a noise as well.")
    inner = optax.with_extra_args_support(optimizer)

    def init(params: PyTree) -> PerturbState:
        arguments.real("perturb_at_saddle", params)
        window = trigger.init(params, jnp.full((), jnp.inf, trees.dtype(params)))
        zero, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        return trees.copied(PerturbState(inner.init(params), key, zero, window, no, zero, zero, no, no))

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree = None,
        *,
        value: Any = None,
        grad: Any = None,
        value_fn: Any = None,
        **extra_args: Any,
    ) -> tuple[PyTree, PerturbState]:
        arguments.needed("perturb_at_saddle", params=params, value=value, grad=grad, value_fn=value_fn)
        at, grad = chart(value_fn, params), trees.restrict(grad, params)
        # ``value`` is that of the parameters before this update: the step before has ended with it.
        window = trigger.observe(state.window, value, trees.norm(at.down(grad)))
        fails = ~state.stopped & trigger.should_stop(window, state.count - 1, window.value)
        stopped = state.stopped | (fails & stop)
        fires = ~stopped & trigger.should_perturb(window, state.count, window.gradient_norm)
        next_key, leap_key = jax.random.split(state.key)

        def look(start: _Start) -> _Start:
            with jax.numpy_dtype_promotion("standard"):  # leaves may differ in dtype
                made = leap(leap_key, at.of(value_fn), at.up(params), trigger, noise, window, state.count)
            return start.moved(made, at, value_fn, params)

        start = where_it_fires(fires, look, _Start.still(params, updates, value, grad, window.value))
        moved = jax.tree.map(jnp.add, params, start.shift)
        step, within = inner.update(
            start.updates, state.inner, moved, value=start.value, grad=start.grad, value_fn=value_fn, **extra_args
        )
        window = _where(fires, trigger.jump(window, state.count, params, start.held), window)
        stopped = stopped | (start.certified & stop)
        back = jax.tree.map(jnp.subtract, window.saved, params)
        step = _where(stopped, _cast(back, step), jax.tree.map(lambda u, xi: u + xi.astype(u.dtype), step, start.shift))
        return step, PerturbState(
            _where(stopped, state.inner, within),
            next_key,
            state.count + 1,
            window,
            start.jumps,
            state.jumps + start.jumps.astype(jnp.int32),
            state.failures + fails.astype(jnp.int32),
            stopped,
            jnp.where(fires, start.certified, state.certified),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _cast(tree: PyTree, like: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf, other: leaf.astype(jnp.result_type(other)), tree, like)


def _where(condition: Array, yes: PyTree, no: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def pgd(
    learning_rate: Any,
    *,
    radius: float | Array,
    eps: float | Array,
    k_thres: int,
    f_thres: float | Array,
    key: Array,
    stop: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Perturbed gradient descent (PGD): steps −η∇f, and a jump uniform in a ball where :math:`|\nabla f|\le\epsilon`.

    ``pgd(**constants.pgd_2017(gap), key=key)`` is the algorithm of the first paper, for the numbers of
    ``pwgf_jax.theory.Constants``. Noise at every step instead (PSGD) is
    ``optax.noisy_sgd(learning_rate, eta=r**2 / d, gamma=0.0, key=key)``.

    Args:
        learning_rate: η, or a schedule.
        radius: of the ball.
        eps: gradient norm that triggers.
        k_thres: steps without another jump.
        f_thres: decrease that they have to bring, or the run stops where it jumped.
        key: typed random key.
        stop: whether it stops at all, as in :func:`perturb_at_saddle`: the second paper's algorithm does not.

    Returns:
        A transformation whose ``update`` needs ``params``, ``value``, ``grad`` and ``value_fn``.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from pwgf_jax.problems import double_well
        >>> problem = double_well(3)
        >>> optimizer = pgd(0.1, radius=1e-2, eps=1e-3, k_thres=100, f_thres=1e-4, key=jax.random.key(0))
        >>> def step(_, carry):
        ...     x, state = carry
        ...     value, grad = jax.value_and_grad(problem.value)(x)
        ...     updates, state = optimizer.update(grad, state, x, value=value, grad=grad,
        ...                                       value_fn=problem.value)
        ...     return optax.apply_updates(x, updates), state
        >>> x = problem.saddles[0].point
        >>> x, _ = jax.lax.fori_loop(0, 200, step, (x, optimizer.init(x)))
        >>> round(float(problem.value(x)), 3)
        -0.25

    References:
        Jin et al., arXiv:1703.00887, Alg. 4; arXiv:1902.04811, Alg. 4 (with ``stop=False``).
    """
    trigger = gradient_trigger(eps=eps, k_thres=k_thres, f_thres=f_thres)
    return perturb_at_saddle(optax.sgd(learning_rate), ball_noise(radius), trigger, key=key, stop=stop)


def scale_by_measure(weights: Float[Array, " n"] | None = None) -> optax.GradientTransformationExtraArgs:
    r"""Turn Euclidean gradients of particles into Wasserstein ones, :math:`w_i^{-1}\partial_{x_i}F`, or N·∂F.

    Step sizes then mean the same for every number of particles. Particles are on the first axis of every leaf.

    Args:
        weights: w, shape (N,); None for 1/N each. A weight of zero gives zero.

    Returns:
        A stateless transformation.

    Example:
        >>> import jax.numpy as jnp
        >>> transform = scale_by_measure()
        >>> transform.update(jnp.ones((4, 2)), transform.init(jnp.ones((4, 2))))[0][0].tolist()
        [4.0, 4.0]
    """

    def scaled(leaf: Array) -> Array:
        if weights is None:
            return leaf.shape[0] * leaf
        factor = jnp.where(weights > 0, 1 / jnp.where(weights > 0, weights, 1), 0).astype(leaf.dtype)
        return factor.reshape(factor.shape + (1,) * (leaf.ndim - 1)) * leaf

    return optax.with_extra_args_support(optax.stateless(lambda updates, params: jax.tree.map(scaled, updates)))
