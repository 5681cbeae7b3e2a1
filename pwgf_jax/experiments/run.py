"""Running an experiment: arm after arm, each a sweep over the seeds, into a run folder.

In several processes all of them make these calls, with the same arguments: the first writes, and the others learn of it
what it found there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import jax
from jax.sharding import Mesh

from pwgf_jax.experiments import own
from pwgf_jax.experiments.config import Config, Part, dump, fingerprint, unfold
from pwgf_jax.experiments.costs import cost_model
from pwgf_jax.experiments.experiment import Experiment, build
from pwgf_jax.experiments.folder import RunFolder, open_run
from pwgf_jax.experiments.loggers import Logger, logged
from pwgf_jax.experiments.messages import ConfigError, say
from pwgf_jax.experiments.outset import create, refuse_taken
from pwgf_jax.experiments.processes import cpu_devices
from pwgf_jax.experiments.progress import Bar
from pwgf_jax.experiments.shares import Share, Spread
from pwgf_jax.solve import Progress, Solution, sweep
from pwgf_jax.solve import checkpoint as checkpoints
from pwgf_jax.solve.checkpoint import CheckpointError
from pwgf_jax.solve.hosts import alike, fetched, first, number, several

MakeLogger: TypeAlias = Callable[[Path, Mapping[str, Any]], Logger]

__all__ = ["experiments", "own_code", "resume", "run", "settings", "unchanged"]


def run(
    config: Config,
    path: Path,
    *,
    share: Share | None = None,
    spread: Spread | None = None,
    command: str = "",
    quiet: bool = True,
    logger: MakeLogger | None = None,
) -> RunFolder:
    """Run an experiment into a new folder.

    Args:
        config: the experiment.
        path: the folder to make.
        share: which of the seeds to run; all if None. Each does what it does among all of them.
        spread: how many devices seeds, and the particles of each, are spread over; all devices take seeds if None.
        command: what the user typed, for the record.
        quiet: whether to show no progress.
        logger: one of :data:`.LOGGERS`, or what makes a :class:`.Logger` of the folder and the config.

    Returns:
        The folder, with all arms finished.

    Raises:
        ConfigError: if the experiment cannot be made, has fewer seeds than shares, or the folder is taken; nothing is
            written then.
    """
    first(partial(refuse_taken, path))
    seeds = range(config.seeds) if share is None else share.of_seeds(config.seeds)
    with settings(config, len(seeds)):
        mesh = None if spread is None else spread.mesh(config)
        parts = alike(partial(experiments, config, seeds))
        folder = first(partial(create, path, config, command, share))
        with _locked(folder):
            _advance(folder, parts, _Watch(folder, config, quiet, logger), mesh)
    return folder


def experiments(config: Config, seeds: range | None = None) -> list[tuple[Part, Experiment]]:
    """What a config consists of, each part made for some seeds, or all, and tried."""
    made: dict[str, Any] = {}
    return [(part, build(part.config, made, seeds)) for part in unfold(config)]


def resume(
    path: Path,
    *,
    steps: int | None = None,
    spread: Spread | None = None,
    quiet: bool = True,
    trust: bool = False,
    logger: MakeLogger | None = None,
) -> RunFolder:
    """Go on with a run that was interrupted: finished arms are kept, the one under way goes on from its checkpoint.

    What is damaged, or missing though it was finished, is said to be and run again.

    Args:
        path: the run folder.
        steps: more than the run was made with, to make it longer: every arm goes on from where it ended. None for as
            many as it was made with.
        spread: as in :func:`run`, whatever it was before.
        quiet: whether to show no progress.
        trust: whether to run a Python file that the folder's config names.
        logger: as in :func:`run`.

    Returns:
        The folder, with all arms finished.

    Raises:
        ConfigError: if there is no run, another process runs it, its config or data are not what they were, it names
            code of its own that is not trusted, or it has taken more steps already.

    Example:
        >>> resume(Path("no/such"))
        Traceback (most recent call last):
        ...
        pwgf_jax.experiments.messages.ConfigError: no/such: no run is in it (no run.json); make one with `pwgf run`.
    """
    folder = first(partial(open_run, path))
    with _locked(folder):
        config = alike(partial(unchanged, folder, trust=trust))
        first(partial(_mend, folder, config))
        if steps is not None:
            config = _longer(folder, config, steps)
        unfinished, seeds = first(lambda: (folder.unfinished, folder.seeds))
        if unfinished:
            with settings(config, len(seeds)):
                mesh = None if spread is None else spread.mesh(config)
                parts = alike(partial(experiments, config, seeds))
                _advance(folder, parts, _Watch(folder, config, quiet, logger), mesh)
    return folder


@contextmanager
def _locked(folder: RunFolder) -> Iterator[None]:
    with ExitStack() as held:
        first(lambda: held.enter_context(folder.locked()))
        alike(partial(_check_shared, folder))
        yield


def _check_shared(folder: RunFolder) -> None:
    if not (folder.path / "run.json").is_file():
        raise ConfigError(f"{folder.path}: process {number()} does not see it; give one on a disk that all share.")


def _mend(folder: RunFolder, config: Config) -> None:
    for sentence in folder.mend(config):
        say(sentence)


def _longer(folder: RunFolder, config: Config, steps: int) -> Config:
    """The same run with more steps; its arms are not finished any more."""
    if steps < config.steps:
        raise ConfigError(f"--steps: given {steps}; the run has {config.steps} already, give more.")
    longer = config.changed({("steps",): steps})
    first(partial(_lengthen, folder, config, longer))
    return longer


def _lengthen(folder: RunFolder, config: Config, longer: Config) -> None:
    info = folder.info
    for before, after in zip(unfold(config), unfold(longer), strict=True):
        for arm in after.config.arms:
            info["arms"][arm]["finished"] &= before.config.steps_of(arm) == after.config.steps_of(arm)
    text = dump(longer)
    # A crash in between leaves no config.toml: opening the folder writes it again from run.json.
    (folder.path / "config.toml").unlink()
    folder.write_info(info | {"steps": longer.steps, "config": text, "config_hash": fingerprint(longer)})
    folder.write_text("config.toml", text)


def unchanged(folder: RunFolder, *, trust: bool = False) -> Config:
    """The config of a run, if it and the files that it names are what they were.

    Args:
        folder: of a run.
        trust: whether it may name a Python file, which whoever makes the problem runs.

    Returns:
        Its config.

    Raises:
        ConfigError: if something has changed, or it names code of its own that is not trusted.

    Example:
        >>> unchanged(RunFolder(Path("no/such")))
        Traceback (most recent call last):
        ...
        pwgf_jax.experiments.messages.ConfigError: no/such/config.toml: there is no such file.
    """
    config = folder.config
    if named := own_code(config):
        if not trust:
            raise ConfigError(
                f"{folder.path}: its config.toml names code of its own, {', '.join(named)}, which this would run; "
                "if you know what it does, give --trust."
            )
    text = (folder.path / "config.toml").read_text(encoding="utf-8")
    # Version 0.1.0 knew the first half of a hash that now goes on with the files that own code imports.
    if not fingerprint(text).startswith(folder.info["config_hash"]):
        raise ConfigError(
            f"{folder.path}: config.toml, or a file of yours that it names, has changed since the run began; "
            "put it back, or start anew with `pwgf run`."
        )
    return config


def own_code(config: Config) -> list[str]:
    """The Python files that making a config's problem runs."""
    named = [path for part in unfold(config) for path in own.files(part.config.model_dump(exclude_none=True))]
    return list(dict.fromkeys(str(path) for path in named if path.suffix == ".py"))


@contextmanager
def settings(config: Config, seeds: int | None = None) -> Iterator[None]:
    """The jax that a config asks for: its precision, and on CPU a device per core to spread seeds over.

    Args:
        config: of an experiment.
        seeds: how many there are; as many as the config has if None.
    """
    cpu_devices(seeds or config.seeds)
    with jax.enable_x64(config.dtype == "float64"):
        yield


def _advance(folder: RunFolder, parts: list[tuple[Part, Experiment]], watch: _Watch, mesh: Mesh | None) -> None:
    """Run the arms that are not finished."""
    unfinished = first(lambda: folder.unfinished)
    with watch:
        for part, experiment in parts:
            for arm, flow in experiment.flows.items():
                if arm not in unfinished:
                    watch.skip(arm)
                    continue
                watch.begin(arm)
                first(partial(checkpoints.move, folder.end(arm), folder.checkpoint(arm)))
                go = partial(
                    sweep,
                    flow,
                    experiment.problem,
                    experiment.keys,
                    part.config.steps_of(arm),
                    experiment.records[arm],
                    mesh=mesh,
                    progress=watch,
                    checkpoint=folder.checkpoint(arm),
                )
                try:
                    solution = go()
                except CheckpointError as error:
                    first(partial(_afresh, folder, arm, error))
                    solution = go()
                if several():
                    solution = solution._replace(mu=fetched(solution.mu))
                first(partial(_finish, folder, part, experiment, arm, solution, watch))


def _afresh(folder: RunFolder, arm: str, error: CheckpointError) -> None:
    say(f"{error.args[0].partition(';')[0]}: arm {arm} starts afresh.")
    checkpoints.remove(folder.checkpoint(arm))


def _finish(folder: RunFolder, part: Part, experiment: Experiment, arm: str, solution: Solution, watch: _Watch) -> None:
    timing = watch.timing(folder.info["arms"][arm]) | experiment.facts
    if part.config.arms[arm].key == "flow":  # a transform counts for itself
        timing["cost"] = cost_model(part.config.arms[arm], experiment.points)
    folder.finish(arm, solution, timing, part.config.snapshots, experiment.target)


class _Watch:
    """Passes progress on to the bar and to a logger, and notes what the steps have taken."""

    def __init__(self, folder: RunFolder, config: Config, quiet: bool, logger: MakeLogger | None) -> None:
        steps = {arm: part.config.steps_of(arm) for part in unfold(config) for arm in part.config.arms}
        self._bar = Bar(steps, quiet=quiet or number() > 0)
        self._logger: Logger | None = None
        if logger is not None:
            first(lambda: self._tell(logger(folder.path, config.model_dump(mode="json"))))
        self._arm, self._began = "", 0.0
        self._seen: list[tuple[int, float, int]] = []

    def _tell(self, logger: Logger) -> None:
        self._logger = logger

    def __enter__(self) -> None:
        self._bar.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)
        if self._logger is not None:
            self._logger.close()

    def skip(self, arm: str) -> None:
        self._bar.skip(arm)

    def begin(self, arm: str) -> None:
        self._arm, self._began, self._seen = arm, time.perf_counter(), []
        self._bar.begin(arm)

    def __call__(self, progress: Progress) -> None:
        self._seen.append((progress.step, round(progress.seconds, 6), progress.seed_steps))
        self._bar(progress)
        if self._logger is not None:
            logged(self._logger, self._arm, progress)

    def timing(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """What run.json says: seconds in all, and at the ends of chunks those of the steps alone.

        Args:
            before: what it said of the arm before, which a longer run goes on with.
        """
        rows = [
            row
            for row in zip(*before.get("clock", {}).values(), strict=True)
            if not self._seen or row[0] < self._seen[0][0]
        ]
        timing: dict[str, Any] = {"seconds": round(time.perf_counter() - self._began, 3)}
        if rows:
            timing["seconds"] += before["seconds"]
        columns = ([row[i] for row in (*rows, *self._seen)] for i in range(3))
        timing["clock"] = dict(zip(("step", "seconds", "seed_steps"), columns, strict=True))
        if self._seen and self._seen[-1][1] > 0:
            _, stepping, seed_steps = self._seen[-1]
            timing["seed_steps_per_second"] = round(seed_steps / stepping, 1)
        return timing
