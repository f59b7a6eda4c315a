"""Networks that are named by the path of their constructor, and their files."""

import pytest
import torch
from torch import nn

import norton
from norton.common.errors import NortonWarning


@pytest.mark.parametrize(
    "name, size", [("resnet18", None), ("mobilenet_v3_small", [3, 64, 64]), ("regnet_y_400mf", None)]
)
def test_built_by_path_and_loaded_without_flags(name, size, tmp_path):
    net = norton.build(f"torchvision.models.{name}", num_classes=10, input_size=size)
    assert (net.num_classes, net.input_size) == (10, tuple(size or (3, 224, 224)))
    small = norton.prune(
        norton.decompose(net, {"layer1.*": 2}, starts=1) if name == "resnet18" else net, 0.3, criterion="l2"
    )
    state = torch.get_rng_state()
    again = norton.load(norton.save(small.eval(), tmp_path / "a.pt"))
    assert torch.equal(state, torch.get_rng_state())
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(again(x), small(x))
    assert (again.arch, again.num_classes, again.input_size) == (net.arch, 10, net.input_size)
    twice = norton.load(norton.save(norton.prune(again, 0.2, criterion="l2"), tmp_path / "b.pt"))
    assert norton.complexity(twice).macs < norton.complexity(again).macs < norton.complexity(net).macs
    if name == "resnet18":
        assert norton.build(net.arch, 0, 0.3, 10).fc.in_features == small.fc.in_features == 358


MINE = """
import torch
from torch import nn

class Mine(nn.Module):
    def __init__(self, num_classes=2):
        super().__init__()
        self.a, self.fc, self.mean = nn.Conv2d(3, 8, 3), nn.Linear(8, num_classes), torch.zeros(3, 1, 1)

class Deciding(Mine):
    def forward(self, x):
        if x.mean() > 0:
            x = x + 1
        return self.fc(self.a(x).mean([2, 3]))

class Shifting(Mine):
    def forward(self, x):
        return self.fc(self.a(x - self.mean + torch.ones(3, 1, 1)).mean([2, 3]))

class Masked(Mine):
    def __init__(self):
        super().__init__()
        self.of_mask = nn.Conv2d(1, 8, 3)

    def forward(self, x, mask=None):
        y = self.a(x)
        return self.fc((y if mask is None else y * self.of_mask(mask)).mean([2, 3]))
"""


def test_networks_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "of_mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        norton.InputError, match=r"of_mine\.py:12 \(if x\.mean\(\) > 0:\).*its forward pass needs values"
    ):
        norton.build("of_mine.Deciding")
    net = norton.build("of_mine.Shifting", num_classes=4)
    assert (net.num_classes, net.input_size) == (4, (3, 224, 224))
    small = norton.prune(net, 0.3, criterion="l2", options=norton.PruneOptions(min_filters=1))
    assert small(torch.randn(1, 3, 8, 8)).shape == (1, 4)
    assert small.a.out_channels == small.fc.in_features == 5


def test_a_second_input_that_may_be_left_out_is_in_the_file(tmp_path, monkeypatch):
    (tmp_path / "of_mine_masked.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    x, mask = torch.randn(2, 3, 8, 8), torch.randn(2, 1, 8, 8)
    net = norton.build("of_mine_masked.Masked")
    small = norton.prune(net, 0.5, criterion="l2", options=norton.PruneOptions(min_filters=1), example=(x, mask))
    again = norton.load(norton.save(small, tmp_path / "a.pt"), arch="of_mine_masked.Masked")
    assert torch.equal(again(x, mask), small(x, mask)) and again.of_mask.out_channels == 4
    assert torch.equal(again.example_input_array[1], mask)


@pytest.mark.parametrize("arch, options, message", [
    ("torchvision.models.nix", {}, "has nothing callable of the name 'nix'"),
    ("torchvision.models.None", {}, "give name="),
    ("nix.models.net", {}, "cannot import nix.models"),
    ("os.path;import", {}, "is no path of a constructor"),
    ("os.getcwd", {}, "makes a str, which is no network"),
    ("torch.nn.Flatten", {"num_classes": 3}, "takes no num_classes"),
    ("torchvision.models.resnet18", {"num_classes": 0}, "whole number of at least 1"),
    ("torchvision.models.resnet18", {"input_size": [64, 64]}, r"give \(channels, height, width\)"),
    ("torchvision.models.resnet18", {"input_size": [1, 64, 64]}, "takes no input of size 1×64×64"),
    ("torchvision.models.resnet18", {"compress_rate": "[0.3]*4"}, "has no published list of rates"),
    ("torch.nn.Identity", {"num_classes": 4}, "asked for 4 classes"),
    ("resnet_56", {"input_size": [3, 64, 64]}, "leave it out"),
])  # fmt: skip
def test_bad_paths(arch, options, message):
    with pytest.raises(norton.InputError, match=message):
        norton.build(arch, **options)


def test_a_file_that_names_what_is_not_there(tmp_path):
    content = torch.load(
        norton.save(norton.build("torchvision.models.squeezenet1_1", num_classes=3), tmp_path / "a.pt")
    )
    for arch in ("nix.models.net", "os.getcwd", "torchvision.models.nix"):
        torch.save({**content, "arch": arch}, tmp_path / "b.pt")
        with pytest.raises(norton.InputError, match=arch.replace(".", r"\.")):
            norton.load(tmp_path / "b.pt")


def test_a_file_alone_runs_no_code(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import pathlib\nfrom torch import nn\n"
        f"pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
        "def net(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(2704, 2))\n"
    )
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 2))
    net.arch, net.num_classes, net.input_size = "mine.net", None, (3, 28, 28)
    file = norton.save(net, tmp_path / "a.pt")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(norton.InputError, match="would import and call"):
        norton.load(file)
    assert not (tmp_path / "ran").exists()
    assert torch.equal(norton.load(file, arch="mine.net")[0].weight, net[0].weight)
    assert (tmp_path / "ran").exists()


ARGUMENTS = """
from torch import nn

class Wide(nn.Sequential):
    def __init__(self, width, num_classes=3, widths=(), act="relu"):
        super().__init__(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 2 * width, 3), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(2 * width, num_classes))
        self.input_size = (3, 16, 16)
"""


@pytest.fixture
def wide(tmp_path, monkeypatch):
    (tmp_path / "nets_with_arguments.py").write_text(ARGUMENTS)
    monkeypatch.syspath_prepend(tmp_path)
    return "nets_with_arguments.Wide"


def test_arguments_of_a_constructor_are_remembered(wide, tmp_path):
    kwargs = {"width": 12, "widths": [1, 2.5, None], "act": "gelu"}
    net = norton.build(wide, kwargs=kwargs)
    small = norton.prune(norton.decompose(net, 2), 0.3, criterion="l2").eval()
    path = norton.save(small, tmp_path / "a.pt")
    again = norton.load(path, arch=wide)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(again(x), small(x)) and again.arch_kwargs == kwargs
    assert norton.load(path, arch=wide, kwargs=kwargs).arch_kwargs == kwargs
    with pytest.raises(norton.InputError, match=r"was made with kwargs \{'width': 12, .*, not \{'width': 8\}"):
        norton.load(path, arch=wide, kwargs={"width": 8})
    with pytest.warns(NortonWarning, match="replaced by a fresh one of 5"):
        assert norton.load(path, arch=wide, num_classes=5).arch_kwargs == kwargs


def test_a_state_dict_for_a_constructor_with_arguments(wide, tmp_path):
    net = norton.build(wide, kwargs={"width": 12}, num_classes=7).eval()
    torch.save(net.state_dict(), tmp_path / "a.pth")
    again = norton.load(tmp_path / "a.pth", arch=wide, kwargs={"width": 12})
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(again(x), net(x))
    given = norton.pretrained(wide, tmp_path / "a.pth", 7, kwargs={"width": 12})
    assert torch.equal(given(x), net(x))
    with pytest.raises(norton.InputError, match="kwargs are arguments of a constructor"):
        norton.load(tmp_path / "a.pth", kwargs={"width": 12})


@pytest.mark.parametrize("arch, kwargs, said", [
    (None, None, "cannot be called with nothing: .*width"),
    (None, {"wdth": 4}, r"cannot be called with \{'wdth': 4\}: .*wdth"),
    (None, {"width": 4, "num_classes": 5}, "kwargs has num_classes, which is given as num_classes=; leave it out"),
    (None, {"width": torch.ones(())}, "kwargs has width=.*; a file can hold numbers"),
    ("torchvision.models.resnet18", {"weights": "DEFAULT"}, "kwargs has weights, which is given as weights="),
    ("resnet_56", {"width": 4}, "resnet_56: kwargs has width; a published network takes no arguments"),
])  # fmt: skip
def test_arguments_that_cannot_be(arch, kwargs, said, wide):
    with pytest.raises(norton.InputError, match=said):
        norton.build(arch or wide, kwargs=kwargs)


def test_arguments_in_a_file_are_not_given_to_a_constructor_that_only_the_file_names(tmp_path):
    arch = "torchvision.models.resnet18"
    path = norton.save(norton.build(arch, num_classes=3, kwargs={"zero_init_residual": True}), tmp_path / "a.pt")
    with pytest.raises(norton.InputError, match=f"its network is made by {arch}, .* say so with model.arch={arch}"):
        norton.load(path)
    assert norton.load(path, arch=arch).arch_kwargs == {"zero_init_residual": True}
