"""Norton's sweeper, in the namespace package `hydra_plugins`, the place where Hydra looks for plugins.

Hydra imports this file in each of its programs, so what a sweep needs is imported only when one runs.
"""

from collections.abc import Mapping
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class GridSweeper(Sweeper):
    """Every combination of the values given, of which only the points are launched that have no result yet.

    A launcher (`hydra/launcher=`) runs them: one after another, in several processes, or as jobs of a cluster.
    max_batch_size: so many jobs at once; params: values to sweep, besides those of the command line.
    """

    def __init__(self, max_batch_size: int | None = None, params: Mapping[str, Any] | None = None):
        self.max_batch_size, self.params = max_batch_size, dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        from experiments.sweeps.sweeper import sweep_grid
        from norton.cli.program import (
            quote,
        )  # as on the command line, where compress_rate=[0.]+[0.2]*29 needs no quotes

        overrides = [*(quote(f"{key}={value}") for key, value in self.params.items()), *arguments]
        loader = self.hydra_context.config_loader
        sweep_grid(self.config, loader, self.launcher, arguments, overrides, self.max_batch_size)
