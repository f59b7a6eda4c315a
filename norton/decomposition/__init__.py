"""Decomposition: replace convolutions and linear layers by layers of less parameters that approximate them.

`methods` is the contract of a method; each is one file that registers a layer class by name (`cp`, `cp_layer`,
`tucker`, `tucker_filter`, `tt`, `tt_filter`, `svd`) and one YAML in `configs/decomposition/`.  All inherit from the
classes in `layers`.  `decomposing` holds `decompose`, `options` how it decomposes; `ranks` reads ranks and rules for
them (`vbmf` is one); `weight_errors` is NMSE.  Solvers of the main method: `cp_als` for weights, `cp_outputs` for
outputs; `factors` is what it makes and pruning compares.

Imports `common`, `graph` and `calibration`, which fits layers to outputs.  Ranks for a budget are chosen in `budget`;
`deployment.exact_forms` has the forms of each layer for inference.
"""

from norton.calibration import Calibration, output_errors
from norton.common.registry import import_submodules
from norton.decomposition.cp_als import cp_filters
from norton.decomposition.decomposing import decompose
from norton.decomposition.methods import DECOMPOSITIONS, decomposable
from norton.decomposition.options import OBJECTIVES, DecomposeOptions
from norton.decomposition.ranks import layer_ranks
from norton.decomposition.weight_errors import layer_nmse, nmse

import_submodules(__name__)

__all__ = [
    "DECOMPOSITIONS",
    "OBJECTIVES",
    "Calibration",
    "DecomposeOptions",
    "cp_filters",
    "decomposable",
    "decompose",
    "layer_nmse",
    "layer_ranks",
    "list_methods",
    "nmse",
    "output_errors",
]


def list_methods() -> list[str]:
    """The decompositions that `norton.decompose` knows, sorted."""
    return sorted(DECOMPOSITIONS)
