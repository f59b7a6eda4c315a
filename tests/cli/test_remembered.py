"""A checkpoint remembers its data, and later commands use them; what a user says wins; other classes are refused."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from helpers.commands import run_here
from helpers.own_images import write_classes
from omegaconf import OmegaConf

import norton
from norton.checkpoints.files import read
from norton.cli import opening
from norton.cli.chain import can_teach
from norton.cli.data_checks import check_classes
from norton.cli.program import CONFIGS
from norton.cli.remembered import recall_
from norton.common.errors import NortonWarning
from norton.training import other_test, remember_data_

NETWORK = """
from torch import nn

def small(num_classes=2):
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1)]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, num_classes))
    net.input_size = (3, 12, 12)
    return net
"""
ARCH = "nets_of_memory.small"
QUICK = "latency=eager latency_batch=2"


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A folder of two classes, beside the network's module."""
    (tmp_path / "nets_of_memory.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    return write_classes(tmp_path / "images", {"blue": 7, "red": 7})


@pytest.fixture
def file(images, tmp_path):
    """A checkpoint that says it was trained on them."""
    net = norton.build(ARCH).eval()
    net.classes, net.normalisation = ("blue", "red"), ((0.5, 0.4, 0.3), (0.25, 0.25, 0.25))
    net.data_settings = {"name": "folder", "root": str(images), "seed": 5, "augment": "none", "size": [12, 12]}
    return norton.save(net, tmp_path / "file.pt")


def settings(file, data, **told):
    """A config as a command has it."""
    own = OmegaConf.merge(OmegaConf.load(CONFIGS / "data" / f"{data}.yaml"), told)
    model = OmegaConf.merge(OmegaConf.load(CONFIGS / "model" / "none.yaml"), {"arch": ARCH, "weights": None})
    return OmegaConf.create({"checkpoint": str(file), "model": model, "data": own, "seed": 0, "strict": False})


def opened(cfg, new_head=False):
    net, origin = opening.open_network(cfg, new_head=new_head)
    opening.choose_data(cfg, net, opening.about_of(net, origin))
    return net, opening.open_data(cfg, net)


def test_a_trained_network_is_evaluated_without_naming_its_data_again(images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train = (
        f"python -m experiments.pipeline model.arch={ARCH} steps=[train] data=folder data.root=images data.seed=3 "
        f"data.batch_size=4 data.mean=0.5 data.std=0.25 data.test=0.5 pretraining.epochs=1 {QUICK} logger=none "
        "trainer.precision=bf16-mixed"
    )
    code, _, error = run_here(f"{train} out={tmp_path}/trained", monkeypatch, capsys, tmp_path)
    assert code == 0, error
    path = tmp_path / "trained" / "1_train.pt"
    net = norton.load(path, arch=ARCH)
    assert str(images) not in str(read(path)["lineage"]) and read(path)["lineage"][0]["data"]["seed"] == 3
    assert net.classes == ("blue", "red") and net.normalisation == ((0.5,) * 3, (0.25,) * 3)
    found = {"name": "folder", "root": str(images), "seed": 3, "test": 0.5, "size": [12, 12], "channels": 3}
    assert found.items() <= net.data_settings.items()  # absolute, though it was told as a relative path
    commands = {
        f"python -m norton evaluate checkpoint={path} model.arch={ARCH} {QUICK}": "the claim holds",
        f"python -m norton prune checkpoint={path} model.arch={ARCH} compress_rate=0.5 pruning.min_filters=2": "",
    }
    monkeypatch.chdir("/")
    for number, (command, said) in enumerate(commands.items()):
        code, out, error = run_here(f"{command} out={tmp_path}/{number}", monkeypatch, capsys)
        assert code == 0 and said in out, error
    measured = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("trained", "0")]
    losses = measured[0]["dense"]["loss"], measured[1]["loss"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # in float32 both; bfloat16 has three digits
    assert "data" not in out.split("next: ")[1]  # the file says it
    assert read(tmp_path / "1" / "model.pt")["data"] == read(path)["data"]
    (images / "blue").rename(images / "green")
    code, _, error = run_here(f"{next(iter(commands))} out={tmp_path}/2", monkeypatch, capsys)
    assert code == 2 and "trained on the classes blue, red; the data folder have green in the place of blue" in error
    images.rename(tmp_path / "elsewhere")
    code, _, error = run_here(f"{next(iter(commands))} out={tmp_path}/2", monkeypatch, capsys)
    assert code == 2 and f"data=folder in {images}, which is no folder here; say where it is now" in error


@pytest.mark.parametrize("data", ["auto", "folder"])
def test_settings_of_the_data_are_remembered(data, file, images):
    net, found = opened(settings(file, data))
    assert (found.name, found.root, found.seed, found.options["augment"]) == ("folder", images, 5, "none")
    assert found.normalisation == net.normalisation and found.input_size == (3, 12, 12)
    check_classes(net, found)


def test_what_a_user_says_wins(file, images, tmp_path):
    other = write_classes(tmp_path / "other", {"blue": 3, "red": 3})
    _, found = opened(settings(file, "folder", root=str(other), mean="imagenet", augment=["crop"]))
    assert found.root == other and found.seed == 5 and found.options["augment"] == ["crop"]
    assert found.normalisation[1] == (0.229, 0.224, 0.225)  # not half of each
    assert opened(settings(file, "auto", root=str(other), seed=9))[1].seed == 9
    assert opened(settings(file, "mnist5k"))[1].root.name == "data"  # other data, of which nothing is remembered


def test_what_is_remembered_can_be_told_otherwise_without_naming_the_data(file, images):
    _, found = opened(settings(file, "auto", mean="imagenet", augment=["crop"], broken="skip"))
    assert found.root == images and found.options["augment"] == ["crop"] and found.options["broken"] == "skip"
    assert found.normalisation == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_what_is_told_of_data_that_nothing_names_is_refused(images, tmp_path):
    net = norton.build(ARCH)
    with pytest.raises(norton.InputError, match=r"data.mean is given, and nothing says which data the network was"):
        cfg = settings(norton.save(net, tmp_path / "bare.pt"), "auto", mean="imagenet")
        opening.data_for(net, {"metrics": {}}, cfg)


@pytest.mark.parametrize("told, judged", [
    ("data.seed=6", False),
    ("data.test=0.4", False),
    ("data.mean=0.1", False),
    ("data.test=0.2", True),  # as by default
    ("data.batch_size=2", True),
])  # fmt: skip
def test_a_claim_about_other_test_images_is_not_judged(told, judged, file, images, tmp_path, monkeypatch, capsys):
    net = norton.load(file, arch=ARCH)
    norton.save(net, file, metrics={"data": "folder", "top1": 1.0})  # which none of the possible accuracies is
    command = f"python evaluate.py checkpoint={file} model.arch={ARCH} {told} {QUICK} out={tmp_path / '0'}"
    code, out, error = run_here(command, monkeypatch, capsys)
    said = "the file claims top-1 1.00" if judged else "cannot be judged: the claim is about other images: "
    assert code == (1 if judged else 2) and said in out + error


def test_other_test_images_are_said(file):
    net, found = opened(settings(file, "auto", seed=6))
    with pytest.warns(
        NortonWarning, match=r"other test images .*data\.seed=6, where the file has 5\).* been trained on"
    ):
        check_classes(net, found)


@pytest.mark.parametrize("changed, said", [
    ("nothing", None),
    ("moved", None),
    ("one more", r"drawn from 15 images \(.*\), where the file's are from 14 images"),
    ("others", r"drawn from 14 images \(.*\), where the file's are from 14 images"),
    ("own test", "a folder of their own, where the file's are drawn"),
])  # fmt: skip
def test_a_claim_about_images_of_another_folder(changed, said, images, tmp_path):
    net, data = opened(OmegaConf.merge(settings("", "folder", root=str(images)), {"checkpoint": None}))
    assert data.splits.test_is_drawn
    file, root = norton.save(remember_data_(net.eval(), data), tmp_path / "trained.pt"), images
    if changed in ("moved", "others", "own test"):
        root = images.rename(tmp_path / "there")
    if changed == "one more":
        write_classes(root, {"red": 8})
    if changed == "others":
        (root / "red" / "000.png").rename(root / "red" / "zero.png")
    if changed == "own test":
        root = tmp_path / "both"
        for split in ("train", "test"):
            write_classes(root / split, {"blue": 7, "red": 7})
    net, data = opened(settings(file, "folder", root=str(root)))
    found = other_test(net, data)
    assert re.search(said, found) if said else found == ""


def test_a_folder_that_is_gone_is_asked_for_by_those_alone_who_need_images(file, images, tmp_path):
    images.rename(tmp_path / "elsewhere")
    net, found = opened(settings(file, "auto"))
    assert found.normalisation == net.normalisation
    with pytest.raises(norton.InputError, match=rf"trained on data=folder in {images}, which is no folder here; .*NEW"):
        _ = found.splits
    assert len(opened(settings(file, "auto", root=str(tmp_path / "elsewhere")))[1].splits.test) > 0


def test_a_folder_that_somebody_types_must_be_there(file, tmp_path, monkeypatch, capsys):
    told = f"rank=1 data.root={tmp_path / 'typo'} out={tmp_path / '0'}"
    command = f"python decompose.py checkpoint={file} model.arch={ARCH} {told}"
    code, _, error = run_here(command, monkeypatch, capsys)
    assert code == 2 and f"{tmp_path / 'typo'}: No such file" in error and not (tmp_path / "0").exists()


@pytest.mark.parametrize("told, said", [
    ("data.classes=3", "data.classes is no setting of data=folder, which the checkpoint is about; it has name, root"),
    ("data.validation=0.3", "give data.validation=null"),
])  # fmt: skip
def test_hints_can_be_followed(told, said, file, images, tmp_path, monkeypatch, capsys):
    write_classes(tmp_path / "split" / "train", {"blue": 7, "red": 7})
    write_classes(tmp_path / "split" / "val", {"blue": 2, "red": 2})
    data = "" if "classes" in told else f"data=folder data.root={tmp_path / 'split'} "
    command = f"python evaluate.py checkpoint={file} model.arch={ARCH} {data}{told} {QUICK} out={tmp_path / '0'}"
    code, _, error = run_here(command, monkeypatch, capsys)
    assert code == 2 and said in error


def test_batchnorm_by_name_without_images_is_said(file, tmp_path, monkeypatch, capsys):
    told = "rank=1 decomposition.options.starts=1 calibration.batchnorm=true calibration.images=null"
    command = f"python decompose.py checkpoint={file} model.arch={ARCH} {told} out={tmp_path / '0'}"
    with pytest.warns(NortonWarning, match="batchnorm=true without calibration images: BatchNorm is left as it is"):
        assert run_here(command, monkeypatch, capsys)[0] == 0


@pytest.mark.parametrize("claim", [{"data": "cifar10", "top1": 50.0}, {"data": "segmentation/folder", "miou": 50.0}])
def test_a_claim_in_the_file_needs_no_name(claim, images, tmp_path, monkeypatch, capsys):
    net = norton.build(ARCH)
    path = norton.save(net, tmp_path / "nameless.pt", metrics=claim)
    monkeypatch.setattr("norton.data.datamodule.DEFAULT_ROOT", tmp_path / "nothing")
    command = f"python evaluate.py checkpoint={path} model.arch={ARCH} {QUICK} out={tmp_path / '0'}"
    code, _, error = run_here(command, monkeypatch, capsys)
    assert code == 2 and "the claim cannot be judged: " in error and "the name" not in error


@pytest.mark.parametrize("command, timed", [
    ("evaluate.py", "ms / 2 images"),
    ("experiments/pipeline.py steps=[decompose] rank=1 decomposition.options.starts=1 calibration.images=null",
     "latency (ms / 2 images)"),
])  # fmt: skip
def test_times_can_be_left_out(command, timed, file, images, tmp_path, monkeypatch, capsys):
    norton.save(norton.load(file, arch=ARCH), file, metrics={"data": "folder", "top1": 50.0})
    command = f"python {command} checkpoint={file} model.arch={ARCH} latency_batch=null out={tmp_path / '0'}"
    code, out, error = run_here(command, monkeypatch, capsys)
    assert code in (0, 1) and "written to" in out, error  # 1: the claim does not hold
    assert "ms /" not in out and "latency" not in (tmp_path / "0" / "metrics.json").read_text()


def test_code_that_a_file_names_is_not_called(images, tmp_path):
    net = norton.build(ARCH)
    net.data_settings = {"name": "module", "module": "os.getcwd", "augment": ["flip", "os.abort"], "seed": 0}
    file = norton.save(net, tmp_path / "a.pt")
    with pytest.warns(NortonWarning, match=r"os\.abort, which augmented its images, is code"):
        _, found = opened(settings(file, "auto"))
    assert found.options["augment"] == ["crop", "flip"]
    with pytest.raises(norton.InputError, match=r"say so with data\.module=os\.getcwd"):
        _ = found.splits
    net.data_settings |= {"augment": "flip"}
    cfg = settings(norton.save(net, tmp_path / "a.pt"), "module", module="shutil.copy")
    assert opened(cfg)[1].options["module"] == "shutil.copy"


def test_datasets_of_libraries_are_remembered(images, tmp_path):
    net = norton.build(ARCH)
    net.data_settings = {"name": "torchvision/svhn", "root": str(tmp_path), "seed": 4}
    file = norton.save(net, tmp_path / "a.pt")
    for cfg in (settings(file, "auto"), settings(file, "torchvision")):
        _, found = opened(cfg)
        assert (found.name, found.root, found.seed) == ("torchvision/svhn", tmp_path, 4)
    assert opened(settings(file, "torchvision", name="stl10"))[1].seed == 0


def test_another_number_of_classes_gets_a_fresh_classifier_where_it_is_trained(file, tmp_path, monkeypatch, capsys):
    three = write_classes(tmp_path / "three", {"blue": 7, "green": 7, "red": 7})
    cfg = settings(file, "folder", root=str(three))
    net, found = opened(cfg)
    with pytest.raises(norton.InputError, match=r"the data folder have green besides; .* model\.num_classes=3 gives"):
        check_classes(net, found)
    cfg.model.num_classes = 3
    with pytest.raises(norton.InputError, match=r"tells 2 classes apart, not model\.num_classes=3; leave that out"):
        opened(cfg)
    with pytest.warns(NortonWarning, match=r"6 of 2 classes is replaced by a fresh one of 3"):
        net, origin = opening.open_network(cfg, new_head=True)
    assert origin == {"metrics": {}, "lineage": [{"step": "fresh head", "classes": 3}]}
    assert not can_teach(net, origin["lineage"], opened=True)
    assert can_teach(net, [*origin["lineage"], {"step": "finetune"}], opened=True)
    tune = (
        f"python -m experiments.pipeline checkpoint={file} model.arch={ARCH} model.num_classes=3 steps=[finetune] "
        f"data=folder data.root={three} data.batch_size=8 training.epochs=1 training.distill=false {QUICK} logger=none"
    )
    with pytest.warns(NortonWarning, match=r"6 of 2 classes is replaced by a fresh one of 3"):
        code, _, error = run_here(f"{tune} out={tmp_path}/tuned", monkeypatch, capsys)
    assert code == 0, error
    tuned = norton.load(tmp_path / "tuned" / "1_finetune.pt", arch=ARCH)
    assert tuned.classes == ("blue", "green", "red") and tuned.normalisation == net.normalisation
    code, _, error = run_here(f"{tune} strict=true out={tmp_path}/strict", monkeypatch, capsys)
    assert code == 2 and "refused, because strict: its classifier 6 of 2 classes is replaced" in error


def test_as_many_classes_but_others_can_be_trained(file, tmp_path):
    other = write_classes(tmp_path / "other", {"blue": 3, "green": 3})
    cfg = settings(file, "folder", root=str(other))
    net, origin = opening.open_network(cfg, new_head=True)
    found = opening.open_data(cfg, net)
    assert opening.for_data(net, origin, found, cfg) == (net, origin)
    cfg.model.num_classes = 2
    with pytest.warns(NortonWarning, match="6 is replaced by a fresh one for other classes"):
        net, origin = opening.for_data(net, origin, found, cfg)
    check_classes(net, found)
    assert origin["lineage"][-1]["step"] == "fresh head"


STRICT = ["decompose rank=1", "evaluate", "complexity", "nmse", "storage", "pipeline steps=[prune] compress_rate=0.1"]


@pytest.mark.parametrize("command", STRICT)
def test_strict_refuses_what_would_be_taken_for_granted(command, images, tmp_path, monkeypatch, capsys):
    path = tmp_path / "wrapped.pth"
    torch.save({f"module.{key}": value for key, value in norton.build(ARCH).state_dict().items()}, path)
    command = f"python -m norton {command} checkpoint={path} model.arch={ARCH} strict=true out={tmp_path}/out"
    code, _, error = run_here(command, monkeypatch, capsys)
    assert code == 2 and error.strip() == f"error: {path}: refused, because strict: module. is left out of its names"
    assert not (tmp_path / "out").exists()


def test_weights_of_others_are_strict_too(images, tmp_path, monkeypatch, capsys):
    torch.save({f"module.{key}": value for key, value in norton.build(ARCH).state_dict().items()}, tmp_path / "a.pth")
    command = f"python -m norton decompose model.arch={ARCH} weights={tmp_path}/a.pth rank=1 strict=true"
    code, _, error = run_here(command, monkeypatch, capsys)
    assert code == 2 and "refused, because strict: module. is left out of its names" in error


def test_a_mean_told_alone_goes_with_the_remembered_deviation():
    net = SimpleNamespace(normalisation=((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    for told, expected in (
        ({}, ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])),
        ({"mean": 0.5}, (0.5, [0.4, 0.5, 0.6])),
        ({"std": 0.5}, ([0.1, 0.2, 0.3], 0.5)),
        ({"mean": "imagenet"}, ("imagenet", None)),  # a name stands for both
    ):
        cfg = OmegaConf.create({"data": {"name": "cifar10", "mean": None, "std": None} | told})
        recall_(cfg, net)
        assert (cfg.data.mean, cfg.data.std) == expected


def test_a_normalisation_told_once_is_remembered_without_images(images, tmp_path, monkeypatch, capsys):
    torch.save(norton.build(ARCH).state_dict(), tmp_path / "plain.pt")
    command = (
        f"python prune.py checkpoint={tmp_path}/plain.pt model.arch={ARCH} compress_rate=0.3 pruning.min_filters=2 "
        "calibration.images=null "
        f"data=folder data.root={images} data.mean=[0.1,0.2,0.3] data.std=0.5 out={tmp_path}/out"
    )
    code, _, error = run_here(command, monkeypatch, capsys)
    assert code == 0, error
    assert read(tmp_path / "out" / "model.pt")["normalisation"] == [[0.1, 0.2, 0.3], [0.5, 0.5, 0.5]]
