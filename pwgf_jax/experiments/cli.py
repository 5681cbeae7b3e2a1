"""The ``pwgf`` command: run, resume, merge, plot, certify, survey, compare and list experiments."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import sys
import threading
import time
import tomllib
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TypeAlias, get_args

import jax

from pwgf_jax import __version__
from pwgf_jax.experiments import listing, merging, processes
from pwgf_jax.experiments import run as runs
from pwgf_jax.experiments.config import Config, load, parse
from pwgf_jax.experiments.folder import RunFolder, open_run
from pwgf_jax.experiments.loggers import LOGGERS
from pwgf_jax.experiments.messages import ConfigError, say, suggestion
from pwgf_jax.experiments.outset import refuse_taken
from pwgf_jax.experiments.report import certificates, figures, landscape, particles, tables
from pwgf_jax.experiments.shares import share, spread
from pwgf_jax.solve.hosts import first, number, several

__all__ = ["main"]

FAILED, BAD_INPUT, INTERRUPTED, NOBODY_READS = 1, 2, 130, 141
_COMPARISON = ("summary.md", "figure.png", "figure.pdf")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line.

    Args:
        argv: arguments after ``pwgf``; those of the process if None.

    Returns:
        The exit status: 0, 2 for something wrong in what was asked or on the disk, 130 after an interruption, 141 where
        nobody reads what is printed any more, as in ``pwgf list | head``.

    Example:
        >>> main(["plot", "no/such"])
        2
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as exit:  # argparse has said what is wrong, or printed the help
        return exit.code if isinstance(exit.code, int) else BAD_INPUT
    try:
        with _interruptible():
            options.do(options, shlex.join(["pwgf", *arguments]))
            sys.stdout.flush()
    except ConfigError as error:
        say(str(error))
        return BAD_INPUT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more when it ends
        return NOBODY_READS
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        say(f"{where}{error.strerror or error}{_how_to_go_on(options)}")
        return BAD_INPUT
    except KeyboardInterrupt:
        if number() == 0:
            print(file=sys.stderr)
            say(f"interrupted{_how_to_go_on(options)}")
        return INTERRUPTED
    except Exception:
        if not several():
            raise
        _leave(options)
    return 0


def _leave(options: argparse.Namespace) -> None:
    """An error of this process among several: it ends at once, without waiting for the others, which then end too."""
    traceback.print_exc()
    say(f"this process, or another that it waits for, has failed{_how_to_go_on(options)}")
    sys.stderr.flush()
    os._exit(FAILED)


def _how_to_go_on(options: argparse.Namespace) -> str:
    """What to do about a run that has stopped half way; nothing where none was under way."""
    folder = getattr(options, "folder", None)
    if options.do not in (_run, _resume) or not isinstance(folder, Path) or not (folder / "run.json").exists():
        return ""
    try:
        trust = "--trust " if runs.own_code(open_run(folder).config) else ""
    except (ConfigError, OSError):
        return ""
    return f"; go on with: pwgf resume {trust}{shlex.quote(str(folder))}"


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGINT interrupts, also where a script put the command in the background, which ignores it by default."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if jax.distributed.is_initialized():  # the others stop too, all at the same step, as after a SIGTERM to one
        signal.raise_signal(signal.SIGTERM)
    else:
        signal.default_int_handler(number, frame)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pwgf", description="Experiments with perturbed Wasserstein gradient flows.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"pwgf_jax {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, do: object, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(do=do)
        return sub

    _add_runs(command)
    _add_looks(command)
    everything = command("list", _list, "list configs, and what a config can name")
    everything.add_argument("what", nargs="?", help="one of these, to see all of it; or a folder of configs")
    new = command("new", _new, "write a commented config to begin with")
    new.add_argument("name", help="of the experiment; NAME.toml is written")
    command("schema", _schema, "print the JSON schema of configs, for editors that complete and check them")
    return parser


_Add: TypeAlias = Callable[[str, object, str], argparse.ArgumentParser]


def _add_runs(command: _Add) -> None:
    """The commands that run methods."""
    run = command("run", _run, "run the experiment of a TOML file into a new folder")
    _configured(run)
    part = "only the i-th of n nearly equal parts of the seeds, i from 1: $SLURM_ARRAY_TASK_ID/8 in an array of ids 1-8"
    run.add_argument("--part", metavar="I/N", help=f"{part}; `pwgf merge` puts them together")
    _watching(run)

    resume = command("resume", _resume, "go on with a run that was interrupted")
    resume.add_argument("folder", type=Path, help="the run folder")
    resume.add_argument("--steps", type=int, help="make it longer: the steps that it has in all then")
    _watching(resume)
    _trust(resume)

    merge = command("merge", _merge, "put the parts of a run together: the folder that one run of all seeds makes")
    merge.add_argument("parts", type=Path, nargs="+", help="the folders that `pwgf run --part` made, all of them")
    merge.add_argument("--out", type=Path, required=True, dest="folder", help="the folder to make")

    land = command(
        "landscape", _landscape, "find critical points from many starts, and say whether they are strict saddles"
    )
    _configured(land)
    arm = "what goes to critical points, once or more; else the first arm. All starts have the data of the first seed"
    land.add_argument("--arm", action="append", default=[], dest="arms", help=arm)
    land.add_argument("--starts", type=int, help="how many; as many as the config has seeds if not given")
    land.add_argument("--steps", type=int, help="of every start; as many as the config says if not given")
    land.add_argument("--tolerance", type=float, default=0.01, help="relative distance of points that count as one")
    land.add_argument("--quiet", action="store_true", help="show no progress bar")
    _tolerances(land)


def _add_looks(command: _Add) -> None:
    """The commands that look at what was run."""
    plot = command("plot", _plot, "draw the figure and write the summary of a run again")
    plot.add_argument("folder", type=Path, help="the run folder")
    axis = "draw the curves against this, into figure-X; steps into figure else"
    plot.add_argument("--x", choices=get_args(figures.Axis), help=axis)
    plot.add_argument("--animate", action="store_true", help="make a moving picture of the particles' snapshots too")

    certify = command("certify", _certify, "certify what the seeds of a run ended in: second-order point or saddle")
    certify.add_argument("folder", type=Path, help="the run folder")
    certify.add_argument("--arm", help="only this arm; all if not given")
    certify.add_argument("--seeds", type=int, help="only the first so many seeds")
    _tolerances(certify)
    _trust(certify)

    compare = command("compare", _compare, "put the arms of several runs into one figure and one table")
    compare.add_argument("runs", type=Path, nargs="+", help="run folders")
    compare.add_argument("--out", type=Path, required=True, dest="folder", help="the folder to write to")


def _configured(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="the TOML file, or the name of a shipped one (see `pwgf list`)")
    parser.add_argument("--out", type=Path, dest="folder", help="the folder to make; runs/NAME-TIME if not given")
    change = "change a key of the config"
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", dest="settings", help=change)


def _watching(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")
    parser.add_argument("--log", choices=LOGGERS, help="tell this of the run's progress too")
    parser.add_argument("--no-cache", action="store_true", help="keep no compiled programs for the next run")
    over = "spread seeds over S groups of devices, the particles of each over P; all devices take seeds if not given"
    parser.add_argument("--mesh", metavar="SxP", help=over)
    processes.ask(parser)


def _trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust", action="store_true", help="run the Python file that the folder's config names, if it names one"
    )


def _trusted(options: argparse.Namespace) -> bool:
    """Whether code that the folder names may be run: as given, or as answered where there is somebody to ask."""
    own = [] if options.trust or not sys.stdin.isatty() else runs.own_code(open_run(options.folder).config)
    if not own:
        return options.trust
    say(f"{options.folder}: its config.toml names code of its own, {', '.join(own)}, which this runs.")
    return input("Do you know what it does, and want it run? [y/N] ").strip().lower() in ("y", "yes")


def _tolerances(parser: argparse.ArgumentParser) -> None:
    own = "the arm's own, if its gradient norm ever exceeded it, else 1 %% of the largest on record, at least 1e-3"
    parser.add_argument("--eps", type=float, help=f"gradient norm that counts as stationary; {own}")
    scale = "1 %% of the largest absolute eigenvalue of the full Hessian there, of which the report gives λ_min's share"
    parser.add_argument("--delta", type=float, help=f"curvature that counts as negative; {scale}")


def _config(given: str) -> Path:
    """The file of a config, or a shipped one by its name."""
    if Path(given).is_file() or given.endswith(".toml") or "/" in given or os.sep in given:
        return Path(given)
    known = listing.shipped()
    if given not in known:
        raise ConfigError(f"{given}: there is no such file, and no shipped config; {suggestion(given, known)}")
    return known[given]


def _keep_compiled(options: argparse.Namespace) -> None:
    """What is compiled is kept for the next run, which then starts at once."""
    if not options.no_cache and getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "pwgf_jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _run(options: argparse.Namespace, command: str) -> None:
    config = load(_config(options.config), options.settings)
    part = None if options.part is None else share(options.part)
    over = None if options.mesh is None else spread(options.mesh)
    processes.connect(options, config.seeds if part is None else len(part.of_seeds(config.seeds)))
    own_steps = {name: arm.steps for name, arm in config.arms.items() if arm.steps}
    if own_steps and any(re.match(r"\s*steps\s*=", setting) for setting in options.settings):
        kept = ", ".join(f"{name} {steps}" for name, steps in own_steps.items())
        own = f"steps are those of arms that have none of their own; these keep theirs: {kept}."
        first(partial(say, own))
    suffix = "" if part is None else f"-part-{part.index}-of-{part.of}"
    options.folder = options.folder or first(partial(_new_folder, config, suffix))
    _keep_compiled(options)
    watched = {"command": command, "quiet": options.quiet, "logger": LOGGERS.get(options.log)}
    folder = runs.run(config, options.folder, share=part, spread=over, **watched)
    first(partial(_report, folder))


def _new_folder(config: Config, suffix: str = "") -> Path:
    return Path("runs") / f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}{suffix}"


def _merge(options: argparse.Namespace, command: str) -> None:
    _report(merging.merge(options.parts, options.folder, command))


def _resume(options: argparse.Namespace, command: str) -> None:
    del command
    seeds = 1
    with suppress(OSError, ValueError, KeyError, TypeError):  # of what is no run, the first process will say so
        seeds = int(RunFolder(options.folder).info["seeds"])
    processes.connect(options, seeds)
    _keep_compiled(options)
    trust, logger = first(partial(_trusted, options)), LOGGERS.get(options.log)
    over = None if options.mesh is None else spread(options.mesh)
    watched = {"quiet": options.quiet, "logger": logger}
    folder = runs.resume(options.folder, steps=options.steps, spread=over, trust=trust, **watched)
    first(partial(_report, folder))


def _plot(options: argparse.Namespace, command: str) -> None:
    del command
    folder = open_run(options.folder)
    if not folder.arms():
        raise ConfigError(f"{folder.path}: no arm is finished yet; go on with `pwgf resume {folder.path}`.")
    snapshots = folder.snapshots()
    if options.animate and not snapshots:
        raise ConfigError(
            f"{folder.path}: it has no snapshots of particles to animate; put `snapshots = [0, 50, 100]`, steps that "
            "are multiples of record_every, into the config and run it again."
        )
    folder.write_text("summary.md", tables.summarise(folder))
    _say_written(figures.draw_run(folder, options.x))
    if options.animate:
        _say_written(particles.animate(snapshots, folder.path / "particles"))


def _certify(options: argparse.Namespace, command: str) -> None:
    folder = open_run(options.folder)
    certified = certificates.certify_run(
        folder,
        arm=options.arm,
        eps=options.eps,
        delta=options.delta,
        seeds=options.seeds,
        trust=_trusted(options),
    )
    text = certificates.report(certified)
    folder.write_text("certificates.md", f"# Certificates of {folder.info['name']}\n\n{text}\n\nMade by `{command}`.\n")
    folder.write_text("certificates.json", json.dumps([each.plain() for each in certified], indent=2) + "\n")
    arms = dict.fromkeys(each.arm for each in certified)
    folder.certified({arm: [each.certificate.verdict.name for each in certified if each.arm == arm] for arm in arms})
    print(text)
    _say_written([folder.path / "certificates.md", folder.path / "certificates.json"])


def _landscape(options: argparse.Namespace, command: str) -> None:
    config = load(_config(options.config), options.settings)
    config = landscape.prepare(config, options.arms, options.starts, options.steps)
    options.folder = options.folder or _new_folder(config)
    found = landscape.explore(
        config,
        options.folder,
        eps=options.eps,
        delta=options.delta,
        tolerance=options.tolerance,
        command=command,
        quiet=options.quiet,
    )
    print(landscape.report(found))
    _say_written(landscape.write(found, options.folder, command))


def _report(folder: RunFolder) -> None:
    """The end of a run: summary, figure, and tables for the terminal."""
    folder.write_text("summary.md", tables.summarise(folder))
    print(tables.spoken(folder))
    try:
        figures.draw_run(folder)
    except ConfigError as error:  # the run is worth more than its figure
        say(str(error))
    print(f"Everything is in {folder.path}")


def _say_written(files: Sequence[Path]) -> None:
    for file in files:
        print(f"Wrote {file}")


def _compare(options: argparse.Namespace, command: str) -> None:
    refuse_taken(options.folder, ours=_COMPARISON)
    runs = {path: open_run(path) for path in options.runs}
    text, shown = tables.comparison(runs, command)
    options.folder.mkdir(parents=True, exist_ok=True)
    RunFolder(options.folder).write_text("summary.md", text)
    print(shown)
    _say_written([options.folder / "summary.md", *figures.draw(tables.labelled(runs), options.folder / "figure")])


def _list(options: argparse.Namespace, command: str) -> None:
    del command
    where = Path(options.what or "")
    if not options.what:
        print(listing.overview(listing.shipped()))
    elif where.is_dir():
        print(listing.overview({path.name: path for path in sorted(where.glob("*.toml"))}))
    else:
        print(listing.about(options.what))


def _new(options: argparse.Namespace, command: str) -> None:
    del command
    path = Path(f"{options.name}.toml")
    if path.exists():
        raise ConfigError(f"{path}: it is there already; give another name.")
    text = listing.template(options.name)
    parse(tomllib.loads(text), str(path))
    path.write_text(text, encoding="utf-8")
    _say_written([path])


def _schema(options: argparse.Namespace, command: str) -> None:
    del options, command
    print(json.dumps(Config.model_json_schema(), indent=1))


if __name__ == "__main__":
    sys.exit(main())
