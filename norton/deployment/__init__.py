"""Networks in use: the fastest exact form on this machine, ONNX and INT8.

`deploying` has the verb, `deploy`: `folding` takes BatchNorm away, in a copy that runs the network's own code;
`following` and `norms` say where that is right.  `exact_forms` lists how each layer can compute, `search` times them,
`assembling` puts the fastest together, `entrance` and `layouts` lay out images before its code runs, `checks` holds the
outputs against the network's, and `record` is what was chosen, for the next time.
`onednn` packs convolutions for CPUs, `triton_cp` is a kernel for GPUs.
`comparing` deploys networks that are timed against each other.

`export` writes programs of torch.export and ONNX, `int8` ONNX in 8-bit integers, `exported` is what they share;
`onnx_networks` runs such files, and so does `run_onnx` by itself, without torch and this project.

Imports `common`, `graph`, `measure` and `decomposition`.  How long networks take is in `measure.latency`.
"""
