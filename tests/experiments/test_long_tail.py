"""Long-tailed digits: methods that change their loss on the way, what is recorded of the classes, and the configs."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from pwgf_jax import problems
from pwgf_jax.experiments import ConfigError, build, load
from pwgf_jax.experiments.batches import Setting
from pwgf_jax.experiments.cli import main
from pwgf_jax.experiments.descents import DESCENTS
from pwgf_jax.experiments.folder import open_run
from pwgf_jax.experiments.objectives import OBJECTIVES
from pwgf_jax.experiments.report.tables import extremes, landing, overview
from pwgf_jax.experiments.results import Arm

CONFIGS = Path(__file__).parents[2] / "configs"
digits: Any = partial(OBJECTIVES["long_tailed_digits"], hidden=2, depth=40)


# Methods that change to another loss

ONES: dict[str, float] = {"smoothness": 1.0, "hessian_lipschitz": 1.0, "eps": 1e-3, "delta": 0.1}


def bowl(curvature):
    """Two equal terms: every batch has the gradient of the whole."""
    value = lambda x: curvature * jnp.sum(x**2) / 2  # noqa: E731
    terms = lambda x, indices: jnp.full(indices.shape, value(x))  # noqa: E731
    return problems.Problem(value, lambda key: jnp.ones(1), (), None, (), terms, 2)


def path(method, steps, **numbers):
    first = bowl(1.0)
    setting = Setting.of(first, bowl(3.0), **ONES)
    optimizer = optax.with_extra_args_support(DESCENTS[method](setting, **numbers).make(jax.random.key(0)))
    components: Any = first.components

    def step(carry, _):
        x, state = carry
        grad_fn = jax.grad(lambda x, i: jnp.mean(components(x, i)))
        with jax.numpy_dtype_promotion("standard"):  # optax's schedules mix dtypes; descents run them like this
            updates, state = optimizer.update(jax.grad(first.value)(x), state, x, value_fn=first.value, grad_fn=grad_fn)
        x: Any = optax.apply_updates(x, updates)
        return (x, state), jnp.sum(x)

    x: Any = jnp.ones(1)
    return jax.jit(lambda: jax.lax.scan(step, (x, optimizer.init(x)), length=steps))()[1]


@pytest.mark.parametrize("batch", [None, 1])
@pytest.mark.parametrize("method", ["sgd", "sam"])
def test_from_the_step_of_deferral_on_gradients_are_of_the_other_loss(method, batch):
    """Linear dynamics, factor 1 − ηa(1 + ρa), with a = 1 for steps 0 to 2 and a = 3 from step 3; η falls at step 4."""
    rho = 0.5 if method == "sam" else 0.0
    numbers = {"radius": rho, "normalized": False} if method == "sam" else {}
    rate = optax.piecewise_constant_schedule(0.1, {4: 0.5})
    found = path(method, 6, learning_rate=rate, batch=batch, defer=3, **numbers)
    a, eta = np.array([1, 1, 1, 3, 3, 3]), np.array([0.1] * 4 + [0.05] * 2)
    np.testing.assert_allclose(found, np.cumprod(1 - eta * a * (1 + rho * a)), rtol=1e-5)


def test_what_cannot_be_deferred_is_refused():
    alone, changing = (Setting.of(bowl(1.0), later, **ONES) for later in (None, bowl(3.0)))
    for method, numbers in {"sgd": {}, "sam": {"radius": 0.1}}.items():
        with pytest.raises(ValueError, match=r"defer = 5; this objective has nothing to change to later"):
            DESCENTS[method](alone, defer=5, **numbers)
        with pytest.raises(ValueError, match=r"defer = -1; give a step, at least 0"):
            DESCENTS[method](changing, defer=-1, **numbers)
        with pytest.raises(ValueError, match=r"batch = 3; the objective has 2 terms"):
            DESCENTS[method](changing, batch=3, defer=5, **numbers)


# The digits


@pytest.fixture(scope="module")
def small():
    """A tenth of imbalance, so that every class has a size of its own; float64, and the start."""
    pytest.importorskip("sklearn")
    made = digits(jax.random.key(1), jnp.float64, imbalance=0.1)
    return made, made.problem.init(jax.random.key(2))


@pytest.fixture(scope="module")
def stats(small):
    """What is recorded, where another loss is trained: the data are of the key, and of nothing else."""
    return jax.jit(digits(jax.random.key(1), jnp.float64, imbalance=0.1, loss="vs").stats)


@pytest.fixture(scope="module")
def classes(small):
    """Which examples are of which class, the largest first, as the weights of the later loss tell."""
    made, start = small
    everyone = jnp.arange(made.problem.size)
    terms = lambda p: made.later.components(p, everyone) / made.problem.components(p, everyone)  # noqa: E731
    weight = np.asarray(jax.jit(terms)(start)).round(6)
    return [np.flatnonzero(weight == w) for w in np.unique(weight)], np.unique(weight)


def test_the_later_loss_is_weighted_by_class_and_the_tail_is_exponential(classes):
    members, weights = classes
    counts = np.array([each.size for each in members])
    assert counts.size == 10
    np.testing.assert_array_equal(counts, np.floor(counts[0] * 0.1 ** (np.arange(10) / 9) * (1 + 1e-12)))
    np.testing.assert_allclose(weights, problems.class_balanced_weights(counts, 0.9999), atol=1e-6)
    # of 174 to 183 images a class, 170 are held out
    even = digits(jax.random.key(1), jnp.float32, imbalance=1.0, test_points=170)
    assert even.problem.size == 40


@pytest.mark.slow
def test_recorded_curvatures_are_those_of_the_classes_own_cross_entropy(small, classes, stats):
    made, start = small
    components, members = made.problem.components, classes[0]
    flat, unravel = ravel_pytree(start)
    padded = jnp.asarray(np.stack([np.resize(each, members[0].size) for each in members]))
    counted = jnp.asarray(np.arange(members[0].size) < np.array([[each.size] for each in members]))

    def hessian(x, rows, real):
        value = lambda x: jnp.sum(components(unravel(x), rows) * real) / jnp.sum(real)  # noqa: E731
        return jax.hessian(value)(x)

    hessians = jax.jit(jax.vmap(hessian, (None, 0, 0)))(flat, padded, counted.astype(flat.dtype))
    ends = np.linalg.eigvalsh(np.asarray(hessians))[:, [0, -1]]
    found = stats(start)
    for part, rows in {"head": slice(3), "tail": slice(7, None)}.items():
        np.testing.assert_allclose(found[f"{part}_curvature"], ends[rows, 0].min(), rtol=1e-6)
        np.testing.assert_allclose(found[f"{part}_sharpness"], ends[rows, 1].max(), rtol=1e-6)


def test_accuracies_are_of_balanced_data_with_the_labels_of_the_training(small, stats):
    made, start = small
    hidden, last = jax.tree.map(jnp.zeros_like, start)
    for c, expected in {0: (0.1, 1 / 3, 0), 5: (0.1, 0, 0), 9: (0.1, 0, 1 / 3)}.items():
        always = (hidden, {**last, "b": last["b"].at[c].set(1)})  # a network that knows one class only
        found = stats(always)
        names = ("test_accuracy", "head_accuracy", "tail_accuracy")
        np.testing.assert_allclose([found[name] for name in names], expected, rtol=1e-12)
    slope = jax.grad(made.problem.value)
    trained = jax.jit(
        lambda p: jax.lax.fori_loop(0, 300, lambda _, p: jax.tree.map(lambda x, g: x - 0.5 * g, p, slope(p)), p)
    )(start)
    assert stats(trained)["head_accuracy"] > 0.7  # a third of them, by chance


def test_digits_that_cannot_be_had_are_refused(monkeypatch):
    pytest.importorskip("sklearn")
    with pytest.raises(ValueError, match=r"test_points = 174; a class has 174 images, give 1 to 173"):
        digits(jax.random.key(1), jnp.float32, imbalance=0.1, test_points=174)
    with pytest.raises(ValueError, match="choose a larger one"):
        digits(jax.random.key(1), jnp.float32, imbalance=1e-3)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match=r"problem.options: digits come with scikit-learn: pip install"):
        build(load(CONFIGS / "long_tail_saddle.toml"))


# The configs


def fake(loss, tail, step=(0, 10)):
    """An arm of two seeds whose tail is predicted so well in the end."""
    ends = {"value": (2.0, 0.1), "gradient_norm": (1.0, 0.1), "test_accuracy": (0.1, 0.8), "tail_accuracy": (0.0, tail)}
    ends |= {"head_curvature": (-2.0, -0.5), "tail_curvature": (-3.0, -0.25)}
    records = {name: np.array([given, given]) for name, given in ends.items()}
    varied = {"arm": "sam", "key": "problem.options.loss", "value": loss}
    return Arm(
        records | {"step": np.array(step), "perturbed": np.zeros((2, 2), bool)}, np.array([2, 2]), {"varied": varied}
    )


def test_tables_show_the_classes():
    arms = {"sam-vs": fake("vs", 0.7), "sam-ldam": fake("ldam", 0.5)}
    heading, row, _ = overview(arms)
    assert row[heading.index("that of the tail")] == "0.7"
    assert "that of the head" not in heading
    assert extremes(arms)[:2] == [["start → end", "λ_min, head", "λ_min, tail"], ["sam-vs", "-2 → -0.5", "-3 → -0.25"]]


def run(name, out, *settings):
    """What is recorded of a shipped config, changed, after its summary and figure."""
    pytest.importorskip("sklearn")
    words = [word for setting in settings for word in ("--set", setting)]
    assert main(["run", str(CONFIGS / f"{name}.toml"), "--out", str(out), "--quiet", *words]) == 0
    assert "λ_min, tail" in (out / "summary.md").read_text(encoding="utf-8")
    assert (out / "figure.png").exists()
    return open_run(out).arms()


@pytest.mark.slow
def test_a_run_records_the_classes(tmp_path):
    small = ("seeds=2", "steps=4", "record_every=2", "problem.options.hidden=2", "problem.options.depth=2")
    arm = 'arms={sam_drw={transform="sam", radius=0.5, learning_rate=0.1, batch=4, defer=2}}'
    arms = run("long_tail", tmp_path / "out", *small, arm, 'vary.values=["ldam", "vs"]')
    assert list(arms) == ["sam_drw-ldam", "sam_drw-vs"]
    for arm in arms.values():
        for name in ("test_accuracy", "tail_accuracy", "head_curvature", "tail_curvature", "tail_sharpness"):
            assert arm.records[name].shape == (2, 3)
            assert np.all(np.isfinite(arm.records[name]))


@pytest.mark.slow
def test_without_noise_sam_stays_at_the_dead_network_and_gradient_descent_leaves(tmp_path):
    """The counter-evidence in small."""
    numbers = "learning_rate=0.1, momentum=0.9"
    arms = f'arms={{gd={{transform="sgd", {numbers}}}, sam={{transform="sam", radius=0.5, {numbers}}}}}'
    short = ("seeds=2", "steps=300", "record_every=300", "problem.options.depth=2")
    arms = run("long_tail_saddle", tmp_path / "out", *short, arms)
    dead = arms["sam"].info["landmarks"]["dead"]
    assert np.all(arms["gd"].records["value"][:, -1] < 0.2 * dead)
    np.testing.assert_allclose(arms["sam"].records["value"][:, -1], dead, rtol=1e-3)
    assert dict(landing(arms["sam"])) == {"dead": 2}
