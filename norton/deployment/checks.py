"""What is checked before and after a network is deployed: the example, the choice and the outputs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from norton.common.errors import InputError, first_line
from norton.deployment.exact_forms import form_names
from norton.deployment.exported import tensors_in
from norton.deployment.folding import Folded
from norton.deployment.record import Deployment
from norton.graph.copies import copied
from norton.graph.inputs import Inputs, takes_indices
from norton.graph.meta import on_meta

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}  # of outputs, relative; 5% in half precision


def check_example(net: nn.Module, inputs: Inputs) -> Any:
    """What a network gives for an example in evaluation mode; raises InputError for one that it does not take."""
    numbers = [x for x in inputs.tensors if x.is_floating_point() and x.numel()]
    if not numbers and not any(takes_indices(net, x) for x in inputs.tensors):
        what = " and ".join(f"{x.dtype} {tuple(x.shape)}" for x in inputs.tensors)
        raise InputError(f"example is {what}; give a batch of images (N, C, H, W) as a floating-point tensor")
    one = next(net.parameters(), None)
    for x in numbers:
        if one is not None and (one.dtype, one.device) != (x.dtype, x.device):
            raise InputError(
                f"the example is {x.dtype} on {x.device}, the network {one.dtype} on {one.device}; "
                "give both the same with .to()"
            )
    if any(x.isnan().any() for x in numbers):
        raise InputError("the example has NaN in it, by which nothing can be compared; give real images")
    on_meta(net)  # which says why, if it cannot be copied
    return outputs_of(net, inputs)


def outputs_of(net: nn.Module, inputs: Inputs) -> Any:
    """What a copy of a network gives in evaluation mode; raises InputError for an example that it does not take."""
    net = copied(net).eval()
    try:
        return inputs.map(Tensor.clone).call(net)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        shapes = " and ".join(str(tuple(x.shape)) for x in inputs.tensors)
        raise InputError(
            f"{type(net).__name__} does not take an example of shape {shapes}: {first_line(error)}"
        ) from None


def check_outputs(found: Any, wanted: Any, dtype: torch.dtype) -> None:
    """Raise InputError where outputs differ by more than rounding."""
    tolerance = TOLERANCE.get(dtype, 0.05)
    for own, other in zip(tensors_in(found), tensors_in(wanted), strict=True):
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
                "forward pass computes otherwise each time"
            )


def check_choice(choice: Deployment, known: Mapping[str, str], folded: Folded) -> None:
    """Raise InputError for a choice that was made for something else, or by hand for layers or forms there are not."""
    for name, now in known.items():
        if (then := getattr(choice, name)) != now:
            raise InputError(f"the saved choice is of another {name}: {then}, here {now}; measure anew (choice=None)")
    layers = folded.decomposed
    for name, form in choice.forms.items():
        if name not in layers:
            raise InputError(f"the choice has a form for {name}, which is no decomposed layer of the network")
        if form not in (names := form_names(layers[name])):
            raise InputError(f"the choice has {name} as {form!r}; it can be {', '.join(names)}")
