"""What unlabelled images are used for: fitting layers to the outputs that they gave, and BatchNorm.

`loaders` reads images of whatever a user has; `settings` say how they are used and which can be. `layer_calls` sees
which layers a forward pass calls, `replay` plays it back on the images layer by layer, `input_moments` gathers what a
layer reads, `metric` is the distance in which the error of an output is that of a weight; with these, `outputs` fits
one layer after the other, and `compensation` those that pruning left. `precision` is about networks in half of it,
`output_errors` measures layers, `batchnorm` decides what becomes of statistics.

Imports `common` and `graph`.  What makes a layer of a target and a metric is given as a function: the decompositions
are in `decomposition`, above.  Where images come from is the matter of `data`.
"""

from norton.calibration.batchnorm import Adapted, adapt_batchnorm_, move_means_, reestimate_batchnorm_
from norton.calibration.loaders import ImageSource, read_images
from norton.calibration.metric import Metric
from norton.calibration.output_errors import output_errors
from norton.calibration.outputs import LayerFit, fit_to_outputs
from norton.calibration.settings import Calibration, check_images

__all__ = [
    "Adapted",
    "Calibration",
    "ImageSource",
    "LayerFit",
    "Metric",
    "adapt_batchnorm_",
    "check_images",
    "fit_to_outputs",
    "move_means_",
    "output_errors",
    "read_images",
    "reestimate_batchnorm_",
]
