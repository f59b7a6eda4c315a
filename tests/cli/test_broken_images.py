"""An image that cannot be read ends a training in one line, and nothing half-written is left."""

import pytest
from helpers.commands import run_here, written
from helpers.own_images import write_classes

NETWORK = """
from torch import nn

def small(num_classes=2):
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes)]
    net = nn.Sequential(*layers)
    net.input_size = (3, 12, 12)
    return net
"""
TRAINING = (
    "python -m experiments.pipeline model.arch=nets_for_broken.small data=folder data.batch_size=4 data.augment=none "
    "latency_batch=null trainer.enable_progress_bar=false pretraining.epochs=1 training.epochs=1 logger=csv"
)


@pytest.fixture
def root(tmp_path, monkeypatch):
    (tmp_path / "nets_for_broken.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    for split in ("train", "val", "test"):
        write_classes(tmp_path / "images" / split, {"blue": 6, "red": 6})
    return tmp_path / "images"


def spoil(path):
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize("more", [
    "steps=[train]",
    "steps=[train] data.memory=0",
    "steps=[train] data.memory=0 data.num_workers=2",
    "steps=[finetune] data.memory=0",
])  # fmt: skip
def test_of_training(more, root, tmp_path, monkeypatch, capsys):
    spoil(root / "train" / "red" / "003.png")
    out = tmp_path / "out"
    code, _, error = run_here(f"{TRAINING} {more} data.root={root} out={out}", monkeypatch, capsys)
    assert code == 2 and error.startswith("error: data folder: cannot read ") and error.count("\n") == 1
    assert "003.png" in error and not out.exists()


@pytest.mark.parametrize("split", ["val", "test"])
def test_of_a_split_that_only_the_end_would_read(split, root, tmp_path, monkeypatch, capsys):
    spoil(root / split / "blue" / "000.png")
    out = tmp_path / "out"
    code, _, error = run_here(f"{TRAINING} steps=[train] data.root={root} out={out}", monkeypatch, capsys)
    assert code == 2 and "000.png" in error and not out.exists()


def test_a_training_that_is_done_stays(root, tmp_path, monkeypatch, capsys):
    """Of images that are read as they are needed; with the image mended, the same command goes on."""
    path, out = root / "test" / "blue" / "000.png", tmp_path / "out"
    whole = path.read_bytes()
    spoil(path)
    command = f"{TRAINING} steps=[train] data.memory=0 data.root={root} out={out}"
    code, _, error = run_here(command, monkeypatch, capsys)
    assert code == 2 and "000.png" in error and "1_train.pt" in written(out)
    trained = (out / "1_train" / "last.ckpt").stat().st_mtime_ns
    path.write_bytes(whole)
    code, _, error = run_here(command, monkeypatch, capsys)
    assert code == 0, error
    assert (out / "1_train" / "last.ckpt").stat().st_mtime_ns == trained


def test_of_a_dataset_of_ones_own(root, tmp_path, monkeypatch, capsys):
    """Whose errors come from a worker wrapped in a traceback."""
    (tmp_path / "data_for_broken.py").write_text("""
import io
import torch
from PIL import Image
from torch.utils.data import Dataset

class Own(Dataset):
    classes = ["blue", "red"]
    targets = [number % 2 for number in range(8)]

    def __init__(self, pictures):
        self.pictures = pictures

    def __len__(self):
        return 8

    def __getitem__(self, number):
        if number == 5:
            Image.open(io.BytesIO(b"no image"))
        return Image.new("RGB", (12, 12)) if self.pictures else torch.zeros(3, 12, 12), number % 2

def pictures():
    return Own(True), Own(True), Own(True)

def tensors():
    return Own(False), Own(False), Own(False)
""")
    said = {"pictures": "data module: image 5 cannot be read", "tensors": "images cannot be read: cannot identify"}
    for name, words in said.items():
        more = (
            f"steps=[train] data.module=data_for_broken.{name} data.memory=0 data.num_workers=2 out={tmp_path}/{name}"
        )
        code, _, error = run_here(f"{TRAINING.replace('folder', 'module')} {more}", monkeypatch, capsys)
        assert code == 2 and error.startswith(f"error: {words}") and error.count("\n") == 1, error
        assert not (tmp_path / name).exists()


def test_what_lies_beside_a_failed_run_stays(root, tmp_path, monkeypatch, capsys):
    spoil(root / "train" / "red" / "003.png")
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    run_here(f"{TRAINING} steps=[train] data.memory=0 data.root={root} out={out}", monkeypatch, capsys)
    assert (out / "notes.txt").read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.yaml").write_text("a: 1\n")  # of another run
    code, _, error = run_here(
        f"{TRAINING} steps=[train] data.memory=0 data.root={root} out={other}", monkeypatch, capsys
    )
    assert code == 2 and "holds a run with other settings" in error and written(other) == {"config.yaml"}
