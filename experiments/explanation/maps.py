"""Where networks look: Grad-CAM maps of several for the same classes, of images or pixels, and how alike they are."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from rich.progress import track
from torch import Tensor, nn

from norton.graph.logits import logits_in, resized_to
from norton.measure.gradcam import grad_cam, map_correlation

CHANCE = "chance: dense, another image"


class Explanation(NamedTuple):
    """Of one network: Grad-CAM maps (N, H, W), the classes it predicts, (N,) or (N, H, W), and those explained (N,)."""

    maps: Tensor
    predicted: Tensor
    explained: Tensor


class Likeness:
    """Collects how alike the maps of a network and of the dense one are, and how often they name the same class.

    Of pixels: in how many of them.
    """

    def __init__(self):
        self.correlations: list[Tensor] = []
        self.agreements: list[Tensor] = []

    def add(self, one: Explanation, dense: Explanation) -> None:
        self.correlations.append(map_correlation(one.maps, dense.maps))
        self.agreements.append(agreement(one, dense))

    def summary(self) -> dict[str, Any]:
        """Mean and standard deviation over the images where both maps have one, and how many have none."""
        found, agree = torch.cat(self.correlations), torch.cat(self.agreements)
        defined = found[~found.isnan()]
        return {
            "mean_correlation": defined.mean().item() if len(defined) else None,
            "std_correlation": defined.std().item() if len(defined) > 1 else None,
            "agreement_percent": 100 * agree.mean().item() if len(agree) else None,
            "images": len(found),
            "images_without_map": len(found) - len(defined),
        }


def agreement(one: Explanation, dense: Explanation) -> Tensor:
    """(N,): the share of an image's predictions, one or as many as it has pixels, that are the dense network's."""
    return (one.predicted == dense.predicted).double().reshape(len(one.predicted), -1).mean(1)


def explain(
    nets: Mapping[str, nn.Module], layer: str, images: Tensor, classes: Tensor | None, target: str
) -> dict[str, Explanation]:
    """Label → explanation.  All networks explain one class: the first network's prediction, or the true one.

    Of pixels: the `main_class` of those, in all pixels that have it.
    """
    device = next(next(iter(nets.values())).parameters()).device
    images = images.to(device)
    predicted = {name: predictions(net, images) for name, net in nets.items()}
    asked = classes.to(device) if target == "true" and classes is not None else next(iter(predicted.values()))
    pixels = None
    if asked.dim() > 1:
        labels, asked = asked, main_class(asked, next(iter(nets.values())).num_classes)
        pixels = labels == asked[:, None, None]
    maps = {name: grad_cam(net, layer, images, asked, pixels) for name, net in nets.items()}
    return {name: Explanation(maps[name].cpu(), predicted[name].cpu(), asked.cpu()) for name in nets}


@torch.no_grad()
def predictions(net: nn.Module, images: Tensor) -> Tensor:
    """The classes of images (N,), or of their pixels (N, H, W)."""
    return resized_to(logits_in(net(images)), images[:, 0]).argmax(1)


def main_class(labels: Tensor, num_classes: int) -> Tensor:
    """(N,): the class that most pixels of an image have, apart from class 0, which mostly is the background.

    labels: (N, H, W); what is no number of a class does not count.  0 where there is no other class.
    """
    counts = torch.stack([(labels == number).flatten(1).sum(1) for number in range(num_classes)], 1)
    counts[:, 0] = 0
    return counts.argmax(1)


def statistics(
    nets: Mapping[str, nn.Module], layer: str, loader: Iterable[tuple[Tensor, Any]], target: str
) -> dict[str, Likeness]:
    """How alike each network's maps are to the first's; beside them, how alike maps of different images are."""
    likeness = {name: Likeness() for name in [*nets, CHANCE]}
    last = None
    for images, classes in track(loader, "Grad-CAM"):
        found = explain(nets, layer, images, classes, target)
        dense = next(iter(found.values()))
        for name, one in found.items():
            likeness[name].add(one, dense)
        others = dense if last is None else Explanation(*(torch.cat(pair) for pair in zip(last, dense, strict=True)))
        likeness[CHANCE].add(Explanation(*(part[:-1] for part in others)), Explanation(*(part[1:] for part in others)))
        last = Explanation(*(part[-1:] for part in dense))
    return likeness
