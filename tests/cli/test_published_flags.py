"""Published command lines become Hydra's."""

import os

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

import norton
from norton.cli.published_flags import ABOUT_DATA, translate

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def devices(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "before")


def test_the_published_line():
    line = (
        "--arch vgg_16_bn --ckpt FILE -r 1 -cpr [0.6]*6+[0.8]*7 --data_dir DIR --batch_size 256 --gpu 2 "
        "--dataset imagenet"
    )
    assert set(translate(line.split())) == {
        "model=vgg_16_bn",
        "checkpoint='FILE'",
        "rank=1",
        "compress_rate=[0.6]*6+[0.8]*7",
        "data.root='DIR'",
        "data.batch_size=256",
        "data=imagenet",
    }
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"


@pytest.mark.parametrize("line, expected", [
    ("--dataset coco --arch fasterrcnn_CPresnet50_fpn -r 1", ["data=coco", "model=fasterrcnn", "rank=1"]),
    ("--arch=vgg_16_bn -cpr=[0.6]*13 --rank=2", ["model=vgg_16_bn", "rank=2", "compress_rate=[0.6]*13"]),
    ("--arch vgg_16_bn --compress_rate [0.6]*13", ["model=vgg_16_bn", "compress_rate=[0.6]*13"]),
    ("-r1 --arch resnet_56", ["model=resnet_56", "rank=1"]),
    ("-cpr[0.6]*13 --arch vgg_16_bn", ["model=vgg_16_bn", "compress_rate=[0.6]*13"]),
    ("--arch resnet_56 --cfg job", ["--cfg", "job", "model=resnet_56"]),
    ("--arch resnet_56 -c job", ["-c", "job", "model=resnet_56"]),
    ("model=resnet_56 -m rank=1,2 -c job", ["model=resnet_56", "-m", "rank=1,2", "-c", "job"]),
    ("--help", ["--help"]),
    ("", []),
])  # fmt: skip
def test_lines(line, expected):
    assert sorted(translate(line.split())) == sorted(expected)


def test_what_a_program_without_data_ignores():
    line = "--arch resnet_50 --dataset imagenet --data_dir D --gpu 3 --batch_size 4"
    assert translate(line.split(), ignored=ABOUT_DATA) == ["model=resnet_50"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "before"


def test_home_is_meant_by_a_tilde():
    assert translate(["--data_dir=~/data"]) == [f"data.root='{os.path.expanduser('~/data')}'"]


@pytest.mark.parametrize(
    "path", ["a,b.pt", "it's here.pt", "a=b.pt", "c\\d.pt", "e\\'f\\", "vgg_16_bn_[0.6]*6+[0.8]*7_1_90.32.pt"]
)
def test_any_path_survives(path):
    (override,) = OverridesParser.create().parse_overrides(translate(["--ckpt", path]))
    assert override.value() == path


@pytest.mark.parametrize("line, message", [
    ("--arch vgg_16_bn rank=1", "mixed: --arch and rank=1"),
    ("checkpoint=a.pt -r 1", "mixed: -r and checkpoint=a.pt"),
    ("--ckpt a.pt data.root=D", "use one style, e.g. data.root=D checkpoint=a.pt"),
    ("model=vgg_16_bn -r1", "mixed: -r and model=vgg_16_bn; use one style, e.g. model=vgg_16_bn rank=1"),
    ("-r model=vgg_16_bn", "expected a rank"),
    ("--arch", "--arch: expected one argument"),
    ("--arch resnet_56 -cpr", "--compress_rate: expected one argument"),
    ("--arch resnet_56 --lr 0.1", "unknown flag --lr; the published ones are --arch, --ckpt, -r/--rank, -cpr/"),
    ("--arch resnet_56 -- -r 1", "unknown flag --"),
])  # fmt: skip
def test_bad_lines(line, message):
    with pytest.raises(norton.InputError, match=message):
        translate(line.split())
