"""Claims of file, name and registry against what is measured."""

import hashlib
import math
import re

import pytest
import torch
import yaml
from helpers.repository import REPOSITORY

import norton
from norton.checkpoints.claims import (
    claims_of_entry,
    claims_of_file,
    claims_of_name,
    find_listed,
    read_registry,
    registry_entry,
)
from norton.checkpoints.files import read
from norton.checkpoints.published_names import parse_name
from norton.checkpoints.verification import CANNOT_BE_JUDGED, FAILS, HOLDS, find_contradictions, judge

pytestmark = pytest.mark.quick

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
        {"name": {"top1": 90.0}}, {"macs": 1, "params": 1}, contradictions=["the name says rank 2"], missing="no data"
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


def test_a_name_claims_accuracy_and_counts():
    name = parse_name("vgg_16_bn_[0.6]*6+[0.8]*7_1_90.32.pt")
    assert claims_of_name(name) == {"top1": 90.32, "macs": 4582498, "params": 150667}
    assert claims_of_name(name, num_classes=2)["params"] < 150667  # a name does not tell the classes
    assert find_contradictions(name, norton.build("vgg_16_bn", 1, "[0.6]*6+[0.8]*7", num_classes=2)) == []


@pytest.mark.parametrize("name, message", [
    ("resnet_110_[0.]*57_1_90.pt", "the name says resnet_110, the file holds a resnet_56"),
    ("resnet_56_[0.]+[0.2]*29_2_90.pt", "the name says rank 2, the file holds rank 1"),
    ("resnet_56_[0.]+[0.2]*29_77_90.pt", "the name says rank 77, the file holds rank 1"),
    ("resnet_56_[0.]+[0.2]*9_1_90.pt", r"the name says rates .*, which fit no resnet_56 .*needs 30 rates, got 10"),
    ("resnet_56_[0.]+[0.3]*29_1_90.pt", r"the name says rates \[0.\]\+\[0.3\]"),
])  # fmt: skip
def test_disagreements(name, message):

    found = find_contradictions(parse_name(name), norton.build("resnet_56", 1, "[0.]+[0.2]*29"))
    assert len(found) == 1
    assert re.match(message, found[0])


@pytest.mark.parametrize("metrics, expected", [
    ({"top1": 1.0, "data": "x", "loss": 3}, {"top1": 1.0, "data": "x"}),
    ({"top1": torch.tensor(91.5), "macs": torch.tensor(7)}, {"top1": 91.5, "macs": 7}),
    ({"top1": None}, {}),
    (None, {}),
])  # fmt: skip
def test_what_a_file_claims(metrics, expected):
    assert claims_of_file({"metrics": metrics}, "a.pt") == expected


@pytest.mark.parametrize("metrics, message", [
    ({"top1": "91.15"}, "a.pt: its metrics: top1 is '91.15', which is not a number"),
    ({"top1": [1]}, "top1 is"),
    ({"top1": True}, "top1 is True"),
    ({"top1": math.nan}, "top1 is nan"),
    ({"macs": torch.ones(3)}, "macs is"),
    ({"data": 5}, "data is 5"),
    ([1], "are list"),
])  # fmt: skip
def test_what_no_file_can_claim(metrics, message):
    with pytest.raises(norton.InputError, match=message):
        claims_of_file({"metrics": metrics}, "a.pt")


def test_a_claim_about_other_data_is_not_held_against_these():
    measured = {**MEASURED, "data": "clutter"}
    other = {"file": {"top1": 99.0, "data": "mnist5k"}}
    assert judge(other, measured, missing="other data").code == CANNOT_BE_JUDGED
    assert judge({**other, "registry": {"top1": 90.3, "data": "clutter"}}, measured).code == HOLDS


def test_the_registry_beside_a_file(tmp_path):
    path = norton.save(norton.build("resnet_56"), tmp_path / "a.pt")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    registry = tmp_path / "registry.yaml"
    assert registry_entry(path) is None
    entry = {"sha256": f" {digest.upper()}", "data": "clutter", "top1": 95.0, "note": "mine"}
    registry.write_text(yaml.safe_dump({"a.pt": entry}))
    assert registry_entry(path) == entry
    assert claims_of_entry(registry_entry(path)) == {"data": "clutter", "top1": 95.0}
    registry.write_text(yaml.safe_dump({"a.pt": {**entry, "sha256": "f" * 64}}))
    with pytest.raises(norton.InputError, match=f"SHA-256 is {digest}, the registry has ffff"):
        registry_entry(path)
    registry.write_text(yaml.safe_dump({"a.pt": {"sha256": None, "top1": 95.0}}))
    assert registry_entry(path)["top1"] == 95.0


def test_a_listed_file_is_found_under_a_safe_spelling(tmp_path):
    listed_as = "vgg_16_bn_[0.6]*6+[0.8]*7_1_90.32.pt"
    assert find_listed(tmp_path, listed_as) is None
    path = tmp_path / "vgg_16_bn_.0.6.6+.0.8.7_1_90.32.pt"
    path.touch()
    (tmp_path / "vgg_16_bn_.0.6.6+.0.8.7_2_90.32.pt").touch()
    assert find_listed(tmp_path, listed_as) == path


@pytest.mark.parametrize("text, message", [
    ("- a", "expected file names"),
    ("a.pt: {top1: 3}", "needs a sha256"),
    ("a.pt: {sha256: 000000, top1: 3}", "needs a sha256"),
    ("a.pt: {sha256: bad, top1: 3}", "needs a sha256"),
    ("1: {sha256: null, top1: 3}", "1 is no file name"),
    ("a.pt: {sha256: null, data: [1]}", "data is"),
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
    assert shipped == sorted(name for name, entry in entries.items() if entry["sha256"])
    for name in shipped:
        path = REPOSITORY / "checkpoints" / name
        claim = claims_of_file(read(path), path)
        assert claim == claims_of_entry(registry_entry(path))
        cost = norton.complexity(norton.load(path))
        assert (claim["macs"], claim["params"]) == (cost.macs, cost.params)
