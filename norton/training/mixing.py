"""Endless batches of images without labels, of few: mirrored, shifted and mixed.

Whatever is shown, the dense network says what is right of it, so that images need not look like any of a class.
"""

import torch
from torch import Tensor

from norton.calibration.batches import Images, batches_of
from norton.data.images import ShiftAndFlip
from norton.graph.inputs import Inputs

SHIFT = 1 / 8  # of the width


class Mixing:
    """Batches in random order.

    images: floating-point images (N, C, H, W), which are mirrored, shifted by up to an eighth of their width, and each
    mixed with another one in a random proportion (Zhang et al. 2018, mixup, with Beta(1, 1)); other tensors are mixed
    alone where they are floating-point; batches of anything else stay as they are.
    """

    def __init__(self, images: Images, batch_size: int, seed: int):
        self.images, self.size = images, batch_size
        self.generator = torch.Generator().manual_seed(seed)
        self._left: list[int] = []

    def __call__(self) -> Inputs:
        """The next batch, on the device of the images."""
        if not isinstance(self.images, Tensor):
            return batches_of(self.images, self.size)[self._next(len(self.images))]
        chosen = torch.tensor([self._next(len(self.images)) for _ in range(min(self.size, len(self.images)))])
        images = self.images[chosen.to(self.images.device)]
        return Inputs((self.augmented(images) if images.is_floating_point() else images,))

    def augmented(self, images: Tensor) -> Tensor:
        """Images (N, ...) of the same shape."""
        if images.dim() == 4:
            shift = ShiftAndFlip(int(images.shape[3] * SHIFT), "reflect", flip=True)
            images = shift(images, shift.draw(len(images), self.generator))
        share = torch.rand(len(images), *[1] * (images.dim() - 1), generator=self.generator).to(images)
        other = torch.randperm(len(images), generator=self.generator).to(images.device)
        return torch.lerp(images[other], images, share)

    def _next(self, count: int) -> int:
        """One of so many: all come once before any comes again."""
        if not self._left:
            self._left = torch.randperm(count, generator=self.generator).tolist()
        return self._left.pop()

    def state_dict(self) -> dict:
        return {"generator": self.generator.get_state(), "left": list(self._left)}

    def load_state_dict(self, state: dict) -> None:
        self.generator.set_state(state["generator"])
        self._left = list(state["left"])
