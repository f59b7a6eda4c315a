"""A sweep: a grid of ranks, rates, criteria, seeds and whatever else, every point of it through the chain."""

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.sweeps import measurement
from norton.cli import program


@program.script("ablation", is_sweep=True, resumes=True)
def main(cfg: DictConfig) -> None:
    measurement.run(cfg, list(HydraConfig.get().overrides.task))


if __name__ == "__main__":
    main()
