"""The contract of a network that Norton can build, prune and rebuild from a checkpoint."""

from collections.abc import Sequence

from torch import nn

from norton.common.errors import InputError
from norton.common.registry import Registry
from norton.graph.plan import plan_of
from norton.graph.wiring import Wiring
from norton.measure.summary import NetworkSummary, summary
from norton.pruning.rates import format_rates, parse_rates, pruned_width

NETWORKS = Registry("network")


class Network(nn.Module):
    """What a network declares beside its layers; the dense network is all that is ever written by hand.

    input_size: (channels, height, width) it was published for.  dataset: the data it was published for.
    spare: patterns of layers that a single rank leaves dense.  rated_layers(): for each published rate, the layers
    whose filters it prunes; none where the published network ignores it.  optional_rates: how many rates at the end may
    be left out (they are then 0).
    """

    input_size: tuple[int, int, int] = (3, 32, 32)
    dataset: str = "cifar10"
    default_classes: int = 10
    spare: tuple[str, ...] = ()
    optional_rates: int = 0

    def __repr__(self) -> str:
        """A compressed network as a short table; a dense one, or one that was taken apart, as torch shows it."""
        found = self._summary()
        return super().__repr__() if found is None else repr(found)

    def _repr_html_(self) -> str | None:
        found = self._summary()
        return None if found is None else found._repr_html_()  # None: a notebook shows the repr

    def _summary(self) -> NetworkSummary | None:
        if not plan_of(self):
            return None
        try:
            return summary(self)
        except Exception:  # to be looked at is no reason to fail
            return None

    def wiring(self) -> Wiring:
        raise NotImplementedError

    def rated_layers(self) -> list[tuple[str, ...]]:
        raise NotImplementedError

    def check_rates(self, rates: str | Sequence[float]) -> list[float]:
        """Parse rates and bring them to the number this network needs; extra ones are ignored, as published."""
        values, needed = parse_rates(rates), len(self.rated_layers())
        if len(values) < needed - self.optional_rates:
            raise InputError(
                f"compress_rate: {type(self).__name__} needs {needed} rates, got {len(values)} in "
                f"{format_rates(values)}; docs/reference/networks.md lists which layer each one prunes"
            )
        return (values + [0.0] * self.optional_rates)[:needed]

    def target_widths(self, rates: Sequence[float]) -> dict[str, int]:
        """Layer → filters left, for every layer with a rate.  Raises InputError where none would be left."""
        wiring = self.wiring()
        widths: dict[str, int] = {}
        for layers, rate in zip(self.rated_layers(), rates, strict=True):
            for layer in layers:
                width = self.full_width(layer, wiring, widths)
                widths[layer] = pruned_width(width, rate)
                if widths[layer] < 1:
                    raise InputError(f"{layer}: rate {rate} leaves none of its {width} filters; use a lower rate")
        return widths

    def full_width(self, layer: str, wiring: Wiring, widths: dict[str, int]) -> int:
        """Filters that the layer's rate is a fraction of; `widths` holds what the layers before it keep."""
        return wiring.width(wiring.axis_of(layer))
