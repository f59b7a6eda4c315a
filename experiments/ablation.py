"""A sweep: a grid of ranks, rates, criteria, seeds and whatever else, every point of it through the chain."""

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from omegaconf import DictConfig

from experiments.sweeps import measurement
from hydra_plugins.norton_sweeper import GridSweeper
from norton.cli import program


@program.script("ablation", is_sweep=True, resumes=True)
def run(cfg: DictConfig) -> None:
    measurement.run(cfg, list(HydraConfig.get().overrides.task))


def main() -> None:
    """Run the program.  Hydra finds the sweeper by itself, but not in an editable installation."""
    Plugins.instance().register(GridSweeper)
    run()


if __name__ == "__main__":
    main()
