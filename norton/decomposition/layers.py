"""What decomposed layers share: parts computed one after the other, then the bias; and how they come from a dense one.

A method inherits from `LayerWise` (the whole weight is one product; its first part reads the inputs, its last one
writes the filters) or from `FilterWise` (each filter is a product of its own; all parts but the first are grouped by
filter).  Surgery knows how both are cut (`norton.graph.slicing`).

A grouped convolution is decomposed group by group, at the same ranks in each, and its parts are grouped as it is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from norton.calibration import Metric
from norton.common.errors import InputError
from norton.decomposition.methods import is_spatial
from norton.graph.layers import (
    convolution_like,
    filters_first,
    groups_of,
    in_layout_of,
    is_transposed,
    joint_padding,
    scale_filters_,
    weight_of,
)
from norton.graph.slicing import cut_from_groups_, cut_inputs_, cut_outputs_, select


class FactoredLayer(nn.Module):
    """A product of layers without bias, `feature`, and the bias of the layer it took the place of."""

    takes = "2-D convolutions with a kernel that are neither grouped nor transposed"
    clips_ranks = True
    by_filter = False
    comparison_options: ClassVar[dict[str, Any]] = {}

    def __init__(self, parts: Mapping[str, nn.Module], rank: int | Sequence[int], like: nn.Conv2d | nn.Linear):
        super().__init__()
        self.rank = rank if isinstance(rank, int) else tuple(rank)
        self.feature = nn.Sequential()
        for name, part in parts.items():
            self.feature.add_module(name, part)
        self.bias = None if like.bias is None else nn.Parameter(torch.zeros_like(like.bias, requires_grad=True))

    @classmethod
    def accepts(cls, layer: nn.Module) -> bool:
        return is_spatial(layer)

    @classmethod
    def full_rank(cls, layer: nn.Module) -> tuple[int, ...]:
        """The smaller side of each of `cls.unfoldings(weight)`: the matrices whose ranks are the method's ranks.

        They are (m, n), or (O, m, n) with one per filter; weight: that of one group, filters first.
        """
        group = torch.empty_like(weight_of(layer).chunk(groups_of(layer))[0], device="meta")
        return tuple(min(matrix.shape[-2:]) for matrix in cls.unfoldings(group))

    @classmethod
    @torch.no_grad()
    def of_weights(cls, like: nn.Module, rank: int | Sequence[int], weights: Sequence[Tensor]) -> Self:
        """The layer in the place of `like` whose parts have these weights, of any shape with as many entries."""
        layer = cls.shaped_like(like, rank)
        for part, weight in zip(layer.feature, weights, strict=True):
            part.weight.copy_(weight.reshape(part.weight.shape))
        if layer.bias is not None:
            layer.bias.copy_(like.bias)
        return layer

    def parts(self) -> list[Tensor]:
        return [part.weight for part in self.feature]

    @torch.no_grad()
    def fit_outputs_(self, target: Tensor, metric: Metric, sweeps: int, steps: int = 30) -> None:
        """Bring the composed weight nearer to `target` in a metric: least squares for one part after the other.

        The weight is linear in each part, so the normal equations' product with a vector is the weight of that vector,
        times the metric, taken back through `composed_weight` by autograd; conjugate gradients need no more.  They
        start from what is there and never go uphill.
        """
        target = target.flatten(1)
        for _ in range(max(1, sweeps)):
            for part in reversed(self.parts()):
                conjugate_gradients_(part, lambda: filters_first(self).flatten(1), target, metric, steps)

    # The arguments are those of the layer it takes the place of; transposed convolutions alone have output_size.
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        y = input
        for part in self.feature:
            y = part(y, output_size) if output_size is not None and is_transposed(part) else part(y)
        return y if self.bias is None else y + self.bias.view(-1, *[1] * self.dims)

    @property
    def weight(self) -> Tensor:
        """The weight of the dense layer that this one equals, for networks that read it.

        It may be set to itself with each filter times a number, as code does that folds a BatchNorm into the layer
        before it (`torch.nn.utils.fusion`); the last part then is scaled.  Raises ValueError for any other weight.
        """
        return self.composed_weight()

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "weight":
            super().__setattr__(name, value)
            return
        old, new = filters_first(self).detach().flatten(1), in_layout_of(self, value.detach()).flatten(1)
        eps, size = torch.finfo(old.dtype).eps, torch.linalg.vector_norm(new)
        scale = (old * new).sum(1) / old.square().sum(1).clamp_min(torch.finfo(old.dtype).tiny)
        if not torch.linalg.vector_norm(new - scale[:, None] * old) <= 8 * eps * size:
            raise ValueError(f"the weight of a {type(self).__name__} is a product of its parts; set those, or scale it")
        scale_filters_(self, scale)

    # Geometry, read off the parts so that surgery has nothing to keep in step

    @property
    def dims(self) -> int:
        """The spatial dimensions; 0 of a linear layer."""
        return len(getattr(self.feature[0], "kernel_size", ()))

    @property
    def in_channels(self) -> int:
        return self.feature[0].in_channels

    @property
    def out_channels(self) -> int:
        return self.feature[-1].out_channels

    @property
    def kernel_size(self) -> tuple[int, ...]:
        return self._joint("kernel_size")

    @property
    def stride(self) -> tuple[int, ...]:
        return self._joint("stride")

    @property
    def dilation(self) -> tuple[int, ...]:
        return self._joint("dilation")

    @property
    def output_padding(self) -> tuple[int, ...]:
        return self._joint("output_padding")

    def _joint(self, setting: str) -> tuple[int, ...]:
        values = [getattr(part, setting) for part in self.feature]
        return tuple(max(value[axis] for value in values) for axis in range(len(values[0])))

    @property
    def padding(self) -> tuple[int, ...] | str:
        return joint_padding([part.padding for part in self.feature])

    @property
    def padding_mode(self) -> str:
        return next((part.padding_mode for part in self.feature if part.padding_mode != "zeros"), "zeros")

    @property
    def transposed(self) -> bool:
        return any(is_transposed(part) for part in self.feature)

    @property
    def groups(self) -> int:
        return groups_of(self.feature[0])

    def extra_repr(self) -> str:
        how = (f", groups={self.groups}" if self.groups > 1 else "") + ", transposed" * self.transposed
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, rank={self.rank}{how}"

    def __repr__(self) -> str:  # in a line: the parts follow from it, and a network has many such layers
        return f"{type(self).__name__}({self.extra_repr()})"


class LayerWise(FactoredLayer):
    """The whole weight as one product."""


class FilterWise(FactoredLayer):
    """Each filter as a product of its own: the parts hold the channels of filter 0 first, then those of filter 1."""

    by_filter = True


@cut_inputs_.register(LayerWise)
@cut_inputs_.register(FilterWise)
def _(layer: LayerWise | FilterWise, kept: Tensor) -> None:
    cut_inputs_(layer.feature[0], kept)


@cut_outputs_.register
def _(layer: LayerWise, kept: Tensor) -> None:
    if layer.groups > 1:  # whole groups go, with what they read
        filters = layer.out_channels // layer.groups
        groups = kept[::filters] // filters
        for part in layer.feature[:-1]:
            each = part.out_channels // part.groups
            cut_outputs_(part, (groups[:, None] * each + torch.arange(each, device=kept.device)).flatten())
    cut_outputs_(layer.feature[-1], kept)
    if layer.bias is not None:
        layer.bias = select(layer.bias, kept, 0)


@cut_from_groups_.register
def _(layer: LayerWise, kept: Tensor) -> None:
    cut_from_groups_(layer.feature[-1], kept)
    if layer.bias is not None:
        layer.bias = select(layer.bias, kept, 0)


@cut_outputs_.register
def _(layer: FilterWise, kept: Tensor) -> None:
    filters = layer.out_channels
    for part in layer.feature:
        each = part.out_channels // filters  # channels of a filter
        channels = (kept[:, None] * each + torch.arange(each, device=kept.device)).flatten()
        cut_outputs_(part, channels)
        if part.groups > 1:
            part.groups, part.in_channels = len(kept), part.weight.shape[1] * len(kept)
    if layer.bias is not None:
        layer.bias = select(layer.bias, kept, 0)


def conjugate_gradients_(
    part: Tensor, weight: Callable[[], Tensor], target: Tensor, metric: Metric, steps: int
) -> None:
    """Move a parameter such that `weight()` (O, D), linear in it, comes nearest to `target` (O, D) in a metric."""
    start, trained = part.detach().clone(), part.requires_grad

    def back(rows: Tensor) -> Tensor:  # the derivative of the inner product of rows and the weight
        with torch.enable_grad():
            part.requires_grad_(True)
            return torch.autograd.grad(weight(), part, rows)[0]

    def times(direction: Tensor) -> Tensor:
        part.data.copy_(direction)
        return back(metric.times(weight().detach()))

    residual = back(metric.times(target - weight().detach()))
    direction, size = residual, residual.square().sum()
    enough = 1e-12 * size
    for _ in range(steps):
        if size <= enough:
            break
        product = times(direction)
        curvature = (direction * product).sum()
        if curvature <= 0:
            break
        start = start + size / curvature * direction
        residual = residual - size / curvature * product
        new = residual.square().sum()
        direction, size = residual + new / size * direction, new
    part.data.copy_(start)
    part.requires_grad_(trained)


def convolution(
    inputs: int,
    outputs: int,
    like: Any,
    *,
    rows: bool = False,
    columns: bool = False,
    kernel: bool = False,
    groups: int = 1,
) -> Any:
    """A convolution without bias, with the geometry of `like` along the directions asked for, pointwise in others.

    rows, columns: the first and the second direction; kernel: all of them, transposed where `like` is.
    """
    asked = [kernel or chosen for chosen in (rows, columns, False)[: len(like.kernel_size)]]
    if all(asked):
        geometry: dict[str, Any] = {}
    else:
        pointwise = {"kernel_size": 1, "stride": 1, "dilation": 1} | (
            {} if isinstance(like.padding, str) else {"padding": 0}
        )
        geometry = {
            key: tuple(own if chosen else otherwise for own, chosen in zip(getattr(like, key), asked, strict=True))
            for key, otherwise in pointwise.items()
        }
    if not any(asked):
        geometry["padding_mode"] = "zeros"
    own = {"groups": groups, "bias": False, "device": like.weight.device, "dtype": like.weight.dtype}
    return convolution_like(like, inputs, outputs, transposed=kernel and is_transposed(like), **geometry, **own)


def checked_weight(layer: nn.Module, name: str) -> Tensor:
    """A layer's weight (O, C / groups, ...) in float64, filters first.  Raises InputError where it is not finite."""
    weight = weight_of(layer).double()
    if not torch.isfinite(weight).all():
        raise InputError(f"{name}: the weight has infinite or undefined entries; check the checkpoint it came from")
    return weight


def energies(matrix: Tensor) -> Tensor:
    """Squared singular values of matrices (..., m, n), falling, to rounding relative to the largest.

    From the Gram matrix of the smaller side, which takes a fraction of the time of an SVD.
    """
    matrix = matrix.double()
    gram = matrix.mT @ matrix if matrix.shape[-2] > matrix.shape[-1] else matrix @ matrix.mT
    return torch.linalg.eigvalsh(gram).flip(-1).clamp_min(0)


def principal(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The nearest matrices of a rank, as left (..., m, rank) times right (..., rank, n) with orthonormal rows.

    matrices: (..., m, n), n small.  The projection onto the principal right singular vectors; these come from Gram
    matrices, hundreds of them in one batched call, where LAPACK would be called for one matrix after the other.
    """
    _, vectors = torch.linalg.eigh(matrices.mT @ matrices)
    right = vectors[..., -rank:].flip(-1)
    return matrices @ right, right.mT


def gram_svd(matrix: Tensor, n_eigenvecs: int | None = None, **_: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The truncated SVD (u, s, vh) of a matrix (m, n) by the Gram matrix of its smaller side, as tensorly's `svd=`.

    Ten times as fast as LAPACK's on the unfoldings of a layer, where one side is short.  u s vh is a projection of the
    matrix, so exact at the full rank; only directions that hold less than 1e-8 of it are not resolved.
    """
    if matrix.shape[0] > matrix.shape[1]:
        v, s, uh = gram_svd(matrix.T, n_eigenvecs)
        return uh.T, s, v.T
    u = torch.linalg.eigh(matrix @ matrix.T)[1].flip(1)[:, :n_eigenvecs]
    projected = u.T @ matrix
    s = torch.linalg.vector_norm(projected, dim=1)
    return u, s, projected / s.where(s > 0, 1)[:, None]


@contextmanager
def one_thread(only: bool = True) -> Iterator[None]:
    """torch computing in one thread for a while, on the CPU; only: whether to."""
    before = torch.get_num_threads()
    if only:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if only:
            torch.set_num_threads(before)


@contextmanager
def tensorly_on_torch() -> Iterator[ModuleType]:
    """tensorly computing with torch for a while; the backend it had before comes back."""
    import tensorly  # takes a second, and only some methods need it

    with tensorly.backend_context("pytorch"):
        yield tensorly
