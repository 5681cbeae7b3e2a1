"""Copy-average students from starts of any scale."""

import dataclasses

import jax

from pwgf_jax import problems


def scaled(key, dtype, *, teachers: int, students: int, dimension: int, scale: float):
    """The library's problem with its starts multiplied by a number."""
    del key
    problem = problems.copy_average(teachers, students, dimension=dimension, dtype=dtype)
    start = lambda key: jax.tree.map(lambda leaf: scale * leaf, problem.init(key))  # noqa: E731
    return dataclasses.replace(problem, init=start, saddles=problem.saddles[:9])
