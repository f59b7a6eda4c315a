"""Ways to prune on the command line."""

import pytest
from helpers.commands import run_here
from helpers.repository import DENSE, REPOSITORY

import norton

METHODS = [
    ("compress_rate=0.3 pruning=l1", 11),
    ("compress_rate=0.3 pruning=taylor data=mnist5k calibration.images=8", 11),
    ("compress_rate=[0.]+[0.4]*29 pruning=hrank data=mnist5k calibration.images=4", 9),
    ("'compress_rate={layer1.0.*: 0.5, layer2.*: 0.25}' pruning=bn_scale", 8),
    ("pruning=index 'pruning.filters={layer1.0.conv1: \"0, 8, 11-13\"}'", 11),
    ("compress_rate=0.3 pruning=slamp", None),
    ("compress_rate=0.3 pruning=weighted pruning.normalisation=linear", 11),
    ("compress_rate=0.5 pruning=intersection pruning.round_to=2 pruning.rounding=down", None),
    ("compress_rate=0.3 pruning=l2 pruning.compensate=outputs data=mnist5k calibration.images=8", 11),
    ("compress_rate=0.3 pruning=hrank pruning.compensate=outputs data=mnist5k calibration.images=4", 11),
    ("compress_rate=0.3 pruning=l2 pruning.compensate=outputs calibration.images=null", 11),  # then it is left out
]


@pytest.mark.parametrize("settings, width", METHODS)
def test_ways_to_prune(settings, width, tmp_path, monkeypatch, capsys):
    # A root without data: nobody opens them where no images are wanted.
    data = "" if "calibration" in settings else f"data=cifar10 data.root={tmp_path} calibration.images=null"
    command = f"python prune.py checkpoint={DENSE} {settings} {data} calibration.batchnorm=false out={tmp_path}/a"
    code, _, said = run_here(command, monkeypatch, capsys)
    assert code == 0, said
    small = norton.load(tmp_path / "a" / "model.pt")
    before, after = norton.complexity(norton.load(REPOSITORY / DENSE)).macs, norton.complexity(small).macs
    assert after < before
    assert width in (None, small.layer1[0].conv1.out_channels)
