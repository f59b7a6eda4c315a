"""Exported files: the same outputs at any batch size, with and without torch; what cannot be exported is named."""

import copy
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from conftest import ARCHITECTURES, REPOSITORY, randomise_
from onnx.numpy_helper import to_array
from onnxruntime.capi import onnxruntime_pybind11_state as state
from torch import nn

import norton
from norton.common.errors import NortonWarning
from norton.deployment import export
from norton.deployment.assembling import assemble
from norton.deployment.export import OnnxNet, run_alone, to_int8, to_onnx, to_program
from norton.deployment.folding import fold


class Small(nn.Module):
    """Stride, dilation, unequal padding, groups, a sum, a concatenation, poolings and a BatchNorm that cannot fold."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=(1, 2), bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(8, 8, 3, padding="same", dilation=2)
        self.grouped = nn.Conv2d(8, 6, 1, groups=2)
        self.last = nn.BatchNorm2d(14)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(14, 5)

    def forward(self, x):
        x = self.relu(self.norm(self.stem(x)))
        x = F.max_pool2d(x + self.relu(self.conv(x)), 2)
        x = self.last(torch.cat([x, F.avg_pool2d(self.grouped(x), 3, 1, 1)], 1))
        return self.fc(self.pool(x.relu()).flatten(1))


@pytest.fixture(scope="module")
def small():
    net = norton.decompose(randomise_(Small()), {"conv": 2}).eval()
    return norton.deploy(net, torch.randn(4, 3, 20, 20), repeats=1)


@pytest.fixture(scope="module")
def images():
    return torch.randn(7, 3, 20, 20, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def files(small, images, tmp_path_factory):
    """The small network in each kind of file."""
    folder = tmp_path_factory.mktemp("files")
    example = images[:2]
    made = {
        "program": to_program(small, example, folder / "net.pt2"),
        "onnx": to_onnx(small, example, folder / "deep" / "net.onnx"),
    }
    made["int8"] = to_int8(made["onnx"].path, images, folder / "net.int8.onnx", batch_size=3)
    assert {path.name for path in folder.iterdir()} == {"net.pt2", "deep", "net.int8.onnx"}
    return made


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 5, 7])
def test_outputs_at_any_batch_size(batch, files, small, images):
    """One image more or less, each image other: a size or an image that was kept from tracing would show."""
    expected = small(images[-batch:])
    same(torch.export.load(files["program"].path).module()(images[-batch:]), expected)
    same(OnnxNet(files["onnx"].path)(images[-batch:]), expected)
    assert 0 <= files["onnx"].difference < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_published_networks(arch, tmp_path):
    """Also as a program and in integers; what the quantiser lacks is a pooling and the sum over terms."""
    size = 64 if arch == "resnet_50" else 32
    net = fold(randomise_(norton.build(arch, 2)))
    images = torch.randn(4, 3, size, size)
    to_program(net, images, tmp_path / "net.pt2")
    path = to_onnx(net, images, tmp_path / "net.onnx").path
    done = to_int8(path, images, tmp_path / "int8.onnx")
    assert done.difference < 0.3
    assert set(done.in_float.values()) <= {"ReduceMean", "ReduceSum"}


def test_channels_last_is_left_to_torch(small, files, images):
    """A choice of memory format must not leave arithmetic on positions in ONNX."""
    laid = assemble(fold(small), {}, channels_last=True)
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


WITHOUT_TORCH = """
import runpy, sys
class Refused:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("torch", "torchvision", "norton", "onnx", "lightning"):
            raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Refused())
script, sys.argv = sys.argv[1], sys.argv[1:]
runpy.run_path(script, run_name="__main__")
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("kind", ["onnx", "int8"])
def test_runs_where_there_is_only_onnxruntime(kind, files, small, images, tmp_path):
    np.save(tmp_path / "images.npy", images.numpy())
    script = tmp_path / "run_onnx.py"  # a copy, far from the project
    script.write_bytes((REPOSITORY / "norton" / "run_onnx.py").read_bytes())
    words = [sys.executable, "-P", "-c", WITHOUT_TORCH, script, files[kind].path, "images.npy", "outputs.npy"]
    done = subprocess.run(list(map(str, words)), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = torch.from_numpy(np.load(tmp_path / "outputs.npy"))
    same(found, OnnxNet(files[kind].path)(images))
    if kind == "onnx":
        same(found, small(images))
    refused = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, REPOSITORY / "complexity.py"], capture_output=True, text=True
    )
    assert "is not here" in refused.stderr  # the hook does refuse


def test_alone_tells_time_and_memory(files, images):
    alone = run_alone(files["onnx"].path, images, threads=1, repeats=2)
    same(alone.outputs, OnnxNet(files["onnx"].path)(images))
    assert alone.milliseconds > 0
    large = run_alone(files["onnx"].path, images.repeat(300, 1, 1, 1), threads=1, repeats=1)
    least = 2100 * 8 * 11 * 11 * 4  # bytes of the stem's output
    assert least < large.peak_bytes < 50 * least
    with pytest.raises(norton.InputError, match=r"net\.onnx does not run in a process of its own: .*INVALID_ARGUMENT"):
        run_alone(files["onnx"].path, images[:, :2])


# INT8


def dequantised(model):
    """Layer's weight name → (integers, scales, zero points) of the weights of an INT8 file."""
    constants = {tensor.name: to_array(tensor) for tensor in model.graph.initializer}
    return {
        node.input[0].removesuffix("_quantized"): [constants[name] for name in node.input]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }


def test_weights_are_rounded_per_channel(files):
    weights = {t.name: to_array(t) for t in onnx.load(files["onnx"].path).graph.initializer}
    found = dequantised(onnx.load(files["int8"].path))
    for name in ("stem.weight", "grouped.weight"):
        integers, scales, zeros = found[name]
        per_channel = (-1, 1, 1, 1)
        assert integers.dtype == np.int8 and not zeros.any()
        expected = np.abs(weights[name]).reshape(len(weights[name]), -1).max(1) * 2 / 255
        np.testing.assert_allclose(scales, expected, rtol=0.01)
        error = np.abs(integers * scales.reshape(per_channel) - weights[name])
        assert (error <= 0.51 * scales.reshape(per_channel)).all()


def test_activations_have_the_range_of_all_images(files, images, tmp_path):
    """The largest pixel in the last batch alone."""
    bright = images.clone()
    bright[-1, 0, 0, 0], bright[0, 0, 0, 0] = 51, -10
    path = to_int8(files["onnx"].path, bright, tmp_path / "bright.onnx", batch_size=3).path
    model = onnx.load(path)
    constants = {tensor.name: to_array(tensor) for tensor in model.graph.initializer}
    (first,) = (node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "images")
    assert constants[first.input[1]] == pytest.approx(61 / 255, rel=1e-3)
    assert constants[first.input[2]] == round(10 / (61 / 255))


def test_integers_come_near_the_network(files, small, images):
    found, expected = OnnxNet(files["int8"].path)(images), small(images)
    error = ((found - expected).norm() / expected.norm()).item()
    assert 1e-4 < error < 0.1  # rounded, and no more than that
    assert files["int8"].in_float == {"pool": "ReduceMean"}


def test_what_the_quantiser_lacks_stays_in_float_and_is_named(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Softplus()), nn.Conv2d(4, 4, 3)).eval()
    images = torch.randn(2, 3, 8, 8)
    path = to_onnx(net, images, tmp_path / "a.onnx").path
    assert to_int8(path, images, tmp_path / "b.onnx").in_float == {"1.0": "Softplus"}


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
    (lambda x: (x, x), "the network gives a tuple"),
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
    (torch.zeros(3, 8, 8), r"float32 of \(3, 8, 8\); give a batch"),
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


def test_a_compiled_network_is_exported_as_it_was(small, images, tmp_path):
    path = to_program(torch.compile(small, backend="eager"), images, tmp_path / "a.pt2").path
    same(torch.export.load(path).module()(images), small(images))


@pytest.mark.parametrize("write", [to_program, to_onnx])
def test_other_outputs_are_not_written(write, monkeypatch, tmp_path):
    monkeypatch.setattr(export, "relative", lambda *_: 2e-4)
    with pytest.raises(norton.InputError, match=r"differ from the network's by 2\.0e-04"):
        write(with_layer(torch.relu), torch.randn(1, 3, 8, 8), tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_relative():
    one = torch.tensor([3.0, 4.0])
    assert export.relative(one * 1.1, one) == pytest.approx(0.1)
    assert export.relative(one[:1], one) == export.relative(one * float("nan"), one) == float("inf")
    assert export.relative(0 * one, 0 * one) == 0


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


@pytest.mark.parametrize("change, message", [
    (lambda images: images[:0], r"calibration are float32 of \(0, 3, 20, 20\); give a few hundred"),
    (lambda images: list(images), "calibration are a list"),
    (lambda images: images[0], r"calibration are float32 of \(3, 20, 20\)"),
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


def test_what_fails_while_it_runs_is_told():
    """Where nothing is wrong with the images at first sight, the operator that stops."""
    make, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    shape = onnx.helper.make_tensor("shape", onnx.TensorProto.INT64, [2], [2, -1])
    node = onnx.helper.make_node("Reshape", ["images", "shape"], ["y"])
    graph = onnx.helper.make_graph([node], "one", [make("images", kind, "nchw")], [make("y", kind, None)], [shape])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    with pytest.raises(norton.InputError, match=r"onnxruntime says: Non-zero.* while running Reshape"):
        OnnxNet(model.SerializeToString())(torch.zeros(1, 3, 1, 1))


def test_each_kind_of_error_that_onnxruntime_runs_into(files, images):
    """Which one it is depends on its version."""
    for kind in (state.RuntimeException, state.Fail):
        net = OnnxNet(files["onnx"].path)
        net.session = Mock(wraps=net.session)
        net.session.run.side_effect = kind("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : no memory left")
        with pytest.raises(norton.InputError, match="onnxruntime says: no memory left"):
            net(images)


def test_copies_share_a_session(files):
    net = OnnxNet(files["onnx"].path)
    assert copy.deepcopy(nn.ModuleList([net]))[0] is net
