"""The scores of every epoch of a training, in a file that is whole at any time and grows when the training goes on."""

import json
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from norton.common.files import write_json

HISTORY = "epochs.json"


class History(Callback):
    """Writes what was logged in each epoch so far: [{"epoch": 1, "fit/loss": ..., "val/loss": ..., ...}, ...].

    path: of the file; what it holds of epochs before the present one, from a training that was stopped, stays.
    """

    def __init__(self, path: Path):
        self.path = path

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.is_global_zero:
            now = trainer.current_epoch + 1
            logged = {key: float(value) for key, value in sorted(trainer.callback_metrics.items())}
            before = [row for row in epochs(self.path) if row["epoch"] < now]
            write_json(self.path, [*before, {"epoch": now, **logged}])


def epochs(path: Path) -> list[dict[str, Any]]:
    """What a history holds, none where there is none."""
    return json.loads(path.read_text()) if path.exists() else []
