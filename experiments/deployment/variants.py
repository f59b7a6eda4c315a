"""A network in all its variants: eager, deployed, compiled, ONNX, INT8; with the files of those that have one."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

import norton
from experiments.deployment.networks import Given
from norton.common.files import write_whole
from norton.deployment.assembling import assemble
from norton.deployment.deploying import compiled
from norton.deployment.exact_forms import DENSE
from norton.deployment.export import to_onnx, to_program
from norton.deployment.folding import fold
from norton.deployment.int8 import to_int8
from norton.deployment.onnx_networks import OnnxNet
from norton.measure.latency import latencies


@dataclass(frozen=True)
class Variant:
    """One row: a network in a form; net: None where it could not be had.  file: what it runs from, if there is one."""

    role: str
    given: Given
    form: str
    net: nn.Module | None
    size: int | None = None
    file: Path | None = None


class BySize(nn.Module):
    """A network for each of some sizes of batches; others are cut into, and filled up to, the largest.

    Compiling takes minutes, for each size; so copies are the networks themselves.
    """

    def __init__(self, nets: Mapping[int, nn.Module]):
        super().__init__()
        self.largest = max(nets)
        self.nets = nn.ModuleDict({str(size): net for size, net in nets.items()})

    def forward(self, images: Tensor) -> Any:
        if (size := str(len(images))) in self.nets:
            return self.nets[size](images)
        parts = [F.pad(part, (0, 0) * 3 + (0, self.largest - len(part))) for part in images.split(self.largest)]
        outputs = [self.nets[str(self.largest)](part) for part in parts]
        return tree_map(lambda *tensors: torch.cat(tensors)[: len(images)], *outputs)  # a dict of segmentation's, say

    def __deepcopy__(self, memo: dict) -> "BySize":
        return self


class OnnxOfKind(OnnxNet):
    """An ONNX file whose tensors are put where the network's own are in what it gives, as in a dict with `out`.

    like: what the network gives, for any batch.
    """

    def __init__(self, file: str | Path, like: Any):
        super().__init__(file)
        self.like = like

    def forward(self, *images: Any, **named: Any) -> Any:
        found = super().forward(*images, **named)
        tensors = iter(found if isinstance(found, tuple) else (found,))
        return tree_map(lambda leaf: next(tensors) if isinstance(leaf, Tensor) else leaf, self.like)


@dataclass
class Preparation:
    """One network in all forms, its files in `folder`; what goes wrong with one form is noted, and the rest goes on.

    deployed: batch size → network; files are made of the one for the largest, `example`.
    """

    cfg: DictConfig
    role: str
    given: Given
    deployed: Mapping[int, nn.Module]
    example: Tensor
    images: Tensor
    folder: Path
    notes: list[str]

    @property
    def largest(self) -> nn.Module:
        return self.deployed[len(self.example)]

    def variants(self) -> list[Variant]:
        for size, net in self.deployed.items():
            net.deployment.save(self.path(f"batch{size}.json"))
        found = [
            Variant(self.role, self.given, "eager", self.given.net, saved_bytes(self.given.net)),
            self.variant("deployed", self.program),
        ]
        if self.cfg.compile:
            print(f"{self.given.name}: compile", flush=True)
            found.append(self.variant("compiled", self.compiled))
        print(f"{self.given.name}: export", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            found.append(self.variant("ONNX", lambda: self.onnx(Path(scratch))))
            if self.cfg.int8:
                found.append(self.variant("INT8", lambda: self.int8(Path(scratch))))
        return found

    def path(self, ending: str) -> Path:
        return self.folder / f"{self.role}.{ending}"

    def variant(self, form: str, make: Callable[[], tuple[nn.Module, Path | None]]) -> Variant:
        try:
            net, file = make()
        except norton.InputError as error:
            self.notes.append(f"{self.given.name}, {form}, is left out: {error}")
            return Variant(self.role, self.given, form, None)
        return Variant(self.role, self.given, form, net, file.stat().st_size if file else None, file)

    def program(self) -> tuple[nn.Module, Path | None]:
        try:
            return BySize(self.deployed), to_program(self.largest, self.example, self.path("pt2")).path
        except norton.InputError as error:
            self.notes.append(f"{self.given.name}, deployed, has no file: {error}")
            return BySize(self.deployed), None

    def compiled(self) -> tuple[nn.Module, None]:
        return BySize({size: compiled(net, self.example[:size]) for size, net in self.deployed.items()}), None

    def onnx(self, scratch: Path) -> tuple[nn.Module, Path]:
        """With the forms that torch is fastest in, or with dense layers: onnxruntime has other kernels."""
        nets = {"forms": self.largest}
        if set(self.largest.deployment.forms.values()) - {DENSE}:
            nets[DENSE] = assemble(fold(self.given.net, self.example), {}, channels_last=False)
        files = {name: to_onnx(net, self.example, scratch / f"{name}.onnx").path for name, net in nets.items()}
        return self.placed(files[self.fastest("ONNX", files)], "onnx")

    def int8(self, scratch: Path) -> tuple[nn.Module, Path]:
        options = {"batch_size": self.cfg.calibration.batch_size, "reduce_range": self.cfg.reduce_range}
        made = {
            file.stem: to_int8(file, self.images, scratch / f"{file.stem}.int8", **options)
            for file in sorted(scratch.glob("*.onnx"), reverse=True)
        }
        if not made:
            raise norton.InputError("it is made from ONNX")
        best = made[self.fastest("INT8", {name: done.path for name, done in made.items()})]
        if best.in_float:
            layers = ", ".join(f"{layer} ({operator})" for layer, operator in best.in_float.items())
            self.notes.append(f"{self.given.name}, INT8: the quantiser lacks, and leaves in float32, {layers}")
        return self.placed(best.path, "int8.onnx")

    def fastest(self, form: str, files: Mapping[str, Path]) -> str:
        """The name of the file that is fastest in onnxruntime."""
        nets = {name: OnnxNet(file) for name, file in files.items()}
        times = latencies(nets, self.example, repeats=self.cfg.repeats)
        best = min(nets, key=lambda name: times[name].milliseconds)
        if len(nets) > 1:
            forms, dense = times["forms"].milliseconds, times[DENSE].milliseconds
            said = f"{forms:.2f} ms with the layers' forms from torch, {dense:.2f} ms with dense ones"
            self.notes.append(f"{self.given.name}, {form}: {said}; the faster is taken")
        return best

    def placed(self, file: Path, ending: str) -> tuple[nn.Module, Path]:
        """A file of ONNX at its place, and as a network."""
        path = write_whole(self.path(ending), file.read_bytes())
        with torch.inference_mode():
            like = self.given.net(self.example[:1])
        return OnnxNet(path) if isinstance(like, Tensor) else OnnxOfKind(path, like), path


def saved_bytes(net: nn.Module) -> int:
    """The size of a network's checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        return norton.save(net, Path(folder) / "net.pt").stat().st_size
