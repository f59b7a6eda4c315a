"""Images in memory: uint8 tensors, normalised and augmented a batch at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from norton.data.splits import generator


@dataclass(frozen=True)
class ShiftAndFlip:
    """Shift by up to `pixels` each way (a random crop of the padded image), and mirror half of the images if `flip`.

    padding: what stands beyond the edge, "constant" (black) or "reflect".
    """

    pixels: int
    padding: str = "constant"
    flip: bool = False

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, 3) integers: row and column of the crop's corner, and whether to mirror."""
        corner = torch.randint(0, 2 * self.pixels + 1, (count, 2), generator=generator)
        mirror = torch.randint(0, 2, (count, 1), generator=generator) * int(self.flip)
        return torch.cat([corner, mirror], dim=1)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """images: (B, 3, H, W); draws: (B, 3) as drawn.  Returns (B, 3, H, W) of the same type."""
        count, _, height, width = images.shape
        padded = F.pad(images, [self.pixels] * 4, mode=self.padding)
        rows = draws[:, 0, None] + torch.arange(height)
        columns = torch.arange(width).expand(count, -1)
        columns = draws[:, 1, None] + torch.where(draws[:, 2, None].bool(), columns.flip(1), columns)
        sample = torch.arange(count)[:, None, None]
        return padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class ImageTensors(Dataset):
    """Images (N, 3, H, W) uint8 and labels (N,) int64; gives (image, label) with the image normalised per channel.

    `augment` is drawn for all images at once from (seed, epoch), so what happens to an image in an epoch depends on
    neither the batch it is in, nor the worker or device that loads it, nor torch's global generator: a resumed training
    sees what an uninterrupted one would have seen. The epoch is 0 until `set_epoch`.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        augment: ShiftAndFlip | None = None,
        seed: int = 0,
    ):
        self.images = images.contiguous()
        self.labels = labels
        self.augment = augment
        self.seed = seed
        self.scale = 1 / (255 * torch.tensor(std)).view(1, 3, 1, 1)
        self.shift = (torch.tensor(mean) / torch.tensor(std)).view(1, 3, 1, 1)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        if self.augment is not None:
            self.draws = self.augment.draw(len(self), generator(self.seed, epoch))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """A whole batch's samples, computed together; the DataLoader calls this and collates them as any others."""
        indices = torch.as_tensor(indices)
        images = self.images.index_select(0, indices)
        if self.augment is not None:
            images = self.augment(images, self.draws[indices])
        images = images.float().mul_(self.scale).sub_(self.shift)
        return list(zip(images.unbind(), self.labels[indices].unbind(), strict=True))
