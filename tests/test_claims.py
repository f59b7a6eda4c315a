"""Claims of file, name and registry against what is measured."""

import hashlib
import re

import pytest
import torch
import yaml
from conftest import REPOSITORY

import norton
from norton.checkpoints import read
from norton.claims import CANNOT_BE_JUDGED, FAILS, HOLDS, collect, disagreements, judge, locate, read_registry
from norton.names import parse_name

MEASURED = {"top1": 90.3, "top5": 99.4, "macs": 1000, "params": 50}


@pytest.mark.parametrize("claims, measured, code", [
    ({"file": {"top1": 90.3}}, MEASURED, HOLDS),
    ({"file": {"top1": 90.35}}, MEASURED, HOLDS),
    ({"file": {"top1": 90.25}}, MEASURED, HOLDS),
    ({"file": {"top1": 90.36}}, MEASURED, FAILS),
    ({"file": {"top1": 90.24}}, MEASURED, FAILS),
    ({"file": {"top1": 90.3, "top5": 99.5}}, MEASURED, FAILS),
    ({"file": {"top1": 90.3, "macs": 1001}}, MEASURED, FAILS),
    ({"file": {"top1": 90.3, "params": 51}}, MEASURED, FAILS),
    ({"file": {"top1": 90.3}, "name": {"top1": 99.0}}, MEASURED, FAILS),
    ({"file": {"top1": 99.0}, "name": {"top1": 90.3}}, MEASURED, FAILS),
    ({"file": {"top1": 90.3}, "registry": {"top1": 91.0}}, MEASURED, FAILS),
    ({}, MEASURED, CANNOT_BE_JUDGED),
    ({"file": {"macs": 1000}}, MEASURED, CANNOT_BE_JUDGED),
    ({"file": {"macs": 1001}}, MEASURED, FAILS),
    ({"name": {"top1": 90.3, "macs": 1000}}, {"macs": 1000, "params": 50}, CANNOT_BE_JUDGED),
    ({"name": {"top1": 90.3, "macs": 1001}}, {"macs": 1000, "params": 50}, FAILS),
])  # fmt: skip
def test_verdicts(claims, measured, code):
    verdict = judge(claims, measured, missing="no data")
    assert verdict.code == code
    assert ("no data" in verdict.text) == (code == CANNOT_BE_JUDGED)


def test_a_lie_fails_even_without_data():
    verdict = judge(
        {"name": {"top1": 90.0}}, {"macs": 1, "params": 1}, lies=["the name says rank 2"], missing="no data"
    )
    assert verdict.code == FAILS
    assert "the name says rank 2" in verdict.text


def test_the_table_shows_every_source():
    rows = judge({"file": {"top1": 90.3}, "name": {"top1": 91.0}}, MEASURED).rows
    assert rows[0] == {
        "": "top-1 %",
        "claimed by file": "90.30",
        "claimed by name": "91.00",
        "measured": "90.30",
        "holds": "no",
    }


def test_a_name_claims_accuracy_and_counts(tmp_path):
    path = tmp_path / "vgg_16_bn_[0.6]*6+[0.8]*7_1_90.32.pt"
    torch.save({"state_dict": norton.build("vgg_16_bn", 1, "[0.6]*6+[0.8]*7").state_dict()}, path)
    claims, name, problem = collect(path, read(path))
    assert claims == {"name": {"top1": 90.32, "macs": 4582498, "params": 150667}}
    assert not problem
    assert disagreements(name, norton.load(path)) == []


@pytest.mark.parametrize("name, message", [
    ("resnet_110_[0.]*57_1_90.pt", "the name says resnet_110, the file holds a resnet_56"),
    ("resnet_56_[0.]+[0.2]*29_2_90.pt", "the name says rank 2, the file holds rank 1"),
    ("resnet_56_[0.]+[0.3]*29_1_90.pt", r"the name says rates \[0.\]\+\[0.3\]"),
])  # fmt: skip
def test_disagreements(name, message):

    found = disagreements(parse_name(name), norton.build("resnet_56", 1, "[0.]+[0.2]*29"))
    assert len(found) == 1
    assert re.match(message, found[0])


def test_an_unreadable_name_claims_nothing(tmp_path):
    path = norton.save(norton.build("resnet_56"), tmp_path / "resnet_56_best.pt", metrics={"top1": 1.0, "data": "x"})
    claims, name, problem = collect(path, read(path))
    assert claims == {"file": {"top1": 1.0, "data": "x"}}
    assert name is None
    assert "'best'" in problem


def test_the_registry_beside_a_file(tmp_path):
    path = norton.save(norton.build("resnet_56"), tmp_path / "a.pt")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    registry = tmp_path / "registry.yaml"
    registry.write_text(yaml.safe_dump({"a.pt": {"sha256": digest, "data": "clutter", "top1": 95.0, "note": "mine"}}))
    assert collect(path, read(path))[0] == {"registry": {"data": "clutter", "top1": 95.0}}
    registry.write_text(registry.read_text().replace(digest, "f" * 64))
    with pytest.raises(norton.InputError, match=f"SHA-256 is {digest}, the registry has ffff"):
        collect(path, read(path))
    registry.write_text(yaml.safe_dump({"a.pt": {"sha256": None, "top1": 95.0}}))
    assert collect(path, read(path))[0]["registry"]["top1"] == 95.0


def test_a_listed_file_is_found_under_a_safe_spelling(tmp_path):
    listed_as = "vgg_16_bn_[0.6]*6+[0.8]*7_1_90.32.pt"
    assert locate(tmp_path, listed_as) is None
    path = tmp_path / "vgg_16_bn_.0.6.6+.0.8.7_1_90.32.pt"
    path.touch()
    (tmp_path / "vgg_16_bn_.0.6.6+.0.8.7_2_90.32.pt").touch()
    assert locate(tmp_path, listed_as) == path


@pytest.mark.parametrize("text, message", [
    ("- a", "expected file names"),
    ("a.pt: {top1: 3}", "needs a sha256"),
    ("a.pt: {sha256: 000000, top1: 3}", "needs a sha256"),
    ("a.pt: {sha256: null, top1: high}", "'high', which is not a number"),
    ("a: [", "not YAML"),
])  # fmt: skip
def test_bad_registries(text, message, tmp_path):
    (tmp_path / "registry.yaml").write_text(text)
    with pytest.raises(norton.InputError, match=message):
        read_registry(tmp_path / "registry.yaml")


def test_the_shipped_registry_describes_the_shipped_files():
    entries = read_registry(REPOSITORY / "checkpoints" / "registry.yaml")
    shipped = sorted(path.name for path in (REPOSITORY / "checkpoints").glob("*.pt"))
    assert shipped == sorted(name for name, entry in entries.items() if entry["sha256"] and entry["data"] == "clutter")
    for name in shipped:
        path = REPOSITORY / "checkpoints" / name
        claims, _, _ = collect(path, read(path))
        assert claims["file"] == claims["registry"]
        cost = norton.complexity(norton.load(path))
        assert (claims["file"]["macs"], claims["file"]["params"]) == (cost.macs, cost.params)
