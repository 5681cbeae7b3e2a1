"""One command in several processes, on one machine or many: each is given the same words, and its own number."""

from __future__ import annotations

import argparse
import os
import re
from contextlib import suppress

import jax

from pwgf_jax.experiments.messages import ConfigError, said, show

__all__ = ["ask", "connect", "cpu_devices"]

_LOST = 60  # seconds without a sign of life after which a process counts as lost
_TOGETHER = 30  # seconds that they wait for each other at the end
_STARTED = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")  # how many processes, where a cluster has started them


def ask(parser: argparse.ArgumentParser) -> None:
    """The options of a command that may run in several processes."""
    several = parser.add_argument_group("several processes, each given the same command, share the seeds")
    several.add_argument("--distributed", action="store_true", help="as Slurm, Open MPI or a TPU pod has started them")
    several.add_argument("--coordinator", metavar="HOST:PORT", help="else: where the first of them can be reached")
    several.add_argument("--processes", type=int, metavar="N", help="how many they are")
    several.add_argument("--process-id", type=int, metavar="I", help="which of them this is, from 0")


def connect(options: argparse.Namespace, seeds: int) -> None:
    """Wait for the other processes, if there are any; from here on a SIGTERM to one stops all.

    Args:
        options: what :func:`ask` asks for.
        seeds: how many there are to spread, as far as it is known.

    Raises:
        ConfigError: if what is given is no whole, or the others cannot be reached.
    """
    given = {"--coordinator": options.coordinator, "--processes": options.processes, "--process-id": options.process_id}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given) and not options.distributed:
        return
    if missing and not options.distributed:
        raise ConfigError(f"{', '.join(missing)}: not given; {', '.join(given)} go together: give all three.")
    if options.distributed and len(missing) < len(given):
        raise ConfigError(f"--distributed: the cluster says the rest; leave {', '.join(given)} out.")
    if not options.distributed:
        if not re.fullmatch(r".+:\d{1,5}", options.coordinator):
            raise ConfigError(f"--coordinator: given {show(options.coordinator)}; give HOST:PORT of the first process.")
        if not 0 <= options.process_id < options.processes:
            raise ConfigError(f"--process-id: given {options.process_id} of {options.processes}; count from 0.")
    try:
        jax.distributed.initialize(
            options.coordinator,
            options.processes,
            options.process_id,
            heartbeat_timeout_seconds=_LOST,
            shutdown_timeout_seconds=_TOGETHER,
        )
    except (ValueError, RuntimeError) as error:
        if options.distributed:
            cure = "start this by srun, mpirun or on a TPU pod, or give --coordinator, --processes and --process-id."
            raise ConfigError(f"--distributed: jax finds no cluster here ({said(error)}); {cure}") from error
        cure = "give HOST:PORT with a free port of the first process."
        raise ConfigError(f"--coordinator: {options.coordinator} cannot be used ({said(error)}); {cure}") from error
    known = (os.environ.get(name) for name in _STARTED)
    cpu_devices(-(-seeds // (options.processes or int(next(filter(None, known), 1)))))


def cpu_devices(seeds: int) -> None:
    """On CPU a device per core to spread seeds over, but no more than finish as soon: of eight, ten seeds take five."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    rounds = -(-seeds // cores)
    chosen = "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not chosen:
        with suppress(RuntimeError):  # too late: a caller has used jax in this process before
            jax.config.update("jax_num_cpu_devices", -(-seeds // rounds))
