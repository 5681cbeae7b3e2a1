"""Experiments: a problem, one arm per method, several seeds, from a TOML file to a run folder; the ``pwgf`` command.

A config is read by :mod:`~pwgf_jax.experiments.config`, made into a problem by :mod:`~pwgf_jax.experiments.experiment`,
run by :mod:`~pwgf_jax.experiments.run` into a :mod:`~pwgf_jax.experiments.folder`, and looked at with the modules of
:mod:`~pwgf_jax.experiments.report`. What a config can name is in :mod:`~pwgf_jax.experiments.catalogue`.
"""

from pwgf_jax.experiments.config import Config, dump, load
from pwgf_jax.experiments.experiment import build
from pwgf_jax.experiments.folder import open_run
from pwgf_jax.experiments.messages import ConfigError
from pwgf_jax.experiments.report.figures import plot_spectrum

__all__ = ["Config", "ConfigError", "build", "dump", "load", "open_run", "plot_spectrum"]
