"""Sums, factors and confinements of functionals against the same combination written as a plain function."""

from dataclasses import dataclass

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from pwgf_jax import (
    Particles,
    first_variation,
    hessian_matrix,
    run,
    value_and_wasserstein_gradient,
    wasserstein_gradient,
    wgf,
)
from pwgf_jax.calculus import integral_product
from pwgf_jax.forms import derivative, summands
from pwgf_jax.functionals import (
    Combinable,
    functional,
    icfl,
    interaction,
    matrix_factorization,
    mean_field_regression,
    mmd,
    potential,
    student_teacher,
)
from pwgf_jax.kernels import gaussian

DRAW = np.random.default_rng(3)
M = 5
INPUTS, TARGETS = jnp.asarray(DRAW.normal(size=(M, 2))), jnp.asarray(DRAW.normal(size=(M, 1)))
MU = Particles(jnp.asarray(DRAW.normal(size=(4, 3))), jnp.asarray([0.4, 0.1, 0.2, 0.3]))
NU = Particles(jnp.asarray(DRAW.normal(size=(2, 3))), jnp.asarray([0.7, -0.2]))
QUERIES, FIELD = jnp.asarray(DRAW.normal(size=(2, 3))), jnp.asarray(DRAW.normal(size=(4, 3)))


def plain(mu):
    """No form declared, and all derivatives alive."""
    return jnp.sum(jnp.sin(mu.weights @ mu.points)) ** 3 + jnp.sum(mu.weights @ mu.points**2) ** 2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Own(Combinable):
    """A functional of a user's own, with a leaf and without a form."""

    level: jax.Array

    def __call__(self, mu):
        return jnp.cos(mu.weights @ mu.points[:, 0] - self.level)


ATOMS = {
    "moments": matrix_factorization(INPUTS, TARGETS),
    "pairs": mmd(QUERIES, gaussian(1.3)),
    "interaction": interaction(lambda x, y: jnp.sum(x * y) ** 2),
    "linear": potential(lambda x: jnp.sum(jnp.sin(x)) * x[0]),
    "plain": plain,
    "own": Own(jnp.asarray(0.3)),
    "confinement": lambda mu: mu.weights @ jnp.sum(mu.points**2, axis=1) / 2,
}


def combination(factors):
    """The oracle: the linear combination as a user would write it, no form to be seen."""
    return lambda mu: sum((c * ATOMS[name](mu) for name, c in factors.items()), jnp.zeros(()))


def derivatives(F, mu):
    value, gradient = value_and_wasserstein_gradient(F, mu)
    return {
        "value": value,
        "gradient": gradient,
        "first variation": first_variation(F, mu)(QUERIES),
        "gradient at queries": wasserstein_gradient(F, mu, at=QUERIES),
        "product at queries": integral_product(F, mu, FIELD, at=QUERIES),
    } | {part: hessian_matrix(F, mu, part) for part in ("integral", "local", "full")}


def agree(found, expected):
    for name, value in expected.items():
        scale = 1 + np.max(np.abs(value))
        np.testing.assert_allclose(found[name], value, atol=1e-12 * scale, err_msg=name)


EXPRESSIONS = {
    "moments": (
        lambda a: (a["moments"] + 2.0 * a["linear"]).confined(0.3),
        {"moments": 1.0, "linear": 2.0, "confinement": 0.3},
    ),
    "mixed": (
        lambda a: a["plain"] + (a["moments"] - 0.5 * (a["pairs"] + a["interaction"])),
        {"plain": 1.0, "moments": 1.0, "pairs": -0.5, "interaction": -0.5},
    ),
    "own": (
        lambda a: -2 * (a["own"].confined(jnp.asarray(0.5)) - a["plain"]) + a["linear"],
        {"own": -2.0, "confinement": -1.0, "plain": 2.0, "linear": 1.0},
    ),
}


@pytest.mark.parametrize("name", ["moments", pytest.param("mixed", marks=pytest.mark.slow), "own"])
def test_every_derivative_of_a_sum_is_that_of_the_plain_function(name):
    write, factors = EXPRESSIONS[name]
    agree(*jax.jit(lambda F, mu: (derivatives(F, mu), derivatives(combination(factors), mu)))(write(ATOMS), MU))


@pytest.fixture(scope="module")
def numbers():
    """Of every atom, as a plain function: its value at MU, and its derivative along NU."""
    plainly = {name: lambda mu, F=F: F(mu) for name, F in ATOMS.items()}
    found = jax.jit(lambda mu, nu: {name: (F(mu), derivative(F)(mu, nu)) for name, F in plainly.items()})(MU, NU)
    return {name: np.asarray(both) for name, both in found.items()}


def expressions():
    """Trees of +, -, products with numbers and confinements."""
    number = st.floats(-2, 2).map(lambda c: round(c, 2))
    atoms = st.sampled_from([name for name in ATOMS if name != "confinement"])
    return st.recursive(
        atoms,
        lambda inner: (
            st.tuples(st.sampled_from("+-"), inner, inner)
            | st.tuples(st.sampled_from(["*", "confined"]), inner, number)
        ),
        max_leaves=6,
    )


def made(tree, numbers):
    """The functional that an expression says, and its two numbers by the rules of linear algebra."""
    if isinstance(tree, str):
        return functional(ATOMS[tree]), numbers[tree]
    kind, first, second = tree
    F, f = made(first, numbers)
    if kind == "*":
        return second * F, second * f
    if kind == "confined":
        return F.confined(second), f + second * numbers["confinement"]
    G, g = made(second, numbers)
    return (F + G, f + g) if kind == "+" else (F - G, f - g)


@pytest.mark.slow
@settings(max_examples=30)
@given(tree=expressions())
def test_expressions_follow_linear_algebra(tree, numbers):
    F, expected = made(tree, numbers)
    found = [F(MU), derivative(F)(MU, NU)]
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)
    assert all(len(summands(part)) == 1 for _, part in summands(F))  # no sums in sums
    leaves, structure = jax.tree.flatten(F)
    assert jax.tree.unflatten(structure, leaves)(MU) == F(MU)


def test_factors_are_leaves():
    F, scales = ATOMS["own"], jnp.asarray([0.5, -2.0])
    values = jax.vmap(lambda c: c * F + plain)(scales)  # a stack of functionals
    found = jax.vmap(lambda G: G(MU))(values)
    np.testing.assert_allclose(found, scales * F(MU) + plain(MU), rtol=1e-14)
    slope = jax.grad(lambda c: (c * F).confined(c)(MU))(2.0)
    np.testing.assert_allclose(slope, F(MU) + ATOMS["confinement"](MU), rtol=1e-12)


def test_a_python_factor_keeps_every_dtype():
    F = mean_field_regression(*(x.astype(jnp.float32) for x in (INPUTS, TARGETS)))
    mu = jax.tree.map(lambda x: x.astype(jnp.float32), MU)
    for factor in (2, 2.0, np.float64(2), jnp.asarray(2.0)):
        G = (factor * F).confined(0.1)
        assert jax.eval_shape(wasserstein_gradient, G, mu).dtype == jnp.float32
        assert jax.eval_shape(lambda G, mu: G(mu), G, mu).dtype == jnp.float32


def test_summands_on_the_same_data_see_the_same_rows(key):
    F = mean_field_regression(INPUTS, TARGETS)
    both, twice = (F + F + plain).batch(key, 2), (2 * F + plain).batch(key, 2)
    np.testing.assert_allclose(both(MU), twice(MU), rtol=1e-14)
    np.testing.assert_allclose(both(MU), 2 * F.batch(key, 2)(MU) + plain(MU), rtol=1e-14)
    with pytest.raises(TypeError, match=r"no summand of plain \+ 0.5 \* Confinement\(\) has a batch"):
        functional(plain).confined(0.5).batch(key, 2)


def test_what_has_outputs_predicts_and_a_sum_by_the_one_that_does():
    F, z = mean_field_regression(INPUTS, TARGETS), INPUTS[:2] + 1
    np.testing.assert_array_equal(F.predict(MU, z), F.outputs(MU, z))
    np.testing.assert_array_equal((3 * F).confined(0.1).predict(MU, z), F.outputs(MU, z))
    h = np.asarray(F.outputs(MU, INPUTS))
    readout = np.linalg.solve(h.T @ h / M + 0.1 * np.eye(1), h.T @ np.asarray(TARGETS) / M)
    refitted = icfl(INPUTS, TARGETS, ridge=0.1).predict(MU, z)
    np.testing.assert_allclose(refitted, np.asarray(F.outputs(MU, z)) @ readout, rtol=1e-12)
    with pytest.raises(TypeError, match="predict: 2 summands"):
        (F + F).predict(MU, z)
    assert not hasattr(matrix_factorization(INPUTS, TARGETS), "predict")


def test_what_cannot_be_combined_is_refused():
    F = ATOMS["moments"]
    for write, message in (
        (lambda: F * F, "functionals have no product"),
        (lambda: jnp.ones(3) * F, "give a real number"),
        (lambda: 1j * F, "give a real number"),
        (lambda: "2" * F, "give a real number"),
        (lambda: F + 3.0, "unsupported operand|[Ff]loat"),  # pyright: ignore[reportOperatorIssue]
        (lambda: functional(3.0), "[Ff]loat"),  # pyright: ignore[reportArgumentType]
    ):
        with pytest.raises(TypeError, match=message):
            write()


def test_representations_fit_on_a_line_or_two():
    z = jnp.ones((4000, 8), jnp.float32)
    F = (2.0 * mean_field_regression(z, z[:, :2]) - mmd(z, gaussian(1.0))).confined(0.1)
    assert repr(potential(jnp.sum) + 0.5 * functional(plain)) == "Potential(energy=sum) + 0.5 * plain"
    for G in (F, student_teacher(z, z[:, :1]), icfl(z, z, ridge=0.1)):
        assert len(repr(G)) < 300
        assert "float32[4000,8]" in repr(G) or "Particles(4000)" in repr(G)


def test_a_sum_of_a_users_own_functional_is_checked_as_it_would_be_alone(key):
    def counts_particles(mu):
        return jnp.sum(mu.weights**2)

    with pytest.raises(ValueError, match="when every particle is split in two"):
        run(wgf(0.1), ATOMS["moments"] + counts_particles, Particles.uniform(MU.points), key, steps=1)
