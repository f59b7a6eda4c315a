"""What settings name is what is opened: data that suit the network, and a checkpoint as `model.` says it is."""

import json
from types import SimpleNamespace

import pytest
import torch
from helpers.commands import run_here
from helpers.own_images import write_classes
from omegaconf import OmegaConf

import norton
from norton.checkpoints.files import read
from norton.cli import opening
from norton.cli.images import calibration_images, images_for_batchnorm
from norton.cli.program import joined, own_data
from norton.common.errors import NortonWarning

NETWORK = """
from torch import nn

def small(num_classes=10):
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, num_classes))

def wide(width):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2))
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A plain state_dict of a network of the user's own."""
    (tmp_path / "own_nets.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    torch.save(norton.build("own_nets.small").state_dict(), tmp_path / "file.pt")
    return tmp_path / "file.pt"


def auto_data(**settings):
    auto = dict.fromkeys(("root", "batch_size", "num_workers", "seed")) | {"name": "auto"}
    return OmegaConf.create({"checkpoint": "file.pt", "data": auto} | settings)


def test_data_are_those_that_the_accuracy_is_about(file):
    for metrics, name in (({"data": "mnist5k"}, "mnist5k"), ({}, "cifar10")):
        cfg = auto_data()
        assert opening.data_for(norton.build("resnet_56"), {"metrics": metrics}, cfg).name == cfg.data.name == name
    nothing = {"metrics": {}}
    assert opening.data_for(norton.build("resnet_56"), nothing, auto_data(checkpoint=None)) is None
    assert opening.data_for(norton.build("own_nets.small"), nothing, auto_data()) is None


@pytest.mark.parametrize("settings, message", [
    ("calibration.batchnorm=true", "nothing says which data the network was trained on"),
    ("decomposition.objective=outputs calibration.batchnorm=false", "nothing says which data the network was trained"),
    ("data=mnist5k model.input_size=[3,24,24]", "the network takes images of 24×24 pixels, the data mnist5k have"),
    ("data=imagenet data.root={tmp}", "imagenet: looked for"),
    ("model.compress_rate=0.5", "model.compress_rate is for a new network"),
])  # fmt: skip
def test_what_does_not_suit_the_checkpoint_is_one_line(settings, message, file, tmp_path, monkeypatch, capsys):
    settings = settings.replace("{tmp}", str(tmp_path))
    command = f"python decompose.py checkpoint={file} model.arch=own_nets.small rank=1 {settings} out={tmp_path}/out"
    code, _, error = run_here(command, monkeypatch, capsys)
    assert code == 2 and message in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
    if not settings.startswith("model") and "root" not in settings:
        assert "or do without images: calibration.images=null" in error  # the way out


def open_choices(**settings):
    calibration = {"batchnorm": "auto", "folder": None, "images": 8}
    chosen = {"decomposition": {"objective": "auto"}, "pruning": {"compensate": "auto"}, "calibration": calibration}
    return OmegaConf.merge(OmegaConf.create(chosen | {"checkpoint": "a.pt", "model": {}}), OmegaConf.create(settings))


def chosen(cfg):
    return cfg.decomposition.objective, cfg.pruning.compensate, cfg.calibration.batchnorm


class Images:
    """Data whose images are there, or are not."""

    def __init__(self, error=None, *, named=False):
        self.error, self.named = error, named

    @property
    def splits(self):
        if self.error:
            raise norton.InputError(self.error)
        return SimpleNamespace(calibration=range(100))


def test_images_at_hand_are_what_layers_are_fitted_to():
    cfg = open_choices()
    opening.settle_auto(cfg, Images())
    assert chosen(cfg) == ("outputs", "outputs", "auto")
    cfg = open_choices(calibration={"folder": "pictures", "images": None})
    opening.settle_auto(cfg, None)
    assert chosen(cfg) == ("outputs", "outputs", "auto")
    asked = {"decomposition": {"objective": "weights"}, "pruning": {"compensate": None}}
    cfg = open_choices(**asked, calibration={"batchnorm": True})
    opening.settle_auto(cfg, Images())
    assert chosen(cfg) == ("weights", None, True)
    cfg = open_choices(steps=["train", "finetune"])
    opening.settle_auto(cfg, Images("not there", named=True))  # nobody looks at them
    assert chosen(cfg) == ("auto", "auto", "auto")


def test_who_opens_data_for_a_network_decides_by_them(file):
    cfg = open_choices(data={"name": "mnist5k", "root": None, "batch_size": 8, "seed": 0})
    opening.open_data(cfg, norton.build("own_nets.small", input_size=(3, 32, 32)))
    assert chosen(cfg) == ("outputs", "outputs", "auto")


def test_without_images_weights_are_fitted_and_that_is_said():
    cfg = open_choices(steps=["decompose"])
    with pytest.warns(
        NortonWarning,
        match=r"^no calibration images \(name some with data= or calibration\.folder=\): layers are "
        "fitted to weights, BatchNorm is left as it is$",
    ):
        opening.settle_auto(cfg, None)
    assert chosen(cfg) == ("weights", "auto", False)
    cfg = open_choices()
    with pytest.warns(
        NortonWarning, match="looked for them: layers are fitted to weights, what is left of layers stays"
    ):
        opening.settle_auto(cfg, Images("looked for them"))
    with pytest.raises(norton.InputError, match="looked for them"):  # data that somebody names must be there
        opening.settle_auto(open_choices(), Images("looked for them", named=True))


def test_what_is_asked_for_in_vain_is_left_out_and_said():
    cfg = open_choices(pruning={"compensate": "outputs"}, calibration={"images": None})
    with pytest.warns(NortonWarning, match=r"^no calibration images .*: what is left of layers stays as it is$"):
        opening.settle_auto(cfg, Images())
    assert chosen(cfg) == ("weights", None, False)  # as the results then say


@pytest.mark.parametrize("settings", [{"calibration": {"images": None}}, {"checkpoint": None}])
def test_who_wants_no_images_or_has_random_weights_is_told_nothing(settings, recwarn):
    cfg = open_choices(**settings)
    opening.settle_auto(cfg, None)
    assert chosen(cfg) == ("weights", None, False) and not list(recwarn)


def test_settings_of_the_model_are_used_and_the_next_command_says_what_the_file_does_not(
    file, tmp_path, monkeypatch, capsys
):
    command = (
        f"python decompose.py checkpoint={file} model.arch=own_nets.small rank={{0: 1, 3: 2}} "
        "model.input_size=[3,32,32] data=mnist5k data.batch_size=64 calibration.images=20"
    )
    code, said, error = run_here(f"{command} out={tmp_path}/out", monkeypatch, capsys)
    assert code == 0, error
    content = read(tmp_path / "out" / "model.pt")
    assert content["input_size"] == [3, 32, 32]
    net = norton.load(tmp_path / "out" / "model.pt", arch="own_nets.small")
    counted = json.loads((tmp_path / "out" / "metrics.json").read_text())["macs"]
    assert counted == norton.complexity(net, (3, 32, 32)).macs < norton.complexity(net, (3, 224, 224)).macs
    assert content["data"]["name"] == "mnist5k"
    assert f"checkpoint={tmp_path}/out/model.pt model.arch=own_nets.small\n" in said
    unseen = f"{command} decomposition.objective=weights calibration.batchnorm=false out={tmp_path}/unseen"
    assert "own_nets.small data=mnist5k data.batch_size=64\n" in run_here(unseen, monkeypatch, capsys)[1]


def test_the_chain_of_a_plain_state_dict_is_run_to_its_end(file, tmp_path, monkeypatch, capsys):
    command = (
        f"python -m experiments.pipeline checkpoint={file} model.arch=own_nets.small model.input_size=[3,32,32] "
        "data=mnist5k steps=[decompose] rank=1 calibration.images=20 latency=eager latency_batch=2 logger=none"
    )
    code, said, error = run_here(f"{command} out={tmp_path}/out", monkeypatch, capsys)
    assert code == 0, error
    assert "final checkpoint" in said


def test_blanks_in_a_mapping_do_not_end_it():
    cut = ["checkpoint=a b.pt", "rank={layer1.*:", "3,", "layer2.*:", "2}", "out=x"]
    assert joined(cut) == ["checkpoint=a b.pt", "rank={layer1.*: 3, layer2.*: 2}", "out=x"]
    assert joined(["-m", "rank={a: 1}", "seed=1"]) == ["-m", "rank={a: 1}", "seed=1"]


def own_folder(**settings):
    folder = dict.fromkeys(("root", "size", "channels", "mean")) | {"name": "folder", "batch_size": 8}
    return OmegaConf.create({"checkpoint": None, "data": folder | settings})


def test_own_images_are_of_the_size_that_the_network_takes(file, tmp_path):
    net = norton.build("own_nets.small", input_size=(3, 20, 24))
    root = str(write_classes(tmp_path / "images", {"blue": 6, "red": 6}))
    data = opening.open_data(own_folder(root=root), net)
    assert data.input_size == data.splits.train[0][0].shape == (3, 20, 24)
    assert opening.open_data(own_folder(root=root, size=[20, 24], channels=3), net).input_size == (3, 20, 24)
    for settings in ({"size": 20}, {"size": [24, 20]}, {"channels": 1}):
        with pytest.raises(norton.InputError, match=r"takes 3 channels of 20×24 pixels; leave them out, or say"):
            opening.open_data(own_folder(root=root, **settings), net)
    with pytest.raises(norton.InputError, match=r"leave them out$"):  # a published network takes one size
        opening.open_data(own_folder(root=root, size=64), norton.build("resnet_56"))


def test_data_of_libraries_are_named_with_them(file):
    cfg = OmegaConf.create({"data": {"source": "torchvision", "name": "cifar100", "batch_size": 8}})
    assert opening.open_data(cfg).name == "torchvision/cifar100"
    cfg.data.name = None
    with pytest.raises(norton.InputError, match=r"data=torchvision without a name; give e\.g\. data\.name=cifar100"):
        opening.open_data(cfg)
    auto = auto_data()
    metrics = {"data": "torchvision/svhn"}  # what its file says
    assert opening.data_for(norton.build("resnet_56"), {"metrics": metrics}, auto).name == "torchvision/svhn"
    assert (auto.data.source, auto.data.name) == ("torchvision", "svhn")


def test_a_function_of_ones_own_needs_no_data_group():
    assert own_data(["a=1", "data.module=my.data"]) == ["data=module", "a=1", "data.module=my.data"]
    for arguments in (["data=module", "data.module=my.data"], ["a=1", "data.root=x"], []):
        assert own_data(arguments) == arguments


@pytest.mark.parametrize("data, message", [
    ("folder", "error: data folder: looked for images in {tmp}/none: No such file or directory; set data.root"),
    ("torchvision data.name=coco", "error: data torchvision: 'coco' is none of torchvision's datasets"),
    ("module data.module=own_nets.nothing", "error: data.module own_nets.nothing: own_nets has nothing callable"),
    ("folder data.sise=3", "there is no setting 'data.sise'; did you mean data.size?"),
])  # fmt: skip
def test_own_data_that_are_not_there(data, message, file, tmp_path, monkeypatch, capsys):
    command = (
        f"python decompose.py checkpoint={file} model.arch=own_nets.small rank=1 data={data} data.root={tmp_path}/none"
    )
    code, _, error = run_here(f"{command} out={tmp_path}/out", monkeypatch, capsys)
    assert code == 2 and message.format(tmp=tmp_path) in error and len(error.strip().splitlines()) == 1, error
    assert not (tmp_path / "out").exists()


def test_fewer_calibration_images_than_asked_for(file, tmp_path):
    net = norton.build("own_nets.small", input_size=(3, 16, 16))
    root = str(write_classes(tmp_path / "images", {"blue": 10, "red": 10}))
    cfg = own_folder(root=root, mean=0.25)
    cfg.calibration = {"folder": None, "images": 512}
    data = opening.open_data(cfg, net)
    with pytest.warns(NortonWarning, match=r"data=folder has 14 training images; calibration\.images=512 asked for"):
        assert len(calibration_images(net, cfg, data)) == 14
    cfg.calibration = {"folder": root, "images": None}  # normalised likewise
    images = torch.stack([image for image, _ in data.splits.calibration])
    found = calibration_images(net, cfg, data)
    assert len(found) == 20 and all((found == image).all((1, 2, 3)).any() for image in images)


def test_arguments_of_a_constructor_from_the_shell(file, tmp_path, monkeypatch, capsys):
    def macs(settings, out):
        command = f"python complexity.py model.arch=own_nets.wide {settings} out={tmp_path / out}"
        code, _, error = run_here(command, monkeypatch, capsys)
        return json.loads((tmp_path / out / "metrics.json").read_text())["macs"] if code == 0 else error

    made = f"python decompose.py model.arch=own_nets.wide model.kwargs.width=12 rank=1 out={tmp_path / 'made'}"
    assert run_here(made, monkeypatch, capsys)[0] == 0
    expected = [norton.complexity(norton.build("own_nets.wide", kwargs={"width": width})).macs for width in (12, 8)]
    assert [macs("model.kwargs.width=12", "0"), macs("'model.kwargs={width: 8}'", "1")] == expected
    (path,) = (tmp_path / "made").glob("*.pt")
    assert macs(f"checkpoint={path}", "2") == norton.complexity(norton.load(path, arch="own_nets.wide")).macs
    assert "model.kwargs.NAME=VALUE" in macs("", "3") and "model.kwargs is 8" in macs("model.kwargs=8", "4")
    assert "with kwargs {'width': 12}, not {'width': 8}" in macs(f"checkpoint={path} model.kwargs.width=8", "5")


@pytest.mark.parametrize("folder", [False, True])
def test_of_few_images_some_are_kept_to_decide_batchnorm_by(folder, tmp_path):
    """Report: below 513 images the choice was judged by those that layers were fitted to, and nobody said so."""
    net = norton.build("own_nets.small", input_size=(3, 16, 16))
    root = str(write_classes(tmp_path / "images", {"blue": 10, "red": 10}))
    cfg = own_folder(root=root, mean=0.25, augment="none")
    there, data = 20 if folder else 14, opening.open_data(cfg, net)
    cfg.calibration = {"folder": root if folder else None, "images": 512, "batchnorm": "auto", "held_out": 256}
    kept = there // 5
    with pytest.warns(NortonWarning, match=rf"{there} .*images, of which {kept} are kept to decide BatchNorm by"):
        fitted = calibration_images(net, cfg, data)
        _, others = images_for_batchnorm(net, cfg, data)
    assert len(fitted) == there - kept and len(others) == kept
    assert not any((fitted == other).all((1, 2, 3)).any() for other in others)
    cfg.calibration.images = 5  # then all others can be had
    assert len(images_for_batchnorm(net, cfg, data)[1]) == there - 5


def test_where_none_can_be_kept_that_is_said(tmp_path):
    net = norton.build("own_nets.small", input_size=(3, 16, 16))
    cfg = own_folder(root=str(write_classes(tmp_path / "images", {"blue": 4, "red": 4})), mean=0.25, augment="none")
    data = opening.open_data(cfg, net)
    cfg.calibration = {"folder": None, "images": 512, "batchnorm": "auto", "held_out": 256}
    with pytest.warns(NortonWarning, match="BatchNorm is decided by the 5 images that layers were fitted to"):
        images_for_batchnorm(net, cfg, data)


def test_a_file_is_no_folder_for_results(file, tmp_path, monkeypatch, capsys):
    (tmp_path / "taken").write_text("mine")
    for out in ("taken", "taken/below"):
        command = f"python prune.py checkpoint={file} model.arch=own_nets.small compress_rate=0.5 out={tmp_path / out}"
        code, _, error = run_here(command, monkeypatch, capsys)
        assert code == 2 and f"out={tmp_path / out}: {tmp_path / 'taken'} is a file; choose a folder" in error
    assert (tmp_path / "taken").read_text() == "mine"


def test_normalisation_in_two_numbers_needs_no_data(tmp_path):
    net = norton.build("own_nets.small", input_size=(3, 16, 16))
    cfg = own_folder(root=str(tmp_path / "none"), mean=0.5, std=0.25)
    assert opening.open_data(cfg, net).normalisation == ((0.5,) * 3, (0.25,) * 3)
