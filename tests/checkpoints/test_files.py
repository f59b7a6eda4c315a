"""Files rebuild themselves bit for bit; whatever is not a whole, honest checkpoint is refused."""

import copy
import os
import pickle
import subprocess
import sys
from functools import cache

import pytest
import torch
from helpers.networks import randomise_
from helpers.repository import ARCHITECTURES
from torch import nn

import norton
from norton.checkpoints.files import read
from norton.checkpoints.published_layout import identify
from norton.checkpoints.rebuilding import ranks_in, widths_of


def compressed(arch="resnet_56"):
    return copy.deepcopy(compressed_once(arch))


@cache
def compressed_once(arch):
    rates = {"vgg_16_bn": "[0.3]*13", "densenet_40": "[0.]+[0.2]*38", "resnet_50": "[0.2]*20"}
    net = norton.build(arch) if arch != "resnet_50" else norton.build(arch, num_classes=20)
    small = norton.decompose(net, 2, starts=1) if arch == "resnet_56" else norton.build(arch, 2, None, net.num_classes)
    return randomise_(norton.prune(small, rates.get(arch, "[0.2]+[0.4]*2+[0.5]*60"), criterion="l2"))


def test_round_trips_in_a_fresh_process(tmp_path, images):
    for arch in ARCHITECTURES:
        net, batch = compressed(arch), images(64 if arch == "resnet_50" else 32)
        path = norton.save(net, tmp_path / f"{arch}.pt", metrics={"top1": 93.8}, lineage=[{"step": "test"}])
        with torch.no_grad():
            torch.save({"batch": batch, "logits": net(batch)}, tmp_path / f"{arch}.expected")
        content = read(path)
        assert content["metrics"] == {"top1": 93.8}
        assert content["lineage"] == [{"step": "test"}]
    code = """
import sys, torch, norton
torch.set_num_threads(int(sys.argv[1]))
for arch in sys.argv[2:]:
    expected = torch.load(f"{arch}.expected")
    with torch.no_grad():
        assert torch.equal(norton.load(f"{arch}.pt")(expected["batch"]), expected["logits"]), arch
"""
    words = [sys.executable, "-c", code, str(torch.get_num_threads()), *ARCHITECTURES]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(words, cwd=tmp_path, env=env, check=True)


def test_loaded_networks_can_be_compressed_further(tmp_path):
    net = norton.load(norton.save(compressed(), tmp_path / "a.pt"))
    again = norton.load(norton.save(norton.prune(net, "[0.]+[0.2]*29"), tmp_path / "b.pt"))
    assert [step["op"] for step in again.plan] == ["decompose", "prune", "prune"]
    assert all(p.requires_grad for p in again.parameters())


def test_half_precision_survives(tmp_path):
    net = norton.load(norton.save(compressed().half(), tmp_path / "a.pt"))
    assert {p.dtype for p in net.parameters()} == {torch.float16}


@pytest.mark.parametrize("content", ["all", "rank", "bare", "state_dict alone", "parallel"])
def test_published_files(content, tmp_path, images):
    rates = "[0.]+[0.12]*2+[0.4]*27"
    net = randomise_(norton.build("resnet_56", 2, rates))
    state = net.state_dict()
    file = {
        "all": {"state_dict": state, "rank": 2, "compress_rate": norton.parse_rates(rates)},
        "rank": {"state_dict": state, "rank": 2},
        "bare": {"state_dict": state},
        "state_dict alone": state,
        "parallel": {"state_dict": {f"module.{key}": value for key, value in state.items()}, "rank": 2},
    }[content]
    torch.save(file, tmp_path / "published.pt")
    again = norton.load(tmp_path / "published.pt")
    with torch.no_grad():
        assert torch.equal(again(images()), net(images()))
    assert again.arch == "resnet_56"


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("rank", [0, 1])
def test_architectures_are_recognised(arch, rank):
    with torch.device("meta"):
        assert identify(norton.build(arch, rank).state_dict()) == arch


class Marker:
    def __reduce__(self):
        return (open, ("/nonexistent/ran-the-code", "w"))


def test_code_is_refused_and_not_run(tmp_path):
    torch.save({"state_dict": {}, "x": Marker()}, tmp_path / "code.pt")
    with pytest.raises(norton.InputError, match="refused"):
        norton.load(tmp_path / "code.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Marker()))
    with pytest.raises(norton.InputError, match=r"refused|not a whole"):
        norton.load(tmp_path / "plain.pt")
    torch.save(norton.build("resnet_56"), tmp_path / "module.pt")
    with pytest.raises(norton.InputError, match=r"refused, because it holds code \([\w.]+\); write it again from net"):
        norton.load(tmp_path / "module.pt")


@pytest.mark.parametrize(("content", "message"), [
    (b"layer,rank\nconv1,3\n", "is a text file and no checkpoint; give a file written by norton.save"),
    (b"version https://git-lfs.github.com/spec/v1\nsize 9\n", "a pointer of Git LFS, .* `git lfs pull` fetches"),
    (b"\x89PNG\r\n\x1a\n\0\0", "is a file of another kind and no checkpoint"),
    (b"", "is an empty file and no checkpoint"),
])  # fmt: skip
def test_other_files_are_named_in_one_line(content, message, tmp_path):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(norton.InputError, match=message) as raised:
        norton.load(tmp_path / "a.pt")
    assert "torch.load" not in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_truncated(share, tmp_path):
    data = norton.save(compressed(), tmp_path / "a.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(norton.InputError, match=r"not a whole checkpoint|refused"):
        norton.load(tmp_path / "cut.pt")


def test_contradictions(tmp_path):
    path = norton.save(compressed(), tmp_path / "a.pt")
    for told, message in [
        ({"arch": "vgg_16_bn"}, "holds a resnet_56, not a vgg_16_bn"),
        ({"rank": 3}, "has rank 2, not 3"),
        ({"compress_rate": "[0.]*30"}, "other widths"),
    ]:
        with pytest.raises(norton.InputError, match=message):
            norton.load(path, **told)
    norton.load(path, arch="resnet_56", rank=2, compress_rate="[0.2]+[0.4]*2+[0.5]*27")
    torch.save({"state_dict": norton.build("resnet_56", 2).state_dict(), "rank": 2}, tmp_path / "b.pt")
    for told, message in [
        ({"arch": "resnet_110"}, "holds a resnet_56"),
        ({"rank": 3}, "has rank 2, not 3"),
        ({"compress_rate": "[0.]+[0.3]*29"}, "other widths than"),
    ]:
        with pytest.raises(norton.InputError, match=message):
            norton.load(tmp_path / "b.pt", **told)


@pytest.mark.parametrize("content, message", [
    ({"weights": 3}, "no state_dict"),
    ([1, 2], "no state_dict"),
    ({"state_dict": {}}, "empty"),
    ({"state_dict": {"a": "text"}}, "something else than tensors"),
    ({"state_dict": {"a.weight": torch.zeros(3)}}, "none of"),
])  # fmt: skip
def test_other_files(content, message, tmp_path):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(norton.InputError, match=message):
        norton.load(tmp_path / "a.pt")


@pytest.mark.parametrize("arch, rates", [
    ("vgg_16_bn", "[0.21]*7+[0.75]*5"),
    ("resnet_110", "[0.]+[0.4]*2+[0.5]*18+[0.65]*36"),
    ("densenet_40", "[0.]+[0.2]*12+[0.]+[0.3]*12+[0.1]+[0.2]*12"),
    ("resnet_50", "[0.]+[0.1]*2+[0.4]*5+[0.75]*12"),
])  # fmt: skip
@pytest.mark.parametrize("rank", [0, 1, 4])
def test_shapes_tell_rank_and_rates(arch, rates, rank, tmp_path):
    net = norton.build(arch, rank, rates)
    torch.save({"state_dict": net.state_dict()}, tmp_path / "a.pt")
    again = norton.load(tmp_path / "a.pt", rank=rank, compress_rate=rates)
    assert ranks_in(again) == {rank}
    assert widths_of(again) == widths_of(net)


@pytest.mark.parametrize("stated, message", [
    ({"rank": 3}, "has rank 2, not 3 as the file says"),
    ({"rank": "2"}, "leave rank='2' out"),
    ({"compress_rate": "[0.1]*30"}, "as the file says"),
    ({"compress_rate": "nix"}, "cannot read 'nix'"),
])  # fmt: skip
def test_a_file_that_contradicts_its_weights(stated, message, tmp_path):
    torch.save({"state_dict": norton.build("resnet_56", 2).state_dict(), **stated}, tmp_path / "a.pt")
    with pytest.raises(norton.InputError, match=message):
        norton.load(tmp_path / "a.pt")


def test_one_weight_of_another_shape(tmp_path):
    state = norton.build("resnet_56", 2).state_dict()
    state["layer2.3.bn2.weight"] = torch.ones(31)
    torch.save({"state_dict": state}, tmp_path / "a.pt")
    with pytest.raises(norton.InputError, match=r"layer2\.3\.bn2\.weight is \(31,\) in the file"):
        norton.load(tmp_path / "a.pt")


def test_values_that_are_not_finite(tmp_path):
    net = compressed()
    net.bn1.weight.data[2] = float("nan")
    with pytest.raises(norton.InputError, match=r"bn1\.weight holds values that are not finite"):
        norton.load(norton.save(net, tmp_path / "a.pt"))


@pytest.mark.parametrize("change, message", [
    ({"format": 9}, "format 9 is not 1"),
    ({"format": torch.tensor([1, 2])}, "is not 1"),
    ({"metrics": [1]}, "metrics are missing or of the wrong type"),
    ({"lineage": None}, "lineage"),
    ({"arch": ["a"]}, "arch"),
    ({"plan": [{"op": "decompose", "method": "cp", "ranks": {"conv1": 0}}]}, "its plan does not fit"),
    ({"plan": [{"op": "prune", "keep": {"nix": [0]}}]}, "its plan does not fit"),
    ({"plan": ["melt"]}, "its plan does not fit"),
])  # fmt: skip
def test_strange_content(change, message, tmp_path):
    content = read(norton.save(compressed(), tmp_path / "a.pt"))
    torch.save({**content, **change}, tmp_path / "b.pt")
    with pytest.raises(norton.InputError, match=message):
        norton.load(tmp_path / "b.pt")


@pytest.mark.parametrize("convert", [torch.Tensor.int, torch.Tensor.to_sparse, lambda t: t.to(torch.complex64)])
def test_strange_tensors(convert, tmp_path):
    state = norton.build("resnet_56").state_dict()
    torch.save({"state_dict": {**state, "fc.weight": convert(state["fc.weight"])}}, tmp_path / "a.pt")
    with pytest.raises(norton.InputError, match=r"fc\.weight is"):
        norton.load(tmp_path / "a.pt")


def test_missing_and_unwritable(tmp_path):
    with pytest.raises(norton.InputError, match="no checkpoint at"):
        norton.load(tmp_path / "nix.pt")
    (tmp_path / "file").touch()
    with pytest.raises(norton.InputError, match="cannot write"):
        norton.save(norton.build("resnet_56"), tmp_path / "file" / "a.pt")


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = norton.save(norton.build("resnet_56"), tmp_path / "a.pt")
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("norton.common.files.os.fsync", full)
    with pytest.raises(norton.InputError, match="No space left"):
        norton.save(norton.build("resnet_56"), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_a_network_of_ones_own(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    small = norton.decompose(net, 2).eval()
    path = norton.save(small, tmp_path / "a.pt")
    x = torch.randn(2, 3, 9, 9)
    assert torch.equal(norton.load(path, net=net)(x), small(x))
    with pytest.raises(norton.InputError, match="pass its dense form"):
        norton.load(path)


def test_a_network_that_no_file_rebuilds_is_told_when_it_is_saved(tmp_path, recwarn):
    norton.save(norton.build("torchvision.models.squeezenet1_1", num_classes=3), tmp_path / "a.pt")
    norton.save(norton.build("resnet_56"), tmp_path / "b.pt")
    assert not [warning for warning in recwarn if "norton.load" in str(warning.message)]
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    with pytest.warns(UserWarning, match=r"c\.pt: norton\.load will need the dense network, net="):
        path = norton.save(net, tmp_path / "c.pt")
    assert torch.equal(norton.load(path, net=net)[0].weight, net[0].weight)
    net.arch = "mine"
    with pytest.warns(UserWarning, match="will need the dense network"):
        norton.save(net, path)
