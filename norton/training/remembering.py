"""What a network remembers of the data of its steps, and whether their test images are new to it.

Training decides which images a network has seen: what it was trained on is remembered in the place of what was before.
Where the test images were drawn otherwise before, none are new to it for certain, and that is remembered, too.  A step
that trains nothing fills in what a network does not know yet.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from norton.data.assembling import OPTIONS, SHARES
from norton.data.datamodule import ClassificationData
from norton.data.splits import OWN, test_of
from norton.training.loaders import OwnLoaders

KnownData: TypeAlias = ClassificationData | OwnLoaders
DRAWN_BY = ("seed", "validation", "test", "copies")  # settings that decide which images are drawn for a split
MIXED = "mixed"  # among the settings that a network remembers: how its test images were drawn otherwise before


def remember_data_(net: nn.Module, data: KnownData) -> nn.Module:
    """Let a network remember the data that it was trained on, in place; returns it.

    See `norton.checkpoints.about_data`.  Data of another number of classes say how images are normalised alone.
    """
    mixed = other_test(net, data) if isinstance(data, ClassificationData) else ""
    if data.normalisation is not None:
        net.normalisation = data.normalisation
    if getattr(net, "num_classes", data.num_classes) == data.num_classes:
        settings = data.settings
        if mixed and settings is not None:
            settings = {**settings, MIXED: mixed}
        net.classes, net.data_settings = data.classes, settings
    return net


def remember_if_new_(net: nn.Module, data: ClassificationData) -> nn.Module:
    """Let a network that remembers no data remember those of a step that trained nothing, in place; returns it.

    Of one that does, only where its images lie is brought up to date, if they are no longer where they were.
    """
    if getattr(net, "normalisation", None) is None:
        net.normalisation = data.normalisation
    known = getattr(net, "data_settings", None)
    if known is None:
        if getattr(net, "num_classes", data.num_classes) == data.num_classes:
            net.classes, net.data_settings = data.classes, data.settings
        return net
    root, moved = known.get("root"), data.settings.get("root")
    if known.get("name") == data.name and root and moved and not Path(root).is_dir() and not other_test(net, data):
        net.data_settings = {**known, "root": moved}
    return net


def other_test(net: nn.Module, data: ClassificationData) -> str:
    """How the test images are drawn otherwise than those that a network remembers; empty where they are the same."""
    remembered = getattr(net, "data_settings", None) or {}
    if remembered.get("name") != data.name:
        return ""
    if remembered.get(MIXED):
        return str(remembered[MIXED])
    own, found = remembered.get("test_of"), test_of(data.splits)  # files of before remember no test_of
    if found == OWN:
        return "" if own in (None, OWN) else "they have a folder of their own, where the file's are drawn"
    if own == OWN:
        return "they are drawn from the training images, where the file's have a folder of their own"
    differing = [key for key in DRAWN_BY if _told(remembered, key) != _told(data.settings, key)]
    if not differing and own not in (None, found):
        return f"they are drawn from {found}, where the file's are from {own}"
    return ", ".join(
        f"data.{key}={_told(data.settings, key)}, where the file has {_told(remembered, key)}" for key in differing
    )


def _told(settings: Mapping[str, Any], key: str) -> Any:
    """A setting; where nobody told the share of a split, the one that is drawn by default."""
    by_default = {OPTIONS[split]: share for split, share in SHARES.items()}
    return settings.get(key, by_default.get(key))
