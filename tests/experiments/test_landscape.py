"""What counts as one critical point: copies that a symmetry makes are, points of the same value need not be."""

import json

import numpy as np
import pytest

from pwgf_jax.certificate import Verdict
from pwgf_jax.experiments.cli import main
from pwgf_jax.experiments.report.landscape import Found, Survey, cluster, conclusion


def end(value, *spectrum, gradient_norm=0.0):
    index = sum(each < -0.1 for each in spectrum)
    verdict = Verdict.saddle if index else Verdict.second_order_stationary
    least = min(spectrum)
    return Found(value, gradient_norm, least, least, index, True, verdict, 0.1, tuple(sorted(spectrum)))


def sizes(ends, tolerance=0.01):
    return [(len(point.members), point.minimal) for point in cluster(ends, tolerance)]


def test_ends_are_one_point_where_value_and_spectrum_agree():
    assert sizes([end(1.0, -2.0, 1.0), end(0.0, 0.0, 3.0), end(1.001, -2.0, 1.01)]) == [(1, True), (2, False)]
    assert cluster([], 0.01) == []


def test_the_least_eigenvalue_alone_does_not_make_two_points_one():
    """These have the value and λ_min in common, which was all that was compared."""
    assert sizes([end(1.0, -2.0, 1.0, 4.0), end(1.0, -2.0, 2.0, 4.0)]) == [(1, True), (1, True)]


def test_values_of_nearly_zero_are_one_where_they_are_nothing_beside_the_start():
    """Of minima at zero, each is many times another: relative to themselves they would all be points of their own."""
    ends = [end(value, 0.5, 1.0) for value in (1e-12, 1e-9, 3e-9)]
    assert len(cluster(ends, 0.01)) == 3
    assert len(cluster(ends, 0.01, start=1.0)) == 1


def test_how_well_a_start_has_converged_does_not_matter():
    assert sizes([end(1.0, -2.0, 1.0), end(1.0, -2.0, 1.0, gradient_norm=0.5)]) == [(2, True)]


@pytest.mark.slow
def test_rotated_copies_of_a_minimum_are_one_family(tmp_path, capsys):
    """Means on the unit circle are minimal: every start ends at another of them. Between them the saddle at zero."""
    (tmp_path / "hat.py").write_text(
        "import jax.numpy as jnp\n"
        "def F(mu):\n"
        "    mean = mu.weights @ mu.points\n"
        "    spread = mu.weights @ jnp.sum((mu.points - mean[None]) ** 2, axis=-1)\n"
        "    return (jnp.sum(mean**2) - 1) ** 2 / 4 + spread / 2\n",
        encoding="utf-8",
    )
    (tmp_path / "hat.toml").write_text(
        'name = "hat"\nsteps = 200\nseeds = 6\ndtype = "float64"\n[problem]\nfunctional = "hat.py:F"\nparticles = 3\n'
        '[problem.start]\nkind = "gaussian"\ndimension = 2\n[arms.wgf]\nflow = "wgf"\nstep_size = 0.3\n',
        encoding="utf-8",
    )
    out = tmp_path / "out"
    words = ["--out", str(out), "--quiet", "--eps", "1e-4", "--delta", "0.1"]
    assert main(["landscape", str(tmp_path / "hat.toml"), *words]) == 0
    assert "Every critical point found is minimal" in capsys.readouterr().out
    (point,) = json.loads((out / "landscape.json").read_text(encoding="utf-8"))["points"]
    assert len(point["ends"]) == 6
    assert [each["index"] for each in point["ends"]] == [0] * 6
    with np.load(out / "final.npz") as final:
        means = final["wgf/points"].mean(axis=1)
    angles = np.sort(np.arctan2(*means.T))
    np.testing.assert_allclose(np.linalg.norm(means, axis=1), 1, atol=1e-3)
    assert np.diff(angles).max() > 0.3  # six of them, in six places


def test_what_is_concluded_names_the_points_that_are_no_strict_saddles():
    strict, minimum, loose = end(1.0, -2.0, 1.0), end(0.0, 0.5, 1.0), end(2.0, 0.0, 1.0)
    said = conclusion(Survey(cluster([strict, minimum], 0.01), 2, 1e-3))
    assert said == "The non-minimal critical point found has λ_min < −δ, δ = 0.1."
    assert conclusion(Survey(cluster([strict, minimum, loose], 0.01), 3, 1e-3)).startswith("1 of 2 non-minimal")
    assert "take more steps" in conclusion(Survey([], 20, 1e-3))
