"""ONNX files that compute as networks do, in this process by onnxruntime, or in one that has nothing else."""

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from norton.common.errors import InputError
from norton.common.extras import optional
from norton.deployment.exported import described, names_of, tensors_in, told_first


class OnnxNet(nn.Module):
    """An ONNX file that computes as a network does: images in, a tensor out, by onnxruntime on the CPU.

    Of a network that gives several tensors, a tuple of them.  file: its path or content.  threads: None, as many as
    torch uses.  Copies share the session.  Raises InputError for a file that is none or has operators that onnxruntime
    lacks, with the layer, and for images that do not fit.
    """

    def __init__(self, file: str | Path | bytes, threads: int | None = None):
        with optional():
            import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
        # Or its threads would go on waiting actively after a run, at the cost of what is timed next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 3  # errors; its warnings are about its own optimiser
        content = file if isinstance(file, bytes) else str(file)
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except _refusals() as error:
            told = "the network" if isinstance(file, bytes) else file
            raise InputError(f"onnxruntime cannot open {told}: {_reason(error)}") from error

    def forward(self, *images: Any, **named: Any) -> Any:
        """Inputs in the order of the file's, or by the names of the network's arguments."""
        given = self.given(*images, **named)
        try:
            arrays = {name: np.ascontiguousarray(x.numpy(force=True)) for name, x in given.items()}
            outputs = self.session.run(None, arrays)
        except _refusals() as error:
            takes = " and ".join(f"{wanted.type} of {tuple(wanted.shape)}" for wanted in self.session.get_inputs())
            raise InputError(
                f"images are {described(tuple(given.values()))}; the file takes {takes}, as the example was that it "
                f"was exported with; onnxruntime says: {_reason(error)}"
            ) from error
        found = tuple(torch.from_numpy(output).to(next(iter(given.values())).device) for output in outputs)
        return found if len(found) > 1 else found[0]

    def given(self, *images: Any, **named: Any) -> dict[str, Tensor]:
        """Input of the file → what is given for it."""
        names = [wanted.name for wanted in self.session.get_inputs()]
        found = dict(zip(names_of(named, "inputs"), tensors_in(named), strict=True))
        rest = tensors_in(images)
        if len(rest) + len(found) != len(names) or not found.keys() <= set(names):
            raise InputError(f"{len(rest) + len(found)} tensors are given; the file takes {', '.join(names)}")
        return found | dict(zip([name for name in names if name not in found], rest, strict=True))

    def __deepcopy__(self, memo: dict) -> "OnnxNet":
        return self  # nothing in it changes


@dataclass(frozen=True)
class FreshRun:
    """What `run_onnx.py` found: outputs, median time of a batch, memory beside the opened file (None: not told)."""

    outputs: Tensor
    milliseconds: float
    peak_bytes: int | None


def run_in_fresh_process(file: str | Path, images: Tensor, *, threads: int | None = None, repeats: int = 5) -> FreshRun:
    """Run an ONNX file in a fresh process that has only onnxruntime and NumPy."""
    script = Path(__file__).with_name("run_onnx.py")
    threads = torch.get_num_threads() if threads is None else threads
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "images.npy", Path(folder) / "outputs.npy"
        np.save(given, images.numpy(force=True))
        # -P: not this folder's modules in the place of others'
        words = [sys.executable, "-P", script, file, given, found, f"--threads={threads}", f"--repeats={repeats}"]
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
        if done.returncode:
            raised = re.findall(r"^[\w.]+: .*", done.stderr, re.MULTILINE) or ["it ended"]
            raise InputError(f"{file} does not run in a process of its own: {raised[-1]}")
        return FreshRun(torch.from_numpy(np.load(found)), **json.loads(done.stdout))


def _refusals() -> tuple[type[Exception], ...]:
    """What onnxruntime raises; its exceptions have no common base."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = "Fail InvalidArgument InvalidGraph InvalidProtobuf NoSuchFile NotImplemented RuntimeException"
    return tuple(getattr(state, name) for name in names.split())


def _reason(error: Exception) -> str:
    """What onnxruntime says, without its codes."""
    return told_first(str(error).rpartition(" : ")[2])
