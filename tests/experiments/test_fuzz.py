"""Configs with one or two things wrong are refused in a sentence or can be made and run, in bounded time and memory."""

import copy
import datetime
import math
import os
import random
import resource
import signal
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import pytest

from pwgf_jax.experiments import ConfigError, build
from pwgf_jax.experiments.config import parse, unfold
from pwgf_jax.experiments.run import run

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))
MANY = float(os.environ.get("PWGF_TEST_MANY", "0.5"))
SECONDS, BYTES = 300, 3e9  # that one config may take to be refused or made; by which all of them may grow the process
FOREIGN = [
    *(0, 1, -1, 2, 3, 7, 2**31 - 1, 2**31, -(2**31), 2**40, 2**64, 10**30, 100_000, 10_000_000),
    *(0.0, -0.0, 0.5, -1.5, 1e-300, 1e300, 3e38, float("nan"), float("inf"), -float("inf")),
    *(True, False, "", "x", "../x", "a\0b", "a\nb", "a" * 300, "gaussian", "adam", "median", "own.py:F", "data.csv"),
    *([], [0], [1.0, -1.0], [[1]], ["a"], [{}], [True], list(range(50)), [1e300] * 3, [-1.0] * 3),
    *({}, {"kind": "gaussian"}, {"kind": 3}, {"a": {}}, {"optimizer": "adam"}, {"schedule": []}, {"source": "digits"}),
    *({"kind": "gaussian", "dimension": 2}, {"optimizer": "adam", "learning_rate": 0.1}, {"kind": "adaptive"}),
    *(datetime.date(2026, 1, 1), datetime.time(12)),
]
ADDED = ["steps", "depth", "batch", "batch_size", "solver", "trigger", "delta", "scale", "confinement", "dimension"]
ADDED += [
    "same_data",
    "perturbation",
    "momentum",
    "data",
    "start",
    "options",
    "temperature",
    "level",
    "kernel",
    "jitter",
]


def shrunk(path, rng, arms=2):
    """A shipped config of a few arms, turns, particles and steps."""
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    document |= {"seeds": 2, "steps": 2, "record_every": 1} | ({"snapshots": [0, 2]} if "snapshots" in document else {})
    kept = rng.sample(list(document["arms"]), k=min(arms, len(document["arms"])))
    document["arms"] = {name: {k: v for k, v in document["arms"][name].items() if k != "steps"} for name in kept}
    vary = document.get("vary", {})
    if isinstance(values := vary.get("values", []), dict):
        vary["values"] = {name: values[name] for name in rng.sample(list(values), k=1)}
    if vary and vary["key"].split(".")[0] == "arms" and vary["key"].split(".")[1] not in kept:
        del document["vary"]
    problem = document.get("problem", {})
    if "particles" in problem:
        problem["particles"] = 6
    for name in {"points", "test_points"} & problem.get("data", {}).keys():
        problem["data"][name] = 12
    return document


def places(table, path=()) -> Iterator[tuple]:
    """The path of every value of a document."""
    for name, value in table.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from places(value, (*path, name))


def numbers(document) -> list:
    """All numbers of a document but those in lists."""
    found = [at(document, path) for path in places(document)]
    return [each for each in found if isinstance(each, int | float)]


def at(document, path):
    for name in path:
        document = document[name]
    return document


def mutated(document, others, rng):
    """The document with one value changed, removed, renamed, added or taken from another config."""
    document = copy.deepcopy(document)
    path = rng.choice(list(places(document)))
    table, name = at(document, path[:-1]), path[-1]
    value = table[name]
    kind = rng.randrange(10)
    if kind == 0:
        del table[name]
    elif kind == 1:
        table[rng.choice([name[1:], name + "s", name.upper(), "kind", "a.b", "../x", "a\0"])] = table.pop(name)
    elif kind == 2:
        other = rng.choice(others)
        table[name] = copy.deepcopy(at(other, rng.choice(list(places(other)))))
    elif kind == 3:
        table[name] = copy.deepcopy(rng.choice(FOREIGN))
    elif kind == 4:
        table[rng.choice(ADDED)] = copy.deepcopy(rng.choice(FOREIGN))
    elif isinstance(value, str):  # another name of the same kind
        table[name] = rng.choice(
            [found for each in others for p in places(each) if p[-1] == name and isinstance(found := at(each, p), str)]
        )
    else:  # of the same type: what the reading of types cannot see
        alike = [each for each in FOREIGN if type(each) is type(value)]
        alike += [factor * value for factor in (-1, 0, 10, 10**3, 10**7)] if type(value) in (int, float) else []
        table[name] = copy.deepcopy(rng.choice(alike))
    return document


@contextmanager
def in_time() -> Iterator[None]:
    """Nothing hangs."""

    def late(*_):
        raise TimeoutError(f"not done after {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def attempt(document, folder=None):
    """What becomes of a config: "refused" in one sentence, "made", or "run" where there is a folder to run it in."""
    try:
        with in_time():
            config = parse(document)
            with jax.enable_x64(config.dtype == "float64"):
                for part in unfold(config):
                    build(part.config)
            if folder is None or any(abs(each) > 1000 for each in numbers(document)):
                return "made"  # what is large may take its time
            run(config, folder)
            return "run"
    except ConfigError as error:
        said = str(error)
        assert said.startswith("config: ")
        assert "\n" not in said
        assert len(said) < 2000
        return "refused"


def grown():
    """The most memory that this process has held, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_some_sixty_mutants_are_refused_or_made():
    rng, ends, before = random.Random(0), Counter(), grown()
    chosen = [path for path in CONFIGS if path.stem in ("matrix_factorization", "mmd_gaussians", "compressed")]
    for _ in range(60):
        documents = [shrunk(path, rng, arms=1) for path in chosen]
        ends[attempt(mutated(rng.choice(documents), documents, rng))] += 1
    assert ends["refused"] > 30
    assert ends["made"] > 5
    assert grown() - before < BYTES


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(math.ceil(7 * MANY)))
def test_hundreds_of_mutants_are_refused_or_made_and_run(seed, tmp_path):
    """With PWGF_TEST_MANY=3 more than a thousand."""
    pytest.importorskip("sklearn")
    rng, ends, before = random.Random(1000 + seed), Counter(), grown()
    for i in range(55):
        documents = [shrunk(path, rng, arms=1 if i % 4 else 2) for path in CONFIGS]
        document = mutated(rng.choice(documents), documents, rng)
        if rng.random() < 0.3:
            document = mutated(document, documents, rng)
        ends[attempt(document, tmp_path / str(i) if i % 28 == 0 else None)] += 1
        if i % 20 == 0:
            jax.clear_caches()
    assert ends["refused"] > 20
    assert ends["made"] + ends["run"] > 2
    assert grown() - before < BYTES
