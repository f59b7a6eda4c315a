"""Criteria: how good a filter is, a file each.

`kinds` is the contract: a decorator, and a small class behind it, for each thing that a criterion may look at (the
distance of two filters, a filter, maps, gradients, scales of BatchNorm, a layer).  A new criterion is one file here and
one YAML in `configs/pruning/`; all files of this folder are imported, and tests run over all criteria.

Imports `common`, `decomposition.factors`, and of pruning only the mathematics: `elimination`, `subspaces`, `spectra`.
`norton.pruning.scoring` asks criteria for scores.
"""

from norton.common.registry import import_submodules

import_submodules(__name__)
