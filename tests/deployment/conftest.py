"""Networks that are deployed and exported."""

import pytest
import torch
from helpers.deployment import Small
from helpers.exports import Branching
from helpers.networks import randomise_

import norton
from norton.deployment.export import to_onnx, to_program
from norton.deployment.int8 import to_int8


@pytest.fixture
def small():
    torch.manual_seed(0)
    return randomise_(Small()).eval()


@pytest.fixture(scope="module")
def deployed():
    net = norton.decompose(randomise_(Branching()), {"conv": 2}).eval()
    return norton.deploy(net, torch.randn(4, 3, 20, 20), repeats=1)


@pytest.fixture(scope="module")
def images():
    return torch.randn(7, 3, 20, 20, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def files(deployed, images, tmp_path_factory):
    """The small network in each kind of file."""
    folder = tmp_path_factory.mktemp("files")
    example = images[:2]
    made = {
        "program": to_program(deployed, example, folder / "net.pt2"),
        "onnx": to_onnx(deployed, example, folder / "deep" / "net.onnx"),
    }
    made["int8"] = to_int8(made["onnx"].path, images, folder / "net.int8.onnx", batch_size=3)
    assert {path.name for path in folder.iterdir()} == {"net.pt2", "deep", "net.int8.onnx"}
    return made
