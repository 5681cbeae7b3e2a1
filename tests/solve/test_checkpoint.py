import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pwgf_jax import Particles, Record, pwgf, run, sweep, wgf
from pwgf_jax.solve import checkpoint as checkpoints
from tests.solve.problems import METHOD, STEPS, problem, seeds


class Interrupted(Exception):
    pass


def interrupt_at(step):
    def progress(at):
        if at.step >= step:
            raise Interrupted

    return progress


def assert_same(found, expected):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11, err_msg=jax.tree_util.keystr(path))


def some_stats(F, mu):
    return {"mean": mu.weights @ mu.points}


@pytest.mark.slow
@pytest.mark.parametrize(("every", "chunk", "stop"), [(1, 16, 16), (7, 14, 28), (1, 16, STEPS)])
def test_an_interrupted_sweep_goes_on_as_if_nothing_had_been(every, chunk, stop, tmp_path):
    record, file = Record(every, some_stats), tmp_path / "deep" / "sweep.npz"
    whole = sweep(METHOD, problem, seeds(3), STEPS, record, chunk=chunk)
    with pytest.raises(Interrupted):
        sweep(METHOD, problem, seeds(3), STEPS, record, chunk=chunk, checkpoint=file, progress=interrupt_at(stop))
    seen = []
    resumed = sweep(METHOD, problem, seeds(3), STEPS, record, chunk=chunk, checkpoint=file, progress=seen.append)
    assert_same(resumed, whole)
    assert all(at.step > stop for at in seen)  # what was done is not done again
    assert sorted(path.name for path in file.parent.iterdir()) == ["sweep.npz"]


@pytest.mark.slow
def test_an_interrupted_run_goes_on_too_and_further_than_first_asked(tmp_path):
    key, file = seeds(1)[0], str(tmp_path / "run.npz")
    F, mu0 = problem(key)
    whole = run(METHOD, F, mu0, key, STEPS)
    first = run(METHOD, F, mu0, key, 10, chunk=5, checkpoint=file)
    assert int(first.steps) == 10
    assert_same(run(METHOD, F, mu0, key, STEPS, chunk=5, checkpoint=file), whole)
    assert_same(run(METHOD, F, mu0, key, STEPS, chunk=5, checkpoint=file), whole)  # finished: read back


@pytest.mark.slow
def test_optimizer_states_are_saved_keys_included(tmp_path):
    noisy = optax.chain(optax.adam(0.05), optax.add_noise(1e-6, 0.55, key=jax.random.key(3)))
    method = pwgf(noisy, eps=0.05, eta_p=0.1, k_thres=12, f_thres=1e-2)
    file, keys = tmp_path / "adam.npz", seeds(2)
    whole = sweep(method, problem, keys, 12)
    with pytest.raises(Interrupted):
        sweep(method, problem, keys, 12, chunk=4, checkpoint=file, progress=interrupt_at(4))
    assert_same(sweep(method, problem, keys, 12, chunk=4, checkpoint=file), whole)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The bytes of a checkpoint at step 4 of 12."""
    file = tmp_path_factory.mktemp("saved") / "a.npz"
    with pytest.raises(Interrupted):
        sweep(METHOD, problem, seeds(2), 12, chunk=4, checkpoint=file, progress=interrupt_at(4))
    return file.read_bytes()


@pytest.fixture
def file(saved, tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(saved)
    return path


def larger(key):
    F, mu = problem(key)
    return F, Particles.uniform(jnp.concatenate([mu.points, mu.points]))


def shifted(key):
    F, mu = problem(key)
    return F, mu.moved_to(mu.points + 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keys": jax.random.split(jax.random.key(9), 2)}, "a.npz: made with key=.*go on with the same, or delete it"),
        ({"keys": seeds(3)}, "made with key="),
        ({"record": Record(every=2)}, "made with every=1, this run has 2"),
        ({"steps": 3}, "it is at step 4 of a run with other steps; this run takes 3"),
        ({"problem": shifted}, "made with start="),
        ({"problem": larger}, "made by another flow or problem"),
        (
            {"flow": pwgf(optax.adam(0.1), eps=0.05, eta_p=0.1, k_thres=12, f_thres=1e-2)},
            "made by another flow or problem",
        ),
        ({"flow": pwgf(0.11, eps=0.05, eta_p=0.1, k_thres=12, f_thres=1e-2)}, "made by other computations"),
    ],
    ids=["key", "seeds", "every", "steps", "start", "particles", "optimizer", "step size"],
)
def test_a_checkpoint_of_another_run_is_refused(options, message, file):
    call = {"flow": METHOD, "problem": problem, "keys": seeds(2), "steps": 12, "record": Record()} | options
    with pytest.raises(ValueError, match=message):
        sweep(**call, checkpoint=file)


def test_a_checkpoint_with_other_statistics_is_refused(file):
    with pytest.raises(ValueError, match=r"a\.npz"):
        sweep(METHOD, problem, seeds(2), 12, Record(stats=some_stats), checkpoint=file)


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"not a checkpoint", lambda b: b[:-1]]
)
def test_a_damaged_file_is_no_checkpoint(damage, file):
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"a\.npz: not a checkpoint \(.*\); delete it to start afresh"):
        sweep(METHOD, problem, seeds(2), 12, checkpoint=file)


def test_a_foreign_archive_is_no_checkpoint(file):
    np.savez(file, x=np.ones(3))
    with pytest.raises(ValueError, match="not a checkpoint"):
        sweep(METHOD, problem, seeds(2), 12, checkpoint=file)


def rewritten(file, change):
    """The checkpoint with another header or other arrays."""
    with np.load(file) as archive:
        arrays = dict(archive)
    header = json.loads(str(arrays.pop("header")))
    header = change(header, arrays)
    np.savez(file, header=np.array(json.dumps(header)), **arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda header, arrays: header | {"jax": "0.9.0"},
            r"made with jax 0\.9\.0, this is jax .*; go on with the same",
        ),
        (lambda header, arrays: [header], r"not a checkpoint \(.*\); delete it to start afresh"),
        (lambda header, arrays: header | {"identity": 3}, r"not a checkpoint \(.*\); delete it to start afresh"),
        (
            lambda header, arrays: [arrays.pop("state/0"), header][1],
            r"not a checkpoint \(.*state/0.*\); delete it to start afresh",
        ),
    ],
    ids=["jax", "header", "identity", "state"],
)
def test_what_was_meddled_with_or_made_by_another_jax_is_said_to_be(change, message, file):
    rewritten(file, change)
    with pytest.raises(checkpoints.CheckpointError, match=message):
        sweep(METHOD, problem, seeds(2), 12, checkpoint=file)


@pytest.fixture
def saves(monkeypatch):
    """The steps at which checkpoints are written."""
    steps, save = [], checkpoints.save

    def note(path, at, identity):
        steps.append(at.step)
        save(path, at, identity)

    monkeypatch.setattr(checkpoints, "save", note)
    return steps


def test_short_chunks_do_not_write_all_records_again_at_every_end(saves, tmp_path):
    seen = []
    options = {"record": Record(every=2), "chunk": 2, "checkpoint": tmp_path / "a.npz", "progress": seen.append}
    sweep(wgf(0.1), problem, seeds(2), 400, **options)
    assert len(seen) == 200
    assert saves == list(range(20, 401, 20))  # a twentieth of the steps apart, not 200 times


@pytest.mark.slow
def test_slow_chunks_are_saved_by_time_and_made_smaller(saves, tmp_path, monkeypatch):
    whole = sweep(wgf(0.1), problem, seeds(2), 24, chunk=16)
    monkeypatch.setattr(sys.modules[sweep.__module__], "_PATIENCE", 1e-9)
    assert_same(sweep(wgf(0.1), problem, seeds(2), 24, chunk=16, checkpoint=tmp_path / "a.npz"), whole)
    assert saves == list(range(16, 25))
