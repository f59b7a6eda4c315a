"""The measurements of all variants, in turns."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from rich.progress import track
from torch import Tensor, nn

import norton
from experiments.deployment.networks import noise
from experiments.deployment.variants import Variant
from norton.cli import opening, steps
from norton.deployment.exported import relative_difference
from norton.deployment.onnx_networks import OnnxNet, run_in_fresh_process
from norton.measure.latency import latencies, peak_memory
from norton.measure.machine import describe_machine

if TYPE_CHECKING:
    from norton.data.datamodule import ClassificationData

CPU = torch.device("cpu")
COMPARED = 32  # images for the difference of outputs


def measure(
    variants: Sequence[Variant], images: Tensor, cfg: DictConfig, data: "ClassificationData | None"
) -> list[dict[str, Any]]:
    """A record per row: file size, difference of outputs to the eager ones, accuracy, and per batch size what it takes.

    All rows take turns.
    """
    taken = {size: timed(variants, size, cfg) for size in track(cfg.batch_sizes, "time all in turns", transient=True)}
    eager: dict[str, Tensor] = {}
    rows = []
    score = opening.score_of(data)[0]
    for number, variant in enumerate(variants):
        row: dict[str, Any] = {
            "role": variant.role,
            "network": variant.given.name,
            "form": variant.form,
            "file_bytes": variant.size,
        }
        row |= {"difference": None, score: None, "batches": {size: taken[size][number] for size in taken}}
        if variant.net is not None:
            outputs = run_once(variant.net, images[:COMPARED])
            row["difference"] = relative_difference(outputs, eager.setdefault(variant.role, outputs))
            if data is not None and variant.given.trained:
                row[score] = steps.evaluate(variant.net, cfg, data)[score]
        rows.append(row)
    return rows


@torch.inference_mode()
def run_once(net: nn.Module, images: Tensor) -> Tensor:
    return net(images)


def timed(variants: Sequence[Variant], size: int, cfg: DictConfig) -> list[dict[str, Any] | None]:
    """Per row, time and memory of a batch, and how many times as fast as the dense network it is in the same form."""
    nets = {f"{variant.role} {variant.form}": variant.net for variant in variants if variant.net is not None}
    batch = noise(variants[0].net, size, cfg.seed)
    times = latencies(nets, batch, repeats=cfg.repeats)
    found: list[dict[str, Any] | None] = []
    for variant in variants:
        if variant.net is None:
            found.append(None)
            continue
        time, dense = times[f"{variant.role} {variant.form}"], times.get(f"dense {variant.form}")
        if isinstance(variant.net, OnnxNet) and variant.file is not None:
            peak = run_in_fresh_process(variant.file, batch).peak_bytes
        else:
            peak = peak_memory(variant.net, batch, time.form)
        record = {"ms": time.milliseconds, "quartiles_ms": time.quartiles, "peak_bytes": peak}
        record |= {"speedup": dense and dense.milliseconds / time.milliseconds}
        record |= {"computed_as": time.form} if variant.form == "eager" else {}
        found.append(record)
    return found


def told(data: "ClassificationData | None") -> dict[str, Any]:
    """What the numbers depend on."""
    import onnxruntime

    versions = {"norton": norton.__version__, "torch": str(torch.__version__), "onnxruntime": onnxruntime.__version__}
    # Threads that wait actively take the cores from those of the row that is timed next.
    waiting = os.environ.get("OMP_WAIT_POLICY")
    return {"data": data and data.name, "machine": describe_machine(CPU), "wait_policy": waiting, "versions": versions}
