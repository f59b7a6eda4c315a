"""Networks in 8-bit integers."""

import numpy as np
import onnx
import pytest
import torch
from onnx.numpy_helper import to_array
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import norton
from norton.deployment import int8
from norton.deployment.export import to_onnx
from norton.deployment.int8 import to_int8
from norton.deployment.onnx_networks import OnnxNet


def dequantised(model):
    """Layer's weight name → (integers, scales, zero points) of the weights of an INT8 file."""
    constants = {tensor.name: to_array(tensor) for tensor in model.graph.initializer}
    return {
        node.input[0].removesuffix("_quantized"): [constants[name] for name in node.input]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }


@pytest.mark.parametrize("reduced, levels", [(False, 255), (True, 128)])
def test_weights_are_rounded_per_channel(reduced, levels, files, images, tmp_path):
    weights = {t.name: to_array(t) for t in onnx.load(files["onnx"].path).graph.initializer}
    path = to_int8(files["onnx"].path, images, tmp_path / "a.onnx", reduce_range=reduced).path
    found = dequantised(onnx.load(path))
    for name in ("stem.weight", "grouped.weight"):
        integers, scales, zeros = found[name]
        per_channel = (-1, 1, 1, 1)
        assert integers.dtype == np.int8 and not zeros.any()
        expected = np.abs(weights[name]).reshape(len(weights[name]), -1).max(1) * 2 / levels
        np.testing.assert_allclose(scales, expected, rtol=0.01)
        error = np.abs(integers * scales.reshape(per_channel) - weights[name])
        assert (error <= 0.51 * scales.reshape(per_channel)).all()


def test_activations_have_the_range_of_all_images(files, images, tmp_path):
    """The largest pixel in the last batch alone."""
    bright = images.clone()
    bright[-1, 0, 0, 0], bright[0, 0, 0, 0] = 51, -10
    loader = DataLoader(TensorDataset(bright, torch.arange(len(bright))), batch_size=3)  # labels are left out
    path = to_int8(files["onnx"].path, loader, tmp_path / "bright.onnx", batch_size=3).path
    model = onnx.load(path)
    constants = {tensor.name: to_array(tensor) for tensor in model.graph.initializer}
    (first,) = (node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "images")
    assert constants[first.input[1]] == pytest.approx(61 / 255, rel=1e-3)
    assert constants[first.input[2]] == round(10 / (61 / 255))


def test_integers_come_near_the_network(files, deployed, images):
    found, expected = OnnxNet(files["int8"].path)(images), deployed(images)
    error = ((found - expected).norm() / expected.norm()).item()
    assert 1e-4 < error < 0.1  # rounded, and no more than that
    assert files["int8"].in_float == {"pool": "ReduceMean"}


def test_what_the_quantiser_lacks_stays_in_float_and_is_named(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Softplus()), nn.Conv2d(4, 4, 3)).eval()
    images = torch.randn(2, 3, 8, 8)
    path = to_onnx(net, images, tmp_path / "a.onnx").path
    assert to_int8(path, images, tmp_path / "b.onnx").in_float == {"1.0": "Softplus"}


def test_grouped_transposed_convolutions_stay_in_float(tmp_path):
    """onnxruntime's quantiser takes the channels of one group for those of all."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 8, 3, groups=2)).eval()
    images = torch.randn(2, 3, 8, 8)
    path = to_onnx(net, images, tmp_path / "a.onnx").path
    done = to_int8(path, images, tmp_path / "b.onnx")
    assert done.in_float == {"1": "ConvTranspose"} and done.difference < 0.05


def test_what_the_quantiser_fails_on_is_said_in_a_line(files, images, monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise KeyError("no such name")

    monkeypatch.setattr("onnxruntime.quantization.quantize_static", fail)
    with pytest.raises(norton.InputError, match=r"onnxruntime's quantiser fails on it \('no such name'\)$"):
        to_int8(files["onnx"].path, images, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change, message", [
    (lambda images: images[:0], r"of shape \(0, 3, 20, 20\), which has no numbers in it"),
    (lambda images: "pictures", "calibration are a str"),
    (lambda images: list(images), r"of \(1, 20, 20\); the file takes"),
    (lambda images: images[0], r"images are float32 of \(1, 20, 20\); the file takes"),
    (lambda images: images.where(images < 2, float("nan")), "values that are not finite"),
    (lambda images: 3e38 * images.sign(), "what it computes on these images is too large"),
])  # fmt: skip
def test_images_that_calibrate_nothing(change, message, files, images, tmp_path):
    with pytest.raises(norton.InputError, match=message):
        to_int8(files["onnx"].path, change(images), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_outputs_in_integers_that_are_not_finite(tmp_path):
    images = 3e38 * torch.rand(2, 3, 8, 8)
    path = to_onnx(nn.Conv2d(3, 4, 3).eval(), images, tmp_path / "a.onnx").path
    with pytest.raises(norton.InputError, match="is too large for float32"):
        to_int8(path, images, tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()


@pytest.mark.parametrize("size", [0, -1, True, 2.0])
def test_batches_of_no_images(size, files, images, tmp_path):
    with pytest.raises(norton.InputError, match=f"batch_size is {size}; it must be a whole number of at least 1"):
        to_int8(files["onnx"].path, images, tmp_path / "a.onnx", batch_size=size)
    assert not list(tmp_path.iterdir())


class Embedding(nn.Module):
    """As networks that compare images end: vectors of length 1."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        return nn.functional.normalize(self.fc(self.conv(x).relu().mean((2, 3))), dim=1)


def test_shapes_that_are_computed(tmp_path):
    torch.manual_seed(0)
    net, x = Embedding().eval(), torch.randn(16, 3, 8, 8)
    to_onnx(net, x, tmp_path / "net.onnx")
    assert to_int8(tmp_path / "net.onnx", x, tmp_path / "int8.onnx").difference < 0.05
    found = OnnxNet(tmp_path / "int8.onnx")(x)
    assert (found.norm(dim=1) - 1).abs().max() < 1e-5
    assert (found - net(x)).norm() < 0.05 * net(x).norm()


def test_a_machine_whose_sums_saturate_gets_weights_of_seven_bits(files, images, monkeypatch, tmp_path):
    """What it would compute of eight is far from the network, without a word."""
    for saturates, least in ((True, 64), (False, 127)):
        monkeypatch.setattr(int8, "sums_saturate", lambda saturates=saturates: saturates)
        found = dequantised(onnx.load(to_int8(files["onnx"].path, images, tmp_path / "a.onnx").path))
        assert max(np.abs(integers.astype(int)).max() for integers, *_ in found.values() if integers.ndim > 1) == least
