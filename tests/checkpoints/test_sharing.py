"""Shared weights are those of literal k-means; compressed files give back every bit, and any damage is found."""

import lzma
import math

import pytest
import torch
from helpers.networks import randomise_
from torch import nn

import norton
from norton.checkpoints.files import read
from norton.checkpoints.packing import join_bits, pack, split_bits, unpack
from norton.checkpoints.sharing import cluster, layer_bits, layer_weights, shared
from norton.decomposition import DECOMPOSITIONS
from norton.decomposition.methods import decomposable


def drawn(kind, size=400, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, generator=generator)
    return {
        "normal": x,
        "skewed": x.exp() ** 2,  # a linear start leaves most of its values without a number
        "repeated": (3 * x).round() + 0.5,
        "far off": 1000 + x / 1000,
        "two": torch.where(x > 1, 5.0, -5.0) + x / 10,
    }[kind]


def literal_lloyd(numbers, start):
    """Each number to the nearest value (the lower of two), each value to the mean of its numbers, until all stay."""
    values, before = list(start), None
    while True:
        own = [min(range(len(values)), key=lambda j: (abs(x - values[j]), j)) for x in numbers]
        if own == before:
            return [values[j] for j in sorted(set(own))], own
        before = own
        for j in range(len(values)):
            mine = [x for x, i in zip(numbers, own, strict=True) if i == j]
            values[j] = math.fsum(mine) / len(mine) if mine else values[j]


def squared_error(numbers, values):
    return (numbers.double()[:, None] - values.double()).square().amin(1).sum().item()


@pytest.mark.parametrize("kind", ["normal", "skewed", "repeated", "far off", "two"])
@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_clusters_are_those_of_the_literal_algorithm(kind, count):
    numbers = drawn(kind, 150)
    found = cluster(numbers, count)
    low, high = numbers.double().aminmax()
    start = torch.linspace(low, high, count, dtype=torch.float64)
    if len(numbers.unique()) <= count:
        assert torch.equal(found, numbers.double().unique())
    else:
        expected, _ = literal_lloyd(numbers.double().tolist(), start.tolist())
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    assert squared_error(numbers, found) <= squared_error(numbers, start) * (1 + 1e-9)


@pytest.mark.parametrize("kind", ["normal", "skewed", "repeated", "far off", "two"])
@pytest.mark.parametrize("bits", [1, 3, 5, 8])
def test_never_worse_than_the_linear_start_nor_with_more_bits(kind, bits):
    numbers = drawn(kind, 20_000).double()
    low, high = numbers.aminmax()
    given = shared(numbers, 2**bits)
    error = (numbers - given).square().sum().item()
    assert len(given.unique()) <= 2**bits
    assert error <= squared_error(numbers, torch.linspace(low, high, 2**bits, dtype=torch.float64))
    assert error == pytest.approx(squared_error(numbers, given.unique()), rel=1e-9)  # each takes the nearest
    assert error <= (numbers - shared(numbers, 2 ** (bits - 1))).square().sum().item()


def test_order_does_not_matter_and_few_values_stay():
    numbers = drawn("normal", 5000)
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(shared(numbers, 32)[order], shared(numbers[order], 32))
    few = (4 * numbers).round() / 3
    assert torch.equal(shared(few, 64), few)
    assert torch.equal(shared(shared(numbers, 16), 16), shared(numbers, 16))


def test_zeros_stay_zeros_and_count():
    numbers = drawn("normal", 5000)
    numbers[::2] = 0
    given = shared(numbers, 4)
    assert torch.equal(given == 0, numbers == 0)
    assert len(given.unique()) == 4
    assert torch.equal(shared(torch.zeros(9), 2), torch.zeros(9))


def compressed(how):
    net = randomise_(norton.build("resnet_56"))
    if how == "dense":
        return net
    if how == "pruned":
        return norton.prune(net, "[0.]+[0.3]*29", criterion="l2")
    some = list(decomposable(net, how))[:3]
    return norton.decompose(net, {name: {"fraction": 0.5} for name in some}, method=how)


@pytest.mark.parametrize("how", ["dense", "pruned", *DECOMPOSITIONS])
def test_networks_share_their_weights_and_nothing_else(how):
    net = compressed(how)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    small = norton.share_weights(net, 3)
    again = norton.share_weights(net, 3)
    weights = {id(weight) for layer in layer_weights(small).values() for weight in layer}
    changed = 0
    for key, parameter in small.named_parameters():
        assert torch.equal(parameter, again.get_parameter(key))
        if id(parameter) in weights and 32 * 8 + 3 * parameter.numel() < 32 * parameter.numel():
            assert len(parameter.unique()) <= 8
            changed += not torch.equal(parameter, before[key])
        else:
            assert torch.equal(parameter, before[key])
    assert changed > 50
    convolutions = [m for m in small.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert {id(m.weight) for m in convolutions if m.weight.numel() > 300} <= weights
    assert all(torch.equal(buffer, before[key]) for key, buffer in small.named_buffers())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in small.parameters())


def test_patterns_name_layers_decomposed_or_not():
    net = norton.decompose(randomise_(norton.build("resnet_56")), {"layer1.0.conv1": 4}, starts=1)
    rules = {"layer1.0.*": 2, "fc": None, "layer1.*": 4}
    small = norton.share_weights(net, rules)
    assert set(layer_bits(net, rules)) == {f"layer1.{i}.conv{j}" for i in range(9) for j in (1, 2)}
    assert all(len(part.weight.unique()) == 4 for part in small.layer1[0].conv1.feature)
    assert len(small.layer1[3].conv2.weight.unique()) == 16
    assert torch.equal(small.fc.weight, net.fc.weight)
    assert torch.equal(small.layer2[0].conv1.weight, net.layer2[0].conv1.weight)


def test_bad_bits():
    net = norton.build("resnet_56")
    for bits in (0, 9, True, 2.5, "5", None, {"*": 9}):
        with pytest.raises(norton.InputError, match="choose 1 to 8"):
            norton.share_weights(net, bits)
    with pytest.raises(norton.InputError, match="'layr1' matches none of the 56 layers with weights: conv1"):
        norton.share_weights(net, {"layr1": 5, "*": 4})
    with torch.no_grad():
        net.layer1[2].conv1.weight[0, 0] = float("inf")
    with pytest.raises(norton.InputError, match=r"layer1\.2\.conv1: holds weights that are not finite"):
        norton.share_weights(net, 5)


def test_weights_that_are_tied_stay_tied():
    net = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
    net[1].weight = net[0].weight
    small = norton.share_weights(net, 3)
    assert small[1].weight is small[0].weight
    assert len(small[0].weight.unique()) == 8


# Files


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


def saved(net, tmp_path, name="a.pt", **about):
    return norton.save(net, tmp_path / name, compress=True, **about)


@pytest.mark.parametrize("bits", [None, 8, 5, 2, 1])
def test_files_give_back_every_bit(bits, tmp_path):
    net = randomise_(norton.build("resnet_56", 2, "[0.]+[0.4]*29"))
    net = net if bits is None else norton.share_weights(net, bits)
    about = {"metrics": {"top1": 93.8}, "lineage": [{"step": "test"}]}
    path, plain = saved(net, tmp_path, **about), norton.save(net, tmp_path / "plain.pt", **about)
    content, expected = read(path), read(plain)
    state = content.pop("state_dict")
    for key, value in expected.pop("state_dict").items():
        assert same_bits(state[key], value), key
    assert content == expected
    assert list(state) == list(net.state_dict())
    again = norton.load(path)
    assert all(same_bits(value, net.state_dict()[key]) for key, value in again.state_dict().items())
    assert path.read_bytes() == saved(again, tmp_path, "b.pt", **about).read_bytes()  # nothing depends on the hour
    assert path.stat().st_size < plain.stat().st_size


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype, tmp_path):
    net = randomise_(norton.build("resnet_56")).to(dtype)
    small = norton.share_weights(net, 4)
    assert len(small.layer2[0].conv1.weight.unique()) == 16
    for of in (net, small):
        again = norton.load(saved(of, tmp_path)).state_dict()
        assert all(torch.equal(value, again[key]) and value.dtype == again[key].dtype for key, value in
                   of.state_dict().items())  # fmt: skip
    assert (tmp_path / "a.pt").stat().st_size < 560_000


def test_any_tensor_is_packed_bit_by_bit():
    odd = torch.tensor([0.0, -0.0, float("nan"), -float("nan"), 1e-45, float("inf"), 1.0])
    state = {
        "odd": odd,
        "odd, often": odd.repeat(100).view(7, 100),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 4),
        "one": torch.ones(1000),
        "bool": torch.tensor([True, False]),
        "bytes": torch.arange(256).to(torch.uint8),
        "half": torch.randn(20, 30).half(),
        "turned": torch.randn(20, 30).T,
        "many": torch.randn(300).repeat(9),  # more values than a byte tells apart
        "256": torch.randn(256).repeat(9),
        "two": torch.tensor([1.0, 2.0]).repeat(500)[:999],
    }
    packed = pack(state)
    assert {name for name, (_, _, count) in packed["tensors"].items() if count} == {"odd, often", "one", "256", "two"}
    again = unpack(packed)
    assert list(again) == list(state)
    assert all(same_bits(again[key], value.contiguous()) for key, value in state.items())


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("length", [0, 1, 7, 8, 1001])
def test_numbers_in_bytes(bits, length):
    index = torch.randint(2**bits, (length,), generator=torch.Generator().manual_seed(0))
    joined = join_bits(index, bits)
    assert joined.dtype == torch.uint8
    assert len(joined) == -(-length // (8 // bits))
    assert torch.equal(split_bits(joined, bits)[:length], index)


@pytest.mark.parametrize("bits", [8, 5, 4, 2])
def test_sizes_are_those_of_the_entropy(bits, tmp_path):
    """Numbers of normal weights, which tell nothing of each other, take their entropy and a few percent."""
    net = norton.share_weights(randomise_(norton.build("resnet_56")), bits)
    entropy, rest = 0.0, 0
    for value in net.state_dict().values():
        _, counts = value.unique(return_counts=True)
        if value.dim() > 1 and len(counts) <= 2**bits:
            share = counts.double() / value.numel()
            entropy -= value.numel() * (share * share.log2()).sum().item() / 8
            rest += 4 * len(counts)
        else:
            rest += value.nbytes
    size = saved(net, tmp_path).stat().st_size
    assert 0.99 * entropy < size < 1.06 * entropy + rest + 4000
    assert entropy < bits * 850_000 / 8


def test_more_bits_take_more_room(tmp_path):
    net = randomise_(norton.build("densenet_40", 1))
    sizes = [saved(norton.share_weights(net, bits), tmp_path).stat().st_size for bits in (1, 3, 5, 8)]
    assert sizes == sorted(sizes)
    assert sizes[-1] < saved(net, tmp_path).stat().st_size < norton.save(net, tmp_path / "p.pt").stat().st_size


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    net = norton.share_weights(norton.build("resnet_56", 1, "[0.8]*30"), 3)
    return saved(net, tmp_path_factory.mktemp("small"))


@pytest.mark.parametrize("share", [0.0005, 0.3, 0.9, 0.999])
def test_truncated(share, small_file, tmp_path):
    data = small_file.read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(norton.InputError, match=r"cut\.pt: (not a whole checkpoint|refused)"):
        norton.load(tmp_path / "cut.pt")


def test_a_damaged_byte_is_found_wherever_it_is(small_file, tmp_path):
    data = small_file.read_bytes()
    places = [*range(40), *range(40, len(data) - 40, len(data) // 60), *range(len(data) - 40, len(data))]
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 16
        (tmp_path / "damaged.pt").write_bytes(damaged)
        with pytest.raises(norton.InputError, match=r"damaged\.pt: (not a whole checkpoint|refused)"):
            norton.load(tmp_path / "damaged.pt")


@pytest.mark.parametrize("change", [
    lambda p: p.pop("tensors"),
    lambda p: p.update(tensors=3),
    lambda p: p.update(values=[1, 2]),
    lambda p: p.update(indices=p["indices"][:-1]),
    lambda p: p.update(indices=torch.cat([p["indices"], p["indices"]])),
    lambda p: p.update(indices=p["indices"].fill_(255)),
    lambda p: p.update(indices=None),
    lambda p: p["values"].update(float32=p["values"]["float32"][:, 1:]),
    lambda p: p["values"].update(float32=p["values"]["float32"][1:]),
    lambda p: p["values"].update(load=p["values"]["float32"]),
    lambda p: p["tensors"].update({"fc.bias": ["int32", [10], 0]}),
    lambda p: p["tensors"].update({"fc.bias": ["float32", [11], 0]}),
    lambda p: p["tensors"].update({"fc.bias": ["float32", [-10], 0]}),
    lambda p: p["tensors"].update({"fc.bias": ["float32", ["x"], 0]}),
    lambda p: p["tensors"].update({"fc.bias": ["float32", [10**30], 0]}),
    lambda p: p["tensors"].update({"fc.bias": ["float32", [10], 10**30]}),
    lambda p: p["tensors"].update({"fc.bias": ["float32", [10], "x"]}),
    lambda p: p["tensors"].update({"fc.bias": [torch.float32, [10]]}),
    lambda p: p.clear(),
])  # fmt: skip
def test_what_does_not_fit_together_is_refused(change, small_file, tmp_path):
    with lzma.open(small_file) as file:
        content = torch.load(file, weights_only=True)
    change(content["packed"])
    torch.save(content, tmp_path / "forged.pt")
    with pytest.raises(norton.InputError, match=r"forged\.pt: "):
        norton.load(tmp_path / "forged.pt")


class Marker:
    def __reduce__(self):
        return (open, ("/nonexistent/ran-the-code", "w"))


def test_code_is_refused_within_a_compressed_file_too(tmp_path):
    torch.save({"state_dict": {}, "x": Marker()}, tmp_path / "code.pt")
    (tmp_path / "code.pt").write_bytes(lzma.compress((tmp_path / "code.pt").read_bytes()))
    with pytest.raises(norton.InputError, match="refused"):
        norton.load(tmp_path / "code.pt")


def test_any_checkpoint_may_be_compressed_by_hand(tmp_path):
    state = randomise_(norton.build("resnet_56", 1)).state_dict()
    torch.save({"state_dict": state}, tmp_path / "published.pt")
    (tmp_path / "published.pt").write_bytes(lzma.compress((tmp_path / "published.pt").read_bytes()))
    assert torch.equal(norton.load(tmp_path / "published.pt").fc.weight, state["fc.weight"])


def test_shared_networks_are_compressed_further(tmp_path):
    net = norton.load(saved(norton.share_weights(norton.build("resnet_56"), 6), tmp_path))
    small = norton.decompose(norton.prune(net, "[0.]+[0.8]*29", criterion="l2"), 1, starts=1)
    assert norton.load(saved(norton.share_weights(small, 5), tmp_path)).plan == small.plan
