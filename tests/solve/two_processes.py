"""Laws of two processes with two devices each, which ``test_hosts.py`` starts: the process's number, port and folder.

What several processes compute is what one does, and each of them knows it.
"""

from __future__ import annotations

import os
import signal
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

from pwgf_jax import Particles, Record, certify, run, sweep, wgf
from pwgf_jax.flows import Flow
from pwgf_jax.solve import checkpoint, shard_particles
from pwgf_jax.solve.hosts import alike, fetched, first, number, several
from pwgf_jax.solve.pieces import pieces
from tests.solve.problems import METHOD, problem, seeds

STEPS, RECORD = 8, Record(every=2)


@cache
def noisy() -> Flow:
    """Its state has a typed key in it, and rows for particles; not made before jax knows of the other process."""
    return wgf(optax.chain(optax.adam(0.05), optax.add_noise(1e-6, 0.55, key=jax.random.key(3))))


class Interrupted(Exception):
    pass


def halfway(progress: Any) -> None:
    if progress.step >= STEPS // 2:
        raise Interrupted


def killed_halfway(progress: Any) -> None:
    if progress.step >= STEPS // 2 and jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def one() -> tuple[Any, Particles, Any]:
    key = seeds(1)[0]
    F, mu = problem(key)
    return F, mu.moved_to(mu.points + 0.3), key  # from a saddle adam makes steps of rounding errors


def swept(**options: Any) -> Any:
    return sweep(noisy(), problem, seeds(4), STEPS, RECORD, chunk=2, check=False, **options)


def ran(mu: Particles, **options: Any) -> Any:
    F, _, key = one()
    return run(noisy(), F, mu, key, STEPS, RECORD, chunk=2, check=False, **options)


def equal(found: Any, expected: Any) -> None:
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(fetched(a), b, rtol=1e-7, atol=1e-9, err_msg=jax.tree_util.keystr(path))


def what_is_said(folder: Path) -> None:
    assert several()
    assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (2, 4, 2)
    assert first(number) == 0
    assert alike(number) == jax.process_index()
    only = jax.process_index()
    for call in (lambda: first(lambda: {}["a"]), lambda: alike(lambda: {1 - only: 3}[1] and {}["a"])):
        with pytest.raises(KeyError):
            call()


def a_sweep(folder: Path) -> None:
    many, expected = swept(), swept(batching="map")
    equal(many, expected)
    assert all(isinstance(each, np.ndarray) for each in (many.value, many.status, many.steps, many.records["value"]))
    equal(swept(checkpoint=folder / "begun in one.npz"), expected)
    with pytest.raises(Interrupted):
        swept(checkpoint=folder / "begun in two.npz", progress=halfway)
    assert len(pieces(folder / "begun in two.npz")) == 2


def a_sweep_over_a_mesh(folder: Path) -> None:
    both, turned = (jax.make_mesh((2, 2), axes) for axes in (("seed", "particle"), ("particle", "seed")))
    there = folder / "mesh.npz"
    with pytest.raises(Interrupted):
        swept(mesh=both, checkpoint=there, progress=halfway)
    many = swept(mesh=turned, checkpoint=there)
    assert many.mu.points.sharding.spec[1] == "particle"
    method = lambda **options: sweep(METHOD, problem, seeds(2), 3, chunk=3, check=False, **options)  # noqa: E731
    equal(method(mesh=both), method(batching="map"))


def a_run_of_particles_everywhere(folder: Path) -> None:
    F, mu, key = one()
    there = shard_particles(mu)
    flow = wgf(optax.adam(0.05))
    equal(run(flow, F, there, key, STEPS, RECORD), run(flow, F, mu, key, STEPS, RECORD))
    path = folder / "run.npz"
    with pytest.raises(Interrupted):
        ran(there, checkpoint=path, progress=halfway)
    stray = path.with_name("run.npz.7.0")  # of a save that was cut short
    first(lambda: stray.write_bytes(b"half a pie"))
    whole, again = ran(there), ran(there, checkpoint=path)
    equal((again.value, again.records), (whole.value, fetched(whole.records)))
    assert not again.mu.points.is_fully_addressable
    assert {each.name for each in pieces(path)} == {"run.npz.8.0", "run.npz.8.1"}


def a_checkpoint_that_is_not_whole(folder: Path) -> None:
    path = folder / "run.npz"
    there = shard_particles(one()[1])
    if number() == 0:
        (path.with_name("run.npz.8.1")).write_bytes(b"")
    first(lambda: None)
    with pytest.raises(checkpoint.CheckpointError, match=r"run\.npz: not a checkpoint"):
        ran(there, checkpoint=path)
    first(lambda: checkpoint.remove(path))
    assert not pieces(path)


def a_run_that_all_make(folder: Path) -> None:
    """Of a measure that is nowhere else: each makes all of it, and one writes it."""
    path, mu = folder / "own.npz", one()[1]
    with pytest.raises(Interrupted):
        ran(mu, checkpoint=path, progress=halfway)
    equal(ran(mu, checkpoint=path), ran(mu))


def a_certificate(folder: Path) -> None:
    F, mu, key = one()
    here, there = (certify(F, each, 1e-3, 1e-2, key, check=False) for each in (mu, shard_particles(mu)))
    assert here.verdict == there.verdict
    np.testing.assert_allclose(fetched(there.full.eigenvalue), here.full.eigenvalue, rtol=1e-6, atol=1e-9)


def a_kill(folder: Path) -> None:
    swept(checkpoint=folder / "killed.npz", progress=killed_halfway)


LAWS = (
    what_is_said,
    a_sweep,
    a_sweep_over_a_mesh,
    a_run_of_particles_everywhere,
    a_checkpoint_that_is_not_whole,
    a_run_that_all_make,
    a_certificate,
)

if __name__ == "__main__":
    jax.distributed.initialize(f"127.0.0.1:{sys.argv[2]}", 2, int(sys.argv[1]), heartbeat_timeout_seconds=20)
    import tests.conftest  # the strict jax of the tests, which traces other programs  # noqa: F401

    place = Path(sys.argv[3])
    for law in LAWS:
        print(law.__name__, flush=True)
        law(place)
    print("all laws hold", flush=True)
    try:
        a_kill(place)
    except jax.errors.JaxRuntimeError as error:
        print(f"lost: {error}", flush=True)
        os._exit(3)  # at once, as one who waits for the other would not
