"""Verdicts about the ends of runs, at the scale of the Hessian that they end with."""

import json

import numpy as np
import pytest

from pwgf_jax.experiments.cli import main

# Steep where it starts, V'' up to 3x² + 1, and flat where it ends: 1 along x, −0.18 along y.
STEEP = """\
import jax.numpy as jnp
def F(mu):
    x, y = mu.points[:, 0], mu.points[:, 1]
    return mu.weights @ (x**4 / 4 + x**2 / 2 - 0.09 * y**2)
"""


@pytest.mark.slow
def test_what_counts_as_negative_is_measured_where_the_verdict_is_asked(tmp_path, capsys):
    (tmp_path / "steep.py").write_text(STEEP, encoding="utf-8")
    (tmp_path / "steep.toml").write_text(
        'name = "steep"\nseeds = 2\nsteps = 300\ndtype = "float64"\n[problem]\nfunctional = "steep.py:F"\n'
        'particles = 4\n[problem.start]\nkind = "gaussian"\ndimension = 2\nscale = 4.0\n'
        '[arms.static]\nflow = "wgf"\nstep_size = 0.01\n',
        encoding="utf-8",
    )
    out = tmp_path / "out"
    assert main(["run", str(tmp_path / "steep.toml"), "--out", str(out), "--quiet"]) == 0
    capsys.readouterr()
    assert main(["certify", str(out), "--trust", "--eps", "100"]) == 0
    said = capsys.readouterr().out
    assert "λ_min / ‖H‖" in said
    columns = {line.count("|") for line in said.splitlines() if line.startswith("| ")}
    assert len(columns) == 1  # a bar in a heading would be a column of its own
    certificates = json.loads((out / "certificates.json").read_text(encoding="utf-8"))
    assert [each["verdict"] for each in certificates] == ["saddle", "saddle"]
    for each in certificates:
        ratio = each["full"]["eigenvalue"] / each["scale"]
        assert each["full"]["eigenvalue"] == pytest.approx(-0.18, rel=1e-6)
        assert each["delta"] == pytest.approx(0.01 * each["scale"])
        assert f"{ratio:.1e}" in said
    # an own δ is nobody's business
    assert main(["certify", str(out), "--trust", "--eps", "100", "--delta", "0.3"]) == 0
    capsys.readouterr()
    verdicts = {each["verdict"] for each in json.loads((out / "certificates.json").read_text(encoding="utf-8"))}
    assert verdicts == {"second_order_stationary"}
    assert np.all([each["scale"] < 10 for each in certificates])
