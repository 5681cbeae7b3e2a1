"""¼|m|⁴ − ½|m|² of the mean m: every centred measure is a saddle of curvature −1, minima are −¼ on |m| = 1."""

import jax.numpy as jnp


def mean_quartic(mu):
    """The functional."""
    square = jnp.sum((mu.weights @ mu.points) ** 2)
    return square**2 / 4 - square / 2
