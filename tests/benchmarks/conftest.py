"""Side-by-side timing: every contender of a comparison is timed in turn, round after round, in one process.

These machines are noisy, so what is reported are ratios of medians over interleaved rounds, never bare seconds alone.
Run with ``python -m pytest tests/benchmarks``; with ``JAX_NUM_CPU_DEVICES=2`` for sweeps spread over host devices,
as the ``pwgf`` command has them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import pytest

_LINES: list[str] = []

# The tests compile as fast as can be; here it is what is compiled that is measured.
jax.config.update("jax_disable_most_optimizations", False)
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "").replace("--xla_cpu_use_fusion_emitters=false", "")


@pytest.fixture(autouse=True)
def user_defaults():
    """What a user runs with: float32, JAX's ordinary promotion; the tests' strictness is for the tests."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def side_by_side() -> Callable[..., dict[str, float]]:
    """``side_by_side({name: thunk}, rounds)`` -> median seconds of each, after one warm-up call each."""

    def measure(contenders: Mapping[str, Callable[[], Any]], rounds: int = 15) -> dict[str, float]:
        for thunk in contenders.values():
            jax.block_until_ready(thunk())
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, thunk in contenders.items():
                begin = time.perf_counter()
                jax.block_until_ready(thunk())
                times[name].append(time.perf_counter() - begin)
        return {name: float(np.median(values)) for name, values in times.items()}

    return measure


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Say a line, at once and in the table at the end, which a run that is cut off never prints."""
    capture: Any = request.config.pluginmanager.getplugin("capturemanager")

    def say(line: str) -> None:
        _LINES.append(f"{request.node.name:32s} {line}")
        with capture.global_and_fixture_disabled():
            print(f"\n{_LINES[-1]}", flush=True)

    return say


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what was measured."""
    if not _LINES:
        return
    device = jax.devices()[0]
    terminalreporter.section(f"measured: jax {jax.__version__}, {device.platform} {device.device_kind}, float32")
    for line in _LINES:
        terminalreporter.write_line(line)
