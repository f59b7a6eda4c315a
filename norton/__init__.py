"""Norton: compress convolutional networks by hybrid tensor decomposition and structured pruning."""

from norton.budget.choosing import choose_ranks
from norton.checkpoints.coding import share_weights
from norton.checkpoints.files import load, save
from norton.common.errors import InputError
from norton.common.version import __version__
from norton.decomposition import Calibration, decompose, layer_nmse, nmse
from norton.deployment.deploying import Deployment, deploy
from norton.graph import wiring_of
from norton.graph.layers import set_form_
from norton.measure.counting import complexity
from norton.models import build
from norton.pruning import prune
from norton.pruning.rates import format_rates, parse_rates

__all__ = [
    "Calibration",
    "Deployment",
    "InputError",
    "__version__",
    "build",
    "choose_ranks",
    "complexity",
    "decompose",
    "deploy",
    "format_rates",
    "layer_nmse",
    "load",
    "nmse",
    "parse_rates",
    "prune",
    "save",
    "set_form_",
    "share_weights",
    "wiring_of",
]
