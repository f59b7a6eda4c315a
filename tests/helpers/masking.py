"""Removed channels set to zero, written out by hand for each of the five networks."""

import itertools

import torch


def masks(net, keep):
    """Writer layer → 0/1 vector over the channels of its axis."""
    wiring, result = net.wiring(), {}
    for axis, writers in wiring.writers.items():
        mask = torch.zeros(wiring.width(axis))
        mask[keep.get(writers[0], range(wiring.width(axis)))] = 1
        result |= dict.fromkeys(writers, mask)
    return result


def mask_input(module, mask):
    module.register_forward_pre_hook(lambda m, x: (x[0] * mask.view(-1, *[1] * (x[0].dim() - 2)),))


def mask_where_read(net, m):
    """Zero the removed channels wherever they are read, written out by hand for each architecture."""
    if net.arch == "vgg_16_bn":
        names = [name for name in net.features._modules if name.startswith("conv")]
        for writer, reader in itertools.pairwise(names):
            mask_input(net.features.get_submodule(reader), m[f"features.{writer}"])
        mask_input(net.classifier.linear1, m[f"features.{names[-1]}"])
    elif net.arch in ("resnet_56", "resnet_110"):
        stream = m["conv1"]
        for stage in (1, 2, 3):
            for i, block in enumerate(getattr(net, f"layer{stage}")):
                mask_input(block, stream)  # read by the first convolution and by the shortcut
                mask_input(block.conv2, m[f"layer{stage}.{i}.conv1"])
                stream = m[f"layer{stage}.0.conv2"]
        mask_input(getattr(net, net.head), stream)
    elif net.arch == "densenet_40":
        x = m["conv1"]
        for block in (1, 2, 3):
            for i, layer in enumerate(getattr(net, f"dense{block}")):
                mask_input(layer.conv1, x)
                x = torch.cat([x, m[f"dense{block}.{i}.conv1"]])
            if block < 3:
                mask_input(getattr(net, f"trans{block}").conv1, x)
                x = m[f"trans{block}.conv1"]
        mask_input(net.fc, x)
    else:
        stream = m["conv1"]
        for stage in (1, 2, 3, 4):
            for i, block in enumerate(getattr(net, f"layer{stage}")):
                mask_input(block, stream)
                mask_input(block.conv2, m[f"layer{stage}.{i}.conv1"])
                mask_input(block.conv3, m[f"layer{stage}.{i}.conv2"])
                stream = m[f"layer{stage}.0.conv3"]
        mask_input(net.fc, stream)
    return net


def kill(net, m):
    """Zero BatchNorm weight and bias of the removed channels, so that their readers receive zeros."""
    norms = {}  # BatchNorm → mask, by hand as above
    if net.arch == "vgg_16_bn":
        norms = {name.replace("conv", "norm"): m[name] for name in m if name.startswith("features")}
    elif net.arch in ("resnet_56", "resnet_110"):
        # A shortcut carries a stream's channels into the next: dead there means dead before.
        stage2 = m["layer2.0.conv2"]
        stage1 = m["layer1.0.conv2"] * stage2[8:24]
        norms = {"bn1": m["conv1"] * stage1}
        for name in m:
            if name.startswith("layer"):
                first = name.startswith("layer1") and name.endswith("conv2")
                norms[name.replace("conv", "bn")] = stage1 if first else m[name]
    elif net.arch == "densenet_40":
        x = m["conv1"]
        for block in (1, 2, 3):
            for i in range(12):
                norms[f"dense{block}.{i}.bn1"] = x
                x = torch.cat([x, m[f"dense{block}.{i}.conv1"]])
            if block < 3:
                norms[f"trans{block}.bn1"] = x
                x = m[f"trans{block}.conv1"]
        norms["bn"] = x
    else:
        norms = {"bn1": m["conv1"]}
        for name in m:
            if name.startswith("layer"):
                norms[name.replace("conv", "bn").replace("downsample.0", "downsample.1")] = m[name]
    for name, mask in norms.items():
        for parameter in (net.get_submodule(name).weight, net.get_submodule(name).bias):
            parameter.data.mul_(mask)
    return net


@torch.no_grad()
def outputs(net, images):
    return net.double()(images.double())
