"""Norton: compress convolutional networks by hybrid tensor decomposition and structured pruning."""

from norton.budget import choose_ranks
from norton.checkpoints import load, save
from norton.counting import complexity
from norton.decomposition import Calibration, decompose, layer_nmse, nmse
from norton.decomposition.cp import set_form_
from norton.deployment import Deployment, deploy
from norton.errors import InputError
from norton.models import build
from norton.pruning import prune
from norton.rates import format_rates, parse_rates
from norton.storage import share_weights
from norton.tracing import wiring_of

__version__ = "0.1.0"
__all__ = [
    "Calibration",
    "Deployment",
    "InputError",
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
