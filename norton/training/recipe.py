"""How to train: optimiser, schedule, what the loss is made of."""

from dataclasses import dataclass
from typing import Literal

from norton.common.checks import check_boolean, check_number, check_whole_number
from norton.common.errors import InputError
from norton.graph.layers import FORMS, Form


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are those of the commands, a short fine-tuning (`configs/training/clutter.yaml`).

    epochs: 0 trains nothing.  learning_rate: after warm-up, before cosine annealing to zero.  warmup_epochs: of linear
    warm-up from `warmup_factor` times the learning rate.  gradient_clip: largest norm of the gradient, 0 for any;
    terms of a decomposed filter that nearly cancel have large gradients.  sparsity: times the sum of |γ| over all
    BatchNorms is added to the loss, network slimming's penalty (Liu et al. 2017, equation 1), for the criterion
    `bn_scale`.  distill: learn from a teacher too; with w = distill_weight and T = temperature the cross-entropy counts
    1 - w, and w · T² KL(softmax(teacher / T) ‖ softmax(student / T)) is added (Hinton et al. 2015), of each pixel in
    segmentation.  distill_features: times the relative error of what the last linear layer reads is added too, see
    `Distillation`; 0 for none.  select_on: `validation` keeps the epoch with the best validation score; `test` is the
    published protocol, which picks it on the test set and so reports too much.  compute: how decomposed layers do while
    training, see `set_form_`.
    """

    epochs: int = 4
    learning_rate: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = True
    label_smoothing: float = 0.0
    gradient_clip: float = 1.0
    warmup_epochs: float = 0.3
    warmup_factor: float = 0.01
    sparsity: float = 0.0
    distill: bool = False
    temperature: float = 4.0
    distill_weight: float = 0.9
    distill_features: float = 0.0
    select_on: str = "validation"
    compute: Form | Literal["fast"] = "fast"

    def __post_init__(self) -> None:
        check_whole_number("training.epochs", self.epochs, 0)
        for field in (
            "warmup_epochs",
            "learning_rate",
            "momentum",
            "weight_decay",
            "gradient_clip",
            "label_smoothing",
            "warmup_factor",
            "sparsity",
            "temperature",
            "distill_weight",
            "distill_features",
        ):
            check_number(f"training.{field}", getattr(self, field), least=0)
        if self.select_on not in ("validation", "test"):
            raise InputError(f"training.select_on is {self.select_on!r}; choose one of validation, test")
        if self.compute not in FORMS:
            raise InputError(f"training.compute is {self.compute!r}; choose one of {', '.join(FORMS)}")
        if not 0 < self.warmup_factor <= 1:
            raise InputError(f"training.warmup_factor is {self.warmup_factor}; it must be above 0 and at most 1")
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"training.label_smoothing is {self.label_smoothing}; it must be in [0, 1)")
        check_boolean("training.distill", self.distill)
        if not self.temperature:
            raise InputError("training.temperature is 0; it must be above 0, and 1 softens nothing")
        if self.distill_weight > 1:
            raise InputError(f"training.distill_weight is {self.distill_weight}; it must be in [0, 1]")
