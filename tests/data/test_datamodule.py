from pathlib import Path

import lightning
import pytest
import torch
import yaml
from helpers.batches import Recorder, epoch_of
from lightning.pytorch.callbacks import ModelCheckpoint

from norton.common.errors import InputError
from norton.data import load_data
from norton.data.datamodule import ClassificationData, EpochSampler

CONFIGS = Path(__file__).parents[2] / "configs" / "data"


def make(seed=0, **options):
    return ClassificationData("mnist5k", 500, seed=seed, **options)


def test_order_and_augmentation_depend_on_seed_and_epoch_alone():
    loader = make().train_dataloader()
    first, second = epoch_of(loader, 0), epoch_of(loader, 1)
    torch.manual_seed(99)
    again = epoch_of(make().train_dataloader(), 1)
    assert torch.equal(second[0], again[0])
    assert torch.equal(second[1], again[1])
    assert not torch.equal(first[1], second[1])
    assert not torch.equal(first[1], epoch_of(make(seed=1).train_dataloader(), 0)[1])


def test_loading_leaves_the_global_generator_alone():
    data = make()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        next(iter(loader))
    assert torch.equal(before, torch.get_rng_state())


def test_workers_give_the_same_batches():
    alone, helped = make().train_dataloader(), make(num_workers=1).train_dataloader()
    for epoch in (0, 2):
        assert torch.equal(epoch_of(alone, epoch)[0], epoch_of(helped, epoch)[0])


def test_an_epoch_has_every_sample_once():
    data = make()
    order = list(EpochSampler(data.splits.train, 0))
    assert sorted(order) == list(range(3500))
    assert sum(len(labels) for _, labels in data.train_dataloader()) == 3500


@pytest.mark.parametrize("devices", [2, 3])
def test_devices_share_one_epoch(monkeypatch, devices):
    sampler = EpochSampler(load_data("mnist5k").train, 0)
    whole = list(sampler)
    shares = []
    for rank in range(devices):
        monkeypatch.setattr("norton.data.datamodule.devices", lambda rank=rank: (devices, rank))
        shares.append(list(sampler))
        assert len(shares[-1]) == len(sampler)
    assert set().union(*shares) == set(whole)
    assert [shares[i % devices][i // devices] for i in range(3500)] == whole


def test_evaluation_is_in_order_and_plain():
    data = make()
    labels = torch.cat([labels for _, labels in data.test_dataloader()])
    assert torch.equal(labels, data.splits.test.labels)


def test_calibration_images():
    data, splits = make(), load_data("mnist5k")
    images = data.calibration_images(100)
    assert images.shape == (100, 3, 32, 32)
    data.splits.train.set_epoch(7)
    assert torch.equal(images, data.calibration_images(100))
    assert torch.equal(images, make().calibration_images(200)[:100])
    assert torch.equal(images[3], splits.calibration[3][0])
    assert not torch.equal(images, make(seed=1).calibration_images(100))
    with pytest.raises(InputError, match="1 to 3500"):
        data.calibration_images(3501)


def test_bad_batch_size():
    with pytest.raises(InputError, match="batch_size is 0"):
        ClassificationData("mnist5k", 0)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("as_module", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_resumed_training_sees_the_same_batches(tmp_path, workers, as_module):
    def train(epochs, resume=None):
        data, module = make(num_workers=workers), Recorder()
        keep = ModelCheckpoint(tmp_path, save_last=True, enable_version_counter=False)
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            callbacks=[keep],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_train_batches=2,
            limit_val_batches=1,
        )
        source = {"datamodule": data}
        if not as_module:
            source = {"train_dataloaders": data.train_dataloader(), "val_dataloaders": data.val_dataloader()}
        trainer.fit(module, **source, ckpt_path=resume, weights_only=True)
        return module.seen

    whole = train(3)
    assert [epoch for epoch, _ in whole] == [0, 0, 1, 1, 2, 2]
    assert len({digest for _, digest in whole}) == 6
    train(1)
    assert train(3, tmp_path / "last.ckpt") == whole[2:]


EXAMPLES = {"torchvision": "cifar100", "huggingface": "./no-such", "segmentation": "folder"}
DATASET_CONFIGS = sorted(path for path in CONFIGS.glob("*.yaml") if path.stem != "auto")  # auto stands for another


@pytest.mark.parametrize("path", DATASET_CONFIGS, ids=lambda path: path.stem)
def test_configs_are_arguments(path, tmp_path):
    text = path.read_text()
    assert text.startswith("# ")
    content = yaml.safe_load(text)
    if "source" in content:  # a library, of which a user names one
        content["name"] = f"{content.pop('source')}/{EXAMPLES[path.stem]}"
    assert content["name"].partition("/")[0] == path.stem
    data = ClassificationData(**{**content, "root": tmp_path})
    missing = {"cifar10": "cifar-10-batches-py", "imagenet": "train and val", "folder": "looked for class folders"}
    missing |= {
        "torchvision": "download=true",
        "module": "data.module=my.module",
        "segmentation": "found no images/",
        "huggingface": r"norton\[huggingface\]|no-such",
    }
    if path.stem in missing:
        with pytest.raises(InputError, match=missing[path.stem]):
            _ = data.splits
    else:
        assert data.num_classes == 10
