"""What every optax transform keeps: one table of transforms, the same laws for each."""

import inspect
from typing import Any, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pwgf_jax import transforms
from pwgf_jax.transforms import masked
from tests.transforms.driving import (
    EXTRAS,
    FACTORIES,
    NEEDS_NOTHING,
    TRANSFORMS,
    near_the_saddle,
    one,
    terms,
    well,
)

SIBLINGS = {"neon spider", "zo sgd", "zo scsg"}  # made of what "zo spider" is made of


def all_but(slow):
    """All of them, those that are named being slow."""
    marks = {name: [pytest.mark.slow] if name in slow else [] for name in TRANSFORMS}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=marks[name]) for name in TRANSFORMS])


every_transform = all_but(SIBLINGS)
quick_transforms = all_but(TRANSFORMS.keys() - {"pgd", "cubic newton", "error feedback"})


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def path(transform, x):
    # scan refuses a carry whose shapes, dtypes or weak types change
    step = lambda carry, _: (one(transform, *carry, batch_stats=1.0), None)  # noqa: E731
    return jax.lax.scan(step, (x, transform.init(x)), length=6)[0]


# Combinators of other transformations, with tests of their own.
COMBINATORS = {"masked", "transformation", "average_over"}


def test_every_public_transform_is_in_the_table():
    named = {name: getattr(transforms, name) for name in transforms.__all__}
    hints = {name: get_type_hints(thing) for name, thing in named.items() if inspect.isfunction(thing)}
    kinds = (optax.GradientTransformationExtraArgs, optax.GradientTransformation)
    public = {name for name, hint in hints.items() if hint.get("return") in kinds} - COMBINATORS
    assert public == {make.__name__ if make.__module__.startswith("pwgf_jax") else "perturb_at_saddle"
                      for make, _, _ in FACTORIES.values()}  # fmt: skip


@every_transform
def test_laws(name):
    """Fixed shapes and dtypes under scan; unknown extras ignored; one compilation; finite moves; missing ones named.

    Parameters and state may be donated, and what the transform was made with survives that.
    """
    transform = TRANSFORMS[name]()

    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        x = near_the_saddle(jnp.float64)
        end, state = jax.eval_shape(lambda x: path(transform, x), x)
        assert shapes(end) == shapes(x)
        assert shapes(jax.eval_shape(transform.init, jax.eval_shape(lambda: x))) == shapes(state)

        step: Any = jax.jit(lambda x, state: one(transform, x, state), donate_argnums=(0, 1))
        start, ends = near_the_saddle(jnp.float32), []
        for _ in range(2):
            end = near_the_saddle(jnp.float32)
            state, moved = transform.init(end), False
            for _ in range(6):
                end, state = step(end, state)
                assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(end))
                moved |= bool(np.any(end["x"] != start["x"]))
            assert moved
            ends.append(end)
        assert step._cache_size() == 1
        assert shapes(end) == shapes(start)
        np.testing.assert_array_equal(ends[0]["x"], ends[1]["x"])
        if name not in NEEDS_NOTHING:
            with pytest.raises(TypeError, match="missing"):
                transform.update(start, transform.init(start), start)


@every_transform
def test_leaves_of_two_dtypes_keep_theirs(name):
    """With a strict user's JAX, which promotes nothing: what has to be one vector is promoted by the transform."""
    transform = TRANSFORMS[name]()
    for first in (jnp.float32, jnp.bfloat16):
        x = near_the_saddle(first, jnp.bfloat16)
        end, state = jax.eval_shape(lambda x: path(transform, x), x)
        assert shapes(end) == shapes(x)
        assert shapes(state) == shapes(transform.init(x))
        sums = [leaf.dtype for leaf in jax.tree.leaves(state) if leaf.shape == ()]
        assert jnp.bfloat16 not in sums


@all_but(TRANSFORMS.keys() - {"error feedback"})
def test_half_precision_moves_as_single_does(name):
    """Pure bfloat16 parameters."""
    transform = TRANSFORMS[name]()
    run = jax.jit(lambda x: path(transform, x))
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        x = jax.tree.map(lambda leaf: leaf + 0.25, near_the_saddle(jnp.bfloat16))
        end, _ = run(x)
        expected, _ = run(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), x))
    assert shapes(end) == shapes(x)
    for leaf in ("x", "y"):
        assert np.any(end[leaf] != x[leaf])
        np.testing.assert_allclose(end[leaf].astype(jnp.float32), expected[leaf], rtol=0.01, atol=0.04)


TRAINED = {"x": True, "y": False, "count": False}


def partly(x):
    """The well of x, y held; ``count`` is no number that could be trained."""
    return {**x, "count": jnp.asarray(3)}


def on_part(transform, steps=4, frozen=True):
    """x after some steps on the well, the rest frozen: inside the parameters, or in the functions by hand."""
    whole = near_the_saddle(jnp.float64)

    def fill(part):
        return {"x": part["x"], "y": whole["y"]}

    @jax.jit
    def step(x, state):
        value, grad = jax.value_and_grad(lambda x: well(fill(x)))({"x": x["x"]})
        if frozen:
            grad = {**grad, "y": jnp.zeros_like(x["y"]), "count": None}
        extras = {
            "value_fn": lambda x: well(fill(x)),
            "components": lambda x, i: terms(fill(x), i),
            "grad_fn": lambda x, i: {**x, "x": jax.grad(lambda x: jnp.mean(terms(fill(x), i)))({"x": x["x"]})["x"]},
        }
        updates, state = transform.update(grad, state, x, value=value, grad=grad, **extras)
        moved = jax.tree.map(lambda u, leaf: leaf if u is None else leaf + u, updates, x, is_leaf=lambda u: u is None)
        return moved, state

    x = partly(whole) if frozen else {"x": whole["x"]}
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        state = transform.init(x)
        for _ in range(steps):
            x, state = step(x, state)
    return x


@quick_transforms
def test_under_a_mask_it_does_to_the_rest_what_it_does_alone_and_what_is_frozen_stays(name):
    transform = TRANSFORMS[name]()
    found = on_part(masked(transform, TRAINED))
    np.testing.assert_allclose(found["x"], on_part(transform, frozen=False)["x"], rtol=1e-9, atol=1e-12)
    start = partly(near_the_saddle(jnp.float64))
    assert np.any(found["x"] != start["x"])
    for leaf in ("y", "count"):
        np.testing.assert_array_equal(found[leaf], start[leaf])


@every_transform
def test_optax_masks_do_as_ours_or_name_it(name):
    """What needs a function of all parameters cannot have it under ``optax.masked`` and ``multi_transform``."""
    transform = TRANSFORMS[name]()
    mask, labels = {"x": True, "y": False}, {"x": "ours", "y": "frozen"}
    x, grad = near_the_saddle(jnp.float64), {"x": jnp.ones(2), "y": jnp.ones(1)}
    for wrapped in (
        optax.masked(transform, mask),
        optax.multi_transform({"ours": transform, "frozen": optax.identity()}, labels),
    ):
        if name in NEEDS_NOTHING:
            pair = (wrapped, masked(transform, mask))
            updates, expected = jax.jit(lambda pair=pair: [one_update(each, grad, x)[0] for each in pair])()
            np.testing.assert_array_equal(updates["x"], expected["x"])
        else:
            with pytest.raises(TypeError, match=r"use pwgf_jax\.transforms\.masked\(transform, mask\)"):
                jax.eval_shape(lambda wrapped=wrapped: one_update(wrapped, grad, x))


def one_update(transform, grad, x) -> Any:
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        return transform.update(grad, transform.init(x), x, value=jnp.ones(()), grad=grad, **EXTRAS)


@every_transform
def test_what_is_no_real_number_is_refused_by_name_and_none_is_left_alone(name):
    transform = TRANSFORMS[name]()
    if name == "scale by measure":  # it multiplies, whatever it is given
        return
    for leaf, kind in ((jnp.asarray(3), "int"), (jnp.ones(2, complex), "complex"), (jnp.tanh, "")):
        with pytest.raises(TypeError, match=rf"params\['other'\] is .*{kind}.*give real floating-point parameters"):
            transform.init({**near_the_saddle(jnp.float64), "other": leaf})
    x = {**near_the_saddle(jnp.float64), "other": None}
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        end, _ = jax.eval_shape(lambda x: path(transform, x), x)
    assert shapes(end) == shapes(x)


@every_transform
def test_a_chain_with_adam_under_a_schedule_passes_the_extras_on(name):
    transform = optax.chain(TRANSFORMS[name](), optax.adam(optax.exponential_decay(0.1, 10, 0.5)))
    x = near_the_saddle(jnp.float32)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        end, _ = jax.eval_shape(lambda x: path(transform, x), x)
    assert shapes(end) == shapes(x)
