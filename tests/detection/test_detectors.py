"""Detectors over dense and compressed backbones: published counts, forward, loss, gradient, save and load."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.ops import FrozenBatchNorm2d

import norton
from detection import (
    DETECTORS,
    build_detector,
    deploy_detector,
    detector_complexity,
    load_detector,
    save_detector,
)
from norton.common.errors import NortonWarning

SMALLEST = (1, "[0.]+[0.1]*2+[0.4]*5+[0.75]*12")
PUBLISHED_PARAMS = {
    "fasterrcnn": (41_808_406, 22_012_182),
    "maskrcnn": (44_454_513, 24_658_289),
    "keypointrcnn": (59_190_378, 39_394_154),
}
SMALL = {"min_size": 64, "max_size": 96, "rpn_post_nms_top_n_test": 5, "rpn_post_nms_top_n_train": 20}


def small_detector(kind, compressed=True, **options):
    backbone = norton.build("resnet_50", *(SMALLEST if compressed else (0, None)))
    return build_detector(kind, backbone, 3, **SMALL, **options)


def targets(kind):
    target = {"boxes": torch.tensor([[4.0, 4, 40, 50], [20, 10, 60, 60]]), "labels": torch.tensor([1, 2])}
    if kind == "maskrcnn":
        target["masks"] = torch.zeros(2, 64, 64, dtype=torch.uint8)
        target["masks"][0, 4:50, 4:40] = target["masks"][1, 10:60, 20:60] = 1
    if kind == "keypointrcnn":
        target["keypoints"] = torch.tensor([[[20.0, 20, 1]] * 17, [[40.0, 40, 1]] * 17])
    return [target]


@pytest.mark.parametrize("kind", DETECTORS)
@pytest.mark.parametrize("compressed", [False, True])
def test_published_parameters(kind, compressed):
    with torch.device("meta"):
        backbone = norton.build("resnet_50", *(SMALLEST if compressed else (0, None)))
    net = build_detector(kind, backbone)
    assert sum(p.numel() for p in net.parameters()) == PUBLISHED_PARAMS[kind][compressed]


def test_names_are_torchvisions():
    with torch.device("meta"):
        ours = build_detector("fasterrcnn", norton.build("resnet_50"), frozen_batchnorm=True)
        theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    expected = {k: v.shape for k, v in theirs.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert {k: v.shape for k, v in ours.state_dict().items()} == expected


@pytest.mark.usefixtures("thin_heads")
@pytest.mark.parametrize("kind", DETECTORS)
@pytest.mark.parametrize("compressed", [False, True])
def test_forward_loss_and_gradient(kind, compressed):
    torch.manual_seed(0)
    net = small_detector(kind, compressed).train()
    losses = net([torch.rand(3, 64, 64)], targets(kind))
    assert {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"} <= losses.keys()
    assert ("loss_mask" in losses) == (kind == "maskrcnn")
    assert ("loss_keypoint" in losses) == (kind == "keypointrcnn")
    sum(losses.values()).backward()
    for name in ("backbone.body.conv1.weight", "backbone.fpn.inner_blocks.0.0.weight"):
        assert net.get_parameter(name).grad.abs().sum() > 0
    if compressed:
        head = "backbone.body.layer1.0.conv2.feature.pointwise.weight"
        assert net.get_parameter(head).grad.abs().sum() > 0
    with torch.no_grad():
        (found,) = net.eval()([torch.rand(3, 64, 64)])
    assert {"boxes", "labels", "scores"} <= found.keys()


@pytest.mark.parametrize("trainable", range(6))
def test_trainable_layers_as_torchvision_has_them(trainable):
    from torchvision.models import resnet50
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor

    with torch.device("meta"):
        ours = build_detector("fasterrcnn", norton.build("resnet_50"), trainable_layers=trainable).backbone
        theirs = _resnet_fpn_extractor(resnet50(weights=None), trainable)
    expected = {name: p.requires_grad for name, p in theirs.named_parameters()}
    assert {name: p.requires_grad for name, p in ours.named_parameters()} == expected


def test_frozen_batchnorm_gives_the_same_outputs():
    backbone = norton.build("resnet_50", 1)
    for layer in backbone.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
    nets = [build_detector("fasterrcnn", backbone, frozen_batchnorm=frozen).backbone.eval() for frozen in (False, True)]
    assert any(isinstance(layer, FrozenBatchNorm2d) for layer in nets[1].modules())
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in nets[1].modules())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        bodies = [net.body(x) for net in nets]
    for name in bodies[0]:
        torch.testing.assert_close(bodies[0][name], bodies[1][name], rtol=1e-4, atol=1e-4)
    assert isinstance(backbone.bn1, nn.BatchNorm2d)  # the given network is not changed


@pytest.mark.usefixtures("thin_heads")
@pytest.mark.parametrize("kind", DETECTORS)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("published", [False, True])
def test_checkpoints_rebuild_themselves(kind, frozen, published, tmp_path):
    net = small_detector(kind, frozen_batchnorm=frozen).eval()
    path = tmp_path / "a.pt"
    if published:
        torch.save({"model": net.state_dict(), "epoch": 3}, path)
        again = load_detector(path, **SMALL)
    else:
        save_detector(net, path, metrics={"ap": 0.3})
        again = load_detector(path)
    assert net.recipe.items() <= again.recipe.items()
    x = [torch.rand(3, 64, 64)]
    with torch.no_grad():
        first, second = net(x)[0], again(x)[0]
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.usefixtures("thin_heads")
def test_other_widths_name_the_layer(tmp_path):
    state = small_detector("fasterrcnn").state_dict()
    state["backbone.body.layer2.0.bn2.weight"] = torch.ones(5)
    torch.save({"model": state}, tmp_path / "a.pt")
    with pytest.raises(norton.InputError, match=r"backbone\.body\.layer2\.0\.bn2\.weight is \(5,\) in the file"):
        load_detector(tmp_path / "a.pt")


@pytest.mark.parametrize("compressed, macs", [(False, 134_851_329_657), (True, 93_395_249_657)])
def test_published_counts(compressed, macs):
    with torch.device("meta"):
        net = build_detector("maskrcnn", norton.build("resnet_50", *(SMALLEST if compressed else (0, None))))
    cost = detector_complexity(net)
    assert cost.macs == macs
    parts = {"fpn": 36_276_800_000, "rpn": 31_666_815_154, "box head": 14_359_554_503, "mask head": 0}
    if not compressed:
        assert cost.by_part == {"backbone": 52_548_160_000, **parts}


@pytest.mark.usefixtures("thin_heads")
def test_heads_cost_by_the_box():
    net = small_detector("keypointrcnn")

    def heads(proposals, detections):
        cost = detector_complexity(net, 64, proposals=proposals, detections=detections)
        return cost.by_part["box head"], cost.by_part["keypoint head"]

    assert heads(0, 0) == (0, 0)
    assert heads(2, 2)[1] == 2 * heads(2, 1)[1] > 0
    # The bias of a linear layer counts once, whatever the number of rows.
    assert heads(3, 0)[0] - heads(2, 0)[0] == heads(2, 0)[0] - heads(1, 0)[0]


@pytest.mark.parametrize("call, message", [
    (lambda: build_detector("ssd", norton.build("resnet_50")), "unknown detector 'ssd'; choose one of fasterrcnn"),
    (lambda: build_detector("fasterrcnn", norton.build("resnet_56")), "the backbone is a resnet_56"),
    (lambda: build_detector("fasterrcnn", nn.Linear(3, 4)), "the backbone is a Linear"),
    (lambda: build_detector("fasterrcnn", norton.build("resnet_50"), trainable_layers=7), "choose 0 to 5"),
    (lambda: small_detector("fasterrcnn", colour="red"), "fasterrcnn has no option colour; it has min_size, max_size"),
    (lambda: detector_complexity(small_detector("fasterrcnn"), proposals=-1), "proposals is -1"),
    (lambda: detector_complexity(small_detector("fasterrcnn"), 8), "size is 8"),
])  # fmt: skip
def test_bad_input(call, message):
    with pytest.raises(norton.InputError, match=message):
        call()


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return build_detector("fasterrcnn", norton.build("resnet_50", 1, "[0.75]*20"), 3, min_size=64, max_size=64).eval()


@pytest.mark.parametrize("images, message", [
    ([], "images are a list without any"),
    (torch.zeros(0, 3, 8, 8), "images are a Tensor without any"),
    (torch.tensor(1.0), "images are a Tensor without any"),
    (None, "images are a NoneType without any"),
    (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"hold uint8 of \(3, 8, 8\); give floating-point numbers in \[0, 1\]"),
    ([torch.zeros(3, 8, 8), torch.zeros(1, 8, 8)], r"hold float32 of \(1, 8, 8\)"),
    (torch.zeros(3, 8, 8), r"hold float32 of \(8, 8\)"),
    ([torch.zeros(3, 0, 8)], r"\(3, 0, 8\)"),
    (["a.png"], "images hold a str; give tensors"),
])  # fmt: skip
def test_images_that_no_detector_is_deployed_for(small, images, message):
    with pytest.raises(norton.InputError, match=message):
        deploy_detector(small, images)


def test_a_detector_in_training_is_deployed_with_a_remark(small, monkeypatch):
    monkeypatch.setattr(norton, "deploy", lambda net, batch, **_: nn.Module())  # which takes a while
    monkeypatch.setattr(nn.Module, "deployment", None, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        deploy_detector(small, torch.zeros(1, 3, 8, 8))
    with pytest.warns(NortonWarning, match="the detector is in training mode"):
        deployed = deploy_detector(copy.deepcopy(small).train(), torch.zeros(1, 3, 8, 8))
    assert not deployed.training


def test_a_classification_file_is_no_detector(tmp_path):
    path = norton.save(norton.build("resnet_56"), tmp_path / "a.pt")
    with pytest.raises(norton.InputError, match="holds no detector"):
        load_detector(path)
