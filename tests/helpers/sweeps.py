"""Small sweeps for tests: a narrow VGG-16-BN on digits, trained on a few batches."""

import json

TINY = (
    "model=vgg_16_bn model.compress_rate=[0.9]*13 data=mnist5k data.batch_size=16 "
    "steps=[train,decompose,prune,finetune] pretraining.epochs=1 calibration.images=16 latency_batch=null "
    "decomposition.options.starts=1 decomposition.options.iterations=5 "
    "+trainer.limit_train_batches=2 +trainer.limit_val_batches=1 +trainer.limit_test_batches=2"
)
GRID = "rank=1,2 compress_rate=[0.]*13,[0.3]*13"


def records(folder):
    """Point → its record."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((folder / "points").glob("*.json"))}


def results(folder):
    """Point → what a repetition must find again."""
    return {point: record.get("result", record.get("error")) for point, record in records(folder).items()}
