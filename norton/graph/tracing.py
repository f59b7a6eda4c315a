"""The channel axes of a network that declares none, found by tracing its forward pass.

torch.fx records the operations; a walk over them with symbolic channels then says to `Wiring` what a model would
declare by hand.  What the walk does not know freezes the axes that reach it, with a reason, so that nothing is ever cut
that another layer still counts on.  (Torch-Pruning's dependency graph was the alternative: it needs a forward pass with
gradients, and its groups would have to be translated into ours, which recorded plans replay, so that it saves little.)
"""

import copy
import math
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from norton.common.errors import InputError, first_line
from norton.graph.layers import is_decomposed
from norton.graph.wiring import Channels, Wiring

Example = Tensor | Sequence[int]
SIDES = (224, 299, 32, 64, 28)  # of an image, tried in this order where nobody says which size a network takes
HOW_TO_DECLARE = "or give the network a method wiring() that declares its channel axes, see norton/models/resnet.py"


def trace_wiring(net: nn.Module, example: Example | None = None) -> Wiring:
    """The channel axes found by tracing the forward pass of a network on images.

    example: an input (N, channels, height, width) or its size (channels, height, width); by default the network's
    `input_size`, else the first of some usual sizes that the network takes.  The network is traced in training mode,
    with its auxiliary heads, and in evaluation mode where that differs; it is not changed, and nothing is computed.

    Raises InputError, naming the place, for a network that torch.fx cannot trace or that takes no image of that size.
    """
    copied, walk, candidates, known = on_meta(net), _Walk(net), sizes(net, example), None
    for training in (True, False):
        graph = trace(copied.train(training))
        if str(graph) != known:
            size, _ = _run_at_some_size(fx.GraphModule(copied, graph, type(net).__name__), candidates)
            walk.follow(graph)
            candidates, known = [size], str(graph)
    return walk.finished()


def sizes(net: nn.Module, example: Example | None = None) -> list[tuple[int, ...]]:
    """The input sizes (channels, height, width) to try.  Raises InputError for an example that is none."""
    if isinstance(example, Tensor):
        return [tuple(example.shape[1:])]
    if example is not None:
        if not _is_size(example):
            raise InputError(f"example is {example!r}; give an input, or its size (channels, height, width)")
        return [tuple(example)]
    stated = stated_size(net)
    if stated and len(stated) == 3:
        return [stated]
    convolutions = (layer for layer in net.modules() if isinstance(layer, nn.Conv2d) or is_decomposed(layer))
    channels = next((layer.in_channels for layer in convolutions if hasattr(layer, "in_channels")), 3)
    usual = [(channels, side, side) for side in SIDES]
    return [stated, *usual] if stated else usual  # which may be that of other data, or two sides


def stated_size(net: nn.Module) -> tuple[int, ...] | None:
    """A network's `input_size`, unless it means something else by that name, such as the side of an image."""
    size = getattr(net, "input_size", None)
    return tuple(size) if _is_size(size) else None


def _is_size(size: Any) -> bool:
    return isinstance(size, Sequence) and len(size) > 0 and all(type(n) is int and n > 0 for n in size)


def run_on_meta(net: nn.Module, training: bool) -> tuple[tuple[int, ...], Any]:
    """The first of `sizes` that a network takes in training or evaluation mode, and what it returns, without values.

    Raises InputError if it takes none of them.
    """
    copied, candidates = on_meta(net).train(training), sizes(net)
    try:
        return _run_at_some_size(copied, candidates)
    except InputError as error:
        try:  # a graph also holds tensors that are neither parameters nor buffers, and so not on the meta device
            graph = fx.GraphModule(copied, trace(copied), type(net).__name__)
        except InputError:
            raise error from None
        return _run_at_some_size(graph, candidates)


def on_meta(net: nn.Module) -> nn.Module:
    """A copy of a network without values, made without copying them.

    Raises InputError for a network that torch cannot copy, as the older `torch.nn.utils.weight_norm` makes them.
    """
    memo = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in net.parameters()}
    try:
        return copy.deepcopy(net, memo | {id(b): b.detach().to("meta") for b in net.buffers()})
    except RuntimeError as error:
        computed = [
            f"{name}.{key}" if name else key
            for name, layer in net.named_modules()
            for key, value in vars(layer).items()
            if isinstance(value, Tensor) and not value.is_leaf
        ]
        if not computed:
            raise
        raise InputError(
            f"{computed[0]} is computed from other tensors, so that torch cannot copy the network "
            f"({first_line(error)[:60]}...); use torch.nn.utils.parametrizations, or make it a parameter (for "
            "torch.nn.utils.weight_norm: torch.nn.utils.remove_weight_norm)"
        ) from None


# Recording the forward pass

ELEMENTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.LogSigmoid),
    *(nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Hardshrink, nn.Softshrink, nn.Softplus, nn.Softsign),
    *(nn.Tanhshrink, nn.Threshold, nn.RReLU, nn.Identity),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
)
SPATIAL = ("pooling", "padding", "upsampling")  # modules of torch.nn
BATCH_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)


class _Tracer(fx.Tracer):
    """fx's tracer, with decomposed and packed layers as leaves; `where`: the module in which it failed."""

    where: str | None = None
    proxy_buffer_attributes = True  # what is computed of a buffer is recorded, rather than a constant

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return is_decomposed(module) or getattr(module, "traced_whole", False) or super().is_leaf_module(module, name)

    def call_module(self, module: nn.Module, *args, **kwargs):
        try:
            return super().call_module(module, *args, **kwargs)
        except Exception:
            self.where = self.where or self.path_of_module(module)
            raise


def trace(net: nn.Module) -> fx.Graph:
    """The operations of a network's forward pass, in the mode that it is in, with decomposed layers as one each.

    Raises InputError, naming the place, for a network that torch.fx cannot trace.
    """
    if isinstance(net, nn.Conv2d | nn.Linear) or is_decomposed(net):
        raise InputError(f"the network is one {type(net).__name__}, whose channels are its input and output")
    tracer = _Tracer()
    try:
        return tracer.trace(net)
    except Exception as error:  # whatever the network's own code raises when it meets a symbolic tensor
        place = _line_of(error) or "its forward pass"
        layer = f"layer {tracer.where}, " if tracer.where else ""
        mode = "" if net.training else " in evaluation mode"
        raise InputError(
            f"{type(net).__name__} cannot be traced{mode}: {layer}{place}: {first_line(error)}; make its forward pass "
            f"free of decisions about values and assignments into tensors, {HOW_TO_DECLARE}"
        ) from None


def _line_of(error: Exception) -> str:
    """Where in the network's code an error arose, for people: the innermost line that is not torch's or ours."""
    ours = (os.path.join(os.path.dirname(torch.__file__), ""), __file__)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(ours)]
    return f"{frames[-1].filename}:{frames[-1].lineno} ({frames[-1].line})" if frames else ""


class _Shapes(fx.Interpreter):
    """Runs a graph on the meta device, and leaves at each node what it computes."""

    def run_node(self, node: fx.Node) -> Any:
        try:
            node.meta["value"] = super().run_node(node)
        except Exception:
            self.failed = getattr(self, "failed", node)
            raise
        return node.meta["value"]

    def get_attr(self, target: str, args: tuple, kwargs: dict) -> Any:
        value = super().get_attr(target, args, kwargs)
        return value.to("meta") if isinstance(value, Tensor) else value  # a constant, or an attribute

    def call_module(self, target: str, args: tuple, kwargs: dict) -> Any:
        # Shapes pass through these, and torch takes milliseconds for a BatchNorm without values.
        if isinstance(self.fetch_attr(target), (*BATCH_NORMS, *ELEMENTWISE)) and args:
            return args[0]
        return super().call_module(target, args, kwargs)


@torch.no_grad()
def _run_at_some_size(net: nn.Module, candidates: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], Any]:
    """Run a network on meta tensors of the first size that it takes; returns that size, and what came out."""
    dtype = next((p.dtype for p in net.parameters() if p.is_floating_point()), None)
    problems = []
    for size in candidates:
        images = torch.empty(2, *size, device="meta", dtype=dtype)  # BatchNorm in training asks for two
        runner = _Shapes(net) if isinstance(net, fx.GraphModule) else net
        try:
            with torch.device("meta"):  # for tensors that a forward pass makes
                return size, runner.run(images) if isinstance(runner, _Shapes) else runner(images)
        except Exception as error:  # whatever the network's own code raises
            failed = getattr(runner, "failed", None)
            place = _place(failed) if isinstance(failed, fx.Node) else _line_of(error)
            problems.append(f"{f' at {place}' if place else ''}: {first_line(error)}")
    tried = ", ".join("×".join(map(str, size)) for size in candidates)
    decided = "" if isinstance(net, fx.GraphModule) else ", make its forward pass free of decisions about values"
    raise InputError(
        f"{net._get_name()} takes no input of size {tried}; it fails{problems[0]}; pass example=, an input or its "
        f"size (channels, height, width){decided}, {HOW_TO_DECLARE}"
    )


def _place(node: fx.Node) -> str:
    """What a node does and in which layer, for people."""
    if node.op == "call_module":
        return str(node.target)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    stack = node.meta.get("nn_module_stack")
    path = next(reversed(stack.values()))[0] if stack else ""
    return f"{name} in {path}" if path else f"{name} in the forward pass"


# Walking over the record


class Laid(NamedTuple):
    """Channels along dimension `dim` of a tensor.  shifted: by a crop-or-pad shortcut."""

    channels: Channels
    dim: int
    shifted: bool = False


HANDLERS: dict[str, Callable] = {}  # name of a function or method → what it does with channels


def handles(names: str) -> Callable:
    def register(handler: Callable) -> Callable:
        return HANDLERS.update(dict.fromkeys(names.split(), handler)) or handler

    return register


class _Walk:
    """Follows channels through graphs of one network; `wiring` is what it found."""

    def __init__(self, net: nn.Module):
        self.net, self.wiring = net, Wiring(net)
        self.laid: dict[fx.Node, Laid | None] = {}  # None: no channels, or none that can be followed
        self.counts: dict[fx.Node, Channels] = {}  # numbers → the channels whose number they depend on
        self.shapes: dict[fx.Node, tuple[Laid, range]] = {}  # shapes → whose, and of which dimensions
        self.own = _own_tensors(net)
        self.scales: set[tuple[fx.Node, fx.Node]] = set()  # (tensor of `own`, what takes it channel by channel)
        self.whole = {name: f"{name}: it shares a parameter with another layer" for name in sorted(sharing(net))}

    def follow(self, graph: fx.Graph) -> None:
        """Walk over a graph whose nodes hold what they compute."""
        for node in graph.nodes:
            try:
                self.laid[node] = getattr(self, node.op)(node)
            except Exception:  # arguments in a form that nobody thought of
                self.laid[node] = self.unknown(node)
        for node in graph.nodes:
            others = [user for user in node.users if (node, user) not in self.scales]
            if node.op == "get_attr" and self.laid[node] is None and others:
                self.whole.setdefault(str(node.target), f"{_place(others[0])}: it reads {node.target} in another way")

    def finished(self) -> Wiring:
        """The wiring, with what must stay whole wherever it was met."""
        for name, reason in self.whole.items():
            self.wiring.freeze_layer(name, reason)
        return self.wiring

    # The kinds of nodes

    def placeholder(self, node: fx.Node) -> Laid | None:
        value = node.meta["value"]
        return Laid(self.wiring.input(value.shape[1]), 1) if isinstance(value, Tensor) and value.dim() > 1 else None

    def get_attr(self, node: fx.Node) -> Laid | None:
        """A parameter or buffer outside of layers may have an entry per channel: then it is cut with them."""
        name, value = str(node.target), node.meta["value"]
        layer = name.rpartition(".")[0]
        self.whole.setdefault(layer, f"{_place(node)}: it takes a parameter of {layer}")
        long = [dim for dim, size in enumerate(value.shape) if size > 1] if name in self.own else []
        if len(long) != 1:
            return None  # which dimension has the channels, if any, shows what it meets: see `_combine_with_other`
        channels = self.wiring.unwritten(value.shape[long[0]])
        return self._declared(node, Laid(channels, long[0]), self.wiring.parameter, name, channels, long[0])

    def output(self, node: fx.Node) -> None:
        for laid in self._arguments(node):
            self.wiring.output(laid.channels)

    def call_function(self, node: fx.Node) -> Laid | None:
        function = node.target
        if getattr(function, "crops_or_pads", False) and (x := self._input(node)):
            return Laid(x.channels, x.dim, shifted=True)
        if hasattr(function, "_fields"):  # a named tuple, which networks return
            return self.output(node)
        home = (getattr(function, "__module__", None) or "torch").split(".")[0]
        known = home in ("torch", "torchvision", "_operator")  # a user's function may have any name
        return self._apply(node, HANDLERS.get(_name(node)) if known else None)

    def call_method(self, node: fx.Node) -> Laid | None:
        return self._apply(node, HANDLERS.get(node.target))

    def call_module(self, node: fx.Node) -> Laid | None:
        layer = self.net.get_submodule(node.target)
        if is_decomposed(layer) or isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            return self._written(node, layer)
        if isinstance(layer, ELEMENTWISE):
            return self._apply(node, _Walk.keep)
        if isinstance(layer, nn.Flatten):
            return self._apply(node, _Walk.flatten)
        if type(layer).__module__.startswith(tuple(f"torch.nn.modules.{kind}" for kind in SPATIAL)):
            return self._apply(node, _Walk.spatial)
        if isinstance(layer, nn.LayerNorm):
            return self._apply(node, _Walk.layer_norm)
        x = self._input(node)
        if x is None or x.shifted or x.dim != 1:
            return self.unknown(node)
        if isinstance(layer, BATCH_NORMS):
            return self._declared(node, x, self.wiring.norm, node.target, x.channels)
        if isinstance(layer, nn.PReLU):
            return self._declared(node, x, self.wiring.norm, node.target, x.channels) if layer.num_parameters > 1 else x
        if isinstance(layer, nn.GroupNorm):
            return self._declared(node, x, self.wiring.group_norm, node.target, x.channels)
        return self.unknown(node)

    def _apply(self, node: fx.Node, handler: Callable | None) -> Laid | None:
        """What a handler makes of a node; whatever has no handler freezes what it takes."""
        value = node.meta["value"]
        if not _holds_tensor(value) and _name(node) != "_assert":
            self.counts[node] = self._counted(node)
            return None
        moved = any(laid.shifted for laid in self._arguments(node))
        joins = handler in (_Walk.combine, _Walk.cat, _Walk.expand_as)
        several = sum(isinstance(arg.meta["value"], Tensor) for arg in node.all_input_nodes) > 1 and not joins
        if handler is None or several or not isinstance(value, Tensor) or (moved and handler is not _Walk.combine):
            return self.unknown(node)
        if handler is not _Walk.reshape:
            self._freeze_counts(node, node.all_input_nodes)
        return handler(self, node)

    def _counted(self, node: fx.Node) -> Channels:
        """The channels whose number a node without tensor depends on."""
        name, arguments = _name(node), node.args
        shape = self.shapes.get(arguments[0]) if name == "getitem" and isinstance(arguments[0], fx.Node) else None
        if shape and isinstance(arguments[1], int | slice):
            picked = shape[1][arguments[1]]
            if isinstance(picked, range):
                self.shapes[node] = (shape[0], picked)
            return shape[0].channels if shape[0].dim in (picked if isinstance(picked, range) else [picked]) else ()
        x = self._input(node)
        if x is None:
            return tuple(span for arg in node.all_input_nodes for span in self.counts.get(arg, ()))
        dims = self._value(node).dim()
        if name == "size" and len(arguments) == 2 and isinstance(arguments[1], int):
            return x.channels if arguments[1] % dims == x.dim else ()
        if name == "size" or (name == "getattr" and arguments[1] == "shape"):
            self.shapes[node] = (x, range(dims))
        return () if name in ("dim", "ndimension", "is_floating_point") else x.channels

    def _freeze_counts(self, node: fx.Node, counts: Sequence[Any]) -> None:
        for count in counts:
            self.wiring.freeze(
                self.counts.get(count, ()), f"{_place(node)}: it computes with the number of its channels"
            )

    # What operations do with channels

    def unknown(self, node: fx.Node, reason: str = "tracing does not follow it") -> None:
        """An operation after which channels cannot be told apart, or could not be removed."""
        self._freeze_arguments(node, reason)
        if node.op == "call_module":  # which may also stand where it can be followed
            self.whole.setdefault(node.target, f"{_place(node)}: {reason}")

    def _freeze_arguments(self, node: fx.Node, reason: str) -> None:
        for laid in self._arguments(node):
            self.wiring.freeze(laid.channels, f"{_place(node)}: {reason}")
        self._freeze_counts(node, node.all_input_nodes)

    @handles("""relu relu_ relu6 leaky_relu leaky_relu_ elu elu_ selu selu_ celu gelu silu mish sigmoid sigmoid_
        logsigmoid tanh tanh_ hardswish hardsigmoid hardtanh hardtanh_ hardshrink softshrink softplus softsign rrelu
        threshold exp log log1p expm1 sqrt rsqrt square abs neg sin cos erf sign reciprocal clamp clamp_ clip clone
        contiguous detach float half double bfloat16 to type dropout dropout1d dropout2d dropout3d alpha_dropout
        feature_dropout feature_alpha_dropout stochastic_depth""")
    def keep(self, node: fx.Node) -> Laid | None:
        """Each channel for itself, at its place."""
        return self._input(node)

    @handles("""max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
        adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d lp_pool2d
        interpolate upsample pad""")
    def spatial(self, node: fx.Node) -> Laid | None:
        """Poolings and the like: each channel for itself, while the dimensions behind it change."""
        x, value, name = self._input(node), self._value(node), _name(node)
        if node.op == "call_module":
            name = type(self.net.get_submodule(node.target)).__name__
        if name == "pad":
            changed = len(node.args[1] if len(node.args) > 1 else node.kwargs["pad"]) // 2
        else:
            changed = int(name[-2]) if name[-2:] in ("1d", "2d", "3d") else value.dim() - 2
        return x if x and x.dim < value.dim() - changed else self.unknown(node)

    @handles(
        "add add_ iadd sub sub_ isub mul mul_ imul multiply truediv itruediv div div_ true_divide pow maximum minimum"
    )
    def combine(self, node: fx.Node) -> Laid | None:
        """Sums, products and the like, element by element, with broadcasting."""
        tensors = [arg for arg in node.all_input_nodes if isinstance(arg.meta["value"], Tensor)]
        if len(tensors) == 1:
            return self.laid[tensors[0]]
        if self.laid[tensors[0]] is None:
            tensors = tensors[::-1]
        (a, b), (x, y) = (tensor.meta["value"] for tensor in tensors), (self.laid[tensor] for tensor in tensors)
        if x is None:
            return None
        dim = x.dim - a.dim()  # counted from the end, as broadcasting does
        result = Laid(x.channels, node.meta["value"].dim() + dim, x.shifted)
        size = _size(b, dim)
        if y is None:
            return self._combine_with_other(node, result, tensors[1], dim, a.shape[dim])
        if y.dim - b.dim() != dim or a.shape[dim] != size:
            return self._broadcast(node, tensors if size == 1 else tensors[::-1])
        if not x.shifted and not y.shifted:
            return self._declared(node, result, self.wiring.add, x.channels, y.channels)
        moved, y = (x, y) if x.shifted else (y, x)
        if y.shifted or "add" not in _name(node):
            return self.unknown(node)
        return self._declared(
            node, result._replace(channels=y.channels, shifted=False), self.wiring.shift, moved.channels, y.channels
        )

    def _broadcast(self, node: fx.Node, tensors: Sequence[fx.Node]) -> Laid | None:
        """Channels with a tensor that is the same for all of them, and whose own channels then stay whole."""
        (a, b), (x, y) = (tensor.meta["value"] for tensor in tensors), (self.laid[tensor] for tensor in tensors)
        if x.shifted or y.shifted or _size(b, x.dim - a.dim()) != 1:
            return self.unknown(node, "it lets channels meet that stand in other dimensions, or another number of them")
        self.wiring.freeze(y.channels, f"{_place(node)}: it meets other channels, one with all")
        return Laid(x.channels, node.meta["value"].dim() + x.dim - a.dim())

    def _combine_with_other(self, node: fx.Node, x: Laid, other: fx.Node, dim: int, size: int) -> Laid | None:
        """Channels with a tensor in which none are known: a parameter with an entry per channel, or the same for all.

        dim: where they meet, from the end.  size: the number of channels.
        """
        value = other.meta["value"]
        if x.shifted:
            return self.unknown(node)
        if _size(value, dim) == 1:
            return x
        if str(other.target) not in self.own or other.op != "get_attr" or _size(value, dim) != size:
            return self.unknown(node, "its other side has channels that cannot be followed")
        self.scales.add((other, node))
        return self._declared(node, x, self.wiring.parameter, str(other.target), x.channels, value.dim() + dim)

    @handles("cat concat concatenate")
    def cat(self, node: fx.Node) -> Laid | None:
        parts = node.args[0] if node.args else node.kwargs["tensors"]
        if isinstance(parts, fx.Node):
            return None  # a list that an operation made, which froze what it took
        dim = (node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % node.meta["value"].dim()
        laid = [self.laid[part] for part in parts]
        if not any(laid):
            return None
        if any(x is not None and x.dim != dim for x in laid):
            return self.unknown(node)
        w = self.wiring
        channels = [
            x.channels if x else w.input(part.meta["value"].shape[dim]) for x, part in zip(laid, parts, strict=True)
        ]
        return Laid(w.cat(*channels), dim)

    @handles("mean sum amax amin")
    def reduce(self, node: fx.Node) -> Laid | None:
        x, value = self._input(node), self._value(node)
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        if x is None or dims is None or isinstance(dims, fx.Node):
            return self.unknown(node, "it mixes all channels")
        gone = {dim % value.dim() for dim in ([dims] if isinstance(dims, int) else dims)}
        if x.dim in gone:
            return self.unknown(node, "it mixes all channels")
        kept = node.meta["value"].dim() == value.dim()
        return x if kept else Laid(x.channels, x.dim - sum(dim < x.dim for dim in gone))

    @handles("layer_norm")
    def layer_norm(self, node: fx.Node) -> Laid | None:
        x = self._input(node)
        if node.op == "call_module":
            normalised = self.net.get_submodule(node.target).normalized_shape
        else:
            normalised = node.args[1] if len(node.args) > 1 else node.kwargs["normalized_shape"]
            normalised = fx.node.map_arg(normalised, lambda size: size.meta["value"])
        if x is None or x.dim < self._value(node).dim() - len(normalised):
            return x
        self.unknown(node, "it normalises over all channels, so that removing one changes the others")
        return x

    @handles("softmax log_softmax")
    def softmax(self, node: fx.Node) -> Laid | None:
        x, dim = self._input(node), node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        if x and isinstance(dim, int) and dim % self._value(node).dim() != x.dim:
            return x
        return self.unknown(node, "it mixes all channels")

    @handles("permute transpose swapaxes")
    def permute(self, node: fx.Node) -> Laid | None:
        x, dims = self._input(node), [*node.args[1:], *node.kwargs.values()]
        if x is None:
            return None
        order = list(range(self._value(node).dim()))
        if _name(node) == "permute":
            order = [dim % len(order) for dim in (dims[0] if isinstance(dims[0], list | tuple) else dims)]
        else:
            a, b = (dim % len(order) for dim in dims)
            order[a], order[b] = order[b], order[a]
        return Laid(x.channels, order.index(x.dim))

    @handles("flatten unsqueeze squeeze")
    def flatten(self, node: fx.Node) -> Laid | None:
        if _name(node) == "squeeze" and len(node.args) + len(node.kwargs) < 2:
            return self.unknown(node, "squeeze without a dimension also removes a channel axis of width 1")
        return self._reshaped(node)

    @handles("view reshape")
    def reshape(self, node: fx.Node) -> Laid | None:
        """A reshape whose size for the channels follows from the tensor, rather than being a number in the code."""
        x = self._reshaped(node)
        if x is None:
            return None
        sizes = node.args[1:] or tuple(node.kwargs.values())
        sizes = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], list | tuple) else sizes
        if len(sizes) != node.meta["value"].dim():
            return self.unknown(node)
        size = sizes[x.dim]
        self._freeze_counts(node, [other for other in sizes if other is not size and isinstance(other, fx.Node)])
        if size == -1:
            return x
        if not (isinstance(size, fx.Node) and _name(size) in ("size", "getitem") and self.counts.get(size)):
            return self.unknown(node, f"it reshapes channels to {size}, which is written down and does not follow them")
        return self._declared(node, x, self.wiring.add, x.channels, self.counts[size])

    def _reshaped(self, node: fx.Node) -> Laid | None:
        """Where the channels stand after a change of shape that keeps them outermost of what they are merged with."""
        x, before, after = self._input(node), self._value(node).shape, node.meta["value"].shape
        if x is None:
            return None
        inner = math.prod(before[x.dim + 1 :])
        for dim in range(len(after)):
            positions, rest = divmod(after[dim], before[x.dim])
            if (
                math.prod(after[:dim]) == math.prod(before[: x.dim])
                and not rest
                and positions
                and not inner % positions
            ):
                return Laid(self.wiring.flatten(x.channels, positions), dim)
        return self.unknown(node, "it splits channels, or merges them with what stands outside of them")

    @handles("expand_as")
    def expand_as(self, node: fx.Node) -> Laid | None:
        x, y = (self.laid[arg] for arg in node.args[:2])
        before, after = self._value(node), node.meta["value"]
        if x and y and x.dim == y.dim and before.dim() == after.dim() and before.shape[x.dim] == after.shape[x.dim]:
            return self._declared(node, x, self.wiring.add, x.channels, y.channels)
        return self.unknown(node)

    @handles("getitem")
    def getitem(self, node: fx.Node) -> Laid | None:
        """Slices and single ones of rows and columns, and new dimensions."""
        x, index = self._input(node), node.args[1]
        if x is None:
            return None
        index = list(index) if isinstance(index, tuple) else [index]
        if not all(part is None or part is ... or type(part) in (int, slice) for part in index):
            return self.unknown(node)
        rest = [slice(None)] * (self._value(node).dim() - sum(part is not None and part is not ... for part in index))
        place = next((at for at, part in enumerate(index) if part is ...), len(index))
        index[place : place + 1] = rest
        own = [at for at, part in enumerate(index) if part is not None][x.dim]  # where the index has the channels
        if index[own] != slice(None):
            return self.unknown(node, "it takes some of the channels by their position")
        return Laid(x.channels, sum(type(part) is not int for part in index[:own]))

    # What layers do with channels

    def _written(self, node: fx.Node, layer: nn.Module) -> Laid:
        """The filters of a convolution or linear layer."""
        x, value, name = self._input(node), self._value(node), node.target
        linear = hasattr(layer, "out_features")
        dim = value.dim() - 1 if linear else 1
        if x is not None and (x.shifted or x.dim != dim):
            x = self._freeze_arguments(node, "it reads them in another dimension")
        read = x.channels if x else self.wiring.input(value.shape[dim])
        try:
            self.wiring.layer(name, read)
        except ValueError as error:
            self.unknown(node, str(error))
        return Laid(self.wiring.written(name), dim)

    def _declared(self, node: fx.Node, x: Laid, declare: Callable, *arguments) -> Laid:
        """x after what `declare` says of it, or frozen with all that meets there."""
        try:
            declare(*arguments)
        except ValueError as error:
            self.unknown(node, str(error))
            self.wiring.freeze(x.channels, f"{_place(node)}: {error}")
            if isinstance(arguments[0], str):  # what the layer or parameter met before stays whole, too
                self.whole.setdefault(arguments[0], f"{_place(node)}: {error}")
        return x

    # What nodes hold

    def _arguments(self, node: fx.Node) -> list[Laid]:
        return [self.laid[arg] for arg in node.all_input_nodes if self.laid[arg] is not None]

    def _input(self, node: fx.Node) -> Laid | None:
        """The first argument, by position or as `input`."""
        first = node.args[0] if node.args else node.kwargs.get("input", next(iter(node.kwargs.values()), None))
        return self.laid.get(first) if isinstance(first, fx.Node) else None

    def _value(self, node: fx.Node) -> Tensor:
        first = node.args[0] if node.args else node.kwargs.get("input", next(iter(node.kwargs.values()), None))
        return first.meta["value"]


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _holds_tensor(value: Any) -> bool:
    return any(isinstance(part, Tensor) for part in _parts(value))


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for part in value:
            yield from _parts(part)
    elif isinstance(value, dict):
        yield from _parts(list(value.values()))
    else:
        yield value


def _parameters(net: nn.Module) -> list[tuple[str, str]]:
    """(layer, parameter) of every parameter, under each of its names."""
    return [(name, key) for name, layer in net.named_modules() for key, p in layer._parameters.items() if p is not None]


def sharing(net: nn.Module) -> set[str]:
    """Layers that share a parameter with another layer."""
    owners: dict[int, set[str]] = {}
    for name, key in _parameters(net):
        owners.setdefault(id(net.get_submodule(name)._parameters[key]), set()).add(name)
    return set().union(*(names for names in owners.values() if len(names) > 1))


def _own_tensors(net: nn.Module) -> set[str]:
    """Parameters and buffers outside of torch's own layers, known by one name only: those that may be cut by it."""
    names: dict[int, list[str]] = {}
    for path, layer in net.named_modules():
        for key, tensor in [*layer._parameters.items(), *layer._buffers.items()]:
            names.setdefault(id(tensor), []).append(f"{path}.{key}" if path else key)
    alone = {known[0] for known in names.values() if len(known) == 1}
    return {name for name in alone if not _is_torchs(net, name.rpartition(".")[0])}


def _size(tensor: Tensor, dim: int) -> int:
    """The size of a dimension counted from the end, as broadcasting sees it."""
    return tensor.shape[dim] if -dim <= tensor.dim() else 1


def _is_torchs(net: nn.Module, name: str) -> bool:
    """Whether a layer is torch's own, and has slicers of its own."""
    layer = net.get_submodule(name)
    return is_decomposed(layer) or type(layer).__module__.startswith("torch.nn")
