"""A small problem with data of its own for every seed, and a method that jumps and stops on it."""

import jax
import jax.numpy as jnp

from pwgf_jax import Particles, pwgf
from tests.oracles.closed_forms import mean_quartic

STEPS = 40
METHOD = pwgf(0.3, eps=0.05, eta_p=0.1, k_thres=12, f_thres=1e-2)


def problem(key):
    """Mean-zero clouds, saddles of every seed's functional: the noise decides when a seed leaves, and all stop."""
    data_key, start_key = jax.random.split(key)
    depth = jax.random.uniform(data_key, minval=0.5, maxval=1.0)
    points = jax.random.normal(start_key, (8, 2), depth.dtype)
    return lambda mu: depth * mean_quartic(mu), Particles.uniform(points - jnp.mean(points, axis=0, keepdims=True))


def seeds(count):
    return jax.random.split(jax.random.key(5), count)
