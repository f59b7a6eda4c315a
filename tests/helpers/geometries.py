"""Convolutions of every geometry, which all methods must compute as torch does."""

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
