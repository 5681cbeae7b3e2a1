"""Long runs: what memory holds and what a write takes, of a run and of one ten times as long.

Each has a process of its own. Memory is what belongs to the process alone: what is mapped from the disk is not counted.
"""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

RUN = """\
import json, sys, time, tracemalloc
from pathlib import Path
import jax, jax.numpy as jnp
from pwgf_jax import Particles, sweep, wgf
from pwgf_jax.solve import checkpoint as checkpoints
from pwgf_jax.solve.stream import Stream

path, seeds, steps = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1e3

def problem(key):
    return lambda mu: mu.weights @ mu.points[:, 0] ** 2, Particles.uniform(jax.random.normal(key, (1, 1)))

seconds, resident, append, save = [], [], Stream.append, checkpoints.save

def timed(call, *arguments):
    began = time.perf_counter()
    done = call(*arguments)
    seconds.append(time.perf_counter() - began)
    return done

Stream.append = lambda *arguments: timed(append, *arguments)
checkpoints.save = lambda *arguments: timed(save, *arguments)
tracemalloc.start()
solution = sweep(
    wgf(1e-3), problem, jax.random.split(jax.random.key(0), seeds), steps,
    checkpoint=path, progress=lambda at: resident.append(anonymous()), check=False,
)
whole, records = solution.records["value"].shape, path.with_name(path.name + ".records").stat().st_size
print(json.dumps({
    "resident": [*resident, anonymous()], "traced": tracemalloc.get_traced_memory()[1] / 1e6,
    "seconds": seconds, "records": records / 1e6, "shape": whole,
}))
"""


@pytest.mark.parametrize(("seeds", "steps"), [(1, 100_000), (2000, 10_000)])
def test_a_long_run(seeds, steps, report, tmp_path):
    command = [sys.executable, "-c", RUN, str(tmp_path / "a.npz"), str(seeds)]
    found = {}
    for factor in (1, 10):
        done = subprocess.run([*command, str(factor * steps)], check=True, capture_output=True, text=True)
        found[factor] = json.loads(done.stdout)
        (tmp_path / "a.npz").unlink()
    for factor, each in found.items():
        tenth = len(each["seconds"]) // 10 or 1
        first, last = (1e3 * np.median(part) for part in (each["seconds"][:tenth], each["seconds"][-tenth:]))
        during, after = max(each["resident"][:-1]), each["resident"][-1]
        report(
            f"{seeds} x {factor * steps} records, {each['records']:.0f} MB: {during:.0f} MB held on the way, "
            f"{after:.0f} with the solution, NumPy's peak {each['traced']:.0f}; a write takes {first:.0f} ms, "
            f"at the end {last:.0f}"
        )
