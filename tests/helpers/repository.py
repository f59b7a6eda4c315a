"""Where the repository is, the checkpoint that commands start from, and the five published networks."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DENSE = "checkpoints/resnet_56_clutter.pt"
ARCHITECTURES = ["vgg_16_bn", "resnet_56", "resnet_110", "densenet_40", "resnet_50"]
