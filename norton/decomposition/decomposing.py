"""`norton.decompose`: the layers of a network decomposed, for the nearest weights or the nearest outputs."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rich.progress import track
from torch import Tensor, nn

from norton.calibration import Calibration, ImageSource, Metric, fit_to_outputs, read_images
from norton.calibration.batches import Images
from norton.common.errors import warn
from norton.decomposition.methods import DECOMPOSITIONS
from norton.decomposition.options import DecomposeOptions
from norton.decomposition.ranks import RankSetting, layer_rules, resolve_rank
from norton.graph.copies import copied, keep_hooks_, replace_
from norton.graph.inputs import Example, remember_example_
from norton.graph.layers import check_has_layers, check_has_values, in_layout_of, network_in
from norton.graph.plan import OPERATIONS, record_step
from norton.graph.wrapping import kept_like_

# What torch's layers say of themselves.
_SETTINGS = {key for kind in (nn.Conv2d(1, 1, 1), nn.ConvTranspose2d(1, 1, 1), nn.Linear(1, 1)) for key in vars(kind)}


def decompose(
    net: nn.Module,
    rank: RankSetting | Mapping[str, RankSetting | None],
    method: str = "cp",
    *,
    skip: Iterable[str] | None = None,
    seed: int = 0,
    objective: str = "auto",
    images: ImageSource | None = None,
    calibration: Calibration | None = None,
    example: Example | None = None,
    progress: bool = False,
    **options: Any,
) -> nn.Module:
    """A copy of `net` with the layers decomposed that the method takes; works on any module.

    Precision, memory format, DataParallel and torch.compile stay as they are.  Layers whose weights the network itself
    reads, or that it calls by references that cannot be replaced, are left whole, with a warning.  What was frozen
    stays frozen.  example: what the network takes, by which that is found, see `norton.prune`.

    rank, skip: which layers and how far, see `layer_ranks`.  options: the method's own, such as `starts` of `cp`.
    progress: show a bar over the layers.

    objective: `weights`, the nearest weights; or `outputs`, the nearest outputs on calibration images, see
    `norton.calibration.outputs`; the means of BatchNorms follow.  `auto` is `outputs` where images are given, and
    `weights` where they are None; `outputs` warns then.  images: (N, C, H, W), batches of what the network takes, or a
    DataLoader, see `norton.calibration.read_images`; labels are left out.  calibration: how they are used, a
    `Calibration`.

    Raises InputError for an unknown method, a bad rank or pattern, a weight that is not finite, and images that do not
    fit the network.
    """
    given, net = net, network_in(net)
    check_has_layers(net)
    check_has_values(net)
    how = DecomposeOptions(method, skip, seed, objective, options)
    rules = layer_rules(net, rank, skip, method, example)  # of the network itself: functions may hold its layers
    net = copied(net)
    remember_example_(net, example)
    decomposition, options = DECOMPOSITIONS[method], {**options, "seed": seed}
    if how.fits_outputs(images):
        images, _ = read_images(net, images)
        small = _for_outputs(net, rules, method, images, calibration or Calibration(), progress, options)
        return kept_like_(given, small)
    if objective == "outputs":
        warn("objective=outputs without calibration images: fitted to the weights instead")
    ranks: dict[str, Any] = {}
    made: dict[tuple, Any] = {}  # a layer shared under several names stays shared
    layers = {}
    for name, asked in track(rules.items(), "decompose", disable=not progress, transient=True):
        dense = net.get_submodule(name)
        if (dense, str(asked)) not in made:
            value = resolve_rank(name or "conv", dense, asked, method, **options)
            layer = decomposition.from_conv(dense, value, name=name or "conv", **options)
            made[dense, str(asked)] = value, _in_place_of(dense, layer)
        ranks[name], layers[name] = made[dense, str(asked)]
    small = _with(net, layers)
    record_step(small, {"op": "decompose", "method": method, "ranks": ranks})
    return kept_like_(given, small)


def _in_place_of(dense: nn.Module, layer: nn.Module) -> nn.Module:
    """A decomposed layer in the mode of the dense one, frozen where that is, with its hooks and what was set on it."""
    trained = {"weight": False, "bias": False}
    for name, parameter in dense.named_parameters():  # torch's hooks and masks compute `weight` from `weight_orig`
        trained["bias" if name.startswith("bias") else "weight"] |= parameter.requires_grad
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(trained["bias" if name == "bias" else "weight"])
    keep_hooks_(dense, layer)
    for key, value in vars(dense).items():  # networks number their layers, and read that (YOLO's `i` and `f`)
        if not key.startswith("_") and key not in _SETTINGS and not hasattr(layer, key):
            setattr(layer, key, value)
    return layer.train(dense.training)


def _with(net: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """A network with layers in the place of those of these names and of all other references to them, in place.

    Other names of a layer that are registered keep it, since rules go by names.
    """
    if "" in layers:  # the network is that layer
        return layers[""]
    before = dict(net.named_modules(remove_duplicate=False))
    new_of: dict[nn.Module, nn.Module] = {}
    for name, layer in layers.items():
        new_of.setdefault(before[name], layer)
    replace_(net, new_of)
    for name, layer in before.items():
        if layer in new_of:
            net.set_submodule(name, layers.get(name, layer))
    return net


def _for_outputs(
    net: nn.Module,
    rules: Mapping[str, RankSetting],
    method: str,
    images: Images,
    calibration: Calibration,
    progress: bool,
    options: dict,
) -> nn.Module:
    """`decompose` with the objective `outputs`."""
    decomposition, ranks, fits = DECOMPOSITIONS[method], {}, {}

    def fit_of(name: str, rank: int | list[int]) -> Callable:
        def fit(target: Tensor, metric: Metric | None) -> nn.Module:
            dense = copy.deepcopy(net.get_submodule(name)).to(target.dtype)
            dense.weight.data.copy_(in_layout_of(dense, target))
            layer = decomposition.from_conv(dense, rank, name=name or "conv", **options)
            if metric is not None:
                layer.fit_outputs_(target, metric, calibration.sweeps)
            return _in_place_of(dense, layer)

        return fit

    for name, asked in rules.items():
        ranks[name] = resolve_rank(name or "conv", net.get_submodule(name), asked, method, **options)
        fits[name] = fit_of(name, ranks[name])
    if "" in fits:  # the network is that layer
        fits = {"0": fits[""]}
        [small] = fit_to_outputs(nn.Sequential(net), nn.Sequential(net), fits, images, calibration, progress=progress)
    else:
        small = fit_to_outputs(net, net, fits, images, calibration, progress=progress)
    record_step(small, {"op": "decompose", "method": method, "ranks": ranks})
    return small


@OPERATIONS.register("decompose")
def apply_decompose_(net: nn.Module, step: dict) -> None:
    """Give a network the shapes of a recorded decomposition, in place; values stay undefined."""
    shaped: dict[tuple, nn.Module] = {}  # what is shared stays shared here too
    layers = {}
    for name, rank in step["ranks"].items():
        dense = net.get_submodule(name)
        if (dense, str(rank)) not in shaped:
            layer = DECOMPOSITIONS[step["method"]].shaped_like(dense, rank)
            shaped[dense, str(rank)] = _in_place_of(dense, layer)
        layers[name] = shaped[dense, str(rank)]
    _with(net, layers)
