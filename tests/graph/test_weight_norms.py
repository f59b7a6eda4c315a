"""Layers with a weight norm are cut, and stay what they are."""

import pytest
import torch
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


def test_other_parametrisations_stay_whole():
    net = nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 8, 3)), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 5, 3)
    )
    assert "computed from others" in norton.wiring_of(net, (3, 9, 9)).left_whole["0"]
