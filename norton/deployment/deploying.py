"""Networks for inference: the same function, in the form that is fastest on this machine for this input.

BatchNorm is folded into the layer before it, each decomposed layer takes one of its exact forms
(`norton.deployment.exact_forms`), and the memory format is chosen; in channels-last on a CPU, weights are packed
(`norton.deployment.onednn`).  What is fastest is measured: each form of each layer alone, then in the whole network,
where neighbouring choices are tried too, since a layer alone does not tell what it costs those around it.  The dense
form of all layers is always among what is tried.
"""

import copy
import hashlib
import json
import operator
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_origin

import torch
from rich.progress import Progress, track
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized
from torchvision.ops import FrozenBatchNorm2d

import norton
from norton.common.errors import InputError, first_line, warn
from norton.common.files import write_json
from norton.deployment.exact_forms import DENSE, FUSED, forms, scale_outputs_
from norton.deployment.onednn import PackedConv2d, join_relus_, pack_
from norton.graph.layers import is_decomposed
from norton.graph.tracing import on_meta, trace
from norton.measure.latency import Batch, keep_freed_memory, latencies, timed

WAYS = ("deployed", "eager")  # to time networks
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}  # of outputs, relative; 5% in half precision
_SECONDS = 0.03  # for which a layer is timed in each form
_TURNS = 40  # at most
_HOPELESS = 2  # forms that take so many times the best one are not timed further
_NEAR = 1.3  # times the best form of a layer alone: what is tried in the whole network too
_TRIALS = 8  # of such, at most
_PATIENCE = 45  # seconds after which no more of them are tried
_WON = 0.98  # of the time: less than that counts as faster
_KEPT = ("arch", "num_classes", "input_size")  # what networks say of themselves


@dataclass(frozen=True)
class Deployment:
    """What was chosen for a network, with the times it came from.

    forms: decomposed layer → form.  channels_last: the memory format.  layers: decomposed layer → `form, format` →
    milliseconds, alone, the least of several.  networks: what was tried → milliseconds of the whole network, the lower
    quartile, `chosen` and `dense` last; all in turns.  network, example, machine, torch, norton: what that is true of.
    """

    forms: dict[str, str]
    channels_last: bool
    layers: dict[str, dict[str, float]]
    networks: dict[str, float]
    network: str
    example: str
    machine: str
    torch: str
    norton: str

    def save(self, path: str | Path) -> Path:
        """Write it as JSON."""
        return write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> "Deployment":
        """Read what `save` wrote.  Raises InputError for any other file."""
        try:
            found = cls(**json.loads(Path(path).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path} is no saved deployment ({error}); Deployment.save writes them") from None
        for field in fields(cls):
            if not isinstance(getattr(found, field.name), get_origin(field.type) or field.type):
                raise InputError(f"{path} is no saved deployment ({field.name}); Deployment.save writes them")
        return found

    def rows(self) -> list[dict[str, Any]]:
        """A row per decomposed layer."""
        layout = _format(self.channels_last)
        return [
            {
                "layer": name,
                "form": form,
                "ms": _shown(self.layers[name].get(f"{form}, {layout}")),
                "dense, ms": _shown(self.layers[name].get(f"{DENSE}, {layout}")),
                "tried": ", ".join(f"{key} {_shown(ms)}" for key, ms in self.layers[name].items()),
            }
            for name, form in self.forms.items()
        ]

    def counts(self) -> dict[str, int]:
        """Form → how many layers take it."""
        return {form: list(self.forms.values()).count(form) for form in dict.fromkeys(self.forms.values())}

    def summary(self) -> str:
        """The choice in a few words: `depthwise, channels-last`, or `9 depthwise + 4 dense, contiguous`."""
        counts = self.counts()
        mixed = " + ".join(f"{count} {form}" for form, count in sorted(counts.items(), key=lambda one: -one[1]))
        return f"{mixed if len(counts) > 1 else next(iter(counts), DENSE)}, {_format(self.channels_last)}"

    def sentence(self) -> str:
        """The choice in a line."""
        counts = self.counts()
        said = ", ".join(f"{count} layers {form}" for form, count in counts.items()) or "no decomposed layer"
        text = f"{said}; {_format(self.channels_last)}; {self.networks['chosen']:.2f} ms"
        if any(form != DENSE for form in counts):
            return f"{text}, {self.networks['dense']:.2f} ms with all layers dense"
        return text + ("; no form of the decomposed layers beats their dense one here" if counts else "")


@torch.no_grad()  # not inference_mode, whose tensors can neither be converted nor loaded into
def deploy(
    net: nn.Module,
    example: Tensor,
    *,
    choice: Deployment | str | Path | None = None,
    compile: bool = False,
    repeats: int = 5,
    progress: bool = False,
) -> nn.Module:
    """A network for inference on batches like `example` (N, C, H, W), with the same outputs as `net.eval()`.

    choice: of a network deployed before (its `.deployment`, or the file that was saved to), taken as it is; by default
    it is measured here, `repeats` times in the whole network.  compile: by `torch.compile`, which takes minutes for
    large networks, for use under torch.inference_mode.  The result has its `Deployment` as `.deployment`; batches may
    have other sizes, for which it need not be the fastest choice.  On a CPU the process keeps memory that it frees from
    then on (`keep_freed_memory`), and the weights are held twice (`norton.deployment.onednn`, also for
    what is not a number).

    A network in training mode is deployed as for evaluation, with a warning.  Raises InputError for an example that the
    network does not take, a network that torch.fx cannot trace, outputs that differ by more than rounding, and a choice
    of another network, input or machine.
    """
    if net.training:
        warn("the network is in training mode; deployed as for evaluation")
    wanted = [(example, check_example(net, example))]
    noise = torch.randn_like(example)  # for what is wrong in a folded layer may not show in an example of zeros
    wanted.append((noise, check_example(net, noise)))
    if example.device.type == "cpu":
        keep_freed_memory()
    folded = fold(net)
    check_traced(folded, example)
    known = identity(folded, example)
    if choice is None:
        with Progress(transient=True, disable=not progress) as bar, torch.inference_mode():
            choice = _Search(folded, example, repeats, bar).choose(known)
    else:
        choice = choice if isinstance(choice, Deployment) else Deployment.load(choice)
        check_choice(choice, known, folded)
    deployed = assemble(folded, choice.forms, choice.channels_last)
    for images, outputs in wanted:
        check_outputs(deployed(images), outputs, example.dtype)
    for name in _KEPT:
        if hasattr(net, name):
            setattr(deployed, name, getattr(net, name))
    deployed.deployment = choice
    return compiled(deployed, example) if compile else deployed


def deploy_alike(
    nets: Mapping[str, nn.Module],
    batch: Batch,
    way: str = "deployed",
    *,
    repeats: int = 3,
    deploy: Callable[..., nn.Module] | None = None,
    progress: bool = False,
) -> dict[str, nn.Module]:
    """Networks to be timed against each other on a batch, on its device: all deployed for it, or all as they are.

    way: one of `WAYS`.  repeats: of what is tried in whole networks.  deploy: what does it, `deploy` by default; then
    networks of equal shapes share a choice while the process runs.  Where one of them cannot be deployed all stay as
    they are, and a `NortonWarning` says so, for what is timed in different ways does not compare.
    """
    check_way(way)
    if way == "eager":
        return dict(nets)
    one, found = deploy or _deploy_once, {}
    for name, net in track(nets.items(), "choose forms", transient=True, disable=not progress):
        try:
            found[name] = one(copy.deepcopy(net).to(batch[0].device).eval(), batch, repeats=repeats)
        except InputError as error:
            warn(f"networks are timed as they are, not deployed; {name}: {error}")
            return dict(nets)
    return found


def check_way(way: Any) -> None:
    """Raise InputError for a way to time networks that there is not."""
    if way not in WAYS:
        raise InputError(f"latency is {way!r}; choose {' or '.join(WAYS)}")


_choices: dict[tuple[str, ...], Deployment] = {}


def _deploy_once(net: nn.Module, example: Tensor, repeats: int) -> nn.Module:
    """`deploy`, measured once for networks of equal shapes."""
    key = tuple(identity(fold(net), example).values())
    deployed = deploy(net, example, choice=_choices.get(key), repeats=repeats)
    _choices[key] = deployed.deployment
    return deployed


# The network that is the same everywhere


@torch.no_grad()
def fold(net: nn.Module) -> fx.GraphModule:
    """A network for evaluation with each BatchNorm folded into the convolution or linear layer that it alone follows.

    Dropout goes too.  Decomposed layers stay what they are; parameters have no gradients.  Raises InputError for a
    network that torch.fx cannot trace.
    """
    single = isinstance(net, nn.Conv2d | nn.Linear) or is_decomposed(net)
    net = copy.deepcopy(nn.Sequential(net) if single else net).eval().requires_grad_(False)
    _thaw_(net)
    graph = trace(net)
    folded = fx.GraphModule(net, graph, type(net).__name__)
    calls = [folded.get_submodule(node.target) for node in graph.nodes if node.op == "call_module"]
    for node in list(graph.nodes):
        if node.op == "call_method" and node.target == "view":
            node.target = "reshape"  # which channels-last images need
        if node.op != "call_module":
            continue
        layer, before = folded.get_submodule(node.target), node.all_input_nodes[0]
        if isinstance(layer, nn.Identity | nn.modules.dropout._DropoutNd):
            _skip_(graph, node)
        elif _is_norm(layer) and before.op == "call_module" and len(before.users) == 1:
            writer = folded.get_submodule(before.target)
            alone = all(sum(call is one for call in calls) == 1 for one in (writer, layer))
            if alone and _folds_into(layer, writer) and not _bound(folded, writer):
                scale_outputs_(writer, *_affine(layer))
                _skip_(graph, node)
    graph.lint()
    folded.delete_all_unused_submodules()
    folded.recompile()
    return folded.requires_grad_(False)


def _thaw_(net: nn.Module) -> None:
    """Make torchvision's frozen BatchNorms plain ones, which torch.fx keeps whole."""
    for name, layer in list(net.named_modules()):
        if isinstance(layer, FrozenBatchNorm2d):
            norm = nn.BatchNorm2d(len(layer.weight), layer.eps, device=layer.weight.device, dtype=layer.weight.dtype)
            norm.load_state_dict(layer.state_dict(), strict=False)
            net.set_submodule(name, norm.eval().requires_grad_(False))


def _is_norm(layer: nn.Module) -> bool:
    return isinstance(layer, _BatchNorm) and layer.running_mean is not None


def _folds_into(norm: nn.Module, writer: nn.Module) -> bool:
    """Whether a BatchNorm scales the outputs of a layer, as far as types tell."""
    if type(writer) in (nn.Conv2d, PackedConv2d):
        return isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm) and not getattr(writer, "relu", False)
    if is_decomposed(writer) and writer.composed_weight().ndim == 4:
        return isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm)
    return type(writer) is nn.Linear and isinstance(norm, nn.BatchNorm1d)


def _bound(net: fx.GraphModule, layer: nn.Module) -> bool:
    """Whether something else computes or uses a layer's weights, so that they cannot be scaled."""
    own = {id(parameter) for parameter in layer.parameters()}
    others = [id(p) for module in net.modules() for p in module._parameters.values() if p is not None and id(p) in own]
    read = {id(_attribute(net, node.target)) for node in net.graph.find_nodes(op="get_attr")}
    hooks = any(part._forward_hooks or part._forward_pre_hooks for part in layer.modules())
    return len(others) > len(own) or bool(own & read) or hooks or is_parametrized(layer)


def _attribute(net: nn.Module, path: str) -> Any:
    return operator.attrgetter(path)(net)


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def _skip_(graph: fx.Graph, node: fx.Node) -> None:
    node.replace_all_uses_with(node.all_input_nodes[0])
    graph.erase_node(node)


def assemble(folded: fx.GraphModule, chosen: Mapping[str, str], channels_last: bool) -> fx.GraphModule:
    """A copy with these forms of its decomposed layers; those that are not named are dense."""
    net, made = copy.deepcopy(folded), {}
    for name, layer in decomposed_layers(net).items():
        made[layer] = forms(layer)[chosen.get(name, DENSE)]
    for name, layer in list(net.named_modules(remove_duplicate=False)):
        if layer in made:
            net.set_submodule(name, made[layer])
    if channels_last:
        images = next(node for node in net.graph.nodes if node.op == "placeholder")  # others have their defaults
        with net.graph.inserting_after(images):
            laid = net.graph.call_method("contiguous", (images,), {"memory_format": torch.channels_last})
        images.replace_all_uses_with(laid, delete_user_cb=lambda user: user is not laid)
        for parameter in net.parameters():  # 5-D ones have another format
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        net = join_relus_(pack_(net))
    return net


def decomposed_layers(net: fx.GraphModule) -> dict[str, nn.Module]:
    """First name → layer."""
    return {name: layer for name, layer in net.named_modules() if is_decomposed(layer)}


def compiled(net: nn.Module, example: Tensor) -> nn.Module:
    """By torch.compile, once run under torch.inference_mode, for which it is: elsewhere torch compiles it anew.

    Raises InputError where that does not work on this machine.
    """
    fast = torch.compile(net)
    try:
        with torch.inference_mode():
            fast(example)
    except Exception as error:  # whatever its back end and the compiler below it raise
        raise InputError(f"torch.compile does not work here ({first_line(error)}); deploy without compile") from error
    return fast


# What is fastest


class _Search:
    """Times of forms and of whole networks on one example."""

    def __init__(self, folded: fx.GraphModule, example: Tensor, repeats: int, bar: Progress):
        self.folded, self.example, self.repeats, self.bar = folded, example, repeats, bar
        self.formats = (True, False) if example.ndim == 4 else (False,)
        self.layers = decomposed_layers(folded)
        self.inputs = input_shapes(folded, example, self.layers)
        self.groups: dict[tuple, list[str]] = {}  # layers of the same geometry and input are one choice
        for name in self.layers:
            if name in self.inputs:
                self.groups.setdefault(self._key(name), []).append(name)
        self.alone: dict[tuple, dict[tuple[str, bool], float]] = {}
        self.networks: dict[str, float] = {}

    def _key(self, name: str) -> tuple:
        layer = self.layers[name]
        return type(layer), str(layer), layer.bias is not None, self.inputs[name]

    def choose(self, known: Mapping[str, str]) -> Deployment:
        start = time.perf_counter()
        for key, names in self.bar.track(self.groups.items(), description="time layers"):
            self.alone[key] = self._time_forms(forms(self.layers[names[0]]), key[-1])
        starts: dict[str, tuple[Mapping[tuple, str], bool]] = {}
        for channels_last in self.formats:
            if best := {key: self._ranked(key, channels_last)[0] for key in self.groups}:
                starts[f"best alone, {_format(channels_last)}"] = best, channels_last
            starts[f"{DENSE}, {_format(channels_last)}"] = dict.fromkeys(self.groups, DENSE), channels_last
        starts |= self._uniform()
        task = self.bar.add_task("time networks", total=2 + _TRIALS)
        times = self._compare(starts)
        self.bar.advance(task)
        self.networks |= times
        chosen, channels_last = starts[min(times, key=times.get)]
        dense_format = starts[min((name for name in starts if name.startswith(DENSE)), key=times.get)][1]
        for key, form in self._neighbours(chosen, channels_last):
            if time.perf_counter() - start > _PATIENCE:
                break
            trial = chosen | {key: form}
            pair = self._compare({"before": (chosen, channels_last), "after": (trial, channels_last)})
            self.networks[f"{form}: {', '.join(self.groups[key])}"] = pair["after"]
            if pair["after"] < _WON * pair["before"]:
                chosen = trial
            self.bar.advance(task)
        chosen, channels_last = self._final(chosen, channels_last, dense_format)
        self.bar.update(task, completed=2 + _TRIALS)
        return Deployment(
            forms=self._by_layer(chosen),
            channels_last=channels_last,
            layers={
                name: {f"{form}, {_format(last)}": ms for (form, last), ms in self.alone[key].items()}
                for key, names in self.groups.items()
                for name in names
            },
            networks=self.networks,
            **known,
        )

    def _time_forms(self, candidates: Mapping[str, nn.Module], shape: tuple[int, ...]) -> dict[tuple[str, bool], float]:
        """(form, channels-last) → milliseconds, the least of several turns, for what disturbs only adds; hopeless forms
        have few turns.
        """
        x = torch.randn(shape, device=self.example.device).to(self.example.dtype)
        calls = {}
        for channels_last in self.formats:
            layout = torch.channels_last if channels_last and x.ndim == 4 else torch.contiguous_format
            for name, form in candidates.items():
                form = copy.deepcopy(form).to(memory_format=layout)
                calls[name, channels_last] = pack_(form) if channels_last else form, x.contiguous(memory_format=layout)
        for key in list(calls):  # what only the first pass makes does not count
            try:
                timed(*calls[key])
            except Exception as error:  # whatever triton and the compiler below it raise on a GPU that we have not seen
                if key[0] != FUSED:
                    raise
                warn(f"{FUSED} is left out, it fails here: {first_line(error)}")
                del calls[key]
        found = {key: min(timed(*call) for _ in range(2)) for key, call in calls.items()}
        near = [key for key in calls if found[key] <= _HOPELESS * min(found.values())]
        for _ in range(min(_TURNS, 1 + int(_SECONDS / min(found.values())))):
            for key in near:
                found[key] = min(found[key], timed(*calls[key]))
        return {key: 1000 * seconds for key, seconds in found.items()}

    def _uniform(self) -> dict[str, tuple[dict[tuple, str], bool]]:
        """Name → one form for all layers that have it, in the format in which the layers alone are faster.

        Such a choice does not hang on whether each layer was timed undisturbed.
        """
        sums = {
            last: sum(self.alone[key][self._ranked(key, last)[0], last] for key in self.groups) for last in self.formats
        }
        last = min(sums, key=sums.get)
        names = dict.fromkeys(name for key in self.groups for name, _ in self.alone[key] if name != DENSE)
        return {
            f"{name}, {_format(last)}": (
                {key: name if (name, last) in self.alone[key] else DENSE for key in self.groups},
                last,
            )
            for name in names
        }

    def _ranked(self, key: tuple, channels_last: bool) -> list[str]:
        own = {form: ms for (form, last), ms in self.alone[key].items() if last == channels_last}
        return sorted(own, key=own.get)

    def _neighbours(self, chosen: Mapping[tuple, str], channels_last: bool) -> list[tuple[tuple, str]]:
        """Changes of one choice that may win, those first that are nearest in time alone."""
        near = []
        for key, names in self.groups.items():
            own = self.alone[key]
            for form in self._ranked(key, channels_last):
                lost = own[form, channels_last] - own[chosen[key], channels_last]
                if form != chosen[key] and own[form, channels_last] <= _NEAR * own[chosen[key], channels_last]:
                    near.append((lost * len(names), key, form))
        return [(key, form) for _, key, form in sorted(near, key=operator.itemgetter(0))[:_TRIALS]]

    def _final(
        self, chosen: Mapping[tuple, str], channels_last: bool, dense_format: bool
    ) -> tuple[Mapping[tuple, str], bool]:
        """The choice, or all layers dense where it is not faster than that."""
        dense = dict.fromkeys(self.groups, DENSE)
        if chosen == dense:
            times = self._compare({"dense": (dense, dense_format)})
            self.networks |= {"chosen": times["dense"], "dense": times["dense"]}
            return dense, dense_format
        times = self._compare({"chosen": (chosen, channels_last), "dense": (dense, dense_format)}, 2 * self.repeats)
        if times["chosen"] < times["dense"]:
            self.networks |= times
            return chosen, channels_last
        self.networks |= {"chosen": times["dense"], "dense": times["dense"]}
        return dense, dense_format

    def _by_layer(self, chosen: Mapping[tuple, str]) -> dict[str, str]:
        return {name: chosen[key] for key, names in self.groups.items() for name in names}

    def _compare(
        self, tried: Mapping[str, tuple[Mapping[tuple, str], bool]], repeats: int | None = None
    ) -> dict[str, float]:
        """Name → milliseconds of the whole network, the lower quartile: what disturbs only adds."""
        nets = {name: assemble(self.folded, self._by_layer(of), last) for name, (of, last) in tried.items()}
        times = latencies(nets, self.example, repeats=repeats or self.repeats)
        return {name: time.quartiles[0] for name, time in times.items()}


def input_shapes(net: fx.GraphModule, example: Tensor, layers: Mapping[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """Layer → the shape of what it reads first; layers that are not called are left out."""
    found: dict[str, tuple[int, ...]] = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, named, name=name: found.setdefault(name, tuple([*args, *named.values()][0].shape)) and None,
            with_kwargs=True,
        )
        for name, layer in layers.items()
    ]
    net(example)
    for hook in hooks:
        hook.remove()
    return found


# Checks


def check_example(net: nn.Module, example: Tensor) -> Any:
    """What a network gives for an example in evaluation mode; raises InputError for one that it does not take."""
    if not isinstance(example, Tensor) or not example.is_floating_point() or not example.numel():
        what = f"{example.dtype} {tuple(example.shape)}" if isinstance(example, Tensor) else type(example).__name__
        raise InputError(f"example is {what}; give a batch of images (N, C, H, W) as a floating-point tensor")
    if (one := next(net.parameters(), None)) is not None and (one.dtype, one.device) != (example.dtype, example.device):
        raise InputError(
            f"the example is {example.dtype} on {example.device}, the network {one.dtype} on {one.device}; "
            "give both the same with .to()"
        )
    on_meta(net)  # which says why, if it cannot be copied
    net = copy.deepcopy(net).eval()
    try:
        return net(example)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise InputError(
            f"{type(net).__name__} does not take an example of shape {tuple(example.shape)}: {first_line(error)}"
        ) from None


def check_outputs(found: Any, wanted: Any, dtype: torch.dtype) -> None:
    """Raise InputError where outputs differ by more than rounding."""
    tolerance = TOLERANCE.get(dtype, 0.05)
    for own, other in zip(tensors(found), tensors(wanted), strict=True):
        finite = other.isfinite()
        if not torch.equal(own[~finite].nan_to_num(), other[~finite].nan_to_num()):
            raise InputError("the deployed network's outputs differ where the network's are not finite")
        own, other = own[finite].double(), other[finite].double()
        scale = other.abs().max().item() if other.numel() else 0.0
        error = (own - other).abs().max().item() if other.numel() else 0.0
        if not error <= tolerance * max(scale, torch.finfo(dtype).tiny):
            raise InputError(
                f"the deployed network's outputs differ by {error:.2g}, relative to {scale:.2g}, which is above "
                f"{tolerance:g}: its weights have values out of proportion (deploy in float64 to see whether), or its "
                "forward pass does what tracing does not see"
            )


def tensors(outputs: Any) -> list[Tensor]:
    """The tensors of what a network returns, in order."""
    if isinstance(outputs, Tensor):
        return [outputs]
    values = outputs.values() if isinstance(outputs, Mapping) else outputs if isinstance(outputs, list | tuple) else []
    return [tensor for value in values for tensor in tensors(value)]


def check_traced(folded: fx.GraphModule, example: Tensor) -> None:
    """Raise InputError where the recorded forward pass does not run as the network does."""
    try:
        folded(example)
    except Exception as error:  # whatever its operations raise
        raise InputError(
            f"the forward pass that torch.fx recorded does not run ({first_line(error)}); it may hang on arguments "
            "with defaults: give them their values in a small module around the network"
        ) from error


def check_choice(choice: Deployment, known: Mapping[str, str], folded: fx.GraphModule) -> None:
    """Raise InputError for a choice that was made for something else, or by hand for layers or forms there are not."""
    for name, now in known.items():
        if (then := getattr(choice, name)) != now:
            raise InputError(f"the saved choice is of another {name}: {then}, here {now}; measure anew (choice=None)")
    layers = decomposed_layers(folded)
    for name, form in choice.forms.items():
        if name not in layers:
            raise InputError(f"the choice has a form for {name}, which is no decomposed layer of the network")
        if form not in (known := forms(layers[name])):
            raise InputError(f"the choice has {name} as {form!r}; it can be {', '.join(known)}")


def identity(folded: fx.GraphModule, example: Tensor) -> dict[str, str]:
    """What a choice is true of."""
    return {
        "network": fingerprint(folded),
        "example": f"{'×'.join(map(str, example.shape))} {str(example.dtype).removeprefix('torch.')}",
        "machine": machine(example.device),
        "torch": torch.__version__,
        "norton": norton.__version__,
    }


def fingerprint(folded: fx.GraphModule) -> str:
    """What tells networks of other shapes apart, whatever their weights."""
    shapes = {name: (tuple(value.shape), str(value.dtype)) for name, value in folded.state_dict().items()}
    layers = {name: str(layer) for name, layer in folded.named_modules() if name}
    text = repr((sorted(shapes.items()), sorted(layers.items()), str(folded.graph)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def machine(device: torch.device) -> str:
    """What times depend on: the device, and on a CPU the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {torch.get_num_threads()} threads"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _format(channels_last: bool) -> str:
    return "channels-last" if channels_last else "contiguous"


def _shown(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds:.3g}"
