"""Sums over parameters of any dtype, and what is refused at their leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pwgf_jax import arguments, trees
from pwgf_jax.transforms import average_over, dimer, error_feedback, finite_sums, random_k, ssrgd, top_k

KEY = jax.random.key(0)


def test_sums_over_half_precision_are_those_of_single():
    """In bfloat16 a sum of 1000 ones would stop at 256."""
    x = {"a": jnp.ones(1000, jnp.bfloat16), "b": jnp.ones((), jnp.bfloat16)}
    assert trees.dtype(x) == trees.norm(x).dtype == jnp.float32
    np.testing.assert_allclose(trees.norm(x), np.sqrt(1001), rtol=1e-6)
    assert trees.size(x) == 1001


@pytest.mark.parametrize("shape", [(), (5, 2), (7, 3, 2), (4, 0)])
def test_white_noise_is_what_jax_draws_in_that_shape(shape, dtype):
    drawn = trees.white(KEY, jnp.ones(shape, dtype))
    np.testing.assert_array_equal(drawn, jax.random.normal(jax.random.split(KEY, 1)[0], shape, dtype))


def test_one_vector_and_back_keeps_shapes_dtypes_and_values():
    x = {"a": jnp.arange(6.0, dtype=jnp.bfloat16).reshape(2, 3), "b": jnp.asarray(0.1, jnp.float64), "c": None}
    flat, unravel = trees.ravel(x)
    assert flat.dtype == jnp.float64
    back = unravel(flat)
    assert jax.tree.structure(back) == jax.tree.structure(x)
    for before, after in zip(jax.tree.leaves(x), jax.tree.leaves(back), strict=True):
        assert (before.dtype, before.shape) == (after.dtype, after.shape)
        np.testing.assert_array_equal(before, after)
    assert trees.ravel({"a": optax.MaskedNode()})[0].shape == (0,)


def test_counters_do_not_turn_negative():
    most = 2**31 - 1
    count = lambda n: jnp.asarray(n, jnp.int32)  # noqa: E731
    assert int(finite_sums.total(count(most - 1), count(1))) == most
    assert int(finite_sums.total(count(most), count(most))) == most
    assert int(finite_sums.times(count(2**30), 2)) == most
    assert int(finite_sums.times(count(5), 7)) == 35
    assert int(finite_sums.times(count(0), 2**40)) == 0


@pytest.mark.parametrize("number", [0, -1, 1.5, 2**31, 2**63, 10**400, float("nan"), float("inf")])
def test_what_is_no_whole_number_of_32_bits_is_refused(number):
    with pytest.raises(ValueError, match=r"ssrgd: epoch=.*; give a whole number, 1 to 2147483647"):
        arguments.whole("ssrgd: epoch", number)


def test_a_traced_whole_number_names_what_keeps_it_from_being_traced():
    with pytest.raises(TypeError, match=r'ssrgd: epoch is traced.*static_args="epoch"'):
        jax.jit(lambda n: arguments.whole("ssrgd: epoch", n))(3)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: dimer(separation=0.1, rotation_rate=0.1, every=n, strength=1.0, key=KEY),
        lambda n: top_k(n),
        lambda n: random_k(n),
        lambda n: error_feedback(top_k(1), reset_every=n, key=KEY),
        lambda n: ssrgd(0.1, size=n, batch=1, epoch=1, radius=1.0, eps=0.1, f_thres=0.1, k_thres=1, key=KEY),
        lambda n: ssrgd(0.1, size=2, batch=1, epoch=1, radius=1.0, eps=0.1, f_thres=0.1, k_thres=n, key=KEY),
    ],
)
def test_integers_beyond_32_bits_are_refused_before_anything_is_computed(make):
    with pytest.raises(ValueError, match="=1000000000000000000000; give a whole number"):
        make(10**21)


def test_workers_average_whatever_else_is_passed():
    transform = average_over("workers")

    def step(g):
        return transform.update(g, transform.init(g), g, value=1.0, grad=g, value_fn=jnp.sum, batch_stats=None)[0]

    np.testing.assert_array_equal(jax.vmap(step, axis_name="workers")(jnp.asarray([1.0, 3.0])), [2.0, 2.0])
