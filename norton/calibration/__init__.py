"""What unlabelled images are used for: fitting layers to the outputs they gave, and BatchNorm.

`replay` plays a network back layer by layer, `input_moments` gathers what a layer reads, `metric` is the distance in
which the error of an output is that of a weight; `outputs` fits one layer after the other with these, `compensation`
fits what pruning left, `batchnorm` re-estimates statistics.

Imports `common` and `graph`.  The decompositions that are fitted lie in `decomposition`, above.
"""
