"""Every flow × every law that a flow owes. A new flow adds one line to FLOWS."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, get_type_hints

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from pwgf_jax import Flow, Particles, Status, flows, functionals, isotropic_pwgf, pwgf, wgf
from pwgf_jax.flows import adaptive_level
from pwgf_jax.kernels import feature, gaussian
from tests.oracles.closed_forms import antithetic

JUMPS: dict[str, Any] = {"eps": 1e-3, "eta_p": 0.1, "k_thres": 3, "f_thres": 1e-4}


class Entry(NamedTuple):
    """How to make a flow, and whether it draws noise away from stationary points (its laws are then fewer)."""

    make: Callable[[], Flow]
    noisy: bool = False


def constructors():
    """The public functions that return a flow and are no combinator of others."""
    named = {name: getattr(flows, name) for name in flows.__all__}
    hints = {name: get_type_hints(thing) for name, thing in named.items() if inspect.isfunction(thing)}
    combinators = {"flow", "minibatch", "descent", "reweighted", "seeded"}
    return {name for name, hint in hints.items() if hint.get("return") is Flow} - combinators


def of_a_discrepancy(flow):
    """A flow of ½MMD² alone, on the problem of all: F and a discrepancy to two points."""

    def rows(points):
        return jnp.tanh(jax.vmap(lambda point: ravel_pytree(point)[0])(points))

    def whole(F, mu):
        unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], mu.points))[1]
        target = jax.vmap(unravel)(jnp.asarray([[1.0, -0.5, 0.2], [-1.0, 0.5, 0.4]], mu.weights.dtype))
        return F + functionals.mmd(Particles.uniform(target), feature(rows))

    def init(key, F, mu):
        return flow.init(key, whole(F, mu), mu)

    def step(key, F, state):
        return flow.step(key, whole(F, state.mu), state)

    return Flow(init, step)


NEWTON: dict[str, Any] = {"depth": 18}
# By the constructor's name, and what is special about the entry after it.
FLOWS = {
    "wgf": Entry(lambda: wgf(0.1)),
    "wgf with adam": Entry(lambda: wgf(optax.adam(0.1))),
    "wgf, weights move": Entry(lambda: flows.reweighted(wgf(0.1), flows.mirror(0.5))),
    "pwgf": Entry(lambda: pwgf(0.1, **JUMPS)),
    "pwgf by lanczos": Entry(lambda: pwgf(0.1, **JUMPS, sampler="lanczos")),
    "certified_pwgf": Entry(lambda: flows.certified_pwgf(0.1, **JUMPS, delta=0.05)),
    "isotropic_pwgf": Entry(lambda: isotropic_pwgf(0.1, **JUMPS)),
    "isotropic_pwgf, smooth": Entry(lambda: isotropic_pwgf(0.1, **JUMPS, scale=0.5, lengthscale=1.0)),
    "noise_injection, adaptive": Entry(lambda: flows.noise_injection(0.1, adaptive_level(0.5)), noisy=True),
    "langevin": Entry(lambda: flows.langevin(0.1, temperature=0.1), noisy=True),
    "drmmd_descent": Entry(lambda: of_a_discrepancy(flows.drmmd_descent(0.1, damping=0.1))),
    "saddle_free_newton": Entry(lambda: flows.saddle_free_newton(0.1, beta=0.1, **NEWTON)),
    "sobolev_descent": Entry(lambda: flows.sobolev_descent(0.1, damping=0.1, **NEWTON)),
    "wasserstein_newton": Entry(lambda: flows.wasserstein_newton(0.1, beta=0.1, **NEWTON)),
    "svgd": Entry(lambda: flows.svgd(0.1, kernel=gaussian(1.0))),
    "ksd_descent": Entry(lambda: flows.ksd_descent(0.1, kernel=gaussian(1.0))),
}

# Variations on the others, which CI tests with everything that is slow.
VARIATIONS = {
    "wgf with adam",
    "wgf, weights move",
    "pwgf by lanczos",
    "certified_pwgf",
    "isotropic_pwgf",
    "isotropic_pwgf, smooth",
    "noise_injection, adaptive",
    "sobolev_descent",
    "wasserstein_newton",
    "ksd_descent",
}


def parametrized(names):
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=[pytest.mark.slow] if name in VARIATIONS else []) for name in names]
    )


every_flow = parametrized(FLOWS)
noise_free_flows = parametrized([name for name, entry in FLOWS.items() if not entry.noisy])

N = 6


def rng(seed=0):
    return np.random.default_rng(seed)


@functools.cache
def problem(dtype):
    """A matrix factorisation, (F, a measure on a slope, a saddle at which triggers fire)."""
    draw = rng(1)
    F = functionals.matrix_factorization(*(jnp.asarray(draw.normal(size=(4, k)), dtype) for k in (2, 1)))
    slope = jnp.asarray(draw.normal(size=(N, 3)), dtype)
    saddle = jnp.asarray(antithetic(draw.normal(size=(N // 2, 1)), draw.normal(size=(N // 2, 2))), dtype)
    return F, Particles.uniform(slope), Particles.uniform(saddle)


class Compiled(NamedTuple):
    """A flow with its functions compiled, shared by all laws."""

    flow: Flow
    init: Any
    step: Any
    vmapped: Any


@functools.cache
def compiled(name):
    flow = FLOWS[name].make()
    return Compiled(flow, jax.jit(flow.init), jax.jit(flow.step), jax.jit(jax.vmap(flow.step, in_axes=(0, None, 0))))


def after(name, F, mu, steps=2, key=None) -> Any:
    """The state after a few steps, and the last info."""
    keys = jax.random.split(jax.random.key(3) if key is None else key, steps + 1)
    state, info = compiled(name).init(keys[0], F, mu), None
    for key in keys[1:]:
        state, info = compiled(name).step(key, F, state)
    return state, info


def assert_close(found, expected, atol):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(a, b, atol=atol, err_msg=jax.tree_util.keystr(path))


def test_every_public_flow_is_in_the_table():
    assert constructors() == {name.replace(",", " ").split()[0] for name in FLOWS}


@every_flow
def test_init_and_step_work_on_shapes_alone(name, dtype):
    F, slope, _ = problem(dtype)
    flow = FLOWS[name].make()
    shapes = jax.eval_shape(flow.init, jax.random.key(0), F, slope)
    state, info = jax.eval_shape(flow.step, jax.random.key(0), F, shapes)
    assert jax.tree.structure(shapes) == jax.tree.structure(state)
    assert state.mu.points.shape == (N, 3)
    assert (info.value.shape, info.perturbed.dtype, info.status.dtype) == ((), bool, jnp.int32)


@every_flow
def test_the_state_is_a_fixed_point_of_shape_dtype_and_weak_type(name, dtype):
    F, slope, saddle = problem(dtype)
    flow = FLOWS[name].make()

    def types(tree):
        return [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(tree)]

    traced, shapes = jax.make_jaxpr(lambda key, mu: flow.init(key, F, mu), return_shape=True)(jax.random.key(0), slope)
    before = jax.tree.unflatten(
        jax.tree.structure(shapes), [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in traced.out_avals]
    )
    state, _ = jax.eval_shape(flow.step, jax.random.key(0), F, before)
    assert types(traced.out_avals) == [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(state)]
    floats = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype(dtype)}

    def scanned(mu, keys):  # a scan and a cond refuse anything else
        def body(state, key):
            return jax.lax.cond(state.step >= 0, lambda s: flow.step(key, F, s)[0], lambda s: s, state), None

        return jax.lax.scan(body, flow.init(keys[0], F, mu), keys)[0]

    jax.eval_shape(scanned, saddle, jax.random.split(jax.random.key(0), 3))


@every_flow
def test_a_second_call_does_not_compile_again(name):
    F, slope, saddle = problem(jnp.float32)
    state, step = compiled(name).init(jax.random.key(0), F, slope), compiled(name).step
    state, _ = step(jax.random.key(0), F, state)
    compilations = step._cache_size()
    for i in range(3):
        state, _ = step(jax.random.key(i), F, state)
    step(jax.random.key(9), F, compiled(name).init(jax.random.key(0), F, saddle))
    assert step._cache_size() == compilations


@pytest.mark.slow
@every_flow
def test_compiled_equals_eager(name, tolerance):
    F, _, saddle = problem(jnp.float64)
    flow, key = compiled(name).flow, jax.random.key(4)
    eager_state = flow.init(key, F, saddle)
    state = compiled(name).init(key, F, saddle)
    np.testing.assert_allclose(state.evaluation.field, eager_state.evaluation.field, atol=1e-12)
    # from one and the same state: adam makes a step of a gradient that is zero up to rounding
    found, expected = compiled(name).step(key, F, eager_state), flow.step(key, F, eager_state)
    assert_close(found, expected, atol=tolerance(jnp.float64))


@every_flow
def test_a_vmapped_batch_is_the_loop(name, tolerance):
    dtype = jnp.float32
    F, slope, saddle = problem(dtype)
    starts, keys = [slope, saddle, slope.moved_to(slope.points / 2)], jax.random.split(jax.random.key(5), 3)
    states = [compiled(name).init(key, F, mu) for key, mu in zip(keys, starts, strict=True)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    together, infos = compiled(name).vmapped(keys, F, stacked)
    for i, (key, state) in enumerate(zip(keys, states, strict=True)):
        one = compiled(name).step(key, F, state)
        assert_close(jax.tree.map(lambda x, i=i: x[i], (together, infos)), one, atol=tolerance(dtype, 10))


@every_flow
def test_a_state_goes_on_from_its_numbers(name):
    """What a checkpoint stores is all that there is: chunks and resumed runs rest on it."""
    F, _, saddle = problem(jnp.float64)
    state, _ = after(name, F, saddle)
    stored = jax.tree.map(lambda leaf: jnp.asarray(np.array(leaf)), state)
    found, expected = (compiled(name).step(jax.random.key(6), F, s) for s in (stored, state))
    chex.assert_trees_all_equal(found, expected)


@noise_free_flows
def test_permuted_particles_give_permuted_results(name, dtype, tolerance):
    F, slope, _ = problem(dtype)
    order = jnp.asarray([3, 0, 5, 1, 4, 2])
    state, info = after(name, F, slope)
    permuted, _ = after(name, F, slope.moved_to(slope.points[order]))
    assert not bool(info.perturbed)
    np.testing.assert_allclose(permuted.mu.points, state.mu.points[order], atol=tolerance(dtype))
    np.testing.assert_allclose(permuted.evaluation.value, state.evaluation.value, rtol=tolerance(dtype))


@noise_free_flows
def test_split_particles_move_as_the_whole_ones(name, tolerance):
    dtype = jnp.float64
    F, slope, _ = problem(dtype)
    half, weights = slope.points[: N // 2], jnp.asarray([0.5, 0.3, 0.2], dtype)
    single, _ = after(name, F, Particles(half, weights))
    twice = jnp.concatenate([0.3 * weights, 0.7 * weights])
    double, _ = after(name, F, Particles(jnp.concatenate([half, half]), twice))
    expected = jnp.concatenate([single.mu.points, single.mu.points])
    np.testing.assert_allclose(double.mu.points, expected, atol=tolerance(dtype))
    np.testing.assert_allclose(double.evaluation.gradient_norm, single.evaluation.gradient_norm, rtol=tolerance(dtype))


@pytest.mark.slow
@noise_free_flows
def test_particles_as_a_dict_are_the_particles_as_rows(name, tolerance):
    F, slope, _ = problem(jnp.float64)
    parts = Particles({"a": slope.points[:, :1], "w": slope.points[:, 1:]}, slope.weights)
    rows, _ = after(name, F, slope)
    found, _ = after(name, F, parts)
    joined = jnp.concatenate([found.mu.points["a"], found.mu.points["w"]], axis=1)
    np.testing.assert_allclose(joined, rows.mu.points, atol=tolerance(jnp.float64))
    assert jax.tree.structure(found.evaluation.field) == jax.tree.structure(parts.points)
    assert ravel_pytree(found.mu.points)[0].shape == (3 * N,)


@every_flow
def test_the_key_is_used_where_there_is_noise_and_only_there(name):
    F, slope, saddle = problem(jnp.float64)
    for mu in (slope, saddle):
        states = [after(name, F, mu, key=jax.random.key(k)) for k in (7, 7, 8)]
        np.testing.assert_array_equal(states[0][0].mu.points, states[1][0].mu.points)
        differs = bool(jnp.any(states[0][0].mu.points != states[2][0].mu.points))
        jumps = mu is saddle and states[0][0].window is not None
        if mu is slope or not FLOWS[name].noisy:  # noise that is looked through may see nothing at a saddle
            assert differs == (jumps or FLOWS[name].noisy)


@every_flow
def test_old_keys_are_rejected(name):
    F, slope, _ = problem(jnp.float32)
    flow, old = compiled(name).flow, jax.random.PRNGKey(0)
    with pytest.raises(TypeError, match=r"not a typed key; make one with jax.random.key\(seed\)"):
        flow.init(old, F, slope)
    with pytest.raises(TypeError, match=r"not a typed key"):
        flow.step(old, F, compiled(name).init(jax.random.key(0), F, slope))


@every_flow
def test_a_measure_that_is_not_finite_freezes_with_a_status_and_alone(name, tolerance):
    dtype = jnp.float32
    F, slope, _ = problem(dtype)
    starts = [slope, slope.moved_to(slope.points.at[0, 0].set(jnp.nan)), slope.moved_to(slope.points / 2)]
    keys = jax.random.split(jax.random.key(5), 3)
    states = [compiled(name).init(key, F, mu) for key, mu in zip(keys, starts, strict=True)]
    together, infos = compiled(name).vmapped(keys, F, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))
    assert infos.status.tolist() == [Status.running, Status.not_finite, Status.running]
    np.testing.assert_array_equal(together.mu.points[1], starts[1].points)
    assert together.step.tolist() == [1, 0, 1]
    for i in (0, 2):
        alone, _ = compiled(name).step(keys[i], F, states[i])
        np.testing.assert_allclose(together.mu.points[i], alone.mu.points, atol=tolerance(dtype))


@every_flow
def test_a_final_state_is_left_alone(name):
    F, _, saddle = problem(jnp.float64)
    state = compiled(name).init(jax.random.key(0), F, saddle)
    for status in (Status.no_decrease, Status.budget_spent, Status.not_finite, Status.certified):
        final = state._replace(status=jnp.asarray(status, jnp.int32))
        same, info = compiled(name).step(jax.random.key(1), F, final)
        chex.assert_trees_all_equal(same, final)
        assert not bool(info.perturbed)
        assert int(info.status) == status


@every_flow
def test_arguments_are_left_alone(name):
    F, _, saddle = problem(jnp.float64)
    points, state = np.array(saddle.points), compiled(name).init(jax.random.key(0), F, saddle)
    before = jax.tree.map(np.array, state.mu)
    compiled(name).step(jax.random.key(1), F, state)
    np.testing.assert_array_equal(saddle.points, points)
    np.testing.assert_array_equal(state.mu.points, before.points)


@every_flow
def test_parameters_are_called_as_the_protocol_says(name):
    flow = FLOWS[name].make()
    assert isinstance(flow, Flow)
    assert list(inspect.signature(flow.init).parameters) == ["key", "F", "mu"]
    assert list(inspect.signature(flow.step).parameters) == ["key", "F", "state"]


@pytest.mark.parametrize("make", [wgf, pwgf, isotropic_pwgf])
def test_constructors_take_the_step_size_first_and_the_rest_by_name(make):
    first, *others = inspect.signature(make).parameters.values()
    assert first.name == "step_size"
    assert all(other.kind is inspect.Parameter.KEYWORD_ONLY for other in others)
