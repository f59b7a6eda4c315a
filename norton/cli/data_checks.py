"""Whether a network and data go together: the classes, and the images that it is tested on."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from norton.checkpoints.about_data import classes_of, difference, other_normalisation, some
from norton.common.errors import InputError, warn

if TYPE_CHECKING:
    from norton.data.datamodule import ClassificationData


def check_classes(net: nn.Module, data: "ClassificationData") -> None:
    """Raise InputError where the data have other classes than the network, or the same in another order.

    Warns of test images that the network may have been trained on.
    """
    from norton.training import other_test  # Lightning takes seconds to import; who has data has imported it

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


def note_normalisation(net: nn.Module, data: "ClassificationData") -> None:
    """Warn of images that are normalised otherwise than those that a network remembers."""
    if other := other_normalisation(net, data.normalisation):
        warn(f"the images are {other}, so what is fitted to them may suit its own images less")


def check_pictures(data: "ClassificationData", splits: Sequence[str]) -> None:
    """Raise InputError, before any work, for an image that cannot be read, of those that memory keeps anyway."""
    for split in splits:
        images = getattr(data.splits, split)
        if hasattr(images, "look"):
            images.look(f"read {split} images")
