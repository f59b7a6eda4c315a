"""A network on its way into use, from float32 to INT8: accuracy, file size, latency and memory beside the dense one."""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

import norton
from norton.cli import opening, pictures, program, steps, tables
from norton.cli.settings import check_whole, plain
from norton.common.checks import check_boolean
from norton.common.files import write_json, write_whole
from norton.deployment.assembling import assemble
from norton.deployment.deploying import compiled
from norton.deployment.exact_forms import DENSE
from norton.deployment.export import to_onnx, to_program
from norton.deployment.exported import relative_difference
from norton.deployment.folding import fold
from norton.deployment.int8 import to_int8
from norton.deployment.onnx_networks import OnnxNet, run_in_fresh_process
from norton.graph.plan import plan_of
from norton.measure.latency import latencies, peak_memory
from norton.measure.machine import describe_machine
from norton.models import NETWORKS
from norton.models.foreign import is_path

CPU = torch.device("cpu")
COMPARED = 32  # images for the difference of outputs


@dataclass(frozen=True)
class Given:
    """One of the networks; trained: its accuracy means something."""

    name: str
    net: nn.Module
    trained: bool


@program.script("deploy")
def main(cfg: DictConfig) -> None:
    check_settings(cfg)
    nets, about = open_networks(cfg)
    data, notes = open_data(cfg, nets, about)
    images, noted = calibration_images(cfg, nets, data, about)
    program.check_folder(cfg)  # only now: the data that are chosen belong to its config
    example = noise(nets["network"].net, max(cfg.batch_sizes), cfg.seed)
    deployed = {role: deploy(cfg, role, given, example) for role, given in nets.items()}
    folder = program.open_folder(cfg)

    ways = []
    for role, given in nets.items():
        ways += Preparation(cfg, role, given, deployed[role], example, images, folder, notes).ways()
    rows = measure(ways, images, cfg, data)

    arch = nets["network"].net.arch
    title = f"{arch}, {describe_machine(CPU)}"
    write_json(folder / "metrics.json", {"arch": arch, **told(data), "notes": notes + noted, "rows": rows})
    shown = [table_row(row) for row in rows]
    tables.write_table(folder / "table.md", shown)
    picture(folder / "picture.png", rows, title)
    tables.print_table(shown, title)
    for line in (*verdicts(rows), *notes, *noted):
        print(line)
    print(f"written to {folder}/: {', '.join(sorted(path.name for path in folder.iterdir()))}")


def check_settings(cfg: DictConfig) -> None:
    """Raise InputError for settings that need no network to be found bad."""
    for name, least in (("repeats", 1), ("seed", 0), ("calibration.images", 1), ("calibration.batch_size", 1)):
        check_whole(cfg, name, least)
    for name in ("compile", "int8", "accuracy", "reduce_range"):
        check_boolean(name, cfg[name])
    sizes = plain(cfg.batch_sizes)
    if not isinstance(sizes, list) or not sizes or not all(type(size) is int and size > 0 for size in sizes):
        raise norton.InputError(f"batch_sizes is {sizes!r}; it must be a list of whole numbers of at least 1")
    if cfg.trainer.accelerator != "cpu":
        raise norton.InputError(f"trainer.accelerator is {cfg.trainer.accelerator!r}; leave it out, all is on the CPU")
    if cfg.dense is not None and cfg.checkpoint is None:
        raise norton.InputError("dense= is given without a network beside it; give that too, with checkpoint=FILE")
    check_classifier(cfg.model.arch)


def check_classifier(arch: str | None) -> None:
    """Raise InputError for the name of a detector."""
    if arch is None or arch in NETWORKS or is_path(arch):
        return
    from detection import DETECTORS  # torchvision's take over a second to import

    if arch in DETECTORS:
        raise norton.InputError(f"{arch} is a detector; only classifiers are exported, choose another model=")


# What comes in


def open_networks(cfg: DictConfig) -> tuple[dict[str, Given], str | None]:
    """`dense` and `network`, the latter alone where it is not compressed, and the data that it is about."""
    if cfg.checkpoint is None:
        return random_networks(cfg), None
    net, origin = opening.open_network(cfg, told=True)
    about = origin["metrics"].get("data", getattr(net, "dataset", None))
    if cfg.dense is not None:
        first, second = tables.labels([cfg.dense, cfg.checkpoint])
        dense = opening.load_file(cfg.dense, cfg)
        if dense.arch != net.arch:
            raise norton.InputError(f"{cfg.dense} holds a {dense.arch}, {cfg.checkpoint} a {net.arch}; give one kind")
        return {"dense": Given(first, dense, True), "network": Given(second, net, True)}, about
    alone = {"network": Given(Path(cfg.checkpoint).stem, net, True)}
    if not plan_of(net):
        return alone, about
    torch.manual_seed(cfg.seed)
    return {"dense": Given("dense, random weights", opening.dense_form(net), False)} | alone, about


def random_networks(cfg: DictConfig) -> dict[str, Given]:
    if cfg.model.arch is None:
        raise norton.InputError("no network: give checkpoint=FILE, or model=NAME for random weights")
    torch.manual_seed(cfg.seed)
    dense, rank, rates = opening.build_model(cfg), plain(cfg.rank), plain(cfg.compress_rate)
    if not rank and not rates:
        return {"network": Given("dense", dense, False)}
    small = opening.build_model(cfg, rank or 0, rates)
    return {"dense": Given("dense", dense, False), "network": Given("compressed", small, False)}


def open_data(cfg: DictConfig, nets: Mapping[str, Given], about: str | None):
    """The data to measure accuracy on, None where it is not; and why not, where nobody asked for that."""
    if not cfg.accuracy or not nets["network"].trained:
        return None, []
    automatic = cfg.data.name == "auto"
    try:
        opening.choose_data(cfg, about)
        data = opening.open_data(cfg)
        for given in nets.values():
            opening.check_classes(given.net, data)
        return data, []
    except norton.InputError as error:
        if not automatic:
            raise
        return None, [f"no accuracy: {error}"]


def calibration_images(cfg: DictConfig, nets: Mapping[str, Given], data, about: str | None) -> tuple[Tensor, list[str]]:
    """Images (N, C, H, W) for INT8 and to compare outputs on: as configured, else noise; and a word on that."""
    net = nets["network"].net
    if cfg.calibration.folder is not None:
        opening.choose_data(cfg, about)
        data = data or opening.open_data(cfg)  # whose normalisation they need
    if data is not None or cfg.calibration.folder is not None:
        return opening.calibration_images(net, cfg, data), []
    said = ["INT8 is calibrated on noise, as there are no images: its times count, not its outputs"] if cfg.int8 else []
    return noise(net, cfg.calibration.images, cfg.seed), said


def noise(net: nn.Module, count: int, seed: int) -> Tensor:
    return torch.randn(count, *net.input_size, generator=torch.Generator().manual_seed(seed))


def deploy(cfg: DictConfig, role: str, given: Given, example: Tensor) -> dict[int, nn.Module]:
    """Batch size → the network deployed for it; prints the choices, all layers for the largest."""
    found = {}
    for size in sorted(set(cfg.batch_sizes), reverse=True):
        choice = cfg.choice if role == "network" and not found else None
        found[size] = norton.deploy(given.net.eval(), example[:size], choice=choice, progress=True)
        if not choice and len(found) == 1 and (rows := found[size].deployment.rows()):
            tables.print_table([{key: row[key] for key in row if key != "tried"} for row in rows], given.name)
        print(f"{given.name}, batch {size}: {found[size].deployment.sentence()}", flush=True)
    return found


# The ways a network can go


@dataclass(frozen=True)
class Way:
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

    def forward(self, images: Tensor) -> Tensor:
        if (size := str(len(images))) in self.nets:
            return self.nets[size](images)
        parts = [F.pad(part, (0, 0) * 3 + (0, self.largest - len(part))) for part in images.split(self.largest)]
        return torch.cat([self.nets[str(self.largest)](part) for part in parts])[: len(images)]

    def __deepcopy__(self, memo: dict) -> "BySize":
        return self


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

    def ways(self) -> list[Way]:
        for size, net in self.deployed.items():
            net.deployment.save(self.path(f"batch{size}.json"))
        found = [
            Way(self.role, self.given, "eager", self.given.net, saved_bytes(self.given.net)),
            self.way("deployed", self.program),
        ]
        if self.cfg.compile:
            print(f"{self.given.name}: compile", flush=True)
            found.append(self.way("compiled", self.compiled))
        print(f"{self.given.name}: export", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            found.append(self.way("ONNX", lambda: self.onnx(Path(scratch))))
            if self.cfg.int8:
                found.append(self.way("INT8", lambda: self.int8(Path(scratch))))
        return found

    def path(self, ending: str) -> Path:
        return self.folder / f"{self.role}.{ending}"

    def way(self, form: str, make: Callable[[], tuple[nn.Module, Path | None]]) -> Way:
        try:
            net, file = make()
        except norton.InputError as error:
            self.notes.append(f"{self.given.name}, {form}, is left out: {error}")
            return Way(self.role, self.given, form, None)
        return Way(self.role, self.given, form, net, file.stat().st_size if file else None, file)

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
            nets[DENSE] = assemble(fold(self.given.net), {}, channels_last=False)
        files = {way: to_onnx(net, self.example, scratch / f"{way}.onnx").path for way, net in nets.items()}
        return self.placed(files[self.fastest("ONNX", files)], "onnx")

    def int8(self, scratch: Path) -> tuple[nn.Module, Path]:
        options = {"batch_size": self.cfg.calibration.batch_size, "reduce_range": self.cfg.reduce_range}
        made = {
            file.stem: to_int8(file, self.images, scratch / f"{file.stem}.int8", **options)
            for file in sorted(scratch.glob("*.onnx"), reverse=True)
        }
        if not made:
            raise norton.InputError("it is made from ONNX")
        best = made[self.fastest("INT8", {way: done.path for way, done in made.items()})]
        if best.in_float:
            layers = ", ".join(f"{layer} ({operator})" for layer, operator in best.in_float.items())
            self.notes.append(f"{self.given.name}, INT8: the quantiser lacks, and leaves in float32, {layers}")
        return self.placed(best.path, "int8.onnx")

    def fastest(self, form: str, files: Mapping[str, Path]) -> str:
        """The name of the file that is fastest in onnxruntime."""
        nets = {way: OnnxNet(file) for way, file in files.items()}
        times = latencies(nets, self.example, repeats=self.cfg.repeats)
        best = min(nets, key=lambda way: times[way].milliseconds)
        if len(nets) > 1:
            forms, dense = times["forms"].milliseconds, times[DENSE].milliseconds
            said = f"{forms:.2f} ms with the layers' forms from torch, {dense:.2f} ms with dense ones"
            self.notes.append(f"{self.given.name}, {form}: {said}; the faster is taken")
        return best

    def placed(self, file: Path, ending: str) -> tuple[nn.Module, Path]:
        """A file of ONNX at its place, and as a network."""
        path = write_whole(self.path(ending), file.read_bytes())
        return OnnxNet(path), path


def saved_bytes(net: nn.Module) -> int:
    """The size of a network's checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        return norton.save(net, Path(folder) / "net.pt").stat().st_size


# The measurements


def measure(ways: Sequence[Way], images: Tensor, cfg: DictConfig, data) -> list[dict[str, Any]]:
    """A record per row: file size, difference of outputs to the eager ones, accuracy, and per batch size what it takes.

    All rows take turns.
    """
    taken = {size: timed(ways, size, cfg) for size in track(cfg.batch_sizes, "time all in turns", transient=True)}
    eager: dict[str, Tensor] = {}
    rows = []
    for number, way in enumerate(ways):
        row = {"role": way.role, "network": way.given.name, "form": way.form, "file_bytes": way.size}
        row |= {"difference": None, "top1": None, "batches": {size: taken[size][number] for size in taken}}
        if way.net is not None:
            outputs = run_once(way.net, images[:COMPARED])
            row["difference"] = relative_difference(outputs, eager.setdefault(way.role, outputs))
            if data is not None and way.given.trained:
                row["top1"] = steps.evaluate(way.net, cfg, data)["top1"]
        rows.append(row)
    return rows


@torch.inference_mode()
def run_once(net: nn.Module, images: Tensor) -> Tensor:
    return net(images)


def timed(ways: Sequence[Way], size: int, cfg: DictConfig) -> list[dict[str, Any] | None]:
    """Per row, time and memory of a batch, and how many times as fast as the dense network it is in the same form."""
    nets = {f"{way.role} {way.form}": way.net for way in ways if way.net is not None}
    batch = noise(ways[0].net, size, cfg.seed)
    times = latencies(nets, batch, repeats=cfg.repeats)
    found = []
    for way in ways:
        if way.net is None:
            found.append(None)
            continue
        time, dense = times[f"{way.role} {way.form}"], times.get(f"dense {way.form}")
        inside = isinstance(way.net, OnnxNet)
        peak = run_in_fresh_process(way.file, batch).peak_bytes if inside else peak_memory(way.net, batch, time.form)
        record = {"ms": time.milliseconds, "quartiles_ms": time.quartiles, "peak_bytes": peak}
        record |= {"speedup": dense and dense.milliseconds / time.milliseconds}
        record |= {"computed_as": time.form} if way.form == "eager" else {}
        found.append(record)
    return found


def told(data) -> dict[str, Any]:
    """What the numbers depend on."""
    import onnxruntime

    versions = {"norton": norton.__version__, "torch": str(torch.__version__), "onnxruntime": onnxruntime.__version__}
    # Threads that wait actively take the cores from those of the row that is timed next.
    waiting = os.environ.get("OMP_WAIT_POLICY")
    return {"data": data and data.name, "machine": describe_machine(CPU), "wait_policy": waiting, "versions": versions}


# What people see


def table_row(row: Mapping[str, Any]) -> dict[str, Any]:
    shown = {"network": row["network"], "form": row["form"], "top-1 %": row["top1"]}
    shown["file MB"] = row["file_bytes"] and row["file_bytes"] / 1e6
    for size, found in row["batches"].items():
        shown[f"ms, batch {size} (middle half)"] = found and time_text(found["ms"], *found["quartiles_ms"])
    records = [found for found in row["batches"].values() if found and found["speedup"]]
    shown["× dense"] = ", ".join(f"{found['speedup']:.2f}" for found in records) or None
    largest = row["batches"][max(row["batches"])]
    shown["peak MB"] = largest and largest["peak_bytes"] and largest["peak_bytes"] / 1e6
    return shown


def time_text(middle: float, low: float, high: float) -> str:
    return f"{middle:.2f} ({low:.2f} to {high:.2f})" if middle < 10 else f"{middle:.1f} ({low:.1f} to {high:.1f})"


def verdicts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence per batch size on the fastest row, beside the fastest one of the dense network."""
    lines = []
    for size in rows[0]["batches"]:
        best: dict[str, Mapping[str, Any]] = {}
        for row in rows:
            if row["batches"][size] and milliseconds(row, size) < milliseconds(best.get(row["role"]), size):
                best[row["role"]] = row
        mine, dense = best["network"], best.get("dense")
        line = f"batch {size}: {mine['network']} is fastest as {mine['form']}, {milliseconds(mine, size):.2f} ms"
        if dense is not None:
            ratio = milliseconds(dense, size) / milliseconds(mine, size)
            line += f", {ratio:.2f} times as fast as the dense network at its best, {dense['form']}"
        lines.append(line)
    return lines


def milliseconds(row: Mapping[str, Any] | None, size: int) -> float:
    return row["batches"][size]["ms"] if row else float("inf")


def picture(path: Path, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Per batch size the times of all forms, dense beside compressed; below them the accuracies where there are any."""
    from matplotlib.figure import Figure

    sizes, forms = list(rows[0]["batches"]), list(dict.fromkeys(row["form"] for row in rows))
    roles = dict.fromkeys(row["role"] for row in rows)
    accurate = any(row["top1"] is not None for row in rows)
    count = len(sizes) + accurate
    figure = Figure(figsize=(1.5 + 4.2 * count, 4.2), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    colours = dict(zip(roles, ["#8c8c8c", "#4c72b0"][-len(roles) :], strict=True))
    for axis, size in zip(axes, sizes, strict=False):
        for number, role in enumerate(roles):
            mine = [row for row in rows if row["role"] == role and row["batches"][size]]
            places = [forms.index(row["form"]) + 0.4 * (number - (len(roles) - 1) / 2) for row in mine]
            found = [row["batches"][size] for row in mine]
            spread = [[f["ms"] - f["quartiles_ms"][0] for f in found], [f["quartiles_ms"][1] - f["ms"] for f in found]]
            style = {"color": colours[role], "label": mine[0]["network"], "ecolor": "#222222", "capsize": 2}
            drawn = axis.bar(places, [f["ms"] for f in found], 0.38, yerr=spread, **style)
            axis.bar_label(drawn, fmt="%.3g", padding=2, fontsize=7)
        axis.set(title=f"batch {size}", ylabel="ms (bar: middle half)")
    if accurate:
        for role, colour in colours.items():
            mine = [row for row in rows if row["role"] == role and row["top1"] is not None]
            if not mine:
                continue
            places = [forms.index(row["form"]) for row in mine]
            axes[-1].plot(places, [row["top1"] for row in mine], color=colour, marker="o", label=mine[0]["network"])
        axes[-1].set(title="accuracy", ylabel="top-1 %")
    for axis in axes:
        axis.set_xticks(range(len(forms)), forms, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)
        axis.margins(y=0.15)
    axes[0].legend(fontsize=8)
    pictures.save_figure(path, figure, title)


if __name__ == "__main__":
    main()
