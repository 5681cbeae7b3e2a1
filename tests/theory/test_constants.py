"""Numbers of methods from (ℓ, ρ, ε, δ): the papers' formulas, units, and methods that work with them."""

import inspect
from typing import Any

import numpy as np
import optax
import pytest

from pwgf_jax import transforms
from pwgf_jax.perturbation import hessian_noise
from pwgf_jax.theory import Constants

KNOWN = Constants(2.0, 0.5, eps=0.01, delta=0.1, dimension=7, size=30)


def test_the_numbers_of_pgd_are_the_papers():
    old = KNOWN.pgd_2017(3.0, 0.05, c=0.25)
    chi = 3 * max(np.log(7 * 2 * 3 / (0.25 * 1e-4 * 0.05)), 4)
    np.testing.assert_allclose(old["learning_rate"], 0.125)
    np.testing.assert_allclose(old["eps"], 0.5 / chi**2 * 0.01)
    np.testing.assert_allclose(old["radius"] * 2, old["eps"])
    np.testing.assert_allclose(old["f_thres"], 0.25 / chi**3 * np.sqrt(1e-6 / 0.5))
    assert old["k_thres"] == np.ceil(chi / 0.0625 * 2 / np.sqrt(0.005))
    new = KNOWN.pgd_2021(3.0, 0.05)
    iota = np.cbrt(np.sqrt(1e-6 / 0.5) / 50 / new["f_thres"])
    np.testing.assert_allclose(new["radius"], 0.5 * 0.01 / (400 * iota**3))
    steps = 400 * iota**4 * 2 * 3 / 1e-4
    bound = lambda i: steps / iota**4 * i**4 * 2 * np.sqrt(7 / 0.005) * i**2 * 2 ** (8 - i)  # noqa: E731
    assert bound(iota) <= 0.05 < bound(iota - 0.1)


def arguments(constants: Constants) -> dict[str, dict[str, Any]]:
    """Of every rule that is named after a transformation of ours."""
    given: dict[str, tuple[Any, ...]] = {"compressed_sgd": (2,), "constrained_escape": (constants.reach,)}
    names = [name for name in transforms.__all__ if hasattr(Constants, name)]
    return {name: getattr(constants, name)(*given.get(name, ())) for name in names}


def test_rules_name_arguments_of_the_methods_they_are_named_after():
    for name, found in arguments(KNOWN).items():
        assert found.keys() <= inspect.signature(getattr(transforms, name)).parameters.keys()
    assert len(arguments(KNOWN)) >= 13
    assert KNOWN.hessian_noise().keys() <= inspect.signature(hessian_noise).parameters.keys()
    assert KNOWN.noisy_sgd().keys() <= inspect.signature(optax.noisy_sgd).parameters.keys()


# Of each argument its power of (force, length), where f has the unit force · length.
UNITS = {
    "learning_rate": (-1, 1),
    "radius": (0, 1),
    "eps": (1, 0),
    "f_thres": (1, 1),
    "noise_radius": (1, 0),
    "separation": (0, 1),
    "kick": (0, 1),
    "tolerance": (1, -1),
    "beta": (2, -2),
    "lipschitz": (1, -2),
    "gamma": (1, 1),
    "stretch": (0, 1),
    "smoothness": (1, -1),
    "hessian_lipschitz": (1, -2),
    "delta": (1, -1),
}


def test_rules_follow_a_change_of_units():
    force, length = 7.0, 0.3
    changed = Constants(2.0 * force / length, 0.5 * force / length**2, 0.01 * force, 0.1 * force / length, 7, 30)
    before, after = arguments(KNOWN), arguments(changed)
    for method, found in before.items():
        for name, number in found.items():
            f, d = UNITS.get(name, (0, 0))
            if method == "dimer" and name == "rotation_rate":
                f, d = -1, 1
            if method == "accelerated_descent" and name == "gamma":
                f, d = 1, -1
            if method == "constrained_escape" and name == "eps":
                f, d = 1, 1
            np.testing.assert_allclose(after[method][name], number * force**f * length**d, rtol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constants(0.0, 1.0, 0.1, 0.1), r"Constants: smoothness=0\.0; give a positive number"),
        (lambda: Constants(1.0, 1.0, 0.1, float("inf")), "Constants: delta=inf"),
        (lambda: Constants(1.0, 1.0, 0.1, 0.1, dimension=0), "Constants: dimension=0"),
        (lambda: KNOWN.pgd_2017(0.0), r"pgd_2017: gap=0\.0"),
        (lambda: KNOWN.pgd_2017(1.0, c=2.0), r"pgd_2017: c=2\.0; give a number at most one"),
        (lambda: KNOWN.pgd_2021(1.0, 1.0), r"pgd_2021: failure=1\.0; give a probability"),
    ],
)
def test_impossible_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
