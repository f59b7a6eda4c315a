"""Parameters that layers share, and those that belong to no layer of torch."""

from torch import nn

from norton.graph.layers import is_decomposed


def sharing_layers(net: nn.Module) -> set[str]:
    """Layers that share a parameter with another layer."""
    owners: dict[int, set[str]] = {}
    for name, layer in net.named_modules():
        for parameter in layer._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), set()).add(name)
    return set().union(*(names for names in owners.values() if len(names) > 1))


def free_tensors(net: nn.Module) -> set[str]:
    """Parameters and buffers outside of torch's own layers, known by one name only: those that may be cut by it."""
    names: dict[int, list[str]] = {}
    for path, layer in net.named_modules():
        for key, tensor in [*layer._parameters.items(), *layer._buffers.items()]:
            names.setdefault(id(tensor), []).append(f"{path}.{key}" if path else key)
    alone = {known[0] for known in names.values() if len(known) == 1}
    return {name for name in alone if not _has_slicers(net.get_submodule(name.rpartition(".")[0]))}


def _has_slicers(layer: nn.Module) -> bool:
    """Whether a layer is torch's own or decomposed, and so cut by slicers of its own."""
    return is_decomposed(layer) or type(layer).__module__.startswith("torch.nn")
