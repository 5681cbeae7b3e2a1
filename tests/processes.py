"""Several processes of one program on this machine, which end with the test."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    """Of this machine; a test is skipped where there is none to be had."""
    try:
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            return listening.getsockname()[1]
    except OSError as error:
        pytest.skip(f"no sockets here: {error}")


@contextmanager
def started(
    commands: Sequence[Sequence[object]], out: Path, devices: int, environments: Sequence[dict[str, str]] = ({}, {})
) -> Iterator[list[subprocess.Popen]]:
    """A process for each list of words after ``python``; what they say goes into files, as nobody reads a pipe."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    common = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    processes: list[subprocess.Popen] = []
    try:
        for i, (words, own) in enumerate(zip(commands, environments, strict=True)):
            with open(out / f"said.{i}", "wb") as said:
                command = [sys.executable, *map(str, words)]
                processes.append(
                    subprocess.Popen(command, env=common | own, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
                )
        yield processes
    finally:
        for process in processes:
            process.kill()  # jax has taken SIGTERM for itself
            process.wait()


def ends(processes: Sequence[subprocess.Popen], seconds: float) -> list[int | None]:
    """How each has ended, None for those that have not in that time."""
    wait_for(lambda: all(each.poll() is not None for each in processes), seconds)
    return [each.poll() for each in processes]


def wait_for(happened: Callable[[], bool], seconds: float) -> bool:
    """Whether it has happened in that time."""
    until = time.monotonic() + seconds
    while not happened() and time.monotonic() < until:
        time.sleep(0.05)
    return happened()


def said(out: Path) -> list[str]:
    """What each process has said, the end of it."""
    return [(out / f"said.{i}").read_text(errors="replace")[-6000:] for i in range(2)]
