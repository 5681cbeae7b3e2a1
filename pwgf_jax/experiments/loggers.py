"""Where else a run can be watched: TensorBoard, Weights & Biases, MLflow, or anything with these two methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from pwgf_jax.experiments.messages import ConfigError
from pwgf_jax.solve import Progress

__all__ = ["LOGGERS", "Logger", "logged"]


@runtime_checkable
class Logger(Protocol):
    """What is told of a run while it goes on."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers of one arm, as ``arm/name``, after so many of its steps."""
        ...

    def close(self) -> None:
        """The run has ended, or was interrupted."""
        ...


def logged(logger: Logger, arm: str, progress: Progress) -> None:
    """Tell a logger how far an arm is: medians over its seeds, and how many of them still run."""
    numbers = {"value": np.median(progress.value), "gradient_norm": np.median(progress.gradient_norm)}
    numbers["running"] = progress.running
    logger.log(progress.step, {f"{arm}/{name}": float(number) for name, number in numbers.items()})


class _TensorBoard:
    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]

        self._writer = SummaryWriter(str(folder / "tensorboard"))
        self._writer.add_text("config", str(dict(config)))

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self._run = wandb.init(project="pwgf_jax", name=folder.name, dir=str(folder), config=dict(config))

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        # Its own step may not go back, and every arm begins at zero.
        arm = next(iter(numbers)).partition("/")[0]
        self._run.log({**numbers, f"{arm}/step": step})

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import mlflow  # pyright: ignore[reportMissingImports]

        self._mlflow = mlflow
        mlflow.start_run(run_name=folder.name)
        mlflow.log_dict(dict(config), "config.json")

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(numbers), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


_NEEDED = {"tensorboard": ("tensorboardX", _TensorBoard), "wandb": ("wandb", _Wandb), "mlflow": ("mlflow", _Mlflow)}


def _opened(name: str) -> Callable[[Path, Mapping[str, Any]], Logger]:
    package, make = _NEEDED[name]

    def open_(folder: Path, config: Mapping[str, Any]) -> Logger:
        try:
            return make(folder, config)
        except ImportError as error:
            raise ConfigError(f"--log {name} needs {package}: pip install {package}.") from error

    return open_


LOGGERS = {name: _opened(name) for name in _NEEDED}
"""By name: (run folder, config as plain data) -> :class:`Logger`."""
