"""How images lie in memory while a network is trained or measured: channels last, where it takes them so.

On a CPU a training step mostly takes 0.6 to 1.0 times as long (docs/results/speed.md); on a GPU it was not measured,
and images stay as they are.  A network that flattens its features by `view` refuses them, so each is tried first.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from norton.graph.copies import copied


class Layout:
    """Brings images into the layout that networks take, which the first batch decides.

    modes: in which the networks will be called: True for training, False for evaluation.
    """

    def __init__(self, nets: Sequence[nn.Module], modes: Sequence[bool]):
        self.nets, self.modes = nets, modes
        self.channels_last: bool | None = None

    def __call__(self, images: Tensor) -> Tensor:
        if images.dim() != 4 or images.device.type != "cpu":
            return images
        if self.channels_last is None:
            self.channels_last = all(takes_channels_last(net, images[:2], self.modes) for net in self.nets)
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images


@torch.no_grad()
def takes_channels_last(net: nn.Module, images: Tensor, modes: Sequence[bool]) -> bool:
    """Whether a network computes images (N, C, H, W) whose channels lie last.  Nothing of it is changed."""
    net, images = copied(net), images.contiguous(memory_format=torch.channels_last)
    with torch.random.fork_rng(devices=[]):  # of dropout
        try:
            for training in modes:
                net.train(training)(images)
        except Exception:  # whatever it is, the network's own call says it, or does well without
            return False
    return True
