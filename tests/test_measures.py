import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwgf_jax import Particles, inner, norm
from pwgf_jax.measures import norm_squared


def points_of(shape, dtype, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def fields(seed, dtype, count=5):
    """Fields of every shape that points may have, on the same number of particles."""
    return {
        "array": points_of((count, 3), dtype, seed),
        "lattice": points_of((count, 8, 3), dtype, seed),
        "numbers": {"x": points_of((count,), dtype, seed)},
        "dict": {"a": points_of((count, 2), dtype, seed), "w": points_of((count, 4), dtype, seed + 100)},
    }


SHAPES = ["array", "lattice", "numbers", "dict"]


def weights_of(dtype, count=5):
    raw = np.arange(count, dtype=float)  # the first weight is zero
    return jnp.asarray(raw / raw.sum(), dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_uniform_has_equal_weights_of_sum_one_in_the_points_dtype(shape, dtype):
    mu = Particles.uniform(fields(0, dtype)[shape])
    assert mu.size == 5
    assert mu.weights.dtype == dtype
    np.testing.assert_allclose(mu.weights, 0.2, rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Particles.uniform(jnp.zeros((3, 2), int)), TypeError, r"points is int\d+; give a floating array"),
        (
            lambda: Particles.uniform({"a": jnp.ones((3, 2)), "w": jnp.ones((4, 2))}),
            ValueError,
            r"points\['w'\].*3 part",
        ),
        (lambda: Particles.uniform(jnp.zeros((0, 2))), ValueError, "no particles"),
        (lambda: Particles.uniform({}), ValueError, "no particles"),
        (lambda: Particles.uniform(jnp.ones(5)), ValueError, r"a vector of 5 numbers; give x\[:, None\].*x\[None\]"),
        (lambda: Particles.uniform(jnp.ones(())), ValueError, "the points are 1 single numbers; give an array"),
        (lambda: Particles(jnp.ones((3, 2)), jnp.ones((3, 1))), ValueError, "one weight per particle"),
        (lambda: Particles(jnp.ones((3, 2)), jnp.ones(())), ValueError, "one weight per particle"),
        (lambda: Particles(jnp.ones((3, 2)), jnp.ones(4)), ValueError, r"shape \(3, 2\) but there are 4 particles"),
        (lambda: Particles({"a": "text"}, jnp.ones(3)), TypeError, r"points\['a'\] is str"),
        (lambda: Particles([[1.0, 2.0]], jnp.ones(1)), TypeError, "is float; give a floating array"),
        (lambda: Particles(jnp.ones((2, 1)), [0.5, 0.5]), TypeError, "weights is list; give a floating array"),
        (lambda: Particles(jnp.ones((2, 1)), jnp.ones(2, int)), TypeError, r"weights is int\d+; give a floating"),
    ],
)
def test_impossible_particles_are_refused_by_name(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize("shape", SHAPES)
def test_particles_are_a_pytree_of_points_and_weights(shape):
    mu = Particles.uniform(fields(0, jnp.float32)[shape])
    leaves, structure = jax.tree.flatten(mu)
    again = jax.tree.unflatten(structure, leaves)
    assert isinstance(again, Particles)
    assert len(leaves) == len(jax.tree.leaves(mu.points)) + 1
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(mu)]
    assert paths[-1] == ".weights"
    assert all(path.startswith(".points") for path in paths[:-1])
    through_jit = jax.jit(lambda mu: jax.tree.map(lambda x: 2 * x, mu))(mu)
    assert isinstance(through_jit, Particles)
    np.testing.assert_array_equal(through_jit.weights, 2 * mu.weights)


def test_particles_do_not_change():
    mu = Particles.uniform(jnp.ones((2, 2)))
    with pytest.raises(AttributeError):
        mu.points = jnp.zeros((2, 2))  # pyright: ignore[reportAttributeAccessIssue]


def test_push_forward_moves_points_and_keeps_mass(dtype):
    mu = Particles(fields(0, dtype)["dict"], weights_of(dtype))
    moved = mu.push_forward({"a": jnp.ones((5, 2), dtype), "w": jnp.zeros((5, 4), dtype)})
    np.testing.assert_array_equal(moved.points["a"], mu.points["a"] + 1)
    np.testing.assert_array_equal(moved.points["w"], mu.points["w"])
    np.testing.assert_array_equal(moved.weights, mu.weights)


@pytest.mark.parametrize("shape", SHAPES)
def test_inner_is_the_weighted_sum_over_particles(shape, dtype, tolerance):
    u, v = fields(1, dtype)[shape], fields(2, dtype)[shape]
    mu = Particles(fields(0, dtype)[shape], weights_of(dtype))
    rows = [np.asarray(leaf, np.float64).reshape(5, -1) for leaf in jax.tree.leaves((u, v))]
    half = len(rows) // 2
    products = sum(np.sum(a * b, axis=1) for a, b in zip(rows[:half], rows[half:], strict=True))
    expected = np.asarray(mu.weights, np.float64) @ products
    assert inner(mu, u, v).dtype == dtype
    np.testing.assert_allclose(inner(mu, u, v), expected, atol=tolerance(dtype))
    np.testing.assert_allclose(inner(mu, v, u), expected, atol=tolerance(dtype))
    np.testing.assert_allclose(norm(mu, u) ** 2, norm_squared(mu, u), rtol=tolerance(dtype))
    np.testing.assert_allclose(norm_squared(mu, u), inner(mu, u, u))


@pytest.mark.parametrize("shape", SHAPES)
def test_norms_do_not_change_when_particles_are_split(shape, dtype, tolerance):
    mu, u = Particles(fields(0, dtype)[shape], weights_of(dtype)), fields(1, dtype)[shape]

    def twice(tree):
        return jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), tree)

    share = jnp.asarray([0.1, 0.5, 0.0, 1.0, 0.3], dtype)
    split = Particles(twice(mu.points), jnp.concatenate([share * mu.weights, (1 - share) * mu.weights]))
    np.testing.assert_allclose(norm(split, twice(u)), norm(mu, u), rtol=tolerance(dtype))


def test_a_particle_of_weight_zero_does_not_count(dtype):
    mu, u = Particles(fields(0, dtype)["array"], weights_of(dtype)), fields(1, dtype)["array"]
    assert norm(mu, u) == norm(mu, u.at[0].set(100.0))


def test_everything_maps_over_a_leading_axis(dtype, tolerance):
    stacked = jax.vmap(Particles)(points_of((3, 5, 2), dtype), jnp.tile(weights_of(dtype)[None], (3, 1)))
    u = points_of((3, 5, 2), dtype, 1)
    assert stacked.size == 5
    norms = jax.vmap(lambda mu, u: norm(mu.push_forward(u), u))(stacked, u)
    singly = [norm(jax.tree.map(lambda x, i=i: x[i], stacked), u[i]) for i in range(3)]
    np.testing.assert_allclose(norms, singly, rtol=tolerance(dtype))
