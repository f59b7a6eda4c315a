"""Whether a network and data go together: the classes, and the images that it is tested on."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from norton.checkpoints.about_data import classes_of, difference, some
from norton.common.errors import InputError, warn

if TYPE_CHECKING:
    from norton.data.datamodule import ClassificationData

DRAWN_BY = ("seed", "validation", "test", "copies")  # settings that decide which images are drawn for a split


def other_test(net: nn.Module, data: "ClassificationData") -> str:
    """How the test images are drawn otherwise than those that a network remembers; empty where they are the same."""
    remembered = getattr(net, "data_settings", None) or {}
    if remembered.get("name") != data.name or not data.splits.test_is_drawn:
        return ""
    differing = [key for key in DRAWN_BY if remembered.get(key) != data.settings.get(key)]
    return ", ".join(
        f"data.{key}={data.settings.get(key)}, where the file has {remembered.get(key)}" for key in differing
    )


def check_classes(net: nn.Module, data: "ClassificationData") -> None:
    """Raise InputError where the data have other classes than the network, or the same in another order.

    Warns of test images that the network may have been trained on.
    """
    if other := other_test(net, data):
        warn(f"{other}, draws other test images: the network may have been trained on some of them")
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
