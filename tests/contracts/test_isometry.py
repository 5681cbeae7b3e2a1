"""Measures and parameters are one thing: splitting particles, one particle alone, and the twins of both worlds."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pwgf_jax import Particles, certified_pwgf, flow, functionals, run, saddle_free_newton
from pwgf_jax.flows import gradient
from pwgf_jax.measures import Isometry
from pwgf_jax.perturbation import hessian_noise
from pwgf_jax.transforms import (
    OfParticles,
    certificate_trigger,
    cubic_newton,
    dimer,
    gradient_trigger,
    negative_curvature_descent,
    perturb_at_saddle,
    scale_by_saddle_free_newton,
)
from tests.oracles.closed_forms import antithetic, mean_quartic
from tests.transforms.driving import NEEDS_TERMS, TRANSFORMS, drive

KEY = jax.random.key(0)


def rng(seed=0):
    return np.random.default_rng(seed)


def split(mu, share=0.3):
    """Every particle twice, with a share of its weight and with the rest."""
    points = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), mu.points)
    return Particles(points, jnp.concatenate([share * mu.weights, (1 - share) * mu.weights]))


def slope(dtype=jnp.float64):
    draw = rng(1)
    F = functionals.matrix_factorization(*(jnp.asarray(draw.normal(size=(4, k)), dtype) for k in (1, 1)))
    weights = jnp.asarray([0.2, 0.5, 0.3], dtype)
    return F, Particles(jnp.asarray(draw.normal(size=(3, 2)), dtype), weights)


def some(names):
    """All of these, most of them slow."""
    marks = {name: [] if name in ("saddle-free newton", "pgd") else [pytest.mark.slow] for name in names}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=marks[name]) for name in sorted(names)])


# --- splitting --------------------------------------------------------------------------------------------------------

NOT_OF_A_MEASURE = {
    "error feedback": "keeps the largest coordinates, of which a split measure has twice as many",
    "compressed sgd": "likewise",
    "scale by measure": "is the scaling itself, which a flow has done",
    "dimer": "starts from a random direction of the coordinates: tested in law below",
    **dict.fromkeys(NEEDS_TERMS, "asks for the terms of a sum, which a flow does not pass"),
}


@some(TRANSFORMS.keys() - NOT_OF_A_MEASURE.keys())
def test_a_step_of_ours_does_not_see_that_particles_are_split(name):
    F, mu = slope()
    method = flow(gradient, optax.chain(TRANSFORMS[name](), optax.scale(0.5)))
    whole, halves = (run(method, F, start, KEY, steps=4).records["value"] for start in (mu, split(mu)))
    assert whole[-1] != whole[0]
    np.testing.assert_allclose(halves, whole, rtol=1e-5 if name == "zeroth order" else 1e-8)


@pytest.mark.slow
def test_the_dimer_of_a_split_measure_has_the_law_of_the_whole():
    """Its pull along a direction uniform on the sphere, Σ⟨g, n⟩²: on average |g|² over the dimension of the space."""
    F, mu = slope()
    push = lambda key: dimer(separation=1e-4, rotation_rate=1e-9, every=9, strength=1.0, mode="translate", key=key)  # noqa: E731

    def pulled(start):
        found = gradient(KEY, F, start)
        chart = Isometry(start.weights, start.points)

        def along(key):
            transform = push(key)
            value_fn = OfParticles(lambda x: F(start.moved_to(x)), start.weights)
            updates, _ = transform.update(found.field, transform.init(start.points), start.points, value_fn=value_fn)
            return jnp.sum(chart.up(found.field - updates) ** 2)

        share = jax.lax.map(along, jax.random.split(KEY, 4000)) / found.gradient_norm**2
        return float(jnp.mean(share)) * start.points.size / 1.0

    np.testing.assert_allclose([pulled(mu), pulled(split(mu))], 1, rtol=0.1)


# --- one particle -----------------------------------------------------------------------------------------------------


def well(x):
    return jnp.sum(x**4) / 4 - x[0] ** 2 / 2 + x[1] ** 2


def dirac(x):
    return functionals.potential(well), Particles.uniform(x[None])


@some(TRANSFORMS.keys() - NEEDS_TERMS - {"scale by measure"})
def test_a_transform_takes_the_steps_of_a_flow_of_one_particle(name):
    x = jnp.asarray([0.4, -0.3])
    F, start = dirac(x)
    transform = optax.chain(TRANSFORMS[name](), optax.scale(0.5))
    found = run(flow(gradient, transform), F, start, KEY, steps=4)
    end, _, path = drive(transform, well, x, 4)
    np.testing.assert_allclose(found.mu.points[0], end, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.records["value"][1:], jax.vmap(well)(path), rtol=1e-9, atol=1e-12)


def shift(key, objective, point, step=0):
    """The same displacement in both worlds."""
    del key, objective, step
    displacement = jnp.asarray([3e-2, -4e-2])
    return displacement[None] if isinstance(point, Particles) else displacement


JUMPS: dict[str, Any] = {"eps": 1e-2, "k_thres": 12, "f_thres": 1e-4}
DIRECT: dict[str, Any] = {"delta": 0.1, "eta_p": 0.05, "depth": 2}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [optax.sgd(0.3), optax.adam(0.1)], ids=["sgd", "adam"])
@pytest.mark.parametrize(
    ("noise", "trigger"),
    [
        (shift, gradient_trigger(**JUMPS)),
        (shift, certificate_trigger(**JUMPS, **DIRECT)),
        (None, certificate_trigger(**JUMPS, **DIRECT)),
    ],
    ids=["indirect", "certificate", "direction"],
)
def test_jump_window_and_return_are_those_of_the_flow(noise, trigger, optimizer):
    """Same values, jumps at the same steps, and the same point returned, one update later."""
    x, steps = jnp.zeros(2), 80
    F, start = dirac(x)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        found = run(flow(gradient, optimizer, noise, trigger), F, start, KEY, steps)
        transform = perturb_at_saddle(optimizer, noise, trigger, key=KEY)
        end, state, path = drive(transform, well, x, steps)
    taken, jumps = int(found.steps), np.flatnonzero(found.records["perturbed"])
    assert (jumps[0], bool(state.stopped)) == (0, True)
    sign = np.sign(path[taken - 2, 0] * found.mu.points[0, 0])  # an eigenvector has two, after another key
    values = found.records["value"][1:taken]
    np.testing.assert_allclose(jax.vmap(well)(path[: taken - 1]), values, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(end, found.mu.points[0] * (sign if noise is None else 1), rtol=1e-9, atol=1e-13)
    assert int(state.jumps) == len(jumps)
    assert int(state.window.jumped_at) == (jumps[-1] if trigger.examine is None else taken)


# --- twins ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number", [{"beta": 1e-2}, pytest.param({"damping": 0.1}, marks=pytest.mark.slow)], ids=["beta", "damping"]
)
def test_saddle_free_newton_is_one_method(number, dtype, tolerance):
    F, mu = slope(dtype)
    chain = optax.chain(scale_by_saddle_free_newton(**number, depth=6), optax.scale_by_learning_rate(0.5))
    for start in (mu, split(mu)):
        twin = run(flow(gradient, chain), F, start, KEY, steps=8)
        own = run(saddle_free_newton(0.5, **number, depth=6), F, start, KEY, steps=8)
        np.testing.assert_allclose(twin.records["value"], own.records["value"], rtol=tolerance(dtype, 100))


def test_hessian_noise_is_one_noise(dtype, tolerance):
    """The draw of the full Hessian at a measure is that of ∇²F_N in the isometric coordinates, for the same key."""
    F, mu = slope(dtype)
    chart = Isometry(mu.weights, mu.points)
    at_measure = hessian_noise(0.1, part="full")(KEY, F, mu)
    in_y = hessian_noise(0.1)(KEY, chart.of(lambda x: F(mu.moved_to(x))), chart.up(mu.points))
    np.testing.assert_allclose(chart.down(in_y), at_measure, atol=tolerance(dtype, 10))


@pytest.mark.slow
def test_particles_without_mass_stay_and_change_nothing():
    F, mu = slope()
    ghost = Particles(jnp.concatenate([mu.points, jnp.full((1, 2), 7.0)]), jnp.append(mu.weights, 0.0))
    for name in ("cubic newton", "saddle-free newton", "negative curvature"):
        method = flow(gradient, TRANSFORMS[name]())
        end, alone = (run(method, F, start, KEY, steps=3) for start in (ghost, mu))
        np.testing.assert_array_equal(end.mu.points[-1], 7)
        np.testing.assert_allclose(end.value, alone.value, rtol=1e-7)


# --- new, and of one line: methods of parameters, on measures ---------------------------------------------------------


def dead_network():
    """Matrix factorisation at h ≡ 0 by opposite pairs of neurons: a saddle that the gradient does not leave."""
    draw = rng(4)
    F = functionals.matrix_factorization(jnp.asarray(draw.normal(size=(6, 2))), jnp.asarray(draw.normal(size=(6, 1))))
    return F, Particles.uniform(jnp.asarray(antithetic(draw.normal(size=(3, 1)), draw.normal(size=(3, 2)))))


KNOWN: dict[str, Any] = {"smoothness": 20.0, "hessian_lipschitz": 60.0}
WINDOW: dict[str, Any] = {"eps": 1e-2, "k_thres": 60, "f_thres": 0.0}
PUSH: dict[str, Any] = {"separation": 1e-3, "rotation_rate": 0.05, "every": 1, "strength": 2.0, "kick": 1e-2}
ESCAPES: dict[str, Any] = {
    "wasserstein cubic newton": lambda: flow(gradient, cubic_newton(60.0, key=KEY)),
    "wasserstein negative-curvature descent": lambda: flow(
        gradient, negative_curvature_descent(**KNOWN, eps=1e-2, delta=0.2, key=KEY)
    ),
    "wasserstein dimer": lambda: flow(
        gradient,
        optax.chain(dimer(**PUSH, key=KEY), optax.sgd(0.1)),
    ),
    "perturbed by the full Hessian": lambda: flow(
        gradient,
        perturb_at_saddle(optax.sgd(0.3), hessian_noise(0.05), gradient_trigger(**WINDOW), key=KEY),
    ),
    "certified": lambda: certified_pwgf(0.3, **WINDOW, delta=0.1, eta_p=0.05),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ESCAPES)
def test_it_leaves_the_saddle_of_a_dead_network(name):
    F, start = dead_network()
    method = ESCAPES[name]()
    still = run(flow(gradient, 0.3), F, start, KEY, steps=20)
    np.testing.assert_allclose(still.value, F(start), rtol=1e-10)
    assert float(run(method, F, start, KEY, steps=150).value) < 0.5 * float(F(start))
    again = run(method, mean_quartic, Particles.uniform(jnp.zeros((3, 2))), KEY, steps=150)
    np.testing.assert_allclose(again.value, -0.25, atol=2e-2)
