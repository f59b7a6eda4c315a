"""A compressed network keeps precision, memory format and wrappers of what it was made of."""

import copy

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import norton
from norton.common.errors import NortonWarning
from norton.graph.layers import network_in
from norton.graph.plan import plan_of

pytestmark = pytest.mark.quick

OPTIONS = norton.PruneOptions(min_filters=1)


def make(dtype=torch.float32):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.Conv2d(8, 4, 1))
    net.input_size = (3, 8, 8)
    return net.to(dtype).eval()


def images(dtype=torch.float32):
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


VERBS = {
    "prune": lambda net: norton.prune(net, 0.4, "l2", options=OPTIONS),
    "compensated": lambda net: norton.prune(
        net, 0.4, "l2", options=norton.PruneOptions(min_filters=1, compensate="outputs"), images=images()
    ),
    "hrank": lambda net: norton.prune(
        net, 0.4, "hrank", options=OPTIONS, images=images(network_in(net)[0].weight.dtype)
    ),
    **{method: lambda net, method=method: norton.decompose(net, 2, method) for method in norton.list_methods()},
    "outputs": lambda net: norton.decompose(net, 2, objective="outputs", images=images()),
}


def formats(net):
    return {
        name: (p.dtype, p.device, p.is_contiguous(memory_format=torch.channels_last))
        for name, p in net.named_parameters()
        if p.dim() == 4
    }


@pytest.mark.filterwarnings("ignore::norton.common.errors.NortonWarning")
@pytest.mark.parametrize("verb", VERBS)
def test_channels_last_stays_and_changes_nothing(verb):
    net = make()
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    small, plain = VERBS[verb](last), VERBS[verb](net)
    assert all(is_last for _, _, is_last in formats(small).values())
    if "prune" in verb:  # else all kernels may have one input or one position, and so be of both formats
        assert not all(is_last for _, _, is_last in formats(plain).values())
    found, expected = small(images()), plain(images())
    assert (found - expected).norm() < 0.01 * expected.norm()  # iterations end elsewhere by rounding


@pytest.mark.parametrize("verb", sorted(VERBS.keys() - {"compensated", "outputs"}))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision_stays(verb, dtype):
    small = VERBS[verb](make(dtype))
    assert {p.dtype for p in small.parameters()} == {dtype}
    wanted = VERBS[verb](make(dtype).double()) if verb == "prune" else None
    assert small(images(dtype)).isfinite().all()
    if wanted is not None:  # the same filters stay, as they are
        found, expected = small(images(dtype)).double(), wanted(images(dtype).double())
        assert (found - expected).norm() < 0.02 * expected.norm()


@pytest.fixture
def alone():
    """A group of one process."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


WRAPS = {
    "DataParallel": nn.DataParallel,
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "compiled DataParallel": lambda net: torch.compile(nn.DataParallel(net), backend="eager"),
    "distributed": lambda net: DistributedDataParallel(net, find_unused_parameters=True),
}


def kinds(net):
    found = [type(net)]
    while (inner := getattr(net, "_orig_mod", None) or getattr(net, "module", None)) is not None:
        net = inner
        found.append(type(net))
    return found


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("verb", ["prune", "cp", "outputs"])
def test_wrappers_stay(alone, tmp_path, wrap, verb):
    net = make()
    small, plain = VERBS[verb](WRAPS[wrap](net)), VERBS[verb](net)
    assert kinds(small) == kinds(WRAPS[wrap](net))
    assert getattr(small, "find_unused_parameters", True)
    torch.testing.assert_close(small(images()), plain(images()))
    assert plan_of(small) == plan_of(plain) != []
    assert norton.complexity(small) == norton.complexity(plain)
    again = VERBS["prune"](small)
    assert kinds(again) == kinds(small) and len(plan_of(again)) == 2
    with pytest.warns(NortonWarning, match="will need the dense network"):
        path = norton.save(again, tmp_path / "a.pt")
    torch.testing.assert_close(norton.load(path, net=WRAPS[wrap](net))(images()), again(images()))
    small.train()(images()).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


@pytest.mark.parametrize("inner", [False, True])
def test_what_is_compiled_in_place_runs_no_old_code(inner):
    torch._dynamo.reset()
    net, plain = make(), VERBS["prune"](make())
    (net[3] if inner else net).compile(backend="eager")
    net(images())
    with pytest.warns(NortonWarning, match=r"compiled in place, .* and the result is not"):
        small = VERBS["prune"](net)
    torch.testing.assert_close(small(images()), plain(images()))
    small.compile(backend="eager")
    torch.testing.assert_close(small(images()), plain(images()))


def test_a_compiled_forward_pass_of_another_network():
    net = make()
    net.forward = torch.compile(net.forward, backend="eager")
    with pytest.raises(norton.InputError, match=r"calls no convolution .* a function that was set as forward"):
        VERBS["prune"](net)


def test_compiled_by_the_same_backend():
    torch._dynamo.reset()  # which gives up on code that it has compiled several times
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward

    small = norton.prune(torch.compile(make(), backend=backend), 0.4, "l2", options=OPTIONS)
    small(images())
    assert seen
