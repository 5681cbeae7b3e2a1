"""A branch under vmap: who does not fire pays nothing, and who fires finds what it would find alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

from pwgf_jax import Particles, Status, certified_pwgf, flow, functionals, isotropic_pwgf, pwgf
from pwgf_jax.flows import gradient
from pwgf_jax.transforms import gradient_trigger, perturb_at_saddle
from pwgf_jax.transforms.branches import where_it_fires

KEY = jax.random.key(0)
PATTERNS = {
    "none": lambda n: jnp.zeros(n, bool),
    "one": lambda n: jnp.arange(n) == n // 2,
    "some": lambda n: jnp.arange(n) % 3 == 0,
    "all": lambda n: jnp.ones(n, bool),
}
patterns = pytest.mark.parametrize("pattern", PATTERNS)


def member(dtype):
    """One member's branch: it closes over a key, a number of its own and numbers of all, on a tree of many dtypes."""
    shared = jnp.arange(3, dtype=dtype)

    def branch(fires, key, scale, state):
        def look(state):
            x, jumps, ended, stream, nothing = state
            stream = jax.random.fold_in(stream, jumps)
            return (
                jnp.sqrt(x) * scale + shared + jax.random.normal(key, x.shape, dtype),
                jumps + 1,
                ~ended,
                stream,
                nothing,
            )

        return where_it_fires(fires, look, state)

    return branch


def members(n, dtype):
    """(keys, scales, states) of n members, whose values only a firing one may take the root of."""
    x = jax.random.uniform(KEY, (n, 3), dtype)
    keys = jax.random.split(KEY, n)
    return keys, jnp.linspace(-1, 1, n, dtype=dtype), (x, jnp.arange(n), jnp.arange(n) % 2 == 0, keys, None)


def numbers(tree):
    """The leaves, keys as their data."""
    return [
        jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        for leaf in jax.tree.leaves(tree)
    ]


def assert_same(found, expected, atol):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(numbers(found), numbers(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, atol=atol, rtol=0)


@pytest.mark.parametrize("n", [1, 9, 64])  # alone, a group of eight and one more, full groups
def test_a_batch_is_the_loop(n, dtype, tolerance):
    branch, arguments = member(dtype), members(n, dtype)
    together = jax.jit(jax.vmap(branch))
    alone = jax.jit(lambda *arguments: jax.lax.map(lambda each: branch(*each), arguments))
    for pattern in PATTERNS.values():
        fires = pattern(n)
        expected = alone(fires, *arguments)
        assert_same(together(fires, *arguments), expected, tolerance(dtype))
        for found, untouched in zip(numbers(expected), numbers(arguments[-1]), strict=True):
            np.testing.assert_array_equal(found[~fires], untouched[~fires])


def test_a_batch_of_batches_is_the_loop(dtype, tolerance):
    """Each of the arguments is of the inner batch, of the outer one, or of both."""
    branch, (keys, scales, states) = member(dtype), members(9, dtype)
    both = (jnp.stack([states[0], states[0] + 1]), *states[1:])
    inner, outer = (0, 0, None, (0, 0, 0, 0, None)), (None, None, 0, (0, None, None, None, None))
    together = jax.jit(jax.vmap(jax.vmap(branch, inner), outer))
    for pattern in PATTERNS.values():
        fires = pattern(9)
        found = together(fires, keys, scales[:2], both)
        for j in range(2):
            of_one = (both[0][j], *both[1:])
            expected = jax.lax.map(
                lambda each, j=j: branch(each[0], each[1], scales[j], each[2]), (fires, keys, of_one)
            )
            assert_same(jax.tree.map(lambda leaf, j=j: leaf[j], found), expected, tolerance(dtype))


@pytest.mark.parametrize("check_vma", [False, True])
def test_a_scan_on_shards_is_the_loop(check_vma, dtype, tolerance):
    """What a sweep compiles: seeds with data of their own, vmapped over a scan, on the devices of a mesh."""

    def seed(key, fires):
        data = jax.random.normal(key, (4,), dtype)
        step = lambda x, i: (where_it_fires(fires & (i % 2 == 0), lambda x: x / 2 + data, x), None)  # noqa: E731
        return jax.lax.scan(step, data, jnp.arange(5))[0]

    mesh, spec = Mesh(np.asarray(jax.devices()), ("seed",)), PartitionSpec("seed")
    n = 9 * mesh.size
    arguments = jax.random.split(KEY, n), PATTERNS["some"](n)
    sharded = jax.shard_map(jax.vmap(seed), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=check_vma)
    expected = jax.lax.map(lambda each: seed(*each), arguments)
    np.testing.assert_allclose(jax.jit(sharded)(*arguments), expected, atol=tolerance(dtype))
    by_fours = jax.lax.map(lambda each: seed(*each), arguments, batch_size=4)
    np.testing.assert_allclose(by_fours, expected, atol=tolerance(dtype))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_batch_lowers(platform):
    branch = jax.jit(jax.vmap(member(jnp.float32)))
    keys, scales, (x, jumps, ended, _, nothing) = members(9, jnp.float32)
    traced = branch.trace(PATTERNS["some"](9), keys, scales, (x, jumps, ended, keys, nothing))
    assert "while" in traced.lower(lowering_platforms=(platform,)).as_text()


# --- who pays ---------------------------------------------------------------------------------------------------------


def counted(seen, x):
    """x, with a note in ``seen`` of every member that comes by when the program runs."""

    def note(x):
        seen.append(np.asarray(x))
        return np.asarray(x)

    return jax.pure_callback(note, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="sequential")


def paying(firing):
    """Groups of eight, the last one full too."""
    return -(-firing // 8) * 8


@patterns
@pytest.mark.parametrize("n", [8, 9, 64])
def test_who_does_not_fire_does_not_look(n, pattern):
    seen, fires = [], PATTERNS[pattern](n)
    branch = lambda fires, x: where_it_fires(fires, lambda x: -counted(seen, x), x)  # noqa: E731
    found = jax.jit(jax.vmap(branch))(fires, jnp.arange(n))
    np.testing.assert_array_equal(found, jnp.where(fires, -jnp.arange(n), jnp.arange(n)))
    assert len(seen) == paying(int(np.sum(fires)))
    assert set(np.ravel(seen)) == set(np.flatnonzero(fires))


@pytest.mark.parametrize("fires", [False, True])
def test_one_alone_branches(fires):
    seen = []
    x = jax.jit(lambda fires, x: where_it_fires(fires, lambda x: -counted(seen, x), x))(fires, jnp.ones(()))
    assert (float(x), len(seen)) == ((-1.0, 1) if fires else (1.0, 0))


@pytest.mark.parametrize("firing", [0, 1, 9, 20])
def test_seeds_of_a_flow_that_do_not_fire_draw_no_noise(firing):
    seen, n = [], 20
    trigger = gradient_trigger(eps=0.1, k_thres=5, f_thres=0.0)
    noise = lambda key, F, mu, step: counted(seen, 1 - mu.points)  # noqa: E731
    method = flow(gradient, 0.1, noise, trigger)
    F = lambda mu: mu.weights @ jnp.sum(mu.points**2, axis=-1) / 2  # noqa: E731
    far = (jnp.arange(n) >= firing).astype(jnp.float32)
    init = jax.vmap(lambda x: method.init(KEY, F, Particles.uniform(jnp.full((2, 1), x))))
    state, info = jax.jit(jax.vmap(lambda state: method.step(KEY, F, state)))(init(far))
    assert (int(np.sum(info.perturbed)), len(seen)) == (firing, paying(firing))
    np.testing.assert_allclose(state.mu.points[:, 0, 0], 0.9, rtol=1e-6)


@pytest.mark.parametrize("firing", [0, 1, 9, 20])
def test_seeds_of_an_optimizer_that_do_not_fire_draw_no_noise(firing):
    seen, n = [], 20
    trigger = gradient_trigger(eps=0.1, k_thres=5, f_thres=0.0)
    noise = lambda key, f, x, step: counted(seen, 1 - x)  # noqa: E731
    optimizer = perturb_at_saddle(optax.sgd(0.1), noise, trigger, key=KEY)
    f = lambda x: jnp.sum(x**2) / 2  # noqa: E731

    @jax.jit
    @jax.vmap
    def step(x):
        found: Any = optimizer.update(x, optimizer.init(x), x, value=f(x), grad=x, value_fn=f)
        updates, state = found
        return x + updates, state.perturbed

    x, perturbed = step((jnp.arange(n) >= firing).astype(jnp.float32)[:, None])
    assert (int(np.sum(perturbed)), len(seen)) == (firing, paying(firing))
    np.testing.assert_allclose(x, 0.9, rtol=1e-6)


# --- flows and optimizers ---------------------------------------------------------------------------------------------

JUMPS = {"eps": 0.05, "eta_p": 0.1, "k_thres": 3, "f_thres": 0.0}
METHODS = {
    "pwgf": pwgf(0.1, **JUMPS),
    "isotropic": isotropic_pwgf(0.1, **JUMPS),
    "certified": certified_pwgf(0.1, delta=0.1, depth=4, **JUMPS),
}


def seed(key, fires, dtype, plain):
    """A functional of the seed's own data, a plain closure or a pytree, and a start: a saddle if it fires."""
    inputs, targets, start = jax.random.normal(key, (3, 4, 3), dtype)
    F = functionals.matrix_factorization(inputs[:, :2], targets[:, :1])
    return (lambda mu: F(mu)) if plain else F, Particles.uniform(jnp.where(fires, 0, 1 + jnp.abs(start)))


@pytest.mark.parametrize(
    ("name", "plain", "n", "dtype"),
    [
        ("isotropic", True, 9, jnp.float64),
        ("certified", True, 9, jnp.float32),
        pytest.param("pwgf", False, 64, jnp.float32, marks=pytest.mark.slow),
    ],
    indirect=["dtype"],
)
def test_a_step_of_seeds_at_once_is_the_step_of_each(name, plain, n, dtype, tolerance):
    method = METHODS[name]

    def step(key, fires):
        F, mu = seed(key, fires, dtype, plain)
        return method.step(key, F, method.init(key, F, mu))

    together, alone = jax.jit(jax.vmap(step)), jax.jit(lambda *arguments: jax.lax.map(lambda a: step(*a), arguments))
    keys = jax.random.split(KEY, n)
    for pattern in PATTERNS.values():
        fires = pattern(n)
        found, expected = together(keys, fires), alone(keys, fires)
        state, info = expected
        np.testing.assert_array_equal(info.perturbed | (state.status == Status.certified), fires)
        assert_same(found, expected, tolerance(dtype, 10))


# --- where everybody looks --------------------------------------------------------------------------------------------


def test_members_may_talk_across_the_batch():
    branch = lambda fires, x: where_it_fires(fires, lambda x: jax.lax.pmean(x, "workers"), x)  # noqa: E731
    fires, x = jnp.asarray([False, True, False, True]), jnp.asarray([1.0, 2.0, 3.0, 6.0])
    np.testing.assert_array_equal(jax.vmap(branch, axis_name="workers")(fires, x), [1, 3, 3, 3])
    np.testing.assert_array_equal(jax.vmap(branch, (None, 0), axis_name="workers")(jnp.asarray(True), x), [3, 3, 3, 3])


def test_it_is_differentiable_as_a_cond_is(tolerance):
    x, fires = jnp.linspace(0.1, 1, 9, dtype=jnp.float64), PATTERNS["some"](9)

    def branch(x, fires):  # x comes in through the state and through what is closed over
        return where_it_fires(fires, lambda state: (jnp.sin(state[0]) * x, state[1] + 1), (x, jnp.int32(0)))[0]

    slope = jnp.where(fires, jnp.cos(x) * x + jnp.sin(x), 1)
    bend = jnp.where(fires, 2 * jnp.cos(x) - jnp.sin(x) * x, 0)
    together = lambda x: jnp.sum(jax.vmap(branch)(x, fires))  # noqa: E731
    for found in (jax.vmap(jax.grad(branch))(x, fires), jax.grad(together)(x), jax.jit(jax.grad(together))(x)):
        np.testing.assert_allclose(found, slope, atol=tolerance(jnp.float64))
    forward = jax.jvp(jax.vmap(branch), (x, fires), (jnp.ones_like(x), np.zeros(9, jax.dtypes.float0)))[1]
    np.testing.assert_allclose(forward, slope, atol=tolerance(jnp.float64))
    np.testing.assert_allclose(jax.vmap(jax.hessian(branch))(x, fires), bend, atol=tolerance(jnp.float64))
    assert jax.grad(branch)(x[1], fires[1]) == 1


@pytest.mark.parametrize(
    ("look", "message"),
    [
        (lambda x: (x, x), "look makes .* return the same tree"),
        (lambda x: x.astype(jnp.int32), "branches must have equal output types"),
        (lambda x: jnp.ones(3), "branches must have equal output types"),
    ],
    ids=["structure", "dtype", "shape"],
)
def test_a_look_that_changes_the_type_of_the_state_is_refused(look, message):
    with pytest.raises(TypeError, match=message):
        where_it_fires(jnp.asarray(True), look, jnp.ones(2))
