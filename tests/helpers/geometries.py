"""Convolutions of every geometry, which all methods must compute as torch does."""

import torch
from hypothesis import strategies as st

from norton.graph.layers import CONVOLUTIONS, TRANSPOSED_LAYERS

GEOMETRIES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": (1, 2), "padding": (0, 2), "dilation": (2, 1)},
    {"kernel_size": (1, 5), "padding": (0, 2)},
    {"kernel_size": (5, 1), "stride": (3, 1)},
    {"kernel_size": (2, 4), "padding": "same"},
    {"kernel_size": 3, "padding": "valid", "dilation": 2},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    {"kernel_size": (3, 5), "padding": (1, 2), "padding_mode": "circular"},
    {"kernel_size": 3, "padding": 2, "padding_mode": "replicate", "stride": 2},
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": (2, 1), "padding": (1, 2)},
    {"kernel_size": 1, "padding": 1, "padding_mode": "reflect"},
]


@st.composite
def convolutions(draw, transposed=False, kernel=True):
    """A convolution of one to three dimensions, grouped or not but not depthwise, and an input, in float64.

    kernel: it has one; else it is pointwise.
    """
    dims, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    inputs, outputs = (groups * draw(st.integers(low, 3)) for low in (1 if groups == 1 else 2, 1))

    def each(least, most):
        return tuple(draw(st.integers(least, most)) for _ in range(dims))

    size = each(1, 3) if kernel else (1,) * dims
    if kernel and max(size) == 1:
        size = (2, *size[1:])
    stride, dilation, padding = each(1, 3), each(1, 2), each(0, 2)
    options = {"stride": stride, "dilation": dilation, "groups": groups, "bias": draw(st.booleans())}
    if transposed:
        most = [max(one, other) - 1 for one, other in zip(stride, dilation, strict=True)]
        options["output_padding"] = tuple(min(wanted, limit) for wanted, limit in zip(each(0, 2), most, strict=True))
    else:
        options["padding_mode"] = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
        if draw(st.booleans()):
            padding = draw(st.sampled_from(["same", "valid"]))
            options["stride"] = (1,) * dims if padding == "same" else stride
    torch.manual_seed(draw(st.integers(0, 99)))
    kinds = TRANSPOSED_LAYERS if transposed else CONVOLUTIONS
    layer = kinds[dims - 1](inputs, outputs, size, padding=padding, dtype=torch.float64, **options)
    return layer, torch.randn(2, inputs, *each(5, 8), dtype=torch.float64)
