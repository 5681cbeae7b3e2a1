import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from pwgf_jax import Particles, Record, Status, functionals, pwgf, run, sweep
from pwgf_jax.theory import Factors, TheoryWarning, estimate_smoothness, theory_parameters

pytestmark = pytest.mark.slow


def rng(seed=0):
    return np.random.default_rng(seed)


# --- F = −(δ/2)|m|² + ¼|m|⁴: λ₀ = −δ at every centred measure, minima −δ²/4 on |m|² = δ -------------------------------


def mean_quartic(delta, mu):
    square = jnp.sum((mu.weights @ mu.points) ** 2)
    return square**2 / 4 - delta * square / 2


QUARTIC = partial(mean_quartic, 0.1), Particles.uniform(jnp.asarray([[-1.0, 0.5], [1.0, -0.5]]))


def known(delta, dimension=1):
    """Its constants in the ball |m|² ≤ δ that holds saddle and minima, and an ε that the theorems allow."""
    return {
        "eps": 0.01 * delta**1.5,
        "delta": delta,
        "lipschitz_gradient": 2 * delta,
        "lipschitz_hessian": 6 * delta**0.5,
        "noise_energy": dimension * delta**2,
    }


def exact_failure(parameters, delta):
    """The probability that a jump from the saddle is not rewarded, in one dimension, by scalar gradient descent."""
    z = np.geomspace(1e-6, 10, 20_001)
    m = parameters.eta_p * delta * z
    for _ in range(parameters.k_thres + 1):  # the step that jumps descends as well
        m = m + parameters.step_size * (delta - m**2) * m
    fails = delta * m**2 / 2 - m**4 / 4 <= parameters.f_thres
    return float(special.erf(np.max(z[fails], initial=0) / 2**0.5))


@pytest.mark.parametrize("delta", [1.0, 0.1, 0.003])
@pytest.mark.parametrize("failure", [0.5, 0.1, 1e-3])
@pytest.mark.parametrize("window", [1.0, 2.0])
def test_the_failure_asked_for_bounds_the_exact_one_at_a_saddle(delta, failure, window):
    parameters = theory_parameters(**known(delta), failure=failure, factors=Factors(window=window))
    exact = exact_failure(parameters, delta)
    assert exact <= failure
    if window == 1:  # without the spare time the accounting is sharp, not only safe
        assert exact >= failure / 10


@pytest.mark.slow
@pytest.mark.parametrize(("delta", "window"), [(1.0, 2.0), (0.1, 2.0), (0.01, 2.0), (0.1, 1.0)])
def test_jumps_from_a_saddle_escape_within_the_window_as_often_as_promised(delta, window):
    failure, seeds = 0.1, 600
    parameters = theory_parameters(**known(delta), failure=failure, factors=Factors(window=window))
    saddle = Particles.uniform(jnp.asarray([[-1.0], [1.0], [-0.5], [0.5]]))  # its mean is zero exactly
    solution = sweep(
        pwgf(parameters.step_size, **parameters),
        lambda key: (partial(mean_quartic, delta), saddle),
        jax.random.split(jax.random.key(0), seeds),
        parameters.k_thres + 1,
        chunk=parameters.k_thres + 1,
    )
    failed = np.asarray(solution.status) == Status.no_decrease
    np.testing.assert_array_equal(solution.records["perturbed"][:, 0], True)
    np.testing.assert_array_less(parameters.f_thres, -np.asarray(solution.value)[~failed])
    np.testing.assert_array_equal(solution.value[failed], 0)
    # Never more than the failure asked for allows, and as many as the exact probability predicts: each bound
    # is wrong with probability 1e-4.
    exact = exact_failure(parameters, delta)
    assert np.sum(failed) <= stats.binom.ppf(1 - 1e-4, seeds, failure)
    low, high = stats.binom.ppf([1e-4, 1 - 1e-4], seeds, exact)
    assert low <= np.sum(failed) <= high
    if (
        window == 2
    ):  # the default: escapes are all but sure (three of 600 bound the chance of failing by 2.6 %, at 99.99 %)
        assert np.sum(failed) <= 3


@pytest.mark.slow
def test_estimated_constants_escape_as_well():
    delta, seeds, failure = 0.1, 100, 0.01
    F, saddle = QUARTIC
    smoothness = estimate_smoothness(F, saddle, key=jax.random.key(1), radius=delta**0.5, probes=3)
    parameters = theory_parameters(1e-4, delta, **smoothness._asdict(), failure=failure)
    solution = sweep(
        pwgf(parameters.step_size, **parameters),
        lambda key: (F, saddle),
        jax.random.split(jax.random.key(0), seeds),
        3 * parameters.k_thres,
        Record(every=3 * parameters.k_thres),
        chunk=3 * parameters.k_thres,
    )
    escaped = np.asarray(solution.value) < -0.24 * delta**2
    assert np.sum(~escaped) <= stats.binom.ppf(1 - 1e-4, seeds, failure)
    # and there they stop, for the minimum is second-order stationary
    np.testing.assert_array_equal(np.asarray(solution.status)[escaped], Status.no_decrease)


@pytest.mark.parametrize(
    "F",
    [
        lambda mu: jnp.sum((mu.weights @ mu.points - 1) ** 2) / 2,
        functionals.potential(lambda x: jnp.sum(jnp.logaddexp(x, -x))),
    ],
    ids=["mean square", "log cosh"],
)
def test_convex_problems_stop_after_one_window(F, key):
    parameters = theory_parameters(1e-4, 0.1, lipschitz_gradient=1.0, lipschitz_hessian=1.0, step_size=0.5)
    mu0 = Particles.uniform(jnp.asarray(rng().normal(size=(6, 2))))
    solution = run(pwgf(0.5, **parameters), F, mu0, key, 200 + parameters.k_thres)
    assert int(solution.status) == Status.no_decrease
    assert np.sum(solution.records["perturbed"]) == 1
    jumped_at = int(np.argmax(solution.records["perturbed"]))
    assert int(solution.steps) == jumped_at + parameters.k_thres + 1
    assert solution.value == solution.records["value"][jumped_at]


# --- the formulas -----------------------------------------------------------------------------------------------------


def test_parameters_follow_a_change_of_units():
    base = theory_parameters(1e-3, 0.1, lipschitz_gradient=2.0, lipschitz_hessian=0.5, noise_energy=3.0)
    force, length = 7.0, 0.3  # units of F and of the points
    changed = theory_parameters(
        1e-3 * force / length,
        0.1 * force / length**2,
        lipschitz_gradient=2.0 * force / length**2,
        lipschitz_hessian=0.5 * force / length**3,
        noise_energy=3.0 * (force / length**2) ** 2,
    )
    assert changed.k_thres == base.k_thres
    np.testing.assert_allclose(changed.f_thres, base.f_thres * force, rtol=1e-12)
    np.testing.assert_allclose(changed.eta_p, base.eta_p * length**3 / force, rtol=1e-12)
    np.testing.assert_allclose(changed.t_thres, base.t_thres * length**2 / force, rtol=1e-12)
    np.testing.assert_allclose(changed.step_size, base.step_size * length**2 / force, rtol=1e-12)


def test_parameters_have_the_orders_of_the_theorems():
    ones = Factors(1.0, 1.0, 1.0)
    for delta in (1.0, 0.1, 0.01):
        for eps in (0.0, 1e-2 * delta**2, delta**2):
            parameters = theory_parameters(eps, delta, step_size=0.1, factors=ones)
            np.testing.assert_allclose(parameters.f_thres, delta**3, rtol=1e-12)
            by_gradient = delta**3 / eps if eps else np.inf
            np.testing.assert_allclose(parameters.eta_p, min(delta**1.5, by_gradient), rtol=1e-12)
            assert 1 / delta < parameters.t_thres < 20 / delta
            # the window in steps is the one in time, but for the discrete growth and for rounding up
            np.testing.assert_allclose(parameters.k_thres * 0.1, parameters.t_thres, rtol=0.06, atol=0.1)


def test_a_smaller_failure_or_more_saddles_take_a_longer_window():
    windows = [theory_parameters(1e-3, 0.1, failure=failure).k_thres for failure in (0.5, 0.1, 0.01, 1e-6)]
    assert np.all(np.diff(windows) > 0)
    several = theory_parameters(1e-3, 0.1, failure=0.01, decrease_available=1.0)
    each = 0.01 / (1 / several.f_thres + 1)
    assert several.k_thres == theory_parameters(1e-3, 0.1, failure=each).k_thres


def test_parameters_are_the_keyword_arguments():
    parameters = theory_parameters(1e-3, 0.1)
    assert dict(parameters) == {name: getattr(parameters, name) for name in ("eps", "eta_p", "k_thres", "f_thres")}
    assert parameters.continuous["t_thres"] == parameters.t_thres
    assert parameters.step_size == 0.5
    pwgf(parameters.step_size, **parameters)
    with pytest.raises(KeyError):
        parameters["step_size"]


@pytest.mark.parametrize(
    ("arguments", "message", "cures"),
    [
        (
            {"eps": 0.1, "delta": 0.1, "lipschitz_hessian": 2.0, "lipschitz_local": 1.0},
            r"\(L2 \+ L3\) eps = 0.3 exceeds delta\^2 = 0.01; take eps <= 0.00333 or delta >= 0.548",
            [{"eps": 0.00333}, {"delta": 0.548}],
        ),
        (
            {"eps": 0.1, "delta": 2.0},
            "delta = 2 exceeds L1 = 1, .*take delta <= 1 or a larger lipschitz_gradient",
            [{"delta": 1.0}, {"lipschitz_gradient": 2.0}],
        ),
        (
            {"eps": 1e-3, "delta": 0.1, "step_size": 0.5, "lipschitz_gradient": 4.0},
            "step_size = 0.5 exceeds 1/L1 = 0.25, .*take step_size <= 0.25",
            [{"step_size": 0.25}],
        ),
    ],
)
def test_it_warns_where_the_theorems_are_silent_and_the_advice_helps(arguments, message, cures):
    with pytest.warns(TheoryWarning, match=message) as caught:
        theory_parameters(**arguments)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for cure in cures:
            theory_parameters(**arguments | cure)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"delta": 0.0}, "delta=0.0; give a positive"),
        ({"eps": -1.0}, "eps=-1.0; give a non-negative"),
        ({"lipschitz_gradient": 0.0}, "lipschitz_gradient=0.0"),
        ({"lipschitz_hessian": 0.0}, r"lipschitz_hessian \+ lipschitz_local=0.0"),
        ({"lipschitz_hessian": -1.0, "lipschitz_local": 2.0}, "lipschitz_hessian=-1.0; give a non-negative"),
        ({"noise_energy": float("nan")}, "noise_energy=nan"),
        ({"step_size": -1.0}, "step_size=-1.0"),
        ({"failure": 1.0}, "failure=1.0; give a probability"),
        ({"decrease_available": 0.0}, "decrease_available=0.0"),
        ({"factors": Factors(window=0.0)}, "factors.window=0.0"),
    ],
)
def test_impossible_numbers_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        theory_parameters(**{"eps": 1e-3, "delta": 0.1} | wrong)


# --- the constants, by sampling ---------------------------------------------------------------------------------------


def cloud(dtype):
    return Particles(jnp.asarray(rng(1).normal(size=(5, 2)), dtype), jnp.asarray([0.1, 0.3, 0.4, 0.2, 0.0], dtype))


def test_constants_of_a_quadratic_are_exact(dtype, key, tolerance):
    # on pytree points, with a particle of no weight
    A, mu = jnp.asarray([[2.0, 1.0], [1.0, -3.0]], dtype), cloud(dtype)
    mu = Particles({"a": mu.points[:, :1], "w": mu.points[:, 1:]}, mu.weights)

    def F(mu):
        points = jnp.concatenate([mu.points["a"], mu.points["w"]], axis=1)
        mean = mu.weights @ points
        return mean @ A @ mean / 2 + mu.weights @ jnp.sum(points**2, axis=-1) / 4

    found = estimate_smoothness(F, mu, key=key, radius=0.5, probes=2)
    expected = np.max(np.abs(np.linalg.eigvalsh(np.asarray(A, np.float64) + np.eye(2) / 2)))
    np.testing.assert_allclose(found.lipschitz_gradient, expected, rtol=tolerance(dtype))
    np.testing.assert_allclose([found.lipschitz_hessian, found.lipschitz_local], 0, atol=tolerance(dtype))


@pytest.mark.parametrize("radius", [0.5, 2.0])
def test_constants_of_the_mean_quartic_come_from_below_and_close(radius, key):
    # ‖∇²_μF‖ at a mean m is the larger of |δ − 3|m|²| and |δ − |m|²|, its Lipschitz constant in |m| ≤ r is 6r.
    found = estimate_smoothness(*QUARTIC, key=key, radius=radius, probes=3)
    gradient, hessian = 3 * radius**2 - 0.1, 6 * radius
    assert 0.99 * gradient <= found.lipschitz_gradient <= gradient * (1 + 1e-9)
    assert 0.7 * hessian <= found.lipschitz_hessian <= hessian * (1 + 1e-9)
    np.testing.assert_allclose(found.lipschitz_local, 0, atol=1e-9)


@functionals.interaction
def waves(x, y):
    return jnp.sum(jnp.cos(x - y) + jnp.cos(x) + jnp.cos(y))


@pytest.mark.parametrize("radius", [0.1, 1.0, 10.0])
def test_constants_of_a_trigonometric_energy_are_never_overestimated(radius, key):
    # ½∬Σcos(x_c − y_c) + ∫Σcos(x_c): the kernel is at most 1 and the local part at most 2. Along a field v the kernel
    # changes by at most |v(x)| + |v(y)|, the local part by at most 2|v(x)| + ∫|v|dμ.
    found = estimate_smoothness(waves, cloud(float), key=key, radius=radius)
    low = 0.25 if radius <= 1 else 0.0  # over more than a wavelength the change per distance is small
    assert low * 3 <= found.lipschitz_gradient <= 3 + 1e-9
    assert low * 2 <= found.lipschitz_hessian <= 2 + 1e-9
    assert low * 3 <= found.lipschitz_local <= 3 + 1e-9


def test_estimates_refuse_what_they_cannot_use(key):
    F, mu = functionals.potential(jnp.sum), cloud(float)
    with pytest.raises(ValueError, match=r"radius=0\.0; give a positive length"):
        estimate_smoothness(F, mu, key=key, radius=0.0)
    with pytest.raises(ValueError, match="probes=0, depth=16; give at least one"):
        estimate_smoothness(F, mu, key=key, radius=1.0, probes=0)
    with pytest.raises(TypeError, match="estimate_smoothness: key is a uint32 array"):
        estimate_smoothness(F, mu, key=jax.random.PRNGKey(0), radius=1.0)
