"""Layers whose weight torch computes (weight norm, spectral norm, masks) are cut, and stay what they are."""

import copy

import pytest
import torch
from helpers.dead import largest_error, outputs, with_dead_filters
from torch import nn

import norton

FORMS = {"parametrised": nn.utils.parametrizations.weight_norm, "hooked": nn.utils.weight_norm}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
def test_cut_and_normed_again(form):
    torch.manual_seed(0)
    net = nn.Sequential(FORMS[form](nn.Conv2d(3, 8, 3)), FORMS[form](nn.Conv2d(8, 8, 3)), nn.Conv2d(8, 5, 3)).double()
    lengths = "parametrizations.weight.original0" if form == "parametrised" else "weight_g"
    with torch.no_grad():
        net[0].get_parameter(lengths)[:3] = 0  # these filters go, and one of zeros stays
        net[0].bias[:3] = 0
    net[1].get_parameter(lengths).requires_grad_(False)
    small = norton.prune(net, 0.25, criterion="l2", options=norton.PruneOptions(min_filters=1), example=(3, 9, 9))
    keys = {key: value.shape for key, value in net.state_dict().items()}
    assert keys.keys() == small.state_dict().keys()
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in net.parameters()]
    kept = small.plan[-1]["keep"]
    assert len(kept["0"]) == len(kept["1"]) == 6
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    net(x)  # the hooks compute what they left in the other precision
    first = net[0](x)[:, kept["0"]]
    assert torch.allclose(small[0](x), first)
    weight = net[1].weight[kept["1"]][:, kept["0"]]
    assert torch.allclose(small[1](first), nn.functional.conv2d(first, weight, net[1].bias[kept["1"]]))
    small(x).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in small.parameters())


class Normed(nn.Module):
    """Plain, grouped, depthwise, transposed and linear layers whose weights are computed, but for the last."""

    input_size = (3, 9, 9)

    def __init__(self, norm):
        super().__init__()
        self.a, self.b = norm(nn.Conv2d(3, 8, 3)), norm(nn.Conv2d(8, 12, 3, groups=2))
        self.depthwise, self.c = norm(nn.Conv2d(12, 12, 3, groups=12)), norm(nn.ConvTranspose2d(12, 6, 2))
        self.n, self.d, self.last = norm(nn.BatchNorm2d(6)), norm(nn.Linear(6, 8)), nn.Linear(8, 5)

    def forward(self, x):
        y = self.depthwise(self.b(self.a(x).tanh()).tanh())
        return self.last(self.d(self.n(self.c(y).tanh()).mean((2, 3))).tanh())


def but_norms(norm):
    return lambda layer: layer if isinstance(layer, nn.BatchNorm2d) else norm(layer)


def masked(layer):
    for name, rate in (("weight", 0.3), ("weight", 0.1), ("bias", 0.2)):
        nn.utils.prune.random_unstructured(layer, name, rate)
    return layer


COMPUTED = {
    "spectral norm": but_norms(nn.utils.parametrizations.spectral_norm),
    "spectral norm by a hook": but_norms(nn.utils.spectral_norm),
    "masks": masked,
}


def computed(how):
    torch.manual_seed(0)
    return Normed(COMPUTED[how]).double()


@pytest.mark.filterwarnings("ignore:.*norton.load will need")
@pytest.mark.parametrize("how", COMPUTED)
def test_computed_of_what_stays(how, tmp_path):
    net, x = computed(how), torch.randn(3, 3, 9, 9, dtype=torch.float64)
    net(x).sum().backward()  # after which torch copies no weight that a hook computed
    wiring, options = norton.wiring_of(net), norton.PruneOptions(min_filters=1)
    assert set(wiring.left_whole) == {"last"}
    small = norton.prune(net, 0.3, criterion="l2", options=options)
    keep = {wiring.axis_of(layer): kept for layer, kept in small.plan[-1]["keep"].items()}
    expected = outputs(with_dead_filters(net, wiring.gone_filters(keep)), (x,))
    assert largest_error(outputs(small, (x,)), expected) < 1e-9
    assert largest_error(outputs(net, (x,)), expected) > 1e-2
    assert net.state_dict().keys() == small.state_dict().keys()
    again = norton.load(norton.save(small, tmp_path / "net.pt"), net=computed(how))
    copy.deepcopy(again).train()(x).sum().backward()
    assert largest_error(outputs(again, (x,)), expected) < 1e-9
    smaller = norton.prune(again, 0.3, criterion="l2", options=options)
    torch.optim.SGD(smaller.parameters(), 0.1).step(lambda: smaller.train()(x).square().sum().backward())
    assert all(value.isfinite().all() for value in smaller.state_dict().values())
    assert smaller.c.in_channels < again.c.in_channels < net.c.in_channels


def test_spectral_vectors_are_where_the_iteration_ends():
    net = computed("spectral norm by a hook")
    small = norton.prune(net, 0.3, criterion="l2", options=norton.PruneOptions(min_filters=1))
    assert small.a.weight_u.shape == small.a.weight_orig.shape[:1]
    for layer in (small.a, small.c):
        before = layer.weight
        for _ in range(5):
            next(iter(layer._forward_pre_hooks.values()))(layer.train(), ())
        torch.testing.assert_close(layer.weight, before, rtol=1e-9, atol=0)


def test_masks_stay_with_their_weights():
    torch.manual_seed(0)
    net = nn.Sequential(masked(nn.Conv2d(3, 8, 3)), masked(nn.Conv2d(8, 8, 3)), nn.Conv2d(8, 5, 3))
    small = norton.prune(net, 0.3, "l2", options=norton.PruneOptions(min_filters=1), example=(3, 9, 9))
    first, second = (small.plan[-1]["keep"][layer] for layer in "01")
    for name in ("weight_mask", "weight_orig", "weight"):
        assert torch.equal(getattr(small[1], name), getattr(net[1], name)[second][:, first])
    assert torch.equal(small[1].bias_mask, net[1].bias_mask[second])
    assert torch.equal(nn.utils.prune.remove(small[1], "weight").weight, net[1].weight[second][:, first])


def shared():
    one, other = (nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 3)) for _ in range(2))
    other.parametrizations.weight.original = one.parametrizations.weight.original
    return [one, other]


OTHER = {  # layers that stay whole → the reason
    "a parametrisation of one's own": (
        lambda: [nn.utils.parametrize.register_parametrization(nn.Conv2d(8, 8, 3), "weight", nn.Tanh())],
        "computed from others",
    ),
    "two of them": (
        lambda: [nn.utils.parametrizations.spectral_norm(nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3)))],
        "computed from others",
    ),
    "shared": (shared, "it shares a parameter with another layer"),
}


@pytest.mark.parametrize("what", OTHER)
def test_what_is_computed_otherwise_stays_whole(what):
    layers, reason = OTHER[what][0](), OTHER[what][1]
    net = nn.Sequential(nn.Conv2d(3, 8, 3), *layers, nn.Conv2d(8, 5, 3))
    whole = norton.wiring_of(net, (3, 12, 12)).left_whole
    assert {"0", "1"} <= set(whole) and reason in whole["1"]
