"""Exported programs and ONNX files compute what the network computes, or are refused."""

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from helpers.exports import same
from helpers.networks import randomise_
from helpers.repository import ARCHITECTURES
from torch import nn

import norton
from norton.common.errors import NortonWarning
from norton.deployment import export, exported
from norton.deployment.assembling import assemble
from norton.deployment.export import to_onnx, to_program
from norton.deployment.exported import relative_difference
from norton.deployment.folding import fold
from norton.deployment.int8 import to_int8
from norton.deployment.onnx_networks import OnnxNet


@pytest.mark.parametrize("batch", [1, 2, 5, 7])
def test_outputs_at_any_batch_size(batch, files, deployed, images):
    """One image more or less, each image other: a size or an image that was kept from tracing would show."""
    expected = deployed(images[-batch:])
    same(torch.export.load(files["program"].path).module()(images[-batch:]), expected)
    same(OnnxNet(files["onnx"].path)(images[-batch:]), expected)
    assert 0 <= files["onnx"].difference < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_published_networks(arch, tmp_path):
    """Also as a program and in integers; what the quantiser lacks is a pooling and the sum over terms."""
    size = 64 if arch == "resnet_50" else 32
    images = torch.randn(4, 3, size, size)
    net = fold(randomise_(norton.build(arch, 2)), images).net
    to_program(net, images, tmp_path / "net.pt2")
    path = to_onnx(net, images, tmp_path / "net.onnx").path
    done = to_int8(path, images, tmp_path / "int8.onnx")
    assert done.difference < 0.3
    assert set(done.in_float.values()) <= {"ReduceMean", "ReduceSum"}


def test_channels_last_is_left_to_torch(deployed, files, images):
    """A choice of memory format must not leave arithmetic on positions in ONNX."""
    laid = assemble(fold(deployed, images), {}, channels_last=True)
    path = files["onnx"].path.with_name("laid.onnx")
    to_onnx(laid, images, path)
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert operators <= {"Conv", "Relu", "Add", "MaxPool", "AveragePool", "Concat", "Mul", "ReduceMean"} | {
        "BatchNormalization",
        "Reshape",
        "Gemm",
    }
    same(OnnxNet(path)(images), laid(images))
    to_program(laid, images, path.with_suffix(".pt2"))


def test_nodes_have_the_names_of_layers_and_nothing_of_this_machine(files):
    model = onnx.load(files["onnx"].path)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert {"stem/Conv", "grouped/Conv", "fc/Gemm"} <= set(names)
    assert b"site-packages" not in files["onnx"].path.read_bytes()
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == ["batch", 3, 20, 20]
    assert (model.graph.input[0].name, model.graph.output[0].name) == ("images", "outputs")


# Bad input


class Lacks(nn.Module):
    """Computes by a function that somebody lacks."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def with_layer(function):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), Lacks(function))).eval()


def double(x):
    return F.conv2d(x.double(), torch.ones(4, 4, 1, 1, dtype=torch.double)).float()


@pytest.mark.parametrize("function, message", [
    (torch.linalg.svdvals, r"^1\.1: ONNX has no operator for aten\._linalg_svd"),
    (lambda x: x if x.sum() > 0 else -x, "torch.export cannot follow the network for batches of any size: Could not"),
    (lambda x: x.reshape(2, -1), r"for batches of any size: Constraints violated \(batch\)$"),
    (double, "onnxruntime cannot open the network: .*Conv.*'1.1/Conv'"),
    (lambda x: None, "the network gives a NoneType without tensors"),
])  # fmt: skip
def test_operators_that_are_lacking_are_named(function, message, tmp_path):
    with pytest.raises(norton.InputError, match=message):
        to_onnx(with_layer(function), torch.randn(1, 3, 8, 8), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_a_deployed_layer_that_cannot_be_followed_is_named():
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module, name):
            return isinstance(module, Lacks) or super().is_leaf_module(module, name)

    net = with_layer(lambda x: x if x.sum() > 0 else -x)
    net = torch.fx.GraphModule(net, Tracer().trace(net)).eval()
    with pytest.raises(norton.InputError, match=r"torch.export cannot follow 1\.1 for batches"):
        to_program(net, torch.randn(1, 3, 8, 8), "nowhere.pt2")


class Two(nn.Module):
    def forward(self, x, y):
        return x + y


@pytest.mark.parametrize("write", [to_program, to_onnx])
def test_networks_of_two_inputs(write, tmp_path):
    with pytest.raises(norton.InputError, match=r"does not take the example.*missing 1 required.*'y'; give"):
        write(Two().eval(), torch.randn(1, 3, 8, 8), tmp_path / "a")
    assert not list(tmp_path.iterdir())


class Shuffles(nn.Module):
    """Channels change places, which a view of them needs to be told; weights have five axes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.scale = nn.Parameter(torch.rand(1, 4, 2, 1, 1))

    def forward(self, x):
        x = self.conv(x)
        n, c, h, w = x.shape
        return (x.view(n, 2, 4, h, w).transpose(1, 2) * self.scale).contiguous().view(n, c, h, w)


def test_calls_of_contiguous_stay_that_a_view_needs(tmp_path):
    net, images = Shuffles().eval(), torch.randn(3, 3, 8, 8)
    for kind in (net, torch.fx.symbolic_trace(net)):
        same(OnnxNet(to_onnx(kind, images, tmp_path / "a.onnx").path)(images), net(images))


def transposed_view(x):
    return x.transpose(1, 2).view(-1, x.shape[1] * x.shape[2], x.shape[3])


def test_views_that_cannot_be_followed(monkeypatch, tmp_path):
    """What torch.export raises for them has another type than for other operators."""
    monkeypatch.setattr(export, "prepared", lambda net, example: net)  # which would find it first
    with pytest.raises(norton.InputError, match=r"torch.export cannot follow the network.*: Cannot view a tensor"):
        to_onnx(with_layer(transposed_view), torch.randn(1, 3, 8, 8), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [to_program, to_onnx])
@pytest.mark.parametrize("example, message", [
    (torch.zeros(8), r"float32 of \(8,\); give a batch"),
    (torch.zeros(3, 8, 8), r"does not take the example, float32 of \(3, 8, 8\)"),
    (torch.zeros(1, 3, 8, 8).double(), "float64 of"),
    (torch.zeros(0, 3, 8, 8), r"\(0, 3, 8, 8\)"),
    (np.zeros((1, 3, 8, 8)), "a ndarray"),
    (torch.zeros(1, 4, 8, 8), "does not take the example.*expected input.* to have 3 channels"),
])  # fmt: skip
def test_examples_that_do_not_fit(write, example, message, tmp_path):
    with pytest.raises(norton.InputError, match=message):
        write(with_layer(torch.relu), example, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_training_mode_is_said_and_left(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    with pytest.warns(NortonWarning, match="training mode"):
        path = to_program(net, torch.randn(2, 3, 8, 8), tmp_path / "a.pt2").path
    assert net.training and net[0].weight.requires_grad
    images = torch.randn(3, 3, 8, 8)
    same(torch.export.load(path).module()(images), net.eval()(images))


def test_a_compiled_network_is_exported_as_it_was(deployed, images, tmp_path):
    path = to_program(torch.compile(deployed, backend="eager"), images, tmp_path / "a.pt2").path
    same(torch.export.load(path).module()(images), deployed(images))


@pytest.mark.parametrize("write", [to_program, to_onnx])
def test_other_outputs_are_not_written(write, monkeypatch, tmp_path):
    monkeypatch.setattr(exported, "relative_difference", lambda *_: 2e-4)
    with pytest.raises(norton.InputError, match=r"differ from the network's by 2\.0e-04"):
        write(with_layer(torch.relu), torch.randn(1, 3, 8, 8), tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_relative():
    one = torch.tensor([3.0, 4.0])
    assert relative_difference(one * 1.1, one) == pytest.approx(0.1)
    assert relative_difference(one[:1], one) == relative_difference(one * float("nan"), one) == float("inf")
    assert relative_difference(0 * one, 0 * one) == 0


def test_files_and_images_that_do_not_fit(files, images, tmp_path):
    net = OnnxNet(files["onnx"].path)
    for wrong in (images[:, :2], images.double(), images[0]):
        with pytest.raises(norton.InputError, match=r"the file takes tensor\(float\) of \('batch', 3, 20, 20\)"):
            net(wrong)
    (tmp_path / "bad.onnx").write_text("nonsense")
    for path in (tmp_path / "bad.onnx", tmp_path / "none.onnx"):
        with pytest.raises(norton.InputError, match=f"onnxruntime cannot open .*{path.name}"):
            OnnxNet(path)
    with pytest.raises(norton.InputError, match="8-bit integers already"):
        to_int8(files["int8"].path, images, tmp_path / "a.onnx")
    with pytest.raises(norton.InputError, match="the file takes"):
        to_int8(files["onnx"].path, images[:, :2], tmp_path / "a.onnx")
    relu = to_onnx(nn.ReLU().eval(), images, tmp_path / "relu.onnx").path
    with pytest.raises(norton.InputError, match="no convolution or linear layer to quantise, only Relu"):
        to_int8(relu, images, tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()
