"""Directions φ(H)∇F against closed forms, dense algebra and the published form of Sobolev descent."""

from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwgf_jax import Particles, Status, functionals, matrix_function, run, saddle_free_newton, sobolev_descent
from pwgf_jax.flows import wasserstein_newton
from pwgf_jax.flows.damping import levenberg_marquardt
from pwgf_jax.flows.spectral import gram_function, spectral, spectral_velocity
from pwgf_jax.measures import norm, traceable
from pwgf_jax.perturbation import hessian_noise
from pwgf_jax.transforms import gradient_trigger
from tests.oracles.closed_forms import Network, mean_quartic, rotated, square_loss

KEY = jax.random.key(0)
D = 4


def rng(seed=0):
    return np.random.default_rng(seed)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quadratic:
    """½ mᵀAm + ½∫xᵀBx dμ: integral Hessian A∫v dμ, full Hessian Bv more."""

    A: jax.Array
    B: jax.Array

    def __call__(self, mu):
        m = mu.weights @ mu.points
        return m @ self.A @ m / 2 + mu.weights @ jnp.sum((mu.points @ self.B) * mu.points, axis=1) / 2


def of_matrix(fn, A):
    values, vectors = np.linalg.eigh(A)
    return (vectors * fn(values)) @ vectors.T


def after(method, F, mu, steps):
    """The state after some steps, compiled in one go; ``run`` has tests of its own."""

    @jax.jit
    def last(F, mu):
        def step(k, state):
            return method.step(jax.random.fold_in(KEY, k), F, state)[0]

        return jax.lax.fori_loop(0, steps, step, method.init(KEY, F, mu))

    return last(traceable(F), mu)


# --- growth and contraction -------------------------------------------------------------------------------------------

BETA, ETA = 0.04, 0.3
PHI = {"inside": lambda t: (t**2 + BETA) ** -0.5, "outside": lambda t: 1 / (abs(t) + BETA)}


@pytest.mark.parametrize(
    ("damping", "part", "solver"),
    [
        ("inside", "full", "lanczos"),
        ("inside", "integral", "dense"),
        ("outside", "full", "dense"),
        ("outside", "integral", "lanczos"),
    ],
)
def test_every_eigendirection_grows_or_shrinks_by_its_factor(damping, part, solver):
    """The mean moves by the factors of A + B and what is around it by those of B, whatever the weights."""
    A, B = rotated(np.array([-0.7, -0.1, 0.4, 2.0]), rng(1)), rotated(np.array([-0.5, 0.05, 0.6, 1.5]), rng(2))
    if part == "integral":
        B = 0 * B
    F = Quadratic(jnp.asarray(A), jnp.asarray(B))
    x, weights = rng(3).normal(size=(3, D)), np.array([0.2, 0.3, 0.5])
    number: dict[str, Any] = {"beta" if damping == "inside" else "damping": BETA}
    method = saddle_free_newton(ETA, **number, part=part, solver=solver, depth=12)
    steps = 4
    state = after(method, F, Particles(jnp.asarray(x), jnp.asarray(weights)), steps)
    factor = [of_matrix(lambda t: 1 - ETA * t * PHI[damping](t), M) for M in (A + B, B)]
    mean, shape = weights @ x, x - weights @ x
    for _ in range(steps):
        mean, shape = factor[0] @ mean, shape @ factor[1]
    np.testing.assert_allclose(state.mu.points, mean + shape, atol=1e-10)


def test_a_saddle_repels_by_its_factor_and_a_minimum_attracts(dtype, tolerance):
    delta, lam = 0.3, 2.0
    F = Quadratic(jnp.diag(jnp.asarray([-delta, lam, 0, 0], dtype)), jnp.zeros((D, D), dtype))
    mu = Particles.uniform(jnp.ones((3, D), dtype))
    state = after(saddle_free_newton(ETA, beta=BETA), F, mu, steps=1)
    grown, shrunk = 1 + ETA * delta / np.sqrt(delta**2 + BETA), 1 - ETA * lam / np.sqrt(lam**2 + BETA)
    np.testing.assert_allclose(state.mu.points[0], [grown, shrunk, 1, 1], atol=tolerance(dtype))
    assert state.mu.points.dtype == dtype


@pytest.mark.slow
def test_newton_is_drawn_to_the_saddle_that_saddle_free_newton_leaves():
    start = Particles.uniform(jnp.asarray(rng(1).normal(size=(4, 2)) * 0.1))
    start = start.moved_to(start.points - jnp.mean(start.points, axis=0)[None] + jnp.asarray([[0.1, 0.05]]))
    newton = after(wasserstein_newton(1.0, beta=1e-4), mean_quartic, start, steps=40)
    free = after(saddle_free_newton(0.5, beta=1e-2), mean_quartic, start, steps=40)
    np.testing.assert_allclose(jnp.mean(newton.mu.points, axis=0), 0, atol=1e-8)
    np.testing.assert_allclose(free.evaluation.value, -0.25, atol=1e-8)


@pytest.mark.slow
def test_an_exact_saddle_is_left_by_a_perturbation_only():
    start = Particles.uniform(jnp.zeros((4, 2)))
    still = after(saddle_free_newton(0.5, beta=1e-2), mean_quartic, start, steps=10)
    np.testing.assert_array_equal(still.mu.points, 0)
    trigger = gradient_trigger(eps=1e-3, k_thres=30, f_thres=1e-3)
    jumps = {"perturbation": hessian_noise(1e-2), "trigger": trigger}
    moved = run(saddle_free_newton(0.5, beta=1e-2, **jumps), mean_quartic, start, KEY, steps=200)
    assert int(moved.status) == Status.no_decrease
    np.testing.assert_allclose(moved.value, -0.25, atol=1e-5)
    assert np.flatnonzero(moved.records["perturbed"])[0] == 0


# --- solvers ----------------------------------------------------------------------------------------------------------


def regression(count=5, width=2):
    draw = rng(4)
    return functionals.mean_field_regression(*(jnp.asarray(draw.normal(size=(count, k))) for k in (2, width)))


@pytest.mark.parametrize("kind", ["uniform", "weighted", "dict"])
def test_the_solvers_agree(kind):
    F, points = regression(), jnp.asarray(rng(5).normal(size=(4, 4)))
    mu = Particles.uniform(points)
    if kind != "uniform":
        mu = Particles(points, jnp.asarray([0.1, 0.0, 0.6, 0.3]))
    if kind == "dict":
        mu = Particles({"a": points[:, :2], "w": points[:, 2:]}, mu.weights)

    @jax.jit
    def solve(mu):
        def phi(t, gradient_norm):
            return (t**2 + 0.01 * gradient_norm) ** -0.5

        return [spectral(phi, solver=s, depth=16)(KEY, F, mu) for s in ("lanczos", "dense", "gram")]

    lanczos, dense, gram = solve(mu)
    for found in (lanczos, gram):
        assert jax.tree.structure(found.field) == jax.tree.structure(mu.points)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(dense), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-9)
    if kind != "uniform":
        assert all(np.all(leaf[1] == 0) for leaf in jax.tree.leaves(gram.field))
        np.testing.assert_allclose(jax.tree.leaves(lanczos.field)[0][1], 0)


TABLE = {  # relative error at depths 10, 20, 40, 80; flows.md §2.2
    1e-1: (1.3e-2, 3.8e-4, 3e-7, 5e-14),
    1e-2: (0.18, 5e-2, 5e-3, 2e-5),
    1e-3: (0.59, 0.42, 0.14, 2e-2),
}


def test_lanczos_needs_the_depth_that_is_tabulated():
    """n = 400, spectrum in [−1, 1] with 50 negative eigenvalues."""
    draw = rng(0)
    eigenvalues = np.concatenate([-draw.uniform(0, 1, 50), draw.uniform(0, 1, 350)])
    v, diagonal = draw.normal(size=400), jnp.asarray(eigenvalues)

    @jax.jit
    def products(v):
        def at(beta, depth):
            return matrix_function(lambda u: diagonal * u, v, lambda t: (t**2 + beta) ** -0.5, depth)

        return {beta: [at(beta, depth) for depth in (10, 20, 40, 80)] for beta in TABLE}

    for beta, found in products(jnp.asarray(v)).items():
        exact = (eigenvalues**2 + beta) ** -0.5 * v
        errors = [np.linalg.norm(u - exact) / np.linalg.norm(exact) for u in found]
        np.testing.assert_allclose(np.log(np.asarray(errors)), np.log(TABLE[beta]), atol=np.log(4))


# --- damping and trust ------------------------------------------------------------------------------------------------


def test_long_directions_are_shortened_and_short_ones_are_not():
    F = Quadratic(jnp.eye(D), 2 * jnp.eye(D))
    mu = Particles(jnp.asarray(rng(1).normal(size=(3, D))), jnp.asarray([0.2, 0.3, 0.5]))

    @jax.jit
    def fields(mu):
        directions = (spectral(lambda t, _: 1 / (t + 1), part="full", max_rms=m) for m in (None, 0.01, 100.0))
        return [direction(KEY, F, mu).field for direction in directions]

    plain, clipped, free = fields(mu)
    np.testing.assert_allclose(norm(mu, clipped), 0.01, rtol=1e-12)
    np.testing.assert_allclose(clipped, plain * (0.01 / norm(mu, plain)), rtol=1e-10)
    np.testing.assert_allclose(free, plain, rtol=1e-12)
    np.testing.assert_array_equal(fields(mu.moved_to(jnp.zeros((3, D))))[1], 0)


@pytest.mark.slow
def test_levenberg_marquardt_damps_by_the_gradient(dtype, tolerance):
    F = Quadratic(jnp.zeros((D, D), dtype), 2 * jnp.eye(D, dtype=dtype))
    mu = Particles.uniform(jnp.ones((3, D), dtype))
    state = after(saddle_free_newton(1.0, beta=levenberg_marquardt(0.5)), F, mu, steps=0)
    gradient_norm = 2 * np.sqrt(D)
    expected = 2 / np.sqrt(4 + (0.5 * gradient_norm) ** 2)
    np.testing.assert_allclose(state.evaluation.field, expected, rtol=tolerance(dtype))
    rule = levenberg_marquardt(0.5, floor=0.1)
    np.testing.assert_allclose(
        [rule.beta(jnp.asarray(g, dtype)) for g in (0.0, 0.1, 1.0)], [0.01, 0.01, 0.25], rtol=1e-6
    )
    # where λ is asked for and not β, it is the root
    outside = after(saddle_free_newton(1.0, damping=levenberg_marquardt(0.5)), F, mu, steps=0)
    np.testing.assert_allclose(outside.evaluation.field, 2 / (2 + 0.5 * gradient_norm), rtol=tolerance(dtype))
    sobolev = after(sobolev_descent(1.0, damping=levenberg_marquardt(0.5)), F, mu, steps=0)
    np.testing.assert_allclose(sobolev.evaluation.field, 2 / (0.5 * gradient_norm), rtol=tolerance(dtype))


@pytest.mark.parametrize("solver", ["lanczos", "dense"])
def test_a_damping_that_vanishes_with_the_gradient_leaves_a_flat_point_alone(solver):
    F = functionals.matrix_factorization(jnp.ones((5, 2)), jnp.ones((5, 1)))  # g, H and H' are zero at δ₀
    method = saddle_free_newton(1.0, beta=levenberg_marquardt(1.0), solver=solver)
    state = after(method, F, Particles.uniform(jnp.zeros((3, 3))), steps=0)
    np.testing.assert_array_equal(state.evaluation.field, 0)


# --- Sobolev descent --------------------------------------------------------------------------------------------------


def test_sobolev_descent_is_the_published_velocity():
    """α = (JJᵀ/(Nb) + λ)⁻¹r and v = −Jᵀα/b, flows.md §7."""
    F, x, lam, eta = regression(), rng(5).normal(size=(4, 4)), 1e-3, 0.2
    z, y = np.asarray(F.inputs), np.asarray(F.targets)
    network = Network(x, np.full(4, 0.25), z, lambda h: square_loss(h, y), 2)
    J = network.jacobian(x).transpose(1, 2, 0, 3).reshape(10, 16)  # outputs × coordinates
    alpha = np.linalg.solve(J @ J.T / (4 * 5) + lam * np.eye(10), (network.outputs - y).ravel())
    velocity = -(J.T @ alpha).reshape(4, 4) / 5
    for solver in ("lanczos", "gram"):
        method = sobolev_descent(eta, damping=lam, solver=solver)
        state = after(method, F, Particles.uniform(jnp.asarray(x)), steps=1)
        np.testing.assert_allclose(state.mu.points, x + eta * velocity, atol=1e-8)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SquaredMMD:
    """½MMD² to an empirical target, Gaussian kernel of variance s, up to a constant."""

    target: jax.Array
    s: float

    def interaction(self, points, others):
        return jnp.exp(-jnp.sum((points[:, None] - others[None]) ** 2, axis=-1) / (2 * self.s))

    def external(self, points):
        return -jnp.mean(self.interaction(points, self.target), axis=1)

    def __call__(self, mu):
        return mu.weights @ (self.interaction(mu.points, mu.points) @ mu.weights / 2 + self.external(mu.points))


def kernel_form(x, target, s, lam, at):
    """Sobolev descent on ½MMD² written with the kernel: (velocity at the particles, velocity at ``at``)."""

    def witness(q):  # ∇f
        def part(y):
            gap = q[:, None] - y[None]
            return np.mean(-gap / s * np.exp(-np.sum(gap**2, axis=-1) / (2 * s))[..., None], axis=1)

        return part(x) - part(target)

    def mixed(q):  # ∂x∂y k (q, x), as a matrix
        gap = q[:, None] - x[None]
        k = np.exp(-np.sum(gap**2, axis=-1) / (2 * s))[..., None, None]
        blocks = (np.eye(2) / s - gap[..., :, None] * gap[..., None, :] / s**2) * k
        return blocks.transpose(0, 2, 1, 3).reshape(q.size, x.size)

    u = np.linalg.solve(mixed(x) / len(x) + lam * np.eye(x.size), witness(x).ravel())
    off = -(witness(at).ravel() - mixed(at) @ u / len(x)) / lam
    return -u.reshape(x.shape), off.reshape(at.shape)


@pytest.mark.parametrize("lam", [0.3, 1e-3])
def test_sobolev_descent_on_mmd_is_its_kernel_form_on_and_off_the_particles(lam):
    draw = rng(8)
    x, target, at = draw.normal(size=(6, 2)), draw.normal(size=(5, 2)) + 1, draw.normal(size=(3, 2))
    F, mu = SquaredMMD(jnp.asarray(target), 0.8), Particles.uniform(jnp.asarray(x))
    on, off = kernel_form(x, target, 0.8, lam, at)

    @jax.jit
    def velocities(mu):
        velocity = spectral_velocity(F, mu, lambda t: 1 / (t + lam))
        flow = sobolev_descent(1.0, damping=lam)
        generic = spectral(lambda t, _: 1 / (t + lam))(KEY, F, mu).field
        return velocity(mu.points), velocity(jnp.asarray(at)), flow.init(KEY, F, mu).evaluation.field, generic

    found_on, found_off, direction, generic = velocities(mu)
    np.testing.assert_allclose(generic, direction, atol=1e-12)
    np.testing.assert_allclose(direction, -on, atol=1e-9 / lam)
    np.testing.assert_allclose(found_on, on, atol=1e-9 / lam)
    np.testing.assert_allclose(found_off, off, atol=1e-9 / lam)


def test_the_velocity_resolves_eigenvalues_below_the_root_of_the_precision():
    """In float32 an eigenvalue of 2e-4 is not zero beside a damping of 1e-3."""
    F = Quadratic(jnp.diag(jnp.asarray([2e-4, 1e-3, 0, 1e-2], jnp.float32)), jnp.zeros((D, D), jnp.float32))
    mu, lam = Particles.uniform(jnp.ones((3, D), jnp.float32)), 1e-3
    found = jax.jit(lambda mu: spectral_velocity(F, mu, lambda t: 1 / (t + lam))(mu.points))(mu)
    eigenvalues = np.array([2e-4, 1e-3, 0, 1e-2])
    np.testing.assert_allclose(found[0], -eigenvalues / (eigenvalues + lam), atol=1e-3)


def test_velocities_of_a_constant_functional_are_zero():
    mu = Particles.uniform(jnp.ones((3, D)))
    F = Quadratic(jnp.zeros((D, D)), jnp.zeros((D, D)))
    found = jax.jit(lambda mu: spectral_velocity(F, mu, lambda t: 1 / (t + 1))(mu.points))(mu)
    np.testing.assert_array_equal(found, 0)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: saddle_free_newton(1.0, beta=0.0), "saddle_free_newton: beta=0.0; give a positive number"),
        (lambda: saddle_free_newton(1.0, beta=float("nan")), "beta=nan"),
        (lambda: saddle_free_newton(-1.0, beta=0.1), "step_size=-1.0"),
        (lambda: saddle_free_newton(1.0, beta=0.1, damping=0.1), "beta=0.1, damping=0.1; give one"),
        (lambda: saddle_free_newton(1.0), "beta=None, damping=None; give one"),
        (lambda: saddle_free_newton(1.0, beta=0.1, part="local"), "part='local'"),
        (lambda: saddle_free_newton(1.0, beta=0.1, solver=cast(Any, "qr")), "'qr'"),
        (lambda: saddle_free_newton(1.0, beta=0.1, solver="gram"), "knows the integral Hessian only"),
        (lambda: saddle_free_newton(1.0, beta=0.1, max_rms=0.0), "max_rms=0.0"),
        (lambda: saddle_free_newton(1.0, beta=0.1, perturbation=hessian_noise(0.1)), "without a trigger is never used"),
        (lambda: sobolev_descent(1.0, damping=-1.0), "sobolev_descent: damping=-1.0"),
        (lambda: wasserstein_newton(1.0, beta=0.0), "wasserstein_newton: beta=0.0"),
        (lambda: levenberg_marquardt(0.0), "factor=0.0"),
        (lambda: levenberg_marquardt(1.0, floor=-1.0), "floor=-1.0"),
        (lambda: gram_function(mean_quartic, Particles.uniform(jnp.ones((2, 2))), abs), "needs a least-squares"),
    ],
)
def test_impossible_arguments_are_refused(build, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build()


def test_dense_refuses_what_lanczos_can_do():
    big = Particles.uniform(jnp.zeros((2049, 2)))
    with pytest.raises(ValueError, match="a field of 4098 numbers; above 4096 use matrix_function"):
        saddle_free_newton(1.0, beta=0.1, solver="dense").init(KEY, mean_quartic, big)
    jax.eval_shape(lambda mu: saddle_free_newton(1.0, beta=0.1).init(KEY, mean_quartic, mu), big)
    with pytest.raises(ValueError, match="needs a least-squares functional"):
        sobolev_descent(1.0, damping=0.1, solver="gram").init(KEY, mean_quartic, big)
