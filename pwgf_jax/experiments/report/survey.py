"""Surveys of a landscape: many starts on the same data, run to where they end, certified and counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pwgf_jax.calculus import Functional, wasserstein_hessian
from pwgf_jax.experiments.config import Config
from pwgf_jax.experiments.messages import ConfigError, suggestion
from pwgf_jax.experiments.report.certificates import Certified, certify_run
from pwgf_jax.experiments.report.landscape import Found, Survey, cluster
from pwgf_jax.experiments.run import run, settings
from pwgf_jax.measures import Particles, traceable
from pwgf_jax.tridiagonal import decompose, flatten, ritz

__all__ = ["explore", "prepare"]

_DENSE = 1500  # coordinates up to which the index is counted in the whole spectrum
_DEPTH = 200  # Lanczos steps for a lower bound of it past that


def prepare(config: Config, arms: Sequence[str], starts: int | None, steps: int | None) -> Config:
    """The config of a survey: a seed per start, and the same data for all.

    Args:
        config: any.
        arms: those that start from everywhere; the first of the config if there are none.
        starts: how many; as many as the config has seeds if None.
        steps: of every start; as the config says if None.

    Returns:
        A config.

    Raises:
        ConfigError: if there is no such arm, a number is below one, or the config varies a key.

    Example:
        >>> from pwgf_jax.experiments.config import parse
        >>> start = {"kind": "gaussian", "dimension": 2}
        >>> problem = {"functional": "energy.py:F", "particles": 9, "start": start}
        >>> arms = {"static": {"flow": "wgf", "step_size": 0.1}}
        >>> config = prepare(parse({"name": "a", "steps": 9, "problem": problem, "arms": arms}), [], 20, None)
        >>> config.seeds, config.problem.same_data
        (20, True)
    """
    if config.vary is not None:
        raise ConfigError(f"{config.file}: vary: a landscape is that of one problem; leave the table out.")
    chosen = list(arms) or list(config.arms)[:1]
    for arm in chosen:
        if arm not in config.arms:
            raise ConfigError(f'{config.file}: arms: it has no "{arm}"; {suggestion(arm, config.arms)}')
    keys: dict[tuple[str, ...], Any] = {("seeds",): config.seeds if starts is None else starts}
    if steps is not None:
        keys |= {("steps",): steps} | {("arms", arm, "steps"): steps for arm in chosen}
    if not config.problem.is_objective:
        keys["problem", "same_data"] = True
    return config.only(*chosen).changed(keys)


def explore(
    config: Config,
    path: Path,
    *,
    eps: float | None = None,
    delta: float | None = None,
    tolerance: float = 0.01,
    command: str = "",
    quiet: bool = True,
) -> Survey:
    """Run every start to where it ends, certify the ends, and put those together that are one critical point.

    Args:
        config: as :func:`prepare` returns it.
        path: the run folder to make.
        eps: as in :func:`.certify_run`, the smallest of the arms; ends with a larger gradient are left out, for they
            are no critical points.
        delta: as in :func:`.certify_run`.
        tolerance: as in :func:`cluster`.
        command: what the user typed.
        quiet: whether to show no progress.

    Returns:
        A :class:`Survey`.

    Raises:
        ConfigError: as running and certifying do, or if the tolerance is not positive.

    Example:
        >>> from pwgf_jax.experiments.config import parse
        >>> start = {"kind": "gaussian", "dimension": 2}
        >>> problem = {"functional": "no_such.py:F", "particles": 9, "start": start}
        >>> arms = {"static": {"flow": "wgf", "step_size": 0.1}}
        >>> explore(parse({"name": "a", "steps": 9, "problem": problem, "arms": arms}), Path("no/such"))
        Traceback (most recent call last):
        ...
        pwgf_jax.experiments.messages.ConfigError: config: problem.functional: ...no_such.py: there is no such file.
    """
    for name, number in (("tolerance", tolerance), ("eps", eps), ("delta", delta)):
        if number is not None and not 0 < number < math.inf:
            raise ConfigError(f"{name} = {number}; give a positive number.")
    folder = run(config, path, command=command, quiet=quiet)
    certified = certify_run(folder, eps=eps, delta=delta, trust=True)  # what it names was run just now
    small = eps or min(each.certificate.eps for each in certified)
    with settings(config):
        ends = [_end(each) for each in certified if each.certificate.gradient_norm <= small]
    return Survey(cluster(ends, tolerance), len(certified), small)


def _end(certified: Certified) -> Found:
    found = certified.certificate
    size = sum(leaf.size for leaf in jax.tree.leaves(certified.mu.points))
    index = int(_index(traceable(certified.functional), certified.mu, found.delta, min(size, _DEPTH), size <= _DENSE))
    numbers = (found.gradient_norm, found.integral.eigenvalue, found.full.eigenvalue)
    return Found(certified.value, *numbers, index, size <= _DENSE, found.verdict, found.delta)


@partial(jax.jit, static_argnums=(3, 4))
def _index(F: Functional, mu: Particles, delta: Array, depth: int, dense: bool) -> Array:
    """Eigenvalues of the full Hessian below −δ; from Ritz values, which interlace them, not more than there are."""
    flat = flatten(wasserstein_hessian(F, mu, "full"), mu.points)
    size = flat.support.size
    with jax.default_matmul_precision("highest"):
        if dense:
            matrix = jax.lax.map(flat.matvec, jnp.eye(size, dtype=flat.support.dtype))
            return jnp.sum(jnp.linalg.eigvalsh((matrix + matrix.T) / 2) < -delta)
        start = jax.random.normal(jax.random.key(0), (size,), flat.support.dtype) * flat.support
        values, _, genuine = ritz(decompose(flat, start, depth))
    return jnp.sum(genuine & (values < -delta))
