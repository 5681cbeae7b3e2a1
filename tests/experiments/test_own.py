"""Everything that can be of the user's own: functional, data, start, kernel, energy and objective, dict particles."""

import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from pwgf_jax.experiments import ConfigError, build, dump, load
from pwgf_jax.experiments.cli import main
from pwgf_jax.experiments.config import fingerprint
from pwgf_jax.experiments.loggers import LOGGERS, Logger

CODE = """
import jax, jax.numpy as jnp
from pwgf_jax import Particles, kernels, problems
from pwgf_jax.experiments.sources import Data


def points(key, dtype, size: int = 5):
    return jax.random.normal(key, (size, 2), dtype)


def pairs(key, dtype, size: int = 5):
    z = jax.random.normal(key, (size, 3), dtype)
    return Data(z, z[:, :1], test_inputs=z[:2], test_targets=z[:2, :1])


def start(key, particles, data, dtype, shift: float = 1.0):
    return shift + jax.random.normal(key, (particles, 2), dtype)


def layers(key, particles, data, dtype):
    a, w = jax.random.split(key)
    return {"a": jax.random.normal(a, (particles, 2), dtype), "w": jax.random.normal(w, (particles, 3, 2), dtype)}


def neurons(key, particles, data, dtype):
    return Particles.uniform(jax.random.normal(key, (particles, 4), dtype))


def kernel(width: float):
    return kernels.gaussian(width) + kernels.gaussian(3 * width)


def tree(mu):
    sizes = jax.tree.map(lambda leaf: jnp.sum(leaf**2, axis=tuple(range(1, leaf.ndim))), mu.points)
    return mu.weights @ (sizes["a"] + sizes["w"]) / 2


def well(key, dtype, dimension: int, tilt: float = 0.0):
    return problems.double_well(dimension, dtype=dtype)


def broken(key, dtype):
    return 3


def failing(key, dtype):
    raise KeyError("nothing here")
"""
ARM = '[arms.static]\nflow = "wgf"\nstep_size = 0.1\n'
MMD = """name = "own"
steps = 2
[problem]
functional = "mmd"
particles = 4
options = { kernel = { kind = "mine.py:kernel", width = 0.5 } }
data = { source = "mine.py:points", size = 6 }
start = { kind = "mine.py:start", shift = 2.0 }
"""
FIT = """name = "own"
steps = 2
[problem]
functional = "mean_field_regression"
particles = 4
data = { source = "mine.py:pairs" }
start = { kind = "mine.py:neurons" }
"""
TREE = """name = "own"
steps = 2
[problem]
functional = "mine.py:tree"
particles = 4
start = { kind = "mine.py:layers" }
"""
OBJECTIVE = """name = "own"
steps = 2
[problem]
objective = "mine.py:well"
options = { dimension = 3 }
constants = { smoothness = 2.0, hessian_lipschitz = 6.0, eps = 1e-3, delta = 0.1 }
"""


@pytest.fixture
def own(tmp_path):
    """own(text): a config beside a Python file."""
    (tmp_path / "mine.py").write_text(CODE, encoding="utf-8")

    def write(text, arm=ARM):
        path = tmp_path / "own.toml"
        path.write_text(text + arm, encoding="utf-8")
        return path

    return write


def test_kernel_sample_and_start_are_those_of_the_file(own):
    config = load(own(MMD))
    experiment = build(config)
    F, mu = experiment.problem(experiment.keys[0])
    assert F.target.points.shape == (6, 2)
    assert abs(float(jnp.mean(mu.points)) - 2.0) < 1.5
    x = jnp.zeros((1, 2), jnp.float32)
    assert np.allclose(F.kernel(x, x + 1), np.exp(-4.0) + np.exp(-4.0 / 9), rtol=1e-6)
    assert experiment.target is not None


def test_held_out_data_of_ones_own_are_measured(own, tmp_path):
    assert main(["run", str(own(FIT)), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    with np.load(tmp_path / "out" / "metrics.npz") as metrics:
        assert metrics["static/test_loss"].shape == (1, 3)


def test_particles_may_be_dicts(own, tmp_path):
    assert main(["run", str(own(TREE)), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    with np.load(tmp_path / "out" / "final.npz") as final:
        assert final["static/points/w"].shape == (1, 4, 3, 2)


def test_an_objective_may_be_ones_own(own):
    experiment = build(load(own(OBJECTIVE, '[arms.pgd]\ntransform = "pgd"\n')))
    assert experiment.facts["landmarks"] == {"well": -0.25, "origin": 0.0}


def test_the_files_count_and_are_written_whole(own, tmp_path):
    config = load(own(MMD))
    assert dump(config).count(f"{tmp_path}/mine.py:") == 3
    before = fingerprint(config)
    (tmp_path / "mine.py").write_text(CODE + "\n", encoding="utf-8")
    assert fingerprint(config) != before


@pytest.mark.parametrize(
    ("text", "old", "new", "message"),
    [
        (MMD, "width", "widht", "problem.options: .*widht"),
        (MMD, "mine.py:kernel", "mine.py:kernal", 'has no function "kernal"; .*did you mean kernel'),
        (MMD, "size = 6", "sise = 6", "unknown key problem.data.sise; allowed: size; did you mean size"),
        (MMD, "shift = 2.0", 'shift = "far"', 'problem.start.shift: given "far" .a string.; give a number'),
        (MMD, "mine.py:points", "mine.py", 'say which one in it: ".*mine.py:NAME"'),
        (MMD, "mine.py:start", "yours.py:start", "problem.start.kind: .*yours.py: there is no such file"),
        (OBJECTIVE, "dimension = 3", "dimensions = 3", "unknown key problem.options.dimensions; allowed: dimension"),
        (OBJECTIVE, "well", "broken", "problem.objective: it makes a int; give a pwgf_jax.problems.Problem"),
        (OBJECTIVE, "well", "failing", "problem.options: 'nothing here'"),
    ],
)
def test_what_is_wrong_with_ones_own_is_said(own, text, old, new, message):
    text = text.replace(old, new)
    if new in ("broken", "failing"):
        text = text.replace("options = { dimension = 3 }\n", "")
    with pytest.raises(ConfigError, match=message):
        build(load(own(text, '[arms.a]\ntransform = "pgd"\n' if text is not MMD and "objective" in text else ARM)))


@pytest.mark.parametrize("name", LOGGERS)
def test_a_logger_hears_of_every_arm_and_is_closed(name, tmp_path, monkeypatch):
    heard = []

    class Anything:
        def __getattr__(self, called):
            return lambda *args, **numbers: heard.append((called, args, numbers)) or self

    package = {"tensorboard": "tensorboardX"}.get(name, name)
    module = types.SimpleNamespace(
        SummaryWriter=lambda where: Anything(),
        init=lambda **_: Anything(),
        start_run=lambda **_: None,
        log_dict=lambda *_: None,
        log_metrics=Anything().log_metrics,
        end_run=Anything().end_run,
    )
    monkeypatch.setitem(sys.modules, package, module)
    logger = LOGGERS[name](tmp_path, {"name": "a"})
    assert isinstance(logger, Logger)
    logger.log(3, {"static/value": 1.0})
    logger.close()
    assert "static/value" in str(heard)
    assert "3" in str(heard)
    assert heard[-1][0] in ("close", "finish", "end_run")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"--log {name} needs {package}: pip install {package}"):
        LOGGERS[name](tmp_path, {})
