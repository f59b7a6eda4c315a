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
from norton.deployment.exported import described, told_first


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
        self.input_name = self.session.get_inputs()[0].name

    def forward(self, images: Tensor) -> Any:
        try:
            outputs = self.session.run(None, {self.input_name: np.ascontiguousarray(images.numpy(force=True))})
        except _refusals() as error:
            wanted = self.session.get_inputs()[0]
            raise InputError(
                f"images are {described(images)}; the file takes {wanted.type} of {tuple(wanted.shape)}, "
                f"as the example was that it was exported with; onnxruntime says: {_reason(error)}"
            ) from error
        found = tuple(torch.from_numpy(output).to(images.device) for output in outputs)
        return found if len(found) > 1 else found[0]

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
