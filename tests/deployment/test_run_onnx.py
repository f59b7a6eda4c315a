"""Where onnxruntime runs alone, and what it says when it fails."""

import copy
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
import torch
from helpers.exports import same
from helpers.repository import REPOSITORY
from onnxruntime.capi import onnxruntime_pybind11_state as state
from torch import nn

import norton
from norton.deployment.onnx_networks import OnnxNet, run_in_fresh_process

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
def test_runs_where_there_is_only_onnxruntime(kind, files, deployed, images, tmp_path):
    np.save(tmp_path / "images.npy", images.numpy())
    script = tmp_path / "run_onnx.py"  # a copy, far from the project
    script.write_bytes((REPOSITORY / "norton" / "deployment" / "run_onnx.py").read_bytes())
    words = [sys.executable, "-P", "-c", WITHOUT_TORCH, script, files[kind].path, "images.npy", "outputs.npy"]
    done = subprocess.run(list(map(str, words)), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = torch.from_numpy(np.load(tmp_path / "outputs.npy"))
    same(found, OnnxNet(files[kind].path)(images))
    if kind == "onnx":
        same(found, deployed(images))
    refused = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, REPOSITORY / "complexity.py"], capture_output=True, text=True
    )
    assert "is not here" in refused.stderr  # the hook does refuse


def test_alone_tells_time_and_memory(files, images):
    alone = run_in_fresh_process(files["onnx"].path, images, threads=1, repeats=2)
    same(alone.outputs, OnnxNet(files["onnx"].path)(images))
    assert alone.milliseconds > 0
    large = run_in_fresh_process(files["onnx"].path, images.repeat(300, 1, 1, 1), threads=1, repeats=1)
    least = 2100 * 8 * 11 * 11 * 4  # bytes of the stem's output
    assert least < large.peak_bytes < 50 * least
    with pytest.raises(norton.InputError, match=r"net\.onnx does not run in a process of its own: .*INVALID_ARGUMENT"):
        run_in_fresh_process(files["onnx"].path, images[:, :2])


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
