"""Methods for functions of finitely many parameters that a config can name, and what each of them spends."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from pwgf_jax import transforms
from pwgf_jax.experiments.objectives import Setting

__all__ = ["DESCENTS", "Descent", "Spent"]


class Spent(NamedTuple):
    """What a method has evaluated so far, of the whole objective; a batch counts as its share.

    Args:
        gradients: gradients, values with them.
        products: Hessian products.
        values: values alone.

    Example:
        >>> Spent(gradients=10.0)
        Spent(gradients=10.0, products=0.0, values=0.0)
    """

    gradients: Any = 0.0
    products: Any = 0.0
    values: Any = 0.0


class Descent(NamedTuple):
    """A method on one objective.

    Args:
        make: key -> optax transformation.
        spent: (steps, optax state) -> :class:`Spent`.

    Example:
        >>> from pwgf_jax import problems
        >>> found = DESCENTS["sam"](Setting(problems.double_well(2), 2.0, 6.0, 1e-3, 0.1), radius=0.05)
        >>> found.spent(10, None)
        Spent(gradients=20.0, products=0, values=0.0)
    """

    make: Callable[[Array], optax.GradientTransformation]
    spent: Callable[[Any, PyTree], Spent]


def _every_step(gradients: float, products: int = 0) -> Callable[[Any, PyTree], Spent]:
    return lambda steps, state: Spent(gradients * steps, products * steps)


def _count(state: PyTree, name: str) -> Array:
    """A counter of an optax state."""
    return jnp.asarray(optax.tree.get(state, name), float)


class _Drawn(NamedTuple):
    key: Array
    step: Array


def _seen(setting: Setting, batch: int | None, defer: int | None) -> Callable[..., Any]:
    """(state, value_fn, grad_fn) -> the gradient that this step sees, and the next state.

    Of a random batch of terms if there is a batch size, and of what comes later from the step ``defer`` on.
    """
    if batch is not None and not 1 <= batch <= setting.size:
        raise ValueError(f"batch = {batch}; the objective has {setting.size} terms, give 1 to {setting.size}.")
    later: Any = setting.later
    if defer is not None and later is None:
        raise ValueError(f"defer = {defer}; this objective has nothing to change to later, leave it out.")
    if defer is not None and defer < 0:
        raise ValueError(f"defer = {defer}; give a step, at least 0.")

    def seen(state: _Drawn, value_fn: Any, grad_fn: Any) -> tuple[Callable[[PyTree], PyTree], _Drawn]:
        key, draw = jax.random.split(state.key)
        after = _Drawn(key, state.step + 1)
        indices = None if batch is None else jax.random.randint(draw, (batch,), 0, setting.size)
        now = jax.grad(value_fn) if indices is None else lambda x: grad_fn(x, indices)
        if defer is None:
            return now, after
        then = jax.grad(later.value if indices is None else lambda x: jnp.mean(later.components(x, indices)))
        changed = state.step >= defer
        return lambda x: jax.lax.cond(changed, then, now, x), after

    return seen


def _drawn(key: Array) -> _Drawn:
    return _Drawn(key, jnp.zeros((), jnp.int32))


def _batches(
    setting: Setting, batch: int | None, defer: int | None = None
) -> Callable[[Array], optax.GradientTransformationExtraArgs]:
    """With a key, put the gradient that a step sees in the place of the whole one; nothing where they are the same."""
    seen = _seen(setting, batch, defer)
    if batch is None and defer is None:
        return lambda key: optax.with_extra_args_support(optax.identity())

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree = None,
        *,
        value_fn: Any = None,
        grad_fn: Any = None,
        **extra_args: Any,
    ) -> tuple[PyTree, _Drawn]:
        del updates, extra_args
        gradient, state = seen(state, value_fn, grad_fn)
        return gradient(params), state

    return lambda key: optax.GradientTransformationExtraArgs(lambda params: _drawn(key), update)


def _share(setting: Setting, batch: int | None) -> float:
    return 1.0 if batch is None else batch / setting.size


def _rate(setting: Setting, learning_rate: Any) -> Any:
    return 1 / setting.smoothness if learning_rate is None else learning_rate


def _window(setting: Setting) -> int:
    """Steps of 1/ℓ in which a curvature of −δ carries a start far inside the escape length out of it, twice over."""
    reach = math.log(100 * math.sqrt(setting.dimension))
    return math.ceil(2 * setting.smoothness / setting.delta * reach)


def _decrease(setting: Setting) -> float:
    """A tenth of δ³/ρ², the scale of what an escape brings."""
    return setting.delta**3 / setting.hessian_lipschitz**2 / 10


def _chain(*parts: Any) -> optax.GradientTransformationExtraArgs:
    return optax.with_extra_args_support(optax.chain(*parts))


def sgd(
    setting: Setting,
    *,
    learning_rate: float | optax.Schedule | None = None,
    momentum: float | None = None,
    batch: int | None = None,
    defer: int | None = None,
) -> Descent:
    """Gradient descent, with momentum and on batches of the terms if wanted; learning_rate 1/ℓ if not given.

    From the step ``defer`` on, the gradient is that of what the objective offers for later.
    """
    batches, step = _batches(setting, batch, defer), optax.sgd(_rate(setting, learning_rate), momentum)
    return Descent(lambda key: _chain(batches(key), step), _every_step(_share(setting, batch)))


def adam(setting: Setting, *, learning_rate: float, batch: int | None = None) -> Descent:
    """Adam."""
    batches, step = _batches(setting, batch), optax.adam(learning_rate)
    return Descent(lambda key: _chain(batches(key), step), _every_step(_share(setting, batch)))


def noisy_sgd(setting: Setting, *, learning_rate: float | None = None, radius: float | None = None) -> Descent:
    """Gradient descent with Gaussian noise of length radius in every gradient; a third of ε if not given."""
    rate, length = _rate(setting, learning_rate), setting.eps / 3 if radius is None else radius

    def make(key: Array) -> optax.GradientTransformation:
        return optax.noisy_sgd(rate, eta=length**2 / setting.dimension, gamma=0.0, key=key)

    return Descent(make, _every_step(1.0))


def sam(
    setting: Setting,
    *,
    radius: float,
    normalized: bool = True,
    learning_rate: float | optax.Schedule | None = None,
    momentum: float | None = None,
    batch: int | None = None,
    defer: int | None = None,
) -> Descent:
    """Sharpness-aware minimisation: the gradient at x + radius·g/|g|, or at x + radius·g.

    From the step ``defer`` on, both gradients are those of what the objective offers for later.
    """
    rate = _rate(setting, learning_rate)
    unit = optax.normalize_by_update_norm(scale_factor=1.0, eps=1e-6) if normalized else optax.identity()
    inner = optax.contrib.sam(optax.sgd(rate, momentum), optax.chain(unit, optax.sgd(radius)), opaque_mode=True)
    seen = _seen(setting, batch, defer)

    def make(key: Array) -> optax.GradientTransformationExtraArgs:
        def update(
            updates: PyTree,
            state: Any,
            params: PyTree = None,
            *,
            value_fn: Any = None,
            grad_fn: Any = None,
            **extra_args: Any,
        ) -> tuple[PyTree, Any]:
            del extra_args
            gradient, drawn = seen(state[0], value_fn, grad_fn)  # both gradients of a step are of the same terms
            if batch is not None or defer is not None:
                updates = gradient(params)
            updates, sharpness = inner.update(updates, state[1], params, grad_fn=lambda x, _: gradient(x))
            return updates, (drawn, sharpness)

        return optax.GradientTransformationExtraArgs(lambda params: (_drawn(key), inner.init(params)), update)

    return Descent(make, _every_step(2 * _share(setting, batch)))


def _jumping(setting: Setting, noise: Any, window: int | None, base: Any, *, step: int = 0, jump: int = 0) -> Descent:
    trigger = transforms.gradient_trigger(
        eps=setting.eps, k_thres=window or _window(setting), f_thres=_decrease(setting)
    )
    make = lambda key: _chain(base, transforms.perturb_at_saddle(noise, trigger, key))  # noqa: E731
    return Descent(make, lambda steps, state: Spent(steps, step * steps + jump * _count(state, "jumps")))


def pgd(
    setting: Setting,
    *,
    learning_rate: float | None = None,
    radius: float | None = None,
    window: int | None = None,
    momentum: float | None = None,
) -> Descent:
    """Perturbed gradient descent: a jump uniform in a ball where the gradient is at most ε; radius a tenth of δ/ρ."""
    noise = transforms.ball_noise(setting.escape / 10 if radius is None else radius)
    base = optax.sgd(_rate(setting, learning_rate), momentum)
    return _jumping(setting, noise, window, base)


def hessian_guided(
    setting: Setting,
    *,
    learning_rate: float | None = None,
    radius: float | None = None,
    window: int | None = None,
) -> Descent:
    """The same with Hessian-guided noise Hz, of the length that ball noise would have where the Hessian is ℓ."""
    length = setting.escape / 10 if radius is None else radius
    noise = transforms.hessian_product_noise(length / (setting.smoothness * math.sqrt(setting.dimension)))
    return _jumping(setting, noise, window, optax.sgd(_rate(setting, learning_rate)), jump=1)


def ssrgd(
    setting: Setting,
    *,
    learning_rate: float | None = None,
    batch: int | None = None,
    radius: float | None = None,
    window: int | None = None,
) -> Descent:
    """Stochastic recursive gradients with super-epochs; batch and epoch √n, learning rate 1/2ℓ if not given."""
    size = setting.size
    root = math.ceil(math.sqrt(size))

    def make(key: Array) -> optax.GradientTransformation:
        return transforms.ssrgd(
            0.5 / setting.smoothness if learning_rate is None else learning_rate,
            size=size,
            batch=batch or root,
            epoch=root,
            radius=setting.escape / 10 if radius is None else radius,
            eps=setting.eps,
            f_thres=_decrease(setting),
            t_thres=window or 2 * _window(setting),
            key=key,
        )

    return Descent(make, lambda steps, state: Spent(_count(state, "gradients") / size))


def _known(setting: Setting) -> dict[str, float]:
    return {
        "smoothness": setting.smoothness,
        "hessian_lipschitz": setting.hessian_lipschitz,
        "eps": setting.eps,
        "delta": setting.delta,
    }


def negative_curvature_descent(
    setting: Setting, *, radius: float | None = None, failure: float = 0.01, search_steps: int | None = None
) -> Descent:
    """Gradient steps, and Neon2 where the gradient is at most ε."""
    search = {"radius": radius, "failure": failure, "steps": search_steps}

    def make(key: Array) -> optax.GradientTransformation:
        return transforms.negative_curvature_descent(**_known(setting), **search, key=key)

    return Descent(make, lambda steps, state: Spent(_count(state, "queries")))


def zeroth_order_descent(
    setting: Setting,
    *,
    mu: float | None = None,
    radius: float | None = None,
    failure: float = 0.01,
    search_steps: int | None = None,
) -> Descent:
    """ZO-GD-NCF: the same from function values alone."""
    search = {"radius": radius, "failure": failure, "steps": search_steps}

    def make(key: Array) -> optax.GradientTransformation:
        return transforms.zeroth_order_descent(**_known(setting), mu=mu, **search, key=key)

    return Descent(make, lambda steps, state: Spent(values=_count(state, "queries")))


def _zeroth_order(method: Any) -> Callable[..., Descent]:
    def make_descent(
        setting: Setting,
        *,
        batch: int | None = None,
        radius: float | None = None,
        failure: float = 0.01,
        search_steps: int | None = None,
    ) -> Descent:
        size = setting.size
        root = math.ceil(math.sqrt(size))
        sizes: dict[str, int] = {"size": size, "batch": batch or root}
        if method is not transforms.zo_sgd_ncf:
            sizes["large_batch"] = size
        if method is transforms.zo_spider_ncf:
            sizes["epoch"] = root

        search = {"radius": radius, "failure": failure, "steps": search_steps}

        def make(key: Array) -> optax.GradientTransformation:
            return method(**_known(setting), **sizes, **search, key=key)

        return Descent(make, lambda steps, state: Spent(values=_count(state, "queries") / size))

    make_descent.__doc__ = f"{method.__name__.upper().replace('_', '-')}, from values of single terms."
    return make_descent


def compressed_sgd(
    setting: Setting,
    *,
    k: int,
    compressor: Literal["random_k", "top_k"] = "random_k",
    learning_rate: float | None = None,
    radius: float | None = None,
    reset_every: int | None = None,
    batch: int | None = None,
) -> Descent:
    """SGD that sends k of its d coordinates, with error feedback; learning rate k/dℓ, reset every d/k steps."""
    d = setting.dimension
    rate = k / d / setting.smoothness if learning_rate is None else learning_rate
    length = setting.eps / 3 if radius is None else radius
    known = {"random_k": transforms.random_k, "top_k": transforms.top_k}
    batches = _batches(setting, batch)

    def make(key: Array) -> optax.GradientTransformationExtraArgs:
        batch_key, key = jax.random.split(key)
        sending = transforms.compressed_sgd(
            rate,
            known[compressor](k),
            noise_radius=length,
            reset_every=reset_every or math.ceil(d / k),
            key=key,
        )
        return _chain(batches(batch_key), sending)

    return Descent(make, _every_step(_share(setting, batch)))


def dimer(
    setting: Setting,
    *,
    learning_rate: float | None = None,
    every: int = 5,
    strength: float = 2.0,
    kick: float | None = None,
    mode: Literal["repel", "translate", "as_published"] = "repel",
) -> Descent:
    """Gradient descent that is pushed along a direction of least curvature; kick a tenth of δ/ρ if not given."""
    given = {"repel": {"kick": setting.escape / 10 if kick is None else kick, "tolerance": setting.delta / 2}}

    def make(key: Array) -> optax.GradientTransformationExtraArgs:
        pushed = transforms.dimer(
            separation=setting.escape / 10,
            rotation_rate=1 / setting.smoothness,
            every=every,
            strength=strength,
            mode=mode,
            key=key,
            **given.get(mode, {}),
        )
        return _chain(pushed, optax.sgd(_rate(setting, learning_rate)))

    return Descent(make, _every_step(1 + 1 / every))


def saddle_free_newton(
    setting: Setting,
    *,
    learning_rate: float = 1.0,
    beta: float | None = None,
    depth: int = 20,
    radius: float | None = None,
    window: int | None = None,
    largest_step: float | None = None,
) -> Descent:
    """Steps −(H² + β)^(−1/2) g, β = δ² if not given, clipped to a largest length, with the jumps of pgd."""
    noise = transforms.ball_noise(setting.escape / 10 if radius is None else radius)
    base = optax.chain(
        transforms.scale_by_saddle_free_newton(setting.delta**2 if beta is None else beta, depth=depth),
        optax.scale_by_learning_rate(learning_rate),
        optax.identity() if largest_step is None else optax.clip_by_global_norm(largest_step),
    )
    return _jumping(setting, noise, window, base, step=min(depth, setting.dimension))


def cubic_newton(setting: Setting, *, lipschitz: float | None = None, depth: int = 20) -> Descent:
    """Newton's method with cubic regularisation M = ρ."""
    constant = setting.hessian_lipschitz if lipschitz is None else lipschitz
    make = lambda key: transforms.cubic_newton(constant, depth=depth, key=key)  # noqa: E731
    return Descent(make, _every_step(1.0, min(depth, setting.dimension)))


def constrained_escape(
    setting: Setting, *, first_order: Literal["projected", "frank_wolfe"] = "projected", radius: float | None = None
) -> Descent:
    """First- and second-order steps in a ball, of twice the minimiser's norm if no radius is given."""
    if radius is None:
        if setting.problem.minimum is None:
            raise ValueError("radius is missing; this objective has no known minimiser to choose it by.")
        radius = 2 * float(optax.tree.norm(setting.problem.minimum.point))
    numbers = {name: value for name, value in _known(setting).items() if name != "delta"}
    # A point halfway to the boundary sees the whole of a curvature of −δ at half the radius at least.
    gamma = setting.delta * (radius / 2) ** 2
    numbers["eps"] = setting.eps * radius / 2  # the gap there is at least half a radius times the gradient

    def make(key: Array) -> optax.GradientTransformation:
        domain = transforms.ball(radius)
        return transforms.constrained_escape(domain, **numbers, gamma=gamma, first_order=first_order, key=key)

    products = setting.dimension + 1  # of a search in the ball
    return Descent(make, lambda steps, state: Spent(steps, products * _count(state, "searches")))


DESCENTS: dict[str, Callable[..., Descent]] = {
    "sgd": sgd,
    "adam": adam,
    "noisy_sgd": noisy_sgd,
    "sam": sam,
    "pgd": pgd,
    "hessian_guided": hessian_guided,
    "ssrgd": ssrgd,
    "negative_curvature_descent": negative_curvature_descent,
    "zeroth_order_descent": zeroth_order_descent,
    "zo_sgd_ncf": _zeroth_order(transforms.zo_sgd_ncf),
    "zo_scsg_ncf": _zeroth_order(transforms.zo_scsg_ncf),
    "zo_spider_ncf": _zeroth_order(transforms.zo_spider_ncf),
    "compressed_sgd": compressed_sgd,
    "dimer": dimer,
    "saddle_free_newton": saddle_free_newton,
    "cubic_newton": cubic_newton,
    "constrained_escape": constrained_escape,
}
"""By name: (setting, numbers) -> the method. What is not given follows from the constants of the setting."""
