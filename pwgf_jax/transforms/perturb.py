r"""Perturbing where the gradient is small, for the parameters of any optax user.

Extra arguments follow optax's line searches: ``value`` and ``grad`` at the parameters, and ``value_fn``, the objective
as a function of them. Whatever else is passed is ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from pwgf_jax import trees
from pwgf_jax.krylov import check_key
from pwgf_jax.measures import Particles
from pwgf_jax.transforms.isometry import transformation
from pwgf_jax.transforms.trigger import Examination, Trigger, Window, gradient_trigger, reached

__all__ = [
    "PerturbState",
    "ball_noise",
    "gaussian_noise",
    "hessian_product_noise",
    "perturb_at_saddle",
    "pgd",
    "scale_by_measure",
]

Noise: TypeAlias = Callable[[Array, PyTree, Any], PyTree]
"""(key, params, value_fn) -> displacement of the parameters."""


def ball_noise(radius: float | Array) -> Noise:
    r"""Noise uniform in the ball of a radius, over all parameters together.

    Args:
        radius: r [units of the parameters].

    Returns:
        (key, params, value_fn) -> displacement.

    Raises:
        ValueError: if the radius is not positive.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> noise = ball_noise(0.5)(jax.random.key(0), {"a": jnp.zeros(3), "b": jnp.zeros(())}, None)
        >>> bool(optax.tree.norm(noise) <= 0.5)
        True
    """
    trees.positive("ball_noise: radius", radius)

    def noise(key: Array, params: PyTree, value_fn: Any) -> PyTree:
        del value_fn
        direction_key, length_key = jax.random.split(key)
        z = trees.white(direction_key, params)
        length = trees.norm(z)
        factor = radius * jax.random.uniform(length_key, dtype=length.dtype) ** (1 / trees.size(z)) / length
        return jax.tree.map(lambda leaf: factor.astype(leaf.dtype) * leaf, z)

    return noise


def gaussian_noise(scale: float | Array) -> Noise:
    """White Gaussian noise of a standard deviation per coordinate.

    Args:
        scale: standard deviation [units of the parameters].

    Returns:
        (key, params, value_fn) -> displacement.

    Raises:
        ValueError: if the scale is not positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> gaussian_noise(1.0)(jax.random.key(0), jnp.zeros(3), None).shape
        (3,)
    """
    trees.positive("gaussian_noise: scale", scale)
    return lambda key, params, value_fn: jax.tree.map(lambda leaf: scale * leaf, trees.white(key, params))


def hessian_product_noise(eta_p: float | Array) -> Noise:
    r"""Hessian-guided noise in finite dimension, :math:`\eta_p H z` with z white: covariance :math:`\eta_p^2H^2`.

    One Hessian-vector product of ``value_fn``. It is large where the curvature is, of either sign, and zero where there
    is none; along an eigenvector of curvature −δ it has the standard deviation η_p δ.

    Args:
        eta_p: factor of the noise [units of the parameters per curvature].

    Returns:
        (key, params, value_fn) -> displacement.

    Raises:
        ValueError: if the factor is not positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> f = lambda x: -(x[0] ** 2) / 2  # flat along the second coordinate
        >>> noise = hessian_product_noise(1.0)(jax.random.key(0), jnp.zeros(2), f)
        >>> bool(noise[0] != 0), float(noise[1])
        (True, 0.0)

    References:
        The finite-dimensional counterpart of the noise of Yamamoto, Kim, Suzuki, arXiv:2509.16974.
    """
    trees.positive("hessian_product_noise: eta_p", eta_p)

    def noise(key: Array, params: PyTree, value_fn: Any) -> PyTree:
        trees.needed("hessian_product_noise", params=params, value_fn=value_fn)
        with jax.default_matmul_precision("highest"):
            product = jax.jvp(jax.grad(value_fn), (params,), (trees.white(key, params),))[1]
        return jax.tree.map(lambda leaf: eta_p * leaf, product)

    return noise


class PerturbState(NamedTuple):
    """State of :func:`perturb_at_saddle`.

    Args:
        key: for the next noise.
        count: updates made, int32.
        window: the trigger's :class:`pwgf_jax.transforms.Window`; ``saved`` are the parameters before the last jump.
        perturbed: whether the last update was a jump.
        jumps: how many there have been, int32.
        failures: how many windows have ended without decrease, int32.
        stopped: whether the run has ended; the parameters are then back at ``window.saved`` for good.
        certified: whether the trigger's last examination has certified a second-order point.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> trigger = gradient_trigger(eps=0.1, k_thres=5, f_thres=0.0)
        >>> bool(perturb_at_saddle(ball_noise(0.1), trigger, jax.random.key(0)).init(jnp.zeros(2)).stopped)
        False
    """

    key: Array
    count: Int[Array, ""]
    window: Window
    perturbed: Bool[Array, ""]
    jumps: Int[Array, ""]
    failures: Int[Array, ""]
    stopped: Bool[Array, ""]
    certified: Bool[Array, ""]


def _examine(trigger: Trigger, key: Array, params: PyTree, value_fn: Any) -> Examination:
    """The trigger's second look, at the Dirac of the parameters: its full Hessian is that of the objective."""
    trees.needed("perturb_at_saddle: the trigger's examination", params=params, value_fn=value_fn)
    points = jax.tree.map(lambda x: jnp.asarray(x)[None], params)
    dirac = Particles(points, jnp.ones((1,), trees.dtype(params)))

    def F(mu: Particles) -> Array:
        values = jax.vmap(value_fn)(mu.points)
        return jnp.sum(mu.weights.astype(values.dtype) * values)

    with jax.numpy_dtype_promotion("standard"):  # leaves may differ in dtype
        seen = trigger.examine(key, F, dirac)  # pyright: ignore[reportOptionalCall]
    return seen._replace(escape=jax.tree.map(lambda leaf: leaf[0], seen.escape))


def _inner(u: PyTree, v: PyTree) -> Array:
    with jax.numpy_dtype_promotion("standard"):  # leaves may differ in dtype
        return jnp.vdot(trees.ravel(u)[0], trees.ravel(v)[0])


def perturb_at_saddle(
    noise: Noise | None, trigger: Trigger, key: Array, *, stop: bool = True
) -> optax.GradientTransformationExtraArgs:
    r"""Replace an update by a jump where a trigger fires; put it last in a chain.

    A jump takes an update of its own, so that the next gradient is that of the perturbed point, as in the papers'
    algorithms; the k_thres + 1 updates after it are the trigger's window. Where that ends without the decrease that
    the trigger asks for, the parameters return to those before the jump and stay: ``state.stopped``. That is an
    algorithm's end. In a training loop, where a window may fail because a batch was unlucky or a learning rate small,
    ``stop=False`` goes on from where it is, and counts: ``state.failures``.

    A trigger that examines (:func:`pwgf_jax.transforms.certificate_trigger`) looks before each jump: at a certified
    second-order point it does not jump, and stops if it may; from a certain saddle it leaves along the direction found
    if the noise does not.

    Args:
        noise: (key, params, value_fn) -> displacement, such as :func:`ball_noise` or :func:`hessian_product_noise`;
            None takes the escape direction of a trigger that examines.
        trigger: a :func:`pwgf_jax.transforms.gradient_trigger` or ``certificate_trigger``, the pieces that the flows
            use. On minibatches give it a ``decay``, so that averages are compared.
        key: typed random key; the transform keeps it in its state.
        stop: whether a failed window, or a certificate, ends the run.

    Returns:
        A transformation whose ``update`` needs ``params``, ``value`` and ``grad`` (and ``value_fn`` if the noise or the
        trigger's examination does).

    Raises:
        ValueError: if there is neither noise nor an examination.
        TypeError: if the key is no typed key, or an extra argument is missing.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> f = lambda x: x[0] ** 4 / 4 - x[0] ** 2 / 2 + x[1] ** 2 / 2
        >>> trigger = gradient_trigger(eps=1e-3, k_thres=90, f_thres=1e-3)
        >>> jump = perturb_at_saddle(ball_noise(1e-2), trigger, jax.random.key(0))
        >>> optimizer = optax.chain(optax.sgd(0.1, momentum=0.9), jump)
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
        longer, for the same trigger drives :func:`pwgf_jax.pwgf`. Alg. 4 of arXiv:1902.04811 has no stopping test:
        ``stop=False``.
    """
    check_key(key, "perturb_at_saddle")
    if noise is None and trigger.examine is None:
        raise ValueError("perturb_at_saddle: this trigger finds no direction to jump along; give a noise as well.")

    def init(params: PyTree) -> PerturbState:
        trees.real("perturb_at_saddle", params)
        window = trigger.init(params, jnp.full((), jnp.inf, trees.dtype(params)))
        zero, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        return trees.copied(PerturbState(key, zero, window, no, zero, zero, no, no))

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
        del extra_args
        trees.needed("perturb_at_saddle", params=params, value=value, grad=grad)
        # ``value`` is that of the parameters before this update: the step before has ended with it.
        window = trigger.observe(state.window, value, trees.norm(trees.restrict(grad, params)))
        count, stopped = state.count, state.stopped
        fails = ~stopped & trigger.should_stop(window, count - 1, window.value)
        stopped = stopped | (fails & stop)
        fires = ~stopped & trigger.should_perturb(window, count, window.gradient_norm)
        next_key, noise_key, examine_key = jax.random.split(state.key, 3)
        fixed = jax.tree.map(lambda u: jnp.result_type(u), updates)

        def look(current: PyTree) -> tuple[PyTree, Array, Array, Array]:
            found = None if trigger.examine is None else _examine(trigger, examine_key, params, value_fn)
            drawn = None if noise is None else noise(noise_key, params, value_fn)
            no = jnp.zeros((), bool)
            if found is None:
                return _cast(drawn, fixed), ~no, no, window.value
            moved = found.escape if drawn is None else reached(drawn, found, _inner)
            held = jnp.where(
                found.saddle, jnp.inf, window.value
            )  # from a certain saddle a jump is never held against it
            jumped = jax.tree.map(lambda u, xi: jnp.where(found.optimal, u, xi), current, _cast(moved, fixed))
            return jumped, ~found.optimal, found.optimal, held

        def wait(current: PyTree) -> tuple[PyTree, Array, Array, Array]:
            return current, jnp.zeros((), bool), jnp.zeros((), bool), window.value

        updates, jumps, certified, held = jax.lax.cond(fires, look, wait, updates)
        # The window opens with the next update, the first gradient step from the perturbed parameters.
        opened = trigger.jump(window, count + jumps.astype(jnp.int32), params, held)
        window = jax.tree.map(lambda new, old: jnp.where(fires, new, old), opened, window)
        stopped = stopped | (certified & stop)
        back = _cast(jax.tree.map(jnp.subtract, window.saved, params), fixed)
        updates = jax.tree.map(lambda u, b: jnp.where(stopped, b, u), updates, back)
        more = (jumps.astype(jnp.int32), fails.astype(jnp.int32))
        certified = jnp.where(fires, certified, state.certified)
        return updates, PerturbState(
            next_key, count + 1, window, jumps, state.jumps + more[0], state.failures + more[1], stopped, certified
        )

    return transformation(init, update)


def _cast(tree: PyTree, dtypes: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), tree, dtypes)


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
        A transformation whose ``update`` needs ``params``, ``value`` and ``grad``.

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
        ...     updates, state = optimizer.update(grad, state, x, value=value, grad=grad)
        ...     return optax.apply_updates(x, updates), state
        >>> x = problem.saddles[0].point
        >>> x, _ = jax.lax.fori_loop(0, 200, step, (x, optimizer.init(x)))
        >>> round(float(problem.value(x)), 3)
        -0.25

    References:
        Jin et al., arXiv:1703.00887, Alg. 4; arXiv:1902.04811, Alg. 4 (with ``stop=False``).
    """
    trigger = gradient_trigger(eps=eps, k_thres=k_thres, f_thres=f_thres)
    return optax.with_extra_args_support(
        optax.chain(optax.sgd(learning_rate), perturb_at_saddle(ball_noise(radius), trigger, key, stop=stop))
    )


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
