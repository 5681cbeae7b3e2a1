"""Methods for functions of finitely many parameters that a config can name, and what each of them spends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from pwgf_jax import arguments, perturbation, transforms, trees
from pwgf_jax.experiments.batches import Setting

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
        >>> well = Setting.of(problems.double_well(2), smoothness=2.0, hessian_lipschitz=6.0, eps=1e-3, delta=0.1)
        >>> DESCENTS["sam"](well, radius=0.05).spent(10, None)
        Spent(gradients=20.0, products=0, values=0.0)
    """

    make: Callable[[Array], optax.GradientTransformation]
    spent: Callable[[Any, PyTree], Spent]


def _every_step(gradients: float, products: int = 0) -> Callable[[Any, PyTree], Spent]:
    return lambda steps, state: Spent(gradients * steps, products * steps)


def _count(state: PyTree, name: str) -> Array:
    """A counter of an optax state."""
    return jnp.asarray(optax.tree.get(state, name), float)


def _rate(setting: Setting, learning_rate: Any) -> Any:
    return 1 / setting.constants.smoothness if learning_rate is None else learning_rate


def _given(numbers: dict[str, Any], **others: Any) -> dict[str, Any]:
    """The numbers that follow from the constants, but for those that a config gives."""
    return numbers | {name: number for name, number in others.items() if number is not None}


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
    batches, step = setting.batches(batch, defer), optax.sgd(_rate(setting, learning_rate), momentum)
    return Descent(lambda key: _chain(batches(key), step), _every_step(setting.share(batch)))


def adam(setting: Setting, *, learning_rate: float | optax.Schedule, batch: int | None = None) -> Descent:
    """Adam."""
    batches, step = setting.batches(batch), optax.adam(learning_rate)
    return Descent(lambda key: _chain(batches(key), step), _every_step(setting.share(batch)))


def muon(
    setting: Setting, *, learning_rate: float | optax.Schedule, momentum: float = 0.95, batch: int | None = None
) -> Descent:
    """Muon: matrices move by the orthogonal factor of their momentum, all other parameters by Adam with Nesterov's."""
    batches = setting.batches(batch)
    step = optax.contrib.muon(learning_rate, beta=momentum)
    return Descent(lambda key: _chain(batches(key), step), _every_step(setting.share(batch)))


def noisy_sgd(setting: Setting, *, learning_rate: float | None = None, radius: float | None = None) -> Descent:
    """Gradient descent with Gaussian noise of length radius in every gradient; a third of ε if not given."""
    numbers = _given(setting.constants.noisy_sgd(radius), learning_rate=learning_rate)
    return Descent(lambda key: optax.noisy_sgd(**numbers, key=key), _every_step(1.0))


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
    at = setting.seen(batch, defer)

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
            gradient, next_draw = at(state[0], value_fn, grad_fn)  # both gradients of a step are of the same terms
            if batch is not None or defer is not None:
                updates = gradient(params)
            updates, sharpness = inner.update(updates, state[1], params, grad_fn=lambda x, _: gradient(x))
            return updates, (next_draw, sharpness)

        return optax.GradientTransformationExtraArgs(
            lambda params: ((key, jnp.zeros((), jnp.int32)), inner.init(params)), update
        )

    return Descent(make, _every_step(2 * setting.share(batch)))


def _jumping(setting: Setting, noise: Any, k_thres: int | None, base: Any, *, step: int = 0, jump: int = 0) -> Descent:
    trigger = transforms.gradient_trigger(**_given(setting.constants.gradient_trigger(), k_thres=k_thres))
    make = lambda key: transforms.perturb_at_saddle(base, noise, trigger, key=key)  # noqa: E731
    return Descent(make, lambda steps, state: Spent(steps, step * steps + jump * _count(state, "jumps")))


def _ball(setting: Setting, radius: float | None) -> Any:
    return perturbation.ball_noise(setting.constants.pgd()["radius"] if radius is None else radius)


def pgd(
    setting: Setting,
    *,
    learning_rate: float | None = None,
    radius: float | None = None,
    k_thres: int | None = None,
    momentum: float | None = None,
) -> Descent:
    """Perturbed gradient descent: a jump uniform in a ball where the gradient is at most ε; radius a tenth of δ/ρ."""
    return _jumping(setting, _ball(setting, radius), k_thres, optax.sgd(_rate(setting, learning_rate), momentum))


def pagd(setting: Setting, *, radius: float | None = None, k_thres: int | None = None) -> Descent:
    """Perturbed accelerated gradient descent, which exploits the negative curvature that it meets."""
    base = transforms.accelerated_descent(**setting.constants.accelerated_descent())
    made = _jumping(setting, _ball(setting, radius), k_thres, base)
    spent = lambda steps, state: Spent(2 * steps, values=2 * _count(state, "exploitations"))  # noqa: E731
    return Descent(made.make, spent)


def hessian_guided(
    setting: Setting,
    *,
    learning_rate: float | None = None,
    radius: float | None = None,
    k_thres: int | None = None,
) -> Descent:
    """The same with Hessian-guided noise Hz, of the length that ball noise would have where the Hessian is ℓ."""
    noise = perturbation.hessian_noise(**setting.constants.hessian_noise(radius))
    return _jumping(setting, noise, k_thres, optax.sgd(_rate(setting, learning_rate)), jump=1)


def ssrgd(
    setting: Setting,
    *,
    learning_rate: float | None = None,
    batch: int | None = None,
    radius: float | None = None,
    k_thres: int | None = None,
) -> Descent:
    """Stochastic recursive gradients with super-epochs; batch and epoch √n, learning rate 1/2ℓ if not given."""
    given = {"learning_rate": learning_rate, "batch": batch, "radius": radius, "k_thres": k_thres}
    numbers = _given(setting.constants.ssrgd(), **given)
    spent = lambda steps, state: Spent(_count(state, "gradients") / setting.constants.size)  # noqa: E731
    return Descent(lambda key: transforms.ssrgd(**numbers, key=key), spent)


def _estimator(setting: Setting, name: str | None, batch: int | None) -> transforms.Estimator | None:
    known = {"sgd": transforms.sgd, "scsg": transforms.scsg, "spider": transforms.spider}
    if name is None and batch is not None:
        raise ValueError(f"batch = {batch} has no use without an estimator; give one of {', '.join(known)}.")
    return None if name is None else known[name](**_given(getattr(setting.constants, name)(), batch=batch))


def negative_curvature_descent(
    setting: Setting,
    *,
    estimator: Literal["sgd", "scsg", "spider"] | None = None,
    batch: int | None = None,
    radius: float | None = None,
    failure: float = 0.01,
    search_steps: int | None = None,
) -> Descent:
    """Gradient steps, and Neon2 where the gradient is at most ε; with an estimator on batches, √n if not given."""
    search = {"radius": radius, "failure": failure, "steps": search_steps}
    numbers = setting.constants.negative_curvature_descent() | search
    made = _estimator(setting, estimator, batch)
    terms = 1 if made is None else made.size
    spent = lambda steps, state: Spent(_count(state, "queries") / terms)  # noqa: E731
    return Descent(lambda key: transforms.negative_curvature_descent(made, **numbers, key=key), spent)


def zeroth_order_descent(
    setting: Setting,
    *,
    estimator: Literal["sgd", "scsg", "spider"] | None = None,
    batch: int | None = None,
    mu: float | None = None,
    radius: float | None = None,
    failure: float = 0.01,
    search_steps: int | None = None,
) -> Descent:
    """The same from function values alone: ZO-GD-NCF, or with an estimator ZO-SGD-, ZO-SCSG- and ZO-SPIDER-NCF."""
    search = {"mu": mu, "radius": radius, "failure": failure, "steps": search_steps}
    numbers = setting.constants.zeroth_order_descent() | search
    made = _estimator(setting, estimator, batch)
    terms = 1 if made is None else made.size
    spent = lambda steps, state: Spent(values=_count(state, "queries") / terms)  # noqa: E731
    return Descent(lambda key: transforms.zeroth_order_descent(made, **numbers, key=key), spent)


def compressed_sgd(
    setting: Setting,
    *,
    k: int,
    compressor: Literal["random_k", "top_k"] = "random_k",
    learning_rate: float | None = None,
    radius: float | None = None,
    reset_every: int | None = None,
    batch: int | None = None,
    workers: int = 1,
    feedback: bool = True,
) -> Descent:
    """SGD that sends k of its d coordinates, with error feedback; learning rate k/dℓ, reset every d/k steps.

    Each worker draws a batch of its own, and sends as many bits as are recorded. Without feedback what is left is lost.
    """
    given = {"learning_rate": learning_rate, "noise_radius": radius, "reset_every": reset_every}
    numbers = _given(setting.constants.compressed_sgd(k), **given)
    known = {"random_k": transforms.random_k, "top_k": transforms.top_k}
    batches, count = setting.batches(batch), arguments.whole("compressed_sgd: workers", workers)

    def make(key: Array) -> optax.GradientTransformationExtraArgs:
        batch_key, key = jax.random.split(key)

        def worker(batch_key: Array) -> optax.GradientTransformationExtraArgs:
            sent = transforms.compressed_sgd(compressor=known[compressor](k), **numbers, key=key, axis_name="workers")
            return _chain(batches(batch_key), sent)

        def update(updates: PyTree, state: Any, params: PyTree = None, **extra: Any) -> tuple[PyTree, Any]:
            one = lambda state: worker(batch_key).update(updates, state, params, **extra)  # noqa: E731
            averages, state = jax.vmap(one, axis_name="workers")(state)
            if not feedback:
                state = optax.tree.set(state, error=trees.zeros(optax.tree.get(state, "error")))
            return jax.tree.map(lambda each: each[0], averages), state

        each = jax.random.split(batch_key, count)
        init = lambda params: jax.vmap(lambda own: worker(own).init(params))(each)  # noqa: E731
        return optax.GradientTransformationExtraArgs(init, update)

    return Descent(make, _every_step(count * setting.share(batch)))


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
    numbers = _given(setting.constants.dimer(), kick=kick)
    if mode != "repel":
        numbers = {name: numbers[name] for name in ("separation", "rotation_rate")}

    def make(key: Array) -> optax.GradientTransformationExtraArgs:
        pushed = transforms.dimer(every=every, strength=strength, mode=mode, **numbers, key=key)
        return _chain(pushed, optax.sgd(_rate(setting, learning_rate)))

    return Descent(make, _every_step(1 + 1 / arguments.whole("dimer: every", every)))


def saddle_free_newton(
    setting: Setting,
    *,
    learning_rate: float = 1.0,
    beta: float | None = None,
    depth: int = 20,
    radius: float | None = None,
    k_thres: int | None = None,
    largest_step: float | None = None,
) -> Descent:
    """Steps −(H² + β)^(−1/2) g, β = δ² if not given, clipped to a largest length, with the jumps of pgd."""
    numbers = _given(setting.constants.scale_by_saddle_free_newton(), beta=beta)
    base = optax.chain(
        transforms.scale_by_saddle_free_newton(**numbers, depth=depth),
        optax.scale_by_learning_rate(learning_rate),
        optax.identity() if largest_step is None else optax.clip_by_global_norm(largest_step),
    )
    return _jumping(setting, _ball(setting, radius), k_thres, base, step=min(depth, setting.constants.dimension))


def cubic_newton(setting: Setting, *, lipschitz: float | None = None, depth: int = 20) -> Descent:
    """Newton's method with cubic regularisation M = ρ."""
    numbers = _given(setting.constants.cubic_newton(), lipschitz=lipschitz)
    make = lambda key: transforms.cubic_newton(**numbers, depth=depth, key=key)  # noqa: E731
    return Descent(make, _every_step(1.0, min(depth, setting.constants.dimension)))


def _domain(setting: Setting, domain: str, radius: float | None) -> tuple[transforms.Domain, float]:
    if radius is None:
        if setting.problem.minimum is None:
            raise ValueError("radius is missing; this objective has no known minimiser to choose it by.")
        radius = 2 * float(optax.tree.norm(setting.problem.minimum.point))
    return transforms.ball(radius) if domain == "ball" else transforms.box(-radius, radius), radius


def constrained_escape(
    setting: Setting,
    *,
    domain: Literal["ball", "box"] = "ball",
    radius: float | None = None,
    first_order: Literal["projected", "frank_wolfe"] = "projected",
) -> Descent:
    """First- and second-order steps in a ball, or a box of sides 2·radius; twice the minimiser's norm if not given."""
    inside, radius = _domain(setting, domain, radius)
    numbers = setting.constants.constrained_escape(radius)
    make = lambda key: transforms.constrained_escape(inside, **numbers, first_order=first_order, key=key)  # noqa: E731
    products = setting.constants.dimension + 1 if domain == "ball" else 16 * 34 + 1  # of a search: 16 starts in a box
    return Descent(make, lambda steps, state: Spent(steps, products * _count(state, "searches")))


def projected_sgd(
    setting: Setting,
    *,
    domain: Literal["ball", "box"] = "ball",
    radius: float | None = None,
    noise: float | None = None,
    learning_rate: float | None = None,
) -> Descent:
    """Gradient descent with Gaussian noise of a length, and every step projected; noise a third of ε if not given."""
    project: Any = _domain(setting, domain, radius)[0].project
    numbers = _given(setting.constants.noisy_sgd(noise), learning_rate=learning_rate)

    def move(updates: PyTree, params: PyTree) -> PyTree:
        x, unravel = trees.ravel(params)
        return unravel(project(x + trees.ravel(updates)[0]) - x)

    return Descent(lambda key: _chain(optax.noisy_sgd(**numbers, key=key), optax.stateless(move)), _every_step(1.0))


DESCENTS: dict[str, Callable[..., Descent]] = {
    method.__name__: method
    for method in (
        sgd,
        adam,
        muon,
        noisy_sgd,
        sam,
        pgd,
        pagd,
        hessian_guided,
        ssrgd,
        negative_curvature_descent,
        zeroth_order_descent,
        compressed_sgd,
        dimer,
        saddle_free_newton,
        cubic_newton,
        constrained_escape,
        projected_sgd,
    )
}
"""By name: (setting, numbers) -> the method. What is not given follows from the constants of the setting."""
