"""State dicts as other programs write them, matched to a network by what they hold."""

import warnings

import pytest
import torch
from helpers.networks import randomise_
from safetensors.torch import save_file
from torch import nn

import norton
from norton.checkpoints.matching import match
from norton.common.errors import NortonWarning


class Small(nn.Module):
    def __init__(self, classes=5, head="fc"):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.block = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.head = head
        self.add_module(head, nn.Linear(6, classes))

    def forward(self, x):
        return getattr(self, self.head)(self.block(self.bn(self.conv(x))).mean((2, 3)))


@pytest.fixture
def net():
    return randomise_(Small()).eval()


def loaded(content, tmp_path, **options):
    """What a file with this content gives, and what was said of it."""
    path = tmp_path / "file.pt"
    torch.save(content, path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = norton.load(path, **{"net": Small(), **options})
    return found, "\n".join(str(one.message) for one in said if issubclass(one.category, NortonWarning))


def check_same(one, other):
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(one(x), other(x))


WRAPPERS = ["module.", "_orig_mod.", "module._orig_mod.", "model.", "backbone.", "model.backbone.net."]


@pytest.mark.parametrize("prefix", WRAPPERS)
def test_wrappers(prefix, net, tmp_path):
    found, said = loaded({prefix + key: value for key, value in net.state_dict().items()}, tmp_path)
    check_same(found, net)
    assert "is left out of its names" in said and said.count("\n") == 0


def test_what_torch_puts_between_names(net, tmp_path):
    state = {key.replace("block.", "block._orig_mod."): value for key, value in net.state_dict().items()}
    found, said = loaded(state, tmp_path)
    check_same(found, net)
    assert "_orig_mod is left out" in said


def test_a_wrapper_of_the_network_itself(net, tmp_path):
    wrapped = nn.ModuleDict({"backbone": Small()})
    found, said = loaded(net.state_dict(), tmp_path, net=wrapped)
    check_same(found["backbone"], net)
    assert "backbone. is put before its names" in said


def test_what_stands_beside_a_wrapped_network_is_left_out(net, tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(net)
    found, said = loaded(averaged.state_dict(), tmp_path)
    check_same(found, net)
    assert "n_averaged beside the network is left out" in said
    state = {f"model.{key}": value for key, value in net.state_dict().items()} | {"criterion.weight": torch.ones(5)}
    found, said = loaded({"state_dict": state}, tmp_path)
    check_same(found, net)
    assert "criterion.weight beside the network is left out" in said
    state.pop("model.conv.weight")  # then nobody knows what it is
    with pytest.raises(norton.InputError, match=r"criterion\.weight 5 of the file has no place"):
        loaded(state, tmp_path)


def test_a_few_names_that_fit_by_chance_are_no_wrapper(tmp_path):
    other = nn.ModuleDict(
        {"outer": nn.ModuleDict({f"layer{n}": nn.Linear(2, 2) for n in range(4)}), "fc": nn.Linear(2, 2)}
    )
    with pytest.raises(norton.InputError) as error:
        loaded(
            {"fc.weight": torch.ones(3, 2), "head.bias": torch.ones(3), "layer1.bias": torch.ones(2)},
            tmp_path,
            net=other,
        )
    assert "nearest in the file: outer" not in str(error.value)  # a name that the file has not


def test_buffers_that_were_written_as_parameters(net, tmp_path):
    """As by who wraps all of a file's tensors."""
    state = {key: nn.Parameter(value, requires_grad=False) for key, value in net.state_dict().items()}
    found, _ = loaded(state, tmp_path)
    check_same(found, net)
    assert all(one.requires_grad for one in found.parameters())
    assert [name for name, _ in found.named_buffers()] == [name for name, _ in net.named_buffers()]


CONTAINERS = ["state_dict", "model_state_dict", "model", "net", "params"]


@pytest.mark.parametrize("key", CONTAINERS)
def test_containers(key, net, tmp_path):
    found, said = loaded({key: net.state_dict(), "epoch": 3, "optimizer": {"state": {}, "param_groups": []}}, tmp_path)
    check_same(found, net)
    assert said == "" if key == "state_dict" else f"under {key}" in said


def test_averaged_weights_are_taken_where_there_are_no_others(net, tmp_path):
    other = randomise_(Small(), seed=1).eval()
    state, averaged = net.state_dict(), {"module": other.state_dict()}
    found, said = loaded({"ema": averaged, "updates": 4}, tmp_path)
    check_same(found, other)
    assert "under ema.module" in said
    found, said = loaded({"ema": averaged, "model": state}, tmp_path)
    check_same(found, net)
    assert "under model, not under ema" in said


def test_lightning(net, tmp_path):
    state = {f"model.{key}": value for key, value in net.state_dict().items()}
    content = {"state_dict": state, "pytorch-lightning_version": "2.5", "hyper_parameters": {"lr": 0.1}, "epoch": 2}
    found, said = loaded(content, tmp_path)
    check_same(found, net)
    assert "model. is left out" in said


def test_counters_of_batches(net, tmp_path):
    state = {key: value for key, value in net.state_dict().items() if not key.endswith("num_batches_tracked")}
    found, said = loaded(state, tmp_path)
    check_same(found, net)
    assert found.bn.num_batches_tracked == 0 and "2 counters of batches" in said


def test_a_classifier_of_another_name(net, tmp_path):
    state = {key.replace("fc.", "classifier."): value for key, value in net.state_dict().items()}
    found, said = loaded(state, tmp_path)
    check_same(found, net)
    assert "its layer classifier is taken for fc" in said


def test_only_one_layer_can_be_taken_for_another(net, tmp_path):
    """Of two layers nobody knows which is which; one with other tensors is no classifier."""
    state = {key.replace("fc.", "a.").replace("conv.", "b."): value for key, value in net.state_dict().items()}
    with pytest.raises(norton.InputError, match=r"8 names do not match .* conv.weight 4×3×3×3 is missing, nearest in"):
        loaded(state, tmp_path)
    state = {key.replace("fc.", "a."): value for key, value in net.state_dict().items() if key != "fc.bias"}
    with pytest.raises(norton.InputError, match=r"fc.weight 5×6 is missing, nearest in the file: a.weight 5×6"):
        loaded(state, tmp_path)


def test_what_has_no_place_is_named(net, tmp_path):
    state = {**net.state_dict(), "projection.weight": torch.ones(2, 6)}
    with pytest.raises(norton.InputError, match=r"1 name does not match the Small: projection.weight 2×6 of the file"):
        loaded(state, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision(dtype, net, tmp_path):
    found, said = loaded(net.to(dtype).state_dict(), tmp_path)
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    assert f"{str(dtype).removeprefix('torch.')} are converted to float32" in said


def test_safetensors(net, tmp_path):
    save_file(net.state_dict(), tmp_path / "a.safetensors")
    check_same(norton.load(tmp_path / "a.safetensors", net=Small()), net)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:300])
    with pytest.raises(norton.InputError, match="not a whole checkpoint"):
        norton.load(tmp_path / "cut.safetensors", net=Small())


def test_strict_refuses_what_is_taken_for_granted(net, tmp_path):
    loaded(net.state_dict(), tmp_path, strict=True)
    with pytest.raises(norton.InputError, match=r"refused, because strict: module\. is left out of its names"):
        loaded({f"module.{key}": value for key, value in net.state_dict().items()}, tmp_path, strict=True)


@pytest.mark.parametrize("arch", ["resnet_20", "resnet_56", "vgg_16_bn"])
@pytest.mark.parametrize("rank", [0, 2])
def test_published_networks_are_recognised_inside_of_wrappers(arch, rank, tmp_path):
    """As a public ResNet-56 is: in DataParallel, without counters, with another classifier's name; compressed too."""
    net = randomise_(norton.build(arch, rank, 0.3, num_classes=7)).eval()
    head = [name for name, layer in net.named_modules() if isinstance(layer, nn.Linear)][-1]
    state = {
        f"module.{key.replace(f'{head}.', 'last.')}": value
        for key, value in net.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    torch.save({"state_dict": state, "best_prec1": 93.1}, tmp_path / "a.th")
    with pytest.warns(NortonWarning, match=f"its layer last is taken for {head}, the only one that is missing"):
        found = norton.load(tmp_path / "a.th")
    assert (found.arch, found.num_classes) == (arch, 7)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(found(x), net(x))


def test_a_constructor_by_its_path_gets_the_classes_of_the_file(tmp_path):
    from torchvision.models import shufflenet_v2_x0_5

    net = randomise_(shufflenet_v2_x0_5(num_classes=7)).eval()
    found, said = loaded(net.state_dict(), tmp_path, net=None, arch="torchvision.models.shufflenet_v2_x0_5")
    assert found.num_classes == 7 and said == ""
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(found(x), net(x))


def test_the_prefix_is_the_one_with_which_most_names_fit():
    expected = {"a.weight": torch.ones(1), "b.weight": torch.ones(1), "c.weight": torch.ones(1)}
    state = {"teacher.a.weight": torch.ones(1), "student.a.weight": torch.ones(1), "student.b.weight": torch.ones(1)}
    found = match(state, expected)
    assert found.assumed == ["student. is left out of its names"]
    assert found.missing == ["c.weight"] and found.left == ["teacher.a.weight"]


class Pixels(nn.Module):
    """Named as torchvision's segmentation networks are."""

    def __init__(self, auxiliary=False, classes=5):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.classifier = self.head(classes)
        self.aux_classifier = self.head(classes) if auxiliary else None

    def head(self, classes):
        return nn.Sequential(nn.Conv2d(4, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2), nn.Conv2d(2, classes, 1))

    def forward(self, x):
        return self.classifier(self.backbone(x))


@pytest.mark.parametrize("prefix, container", [("", None), ("module.", None), ("model.", "state_dict")])
def test_an_auxiliary_classifier_of_the_file_is_left_out(prefix, container, tmp_path):
    one = randomise_(Pixels(auxiliary=True)).eval()
    state = {prefix + key: value for key, value in one.state_dict().items()}
    found, said = loaded({container: state} if container else state, tmp_path, net=Pixels())
    check_same(found, one)
    assert found.aux_classifier is None
    assert "its auxiliary classifier, which is for training, is left out" in said
    with pytest.raises(norton.InputError, match="auxiliary classifier, which is for training, is left out"):
        loaded(state, tmp_path, net=Pixels(), strict=True)


def test_an_auxiliary_classifier_that_both_have_is_kept(tmp_path):
    one = randomise_(Pixels(auxiliary=True)).eval()
    found, said = loaded(one.state_dict(), tmp_path, net=Pixels(auxiliary=True))
    assert all(torch.equal(value, one.state_dict()[key]) for key, value in found.state_dict().items())
    assert said == ""


def test_an_auxiliary_classifier_that_the_file_lacks_is_named(tmp_path):
    """It is not made up: a training would begin with a random one, and nobody said so."""
    with pytest.raises(norton.InputError, match=r"aux_classifier\.0\.weight 2×4×3×3 is missing"):
        loaded(randomise_(Pixels()).state_dict(), tmp_path, net=Pixels(auxiliary=True))


@pytest.mark.slow
def test_published_layout_of_torchvision(tmp_path):
    """torchvision's files hold an auxiliary classifier, and `norton.build` makes a network without one."""
    from torchvision.models.segmentation import fcn_resnet50

    one = randomise_(fcn_resnet50(weights=None, weights_backbone=None, num_classes=21, aux_loss=True)).eval()
    torch.save(one.state_dict(), tmp_path / "fcn.pth")
    arch = "torchvision.models.fcn_resnet50"
    with pytest.warns(NortonWarning, match="auxiliary classifier"):
        found = norton.pretrained(arch, tmp_path / "fcn.pth", input_size=(3, 64, 64))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(found(x)["out"], one(x)["out"]) and set(found(x)) == {"out"}
    with pytest.warns(NortonWarning, match=r"21 classes is replaced by a fresh one of 3"):
        assert norton.pretrained(arch, tmp_path / "fcn.pth", 3, (3, 64, 64)).num_classes == 3


@pytest.mark.parametrize("names", [("teacher.", "student."), ("encoder_q.", "encoder_k."), ("model.", "ema_model.")])
def test_a_network_that_is_there_twice_is_refused(names, net, tmp_path):
    state = {prefix + key: value for prefix in names for key, value in net.state_dict().items()}
    with pytest.raises(norton.InputError, match=rf"has the whole network 2 times, as {', '.join(sorted(names))}; save"):
        loaded(state, tmp_path)


def test_what_is_beside_the_network_is_named_in_short(net, tmp_path):
    state = {f"model.{key}": value for key, value in net.state_dict().items()}
    found, said = loaded(state | {f"loss.{number}": torch.ones(1) for number in range(20)}, tmp_path)
    check_same(found, net)
    assert "loss.5 and 14 more beside the network are left out" in said


def containers(state):
    itself = {"state_dict": state}
    itself["model"] = itself
    return {
        "rank of a process": {"state_dict": state, "rank": 3},
        "a format of its own": {"format": "pytorch", "state_dict": state},
        "less in the first container": {"params": {"lr": torch.ones(1)}, "weights": state},
        "a counter in the first one": {"model": {"epoch": torch.ones(1)}, "net": state},
        "numbers beside tensors": {**state, "epoch": 3, "arch": "small"},
        "itself": itself,
        "counters as other numbers": {
            key: value.float() if key.endswith("tracked") else value for key, value in state.items()
        },
    }


@pytest.mark.parametrize("kind", containers({}))
def test_what_other_programs_put_beside(kind, net, tmp_path):
    found, said = loaded(containers(net.state_dict())[kind], tmp_path)
    check_same(found, net)
    assert found.bn.num_batches_tracked.dtype == torch.int64
    assert ("epoch, arch beside its tensors is left out" in said) == (kind == "numbers beside tensors")


def test_a_container_of_itself_alone_holds_nothing(tmp_path):
    content = {}
    content["model"] = content
    with pytest.raises(norton.InputError, match="holds no state_dict of a network"):
        loaded(content, tmp_path)
