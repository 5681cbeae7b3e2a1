"""The ``pwgf`` command: run, resume, plot, compare and list experiments."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pwgf_jax import __version__
from pwgf_jax.experiments import plots, runner, summary
from pwgf_jax.experiments.config import load
from pwgf_jax.experiments.folder import Arm, RunFolder, open_run, refuse_taken
from pwgf_jax.experiments.reading import ConfigError
from pwgf_jax.experiments.registry import FLOWS, FUNCTIONALS, OWN_DATA, SOURCES, STARTS, Entry

__all__ = ["main"]

BAD_INPUT, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """The command line.

    Args:
        argv: arguments after ``pwgf``; those of the process if None.

    Returns:
        The exit status: 0, 2 for something wrong in what was asked, 130 after an interruption.

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
    except ConfigError as error:
        print(f"pwgf: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        folder = getattr(options, "folder", None)
        begun = isinstance(folder, Path) and (folder / "run.json").exists()
        then = f"; go on with: pwgf resume {shlex.quote(str(folder))}" if begun else ""
        print(f"\npwgf: interrupted{then}", file=sys.stderr)
        return INTERRUPTED
    return 0


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGINT interrupts, also where a script put the command in the background, which ignores it by default."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


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

    run = command("run", _run, "run the experiment of a TOML file into a new folder")
    run.add_argument("config", help="the TOML file")
    run.add_argument("--out", type=Path, dest="folder", help="the folder to make; runs/NAME-TIME if not given")
    run.add_argument(
        "--set", action="append", default=[], metavar="A.B=VALUE", dest="settings", help="change a key of the config"
    )
    run.add_argument("--quiet", action="store_true", help="show no progress bar")

    resume = command("resume", _resume, "go on with a run that was interrupted")
    resume.add_argument("folder", type=Path, help="the run folder")
    resume.add_argument("--quiet", action="store_true", help="show no progress bar")

    plot = command("plot", _plot, "draw the figure and write the summary of a run again")
    plot.add_argument("folder", type=Path, help="the run folder")

    compare = command("compare", _compare, "put the arms of several runs into one figure and one table")
    compare.add_argument("runs", type=Path, nargs="+", help="run folders")
    compare.add_argument("--out", type=Path, required=True, dest="folder", help="the folder to write to")

    everything = command("list", _list, "list configs, and what a config can name")
    everything.add_argument("where", type=Path, nargs="?", default=Path("configs"), help="folder of configs")
    return parser


def _run(options: argparse.Namespace, command: str) -> None:
    config = load(options.config, options.settings)
    if options.folder is None:
        options.folder = Path("runs") / f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    _report(runner.run(config, options.folder, command=command, quiet=options.quiet))


def _resume(options: argparse.Namespace, command: str) -> None:
    del command
    _report(runner.resume(options.folder, quiet=options.quiet))


def _plot(options: argparse.Namespace, command: str) -> None:
    del command
    folder = open_run(options.folder)
    if not folder.arms():
        raise ConfigError(f"{folder.path}: no arm is finished yet; go on with `pwgf resume {folder.path}`.")
    _write_summary(folder)
    _say_written(plots.draw(folder.arms(), folder.path / "figure"))


def _report(folder: RunFolder) -> None:
    """The end of a run: summary, figure, and a table for the terminal."""
    arms = folder.arms()
    _write_summary(folder)
    print(summary.table(_transposed(summary.overview(arms))))
    for note in summary.notes(arms):
        print(note)
    try:
        plots.draw(arms, folder.path / "figure")
    except ConfigError as error:  # the run is worth more than its figure
        print(f"pwgf: {error}", file=sys.stderr)
    print(f"Everything is in {folder.path}")


def _write_summary(folder: RunFolder) -> None:
    folder.write_text("summary.md", summary.summarise(folder))


def _transposed(rows: list[list[str]]) -> list[list[str]]:
    """An arm a column: there are few arms and many numbers, and terminals are narrow."""
    return [list(column) for column in zip(*rows, strict=True)]


def _say_written(files: Sequence[Path]) -> None:
    for file in files:
        print(f"Wrote {file}")


def _compare(options: argparse.Namespace, command: str) -> None:
    refuse_taken(options.folder)
    arms = _labelled({path: open_run(path) for path in options.runs})
    text = [f"# Comparison of {len(options.runs)} runs", summary.table(summary.overview(arms))]
    text += [summary.table(summary.trajectory(arms)), *summary.notes(arms), f"Made by `{command}`."]
    options.folder.mkdir(parents=True, exist_ok=True)
    file = options.folder / "summary.md"
    file.write_text("\n\n".join(text) + "\n", encoding="utf-8")
    print(summary.table(_transposed(summary.overview(arms))))
    _say_written([file, *plots.draw(arms, options.folder / "figure")])


def _labelled(runs: Mapping[Path, RunFolder]) -> dict[str, Arm]:
    """The arms of all runs, under their own names where these are unique, else with the run's before it."""
    arms = [(path, name, arm) for path, run in runs.items() for name, arm in run.arms().items()]
    if not arms:
        raise ConfigError(f"{', '.join(map(str, runs))}: no arm is finished yet.")
    names = [name for _, name, _ in arms]
    if len(set(names)) == len(names):
        return {name: arm for _, name, arm in arms}
    folders = {path: path.resolve().name for path in runs}
    short = len(set(folders.values())) == len(folders)
    return {f"{folders[path] if short else path}: {name}": arm for path, name, arm in arms}


def _list(options: argparse.Namespace, command: str) -> None:
    del command
    if not options.where.is_dir():
        if options.where != Path("configs"):
            raise ConfigError(f"{options.where}: there is no such folder.")
    else:
        print(f"Configs in {options.where}")
        for path in sorted(options.where.glob("*.toml")):
            first = path.read_text(encoding="utf-8").partition("\n")[0]
            print(f"  {path.name}: {first.lstrip('# ') if first.startswith('#') else '(no comment)'}")
    own = {"FILE.npz or FILE.csv": OWN_DATA}
    for title, entries in {
        "Functionals (problem.functional)": FUNCTIONALS,
        "Data sources (problem.data.source)": SOURCES | own,
        "Starts (problem.start.kind)": STARTS,
        "Flows (arms.NAME.flow)": FLOWS,
    }.items():
        print(title)
        for name, entry in entries.items():
            print(_line(name, entry))
    print('A functional of your own is functional = "path/to/file.py:NAME".')


def _line(name: str, entry: Entry) -> str:
    return f"  {name}({entry.signature}): {entry.summary}"


if __name__ == "__main__":
    sys.exit(main())
