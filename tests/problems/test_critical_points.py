"""Every problem's word on its critical points, against derivatives of its value in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from pwgf_jax import problems

X64 = jnp.float64


def rng(seed=0):
    return np.random.default_rng(seed)


def rotated(eigenvalues, seed=0):
    q = np.linalg.qr(rng(seed).normal(size=(len(eigenvalues),) * 2))[0]
    return jnp.asarray((q * np.asarray(eigenvalues)) @ q.T)


PROBLEMS = {
    "double_well": lambda: problems.double_well(3, dtype=X64),
    "quartic": lambda: problems.quartic(4, dtype=X64),
    "cubic": lambda: problems.cubic([-1.0, -0.4, 1.2, 1.7], dtype=X64),
    "leading_eigenvector": lambda: problems.leading_eigenvector(jnp.asarray(rng(1).normal(size=(12, 4)))),
    "octopus": lambda: problems.octopus(4, smoothness=2.0, gamma=0.7, tau=1.3, dtype=X64),
    "symmetric_factorization": lambda: problems.symmetric_factorization(rotated([5.0, 3.0, 1.0, 0.5]), 2),
    "asymmetric_factorization": lambda: problems.asymmetric_factorization(jnp.asarray(rng(2).normal(size=(4, 3))), 2),
    "matrix_sensing": lambda: problems.matrix_sensing(
        jnp.asarray(rng(3).normal(size=(30, 4, 4))), jnp.asarray(rng(4).normal(size=(4, 2)))
    ),
    "phase_retrieval": lambda: problems.phase_retrieval(jnp.asarray(rng(5).normal(size=4))),
    "deep_linear_2": lambda: problems.deep_linear(jnp.asarray(rng(6).normal(size=(2, 3))), 2),
    "deep_linear_3": lambda: problems.deep_linear(jnp.asarray(rng(6).normal(size=(2, 3))), 3, width=3),
    "copy_average": lambda: problems.copy_average(4, 2, dtype=X64),
    "copy_average_5": lambda: problems.copy_average(5, 2, dimension=6, dtype=X64),
    "copy_average_relu": lambda: problems.copy_average(3, 1, activation="relu", dtype=X64),
    "attention_pca": lambda: problems.attention_pca(rotated([2.0, 1.0, 0.6])),
    "attention_pca_prompt": lambda: problems.attention_pca(rotated([2.0, 1.0, 0.6]), prompt=7),
}


def test_points_of_combinatorial_number_are_made_when_asked_for():
    """616 665 sets of at most 10 of 20 eigenvectors, and more partitions of 400 than there are atoms."""
    made = problems.symmetric_factorization(jnp.diag(jnp.arange(20.0, 0.0, -1.0)), 10)
    assert len(made.saddles) == 616_665
    assert [each.name for each in made.saddles[:3]] == ["{}", "{0}", "{1}"]
    assert made.saddles[-1].name == "{" + ", ".join(map(str, range(10, 20))) + "}"
    assert next(iter(made.saddles)).curvature == -20
    with pytest.raises(IndexError):
        made.saddles[616_665]
    many = problems.copy_average(400, 200)
    assert len(many.saddles) > 10**12
    assert not many.saddles[0].is_minimum
    assert many.minimum.is_minimum


@pytest.mark.parametrize(
    "make",
    [
        lambda: problems.symmetric_factorization(jnp.diag(jnp.asarray([5.0, 4.0, 3.0, 2.0, 1.0])), 3),
        lambda: problems.copy_average(9, 4),
        lambda: problems.copy_average(3, 1, activation="relu"),
    ],
)
def test_points_made_on_demand_are_each_there_once(make):
    saddles = make().saddles
    names = [each.name for each in saddles]
    assert len(names) == len(saddles) == len(set(names))
    assert [saddles[i].name for i in range(-len(names), len(names))] == names * 2
    assert [each.name for each in saddles[1::2]] == names[1::2]
    assert make().minimum.name not in names


@pytest.mark.parametrize("name", PROBLEMS)
def test_critical_points_are_what_the_problem_says(name):
    problem = PROBLEMS[name]()
    points = [*problem.saddles, problem.minimum, *problem.local_minima]
    flat = [ravel_pytree(each.point)[0] for each in points]
    unravel = ravel_pytree(points[0].point)[1]
    value = lambda x: problem.value(unravel(x))  # noqa: E731
    values, gradients, hessians = jax.jit(
        lambda xs: (jax.lax.map(value, xs), jax.lax.map(jax.grad(value), xs), jax.lax.map(jax.hessian(value), xs))
    )(jnp.stack(flat))
    assert problem.minimum.is_minimum
    assert not any(each.is_minimum for each in problem.saddles)
    for each, x, f, g, H in zip(points, flat, values, gradients, hessians, strict=True):
        scale = max(1.0, float(jnp.max(jnp.abs(H))), float(jnp.max(jnp.abs(x))))
        np.testing.assert_allclose(f, each.value, rtol=1e-9, atol=1e-9 * scale, err_msg=each.name)
        np.testing.assert_allclose(g, 0, atol=1e-9 * scale, err_msg=each.name)
        spectrum = np.linalg.eigvalsh(np.asarray(H))
        if each.spectrum is not None:
            np.testing.assert_allclose(spectrum, each.spectrum, atol=1e-8 * scale, err_msg=each.name)
        if each.curvature is not None:
            np.testing.assert_allclose(spectrum[0], each.curvature, atol=1e-8 * scale, err_msg=each.name)
        if each.is_minimum:
            assert spectrum[0] > -1e-8 * scale, each.name
        elif "deep_linear_3" not in name:
            assert spectrum[0] < -1e-4, each.name
        assert each.value >= problem.minimum.value - 1e-12


def test_starts_are_shaped_like_the_points_and_terms_average_to_the_value():
    for name in ("asymmetric_factorization", "matrix_sensing", "leading_eigenvector", "copy_average"):
        problem = PROBLEMS[name]()
        start = problem.init(jax.random.key(0))
        assert jax.tree.map(jnp.shape, start) == jax.tree.map(jnp.shape, problem.minimum.point)
        if problem.components is not None:
            terms = problem.components(start, jnp.arange(problem.size))
            np.testing.assert_allclose(jnp.mean(terms), problem.value(start), rtol=1e-12)


def test_the_octopus_is_twice_differentiable_where_its_pieces_meet():
    tau = 1.3
    problem = problems.octopus(3, smoothness=2.0, gamma=0.7, tau=tau, dtype=X64)
    derivatives = jax.jit(
        jax.vmap(lambda x: (problem.value(x), jax.grad(problem.value)(x), jax.hessian(problem.value)(x)))
    )
    for first in (4 * tau, 0.3):
        for edge in (tau, 2 * tau):
            centre = np.array([first, edge, 0.4]) if first > 2 * tau else np.array([edge, 0.3, 0.4])
            moved = np.eye(3)[1 if first > 2 * tau else 0] * 1e-7
            below, above = (jnp.asarray(centre + sign * moved) for sign in (-1, 1))
            for low, high in zip(
                *(jax.tree.map(lambda a, i=i: a[i], derivatives(jnp.stack([below, above]))) for i in (0, 1)),
                strict=True,
            ):
                np.testing.assert_allclose(low, high, atol=2e-5)


@pytest.mark.slow
def test_copy_average_is_the_expectation_over_gaussian_inputs():
    """The closed forms of the overlaps, against the inputs themselves."""
    kinds: tuple[tuple[Any, int], ...] = (("erf", 2), ("relu", 1), ("relu", 2))
    for activation, students in kinds:
        problem = problems.copy_average(3, students, activation=activation, dtype=X64)
        parameters = problem.init(jax.random.key(1))
        x = rng(7).normal(size=(400_000, 3))
        act = jax.nn.relu if activation == "relu" else lambda z: jax.scipy.special.erf(z / np.sqrt(2))
        student = act(x @ np.asarray(parameters["w"]).T) @ np.asarray(parameters["a"])
        squares = np.asarray((student - jnp.sum(act(x), axis=1)) ** 2)
        error = squares.std() / np.sqrt(squares.size)
        assert abs(squares.mean() - float(problem.value(parameters))) < 5 * error


@pytest.mark.slow
def test_attention_risks_are_expectations_over_prompts():
    sigma, length = np.diag([2.0, 1.0]), 6
    X = rng(8).normal(size=(200_000, length, 2)) * np.sqrt(np.diag(sigma))
    u = jnp.asarray([0.4, -0.3])
    closed = problems.attention_pca(jnp.asarray(sigma), prompt=length).value(u)
    sampled: Any = problems.attention_pca(jnp.asarray(sigma), prompts=jnp.asarray(X))
    terms = np.asarray(sampled.components(u, jnp.arange(X.shape[0])))
    assert abs(terms.mean() - float(closed)) < 5 * terms.std() / np.sqrt(terms.size)
    # with a long prompt both heads come near the infinite one
    many = jnp.asarray(rng(9).normal(size=(2000, 800, 2)) * np.sqrt(np.diag(sigma)))
    infinite = float(problems.attention_pca(jnp.asarray(sigma)).value(u))
    for head in ("linear", "softmax"):
        each: Any = problems.attention_pca(jnp.asarray(sigma), head=head, prompts=many)
        found = np.asarray(each.components(u, jnp.arange(2000)))
        assert abs(found.mean() - infinite) < 5 * found.std() / np.sqrt(found.size) + 0.05


def spiked_risk(theta, d, length):
    """(T, A, B) of T − 2Ar + Br², where every prompt has its own w: E s = r/d, E s² = 3r²/d(d + 2) for s = (u·w)²."""
    kappa, total = 2 * theta + theta**2, d + theta
    first, second = 1 / d, 3 / (d * (d + 2))
    A = ((1 + theta * first) * total + (length + 1) * (1 + kappa * first)) / length
    qq, qp = (1 + (theta + each) * first + theta * each * second for each in (theta, kappa))
    return total, A, (length + 2) / length**2 * (qq * total + (length + 3) * qp)


def within_error(terms, expected, errors=5):
    terms = np.asarray(terms)
    assert np.all(np.abs(terms.mean(axis=0) - expected) < errors * terms.std(axis=0) / np.sqrt(len(terms)))


@pytest.mark.slow
def test_spiked_prompts_with_one_direction_are_those_of_its_covariance(key):
    theta, length, w = 1.5, 5, jnp.asarray([0.6, 0.8, 0.0])
    X = problems.spiked_wishart_prompts(key, 20_000, length, 3, theta, direction=2 * w, dtype=X64)
    sigma = jnp.eye(3) + theta * jnp.outer(w, w)
    tokens = np.asarray(X).reshape(-1, 3)
    within_error(tokens[:, :, None] * tokens[:, None, :], sigma)
    population = problems.attention_pca(sigma, prompt=length)
    sampled: Any = problems.attention_pca(sigma, prompts=X)
    indices = jnp.arange(sampled.size)
    u = jnp.asarray([0.3, 0.1, -0.2])
    value, terms, two = jax.jit(
        lambda u: (sampled.value(u), sampled.components(u, indices), sampled.components(u, jnp.array([7, 2])))
    )(u)
    within_error(terms, population.value(u))
    np.testing.assert_allclose(value, jnp.mean(terms), rtol=1e-12)
    np.testing.assert_allclose(two, terms[jnp.array([7, 2])], rtol=1e-12)
    # the minimum is that of prompts of this length, and along w
    best = sampled.minimum.point
    np.testing.assert_allclose(best, population.minimum.point)
    np.testing.assert_allclose(jnp.abs(best @ w), jnp.linalg.norm(best), rtol=1e-12)
    slopes = jax.jit(jax.jacfwd(sampled.components))(best, indices)
    within_error(slopes, 0)
    # and all directions orthogonal to w are as good as one another
    radius = jnp.linalg.norm(population.saddles[1].point)
    across = [radius * jnp.asarray(v) for v in ([0.8, -0.6, 0.0], [0.0, 0.0, 1.0])]
    np.testing.assert_allclose([population.value(v) for v in across], population.saddles[1].value, rtol=1e-12)


@pytest.mark.slow
def test_spiked_prompts_with_a_direction_each_show_no_direction(key):
    # where the closed form has to be that of one covariance: no spike, or one dimension
    for theta, d in ((0.0, 3), (1.5, 1)):
        one = problems.attention_pca((1 + theta) * jnp.eye(d), prompt=4)
        T, A, B = spiked_risk(theta, d, 4)
        np.testing.assert_allclose(one.minimum.value, T - A**2 / B, rtol=1e-12)
        np.testing.assert_allclose(jnp.sum(one.minimum.point**2), A / B, rtol=1e-12)
    theta, d, length = 6.0, 3, 20
    X = problems.spiked_wishart_prompts(key, 10_000, length, d, theta, dtype=X64)
    average = (1 + theta / d) * jnp.eye(d)
    tokens = np.asarray(X)[:, 0]
    within_error(tokens[:, :, None] * tokens[:, None, :], average)
    T, A, B = spiked_risk(theta, d, length)
    sampled: Any = problems.attention_pca(average, prompts=X)
    components, indices = jax.jit(sampled.components), jnp.arange(sampled.size)
    for r in (A / B / 3, A / B):
        for v in ([1.0, 0.0, 0.0], [0.0, 0.6, -0.8]):
            within_error(components(np.sqrt(r) * jnp.asarray(v), indices), T - 2 * A * r + B * r**2)
    minimum = jnp.sqrt(A / B) * jnp.eye(d)[0]
    within_error(jax.jit(jax.jacfwd(sampled.components))(minimum, indices), 0)
    # Gaussian tokens of the average covariance have another risk, and another minimum, which is the one listed
    with pytest.raises(AssertionError):
        within_error(components(minimum, indices), problems.attention_pca(average, prompt=length).value(minimum))
    assert float(jnp.sum(sampled.minimum.point**2)) > 1.2 * A / B


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: problems.octopus(0), "dimension >= 1"),
        (lambda: problems.octopus(2, gamma=9.0), "gamma <= smoothness"),
        (lambda: problems.cubic([1.0, 2.0]), "one of them negative"),
        (lambda: problems.cubic([]), r"eigenvalues has shape \(0,\); give a list of numbers"),
        (lambda: problems.cubic([[-1.0], [1.0, 2.0]]), r"eigenvalues=\[\[-1.0\], .*; give numbers, in rows of one"),
        (lambda: problems.cubic(["a"]), r"eigenvalues=\['a'\]; give numbers"),
        (lambda: problems.cubic([-np.inf, 1.0]), "finite"),
        (lambda: problems.leading_eigenvector(jnp.zeros((3, 0))), r"shape \(3, 0\); give a matrix"),
        (lambda: problems.symmetric_factorization(jnp.zeros((0, 0)), 1), r"shape \(0, 0\); give a matrix"),
        (lambda: problems.asymmetric_factorization(jnp.zeros((2, 0)), 1), r"shape \(2, 0\); give a matrix"),
        (lambda: problems.deep_linear(jnp.zeros((0, 2)), 2), r"the target has shape \(0, 2\); give a matrix"),
        (lambda: problems.deep_linear(jnp.asarray([[jnp.nan]]), 2), "finite"),
        (lambda: problems.matrix_sensing(jnp.zeros((0, 2, 2)), jnp.ones((2, 1))), r"measurements \(0, 2, 2\)"),
        (lambda: problems.attention_pca(jnp.zeros((0, 0))), r"shape \(0, 0\); give a matrix"),
        (lambda: problems.attention_pca(jnp.eye(2), prompts=jnp.ones((0, 3, 2))), r"prompts of shape \(0, 3, 2\)"),
        (lambda: problems.symmetric_factorization(jnp.eye(3), 3), "1 <= rank < 3"),
        (lambda: problems.deep_linear(jnp.eye(2), 1), "depth >= 2"),
        (lambda: problems.copy_average(3, 3), "students < teachers"),
        (lambda: problems.attention_pca(-jnp.eye(2)), "positive definite"),
        (lambda: problems.attention_pca(jnp.eye(2), prompt=3, head="softmax"), "no closed form"),
        (
            lambda: problems.attention_pca(jnp.eye(2), prompt=3, prompts=jnp.ones((5, 4, 2))),
            r"\(5, 4, 2\) with prompt=3",
        ),
        (lambda: problems.spiked_wishart_prompts(jax.random.key(0), 0, 1, 1, 1.0), "prompts=0"),
        (lambda: problems.spiked_wishart_prompts(jax.random.key(0), 1, 1, 1, -1.0), "spike=-1.0"),
        (lambda: problems.spiked_wishart_prompts(jax.random.key(0), 1, 1, 2, 1.0, direction=jnp.zeros(2)), "not zero"),
    ],
)
def test_bad_input_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
