"""Exact forms of layers, against the convolution or linear layer that they stand for."""

import itertools

import pytest
import torch
from torch import nn

import norton
from norton.decomposition import DECOMPOSITIONS
from norton.deployment.exact_forms import DENSE, exact_forms, merge_kernels, scale_outputs_
from norton.graph.layers import as_dense

pytestmark = pytest.mark.quick

GEOMETRIES = [
    {},
    {"padding": 1},
    {"stride": 2, "padding": 1},
    {"stride": (1, 2), "padding": (2, 0), "dilation": (2, 1)},
    {"padding": "same"},
    {"padding": 1, "padding_mode": "reflect"},
    {"kernel_size": (3, 2), "padding": "same"},
    {"kernel_size": (5, 3), "padding": (2, 1), "bias": False},
]
SPATIAL = sorted(method for method in DECOMPOSITIONS if method != "svd")
FORMS = {
    "cp": {"factored", "depthwise", "grouped", DENSE},
    "cp_layer": {"factored", "merged", DENSE},
    "tt": {"factored", "merged", DENSE},
    "tt_filter": {"factored", "merged", DENSE},
    "tucker": {"factored", DENSE},
    "tucker_filter": {"factored", DENSE},
}


def decomposed(method, rank, dtype=torch.float64, **geometry):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, geometry.pop("kernel_size", 3), **geometry, dtype=dtype)
    layer = DECOMPOSITIONS[method].shaped_like(conv, rank)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def ranks_for(method):
    return {"cp": [1, 2, 3], "cp_layer": [2], "tucker": [(2, 3)], "tt": [(2, 3, 4)], "tt_filter": [(3, 2)]}.get(
        method, [2]
    )


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize(("method", "rank"), [(m, rank) for m in SPATIAL for rank in ranks_for(m)])
def test_every_form_computes_the_same(method, rank, geometry):
    layer = decomposed(method, rank, **geometry)
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    wanted = as_dense(layer)(x)
    torch.testing.assert_close(layer(x), wanted)
    for form in exact_forms(layer).values():
        for layout in (torch.contiguous_format, torch.channels_last):
            found = form.to(memory_format=layout)(x.contiguous(memory_format=layout))
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes(dtype):
    layer, x = decomposed("cp", 2, dtype, padding=1), torch.randn(2, 4, 8, 8, dtype=dtype)
    wanted = as_dense(layer)(x)
    for form in exact_forms(layer).values():
        assert form(x).dtype == dtype
        torch.testing.assert_close(form(x), wanted, rtol=0.05, atol=0.05 * wanted.abs().max().item())


@pytest.mark.parametrize("method", SPATIAL)
def test_forms_that_there_are(method):
    found = exact_forms(decomposed(method, ranks_for(method)[-1]))
    assert set(found) == FORMS[method] and list(found)[-1] == DENSE
    assert set(exact_forms(decomposed("cp", 1))) == {
        "factored",
        "depthwise",
        DENSE,
    }  # a single term has nothing to group
    assert not any(parameter.requires_grad for form in found.values() for parameter in form.parameters())


def test_a_layer_that_is_not_decomposed_has_one_form():
    linear = nn.Linear(3, 4)
    [(name, form)] = exact_forms(linear).items()
    assert name == DENSE and form is not linear and linear.weight.requires_grad


def test_linear():
    layer = norton.decompose(nn.Sequential(nn.Linear(6, 5)).double(), 2, method="svd")[0]
    x = torch.randn(3, 6, dtype=torch.float64)
    for form in exact_forms(layer).values():
        torch.testing.assert_close(form(x), layer(x))


@pytest.mark.parametrize(("method", "rank"), [(m, rank) for m in SPATIAL for rank in ranks_for(m)])
def test_outputs_are_scaled(method, rank):
    for bias in (True, False):
        layer = decomposed(method, rank, bias=bias)
        x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
        scale, shift = torch.randn(2, 6, dtype=torch.float64)
        wanted = layer(x) * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
        scale_outputs_(layer, scale, shift)
        torch.testing.assert_close(layer(x), wanted)


def test_kernels_are_merged_only_where_both_have_the_same_groups():
    rows, columns = nn.Conv2d(4, 4, (3, 1), groups=4, bias=False), nn.Conv2d(4, 4, (1, 3), bias=False)
    assert merge_kernels([rows, columns]) == [rows, columns]
    assert merge_kernels([columns, rows]) == [columns, rows]
    for groups, kernel in itertools.product((1, 2), (2, 3)):
        rows = nn.Conv2d(4, 6, (kernel, 1), stride=(2, 1), padding=(1, 0), groups=groups, bias=False)
        columns = nn.Conv2d(6, 2, (1, 3), dilation=(1, 2), padding=(0, 2), groups=groups, bias=False)
        [one] = merge_kernels([rows, columns])
        x = torch.randn(2, 4, 7, 9)
        torch.testing.assert_close(one(x), columns(rows(x)))
