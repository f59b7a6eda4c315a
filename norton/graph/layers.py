"""What every room asks of a layer: whether it is decomposed, its width, the dense layer it equals, how it computes."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeGuard, cast, get_args

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from norton.common.errors import InputError
from norton.graph.declarations import declaration_of, filters_of_declared

Form = Literal["factored", "grouped", "composed"]
FORMS = (*get_args(Form), "fast")

ELEMENTWISE_LAYERS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.LogSigmoid),
    *(nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Hardshrink, nn.Softshrink, nn.Softplus, nn.Softsign),
    *(nn.Tanhshrink, nn.Threshold, nn.RReLU, nn.Identity),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
)
NORM_LAYERS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED_LAYERS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WRITING_LAYERS = (*CONVOLUTIONS, *TRANSPOSED_LAYERS, nn.Linear)
# Modules of torch that do nothing but call others.
_AROUND_LAYERS = (
    *(nn.Sequential, nn.Transformer, nn.TransformerEncoder, nn.TransformerEncoderLayer),
    *(nn.TransformerDecoder, nn.TransformerDecoderLayer),
)
# What a class that is derived from one of torch's may not define, if it is to compute as that does.
_COMPUTING_METHODS = {"forward", "_conv_forward", "_output_padding", "_apply_instance_norm", "_call_impl"}
_COMPUTING = {
    *(*_COMPUTING_METHODS, "__call__"),
    *("weight", "bias", "running_mean", "running_var", "__getattr__", "__getattribute__"),
}


def check_network(net: object) -> None:
    """Raise InputError for what is no network, such as a constructor that nobody called, or one without its layers."""
    if isinstance(net, torch.jit.ScriptModule):
        raise InputError("this network is TorchScript, whose layers cannot be changed; pass the one it was made from")
    if inspect.isgeneratorfunction(getattr(net, "forward", None)):
        raise InputError(
            f"the forward pass of {type(net).__name__} yields, and computes nothing before somebody asks for it; pass "
            "a module around it that returns what it yields, such as a list"
        )
    if isinstance(net, nn.Module):
        return
    if callable(net):
        name = getattr(net, "__name__", repr(net))
        raise InputError(f"{name} is no network, but makes one; call it, as in {name}()")
    raise InputError(f"this {type(net).__name__} is no network (torch.nn.Module)")


def network_in(net: nn.Module) -> nn.Module:
    """A network without what torch wraps around it: DataParallel, or torch.compile.  Checks it, see `check_network`."""
    check_network(net)
    while isinstance(net, nn.DataParallel | nn.parallel.DistributedDataParallel) or hasattr(net, "_orig_mod"):
        net = cast(nn.Module, getattr(net, "_orig_mod", None) or net.module)
    return net


def check_has_layers(net: nn.Module) -> None:
    """Raise InputError for a network that torch.export recorded, which calls no layers, or that has some to be made."""
    nodes = net.graph.nodes if isinstance(net, fx.GraphModule) else ()
    if any(isinstance(node.target, torch._ops.OpOverload) for node in nodes):
        raise InputError("this network came out of torch.export, where layers are lost; pass the one it was made from")
    if any(isinstance(tensor, nn.parameter.UninitializedTensorMixin) for tensor in net.parameters()):
        raise InputError("this network has lazy layers that were never called; run it once on an input, then pass it")


def check_has_values(net: nn.Module) -> None:
    """Raise InputError for a network whose weights are on the meta device, where nothing has a value."""
    found = next((name for name, tensor in net.named_parameters() if tensor.is_meta), None)
    if found is not None:
        raise InputError(
            f"{found} is on the meta device, without values; load the weights first, then pass the network"
        )


def is_decomposed(layer: nn.Module) -> TypeGuard[Any]:
    """Whether a layer came out of a decomposition, and so has what `norton.decomposition.methods` asks of one."""
    return hasattr(layer, "composed_weight")


def width(layer: nn.Module) -> int:
    """The filters of a convolution or linear layer, decomposed or not, or of a declared layer that writes some."""
    if (declaration := declaration_of(layer)) is not None and declaration.main is not None:
        return filters_of_declared(layer, declaration).shape[0]
    return getattr(layer, "out_channels" if hasattr(layer, "out_channels") else "out_features")


def filter_dimension(layer: nn.Module) -> int:
    """Where the filters of a layer are in what it gives."""
    if (declaration := declaration_of(layer)) is not None:
        return declaration.dim
    return -1 if hasattr(layer, "out_features") else 1


def weight_of(layer: nn.Module) -> Tensor:
    """The filters of a layer without gradients, see `filters_first`."""
    return filters_first(layer).detach()


def torch_kind(layer: nn.Module) -> type[nn.Module] | None:
    """The class of torch whose computation a layer runs: its own, or the one that it is derived from, if it changes
    nothing but defaults; None for a layer that computes in its own way, or was declared.

    A parametrised layer counts as what it was, see `torch.nn.utils.parametrize.is_parametrized`.
    """
    if not _COMPUTING_METHODS.isdisjoint(vars(layer)) or declaration_of(layer) is not None:
        return None
    for kind in type(layer).__mro__:
        if kind.__module__ == "torch.nn.utils.parametrize":
            continue  # which adds a property for each weight
        if kind.__module__.startswith(("torch.nn.", "torch.ao.nn.")):
            return None if kind is nn.Module else kind
        if not _COMPUTING.isdisjoint(vars(kind)):
            return None
    return None


def is_leaf(layer: nn.Module) -> bool:
    """Whether a module is recorded as one operation: torch's own layers, declared, decomposed and packed ones."""
    if is_decomposed(layer) or declaration_of(layer) is not None or getattr(layer, "traced_whole", False):
        return True
    kind = torch_kind(layer)
    return kind is not None and not issubclass(kind, _AROUND_LAYERS)


def is_transposed(layer: nn.Module) -> bool:
    """Whether a layer is a transposed convolution, decomposed or not."""
    return declaration_of(layer) is None and getattr(layer, "transposed", False)


def groups_of(layer: nn.Module) -> int:
    """The groups of a convolution, decomposed or not; of a linear or a declared layer one."""
    return 1 if declaration_of(layer) is not None else getattr(layer, "groups", 1)


def filters_first(layer: nn.Module) -> Tensor:
    """(O, C / groups, ...): the weight of a layer with its filters in the first dimension.

    Of a decomposed layer, that of the dense layer that it equals; of a declared layer its tensor with the filters.
    """
    if (declaration := declaration_of(layer)) is not None:
        return filters_of_declared(layer, declaration)
    return in_layout_of(layer, layer.composed_weight() if is_decomposed(layer) else cast(Tensor, layer.weight))


def in_layout_of(layer: nn.Module, weight: Tensor) -> Tensor:
    """A weight with its filters first as a layer holds it, and the other way round.

    Transposed convolutions have the inputs of all groups first, then the filters of one group.
    """
    if not is_transposed(layer):
        return weight
    return weight.unflatten(0, (groups_of(layer), -1)).transpose(1, 2).flatten(0, 1).contiguous()


def scale_filters_(layer: nn.Module, scale: Tensor) -> None:
    """Multiply each filter of a layer, decomposed or not, by a number, in place; scale: (O,)."""
    last = cast(Any, layer).feature[-1] if is_decomposed(layer) else cast(Any, layer)
    weight = in_layout_of(last, last.weight.data)  # filters first; those of CP are terms, channel r·O + o of each group
    by_group = scale.view(groups_of(layer), 1, -1)
    by_row = by_group.expand(-1, len(weight) // len(scale), -1).reshape(-1, *[1] * (weight.ndim - 1))
    last.weight.data.copy_(in_layout_of(last, weight * by_row.to(weight.dtype)))


def is_norm(layer: nn.Module) -> bool:
    """Whether a layer is a BatchNorm that keeps statistics."""
    return isinstance(layer, _BatchNorm) and layer.track_running_stats


def as_dense(layer: nn.Module) -> Any:
    """The convolution or linear layer that a decomposed layer equals; one that is not decomposed as it is."""
    if not is_decomposed(layer):
        return layer
    dense = _empty_dense(layer)
    dense.weight = nn.Parameter(layer.composed_weight().detach())
    if layer.bias is not None:
        dense.bias = nn.Parameter(layer.bias.detach())
    return dense.train(layer.training)


def _empty_dense(layer: Any) -> nn.Module:
    """The dense layer of a decomposed layer's geometry, on the meta device."""
    if not hasattr(layer, "kernel_size"):
        return nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    return convolution_like(layer, layer.in_channels, layer.out_channels, groups=layer.groups, device="meta")


def convolution_like(like: Any, inputs: int, outputs: int, **options: Any) -> nn.Module:
    """A convolution with the geometry of another, decomposed or not, but for what `options` say.

    options: as for the constructors of torch's convolutions.
    """
    transposed = options.pop("transposed", is_transposed(like))
    geometry = {key: getattr(like, key) for key in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
    geometry |= {"bias": like.bias is not None} | ({"output_padding": like.output_padding} if transposed else {})
    kinds = TRANSPOSED_LAYERS if transposed else CONVOLUTIONS
    return kinds[len(like.kernel_size) - 1](inputs, outputs, **geometry | options)


def joint_padding(paddings: Sequence[tuple[int, ...] | str]) -> tuple[int, ...] | str:
    """What parts pad together: `same` or `valid` is in all with a kernel, numbers in the part they belong to."""
    if words := [padding for padding in paddings if isinstance(padding, str)]:
        return words[0]
    return tuple(max(int(padding[axis]) for padding in paddings) for axis in range(len(paddings[0])))


def has_forms(layer: nn.Module) -> TypeGuard[Any]:
    """Whether a layer can compute the same function in several forms (`form`), one of them fast (`fast_form`)."""
    return hasattr(layer, "fast_form")


def set_form_(net: nn.Module, form: Form | Literal["fast"]) -> nn.Module:
    """Choose how all decomposed layers of a network compute, in place.

    `fast` is a rule that depends on the rank alone, so that a training repeats: see `benchmarks/train_step.py`.
    Raises InputError for an unknown form.
    """
    if form not in FORMS:
        raise InputError(f"form is {form!r}; choose one of {', '.join(FORMS)}")
    for layer in nn.Module.modules(net):
        if has_forms(layer):
            layer.form = layer.fast_form if form == "fast" else form
    return net


@contextmanager
def in_form(net: nn.Module, form: Form | Literal["fast"]) -> Iterator[None]:
    """Let the decomposed layers of a network compute in another form for a while."""
    before = [(layer, layer.form) for layer in nn.Module.modules(net) if has_forms(layer)]
    set_form_(net, form)
    try:
        yield
    finally:
        for layer, own in before:
            layer.form = own
