"""What is no function of the measure is refused, by name and before anything is run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.core import Tracer

from pwgf_jax import (
    Particles,
    certify,
    check_functional,
    first_variation,
    functionals,
    kernels,
    run,
    sweep,
    wasserstein_gradient,
    wasserstein_hessian,
    wgf,
)
from pwgf_jax.contract import check_once, is_own
from tests.oracles.closed_forms import mean_quartic

KEY = jax.random.key(0)


def measure(dtype=jnp.float32, count=5, seed=1):
    return Particles.uniform(jnp.asarray(np.random.default_rng(seed).normal(size=(count, 2)), dtype))


def forgets(mu):
    """−½|mean|² of the points alone: a saddle at the mean of zero, which no Wasserstein derivative sees."""
    return -jnp.sum(mu.points.mean(axis=0) ** 2) / 2


def quantiles(mu):
    """Sliced W₂² to N levels along the first axis, by sorting: piecewise constant in the weights."""
    order = jnp.argsort(mu.points[:, 0])
    levels = jnp.cumsum(mu.weights[order])
    targets = jnp.linspace(-1, 1, 64, dtype=mu.points.dtype)
    at = jnp.searchsorted(levels, (jnp.arange(64).astype(levels.dtype) + 0.5) / 64)
    return jnp.mean((mu.points[order, 0][jnp.minimum(at, mu.size - 1)] - targets) ** 2)


def entropy_of_weights(mu):
    return mu.weights @ jnp.log(mu.weights) + mu.weights @ jnp.sum(mu.points**2, axis=1)


def guarded_entropy(mu):
    return jnp.sum(jax.scipy.special.xlogy(mu.weights, mu.weights)) + mu.weights @ jnp.sum(mu.points**2, axis=1)


def half_forgets(mu):
    """Right in its first term; its second is an average over particles."""
    return mu.weights @ jnp.sum(mu.points**2, axis=1) + jnp.var(mu.points[:, 0])


WRONG = {
    "forgets": (forgets, "never uses mu.weights; write averages over particles as mu.weights @ phi"),
    "half forgets": (half_forgets, "G changes by .* weight zero is added: it does not use mu.weights everywhere"),
    "quantiles": (quantiles, "gradient by the points has the norm .* piecewise constant in them"),
    "log of the weights": (entropy_of_weights, "where a particle has weight zero; .*entropies of the weights"),
    "guarded log": (guarded_entropy, "where a particle has weight zero"),
    "sees particles": (
        lambda mu: jnp.sum(mu.weights**2) * jnp.sum(mu.weights @ mu.points),
        "when every particle is split in two",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_breaks_the_contract_is_refused(name):
    F, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        check_functional(F, measure(), "G")


@pytest.mark.parametrize(
    ("functional", "message"),
    [
        (lambda mu: mu.weights @ mu.points, r"G returns float32\[2\]; a functional returns one"),
        (lambda mu: jnp.sum(mu.weights > 0), r"G returns int\d+\[\]"),
    ],
)
def test_what_is_no_scalar_is_refused(functional, message):
    with pytest.raises(TypeError, match=message):
        check_functional(functional, measure(), "G")


def curved(mu):
    mean, spread = mu.weights @ mu.points, mu.weights @ jnp.cos(jnp.sum(mu.points**2, axis=1))
    return jnp.sum(mean**2) * spread + spread**3


def of_the_domain(mu):
    """Defined for positive points only."""
    return mu.weights @ jnp.sum(mu.points - jnp.log(mu.points), axis=1)


RIGHT = {
    "curved": (curved, measure),
    "constant": (lambda mu: jnp.zeros((), mu.weights.dtype), measure),
    "at a saddle": (mean_quartic, lambda dtype: measure(dtype).moved_to(jnp.zeros((5, 2), dtype))),
    "a hinge": (lambda mu: mu.weights @ jnp.sum(jnp.abs(mu.points), axis=1), measure),
    "of a domain": (of_the_domain, lambda dtype: measure(dtype).moved_to(jnp.ones((5, 2), dtype) / 2)),
    "one particle": (curved, lambda dtype: measure(dtype, count=1)),
    "large": (lambda mu: 1e8 * curved(mu), measure),
    "small": (lambda mu: 1e-8 * curved(mu), measure),
    "not finite": (lambda mu: jnp.nan * curved(mu), measure),
    "compiled": (jax.jit(curved), measure),
    "mmd": (jax.jit(functionals.mmd(jnp.ones((3, 2), jnp.float32), kernels.gaussian(1.0)).__call__), None),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_functional_is_let_through(name, dtype):
    F, make = RIGHT[name]
    check_functional(F, measure() if make is None else make(dtype))


# --- at the door ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "use",
    [
        lambda F, mu: run(wgf(0.1), F, mu, KEY, steps=2),
        lambda F, mu: sweep(wgf(0.1), lambda key: (F, mu), KEY[None], steps=2),
        lambda F, mu: certify(F, mu, 0.1, 0.1, KEY),
        lambda F, mu: first_variation(F, mu),
        wasserstein_gradient,
        lambda F, mu: wasserstein_gradient(F, mu, at=mu.points),
        wasserstein_hessian,
    ],
    ids=["run", "sweep", "certify", "first variation", "gradient", "gradient at", "hessian"],
)
def test_nothing_computes_with_a_functional_that_forgets_the_weights(use):
    with pytest.raises(ValueError, match=r"mu\.weights"):
        use(forgets, measure())


def test_a_functional_is_tried_once_for_every_shape_and_not_where_it_is_not_wanted():
    tried = []

    def F(mu):
        if not isinstance(mu.weights, Tracer):
            raise AssertionError("run eagerly")
        tried.append(mu.size)
        return curved(mu)

    check_once(F, measure())
    first = len(tried)
    assert first > 0
    check_once(F, measure(seed=2))
    assert len(tried) == first
    check_once(F, measure(count=2))
    assert len(tried) > first
    run(wgf(0.1), quantiles, measure(), KEY, steps=1, check=False)
    sweep(wgf(0.1), lambda key: (quantiles, measure()), KEY[None], steps=1, check=False)


def test_the_librarys_own_functionals_are_trusted():
    assert is_own(functionals.potential(jnp.sum))
    assert not is_own(curved)
