"""Knowledge distillation: a network also learns from what a trained one says and sees."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton.common.errors import InputError, first_line
from norton.graph.copies import copied
from norton.graph.layers import is_decomposed, set_form_
from norton.graph.logits import logits_in


def soft_target_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T² KL(softmax(teacher / T) ‖ softmax(student / T)), averaged over images or pixels; 0 where there are none.

    logits, teacher_logits: (N, classes), a row for each image or pixel.  T² keeps the size of the gradients while the
    temperature is varied.
    Source: Hinton, Vinyals & Dean 2015, section 2.
    """
    ours, theirs = (F.log_softmax(_precise(x) / temperature, dim=1) for x in (logits, teacher_logits))
    return temperature**2 * F.kl_div(ours, theirs, reduction="sum", log_target=True) / max(1, len(ours))


def feature_loss(features: Tensor, teacher_features: Tensor) -> Tensor:
    """The squared error of features relative to the energy of the teacher's over the batch: 0 if alike, 1 for zeros.

    features, teacher_features: of one shape, (N, ..., width).  Source: the hints of Romero et al. 2015 (FitNets),
    equation 3; relative, so that one weight suits any network.
    """
    ours, theirs = _precise(features), _precise(teacher_features)
    return F.mse_loss(ours, theirs) / theirs.square().mean().clamp_min(torch.finfo(theirs.dtype).tiny)


def _precise(x: Tensor) -> Tensor:
    """Half precision is too coarse for logarithms and squares."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Distillation(nn.Module):
    """What a student learns beside its labels, as a loss: weight · soft targets + features · error of the features.

    Features are what the last linear layer reads.  Where the student's differ in width, a linear map to the teacher's
    is learned along (the regressor of FitNets), beginning with the least-squares one.  The teacher is a frozen copy;
    it is no part of the state, so it is neither trained nor saved.

    images: (N, 3, H, W), to try both on and to solve for that map.  temperature: above 0.  weight: of the soft targets;
    the labels then count 1 - weight, which is up to the caller.  features: 0 for none.  pixels: the networks tell the
    class of each pixel; both then give logits (N, classes, H, W), of any height and width, or a dict with `out`.

    Raises InputError where a network does not take the images, where both tell other numbers of classes apart, and
    where features are asked for and a network has no last linear layer.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        images: Tensor,
        *,
        temperature: float,
        weight: float,
        features: float = 0.0,
        pixels: bool = False,
    ):
        super().__init__()
        self.temperature, self.weight, self.features = temperature, weight, features
        self.layer = last_linear(student, "student") if features else None
        student = Frozen(student, self.layer, pixels)
        self.teacher = Frozen(teacher, last_linear(teacher, "teacher") if features else None, pixels)
        ours, theirs = student.try_on(images[:1], "student"), self.teacher.try_on(images[:1], "teacher")
        if ours[0].shape[1] != theirs[0].shape[1]:
            raise InputError(
                f"the teacher gives {theirs[0].shape[1]} numbers per {'pixel' if pixels else 'image'}, the student "
                f"{ours[0].shape[1]}; give a teacher of the same classes"
            )
        apart = ours[1] is not None and theirs[1] is not None and ours[1].shape != theirs[1].shape
        self.map = nn.Parameter(least_squares_map(student, self.teacher, images)) if apart else None

    def forward(
        self, student: nn.Module, images: Tensor, rows: Callable[[Any], Tensor] = logits_in
    ) -> tuple[Any, Tensor]:
        """What the student gives, and the loss that the teacher adds, both with gradients.

        rows: takes what a network gives to logits (N, classes), a row for each image or pixel that counts.
        """
        output, ours = run(student, images, self.layer)
        teacher_output, theirs = self.teacher(images)
        loss = self.weight * soft_target_loss(rows(output), rows(teacher_output), self.temperature)
        if self.features:
            ours = ours if self.map is None else F.linear(ours, self.map)
            loss = loss + self.features * feature_loss(ours, theirs)
        return output, loss


class Frozen:
    """A copy of a network in evaluation mode, computed without gradients.

    No `nn.Module`, so that a module that holds it does not train, switch or save it.  layer: whose inputs are features.
    pixels: it tells the class of each pixel.
    """

    def __init__(self, net: nn.Module, layer: str | None, pixels: bool = False):
        self.net, self.layer = set_form_(copied(net), "fast").eval().requires_grad_(False), layer
        self.pixels = pixels

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Any, Tensor | None]:
        """The output, and features, (N, ..., width), on the device and in the precision of the images."""
        return run(self.net.to(images), images, self.layer)

    def try_on(self, images: Tensor, who: str) -> tuple[Tensor, Tensor | None]:
        """Logits and features, or an InputError that says what is wrong; who: the network's part, for messages."""
        try:
            output, features = self(images)
        except (RuntimeError, ValueError) as error:
            size = tuple(images.shape[1:])
            raise InputError(f"the {who} takes no images of size {size}: {first_line(error)}") from None
        logits, shape = (logits_in(output), "(N, classes, H, W)") if self.pixels else (output, "(N, classes)")
        if not isinstance(logits, Tensor) or logits.dim() != (4 if self.pixels else 2):
            raise InputError(f"the {who} gives no logits {shape}, of which distillation makes soft targets")
        if self.layer is not None and (
            features is None or self.net.get_submodule(self.layer).out_features != logits.shape[1]
        ):
            raise _no_features(who, f"its last one, {self.layer}, does not give the logits")
        return logits, features


def run(net: nn.Module, images: Tensor, layer: str | None) -> tuple[Any, Tensor | None]:
    """What a network returns, and what `layer` of it reads; None where it is not reached, or None itself."""
    if layer is None:
        return net(images), None
    read = []
    handle = net.get_submodule(layer).register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    try:
        return net(images), read[-1] if read else None
    finally:
        handle.remove()


def last_linear(net: nn.Module, who: str) -> str:
    """The name of a network's last linear layer, decomposed or not.  Raises InputError where there is none."""
    found, inside = None, "\n"
    for name, layer in net.named_modules():
        if name.startswith(inside):
            continue
        if is_decomposed(layer):
            inside = f"{name}."
        if hasattr(layer, "out_features") and (is_decomposed(layer) or isinstance(layer, nn.Linear)):
            found = name
    if found is None:
        raise _no_features(who, "it has none")
    return found


def _no_features(who: str, why: str) -> InputError:
    return InputError(
        f"training.distill_features needs the last linear layer of the {who}, and {why}; "
        "set training.distill_features to 0"
    )


def least_squares_map(student: Frozen, teacher: Frozen, images: Tensor, batch_size: int = 32) -> Tensor:
    """The matrix (teacher's width, student's width) that maps the student's features nearest to the teacher's.

    M = TᵀS (SᵀS + λ)⁻¹ over the images, in float64.  λ is the mean energy of a feature: with less, features that are
    alike get a map of large norm, which amplifies the student's gradients until training diverges.
    """
    gram = cross = torch.zeros((), dtype=torch.float64, device=images.device)
    for batch in images.split(batch_size):
        ours, theirs = (who(batch)[1].flatten(0, -2).double() for who in (student, teacher))
        gram, cross = gram + ours.mT @ ours, cross + theirs.mT @ ours
    ridge = gram.diagonal().mean().clamp_min(torch.finfo(gram.dtype).tiny)  # not 0 where all features are dead
    solved = torch.linalg.solve(gram + ridge * torch.eye(len(gram)).to(gram), cross, left=False)
    return solved.to(images.dtype)
