r"""Directions φ(H)∇F: saddle-free Newton, Sobolev descent and Newton differ in φ and in the part of the Hessian.

=====================================  ==========================  ====================
method                                 φ(t)                        Hessian
=====================================  ==========================  ====================
Wasserstein gradient flow              1
Sobolev descent                        1/(t + λ)                   integral
saddle-free Newton, β inside           (t² + β)^(-1/2)             integral or full
saddle-free Newton, damping λ          1/(abs(t) + λ)              integral or full
Newton, for comparison                 t/(t² + β)                  integral or full
=====================================  ==========================  ====================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, PyTree

from pwgf_jax.calculus import (
    Functional,
    Part,
    integral_product,
    value_and_wasserstein_gradient,
    wasserstein_gradient,
    wasserstein_hessian,
)
from pwgf_jax.flows.base import Direction, StepSize, flow
from pwgf_jax.flows.damping import Damping, rule
from pwgf_jax.flows.protocol import Evaluation, Flow, preset
from pwgf_jax.gram import gram_function
from pwgf_jax.krylov import dense_function, matrix_function
from pwgf_jax.measures import Particles, norm
from pwgf_jax.perturbation import Noise
from pwgf_jax.transforms import Trigger, absolute_inverse

__all__ = [
    "saddle_free_newton",
    "sobolev_descent",
    "spectral",
    "spectral_velocity",
    "wasserstein_newton",
]

Phi: TypeAlias = Callable[[Array, Array], Array]
"""φ(eigenvalues, gradient norm): a damping may shrink as the gradient does."""

Solver: TypeAlias = Literal["lanczos", "dense", "gram"]


def spectral(
    phi: Phi,
    *,
    part: Part = "integral",
    depth: int = 32,
    solver: Solver = "lanczos",
    max_rms: float | Array | None = None,
) -> Direction:
    r"""The direction :math:`\phi(A)\,\nabla_\mu F` with A the integral or the full Hessian.

    Args:
        phi: (eigenvalues, gradient norm) -> factors.
        part: ``"integral"`` or ``"full"``.
        depth: Krylov dimension; memory depth·N·d, cost depth Hessian products. Too small a depth does not
            degrade gracefully: take a few times ‖A‖/√β.
        solver: ``"lanczos"``; ``"dense"``, the whole spectrum, for N·d up to some 3000; ``"gram"``, see
            :func:`pwgf_jax.gram.gram_function`.
        max_rms: largest root mean square of the direction in L²(μ); longer ones are shortened to it.

    Returns:
        A direction for :func:`pwgf_jax.flow`.

    Raises:
        ValueError: if the solver or the part is unknown, or the two do not go together.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> F = lambda mu: mu.weights @ jnp.sum(mu.points**2, axis=-1)  # full Hessian 2
        >>> direction = spectral(lambda t, _: 1 / t, part="full", depth=2)
        >>> direction(jax.random.key(0), F, Particles.uniform(jnp.ones((3, 1)))).field[0].tolist()
        [1.0]
    """
    if solver not in ("lanczos", "dense", "gram"):
        raise ValueError(f'solver={solver!r}; choose "lanczos", "dense" or "gram".')
    if part not in ("integral", "full"):
        raise ValueError(f'part={part!r}; choose "integral" or "full".')
    if solver == "gram" and part != "integral":
        raise ValueError('solver="gram" knows the integral Hessian only; choose part="integral" or solver="lanczos".')
    if max_rms is not None and not isinstance(max_rms, Tracer) and not max_rms > 0:
        raise ValueError(f"max_rms={max_rms}; give a positive length, or None.")

    def direction(key: Array, F: Functional, mu: Particles, step: Any = 0) -> Evaluation:
        del key, step
        value, gradient = value_and_wasserstein_gradient(F, mu)
        gradient_norm = norm(mu, gradient)

        def factors(eigenvalues: Array) -> Array:
            return phi(eigenvalues, gradient_norm)

        if solver == "gram":
            field = gram_function(F, mu, factors)
        elif solver == "dense":
            field = dense_function(wasserstein_hessian(F, mu, part), gradient, factors)
        else:
            size = sum(leaf.size for leaf in jax.tree.leaves(gradient))
            field = matrix_function(wasserstein_hessian(F, mu, part), gradient, factors, min(depth, size))
        if max_rms is not None:
            length = norm(mu, field)
            shrink = jnp.where(length > max_rms, max_rms / jnp.where(length > 0, length, 1), 1)
            field = jax.tree.map(lambda leaf: shrink.astype(leaf.dtype) * leaf, field)
        return Evaluation(value, gradient_norm, field)

    return direction


def spectral_velocity(
    F: Functional, mu: Particles, phi: Callable[[Array], Array], *, depth: int = 32
) -> Callable[[PyTree], PyTree]:
    r"""The velocity :math:`-\phi(H_\mu)\nabla_\mu F` as a function on the whole space, integral Hessian.

    With :math:`\psi(t)=(\phi(t)-\phi(0))/t` and :math:`v=\psi(H_\mu)\nabla_\mu F` it is
    :math:`-\phi(0)\nabla_\mu F(x)-\int\nabla^2_\mu F(x,y)\,v(y)\,\mu(dy)`: Nyström's extension.
    On the particles it is the flow's own velocity. For φ = 1/(t + λ) it is that of
    Sobolev descent, :math:`-\frac1\lambda[\nabla F(x)-(H_\mu u)(x)]`.

    Args:
        F: the functional.
        mu: the measure.
        phi: φ(eigenvalues), finite and differentiable at zero.
        depth: Krylov dimension.

    Returns:
        The map from query points (m, d) to velocities.

    Example:
        >>> import jax.numpy as jnp
        >>> F = lambda mu: 0.5 * jnp.sum((mu.weights @ mu.points) ** 2)  # H has eigenvalue 1, gradient = mean
        >>> mu = Particles.uniform(jnp.array([[1.0], [3.0]]))
        >>> velocity = spectral_velocity(F, mu, lambda t: 1 / (t + 1), depth=2)
        >>> [round(float(v), 4) for v in velocity(jnp.array([[9.0]]))[0]]
        [-1.0]

    References:
        Mroueh, Sercu, Raj, arXiv:1805.12062 (Sobolev descent); the identity with damped Newton is in the tests.
    """
    gradient = wasserstein_gradient(F, mu)
    at_zero, slope = jax.value_and_grad(phi)(jnp.zeros((), mu.weights.dtype))

    def psi(t: Array) -> Array:
        # The quotient's rounding, eps φ(0)/t, is undone by the product with H; below H's own rounding it is not.
        near = jnp.abs(t) <= jnp.finfo(t.dtype).eps * jnp.max(jnp.abs(t))
        return jnp.where(near, slope, (phi(t) - at_zero) / jnp.where(near, 1, t))

    size = sum(leaf.size for leaf in jax.tree.leaves(gradient))
    inner_field = matrix_function(wasserstein_hessian(F, mu), gradient, psi, min(depth, size))

    def velocity(at: PyTree) -> PyTree:
        plain = wasserstein_gradient(F, mu, at=at)
        smooth = integral_product(F, mu, inner_field, at)
        return jax.tree.map(lambda g, s: -(at_zero.astype(g.dtype) * g + s), plain, smooth)

    return velocity


@preset
def saddle_free_newton(
    step_size: StepSize,
    *,
    beta: Damping | None = None,
    damping: Damping | None = None,
    part: Part = "full",
    depth: int = 32,
    solver: Solver = "lanczos",
    max_rms: float | None = None,
    perturbation: Noise | None = None,
    trigger: Trigger | None = None,
) -> Flow:
    r"""Wasserstein saddle-free Newton (WSFN): :math:`x\leftarrow x-\eta\,(A^2+\beta)^{-1/2}\nabla_\mu F`.

    With a ``damping`` λ in the place of β it is :math:`(|A|+\lambda)^{-1}`.

    A reconstruction: of the paper only the abstract was to be had, see the references.

    Per step, an eigendirection of curvature −δ grows by :math:`1+\eta\delta/\sqrt{\delta^2+\beta}` and one of curvature
    λ > 0 contracts by :math:`1-\eta\lambda/\sqrt{\lambda^2+\beta}`: saddles repel as minima attract.
    At an exact saddle the gradient is zero and so is the direction; a perturbation is needed to leave.

    Args:
        step_size: η, between 0.1 and 1 as a rule; a schedule, or an optax transformation.
        beta: β [units of F per length², squared]; √β between 1 % and 10 % of ‖A‖ is a good start. A function of
            the gradient norm is a damping rule, see :func:`levenberg_marquardt`.
        damping: λ [units of F per length²], likewise. Exactly one of the two is given.
        part: which Hessian A is; for functionals convex under mixtures the integral one has no negative part.
        depth: Krylov dimension of ``"lanczos"``, a few times ‖A‖/√β: so many fields of memory, products per step.
        solver: as in :func:`spectral`.
        max_rms: as in :func:`spectral`, a trust region for the displacement divided by η.
        perturbation: as in :func:`pwgf_jax.flow`, to leave exact saddles by.
        trigger: likewise.

    Returns:
        A :class:`pwgf_jax.Flow`.

    Raises:
        ValueError: if a number is out of range, a name unknown, or not exactly one of β and λ given.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pwgf_jax import Particles, run
        >>> def F(mu):
        ...     square = jnp.sum((mu.weights @ mu.points) ** 2)
        ...     return square**2 / 4 - square / 2
        >>> start = Particles.uniform(jnp.full((8, 2), 1e-3))  # next to the saddle at mean zero
        >>> solution = run(saddle_free_newton(1.0, beta=1e-2, depth=4), F, start, jax.random.key(0), steps=30)
        >>> round(float(solution.value), 5)
        -0.25

    References:
        Lascu, Suzuki, arXiv:2605.17963, reconstructed after its abstract (the place of β, the solver and the use of
        noise are ours); Dauphin et al., NeurIPS 2014, for the damping λ.
    """
    name, number = ("beta", beta) if damping is None else ("damping", damping)
    if number is None or (beta is not None and damping is not None):
        raise ValueError(f"saddle_free_newton: beta={beta}, damping={damping}; give one: beta, or the damping of |H|.")
    damped = rule(f"saddle_free_newton: {name}", number, name)

    def phi(t: Array, gradient_norm: Array) -> Array:
        return absolute_inverse(**{name: damped(gradient_norm)})(t)

    direction = spectral(phi, part=part, depth=depth, solver=solver, max_rms=max_rms)
    return flow(direction, step_size, perturbation, trigger)


@preset
def sobolev_descent(
    step_size: StepSize,
    *,
    damping: Damping,
    depth: int = 32,
    solver: Solver = "lanczos",
) -> Flow:
    r"""Sobolev descent, :math:`x\leftarrow x-\eta\,(H_\mu+\lambda)^{-1}\nabla_\mu F`, with the integral Hessian.

    Made for functionals convex under mixtures, such as ½MMD² and least squares, where H_μ ⪰ 0. On others it is damped
    Newton and is drawn to saddles. Off the particles, see :func:`spectral_velocity`.

    Args:
        step_size: η, a schedule, or an optax transformation.
        damping: λ, a number or a function of the gradient norm.
        depth: Krylov dimension of ``"lanczos"``.
        solver: as in :func:`spectral`.

    Returns:
        A :class:`pwgf_jax.Flow`.

    Raises:
        ValueError: if the damping is not positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pwgf_jax import Particles, run
        >>> F = lambda mu: 0.5 * jnp.sum((mu.weights @ mu.points) ** 2)
        >>> start = Particles.uniform(jnp.ones((4, 1)))
        >>> round(float(run(sobolev_descent(1.0, damping=0.25), F, start, jax.random.key(0), steps=1).value), 4)
        0.02

    References:
        Mroueh, Sercu, Raj, arXiv:1805.12062; the Hessian form is derived in the tests.
    """
    damped = rule("sobolev_descent: damping", damping, "damping")
    direction = spectral(lambda t, gradient_norm: 1 / (t + damped(gradient_norm)), depth=depth, solver=solver)
    return flow(direction, step_size)


@preset
def wasserstein_newton(
    step_size: StepSize,
    *,
    beta: Damping,
    part: Part = "full",
    depth: int = 32,
    solver: Solver = "lanczos",
) -> Flow:
    r"""Wasserstein Newton with a regularised inverse, :math:`x\leftarrow x-\eta\,A(A^2+\beta)^{-1}\nabla_\mu F`.

    Here to be compared with: it converges to whatever stationary point is near, saddles included.

    Args:
        step_size: as in :func:`saddle_free_newton`.
        beta: as in :func:`saddle_free_newton`.
        part: as in :func:`saddle_free_newton`.
        depth: as in :func:`saddle_free_newton`.
        solver: as in :func:`saddle_free_newton`.

    Returns:
        A :class:`pwgf_jax.Flow`.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pwgf_jax import Particles, run
        >>> F = lambda mu: -0.5 * jnp.sum((mu.weights @ mu.points) ** 2)  # a maximum at mean zero
        >>> start = Particles.uniform(jnp.ones((4, 1)))
        >>> round(float(run(wasserstein_newton(1.0, beta=1e-6), F, start, jax.random.key(0), steps=1).value), 4)
        -0.0
    """
    damped = rule("wasserstein_newton: beta", beta, "beta")
    direction = spectral(lambda t, g: t / (t**2 + damped(g)), part=part, depth=depth, solver=solver)
    return flow(direction, step_size)
