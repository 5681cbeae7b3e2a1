"""Sums in tiles are the sums, in every derivative; they store nothing and compute nothing more often than they must."""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwgf_jax import Particles, first_variation, memory, trees, wasserstein_hessian
from pwgf_jax.calculus import value_and_wasserstein_gradient
from pwgf_jax.functionals import (
    icfl,
    matrix_factorization,
    mean_field_regression,
    small_networks,
    student_teacher,
)

NETWORKS = {
    "regression": mean_field_regression,
    "factorization": lambda z, y, **options: matrix_factorization(z, y, prefactor=1.5, **options),
    "icfl": lambda z, y, **options: icfl(z, y, ridge=0.1, **options),
}


def some(kinds, quick):
    """All of them, those that are not named being slow."""
    return [pytest.param(kind, marks=[] if kind in quick else [pytest.mark.slow]) for kind in kinds]


def make_tiles_small(monkeypatch, numbers):
    """So that small sums take many."""
    monkeypatch.setattr(memory, "_TILE_BYTES", {"cpu": 8 * numbers})
    monkeypatch.setattr(memory, "FEWEST_ROWS", 7)


def problem(kind: str, particles: int, data: int) -> tuple[Any, Particles, Any]:
    keys = jax.random.split(jax.random.key(3), 5)
    z = jax.random.normal(keys[0], (data, 3), jnp.float64)
    weights = jax.nn.softmax(jax.random.normal(keys[4], (particles,), jnp.float64))
    if kind == "student_teacher":
        mu = small_networks(keys[1], particles, 3, dtype=jnp.float64)
        F = student_teacher(z, jnp.ones((data, 1)))
        points = mu.points
    else:
        F = NETWORKS[kind](z, jax.random.normal(keys[1], (data, 2), jnp.float64))
        points = jax.random.normal(keys[2], (particles, 5), jnp.float64)
    v = jax.tree.map(lambda leaf: jax.random.normal(keys[3], leaf.shape, leaf.dtype), points)
    return F, Particles(points, weights), v


def everything(F: Any, mu: Particles, v: Any) -> dict[str, Any]:
    """The derivatives that the library takes, and two more."""

    def of_points(points):
        return F(mu.moved_to(points))

    def along(points):
        return trees.inner(jax.grad(of_points)(points), v)

    found = {"value": F(mu), "gradient": value_and_wasserstein_gradient(F, mu)[1]}
    found |= {part: wasserstein_hessian(F, mu, part)(v) for part in ("integral", "local", "full")}
    found["jvp"] = jax.jvp(of_points, (mu.points,), (v,))[1]
    found["reverse over reverse"] = jax.grad(along)(mu.points)
    found["weights"] = jax.grad(lambda w: F(Particles(mu.points, w)))(mu.weights)
    found["variation"] = first_variation(F, mu)(mu.points)
    found["data"] = jax.grad(lambda F: F(mu), allow_int=True)(F)
    found["both"] = jax.jvp(lambda F, x: F(mu.moved_to(x)), (F, mu.points), (F, v))[1]
    found["third"] = jax.jvp(jax.grad(along), (mu.points,), (v,))[1]
    return found


CASES = {"tiles of data": (12, 70, 840), "tiles of particles": (50, 23, 100), "one pass": (50, 23, 840)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", some([*NETWORKS, "student_teacher"], {"factorization", "icfl"}))
def test_tiled_equals_whole(kind, case, monkeypatch):
    particles, data, numbers = CASES[case]
    make_tiles_small(monkeypatch, numbers)
    F, mu, v = problem(kind, particles, data)
    tiled = jax.jit(everything)(F, mu, v)
    monkeypatch.setattr(memory, "_TILE_BYTES", {"cpu": 2**40})
    whole = jax.jit(lambda *given: everything(*given))(F, mu, v)
    for name in whole:
        jax.tree.map(
            lambda a, b, name=name: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12, err_msg=name),
            jax.tree.leaves(tiled[name]),
            jax.tree.leaves(whole[name]),
        )


@pytest.mark.parametrize("kind", some([*NETWORKS, "student_teacher"], {"factorization"}))
def test_tiled_under_vmap(kind, monkeypatch):
    make_tiles_small(monkeypatch, 200)
    F, mu, v = problem(kind, 20, 50)
    three = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, -leaf]), (mu.points, v))

    @jax.jit
    def product(points, v):
        return wasserstein_hessian(F, mu.moved_to(points), "full")(v)

    together = jax.jit(jax.vmap(product))(*three)
    for i in range(3):
        alone = product(*jax.tree.map(lambda leaf, i=i: leaf[i], three))
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-10, atol=1e-12), together, alone)


def activations(function: Any, *arguments: Any) -> Counter:
    """How often each elementary function is applied to how many numbers, loops counted as often as they run."""
    counted: Counter = Counter()

    def count(program: Any, times: int) -> None:
        for equation in program.eqns:
            counted[equation.primitive.name] += times * equation.outvars[0].aval.size
            inner = times * equation.params["length"] if equation.primitive.name == "scan" else times
            for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
                if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                    count(getattr(value, "jaxpr", value), inner)

    count(jax.make_jaxpr(function)(*arguments).jaxpr, 1)
    return counted


@pytest.mark.parametrize(
    ("kind", "sizes", "passes"),
    [
        ("regression", (64, 64), 1),
        ("factorization", (64, 64), 1),
        ("icfl", (64, 64), 2),
        ("regression", (256, 8), 2),
    ],
)
def test_value_and_gradient_pass_once_where_the_loss_is_a_sum(kind, sizes, passes, monkeypatch):
    monkeypatch.setattr(memory, "_TILE_BYTES", {"cpu": 8 * 64 * 16})
    monkeypatch.setattr(memory, "FEWEST_ROWS", 8)
    F, mu, v = problem(kind, *sizes)
    assert activations(lambda mu: value_and_wasserstein_gradient(F, mu), mu)["tanh"] == passes * mu.size * sizes[1]
    # A product makes everything again rather than store it, and no more often than the gradient.
    monkeypatch.setattr(memory, "_KEPT_BYTES", {"cpu": 1})

    def product(mu, v):
        return jax.jvp(lambda x: value_and_wasserstein_gradient(F, mu.moved_to(x))[1], (mu.points,), (v,))[1]

    assert jax.jit(product).lower(mu, v).as_text().count("stablehlo.tanh") == passes


@pytest.mark.parametrize("kind", some(NETWORKS, {"factorization", "icfl"}))
@pytest.mark.parametrize("sizes", [(8000, 8000), (100_000, 8000), (400, 1_000_000)], ids=str)
def test_large_sums_are_not_stored(kind, sizes):
    """What XLA sets aside for a step and for products at sizes whose activations take 256 MB to 3.2 GB."""
    particles, data = sizes
    z, y = jax.ShapeDtypeStruct((data, 20), jnp.float32), jax.ShapeDtypeStruct((data, 5), jnp.float32)
    x = jax.ShapeDtypeStruct((particles, 25), jnp.float32)

    def of(function):
        def call(z, y, x, v):
            mu = Particles.uniform(x)
            return function(NETWORKS[kind](z, y), mu, v)

        compiled: Any = jax.jit(call).lower(z, y, x, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def products(F, mu, v):
        H = wasserstein_hessian(F, mu, "full")
        return jax.lax.fori_loop(0, 3, lambda _, v: H(v), v)

    given = 4 * 25 * (particles + data)  # copies of these are O(N + M)
    assert of(lambda F, mu, v: value_and_wasserstein_gradient(F, mu)) < 20e6 + 3 * given
    assert of(lambda F, mu, v: wasserstein_hessian(F, mu, "full")(v)) < 40e6 + 4 * given
    assert of(products) < 40e6 + 6 * given


def test_a_linear_map_is_stored_where_it_is_small():
    x = jnp.ones(10)
    small = jax.make_jaxpr(lambda v: memory.linearized(jnp.tanh, x)(v))(x)
    assert "tanh" not in str(small.jaxpr.eqns[-1])


def test_a_linear_map_is_made_again_where_it_is_large(monkeypatch):
    monkeypatch.setattr(memory, "_KEPT_BYTES", {"cpu": 100})
    big = jnp.arange(100.0)

    def f(x):
        return big @ jnp.tanh(big[:, None] * x[None])

    def looped(x):
        linear = memory.linearized(f, x)
        return jax.lax.fori_loop(0, 3, lambda _, v: linear(v), x)

    x = jnp.linspace(0.0, 1.0, 5)
    dense = jax.jacfwd(f)(x)
    np.testing.assert_allclose(looped(x), np.linalg.matrix_power(dense, 3) @ x, rtol=1e-10)
    (loop,) = (each for each in jax.make_jaxpr(looped)(x).eqns if each.primitive.name in ("while", "scan"))
    assert "tanh" in str(loop)
    monkeypatch.setattr(memory, "_KEPT_BYTES", {"cpu": 2**20})
    (loop,) = (each for each in jax.make_jaxpr(lambda x: looped(x))(x).eqns if each.primitive.name in ("while", "scan"))
    assert "tanh" not in str(loop)
    np.testing.assert_allclose(looped(x), np.linalg.matrix_power(dense, 3) @ x, rtol=1e-10)


def test_data_that_a_function_holds_do_not_count_as_stored(monkeypatch):
    monkeypatch.setattr(memory, "_KEPT_BYTES", {"cpu": 1000})
    held = jnp.ones((10_000,))

    def held_twice(x):
        return jax.lax.map(memory.linearized(lambda x: jnp.sum(held) * x**3, x), x[None])

    program = jax.make_jaxpr(held_twice)(jnp.ones(3))
    (loop,) = (each for each in program.eqns if each.primitive.name == "scan")
    assert "integer_pow" not in str(loop)


def test_sums_in_half_precision_are_added_in_single():
    rows = jnp.full((4096, 1), 1.0, jnp.bfloat16)
    total = memory.sum_over(lambda x: jnp.sum(x, axis=0), rows, 8)
    assert total.dtype == jnp.bfloat16
    assert float(total[0]) == 4096.0
    mean = memory.mean_over(lambda shift, x: x[:, 0] + shift, 96, jnp.bfloat16(0), rows[:3000])
    assert mean.dtype == jnp.bfloat16
    assert float(mean) == 1.0


@pytest.mark.parametrize("size", [1, 3, 5, 64])
def test_rows_that_do_not_divide(size):
    x = jnp.arange(1.0, 12.0)[:, None] * jnp.ones((1, 2))
    np.testing.assert_array_equal(memory.by_rows(lambda x: x**2, x, size), x**2)
    np.testing.assert_allclose(memory.sum_over(lambda x: jnp.sum(x, axis=0), x, size), jnp.sum(x, axis=0))

    def losses(shift, x):
        return jnp.cos(x[:, 0] + shift)

    np.testing.assert_allclose(memory.mean_over(losses, size, 1.0, x), jnp.mean(losses(1.0, x)))
