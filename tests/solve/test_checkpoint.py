import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pwgf_jax import Particles, Record, pwgf, run, sweep, wgf
from pwgf_jax.solve import checkpoint as checkpoints
from pwgf_jax.solve import loop
from pwgf_jax.solve import stream as streams
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
    assert sorted(path.name for path in file.parent.iterdir()) == ["sweep.npz", "sweep.npz.records"]


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
    """The folder of a checkpoint at step 4 of 12."""
    folder = tmp_path_factory.mktemp("saved")
    with pytest.raises(Interrupted):
        sweep(METHOD, problem, seeds(2), 12, chunk=4, checkpoint=folder / "a.npz", progress=interrupt_at(4))
    return folder


@pytest.fixture
def file(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy") / "a.npz"


@pytest.fixture
def records(file):
    return file.with_name("a.npz.records")


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
        (
            lambda header, arrays: {name: value for name, value in header.items() if name != "records"},
            r"not a checkpoint \(of a version that kept the records in it\); delete it to start afresh",
        ),
        (lambda header, arrays: header | {"records": [1]}, r"not a checkpoint \(.*\); delete it to start afresh"),
    ],
    ids=["jax", "header", "identity", "state", "old", "records"],
)
def test_what_was_meddled_with_or_made_by_another_jax_is_said_to_be(change, message, file):
    rewritten(file, change)
    with pytest.raises(checkpoints.CheckpointError, match=message):
        sweep(METHOD, problem, seeds(2), 12, checkpoint=file)


# The records beside it


def garble(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def link(file):
    file.rename(file.with_name("elsewhere"))
    file.symlink_to(file.with_name("elsewhere"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "is too short"),
        (lambda file: file.write_bytes(b""), "is too short"),
        (garble, "is not what was written"),
        (lambda file: file.unlink(), "is not there"),
        (link, "is a link"),  # which a longer run would write through
    ],
    ids=["truncated", "empty", "garbled", "missing", "link"],
)
def test_records_that_are_not_whole_are_said_to_be_lost(damage, said, file, records):
    damage(records)
    with pytest.raises(
        checkpoints.CheckpointError, match=rf"a\.npz: its records are lost \(a\.npz\.records {said}\); "
    ):
        sweep(METHOD, problem, seeds(2), 12, checkpoint=file)


def test_what_a_kill_left_behind_the_records_does_not_count(file, records):
    whole = sweep(METHOD, problem, seeds(2), 12)
    with open(records, "ab") as end:
        end.write(b"half a block")
    assert_same(sweep(METHOD, problem, seeds(2), 12, checkpoint=file), whole)
    assert_same(sweep(METHOD, problem, seeds(2), 12, checkpoint=file), whole)


def test_records_of_which_no_state_knows_are_written_anew_and_not_through_a_link(file, records):
    whole = sweep(METHOD, problem, seeds(2), 12)
    file.unlink()
    link(records)
    before = records.read_bytes()
    assert_same(sweep(METHOD, problem, seeds(2), 12, checkpoint=file), whole)
    assert records.with_name("elsewhere").read_bytes() == before


def test_a_kill_between_records_and_state_loses_what_was_since_the_last_save(tmp_path, monkeypatch):
    whole, save = sweep(METHOD, problem, seeds(2), 12), checkpoints.save

    def killed(path, at, identity):
        if at.step == 8:
            raise Interrupted
        save(path, at, identity)

    monkeypatch.setattr(checkpoints, "save", killed)
    seen = []
    options = {"chunk": 4, "checkpoint": tmp_path / "a.npz", "progress": seen.append}
    with pytest.raises(Interrupted):
        sweep(METHOD, problem, seeds(2), 12, **options)
    assert [at.step for at in seen] == [4]
    monkeypatch.undo()
    seen.clear()
    assert_same(sweep(METHOD, problem, seeds(2), 12, **options), whole)
    assert [at.step for at in seen] == [8, 12]


def test_a_checkpoint_moves_and_goes_with_its_records(file, records, tmp_path):
    elsewhere = tmp_path / "b.npz"
    whole = sweep(METHOD, problem, seeds(2), 12)
    records.rename(tmp_path / "b.npz.records")  # a move that was cut short
    checkpoints.move(file, elsewhere)
    assert not list(file.parent.iterdir())
    assert_same(sweep(METHOD, problem, seeds(2), 12, checkpoint=elsewhere), whole)
    checkpoints.remove(elsewhere)
    assert not list(tmp_path.glob("b.npz*"))


def test_records_that_memory_should_not_hold_are_arrays_all_the_same(file, records, monkeypatch):
    whole = sweep(METHOD, problem, seeds(2), 12, Record(stats=some_stats))
    monkeypatch.setattr(streams, "_HELD", 200)
    found = sweep(METHOD, problem, seeds(2), 12, Record(stats=some_stats), checkpoint=file.with_name("b.npz"))
    assert isinstance(found.records["mean"].base, np.memmap)
    assert isinstance(found.records["perturbed"].base, np.memmap | None)
    checkpoints.remove(file.with_name("b.npz"))
    assert sorted(path.name for path in file.parent.iterdir()) == ["a.npz", "a.npz.records"]
    assert_same(found, whole)
    found.records["value"][0] = 0.0  # they are the caller's


@pytest.mark.parametrize("dtype", ["float32", "bool", "bfloat16", "complex64", "int32"])
def test_a_stream_holds_arrays_of_any_shape_and_dtype(dtype, tmp_path):
    stream = streams.Stream(tmp_path / "a")
    blocks = [{"x": np.asarray(jnp.arange(n * 6) % 2, jnp.dtype(dtype)).reshape(2, n, 3)} for n in (1, 4, 0, 2)]
    for block in blocks:
        stream = stream.append(block)
    found = stream.records({"x": blocks[0]["x"]}, 8, axis=1)["x"]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, np.concatenate([each["x"] for each in (*blocks, blocks[0])], axis=1))


def test_a_save_writes_what_is_new_and_long_chunks_of_records_are_not_held(tmp_path, monkeypatch):
    written, held, append, save = [], [], streams.Stream.append, checkpoints.save

    def appended(stream, rows):
        held.append(sum(value.nbytes for value in rows.values()))
        return append(stream, rows)

    def saved(path, at, identity):
        save(path, at, identity)
        written.append((path.stat().st_size, at.records.length))

    monkeypatch.setattr(streams.Stream, "append", appended)
    monkeypatch.setattr(checkpoints, "save", saved)
    monkeypatch.setattr(loop, "_BLOCK", block := 1000)
    sweep(wgf(0.1), problem, seeds(2), 4000, checkpoint=tmp_path / "a.npz")
    states, lengths = zip(*written, strict=True)
    assert max(states) - min(states) < 100
    assert len(lengths) == 20
    assert max(np.diff(lengths)) <= lengths[0]
    assert max(held) <= 2 * block


@pytest.fixture
def saves(monkeypatch):
    """The steps at which checkpoints are written."""
    steps, save = [], checkpoints.save

    def note(path, at, identity):
        steps.append(at.step)
        save(path, at, identity)

    monkeypatch.setattr(checkpoints, "save", note)
    return steps


def test_short_chunks_are_not_all_saved(saves, tmp_path):
    seen = []
    options = {"record": Record(every=2), "chunk": 2, "checkpoint": tmp_path / "a.npz", "progress": seen.append}
    sweep(wgf(0.1), problem, seeds(2), 400, **options)
    assert len(seen) == 200
    assert saves == list(range(20, 401, 20))  # a twentieth of the steps apart, not 200 times


@pytest.mark.slow
def test_slow_chunks_are_saved_by_time_and_made_smaller(saves, tmp_path, monkeypatch):
    whole = sweep(wgf(0.1), problem, seeds(2), 24, chunk=16)
    monkeypatch.setattr(loop, "_PATIENCE", 1e-9)
    assert_same(sweep(wgf(0.1), problem, seeds(2), 24, chunk=16, checkpoint=tmp_path / "a.npz"), whole)
    assert saves == list(range(16, 25))
