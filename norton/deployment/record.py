"""What was chosen for a deployed network, on what measurements, and what network and machine that is true of."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import torch

from norton.common.errors import InputError
from norton.common.files import write_json
from norton.common.tables import ShownAsTable
from norton.common.version import __version__
from norton.deployment.exact_forms import DENSE
from norton.deployment.folding import Folded
from norton.graph.inputs import Example, Inputs, inputs_of
from norton.measure.machine import describe_machine


@dataclass(frozen=True, repr=False)
class Deployment(ShownAsTable):
    """What was chosen for a network, with the times it came from.

    forms: decomposed layer → form.  channels_last: the memory format.  layers: decomposed layer → `form, format` →
    milliseconds, alone, the least of several.  networks: what was tried → milliseconds of the whole network, the lower
    quartile, `chosen` and `dense` last; all in turns.  network, example, machine, torch, norton: what that is true of.
    """

    forms: dict[str, str]
    channels_last: bool
    layers: dict[str, dict[str, float]]
    networks: dict[str, float]
    network: str
    example: str
    machine: str
    torch: str
    norton: str

    def save(self, path: str | Path) -> Path:
        """Write it as JSON."""
        return write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> "Deployment":
        """Read what `save` wrote.  Raises InputError for any other file."""
        try:
            found = cls(**json.loads(Path(path).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path} is no saved deployment ({error}); Deployment.save writes them") from None
        for name, kind in get_type_hints(cls).items():
            if not isinstance(getattr(found, name), get_origin(kind) or kind):
                raise InputError(f"{path} is no saved deployment ({name}); Deployment.save writes them")
        return found

    def rows(self) -> list[dict[str, Any]]:
        """A row per decomposed layer."""
        layout = format_name(self.channels_last)
        return [
            {
                "layer": name,
                "form": form,
                "ms": _shown(self.layers.get(name, {}).get(f"{form}, {layout}")),
                "dense, ms": _shown(self.layers.get(name, {}).get(f"{DENSE}, {layout}")),
                "tried": ", ".join(f"{key} {_shown(ms)}" for key, ms in self.layers.get(name, {}).items()),
            }
            for name, form in self.forms.items()
        ]

    def shown_rows(self) -> list[dict[str, Any]]:
        """The rows without all that was tried."""
        return [{key: value for key, value in row.items() if key != "tried"} for row in self.rows()]

    def title(self) -> str:
        timed = {"chosen", "dense"} <= self.networks.keys()  # which a choice made by hand is not
        return f"{self.example} on {self.machine}: {self.sentence() if timed else self.summary()}"

    def counts(self) -> dict[str, int]:
        """Form → how many layers take it."""
        return {form: list(self.forms.values()).count(form) for form in dict.fromkeys(self.forms.values())}

    def summary(self) -> str:
        """The choice in a few words: `depthwise, channels-last`, or `9 depthwise + 4 dense, contiguous`."""
        counts = self.counts()
        mixed = " + ".join(f"{count} {form}" for form, count in sorted(counts.items(), key=lambda one: -one[1]))
        return f"{mixed if len(counts) > 1 else next(iter(counts), DENSE)}, {format_name(self.channels_last)}"

    def sentence(self) -> str:
        """The choice in a line."""
        counts = self.counts()
        said = ", ".join(f"{count} layers {form}" for form, count in counts.items()) or "no decomposed layer"
        text = f"{said}; {format_name(self.channels_last)}; {self.networks['chosen']:.2f} ms"
        if any(form != DENSE for form in counts):
            return f"{text}, {self.networks['dense']:.2f} ms with all layers dense"
        return text + ("; no form of the decomposed layers beats their dense one here" if counts else "")


def conditions(folded: Folded, example: Example | Inputs) -> dict[str, str]:
    """What a choice is true of."""
    inputs = example if isinstance(example, Inputs) else inputs_of(example)
    shown = [f"{'×'.join(map(str, x.shape))} {str(x.dtype).removeprefix('torch.')}" for x in inputs.tensors]
    return {
        "network": fingerprint(folded),
        "example": " and ".join(shown),
        "machine": describe_machine(inputs.tensors[0].device),
        "torch": torch.__version__,
        "norton": __version__,
    }


def fingerprint(folded: Folded) -> str:
    """What tells networks of other shapes apart, whatever their weights."""
    shapes = {name: (tuple(value.shape), str(value.dtype)) for name, value in folded.net.state_dict().items()}
    layers = {name: str(layer) for name, layer in folded.net.named_modules() if name}
    text = repr((sorted(shapes.items()), sorted(layers.items()), folded.code))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def format_name(channels_last: bool) -> str:
    return "channels-last" if channels_last else "contiguous"


def _shown(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds:.3g}"
