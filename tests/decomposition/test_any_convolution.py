"""Convolutions of one to three dimensions, transposed and grouped, against torch's on literal weights."""

import copy
import math

import numpy as np
import pytest
import tensorly
import torch
import torch.nn.functional as F
from helpers.geometries import convolutions
from helpers.metrics import some_metric
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import norton
from norton.calibration.metric import GroupedMetric
from norton.decomposition import DECOMPOSITIONS, cp_filters
from norton.decomposition.factors import reconstruct
from norton.decomposition.ranks import resolve_rank
from norton.deployment.exact_forms import exact_forms, scale_outputs_
from norton.graph.layers import as_dense, in_form, in_layout_of, weight_of
from norton.graph.slicing import cut_from_groups_, cut_inputs_, cut_outputs_

CASES = {
    "cp": convolutions(),
    "tucker": st.one_of(convolutions(), convolutions(transposed=True)),
    "svd": st.one_of(convolutions(kernel=False), convolutions(transposed=True)),
}
FUNCTIONS = {
    **{f"Conv{n}d": getattr(F, f"conv{n}d") for n in (1, 2, 3)},
    **{f"ConvTranspose{n}d": getattr(F, f"conv_transpose{n}d") for n in (1, 2, 3)},
}
FAST = {"cp": {"starts": 1, "iterations": 20}}


def decomposed(layer, method, rank):
    found = resolve_rank("layer", layer, rank, method)
    return DECOMPOSITIONS[method].from_conv(layer, found, name="layer", **FAST.get(method, {}))


def by_function(layer, weight, x):
    """torch's function on a weight."""
    padding = layer.padding
    if layer.padding_mode != "zeros" and padding != "valid":
        total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        sides = [(n // 2, n - n // 2) for n in total] if padding == "same" else [(n, n) for n in padding]
        x, padding = F.pad(x, [n for pair in reversed(sides) for n in pair], mode=layer.padding_mode), 0
    options = {"stride": layer.stride, "padding": padding, "dilation": layer.dilation, "groups": layer.groups}
    if layer.transposed:
        options["output_padding"] = layer.output_padding
    return FUNCTIONS[type(layer).__name__](x, weight, layer.bias, **options)


def literal_filters(small):
    """(O, C / groups, ...) of the parts, group by group and term by term."""
    parts, groups = [part.weight.detach().numpy() for part in small.feature], small.groups
    by_group = [np.split(part, groups) for part in parts]
    found = []
    for own in zip(*by_group, strict=True):
        if hasattr(small, "factors"):
            found.append(literal_cp(own, small.rank, small.out_channels // groups))
            continue
        turned = [part.swapaxes(0, 1) if one.transposed else part for part, one in zip(own, small.feature, strict=True)]
        pointwise = [part.reshape(part.shape[:2]) if set(part.shape[2:]) <= {1} else part for part in turned]
        kernel = [part for part in pointwise if part.ndim > 2]
        matrices = [part for part in pointwise if part.ndim == 2]
        if not kernel:
            weight = np.linalg.multi_dot(matrices[::-1]) if len(matrices) > 1 else matrices[0]
            found.append(weight.reshape(*weight.shape, *[1] * small.dims))
        elif len(matrices) == 1:  # SVD of a transposed one
            found.append(np.einsum("or...,rc->oc...", kernel[0], matrices[0]))
        else:
            found.append(np.einsum("ob,ba...,ac->oc...", matrices[1], kernel[0], matrices[0]))
    return torch.from_numpy(np.concatenate(found))


def literal_cp(parts, rank, filters):
    pointwise, *along = parts
    kernel = [max(part.shape[2:]) if len(along) == 1 else part.shape[2 + axis] for axis, part in enumerate(along)]
    weight = np.zeros((filters, pointwise.shape[1], *kernel))
    for term in range(rank):
        for one in range(filters):
            channel = term * filters + one
            product = pointwise[channel].ravel()
            for part in along:
                product = np.multiply.outer(product, part[channel].ravel())
            weight[one] += product
    return weight


@pytest.mark.parametrize("method", CASES)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_full_rank_is_the_dense_layer(method, data):
    layer, x = data.draw(CASES[method])
    small = decomposed(layer, method, {"fraction": 1})
    torch.testing.assert_close(small.composed_weight(), layer.weight.detach(), rtol=1e-9, atol=1e-9, check_stride=False)
    torch.testing.assert_close(small(x), layer(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", CASES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), part=st.floats(0, 0.7))
def test_it_computes_torchs_function_on_the_literal_weight(method, data, part):
    layer, x = data.draw(CASES[method])
    small = decomposed(layer, method, {"fraction": part})
    literal = literal_filters(small)
    torch.testing.assert_close(weight_of(small), literal, rtol=1e-9, atol=1e-9, check_stride=False)
    weight = small.composed_weight()
    assert weight.shape == layer.weight.shape and weight.dtype == torch.float64
    wanted = by_function(layer, weight, x)
    torch.testing.assert_close(small(x), wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(small(x[0]), wanted[0], rtol=1e-9, atol=1e-9)  # one without a batch, as torch takes
    dense = as_dense(small)
    assert type(dense) is type(layer)
    for key in ("stride", "dilation", "groups", "padding_mode", "kernel_size", "in_channels", "out_channels"):
        assert getattr(dense, key) == getattr(small, key) == getattr(layer, key), key
    torch.testing.assert_close(dense(x), wanted, rtol=1e-9, atol=1e-9)
    for form in ("grouped", "composed"):
        with in_form(small, form):
            torch.testing.assert_close(small(x), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", CASES)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_surgery_is_that_of_the_dense_layer(method, data):
    layer, x = data.draw(CASES[method])
    small = decomposed(layer, method, {"fraction": 0.5})
    twin = copy.deepcopy(layer)
    twin.weight = nn.Parameter(small.composed_weight().detach())
    if layer.groups == 1:
        read = data.draw(st.permutations(range(layer.in_channels)))[: max(1, layer.in_channels - 1)]
        kept = data.draw(st.permutations(range(layer.out_channels)))[: max(1, layer.out_channels - 1)]
        for one in (small, twin):
            cut_inputs_(one, torch.tensor(read))
    else:
        each, own = layer.out_channels // layer.groups, layer.in_channels // layer.groups
        groups = data.draw(st.permutations(range(layer.groups)))[: layer.groups - 1]
        kept = [group * each + one for group in groups for one in range(each)]
        read = [group * own + one for group in groups for one in range(own)]
    for one in (small, twin):
        cut_outputs_(one, torch.tensor(kept))
    torch.testing.assert_close(small(x[:, read]), twin(x[:, read]), rtol=1e-9, atol=1e-9)
    shaped = DECOMPOSITIONS[method].shaped_like(twin, small.rank)  # as when a plan is replayed in another order
    assert [p.shape for p in shaped.parameters()] == [p.shape for p in small.parameters()]
    assert (small.groups, small.in_channels, small.out_channels) == (twin.groups, len(read), len(kept))


@pytest.mark.parametrize("method", CASES)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_the_same_filters_of_each_group_can_go(method, data):
    layer, x = data.draw(CASES[method].filter(lambda case: case[0].groups > 1))
    small = decomposed(layer, method, {"fraction": 0.5})
    twin = copy.deepcopy(layer)
    twin.weight = nn.Parameter(small.composed_weight().detach())
    chosen = []
    for width in (layer.in_channels, layer.out_channels):
        each = width // layer.groups
        own = data.draw(st.permutations(range(each)))[: max(1, each - 1)]
        chosen.append(torch.tensor([group * each + one for group in range(layer.groups) for one in own]))
    read, kept = chosen
    filters = weight_of(twin)[kept][:, read[: len(read) // layer.groups]]
    cut_inputs_(small, read)
    cut_from_groups_(small, kept)
    torch.testing.assert_close(weight_of(small), filters, rtol=1e-9, atol=1e-9, check_stride=False)
    twin.weight = nn.Parameter(in_layout_of(twin, filters))
    twin.in_channels, twin.out_channels = len(read), len(kept)
    twin.bias = None if layer.bias is None else nn.Parameter(layer.bias[kept])
    torch.testing.assert_close(small(x[:, read]), twin(x[:, read]), rtol=1e-9, atol=1e-9)
    shaped = DECOMPOSITIONS[method].shaped_like(twin, small.rank)
    assert [p.shape for p in shaped.parameters()] == [p.shape for p in small.parameters()]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(CASES["svd"])
def test_svd_is_the_nearest_of_its_rank_in_each_group(case):
    layer, _ = case
    rank = max(1, DECOMPOSITIONS["svd"].full_rank(layer)[0] // 2)
    small = DECOMPOSITIONS["svd"].from_conv(layer, rank, name="layer")
    found, wanted = (weight_of(one).chunk(layer.groups) for one in (small, layer))
    for approximation, weight in zip(found, wanted, strict=True):
        singular = np.linalg.svd(weight.numpy().swapaxes(0, 1).reshape(weight.shape[1], -1), compute_uv=False)
        error = (weight - approximation).square().sum().item()
        assert error == pytest.approx((singular[rank:] ** 2).sum(), rel=1e-9, abs=1e-12)


def test_cp_in_one_dimension_is_the_nearest_of_its_rank():
    """A filter is a matrix of channels by positions there."""
    torch.manual_seed(0)
    weight = torch.randn(7, 6, 5, dtype=torch.float64)
    for rank in (1, 2, 4):
        found = reconstruct(cp_filters(weight, rank))
        errors = (weight - found).square().sum((1, 2)).numpy()
        singular = np.linalg.svd(weight.numpy(), compute_uv=False)
        np.testing.assert_allclose(errors, (singular[:, rank:] ** 2).sum(1), rtol=1e-6)


def test_cp_in_three_dimensions_is_no_worse_than_tensorly():
    torch.manual_seed(0)
    weight = torch.randn(6, 4, 3, 3, 2, dtype=torch.float64)
    for rank in (1, 3, 6):
        ours = (weight - reconstruct(cp_filters(weight, rank))).square().sum((1, 2, 3, 4))
        theirs = []
        for one in weight:
            parafac = tensorly.decomposition.parafac(one.numpy(), rank, n_iter_max=300, tol=1e-7, random_state=0)
            theirs.append(((one.numpy() - tensorly.cp_to_tensor(parafac)) ** 2).sum())
        assert ours.mean() <= 1.03 * np.mean(theirs)
    planted = torch.einsum("cro,iro,jro,kro->ocijk", *(torch.rand(n, 2, 5).double() + 0.1 for n in (4, 3, 3, 3)))
    found = reconstruct(cp_filters(planted, 2, tolerance=1e-9, iterations=2000))
    assert ((planted - found).square().sum() / planted.square().sum()).item() < 1e-6


@pytest.mark.parametrize("method", CASES)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_macs_are_those_that_torch_counts(method, data):
    layer, x = data.draw(CASES[method])
    small = nn.Sequential(decomposed(layer, method, {"fraction": 0.5}))
    counter = FlopCounterMode(display=False)
    with counter:
        small(x[:1])
    found = norton.complexity(small, example=x[:1], convention="macs")
    assert found.macs == found.by_layer["0"].macs == counter.get_total_flops() // 2 > 0


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_macs_by_hand(dims, groups):
    """8 inputs to 12 filters, 3 positions along each direction, 6 along each of the map."""
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    layer, x = kind(8, 12, 3, padding=1, groups=groups, bias=False), torch.zeros(1, 8, *[6] * dims)

    def macs(rank, method):
        return norton.complexity(norton.decompose(nn.Sequential(layer), {"0": rank}, method), example=x).macs / 6**dims

    assert macs(2, "cp") == 2 * 12 * (8 // groups + 3 * dims)
    assert macs([2, 3], "tucker") == groups * (2 * 8 // groups + 2 * 3 * 3**dims + 3 * 12 // groups)


@pytest.mark.parametrize("method", CASES)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_gradients_are_those_of_the_composed_weight(method, data):
    layer, x = data.draw(CASES[method])
    small = decomposed(layer, method, {"fraction": 0.5})
    (small(x) ** 2).sum().backward()
    found = [parameter.grad.clone() for parameter in small.parameters()]
    small.zero_grad()
    twin = copy.deepcopy(layer)
    parameters = {"weight": small.composed_weight()} | ({} if small.bias is None else {"bias": small.bias})
    (torch.func.functional_call(twin, parameters, (x,)) ** 2).sum().backward()
    for grad, parameter in zip(found, small.parameters(), strict=True):
        torch.testing.assert_close(grad, parameter.grad, rtol=1e-7, atol=1e-7)


def test_output_sizes_that_are_asked_for():
    layer, x = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1), torch.randn(2, 4, 5, 6)
    for method in ("tucker", "svd"):
        small = decomposed(layer, method, {"fraction": 1})
        for size in ([9, 11], [10, 12], [2, 6, 10, 11]):
            torch.testing.assert_close(small(x, output_size=size), layer(x, output_size=size), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [
    nn.Conv1d(12, 12, 3, groups=12), nn.Conv2d(4, 8, 3, groups=4), nn.Conv3d(3, 3, 1, groups=3),
    nn.ConvTranspose2d(6, 6, 2, stride=2, groups=6),
])  # fmt: skip
def test_depthwise_layers_are_taken_by_none(layer):
    assert not any(DECOMPOSITIONS[method].accepts(layer) for method in DECOMPOSITIONS)


def test_ranks_of_groups():
    torch.manual_seed(0)
    layer = nn.Conv2d(12, 8, 3, groups=2)  # two groups of 6 to 4
    assert DECOMPOSITIONS["tucker"].full_rank(layer) == (6, 4)
    assert DECOMPOSITIONS["cp"].full_rank(layer) == (9,)
    assert DECOMPOSITIONS["svd"].full_rank(nn.ConvTranspose2d(12, 8, 2, groups=2)) == (6,)
    assert resolve_rank("layer", layer, {"fraction": 0.5}, "tucker") == [3, 2]
    low, noise = torch.zeros(8, 6, 3, 3), 1e-3 * torch.randn(8, 6, 3, 3)
    low[:4] = torch.einsum("oa,ac,aij->ocij", *(torch.randn(n) for n in ((4, 1), (1, 6), (1, 3, 3))))
    low[4:] = torch.einsum("oa,ac,aij->ocij", *(torch.randn(n) for n in ((4, 2), (2, 6), (2, 3, 3))))
    layer.weight.data = low + noise
    assert resolve_rank("layer", layer, {"vbmf": 0}, "tucker") == [2, 2]
    for method in ("tucker", "cp"):
        rank = resolve_rank("layer", layer, {"nmse": 0.1}, method)
        small = DECOMPOSITIONS[method].from_conv(layer, rank, name="layer")
        errors = (weight_of(layer) - weight_of(small)).flatten(1).square().sum(1)
        assert (errors / weight_of(layer).flatten(1).square().sum(1)).mean() <= 0.1
        assert math.prod(rank if isinstance(rank, list) else [rank]) < math.prod(
            DECOMPOSITIONS[method].full_rank(layer)
        )


def groups_alone(layer):
    """The groups of a layer as layers of their own."""
    read, written = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    found = []
    for weight in layer.weight.detach().chunk(layer.groups):
        alone = type(layer)(read, written, layer.kernel_size, bias=False, dtype=weight.dtype)
        alone.weight.data = weight.clone()
        found.append(alone)
    return found


@pytest.mark.parametrize("method, layer", [
    ("cp", nn.Conv1d(6, 8, 5, groups=2)), ("cp", nn.Conv2d(9, 6, 3, groups=3)), ("cp", nn.Conv3d(4, 4, 2, groups=2)),
    ("tucker", nn.Conv2d(9, 6, 3, groups=3)), ("tucker", nn.ConvTranspose2d(8, 6, 3, groups=2)),
    ("svd", nn.Conv2d(9, 6, 1, groups=3)), ("svd", nn.ConvTranspose1d(8, 6, 4, groups=2)),
])  # fmt: skip
@pytest.mark.parametrize("fitted", [False, True])
def test_a_grouped_convolution_is_decomposed_group_by_group(method, layer, fitted):
    torch.manual_seed(0)
    layer.reset_parameters()  # its weights were drawn when the tests were collected
    layer, decomposition = layer.double(), DECOMPOSITIONS[method]
    ranks = [max(1, min(2, full - 1)) for full in decomposition.full_rank(layer)]
    rank = ranks if len(ranks) > 1 else ranks[0]
    metrics = [some_metric(weight_of(layer)[0].numel(), seed=seed) for seed in range(layer.groups)]
    small = decomposition.from_conv(layer, rank, name="layer")
    if fitted:
        small.fit_outputs_(weight_of(layer), GroupedMetric(metrics), 3)
    for found, alone, metric in zip(weight_of(small).chunk(layer.groups), groups_alone(layer), metrics, strict=True):
        wanted = decomposition.from_conv(alone, rank, name="layer")
        if fitted:
            start = metric.squares((weight_of(alone) - weight_of(wanted)).flatten(1)).sum()
            wanted.fit_outputs_(weight_of(alone), metric, 3)
            error, other = (
                metric.squares((weight_of(alone) - one).flatten(1)).sum() for one in (found, weight_of(wanted))
            )
            assert error < 0.99 * start
            assert error == pytest.approx(other.item(), rel=0.05)  # conjugate gradients step in all groups alike
        else:
            torch.testing.assert_close(found, weight_of(wanted), rtol=1e-6, atol=1e-8)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_outputs_are_scaled_and_every_form_is_exact(data):
    method = data.draw(st.sampled_from(sorted(CASES)))
    layer, x = data.draw(CASES[method])
    small = decomposed(layer, method, {"fraction": 0.5})
    wanted = small(x)
    for name, form in exact_forms(small).items():
        torch.testing.assert_close(form(x), wanted, rtol=1e-9, atol=1e-9, msg=name)
    scale, shift = (torch.randn(layer.out_channels, dtype=torch.float64) for _ in range(2))
    scale_outputs_(small, scale, shift)
    along = (-1, *[1] * len(layer.kernel_size))
    torch.testing.assert_close(small(x), scale.view(along) * wanted + shift.view(along), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(as_dense(small)(x), small(x), rtol=1e-9, atol=1e-9)
