"""Summaries and figures of records made by hand."""

import numpy as np
import pytest

from pwgf_jax.experiments.folder import open_run
from pwgf_jax.experiments.report.figures import draw, thinned
from pwgf_jax.experiments.report.tables import arranged, escape, overview, spoken, summarise, trajectory
from pwgf_jax.experiments.results import Arm


def arm(values, norms, step=None):
    values, norms = np.atleast_2d(values), np.atleast_2d(norms)
    step = np.arange(values.shape[1]) if step is None else step
    records = {"step": step, "value": values, "gradient_norm": norms, "perturbed": np.zeros(values.shape, bool)}
    return Arm(records, np.full(len(values), 2), {"seconds": 1.0})


def descent(rate=0.3, centre=40, steps=120):
    """Down a slope between two plateaus, its gradient norm and where this is the largest."""
    k = np.arange(steps)
    values = 1 / (1 + np.exp(rate * (k - centre)))
    return values, np.sqrt(rate * values * (1 - values))


def test_the_escape_is_where_the_gradient_peaks_on_the_way_down():
    values, norms = descent()
    assert escape(arm(values, norms), 1.0).tolist() == [40.0]


@pytest.mark.parametrize("jump", [5, 100])
def test_a_jump_that_leads_nowhere_is_no_escape_however_high_its_spike(jump):
    values, norms = descent()
    norms = norms.copy()
    norms[jump] = 7.0
    assert np.argmax(norms) == jump  # what the column said before
    assert escape(arm(values, norms), 1.0).tolist() == [40.0]


def test_the_first_of_two_saddles_counts():
    (first, norm), (second, other) = descent(centre=30), descent(rate=0.5, centre=90)
    assert escape(arm(first + second, np.hypot(norm, other)), 2.0).tolist() == [30.0]


def test_a_start_on_the_slope_has_its_peak_there():
    k = np.arange(50)
    assert escape(arm(np.exp(-0.2 * k), np.exp(-0.1 * k)), 1.0).tolist() == [0.0]


def test_an_arm_that_stays_where_it_is_does_not_escape():
    values, norms = descent()
    stays = arm(1 - 1e-9 * np.arange(120), np.full(120, 1e-4))
    column = [row[3] for row in overview({"hessian": arm(values, norms), "static": stays})]
    assert column == ["escape at step", "40", "not reached"]


@pytest.mark.slow
def test_a_figure_of_a_million_records_is_small_and_keeps_its_extremes(tmp_path):
    size = 1_000_000
    rng = np.random.default_rng(0)
    values = 1 + rng.random((2, size))
    values[:, 123_456] = 100.0
    kept = thinned(values.mean(axis=0))
    assert 123_456 in kept
    assert len(kept) <= 2002
    long = arm(values, values)
    long.records["perturbed"][0] = rng.random(size) < 0.1
    _, pdf = draw({"static": long}, tmp_path / "figure")
    assert pdf.stat().st_size < 400_000


def test_the_summary_has_an_arm_a_column_as_the_terminal_does(finished, capsys):
    """Its tables are those that a terminal is shown, and the values at a few steps."""
    shown = spoken(open_run(finished))
    summary = summarise(open_run(finished)).splitlines()
    assert set(shown.splitlines()) <= set(summary)
    assert [cell.strip() for cell in shown.splitlines()[0].strip("|").split("|")] == ["arm", "static", "hessian"]
    assert max(line.count("|") for line in summary) == 4


def test_the_objective_is_told_at_steps_that_were_recorded():
    head, row = trajectory({"a": arm([4.0, 2.0, 1.0], [1.0, 1.0, 1.0], np.array([0, 200, 300]))})
    assert head == ["F at step", "0", "200", "300"]
    assert row == ["a", "4", "2", "1"]


def test_many_arms_are_rows():
    values, norms = descent()
    arms = {f"a{i}": arm(values, norms) for i in range(20)}
    lines = arranged(overview(arms)).splitlines()
    assert lines[0].startswith("| arm | final F")
    assert len(lines) == 22


def test_values_that_overflow_are_numbers_and_not_steps_that_were_never_reached():
    column = [row[1] for row in overview({"wild": arm([1.0, 1e30], [1.0, 1e30])})]
    assert column == ["final F", "1e+30"]
