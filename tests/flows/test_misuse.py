"""What people hand over by mistake is named, with what to do instead.

In a process of its own, since here annotations are checked before a function can say anything.
"""

import json
import subprocess
import sys

import jax.numpy as jnp
import optax
import pytest

from pwgf_jax import Particles
from pwgf_jax.transforms import scale_by_measure

SETUP = """
import json
import jax, jax.numpy as jnp, optax
from pwgf_jax import Particles, certify, flow, run, sweep, wgf
from pwgf_jax.flows import descent, gradient, injected
from pwgf_jax.solve import continuous_flow
KEY, MU, DIRAC = jax.random.key(0), Particles.uniform(jnp.ones((3, 2))), Particles.uniform(jnp.ones((1, 2)))
F = lambda mu: mu.weights @ mu.points[:, 0] ** 2
"""
CASES = {
    "wgf(optax.adam)": r"step_size is adam, and adam\(step\) is no number; .* optax.adam\(0.1\)",
    "flow(gradient, lambda step: 'x')": "is no number; give a float, a schedule",
    "descent(optax.sgd(0.1))": "make is a GradientTransformation.*; give a function of a key",
    "run(descent(lambda key: 0.1), F, DIRAC, KEY, 1)": "returns a float; return an optax transformation",
    "certify(F, MU.points, 0.1, 0.1, KEY)": "certify: the objective asks for .weights.*Particles.uniform",
    "run(F, wgf(0.1), MU, KEY, 1)": "flow is a function; give a pwgf_jax.Flow",
    "run(optax.adam(0.1), F, MU, KEY, 1)": "made of it, like pwgf_jax.wgf",
    "sweep(wgf(0.1), F, KEY[None], 1)": "A problem makes .F, Particles. of a key",
    "continuous_flow(F, MU, KEY, [1.0], direction=0.1)": "the direction is a float; give",
    "continuous_flow(F, MU.points, KEY, [1.0])": "continuous_flow: the measure is a",
}


@pytest.fixture(scope="module")
def said():
    """The error of every case."""
    script = SETUP + "".join(
        f"try:\n    {case}\nexcept TypeError as error:\n    print(json.dumps([{case!r}, str(error)]))\n"
        for case in CASES
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300).stdout
    return dict(json.loads(line) for line in out.splitlines())


@pytest.mark.parametrize("case", CASES)
def test_the_error_says_what_to_give(case, said):
    with pytest.raises(TypeError, match=CASES[case]):
        raise TypeError(said[case])


def test_lists_of_numbers_are_no_points():
    with pytest.raises(ValueError, match=r"the points are 4 single numbers; give an array, .*shape \(N, d\)"):
        Particles.uniform([[0.0, 1.0], [2.0, 3.0]])


def test_extra_arguments_pass_by_what_does_not_need_them():
    x = jnp.ones((4, 2))
    transform = scale_by_measure()
    updates, _ = transform.update(x, transform.init(x), x, value=1.0, unknown=2)
    assert float(jnp.asarray(updates)[0, 0]) == 4
    chain = optax.chain(transform, optax.scale_by_learning_rate(0.1))
    chain.update(x, chain.init(x), x, value=1.0)
