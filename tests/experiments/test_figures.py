"""Figures, by what is in them: which numbers are drawn on which axis, what it says there, and where the legend is."""

import os
import stat
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from pwgf_jax.experiments.cli import main
from pwgf_jax.experiments.report import figures, particles
from pwgf_jax.experiments.results import Arm

pytest.importorskip("matplotlib")


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """drawn(draw, ...): the figure that a function draws."""
    kept = []

    def keeping(original):
        @contextmanager
        def context(*arguments):
            with original(*arguments) as made:
                kept.append(made[0] if isinstance(made, tuple) else made)
                yield made

        return context

    for module, name in ((figures, "canvas"), (particles, "canvas"), (particles, "drawing")):
        monkeypatch.setattr(module, name, keeping(getattr(module, name)))

    def call(draw, *arguments):
        files = draw(*arguments, tmp_path / "figure")
        assert all(file.stat().st_size > 1000 for file in files)
        return kept[-1]

    return call


def arm(values, jumps=False, **info: Any):
    values = np.atleast_2d(np.asarray(values, float))
    records = {"value": values, "gradient_norm": np.ones_like(values), "perturbed": np.full(values.shape, jumps)}
    return Arm(records | {"step": np.arange(values.shape[1])}, np.full(len(values), 2), info)


def curve(ax, i=0):
    return np.asarray(ax.get_lines()[i].get_ydata(), float)


FALL = np.exp(-np.arange(30.0))


def test_an_objective_that_ends_far_from_zero_is_drawn_above_the_least_on_record(drawn):
    figure = drawn(figures.draw, {"low": arm([5 + FALL, 5.5 + FALL]), "high": arm(7 + FALL)})
    ax = figure.axes[0]
    best = 5 + FALL[-1]
    assert ax.get_yscale() == "log"
    assert ax.get_ylabel() == r"objective $F(\mu_k)-F_{\mathrm{best}}$"
    np.testing.assert_allclose(curve(ax, 0), 5.25 + FALL - best)
    np.testing.assert_allclose(curve(ax, 1), 7 + FALL - best)


def test_a_curve_stays_on_the_axis_at_its_own_minimum(drawn):
    ax = drawn(figures.draw, {"one": arm(5 + FALL)}).axes[0]
    heights = FALL - FALL[-1]
    np.testing.assert_allclose(curve(ax), np.maximum(heights, 1e-6 * heights[0]), rtol=1e-6)
    assert ax.get_ylim()[0] > 0


@pytest.mark.parametrize("least", [-0.25, 5.0])
def test_a_known_minimum_is_what_is_drawn_above_and_named(least, drawn):
    landmarks = {"well": least, "origin": least + 0.5}
    ax = drawn(figures.draw, {"one": arm(least + 0.1 + 0.4 * FALL, landmarks=landmarks)}).axes[0]
    assert ax.get_ylabel() == r"objective $F(\mu_k)-F$(well)"
    np.testing.assert_allclose(curve(ax), 0.1 + 0.4 * FALL)
    (level,) = (line.get_ydata()[0] for line in ax.get_lines()[1:])  # the other critical point, as high as it is
    assert level == pytest.approx(0.5)


def test_an_arm_below_all_known_points_is_measured_by_itself(drawn):
    ax = drawn(figures.draw, {"one": arm(5 + FALL, landmarks={"dead": 6.0})}).axes[0]
    assert "best" in ax.get_ylabel()


@pytest.mark.parametrize("values", [FALL, FALL - 1e-4, np.full(30, 3.0), 1e-3 + FALL])
def test_an_objective_that_ends_near_zero_or_never_falls_is_drawn_as_it_is(values, drawn):
    ax = drawn(figures.draw, {"one": arm(values)}).axes[0]
    assert ax.get_ylabel() == r"objective $F(\mu_k)$"
    np.testing.assert_array_equal(curve(ax), values)


@pytest.mark.parametrize("count", [2, 14])
@pytest.mark.parametrize("jumps", [False, True])
def test_the_legend_is_beside_the_panels(count, jumps, drawn):
    arms = {f"an arm with a name {i}": arm(FALL * (i + 1), jumps) for i in range(count)}
    figure = drawn(figures.draw, arms)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert len(legend.get_texts()) == count
    assert box.x0 >= max(ax.get_window_extent().x1 for ax in figure.axes)
    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1 + 1
    assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
    widths = [ax.get_window_extent().width / figure.dpi for ax in figure.axes]
    assert min(widths) > 2.5  # inches: the panels have not paid for it


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("problem.particles", "particles"),
        ("arms.static.step_size", r"step size $\eta$"),
        ("arms.static.batch_size", "batch size"),
        ("problem", "problem"),
    ],
)
def test_a_varied_key_has_a_name_for_readers(key, said, drawn):
    arms = {f"a-{n}": arm(FALL, varied={"arm": "a", "key": key, "value": n}) for n in (1, 10)}
    assert {ax.get_xlabel() for ax in drawn(figures.draw_varied, arms).axes} == {said}


def test_values_of_a_key_at_which_no_seed_stays_finite_are_left_out(drawn):
    about = {"arm": "a", "key": "problem.particles"}
    arms = {f"a-{n}": arm(values, varied=about | {"value": n}) for n, values in ((1, FALL), (10, FALL * np.nan))}
    for ax in drawn(figures.draw_varied, arms).axes:
        assert [container[0].get_xdata().tolist() for container in ax.containers] == [[1]]


# Particles


def snapshots(points, steps):
    return {"step": np.array(steps), "points": np.asarray(points, float)}


def offsets(ax):
    return np.asarray(ax.collections[-1].get_offsets())


def test_points_of_a_plane_are_drawn_where_they_are_and_those_of_a_line_at_height_zero(drawn):
    points = np.random.default_rng(0).normal(size=(1, 9, 2))
    figure = drawn(particles.draw_snapshots, {"a": snapshots(points, [0])})
    np.testing.assert_allclose(offsets(figure.axes[0]), points[0])
    assert figure.get_supxlabel() == ""
    figure = drawn(particles.draw_snapshots, {"a": snapshots(points[..., :1], [0])})
    np.testing.assert_allclose(offsets(figure.axes[0]), points[0] * [1, 0])


def test_points_of_more_dimensions_are_seen_along_their_principal_axes(drawn):
    """In a tilted plane of five dimensions all distances are kept, and the longer side lies along the first axis."""
    rng = np.random.default_rng(0)
    plane = np.linalg.qr(rng.normal(size=(5, 2)))[0]
    flat = rng.normal(size=(2, 50, 2)) * [3.0, 1.0]
    figure = drawn(particles.draw_snapshots, {"a": snapshots(flat @ plane.T + 7, [0, 4])})
    seen = np.stack([offsets(ax) for ax in figure.axes])

    def distances(points):
        return np.linalg.norm(points[:, None] - points[None], axis=-1)

    np.testing.assert_allclose(distances(seen.reshape(-1, 2)), distances(flat.reshape(-1, 2)), atol=1e-10)
    assert seen[..., 0].std() > 2 * seen[..., 1].std()
    assert figure.get_supxlabel() == "first principal axis of all recorded points"


def test_an_animation_has_a_picture_for_every_step_and_waits_for_nobody(tmp_path, monkeypatch, drawn):
    image = pytest.importorskip("PIL.Image")
    monkeypatch.setenv("PATH", "")
    points = np.random.default_rng(0).normal(size=(3, 20, 2))
    arms = {"a": snapshots(points, [0, 10, 20]), "b": snapshots(points[:2], [0, 5]) | {"target": points[2]}}
    figure = drawn(particles.animate, arms)
    with image.open(tmp_path / "figure.gif") as film:
        assert film.n_frames == 4  # of the steps 0, 5, 10, 20
    assert not (tmp_path / "figure.mp4").exists()
    assert [ax.get_title() for ax in figure.axes] == ["a", "b"]
    np.testing.assert_allclose(offsets(figure.axes[0]), points[2])
    np.testing.assert_allclose(offsets(figure.axes[1]), points[1])  # ended at step 5
    assert len(figure.axes[1].collections) == 2  # its target is there too


def test_where_there_is_ffmpeg_there_is_a_film_as_well(tmp_path, monkeypatch):
    """A stand-in that writes what it is given to the file it is named."""
    tool = tmp_path / "bin" / "ffmpeg"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\nfor last; do :; done\nexec cat > "$last"\n', encoding="utf-8")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    points = np.random.default_rng(0).normal(size=(2, 20, 2))
    files = particles.animate({"a": snapshots(points, [0, 10])}, tmp_path / "particles")
    assert [file.name for file in files] == ["particles.gif", "particles.mp4"]
    pictures, left_over = divmod(files[1].stat().st_size, 2)  # two pictures, raw
    assert pictures > 10_000
    assert left_over == 0


def test_without_snapshots_the_config_is_said_to_need_them(finished, refused):
    said = refused("plot", finished, "--animate")
    assert "put `snapshots = [0, 50, 100]`" in said
    assert "multiples of record_every" in said


def test_a_run_with_snapshots_can_be_animated(finished, capsys):
    from pwgf_jax.experiments import archives

    archives.write(finished / "snapshots.npz", {"static/step": np.array([0, 6]), "static/points": np.ones((2, 6, 3))})
    assert main(["plot", str(finished), "--animate"]) == 0
    assert f"Wrote {finished / 'particles.gif'}" in capsys.readouterr().out
    assert (finished / "particles.gif").read_bytes().startswith(b"GIF89a")
