import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwgf_jax.transforms import gradient_trigger

SMALL, LARGE = 0.05, 0.5  # gradient norms either side of eps = 0.1


def play(norms, values, *, eps=0.1, k_thres=3, f_thres=0.01):
    """The steps at which the rule jumps and stops, given what it sees before and after every step."""
    trigger = gradient_trigger(eps=eps, k_thres=k_thres, f_thres=f_thres)

    @jax.jit
    def step(window, k, norm, before, after):
        fires = trigger.should_perturb(window, k, norm)
        opened = trigger.jump(window, k, before, before)
        window = jax.tree.map(lambda a, b: jnp.where(fires, a, b), opened, window)
        return window, fires, trigger.should_stop(window, k, after)

    values = jnp.asarray(values, jnp.float32)
    window, jumps, stops = trigger.init(values[0], values[0]), [], []
    for k, norm in enumerate(norms):
        window, fires, stop = step(window, jnp.asarray(k, jnp.int32), jnp.float32(norm), values[k], values[k + 1])
        jumps += [k] * bool(fires)
        if stop:
            stops.append(k)
            break
    return jumps, stops, float(window.saved)


FLAT = [1.0] * 20
FALLING = [1.0 - 0.1 * k for k in range(20)]


@pytest.mark.parametrize(
    ("norms", "values", "jumps", "stops"),
    [
        ([LARGE] * 12, FLAT, [], []),
        ([SMALL] * 12, FLAT, [0], [3]),  # a jump at the very first step; stop exactly k_thres later
        ([SMALL] * 12, FALLING, [0, 4, 8], []),  # every window pays: the next jump is the first step after it
        ([LARGE, LARGE, SMALL] + [LARGE] * 9, FLAT, [2], [5]),  # the stop does not ask for the gradient
        ([LARGE, SMALL, SMALL, SMALL, SMALL] + [LARGE] * 7, FALLING, [1], []),  # never inside the window 1..4
        ([LARGE, SMALL, SMALL, SMALL, SMALL, SMALL] + [LARGE] * 6, FALLING, [1, 5], []),
        ([0.1] * 5, FLAT, [0], [3]),  # a norm of exactly eps counts as small
        ([float("nan")] * 5, FLAT, [], []),
        # only the value at the window's last step decides: lower in between, or higher before, does not
        ([SMALL] + [LARGE] * 9, [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0], [3]),
        ([SMALL] + [LARGE] * 9, [1.0, 9.0, 9.0, 9.0, 0.5, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0], [0], []),
        # the decrease is measured from before the jump of this window, not of the one before
        ([SMALL] * 12, [1.0, 1.0, 1.0, 1.0, 0.5] + [0.495] * 9, [0, 4], [7]),
    ],
)
def test_the_rule_jumps_and_stops_when_the_algorithm_does(norms, values, jumps, stops):
    assert play(norms, values)[:2] == (jumps, stops)


def test_a_decrease_of_exactly_the_threshold_is_not_enough():
    assert play([SMALL] + [LARGE] * 5, [1.0, 1.0, 1.0, 1.0, 0.75, 1.0], f_thres=0.25)[1] == [3]
    assert play([SMALL] + [LARGE] * 5, [1.0, 1.0, 1.0, 1.0, 0.7499, 1.0], f_thres=0.25)[1] == []


def test_what_is_saved_is_from_before_the_jump():
    values = [5.0, 4.0, 3.0, 2.0, 1.0, 0.0, 0.0]
    jumps, _, saved = play([LARGE, LARGE, SMALL, LARGE, LARGE, LARGE], values)
    assert jumps == [2]
    assert saved == values[2]


@pytest.mark.parametrize("k_thres", [1, 2, 5])
def test_windows_have_the_length_asked_for(k_thres):
    assert play([SMALL] * 15, FLAT, k_thres=k_thres)[:2] == ([0], [k_thres])
    assert play([SMALL] * 15, FALLING, k_thres=k_thres)[0] == list(range(0, 15, k_thres + 1))


def test_a_fresh_window_neither_stops_nor_keeps_from_jumping():
    trigger = gradient_trigger(eps=0.1, k_thres=7, f_thres=100.0)
    window = trigger.init(jnp.ones(2), jnp.ones(()))
    assert window.jumped_at.dtype == jnp.int32
    for k in range(20):
        step = jnp.asarray(k, jnp.int32)
        assert bool(trigger.should_perturb(window, step, jnp.zeros(())))
        assert not bool(trigger.should_stop(window, step, jnp.ones(())))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": -0.1}, "eps=-0.1; give a non-negative gradient norm"),
        ({"eps": float("nan")}, "eps=nan"),
        ({"k_thres": 0}, "k_thres=0; give a whole number of steps, 1 to 1073741824"),
        ({"k_thres": 2**31 - 1}, "k_thres=2147483647; give a whole number"),
        ({"decay": 1.0}, r"decay=1.0; give a number in \[0, 1\)"),
        ({"decay": -0.1}, "decay=-0.1"),
        ({"k_thres": -3}, "k_thres=-3"),
        ({"f_thres": -1.0}, "f_thres=-1.0; give a non-negative decrease"),
        ({"f_thres": float("nan")}, "f_thres=nan"),
    ],
)
def test_impossible_thresholds_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        gradient_trigger(**{"eps": 0.1, "k_thres": 3, "f_thres": 0.01} | options)


def observed(values, norms, decay, dtype=jnp.float32):
    trigger = gradient_trigger(eps=0.1, k_thres=3, f_thres=0.01, decay=decay)
    window = trigger.init(jnp.ones(2), jnp.full((), jnp.inf, dtype))
    for value, norm in zip(values, norms, strict=True):
        window = trigger.observe(window, jnp.asarray(value, dtype), jnp.asarray(norm, dtype))
    return float(window.value), float(window.gradient_norm)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_averages_are_weighted_means_that_fade(decay):
    values, norms = [3.0, 1.0, 2.0, 7.0], [1.0, 0.5, 0.25, 4.0]
    weights = np.array([decay ** (3 - j) if decay else float(j == 3) for j in range(4)])
    weights /= weights.sum()
    np.testing.assert_allclose(observed(values, norms, decay), (weights @ values, weights @ norms), rtol=1e-6)


def test_one_batch_that_is_not_finite_spoils_no_average_and_fires_nothing():
    np.testing.assert_allclose(observed([1.0, np.nan, 3.0], [1.0, 1.0, 1.0], 0.5), ((0.5 + 3) / 1.5, 1.0), rtol=1e-6)
    value, norm = observed([1.0, 2.0], [0.0, np.nan], 0.0)
    assert (value, np.isnan(norm)) == (2.0, True)


def test_averages_are_float32_at_least():
    """In bfloat16, 1 and 1.001 are one number, and a falling loss is none."""
    assert observed([1.0] * 9, [1.0] * 9, 0.9, jnp.bfloat16) == pytest.approx((1.0, 1.0), abs=1e-6)
    window = gradient_trigger(eps=0.1, k_thres=3, f_thres=0.0).init(jnp.ones(2), jnp.ones((), jnp.bfloat16))
    assert window.saved_value.dtype == window.seen.value.dtype == jnp.float32


def test_windows_map_over_seeds():
    trigger = gradient_trigger(eps=0.1, k_thres=3, f_thres=0.01)
    window = jax.vmap(trigger.init)(jnp.ones((3, 2)), jnp.ones(3))
    window = window._replace(jumped_at=jnp.asarray([-4, 2, 0], jnp.int32))
    fires = jax.vmap(lambda w: trigger.should_perturb(w, jnp.asarray(4, jnp.int32), jnp.zeros(())))(window)
    np.testing.assert_array_equal(fires, [True, False, True])
