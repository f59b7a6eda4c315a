"""Parameters that layers share, and those that belong to no layer of torch."""

from torch import nn

from norton.graph.declarations import inside_declared
from norton.graph.layers import NORM_LAYERS, WRITING_LAYERS, is_decomposed

# Cut as wholes, all of their entries per channel together.
ENTRY_LAYERS = (*NORM_LAYERS, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.PReLU)
# Whole numbers of torch's layers that slicers change.
OWN_NUMBERS = {
    *("groups", "in_channels", "out_channels", "in_features", "out_features"),
    *("num_groups", "num_channels", "num_features", "num_parameters", "normalized_shape"),
}


def sharing_layers(net: nn.Module) -> set[str]:
    """Layers that share a parameter with another layer."""
    owners: dict[int, set[str]] = {}
    declared = dict(inside_declared(net))
    for name, layer in net.named_modules():
        for parameter in layer._parameters.values():
            if parameter is not None:
                owner = name.partition(".parametrizations.")[0]  # where torch keeps what it computes a weight of
                owners.setdefault(id(parameter), set()).add(declared.get(owner, owner))
    return set().union(*(names for names in owners.values() if len(names) > 1))


def free_tensors(net: nn.Module) -> set[str]:
    """Parameters and buffers, known by one name only, that may be cut by it or together with the norm they belong to.

    Those of layers that read or write channels are not among them, nor those of declared layers.
    """
    declared = dict(inside_declared(net))
    names: dict[int, list[str]] = {}
    for path, layer in net.named_modules():
        for key, tensor in [*layer._parameters.items(), *layer._buffers.items()]:
            names.setdefault(id(tensor), []).append(f"{path}.{key}" if path else key)
    alone = {known[0] for known in names.values() if len(known) == 1}
    return {
        name
        for name in alone
        if name.rpartition(".")[0] not in declared
        and _is_free(net.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2])
    }


def _is_free(layer: nn.Module, key: str) -> bool:
    """Whether no slicer of a layer cuts a tensor of it otherwise than by an entry per channel."""
    if isinstance(layer, WRITING_LAYERS):
        return key not in ("weight", "bias")
    return not is_decomposed(layer) and (
        isinstance(layer, (*ENTRY_LAYERS, nn.ParameterList, nn.ParameterDict))
        or not type(layer).__module__.startswith("torch.nn")
    )


def goes_with(layer: nn.Module, key: str) -> bool:
    """Whether a tensor of a layer is cut by the layer's slicer, with all others that have an entry per channel."""
    return isinstance(layer, ENTRY_LAYERS) and key in ("weight", "bias", "running_mean", "running_var")
