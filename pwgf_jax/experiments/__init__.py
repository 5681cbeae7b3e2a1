"""Experiments: a problem, one arm per method, several seeds, from a TOML file to a run folder; the ``pwgf`` command.

A config is read by :mod:`~pwgf_jax.experiments.config`, made into a problem by :mod:`~pwgf_jax.experiments.problems`,
run by :mod:`~pwgf_jax.experiments.runner`, and looked at with :mod:`~pwgf_jax.experiments.summary`,
:mod:`~pwgf_jax.experiments.plots` and :mod:`~pwgf_jax.experiments.certification`. What a config can name is in
:mod:`~pwgf_jax.experiments.registry`; :mod:`~pwgf_jax.experiments.survey` finds critical points from many starts.
"""

from pwgf_jax.experiments.build import build
from pwgf_jax.experiments.config import Config, dump, load
from pwgf_jax.experiments.messages import ConfigError

__all__ = ["Config", "ConfigError", "build", "dump", "load"]
