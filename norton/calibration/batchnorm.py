"""Re-estimate what depends on the distribution of activations, from a few hundred unlabelled images."""

import torch
from torch import Tensor, nn

from norton.calibration.batches import Images, batches_of, count_of, taken_by
from norton.common.errors import InputError
from norton.graph.layers import in_form, is_norm


@torch.no_grad()
def reestimate_batchnorm_(net: nn.Module, images: Images, batch_size: int = 128) -> nn.Module:
    """Replace the statistics of every BatchNorm by their averages over `images`, in place; nothing else changes.

    images: (N, C, H, W), transformed as for evaluation, or batches.  A step of compression shifts every layer's
    output, and the old statistics normalise by what is no longer there.  Each batch counts the same, so a last, smaller
    one is left out.  Raises InputError for fewer images than two.
    """
    norms = [layer for layer in nn.Module.modules(net) if is_norm(layer)]
    if not norms:
        return net
    if isinstance(images, Tensor):
        batch_size = max(2, min(batch_size, len(images)))
    batches = batches_of(images, batch_size, norms[0].running_mean.device)
    if (count := count_of(batches)) < 2:
        raise InputError(f"BatchNorm cannot be re-estimated from {count} images; use a few hundred")
    if isinstance(images, Tensor):
        batches = [batch for batch in batches if batch.count == batch_size]
    before = [(layer.momentum, layer.training) for layer in norms]
    training = net.training
    net.eval()
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # a cumulative average
        layer.train()
    try:
        with in_form(net, "fast"):
            for batch in batches:
                with taken_by(net, batch):
                    batch.call(net)
    finally:
        net.train(training)
        for layer, (momentum, was_training) in zip(norms, before, strict=True):
            layer.momentum = momentum
            layer.train(was_training)
    return net
