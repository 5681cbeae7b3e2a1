import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwgf_jax import Particles
from pwgf_jax.functionals import entropy


@pytest.mark.slow
def test_the_entropy_of_gaussian_particles(key):
    dimension = 3
    draw = jax.jit(lambda key: entropy(Particles.uniform(2.0 * jax.random.normal(key, (1000, dimension)))))
    found = np.array([draw(each) for each in jax.random.split(key, 8)])
    exact = dimension / 2 * np.log(2 * np.pi * np.e * 4)
    assert abs(found.mean() - exact) < 5 * found.std() / 8**0.5 + 0.02 * dimension  # the bias of 1000 particles
    with pytest.raises(ValueError, match="neighbour=3 of 3 particles"):
        entropy(Particles.uniform(jnp.ones((3, 1))))
