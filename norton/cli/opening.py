"""What the settings name, opened: networks and data."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from norton.checkpoints.about_data import classes_of, difference
from norton.checkpoints.claims import SCORES
from norton.checkpoints.files import read
from norton.checkpoints.heads import with_other_head
from norton.checkpoints.pretrained import pretrained
from norton.checkpoints.rebuilding import rebuild, say_assumed
from norton.cli.remembered import datasets, is_told, problem, recall_
from norton.cli.settings import plain
from norton.common.errors import InputError, warn
from norton.graph.input_sizes import stated_size
from norton.models import build
from norton.models.foreign import is_path

if TYPE_CHECKING:
    from norton.data.datamodule import ClassificationData

DIGITS = "clutter"  # the data of experiments where nobody says which
EXAMPLES = {"torchvision": "cifar100", "huggingface": "beans"}  # names of data of libraries
FRESH_HEAD = "fresh head"  # in a lineage: the classifier was replaced by a random one
# Steps, their setting, what `auto` is with images and without any, and what the latter means.
BY_IMAGES = (
    ({"decompose"}, "decomposition.objective", "outputs", "weights", "layers are fitted to weights"),
    ({"prune"}, "pruning.compensate", "outputs", None, "what is left of layers stays as it is"),
    ({"decompose", "prune"}, "calibration.batchnorm", "auto", False, "BatchNorm is left as it is"),
)
Data: TypeAlias = "ClassificationData | None"  # None: nothing says which


def open_network(cfg: DictConfig, *, told: bool = False, new_head: bool = False) -> tuple[nn.Module, dict[str, Any]]:
    """The network of `checkpoint=`, or a fresh one of `model=`, and the checkpoint's metrics and lineage.

    told: rank and rates of the config describe the network in the file, rather than what to do with it.  new_head: see
    `checkpoint_network`; what the file claims is then no longer true.
    """
    if cfg.checkpoint is not None and cfg.model.get("weights") is not None:
        raise InputError("checkpoint= and weights= both say where the weights come from; leave one out")
    if cfg.checkpoint is not None:
        content = read(cfg.checkpoint)
        description = {"rank": plain(cfg.rank), "compress_rate": plain(cfg.compress_rate)} if told else {}
        net = checkpoint_network(content, cfg, new_head=new_head, **description)
        origin = {"metrics": content.get("metrics", {}), "lineage": list(content.get("lineage", []))}
        return net, _with_fresh_head(origin, net) if getattr(net, "fresh_head", False) else origin
    if cfg.model.arch is None:
        raise InputError("no network: give checkpoint=FILE, or model=NAME for one with random weights")
    if is_given(cfg):
        m = cfg.model
        net = pretrained(
            m.arch, m.weights, m.num_classes, plain(m.get("input_size")), kwargs=kwargs_of(cfg), strict=is_strict(cfg)
        )
        return net, {"metrics": {}, "lineage": [{"step": "pretrained", "weights": str(m.weights)}]}
    torch.manual_seed(cfg.seed)
    return build_model(cfg, 0, plain(cfg.model.get("compress_rate"))), {"metrics": {}, "lineage": []}


def for_data(
    net: nn.Module, origin: dict[str, Any], data: "ClassificationData", cfg: DictConfig
) -> tuple[nn.Module, dict[str, Any]]:
    """What `open_network` gave, with a fresh classifier where the data have as many classes, but others.

    That is where `model.num_classes` asks for one.
    """
    own, asked = classes_of(net), cfg.model.num_classes
    if cfg.checkpoint is None or own is None or asked != data.num_classes or not difference(own, data.classes):
        return net, origin
    torch.manual_seed(cfg.seed)
    net, said = with_other_head(net)
    say_assumed(cfg.checkpoint, [said], is_strict(cfg))
    return net, _with_fresh_head(origin, net)


def _with_fresh_head(origin: dict[str, Any], net: nn.Module) -> dict[str, Any]:
    """Where a network comes from whose classifier was replaced: what its file claims is no longer true."""
    return {"metrics": {}, "lineage": [*origin["lineage"], {"step": FRESH_HEAD, "classes": net.num_classes}]}


def is_given(cfg: DictConfig) -> bool:
    """Whether the network comes with trained weights, rather than random ones."""
    return cfg.checkpoint is not None or cfg.model.get("weights") is not None


def is_strict(cfg: DictConfig) -> bool:
    """Whether nothing may be taken for granted of a file."""
    return bool(cfg.get("strict"))


def checkpoint_network(
    content: Mapping[str, Any], cfg: DictConfig, *, new_head: bool = False, **told: Any
) -> nn.Module:
    """The network of the content of `checkpoint=`, as `model.` says it is.

    new_head: another `model.num_classes` than the file's replaces the classifier, which commands that train can use.
    told: rank and rates that it is expected to have.  Raises InputError where the settings of the model contradict the
    file, or can do nothing for it.
    """
    m = cfg.model
    if m.get("compress_rate") is not None:
        raise InputError("model.compress_rate is for a new network, and checkpoint= has its widths; leave one out")
    if new_head and m.num_classes is not None:
        torch.manual_seed(cfg.seed)  # of a fresh classifier
        told["num_classes"] = m.num_classes
    told |= {"input_size": plain(m.get("input_size")), "kwargs": kwargs_of(cfg), "strict": is_strict(cfg)}
    net = rebuild(content, cfg.checkpoint, arch=m.arch, **told)
    if m.num_classes not in (None, net.num_classes):
        raise InputError(
            f"{cfg.checkpoint}: its network tells {net.num_classes} classes apart, not model.num_classes="
            f"{m.num_classes}; leave that out: it asks for a fresh classifier, which must be trained, as the command "
            "pipeline does"
        )
    return net


def load_file(path: str | Path, cfg: DictConfig, **told: Any) -> nn.Module:
    """The network of a file beside `checkpoint=`, of any kind or of the constructor that `model.arch=` names.

    told: what else it is expected to be, as in `norton.load`.
    """
    content = read(path)
    arch = cfg.model.arch if content.get("arch") == cfg.model.arch else None
    return rebuild(content, path, arch=arch, strict=is_strict(cfg), **told)


def kwargs_of(cfg: DictConfig) -> dict[str, Any] | None:
    """What `model.kwargs.NAME=` gives to a constructor; None for nothing."""
    found = plain(cfg.model.get("kwargs"))
    if found is not None and not isinstance(found, dict):
        raise InputError(f"model.kwargs is {found!r}; its arguments are given one by one, e.g. model.kwargs.width=16")
    return found or None


def build_model(cfg: DictConfig, rank: Any = 0, compress_rate: Any = None) -> nn.Module:
    """The network of `model=`, of that rank and rates."""
    m = cfg.model
    return build(m.arch, rank, compress_rate, m.num_classes, plain(m.get("input_size")), kwargs_of(cfg))


def dense_form(net: nn.Module) -> nn.Module:
    """The dense network that one was made from, with random weights."""
    options = {"input_size": net.input_size, "kwargs": getattr(net, "arch_kwargs", None)} if is_path(net.arch) else {}
    return build(net.arch, num_classes=net.num_classes, **options)


def inherited(origin: dict[str, Any]) -> dict[str, Any]:
    """What a compressed network keeps of the metrics of the one it came from: the data they are about."""
    return {key: value for key, value in origin["metrics"].items() if key == "data"}


def data_for(net: nn.Module, origin: Mapping[str, Any], cfg: DictConfig) -> Data:
    """The data of `data=`; with auto, those that a checkpoint remembers, which the config then names.

    None with auto where nothing says which, or data are named that are none of those here: those who need images then
    ask for `data=`.
    """
    about = about_of(net, origin) if cfg.checkpoint is not None else None
    named = cfg.data.name != "auto"
    if not named and (about or "").partition("/")[0] not in datasets():
        if told := [key for key in cfg.data if is_told(cfg, str(key))]:
            raise InputError(f"data.{told[0]} is given, and {_nothing_says()}")
        settle_auto(cfg, None)
        return None
    named = named or cfg.data.get("root") is not None  # a folder that somebody types must be there
    choose_data(cfg, net, about)
    return open_data(cfg, net, named=named)


def about_of(net: nn.Module, origin: Mapping[str, Any]) -> str | None:
    """The name of the data that a checkpoint's accuracy is about, that it remembers, or was published for."""
    return named_by(net, origin) or getattr(net, "dataset", None)


def named_by(net: nn.Module, origin: Mapping[str, Any]) -> str | None:
    """The name of the data that a checkpoint's accuracy is about, or that it remembers."""
    return origin["metrics"].get("data") or (getattr(net, "data_settings", None) or {}).get("name")


def open_data(cfg: DictConfig, net: nn.Module | None = None, *, named: bool = True) -> "ClassificationData":
    """The LightningDataModule of `data=`; its files are looked for at the first use, or where `settle_auto` asks.

    net: as in `data_settings`.  named: whether a user chose the data.
    """
    data = made_data(data_settings(cfg, net))
    data.named = named
    if net is not None:
        data.problem = problem(cfg, net)
        settle_auto(cfg, data)
    return data


def made_data(settings: Mapping[str, Any]) -> "ClassificationData":
    """The data of `data_settings`."""
    from norton.data.datamodule import ClassificationData  # Lightning takes seconds to import

    try:
        return ClassificationData(**settings)
    except TypeError as error:
        raise InputError(f"data={settings.get('name')}: {error}") from None


def data_settings(cfg: DictConfig, net: nn.Module | None = None) -> dict[str, Any]:
    """The settings of `data=` as `ClassificationData` takes them.

    net: whose images the data become where `data.size` and `data.channels` do not say.  Raises InputError where they
    say otherwise, and for a library's data without a name.
    """
    settings = plain(cfg.data)
    source = settings.pop("source", None)
    if source is not None:  # a library, whose datasets have names of their own
        if settings.get("name") is None:
            raise InputError(f"data={source} without a name; give e.g. data.name={EXAMPLES.get(source, 'NAME')}")
        settings["name"] = f"{source}/{settings['name']}"
    return _sized(settings, net) if "size" in settings else settings


def _sized(settings: dict[str, Any], net: nn.Module | None) -> dict[str, Any]:
    """The settings of data, with the size and channels that a network takes where they are left open."""
    size = stated_size(net) if net is not None else None
    if size is None or len(size) != 3:
        return settings
    channels, *sides = size
    asked = settings["size"]
    if (asked not in (None, sides) and [asked] * 2 != sides) or settings["channels"] not in (None, channels):
        own = [settings["channels"] or channels, *([asked] * 2 if isinstance(asked, int) else asked or sides)]
        advice = f", or say what it takes with model.input_size=[{','.join(map(str, own))}]"
        raise InputError(
            f"data.size={asked} and data.channels={settings['channels']}: the network takes {channels} channels of "
            f"{'×'.join(map(str, sides))} pixels; leave them out{advice if is_path(getattr(net, 'arch', '')) else ''}"
        )
    return settings | {"size": sides, "channels": channels}


def choose_data(cfg: DictConfig, net: nn.Module, about: str | None) -> None:
    """Put data in the place of `data=auto`, in the config itself, with what the network remembers.

    about: their name.  Other choices of a user stay.
    """
    if cfg.data.name == "auto":
        choices = datasets()
        if about is None:
            raise InputError(f"nothing says which data its accuracy is about; choose data= out of {', '.join(choices)}")
        source, _, within = about.partition("/")  # of a library's, see `data_settings`
        if source not in choices:
            raise InputError(
                f"its accuracy is about {about!r}, which is none of the data here: {', '.join(choices)}; choose data="
            )
        told = {key: value for key, value in cfg.data.items() if is_told(cfg, key)}
        own = OmegaConf.load(choices[source])
        if unknown := [key for key in told if key not in own]:
            raise InputError(
                f"data.{unknown[0]} is no setting of data={source}, which the checkpoint is about; it has "
                f"{', '.join(map(str, own))}"
            )
        cfg.data = OmegaConf.merge(own, told, {"name": within} if within else {})
    recall_(cfg, net)


def score_of(data: Data) -> tuple[str, str]:
    """The score that decides for the task of the data: its name in files, and in tables."""
    return next(iter(SCORES[data.task if data is not None else "classification"].items()))


def check_size(net: nn.Module, data: "ClassificationData") -> None:
    """Raise InputError where the images of the data are of another size than the network's."""
    size = stated_size(net)
    if size is not None and tuple(size) != tuple(data.input_size):
        own, theirs = ("×".join(map(str, shape[1:])) for shape in (size, data.input_size))
        raise InputError(
            f"the network takes images of {own} pixels, the data {data.name} have {theirs}; choose another data=, or "
            "say what a network of your own takes with model.input_size=[channels,height,width]"
        )


def check_latency_batch(cfg: DictConfig, data: "ClassificationData") -> None:
    """Raise InputError where the test split has too few images to measure latency with."""
    if cfg.latency_batch is not None and len(data.splits.test) < cfg.latency_batch:
        raise InputError(
            f"latency_batch is {cfg.latency_batch}; the test split of {data.name} has {len(data.splits.test)} images"
        )


def settle_auto(cfg: DictConfig, data: Data) -> None:
    """Put in the place of each `auto` of a compression that goes by images what there is, in the config itself.

    With images, layers are fitted to outputs, and BatchNorm is decided by them.  Without any, layers are fitted to
    weights and BatchNorm stays; of a trained network that is said, unless `calibration.images=null` asks for it.
    What is asked for in vain beside that goes the same way, and is said.
    """
    none = "calibration" in cfg and cfg.calibration.get("images") is None and cfg.calibration.get("folder") is None
    known = [one for one in BY_IMAGES if "steps" not in cfg or one[0] & set(cfg.steps)]
    by_default = [one for one in known if OmegaConf.select(cfg, one[1]) == "auto"]
    in_vain = [one for one in known if none and OmegaConf.select(cfg, one[1]) == "outputs"]
    if not by_default and not in_vain:
        return
    missing = missing_images(cfg, data)
    for _, key, given, without, _ in [*by_default, *in_vain]:
        OmegaConf.update(cfg, key, without if missing else given)
    said = in_vain if none else by_default * is_given(cfg)
    if missing and said:
        warn(f"{missing}: {', '.join(meaning for *_, meaning in said)}")


def missing_images(cfg: DictConfig, data: Data) -> str:
    """Why there are no calibration images; empty where there are, or where data that somebody named must have them."""
    if cfg.calibration.folder is not None:
        return ""
    if data is None or cfg.calibration.images is None:
        return "no calibration images (name some with data= or calibration.folder=)"
    try:
        len(data.splits.calibration)
    except InputError as error:
        if data.named:
            raise
        return str(error)
    return ""


def known(data: Data) -> "ClassificationData":
    """The data, or InputError where nothing says which they are."""
    if data is None:
        raise InputError(_nothing_says("whose images and normalisation are needed"))
    return data


def _nothing_says(needed: str = "which has it") -> str:
    return f"nothing says which data the network was trained on, {needed}; choose data= out of {', '.join(datasets())}"
