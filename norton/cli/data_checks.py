"""Whether a network and data go together: the classes, and the images that it is tested on."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from norton.checkpoints.about_data import classes_of, difference, some
from norton.common.errors import InputError, warn

if TYPE_CHECKING:
    from norton.data.datamodule import ClassificationData

DRAWN_BY = ("seed", "validation", "test", "copies")  # settings that decide which images are drawn for a split


def other_test(net: nn.Module, data: "ClassificationData") -> str:
    """How the test images are drawn otherwise than those that a network remembers; empty where they are the same."""
    remembered = getattr(net, "data_settings", None) or {}
    if remembered.get("name") != data.name:
        return ""
    from norton.data.splits import OWN, test_of  # who has data has imported it

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
    from norton.data.assembling import OPTIONS, SHARES

    by_default = {OPTIONS[split]: share for split, share in SHARES.items()}
    return settings.get(key, by_default.get(key))


def check_classes(net: nn.Module, data: "ClassificationData") -> None:
    """Raise InputError where the data have other classes than the network, or the same in another order.

    Warns of test images that the network may have been trained on.
    """
    if other := other_test(net, data):
        warn(f"other test images than the file's ({other}): the network may have been trained on some of them")
    own, number = classes_of(net) or (), getattr(net, "num_classes", None)
    differs = difference(own, data.classes) if own else ""
    fresh = f"model.num_classes={data.num_classes} gives a network to train a fresh classifier"
    if differs:
        raise InputError(
            f"the network was trained on the classes {some(own)}; the data {data.name} {differs}; choose another data= "
            f"(auto: those that it was trained on) or data.root=, or another checkpoint=; {fresh}"
        )
    if number is None or number == data.num_classes:
        return
    few, counted = "only " * (data.num_classes < number), "or data.classes=, " * (data.task == "segmentation")
    raise InputError(
        f"the network tells {number} classes apart, the data {data.name} have {few}{data.num_classes}; choose another "
        f"data= or data.root=, {counted}or another checkpoint=; {fresh}"
    )


def check_pictures(data: "ClassificationData", splits: Sequence[str]) -> None:
    """Raise InputError, before any work, for an image that cannot be read, of those that memory keeps anyway."""
    for split in splits:
        images = getattr(data.splits, split)
        if hasattr(images, "look"):
            images.look(f"read {split} images")
