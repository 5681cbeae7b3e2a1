"""What the saddles of measures say of themselves, against dense derivatives; and which flows leave them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwgf_jax import certified_pwgf, certify, problems, pwgf, run, wgf
from pwgf_jax.calculus import hessian_matrix, value_and_wasserstein_gradient
from pwgf_jax.experiments.saddles import SADDLES
from pwgf_jax.flows import Status
from pwgf_jax.measures import norm

KEY = jax.random.key(0)
X64 = jnp.float64
NUMBERS = {
    "mean_quartic": {"particles": 6, "dimension": 2},
    "antithetic_factorization": {"particles": 6, "points": 12, "inputs": 2, "outputs": 2},
    "uncorrelated_icfl": {"particles": 5, "points": 16, "inputs": 2, "outputs": 1},
    "linear_icfl": {"eigenvalues": [2.0, 1.0], "inputs": 4, "copies": 2},
    "coulomb_axis": {"particles": 7, "distance": 0.8, "softening": 0.4},
    "attention_heads": {"eigenvalues": [1.5, 1.0, 0.6], "heads": 4},
}


def made(name, dtype=X64):
    return SADDLES[name](KEY, dtype, **NUMBERS[name])


def test_the_suite_is_what_a_config_can_name():
    assert SADDLES.keys() == NUMBERS.keys() <= set(problems.__all__)


@pytest.mark.parametrize("name", SADDLES)
def test_level_gradient_and_spectra_are_those_of_dense_derivatives(name):
    problem = made(name)
    points = [*problem.saddles, *problem.local_minima, *filter(None, [problem.minimum])]
    assert problem.saddles
    assert not any(each.is_minimum for each in problem.saddles)
    derivatives = jax.jit(
        lambda mu: (
            *value_and_wasserstein_gradient(problem.value, mu),
            *(hessian_matrix(problem.value, mu, part) for part in ("full", "integral")),
        )
    )
    for each in points:
        value, gradient, *matrices = derivatives(each.point)
        np.testing.assert_allclose(value, each.value, atol=1e-13, rtol=1e-13, err_msg=each.name)
        assert float(norm(each.point, gradient)) < 1e-13, each.name
        for matrix, said in zip(matrices, (each.spectrum, each.integral_spectrum), strict=True):
            if said is not None:
                np.testing.assert_allclose(np.linalg.eigvalsh(matrix), said, atol=1e-12, err_msg=each.name)
        spectrum = np.linalg.eigvalsh(matrices[0])
        assert each.curvature is None or abs(each.curvature - spectrum[0]) < 1e-12
        assert each.index is None or each.index == np.sum(spectrum < -1e-10)
        assert each.is_minimum == (spectrum[0] > -1e-10), each.name
        assert problem.minimum is None or each.value >= problem.minimum.value


@pytest.mark.slow
@pytest.mark.parametrize("name", SADDLES)
def test_a_certificate_says_saddle(name, dtype):
    """In both precisions, of every saddle that is a start."""
    problem = made(name, dtype)
    found = certify(problem.value, problem.init(KEY), eps=1e-3, delta=0.05, key=KEY)
    assert found.verdict.name == "saddle"


EXACT = {"mean_quartic", "linear_icfl", "coulomb_axis", "attention_heads"}


@pytest.mark.slow
@pytest.mark.parametrize("name", SADDLES)
def test_a_gradient_flow_stays_and_perturbed_ones_leave(name):
    problem = made(name)
    start, window = problem.init(KEY), {"eps": 0.02, "eta_p": 0.05, "k_thres": 60, "f_thres": 0.0}
    level = float(problem.value(start))
    stays = run(wgf(0.1), problem.value, start, KEY, steps=100)
    moved = np.abs(np.asarray(stays.mu.points - start.points)).max()
    assert moved < (1e-12 if name in EXACT else 1e-6)
    fall = 0.01 if name != "antithetic_factorization" else 1e-3
    for flow in (pwgf(0.1, **window), certified_pwgf(0.1, delta=0.05, depth=16, **window)):
        assert float(run(flow, problem.value, start, KEY, steps=150).value) < level - fall, flow


@pytest.mark.slow
def test_hessian_guided_noise_never_parts_heads():
    problem = problems.attention_heads([1.5, 1.0, 0.6], 4, start=0, dtype=X64)
    window = {"eps": 0.02, "eta_p": 0.05, "k_thres": 60, "f_thres": 0.0}
    solution = run(pwgf(0.05, **window), problem.value, problem.init(KEY), KEY, steps=200)
    assert Status(int(solution.status)) is Status.no_decrease  # at the leading component, which is a saddle of index 6
    assert float(jnp.max(jnp.ptp(solution.mu.points, axis=0))) < 1e-12
    assert problem.saddles[0].name == "eigenvector 0"
    assert problem.saddles[0].index == 6
    found = certify(problem.value, solution.mu, eps=1e-2, delta=0.05, key=KEY)
    assert found.verdict.name == "saddle"
    assert found.decided_by == "full"


def test_the_axis_of_charges_tends_to_a_cauchy_law():
    """The zeros of Stieltjes' polynomial; their empirical law has quartiles at ∓b."""
    saddle = problems.coulomb_axis(399, distance=0.6, softening=0.8, dtype=X64).saddles[0]
    x = np.asarray(saddle.point.points[:, 0])
    np.testing.assert_allclose(np.quantile(x, [0.25, 0.5, 0.75]), [-1.0, 0.0, 1.0], atol=0.02)
    index: Any = saddle.index
    assert 300 <= index < 399


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: problems.mean_quartic(5, 2), "particles=5"),
        (lambda: problems.coulomb_axis(1), "at least two particles"),
        (lambda: problems.coulomb_axis(4, softening=0.0), "positive lengths"),
        (lambda: problems.attention_heads([1.0, 2.0], 3), "the largest first"),
        (lambda: problems.attention_heads([2.0, 1.0], 3, start=2), "start=2"),
        (lambda: problems.linear_icfl([2.0, 1.0], 2), "more inputs"),
        (lambda: problems.linear_icfl([1.0] * 10, 40), "5000 choices"),
        (lambda: problems.antithetic_factorization(jnp.ones((4, 2)), jnp.ones((4, 1)), jnp.ones((3, 2))), "k . l = 3"),
        (lambda: problems.antithetic_factorization(jnp.ones((4, 2)), jnp.ones((4, 1)), jnp.zeros((3, 3))), "not zero"),
        (lambda: problems.uncorrelated_icfl(jnp.ones((4, 2)), jnp.ones((4, 1)), jnp.ones((3, 3))), "covariance up to"),
        (lambda: problems.uncorrelated_icfl(jnp.ones((4, 2)), jnp.ones((4, 1)), jnp.zeros((3, 3))), "singular"),
    ],
)
def test_bad_input_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
