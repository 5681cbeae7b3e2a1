"""Escape inside convex sets: the exact search against SciPy, the heuristic against all vertices."""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from pwgf_jax import problems
from pwgf_jax.transforms import ball, box, constrained_escape, polytope, simplex
from tests.transforms.driving import drive

D, R = 4, 1.3
CENTER = np.array([0.2, -0.1, 0.0, 0.4])
OPTIONS: dict[str, Any] = {
    "smoothness": 2.0,
    "hessian_lipschitz": 4.0,
    "eps": 1e-6,
    "gamma": 0.02,
    "key": jax.random.key(0),
}
WELL = problems.double_well(D)


def symmetric(seed, eigenvalues=None):
    draw = np.random.default_rng(seed)
    q = np.linalg.qr(draw.normal(size=(D, D)))[0]
    return (q * (draw.normal(size=D) if eigenvalues is None else np.asarray(eigenvalues))) @ q.T


def inside(seed):
    draw = np.random.default_rng(100 + seed)
    z = draw.normal(size=D)
    return CENTER + R * draw.uniform() * z / np.linalg.norm(z)


@partial(jax.jit, static_argnums=0)
def found(domain, H, x, g):
    return domain.search(jax.random.key(0), lambda v: H @ v, x, g)


def least_in_ball(H, x, basis):
    """The least (u − x)'H(u − x) over the ball and x + span(basis), by SciPy from many starts."""
    draw = np.random.default_rng(0)
    H = basis.T @ H @ basis
    offset = x - CENTER
    room = {"type": "ineq", "fun": lambda y: R**2 - np.sum((offset + basis @ y) ** 2)}
    room["jac"] = lambda y: -2 * basis.T @ (offset + basis @ y)
    options = {"constraints": room, "jac": lambda y: 2 * H @ y, "method": "SLSQP", "options": {"ftol": 1e-14}}
    starts = draw.normal(size=(12, basis.shape[1]))
    ends = [minimize(lambda y: y @ H @ y, start, **options) for start in starts]
    good = [end.fun for end in ends if np.linalg.norm(offset + basis @ end.x) <= R * (1 + 1e-8)]
    return min([0.0, *good])


BALL = ball(R, CENTER)


@pytest.mark.parametrize("seed", range(4))
def test_the_search_in_a_ball_is_exact_without_a_gradient(seed):
    H, x = symmetric(seed), inside(seed)
    u = np.asarray(found(BALL, jnp.asarray(H), jnp.asarray(x), jnp.zeros(D)))
    assert np.linalg.norm(u - CENTER) <= R * (1 + 1e-12)
    np.testing.assert_allclose((u - x) @ H @ (u - x), least_in_ball(H, x, np.eye(D)), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_search_in_a_ball_finds_no_less_than_the_paper_asks_for(seed):
    H, x = symmetric(10 + seed), inside(seed)
    g = np.random.default_rng(seed).normal(size=D)
    u = np.asarray(found(BALL, jnp.asarray(H), jnp.asarray(x), jnp.asarray(g)))
    assert np.linalg.norm(u - CENTER) <= R * (1 + 1e-12)
    assert g @ (u - x) <= 1e-12
    null = np.linalg.svd(g[None])[2][1:].T
    paper = least_in_ball(H, x, null)
    assert (u - x) @ H @ (u - x) <= paper + 1e-9 * abs(paper) + 1e-12
    # Along a gradient that outweighs everything nothing is gained, and the paper's problem is all there is.
    steep = H + 1e3 * np.outer(g, g)
    u = np.asarray(found(BALL, jnp.asarray(steep), jnp.asarray(x), jnp.asarray(g)))
    at_most = least_in_ball(steep, x, null)
    value = (u - x) @ steep @ (u - x)
    assert value <= at_most + 1e-9 * abs(at_most) + 1e-12
    np.testing.assert_allclose(value, at_most, rtol=0.1, atol=1e-3)


def test_the_hard_case_and_flat_and_convex_ones():
    centred = ball(R)
    zero = jnp.zeros(D)
    # At the centre, and displaced along an eigenvector that is not the least: no slope along the least one.
    H = jnp.diag(jnp.asarray([-1.0, -0.5, 0.3, 2.0]))
    u = found(centred, H, zero, zero)
    np.testing.assert_allclose(jnp.abs(u), [R, 0, 0, 0], atol=1e-9)
    x = jnp.asarray([0.0, 0.4, 0.0, 0.0])
    u = found(centred, H, x, zero)
    # u₂ = −μ-solution of the secular equation at μ = 1: (−½ + 1) w₂ = −(−½)(−0.4)
    np.testing.assert_allclose(u[1], -0.4, atol=1e-9)
    np.testing.assert_allclose(jnp.linalg.norm(u), R, rtol=1e-12)
    np.testing.assert_allclose(found(centred, jnp.abs(H), x, zero), x, atol=1e-9)  # convex: stay
    np.testing.assert_allclose(found(centred, 0 * H, x, zero), x, atol=1.01 * R)
    assert bool(jnp.all(jnp.isfinite(found(centred, 0 * H, x, zero))))
    # On the sphere with the gradient pointing out of it the feasible set is the point itself.
    edge = jnp.asarray([0.0, R, 0.0, 0.0])
    np.testing.assert_allclose(found(centred, H, edge, -edge), edge, atol=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_the_heuristic_finds_the_least_of_a_concave_form(seed):
    H = symmetric(seed, [-3.0, -1.0, -0.5, -0.1])
    x = np.random.default_rng(seed).uniform(-0.5, 0.5, size=D)
    u = np.asarray(found(SQUARE, jnp.asarray(H), jnp.asarray(x), jnp.zeros(D)))
    corners = np.array(list(itertools.product([-1.0, 1.0], repeat=D))) - x
    values = np.sum(corners @ H * corners, axis=1)
    np.testing.assert_allclose((u - x) @ H @ (u - x), values.min(), rtol=1e-9)
    # With a gradient that forbids the best corner, the next best is a corner, or an edge cut by the hyperplane.
    g = corners[values.argmin()]
    u = np.asarray(found(SQUARE, jnp.asarray(H), jnp.asarray(x), jnp.asarray(g)))
    assert np.abs(u).max() <= 1 + 1e-12
    assert g @ (u - x) <= 1e-12
    slopes = corners @ g
    edges = [(i, j) for i, j in itertools.combinations(range(2**D), 2) if np.sum(corners[i] != corners[j]) == 1]
    cuts = [
        corners[i] + slopes[i] / (slopes[i] - slopes[j]) * (corners[j] - corners[i])
        for i, j in edges
        if slopes[i] * slopes[j] < 0
    ]
    allowed = np.array([*corners[slopes <= 0], *cuts])
    np.testing.assert_allclose((u - x) @ H @ (u - x), np.sum(allowed @ H * allowed, axis=1).min(), rtol=1e-9)


SQUARE = box(-1.0, 1.0)
CORNERS = jnp.asarray(list(itertools.product([-0.5, 0.5], repeat=D)))
DOMAINS = {
    "ball": ball(0.5),
    "box": box(-0.5, {"x": jnp.full(D, 0.5)}),
    "polytope": polytope(lambda g: CORNERS[jnp.argmin(CORNERS @ g)], diameter=1.0),
}


def escape(domain=DOMAINS["ball"], **options: Any):
    return constrained_escape(domain, **OPTIONS | options)


@pytest.mark.parametrize(
    ("name", "first_order", "offset"),
    [("ball", "projected", 0.0), ("ball", "frank_wolfe", 1e-9), ("box", "projected", 1e-9)],
)
def test_it_leaves_a_saddle_for_the_constrained_minimum_and_stops_there(name, first_order, offset):
    """The offset lies along the escape: the tiny gradient there must not hide it."""
    optimizer = escape(DOMAINS[name], first_order=first_order)
    start = jnp.zeros(D).at[0].set(offset)
    x, state, xs = drive(optimizer, WELL.value, start, 120)
    np.testing.assert_allclose(jnp.abs(x), [0.5, 0, 0, 0], atol=1e-5)  # f falls until |x₁| = 1, beyond the set
    assert bool(state.stopped)
    assert float(state.gap) <= OPTIONS["eps"]
    assert float(state.curvature) >= -OPTIONS["gamma"]
    size = jnp.linalg.norm(xs, axis=1) if name == "ball" else jnp.max(jnp.abs(xs), axis=1)
    assert float(jnp.max(size)) <= 0.5 + 1e-12
    np.testing.assert_array_equal(xs[-1], xs[-2])
    if name == "ball" and offset == 0:  # the first step is the paper's: γ/(MD³) of the way to the sphere
        step = 0.5 * OPTIONS["gamma"] / OPTIONS["hessian_lipschitz"]
        np.testing.assert_allclose(jnp.abs(xs[0]), [step, 0, 0, 0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32])
def test_on_the_simplex_it_goes_from_the_middle_to_a_corner(dtype, tolerance):
    value = lambda x: -jnp.sum(x**2) / 2  # noqa: E731
    optimizer = escape(simplex(), eps=1e-4, gamma=0.1)
    middle = jnp.full(D, 1 / D, dtype)
    x, state, xs = drive(optimizer, value, middle, 60)
    np.testing.assert_allclose(jnp.sort(x), [0, 0, 0, 1], atol=tolerance(dtype))
    assert bool(state.stopped)
    assert {x.dtype, state.gap.dtype, state.curvature.dtype} == {jnp.dtype(dtype)}
    np.testing.assert_allclose(jnp.sum(xs, axis=1), 1, atol=tolerance(dtype))
    assert float(jnp.min(xs)) >= -tolerance(dtype)


def test_a_polytope_needs_no_more_than_its_oracle():
    value = lambda x: -jnp.sum(x**2) / 2  # noqa: E731
    x, state, _ = drive(escape(DOMAINS["polytope"], first_order="frank_wolfe"), value, jnp.zeros(D), 60)
    np.testing.assert_allclose(jnp.abs(x), 0.5, rtol=1e-6)
    assert bool(state.stopped)


def test_a_gradient_that_is_no_number_is_no_reason_to_stop():
    optimizer: Any = escape()
    update = jax.jit(partial(optimizer.update, value_fn=WELL.value))
    updates, state = update(jnp.full(D, jnp.nan), optimizer.init(jnp.zeros(D)), jnp.zeros(D))
    assert not bool(state.stopped)
    assert bool(jnp.all(jnp.isnan(updates)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ball(0.0), "ball: radius=0.0; give a positive number"),
        (lambda: box(1.0, -1.0), "lower <= upper"),
        (lambda: box(0.0, float("inf")), "give finite bounds"),
        (lambda: box(jnp.zeros(2), jnp.ones(3)), "lower has 2 numbers and upper 3"),
        (lambda: simplex(-1.0), "simplex: total=-1.0"),
        (lambda: polytope(lambda g: g, diameter=0.0), "polytope: diameter=0.0"),
        (lambda: ball(1.0, jnp.ones(2)).oracle(jnp.ones(3)), "center has 2 numbers for 3 parameters"),
        (lambda: escape(eps=0.0), "constrained_escape: eps=0.0"),
        (lambda: escape(gamma=float("nan")), "constrained_escape: gamma=nan"),
        (lambda: escape(first_order="newton"), "first_order='newton'; choose"),
        (lambda: escape(DOMAINS["polytope"]), "the domain has no projection"),
        (lambda: found(ball(1.0), jnp.eye(1001), jnp.zeros(1001), jnp.zeros(1001)), "ball: 1001 parameters"),
    ],
)
def test_the_impossible_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_kinds_are_refused():
    with pytest.raises(TypeError, match="constrained_escape: key is a uint32 array"):
        escape(key=jax.random.PRNGKey(0))
    optimizer = escape()
    with pytest.raises(TypeError, match="constrained_escape: params and value_fn missing"):
        optimizer.update(jnp.zeros(2), optimizer.init(jnp.zeros(2)))
