r"""Flows in continuous time: the papers' Algorithm 1, and the limit that small steps converge to.

A direction is the right-hand side of an ordinary differential equation for the points, :func:`vector_field`, which
any diffrax solver integrates. :func:`continuous_flow` follows it; :func:`continuous_pwgf` interrupts it with jumps.
diffrax is an optional dependency, ``pip install "pwgf_jax[continuous]"``, imported when one of these runs.

Both are driven from the host, one trajectory at a time: a reference for :func:`pwgf_jax.run`, not a replacement.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from pwgf_jax.arguments import check_key
from pwgf_jax.calculus import Functional
from pwgf_jax.contract import check_once
from pwgf_jax.flows import Status, gradient
from pwgf_jax.flows.base import Direction
from pwgf_jax.measures import Field, Particles, check_measure, traceable
from pwgf_jax.perturbation import Noise, hessian_guided
from pwgf_jax.solve.record import BUILT_IN, Stats

__all__ = ["ContinuousSolution", "continuous_flow", "continuous_pwgf", "vector_field"]

_NEVER = -1.0  # a gradient norm that no flow falls to


class ContinuousSolution(NamedTuple):
    """The outcome of a trajectory in continuous time.

    Args:
        mu: the measure that the algorithm returns; for PWGF after a failed test, the one before the jump.
        value: F there.
        status: :class:`pwgf_jax.Status` as int32. ``budget_spent`` at a time short of the end means that the
            integrator ran out of steps.
        time: how far the trajectory went, in the flow's time [length² per unit of F].
        records: arrays over events: "time", "value" and "gradient_norm" at that time, "perturbed" (whether a jump
            follows; what is recorded is the measure before it), and what ``stats`` adds. The first is the start, the
            last where the trajectory ended, which after a failed test is not the measure returned.
    """

    mu: Particles
    value: Array
    status: Array
    time: float
    records: dict[str, Any]


def vector_field(direction: Direction) -> Callable[[Any, PyTree, tuple[Array, Functional, Particles]], Field]:
    r"""A flow's direction u as the right-hand side of an ODE, :math:`\dot x_i=-u(\mu_t,x_i)`, as diffrax calls it.

    Args:
        direction: (key, F, mu) -> :class:`pwgf_jax.flows.Evaluation`, such as :func:`pwgf_jax.flows.gradient`.

    Returns:
        A function of (t, points, args) with ``args = (key, F, mu)``: the measure gives the weights, the points
        replace its own. A direction that draws noise draws the same at all times.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> F = lambda mu: mu.weights @ jnp.sum(mu.points**2, axis=-1) / 2
        >>> mu = Particles.uniform(jnp.ones((2, 1)))
        >>> vector_field(gradient)(0.0, mu.points, (jax.random.key(0), F, mu)).tolist()
        [[-1.0], [-1.0]]

    References:
        Yamamoto, Kim, Suzuki, arXiv:2509.16974, Sec. 2.
    """

    def velocity(t: Any, points: PyTree, args: tuple[Array, Functional, Particles]) -> Field:
        del t
        key, F, mu = args
        return jax.tree.map(jnp.negative, direction(key, F, mu.moved_to(points)).field)

    return velocity


class _Place(NamedTuple):
    """A measure on the way, and what is seen there."""

    time: float
    mu: Particles
    value: Array
    gradient_norm: Array
    stats: dict[str, Array]

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.value) and np.isfinite(self.gradient_norm))


class _Integrator(NamedTuple):
    """How to integrate; what the compiled pieces below are compiled for."""

    direction: Direction
    stats: Stats | None
    solver: Any
    rtol: float
    atol: float
    max_steps: int


class _Path(NamedTuple):
    """The two moves on a trajectory: looking where one is, and following the flow."""

    integrator: _Integrator
    key: Array
    functional: Functional
    end: float

    def look(self, mu: Particles, time: float) -> _Place:
        return _Place(time, mu, *_look(self.integrator, self.key, self.functional, mu))

    def follow(self, start: _Place, until: float, threshold: float = _NEVER) -> tuple[_Place, Status]:
        """The flow until a time, or the end, or sooner until the gradient norm falls to a threshold."""
        until = min(until, self.end)
        limits = jnp.asarray(until - start.time, float), jnp.asarray(threshold, float)
        mu, elapsed, met, ended = _integrate(self.integrator, self.key, self.functional, start.mu, *limits)
        place = self.look(mu, until if ended and not met else start.time + float(elapsed))
        if not place.finite:
            return start, Status.not_finite
        return place, Status.running if ended and place.time < self.end else Status.budget_spent


@partial(jax.jit, static_argnums=0)
def _look(integrator: _Integrator, key: Array, F: Functional, mu: Particles) -> tuple[Array, Array, dict[str, Array]]:
    at = integrator.direction(key, F, mu)
    stats = {} if integrator.stats is None else dict(integrator.stats(F, mu))
    return at.value, at.gradient_norm, stats


@partial(jax.jit, static_argnums=0)
def _jump(perturbation: Noise, key: Array, F: Functional, mu: Particles, factor: Array) -> Particles:
    noise = perturbation(key, F, mu)
    return mu.push_forward(jax.tree.map(lambda leaf: factor.astype(leaf.dtype) * leaf, noise))


@partial(jax.jit, static_argnums=0)
def _integrate(
    integrator: _Integrator, key: Array, F: Functional, mu: Particles, duration: Array, threshold: Array
) -> tuple[Particles, Array, Array, Array]:
    """Follow the flow for a duration, or until the gradient norm falls to the threshold.

    Returns the measure, the time it took, whether the threshold was met, and whether the integrator came to an end.
    """
    diffrax, optimistix = _diffrax()
    dtype = jnp.result_type(*jax.tree.leaves(mu.points))  # of diffrax's clock, or it would widen the points
    half_of_the_digits = float(jnp.finfo(dtype).eps) ** 0.5

    def excess(t: Any, y: PyTree, args: tuple[Array, Functional, Particles], **_: Any) -> Array:
        del t
        key, F, mu = args
        gradient_norm = integrator.direction(key, F, mu.moved_to(y)).gradient_norm
        relative = gradient_norm.astype(float) / jnp.where(threshold > 0, threshold, 1)
        return relative - jnp.sign(threshold)  # in the default dtype, whatever the points': so diffrax wants it

    # diffrax mixes dtypes: strict users need not give theirs up.
    with jax.numpy_dtype_promotion("standard"):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(vector_field(integrator.direction)),
            integrator.solver,
            t0=jnp.zeros((), dtype),
            t1=duration.astype(dtype),
            dt0=None,
            y0=mu.points,
            args=(key, F, mu),
            stepsize_controller=diffrax.PIDController(integrator.rtol, integrator.atol),
            event=diffrax.Event(
                excess, optimistix.Bisection(half_of_the_digits, half_of_the_digits, flip=True), direction=False
            ),
            max_steps=integrator.max_steps,
            throw=False,
        )
    # Bisection may stop short of its tolerance at the level of rounding: the event has happened all the same.
    met = solution.event_mask
    ended = met | (solution.result == diffrax.RESULTS.successful)
    return mu.moved_to(jax.tree.map(lambda leaf: leaf[-1], solution.ys)), solution.ts[-1], met, ended


def _diffrax() -> tuple[Any, Any]:
    """The modules diffrax and optimistix, which importing this module does not need."""
    try:
        return importlib.import_module("diffrax"), importlib.import_module("optimistix")
    except ImportError as error:
        raise ImportError(
            'continuous time needs diffrax, which cannot be imported; get it by pip install "pwgf_jax[continuous]".'
        ) from error


def _path(
    caller: str, F: Functional, mu0: Particles, key: Array, end: float, integrator: _Integrator
) -> tuple[_Path, _Place]:
    """The path and its first place, once everything that people can get wrong is checked."""
    check_key(key, caller)
    check_measure(mu0, caller)
    if not callable(integrator.direction):
        raise TypeError(
            f"{caller}: the direction is a {type(integrator.direction).__name__}; give (key, F, mu) -> Evaluation."
        )
    check_once(F, mu0)
    for name, number in (("rtol", integrator.rtol), ("atol", integrator.atol), ("max_steps", integrator.max_steps)):
        if not number > 0:
            raise ValueError(f"{caller}: {name}={number}; give a positive number.")
    if integrator.solver is None:
        integrator = integrator._replace(solver=_diffrax()[0].Tsit5())
    path = _Path(integrator, key, traceable(F), end)
    start = path.look(mu0, 0.0)
    taken = sorted(set(start.stats) & {*BUILT_IN, "time"})
    if taken:
        raise ValueError(f"{caller}: stats returns {', '.join(taken)}, which every record has already; rename it.")
    return path, start


def _solution(events: Sequence[tuple[_Place, bool]], returned: _Place, status: Status) -> ContinuousSolution:
    rows = [
        {"time": at.time, "value": at.value, "gradient_norm": at.gradient_norm, "perturbed": perturbed, **at.stats}
        for at, perturbed in events
    ]
    records = {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}
    time = events[-1][0].time
    return ContinuousSolution(returned.mu, returned.value, jnp.asarray(status, jnp.int32), time, records)


def continuous_flow(
    F: Functional,
    mu0: Particles,
    key: Array,
    times: Sequence[float] | np.ndarray,
    *,
    direction: Direction = gradient,
    stats: Stats | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-9,
    solver: Any = None,
    max_steps: int = 100_000,
) -> ContinuousSolution:
    r"""Follow :math:`\partial_t\mu_t=\nabla\cdot(\mu_t\,u(\mu_t))` with adaptive steps, looking at the times given.

    With u the gradient this is the Wasserstein gradient flow, along which
    :math:`F(\mu_0)-F(\mu_t)=\int_0^t\|\nabla_\mu F(\mu_s)\|^2ds`; :func:`pwgf_jax.wgf` is its explicit Euler scheme.

    Args:
        F: the functional.
        mu0: the start, at t = 0; a probability measure.
        key: typed random key; a direction that draws noise draws the same at all times.
        times: where to look, increasing, after 0; the last is the end [length² per unit of F].
        direction: (key, F, mu) -> :class:`pwgf_jax.flows.Evaluation`.
        stats: (F, mu) -> dict of arrays, added to the records.
        rtol: relative tolerance of a step, on the points.
        atol: absolute tolerance of a step, on the points [length].
        solver: any diffrax solver of ODEs; None is ``diffrax.Tsit5()``, stiff flows want ``diffrax.Kvaerno5()``.
        max_steps: how many steps the integrator may take from one time to the next.

    Returns:
        A :class:`ContinuousSolution`: the measure at the end, records at the start and at every time.

    Raises:
        ImportError: if diffrax is not installed.
        TypeError: if the key is no typed key, or the start no :class:`pwgf_jax.Particles`.
        ValueError: if the times do not increase from above zero, or a tolerance is not positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> F = lambda mu: mu.weights @ jnp.sum(mu.points**2, axis=-1) / 2
        >>> solution = continuous_flow(F, Particles.uniform(jnp.ones((4, 1))), jax.random.key(0), [0.5, 1.0])
        >>> [round(float(norm), 4) for norm in solution.records["gradient_norm"]]  # exp(-t)
        [1.0, 0.6065, 0.3679]

    References:
        Yamamoto, Kim, Suzuki, arXiv:2509.16974, Sec. 2 and Lemma 5.3.
    """
    clock = np.asarray(times, float)
    if clock.ndim != 1 or not clock.size or not np.all(np.diff(clock, prepend=0) > 0) or not np.isfinite(clock[-1]):
        raise ValueError(f"continuous_flow: times={clock.tolist()}; give increasing, finite times after 0.")
    integrator = _Integrator(direction, stats, solver, rtol, atol, max_steps)
    path, here = _path("continuous_flow", F, mu0, key, float(clock[-1]), integrator)
    events, status = [(here, False)], Status.running if here.finite else Status.not_finite
    for until in clock:
        if status is Status.running:
            here, status = path.follow(here, float(until))
            events.append((here, False))
    return _solution(events, here, status)


def continuous_pwgf(
    F: Functional,
    mu0: Particles,
    key: Array,
    *,
    eps: float,
    eta_p: float,
    t_thres: float,
    f_thres: float,
    t_end: float,
    direction: Direction = gradient,
    perturbation: Noise = hessian_guided,
    stats: Stats | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-9,
    solver: Any = None,
    max_steps: int = 100_000,
) -> ContinuousSolution:
    r"""Perturbed Wasserstein gradient flow in continuous time, the papers' Algorithm 1.

    The flow runs until :math:`\|\nabla_\mu F\|_{L^2(\mu)}` falls to ε, found to half of the digits on the
    integrator's interpolant, or is there already. Then :math:`\mu\leftarrow(\mathrm{Id}+\eta_p\xi)_\sharp\mu`, and the
    flow runs for ``t_thres`` whatever the gradient. If F has not fallen by more than ``f_thres`` below its value before
    the jump, that measure is returned as it was; if it has, everything begins anew.

    Args:
        F: the functional.
        mu0: the start, at t = 0; a probability measure.
        key: typed random key, for the jumps.
        eps: ε, gradient norm that counts as stationary.
        eta_p: η_p, factor of the noise.
        t_thres: T_thres, length of the waiting window [length² per unit of F].
        f_thres: decrease that a window has to exceed [units of F].
        t_end: when to end at the latest.
        direction: (key, F, mu) -> :class:`pwgf_jax.flows.Evaluation`.
        perturbation: (key, F, mu) -> field ξ.
        stats: (F, mu) -> dict of arrays, added to the records.
        rtol: relative tolerance of a step, on the points. Errors of rtol·abs(x) + atol ought to be small against the
            jumps, η_p·‖ξ‖, and against ε/L₁ with L₁ the gradient's Lipschitz constant, or they decide the events.
        atol: absolute tolerance of a step, on the points [length].
        solver: as in :func:`continuous_flow`.
        max_steps: how many steps the integrator may take from one event to the next.

    Returns:
        A :class:`ContinuousSolution`, with a record at the start, at every jump and at the end of every window.

    Raises:
        ImportError: if diffrax is not installed.
        TypeError: if the key is no typed key, or the start no :class:`pwgf_jax.Particles`.
        ValueError: if a threshold, the end or a tolerance is out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def F(mu):  # minima on |mean| = 1 with F = -1/4; every centred measure is a saddle
        ...     mean_square = jnp.sum((mu.weights @ mu.points) ** 2)
        ...     return mean_square**2 / 4 - mean_square / 2
        >>> thresholds = {"eps": 1e-3, "eta_p": 0.01, "t_thres": 20.0, "f_thres": 1e-4}
        >>> mu0 = Particles.uniform(jnp.zeros((8, 2)))
        >>> solution = continuous_pwgf(F, mu0, jax.random.key(0), **thresholds, t_end=100.0)
        >>> round(float(solution.value), 4), solution.records["perturbed"].tolist(), solution.time
        (-0.25, [True, True, False], 40.0)

    References:
        Yamamoto, Kim, Suzuki, arXiv:2509.16974, Alg. 1.
    """
    for name, number in (("eps", eps), ("eta_p", eta_p), ("f_thres", f_thres)):
        if not 0 <= number < float("inf"):
            raise ValueError(f"continuous_pwgf: {name}={number}; give a non-negative number.")
    for name, number in (("t_thres", t_thres), ("t_end", t_end)):
        if not 0 < number < float("inf"):
            raise ValueError(f"continuous_pwgf: {name}={number}; give a positive time.")
    integrator = _Integrator(direction, stats, solver, rtol, atol, max_steps)
    path, here = _path("continuous_pwgf", F, mu0, key, float(t_end), integrator)
    flow_key, jump_key = jax.random.split(key)
    path, factor = path._replace(key=flow_key), jnp.asarray(eta_p, float)
    events, status = [(here, False)], Status.running if here.finite else Status.not_finite
    while status is Status.running:
        if here.gradient_norm > eps:
            here, status = path.follow(here, t_end, eps)
            events.append((here, False))
            if status is not Status.running:
                break
        saved, events[-1] = here, (here, True)
        noise_key = jax.random.fold_in(jump_key, len(events))
        jumped = path.look(_jump(perturbation, noise_key, path.functional, saved.mu, factor), saved.time)
        if not jumped.finite:
            return _solution(events, saved, Status.not_finite)
        here, status = path.follow(jumped, saved.time + t_thres)
        events.append((here, False))
        if here.time >= saved.time + t_thres and saved.value - here.value <= f_thres:
            return _solution(events, saved, Status.no_decrease)
    return _solution(events, here, status)
