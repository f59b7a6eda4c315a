"""What detectors do: anchors that are made once, strides as tensors, boxes that depend on values, losses of targets."""

import copy

import pytest
import torch
import torchvision
from helpers.cutting import randomised
from helpers.dead import outputs, with_dead_filters
from torch import nn
from torch.utils._pytree import tree_leaves
from torchvision.ops import nms

import norton

pytestmark = pytest.mark.quick


def convolution(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.SiLU())


class Split(nn.Module):
    """Both halves of a convolution, one of them through another one, side by side, as in YOLO's C2f."""

    def __init__(self, width):
        super().__init__()
        self.half = width // 2
        self.a, self.b = nn.Conv2d(width, width, 1), nn.Conv2d(self.half, self.half, 3, padding=1)
        self.c = nn.Conv2d(width + self.half, width, 1)

    def forward(self, x):
        parts = list(self.a(x).split((self.half, self.half), 1))
        parts.append(self.b(parts[-1].relu()))
        return self.c(torch.cat(parts, 1).relu())


class Detector(nn.Module):
    """Two maps, a row of boxes and classes per position: in training as they are, in evaluation as boxes in pixels.

    The grid is made once, for the first images, of strides in a tensor that is no buffer.
    """

    bins, classes = 4, 3

    def __init__(self):
        super().__init__()
        self.stem, self.down, self.split = convolution(3, 8), convolution(8, 12), Split(12)
        self.box = nn.ModuleList(nn.Sequential(nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(8, 16, 1)) for _ in range(2))
        self.label = nn.ModuleList(nn.Sequential(nn.Conv2d(12, 6, 1), nn.Conv2d(6, 3, 1)) for _ in range(2))
        self.bin = nn.Conv2d(self.bins, 1, 1, bias=False).requires_grad_(False)
        self.stride, self.shape = torch.tensor([4.0, 8.0]), None

    def forward(self, x):
        large = self.split(self.down(self.stem(x)))
        maps = [large, nn.functional.avg_pool2d(large, 2)]
        boxes = torch.cat([box(m).view(len(x), 16, -1) for box, m in zip(self.box, maps, strict=True)], 2)
        labels = torch.cat([label(m).view(len(x), 3, -1) for label, m in zip(self.label, maps, strict=True)], 2)
        if self.training:
            return {"boxes": boxes, "labels": labels}
        if self.shape != x.shape:
            grids = [m.new_full((m.shape[2] * m.shape[3], 1), self.stride[i]) for i, m in enumerate(maps)]
            self.grid, self.shape = torch.cat(grids).transpose(0, 1), x.shape
        rows = self.bin(boxes.view(len(x), 4, self.bins, -1).transpose(2, 1).softmax(1)).view(len(x), 4, -1).abs()
        near, far = rows.chunk(2, 1)
        found = torch.cat([(self.grid - near), (self.grid + far)], 1) * self.grid
        return torch.cat([found, labels.sigmoid()], 1)


class Found(nn.Module):
    """The boxes that are left of each image; asks for targets in training."""

    def __init__(self):
        super().__init__()
        self.rows = Detector()

    def forward(self, images, targets=None):
        assert not self.training or targets is not None, "targets should not be none when in training mode"
        rows = self.rows(torch.stack(list(images)))
        if self.training:
            return sum(((rows["labels"] - target) ** 2).mean() for target in targets)
        return [self.left(row) for row in rows.transpose(1, 2)]

    def left(self, rows):
        boxes, scores = rows[:, :4], rows[:, 4:].amax(1)
        boxes = boxes[scores > scores.mean()]
        kept = nms(boxes, scores[scores > scores.mean()], 0.5)[:5]
        picture = boxes.new_zeros(64, 64)
        for box in boxes[kept].long().clamp(0, 32):
            low, high = max(box[0], 0), min(box[2] + 1, 64)
            picture[low:high] = picture[low:high] + 1
        return boxes[kept], picture


IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
WHOLE = {"box.0.1", "box.1.1", "label.0.1", "label.1.1", "bin"}
WHOLE_INSIDE = {f"rows.{name}" for name in WHOLE}


def check_cut(net, example, inputs, whole):
    """All is cut but what leaves the network, and what is left gives what the network with dead filters gives."""
    wiring = norton.wiring_of(net, example)
    assert set(wiring.left_whole) == whole, wiring.left_whole
    options = norton.PruneOptions(min_filters=1)
    small = norton.prune(net, 0.4, criterion="random", options=options, example=example)
    keep = {wiring.axis_of(layer): kept for layer, kept in small.plan[-1]["keep"].items()}
    found = outputs(small, inputs)
    for one, other in zip(found, outputs(with_dead_filters(net, wiring.gone_filters(keep)), inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
    return small, found


def test_a_grid_that_is_made_once_of_strides_with_values():
    """By the size of the images alone, and a network that has seen images is cut as one that has not."""
    net = randomised(Detector().double())
    small, [found] = check_cut(net, (3, 32, 32), (IMAGES,), WHOLE)
    assert small.split.half < 6
    assert (found - found.mean(2, keepdim=True)).std() > 1e-3
    net(IMAGES)
    check_cut(net, (3, 32, 32), (IMAGES[:, :, :24],), WHOLE)
    assert small.train()(IMAGES)["boxes"].shape == (2, 16, 80)


def test_boxes_that_are_found_by_values():
    """Training asks for targets, which nobody gave: all layers run in evaluation, so that this is enough."""
    net = randomised(Found().double())
    small, found = check_cut(net, (list(IMAGES),), (list(IMAGES),), WHOLE_INSIDE)
    assert len(found) == 4 and all(len(part) for part in found) and found[1].any()
    with pytest.raises(norton.InputError, match="needs values: pass example= with real data"):
        norton.wiring_of(net, (3, 32, 32))
    loss = small.train()(list(IMAGES), torch.zeros(2, 1, 1).double())
    loss.backward()
    assert small.rows.stem[0].weight.grad.any()


def test_boxes_in_training_too():
    example = (list(IMAGES), torch.zeros(2, 1, 1))
    net = randomised(Found().double())
    before = copy.deepcopy(net.state_dict())
    check_cut(net, example, (list(IMAGES),), WHOLE_INSIDE)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


class Auxiliary(Found):
    def __init__(self):
        super().__init__()
        self.helper = nn.Conv2d(8, 3, 1)

    def forward(self, images, targets=None):
        loss = super().forward(images, targets)
        return loss + self.helper(self.rows.stem(torch.stack(images))).mean() if self.training else loss


def test_layers_that_only_training_calls_need_what_training_takes():
    net = randomised(Auxiliary().double())
    with pytest.raises(norton.InputError, match="targets should not be none"):
        norton.wiring_of(net, (list(IMAGES),))
    assert norton.wiring_of(net, (list(IMAGES), torch.zeros(2, 1, 1))).left_whole.keys() >= {"helper"}


def test_values_of_images_are_not_made_up():
    class Net(Detector):
        def forward(self, x):
            return super().forward(x) * (1 if x.mean() > 0.5 else 2)

    with pytest.raises(norton.InputError, match="needs values: pass example= with real data"):
        norton.wiring_of(randomised(Net().double()), (3, 32, 32))


def test_a_buffer_in_a_list():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
            self.register_buffer("one", torch.tensor(2.0), persistent=False)

        def forward(self, x):
            return self.b(self.a(x).relu()) * torch.stack([self.one, self.one]).sum()

    check_cut(randomised(Net().double()), (3, 32, 32), (IMAGES,), {"b"})


def test_files_take_what_they_do_not_hold_from_the_dense_network(tmp_path):
    """Strides that are no state, and a norm's buffer that is not saved."""

    class Scaled(Detector):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), persistent=False)

        def forward(self, x):
            return super().forward(x - self.mean)

    options, net = norton.PruneOptions(min_filters=1), randomised(Scaled().double())
    net.mean = net.mean.double()
    small = norton.prune(net, 0.3, criterion="l2", options=options, example=(3, 32, 32))
    small = norton.decompose(small, 2, starts=1, iterations=1)
    small = norton.prune(small, 0.3, criterion="l2", options=options).eval()
    with pytest.warns(norton.common.errors.NortonWarning, match="net="):
        path = norton.save(small, tmp_path / "small.pt")
    assert torch.equal(norton.load(path, net=net)(IMAGES), small(IMAGES))


FEW = {"rpn_pre_nms_top_n_test": 60, "rpn_post_nms_top_n_test": 60, "box_detections_per_img": 8, "num_classes": 4}
SMALL = {"min_size": 64, "max_size": 64}
KINDS = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": FEW | SMALL,
    "keypointrcnn_resnet50_fpn": FEW | SMALL | {"num_classes": 2},
    "maskrcnn_resnet50_fpn": FEW | SMALL,
    "fcos_resnet50_fpn": {"num_classes": 4} | SMALL,
    "retinanet_resnet50_fpn": {"num_classes": 4} | SMALL,
    "ssdlite320_mobilenet_v3_large": {"num_classes": 4},
    "ssd300_vgg16": {"num_classes": 4},
}


class Raw(nn.Module):
    """What a detector's heads give, before boxes are chosen; of one with proposals, what the first of them gives."""

    def __init__(self, net):
        super().__init__()
        self.net, self.head, self.found = net, net.rpn.head if hasattr(net, "rpn") else net.head, []

    def forward(self, images):
        handle = self.head.register_forward_hook(lambda layer, args, output: self.found.append(output))
        boxes = self.net(images)
        handle.remove()
        return [tensor for tensor in tree_leaves(self.found.pop()) if isinstance(tensor, torch.Tensor)], boxes


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_torchvisions_detectors(name):
    """As they come, exactly: what the heads give, and the boxes; and their training goes on."""
    torch.manual_seed(0)
    make = getattr(torchvision.models.detection, name)
    net = make(weights=None, weights_backbone=None, **KINDS[name]).double().eval()
    images = list(torch.rand(2, 3, 64, 64, dtype=torch.float64))
    wiring = norton.wiring_of(net, (images[:1],))
    small = norton.prune(net, 0.3, criterion="l2", example=(images[:1],))
    assert sum(p.numel() for p in small.parameters()) < 0.75 * sum(p.numel() for p in net.parameters())
    keep = {wiring.axis_of(layer): kept for layer, kept in small.plan[-1]["keep"].items()}
    found, expected = (
        outputs(Raw(each), (images,)) for each in (small, with_dead_filters(net, wiring.gone_filters(keep)))
    )
    for one, other in zip(found, expected, strict=True):
        scale = float(other.abs().max()) if other.numel() else 1.0  # some heads of random weights give very little
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6 * scale)
    target = {"boxes": torch.tensor([[1.0, 1, 30, 30]]).double(), "labels": torch.tensor([1])}
    target |= {"keypoints": torch.rand(1, 17, 3) * 30, "masks": torch.ones(1, 64, 64, dtype=torch.uint8)}
    sum(small.train()(images, [target, target]).values()).backward()
