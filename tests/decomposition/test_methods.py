"""The contract of every decomposition in the registry, and each method against tensorly's own."""

import copy
from itertools import pairwise

import pytest
import tensorly
import torch
import torch.nn.functional as F
from helpers.geometries import GEOMETRIES
from torch import nn

import norton
from norton.decomposition import DECOMPOSITIONS
from norton.decomposition.ranks import resolve_rank
from norton.decomposition.weight_errors import weight_nmse
from norton.graph.layers import width
from norton.graph.plan import plan_of
from norton.graph.slicing import cut_inputs_, cut_outputs_

METHODS = list(DECOMPOSITIONS)
LAYERS = [lambda **options: nn.Linear(5, 6, **options)] + [
    lambda geometry=geometry, **options: nn.Conv2d(5, 6, **geometry, **options) for geometry in GEOMETRIES
]
ACCEPTED = [
    pytest.param(method, make, id=f"{method}-{make()}")
    for method in METHODS
    for make in LAYERS
    if DECOMPOSITIONS[method].accepts(make())
]


def decomposed(layer, method, rank, **options):
    return DECOMPOSITIONS[method].from_conv(layer, resolve_rank("layer", layer, rank, method), name="layer", **options)


def dense_twin(layer, small):
    """The dense layer with the weight that a decomposed one composes."""
    twin = copy.deepcopy(layer)
    twin.weight = nn.Parameter(small.composed_weight().detach())
    return twin


def inputs(layer, dtype=torch.float32):
    shape = (2, 3, 5) if isinstance(layer, nn.Linear) else (2, 5, 13, 12)
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)


@pytest.mark.parametrize("method, make", ACCEPTED)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_full_rank_is_exact(method, make, dtype, tolerance):
    torch.manual_seed(0)
    layer = make(dtype=dtype)
    small = decomposed(layer, method, {"fraction": 1})
    x = inputs(layer, dtype)
    assert {p.dtype for p in small.parameters()} == {dtype}
    torch.testing.assert_close(
        small.composed_weight(), layer.weight, rtol=0, atol=tolerance * layer.weight.abs().max().item()
    )
    torch.testing.assert_close(small(x), layer(x), rtol=0, atol=tolerance * layer(x).abs().max().item())


@pytest.mark.parametrize("method, make", ACCEPTED)
@pytest.mark.parametrize("bias", [True, False])
def test_it_computes_its_composed_weight(method, make, bias):
    torch.manual_seed(1)
    layer = make(bias=bias, dtype=torch.float64)
    small = decomposed(layer, method, {"fraction": 0.2})
    x = inputs(layer, torch.float64)
    torch.testing.assert_close(small(x), dense_twin(layer, small)(x), rtol=1e-10, atol=1e-10)
    assert weight_nmse(layer.weight, small.composed_weight()) > 1e-3  # truncated, or the test says nothing
    assert (small.bias is None) is not bias
    assert width(small) == 6


@pytest.mark.parametrize("method", METHODS)
def test_gradients_flow_to_every_parameter_and_the_input(method):
    torch.manual_seed(2)
    layer = next(make() for make in LAYERS[::-1] if DECOMPOSITIONS[method].accepts(make()))
    small = decomposed(layer, method, {"fraction": 0.2}).double()
    x = inputs(layer, torch.float64).requires_grad_()
    small(x).square().sum().backward()
    grads = [p.grad.clone() for p in small.parameters()]
    assert all(grad.any() and grad.isfinite().all() for grad in [*grads, x.grad])
    # the same through the composed weight
    small.zero_grad()
    twin = copy.deepcopy(layer).double()
    weight, bias = small.composed_weight(), small.bias
    torch.func.functional_call(twin, {"weight": weight, "bias": bias}, (x,)).square().sum().backward()
    for grad, p in zip(grads, small.parameters(), strict=True):
        torch.testing.assert_close(grad, p.grad, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method, make", ACCEPTED)
@pytest.mark.parametrize("kept", [[0, 2, 5], [4, 1], [3]])
def test_surgery_equals_the_composed_layer_cut(method, make, kept):
    torch.manual_seed(3)
    layer = make(dtype=torch.float64)
    nn.init.normal_(layer.bias)
    small = decomposed(layer, method, {"fraction": 0.2})
    twin = dense_twin(layer, small)
    channels, kept = torch.tensor([4, 0, 3]), torch.tensor(kept)
    for each in (small, twin):
        cut_inputs_(each, channels)
        cut_outputs_(each, kept)
    x = inputs(layer, torch.float64)
    x = x[..., channels] if x.ndim == 3 else x[:, channels]
    torch.testing.assert_close(small(x), twin(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(small.composed_weight(), twin.weight, rtol=1e-10, atol=1e-10)
    shaped = DECOMPOSITIONS[method].shaped_like(twin, small.rank)  # as when a plan is replayed in another order
    assert [p.shape for p in shaped.parameters()] == [p.shape for p in small.parameters()]


@pytest.mark.parametrize("method", METHODS)
def test_the_error_falls_with_the_rank(method):
    torch.manual_seed(4)
    layer = next(make() for make in LAYERS if DECOMPOSITIONS[method].accepts(make()))
    layers = [decomposed(layer, method, {"fraction": f}) for f in (0.01, 0.25, 0.5, 0.75, 1)]
    errors = [weight_nmse(layer.weight, small.composed_weight()) for small in layers]
    assert all(after <= before for before, after in pairwise(errors))
    assert 0.2 < errors[0] < 1
    assert errors[-1] < 1e-10


@pytest.mark.parametrize("method", METHODS)
def test_zeros_stay_zeros_and_the_seed_decides(method):
    torch.manual_seed(5)
    layer = next(make() for make in LAYERS if DECOMPOSITIONS[method].accepts(make()))
    twice = [decomposed(layer, method, {"fraction": 0.5}, seed=3).state_dict() for _ in range(2)]
    assert all(torch.equal(twice[0][key], twice[1][key]) for key in twice[0])
    nn.init.zeros_(layer.weight)
    assert not decomposed(layer, method, {"fraction": 0.5}).composed_weight().any()
    layer.weight.data[0].view(-1)[0] = float("nan")
    with pytest.raises(norton.InputError, match="layer: the weight has infinite or undefined"):
        decomposed(layer, method, {"fraction": 0.5})


@pytest.mark.parametrize("method", METHODS)
def test_tensorly_keeps_its_backend(method):
    layer = next(make() for make in LAYERS if DECOMPOSITIONS[method].accepts(make()))
    before = tensorly.get_backend()
    assert before == "numpy"
    decomposed(layer, method, {"fraction": 0.5})
    assert tensorly.get_backend() == before


# Against tensorly: dense approximations by its algorithms, one filter after the other where a method is filter-wise


def by_cp_layer(weight, rank):
    return tensorly.cp_to_tensor(tensorly.decomposition.parafac(weight, rank, n_iter_max=100, tol=1e-6, random_state=0))


def by_tucker(weight, rank):
    (core, factors), _ = tensorly.decomposition.partial_tucker(weight, rank[::-1], modes=[0, 1], random_state=0)
    return tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1])


def by_tucker_filter(weight, rank):
    found = [tensorly.decomposition.partial_tucker(one, [rank], modes=[0])[0] for one in weight]
    return torch.stack([tensorly.tenalg.multi_mode_dot(core, factors, modes=[0]) for core, factors in found])


def by_tt(weight, rank):
    train = tensorly.decomposition.tensor_train(weight.permute(1, 2, 3, 0), [1, *rank, 1])
    return tensorly.tt_to_tensor(train).permute(3, 0, 1, 2)


def by_tt_filter(weight, rank):
    trains = [tensorly.decomposition.tensor_train(one, [1, *rank, 1]) for one in weight]
    return torch.stack([tensorly.tt_to_tensor(train) for train in trains])


def by_svd(weight, rank):
    u, s, v = tensorly.tenalg.svd_interface(weight.flatten(1), n_eigenvecs=rank)
    return ((u * s) @ v).view(weight.shape)


@pytest.mark.filterwarnings("ignore:Trying to compute SVD")
@pytest.mark.parametrize("oracle, ranks", [
    (by_cp_layer, [1, 4, 10, 25]), (by_tucker, [(1, 1), (3, 5), (6, 4), (7, 2)]), (by_tucker_filter, [1, 3, 7]),
    (by_tt, [(1, 1, 1), (4, 5, 6), (7, 9, 4)]), (by_tt_filter, [(1, 1), (3, 2), (6, 3)]), (by_svd, [1, 3, 6]),
])  # fmt: skip
@pytest.mark.parametrize("structured", [False, True])
def test_no_worse_than_tensorly(oracle, ranks, structured):
    method = oracle.__name__.removeprefix("by_")
    torch.manual_seed(6)
    size = (12, 8, 1, 1) if method == "svd" else (12, 8, 3, 3)
    weight = torch.randn(size, dtype=torch.float64)
    if structured:
        factors = [torch.randn(n, 4, dtype=torch.float64) for n in size]
        weight = 0.3 * weight + torch.einsum("or,cr,ir,jr->ocij", *factors)
    layer = nn.Conv2d(8, 12, size[2:], dtype=torch.float64)
    layer.weight.data = weight
    for rank in ranks:
        small = DECOMPOSITIONS[method].from_conv(layer, rank, name="layer")
        with tensorly.backend_context("pytorch"):
            approximation = oracle(weight, rank)
        error, theirs = ((weight - x).square().sum() for x in (small.composed_weight(), approximation))
        assert error <= theirs * 1.001, rank
        if method in ("tucker_filter", "tt_filter", "tt", "svd"):  # the same thing, computed otherwise
            torch.testing.assert_close(small.composed_weight(), approximation, rtol=1e-8, atol=1e-8)


def test_filter_wise_methods_are_nested():
    """CP of a rank is a Tucker of that rank, so it cannot be better; a tensor train of (R, min(R·kh, kw)) equals it."""
    torch.manual_seed(7)
    layer = nn.Conv2d(10, 6, 3, dtype=torch.float64)
    for rank in (1, 2, 4):
        cp, tucker = (
            weight_nmse(layer.weight, DECOMPOSITIONS[m].from_conv(layer, rank, name="layer").composed_weight())
            for m in ("cp", "tucker_filter")
        )
        train = DECOMPOSITIONS["tt_filter"].from_conv(layer, (rank, 3), name="layer").composed_weight()
        assert tucker <= cp
        assert weight_nmse(layer.weight, train) == pytest.approx(tucker, rel=1e-9)


# In a network


class Odd(nn.Module):
    """Every kind of layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 5, stride=2)
        self.body = nn.ModuleDict({"a": nn.Conv2d(8, 8, (1, 3)), "b": nn.Conv2d(8, 12, 1)})
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12)
        self.fc = nn.Linear(12, 7)

    def forward(self, x):
        return self.fc(self.depthwise(self.body["b"](self.body["a"](self.stem(x)))).mean((2, 3)))


def narrow(rates="[0.9]*13"):
    torch.manual_seed(8)
    net = norton.build("vgg_16_bn", 0, rates).eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.2)
    return net


def same_after_a_file(net, folder, x):
    again = norton.load(norton.save(net, folder / "net.pt"))
    assert plan_of(again) == plan_of(net)
    return torch.equal(again(x), net(x))


@pytest.mark.parametrize("method", METHODS)
def test_decomposed_and_pruned_network(method, tmp_path):
    """Round trip of the plan, and channels that are dead may go without a change."""
    net = narrow()
    fast = {"iterations": 5} if method in ("cp", "cp_layer") else {}
    pattern = "classifier.linear1" if method == "svd" else "features.conv[3-8]"
    small = norton.decompose(net, {pattern: {"fraction": 0.5}}, method=method, **fast)
    x = torch.randn(2, 3, 32, 32)
    assert same_after_a_file(small, tmp_path, x)
    pruned = norton.prune(small, "[0.3]*13", criterion="l2")
    assert same_after_a_file(pruned, tmp_path, x)
    for layer, kept in plan_of(pruned)[-1]["keep"].items():
        norm = small.get_submodule(layer.replace("conv", "norm"))
        dead = torch.ones(norm.num_features, dtype=torch.bool)
        dead[kept] = False
        norm.weight.data[dead] = norm.bias.data[dead] = 0
    torch.testing.assert_close(pruned(x), small(x), rtol=1e-4, atol=1e-5)


def test_any_order_of_steps(tmp_path):
    x = torch.randn(2, 3, 32, 32)
    net = norton.prune(narrow(), "[0.2]*13", criterion="l2")
    net = norton.decompose(net, {"features.conv[0-4]": [2, 3]}, method="tucker")
    net = norton.prune(net, "[0.3]*13", criterion="l2")
    before = net
    net = norton.decompose(net, 2, starts=1, iterations=5)  # what is left; Tucker's parts are left alone
    assert set(norton.layer_nmse(before, net)) == {f"features.conv{i}" for i in (6, 7, 8, 10, 11, 12, 14, 15, 16)}
    net = norton.decompose(net, {"fraction": 0.5}, method="svd")
    net = norton.prune(net, "[0.1]*13", criterion="l2")
    ops = [(step["op"], step.get("method")) for step in plan_of(net)]
    prune = ("prune", None)
    assert ops == [prune, prune, ("decompose", "tucker"), prune, ("decompose", "cp"), ("decompose", "svd"), prune]
    assert same_after_a_file(net, tmp_path, x)
    kinds = {type(layer).__name__ for layer in net.modules() if hasattr(layer, "composed_weight")}
    assert kinds == {"TuckerConv", "CPConv2d", "SVDLinear"}


def test_order_matters_only_to_the_weights():
    """Decompose then prune and prune then decompose give the same shapes, each from the network the last step left."""
    rates, rank = "[0.3]*13", {"features.conv8": [3, 4]}
    one = norton.prune(norton.decompose(narrow(), rank, method="tucker"), rates, criterion="l2")
    two = norton.decompose(norton.prune(narrow(), rates, criterion="l2"), rank, method="tucker")
    assert {k: v.shape for k, v in one.state_dict().items()} == {k: v.shape for k, v in two.state_dict().items()}


@pytest.mark.parametrize("method, layer, macs", [
    # output 8×8 from 8×8: C=4, O=6, 3×3; a decomposed layer's bias does not count
    ("cp_layer", nn.Conv2d(4, 6, 3, padding=1), 64 * (4 * 2 + 3 * 2 + 3 * 2 + 2 * 6)),
    ("tucker", nn.Conv2d(4, 6, 3, padding=1), 64 * (4 * 2 + 2 * 2 * 9 + 2 * 6)),
    ("tucker_filter", nn.Conv2d(4, 6, 3, padding=1), 64 * 6 * (4 * 2 + 2 * 9)),
    ("tt", nn.Conv2d(4, 6, 3, padding=1), 64 * (4 * 2 + 2 * 3 * 2 + 2 * 3 * 2 + 2 * 6)),
    ("tt_filter", nn.Conv2d(4, 6, 3, padding=1), 64 * 6 * (4 * 2 + 2 * 3 * 2 + 2 * 3)),
    ("svd", nn.Conv2d(4, 6, 1, stride=2), 16 * (4 * 2 + 2 * 6)),
])  # fmt: skip
def test_counts(method, layer, macs):
    small = norton.decompose(nn.Sequential(layer), {"0": 2}, method=method)
    for convention in ("norton", "macs"):
        cost = norton.complexity(small, (4, 8, 8), convention=convention)
        assert cost.macs == cost.by_layer["0"].macs == macs
    assert cost.params == sum(p.numel() for p in small.parameters())
    assert cost.params_printed == cost.params - 6


def test_counts_of_a_linear_layer():
    small = norton.decompose(nn.Sequential(nn.Flatten(), nn.Linear(16, 10)), 3, method="svd")
    assert norton.complexity(small, (1, 4, 4)).macs == 16 * 3 + 3 * 10
    assert norton.nmse(nn.Sequential(nn.Flatten(), nn.Linear(16, 10)), small) > 0


@pytest.mark.parametrize("method, arguments, message", [
    ("tucker", {"rank": {"depthwise": 2}}, "depthwise: decomposition 'tucker' does not take a 3x3 convolution of 12 to "
     "12 channels in 12 groups; it takes convolutions with a kernel, 1-D to 3-D, transposed or grouped too, but no"),
    ("cp", {"rank": {"depthwise": 2}}, "depthwise: decomposition 'cp' does not take"),
    ("svd", {"rank": {"dep*": 2}}, "depthwise: decomposition 'svd' does not take"),
    ("svd", {"rank": {"stem": 2}}, "stem: decomposition 'svd' does not take a 5x5 convolution"),
    ("tt", {"rank": {"fc": 2}}, "fc: decomposition 'tt' does not take a linear layer of 12 inputs and 7 outputs"),
    ("svd", {"rank": {"fc": 8}}, "fc: rank 8 exceeds 7"),
    ("tucker", {"rank": 100}, "stem: rank 100 exceeds 8"),
    ("tucker", {"rank": [3, 9]}, "stem: rank 9 exceeds 8"),
    ("tucker", {"rank": {"stem": 9}}, "stem: rank 9 exceeds 8"),
    ("tucker", {"rank": [3, 2, 1]}, "has 3 numbers; decomposition 'tucker' has 2 ranks"),
    ("tucker", {"rank": 1.5}, "rank 1.5 is not a whole number"),
    ("tucker", {"rank": {"stem": [4, 2]}}, "stem: rank 4 exceeds 3"),
    ("tucker", {"rank": {"stem": [3, 2, 1]}}, "has 3 numbers; decomposition 'tucker' has 2 ranks"),
    ("cp", {"rank": [2, 2]}, "has 2 numbers; decomposition 'cp' has one rank"),
    ("tt", {"rank": {"stem": [1, 0, 1]}}, "rank 0 is not a whole number"),
    ("cp_layer", {"rank": {"stem": 76}}, "stem: rank 76 exceeds 75"),
    ("svd", {"rank": 2, "starts": 3}, "has no option starts; it has none"),
    ("cp", {"rank": {"fraction": 1.5}}, "stem: fraction 1.5 is not a number from 0 to 1"),
    ("cp", {"rank": {"nmse": "x"}}, "nmse 'x' is not a number"),
    ("tucker", {"rank": {"stem": {"vbmf": 2}}}, "stem: vbmf 2 is not a number from -1 to 1"),
    ("cp", {"rank": {"vbmf": 0}}, "vbmf recommends no ranks for decomposition 'cp'; choose one of svd, tt, tucker"),
    ("cp", {"rank": {"stem": {"part": 0.5}}}, "stem: rank {'part': 0.5} is no rule; a rule is one of fraction"),
    ("cp", {"rank": {"stem": {"fraction": 0.5, "nmse": 0.1}}}, "is no rule"),
    ("cp", {"rank": {"fraction": 0.5, "stem": 1}}, "pattern 'fraction' matches no"),
])  # fmt: skip
def test_bad_input(method, arguments, message):
    with pytest.raises(norton.InputError, match=message.replace("[", r"\[")):
        norton.decompose(Odd(), method=method, **arguments)


@pytest.mark.parametrize("method", METHODS)
def test_one_rank_for_all_passes_over_what_cannot_be_decomposed(method):
    net = Odd()
    small = norton.decompose(net, {"fraction": 0.5}, method=method)
    [step] = plan_of(small)
    assert set(step["ranks"]) == ({"body.b", "fc"} if method == "svd" else {"stem", "body.a"})
    x = torch.randn(2, 3, 30, 30)
    assert small(x).shape == net(x).shape
    single = len(DECOMPOSITIONS[method].full_rank(net.fc if method == "svd" else net.stem)) == 1
    assert {type(rank) for rank in step["ranks"].values()} == {int if single else list}


def test_ranks_in_tables_and_messages(tmp_path):
    """Programs that show or compare ranks meet methods with several."""
    from norton.checkpoints.rebuilding import ranks_in
    from norton.cli.rows import layer_rows, width_rows

    net = narrow()
    small = norton.decompose(net, {"features.conv8": [3, 4], "features.conv1": [2, 2]}, method="tucker")
    small = norton.decompose(small, {"classifier.linear1": 5}, method="svd")
    assert ranks_in(small) == {(3, 4), (2, 2), 5}
    rows = layer_rows(small, norton.complexity(net), norton.complexity(small), norton.layer_nmse(net, small))
    assert [row["rank"] for row in rows] == ["2, 2", "3, 4", 5]
    kinds = {row["layer"]: row["kind"] for row in width_rows(net, small)}
    assert kinds["features.conv8"] == "rank 3, 4"
    path = norton.save(small, tmp_path / "net.pt")
    with pytest.raises(norton.InputError, match=r"has rank .*not 3 as told"):
        norton.load(path, rank=3)
    norton.load(path, compress_rate="[0.9]*13")


def test_functional_padding_of_a_stride_over_rows_only():
    """The geometry of a layer can be read off it."""
    conv = nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2))
    for method in ("cp_layer", "tucker", "tucker_filter", "tt", "tt_filter"):
        small = DECOMPOSITIONS[method].shaped_like(conv, resolve_rank("layer", conv, 2, method))
        assert (small.in_channels, small.out_channels, small.kernel_size) == (4, 6, (3, 5))
        assert (small.stride, small.dilation) == (conv.stride, conv.dilation)
        expected = F.conv2d(torch.zeros(1, 4, 9, 20), conv.weight, None, conv.stride, conv.padding, conv.dilation)
        assert small(torch.zeros(1, 4, 9, 20)).shape == expected.shape
