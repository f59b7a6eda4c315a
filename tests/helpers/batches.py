"""What a loader gives and what a training is given."""

import hashlib

import lightning
import torch


def epoch_of(loader, epoch):
    loader.sampler.set_epoch(epoch)
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


class Recorder(lightning.LightningModule):
    """Notes a digest of every batch it is given, by epoch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, _):
        images, labels = batch
        raw = images.numpy().tobytes() + labels.numpy().tobytes()
        self.seen.append((self.current_epoch, hashlib.sha256(raw).hexdigest()))
        return self.weight * images.mean()

    def validation_step(self, batch, _):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
