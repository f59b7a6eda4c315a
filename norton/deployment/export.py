"""A network as a file for other runtimes: a torch.export program, ONNX, and ONNX in 8-bit integers.

What goes in is a deployed network (`norton.deploy`) or any other that torch.export can follow; what comes out takes
batches of any size.  Every file is opened again and its outputs compared with the network's before it is written, whole
or not at all.
"""

import ast
import contextlib
import copy
import io
import json
import logging
import math
import re
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from norton.common.errors import InputError, first_line, warn
from norton.common.files import write_whole

TOLERANCE = 1e-4  # relative difference of outputs, in float32
_BATCHES = (1, 3)  # sizes at which outputs are compared; the network is traced with another
_DOES_NOT_TAKE = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)  # what networks raise for bad input


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    difference: of its outputs to those of what it came from, ‖y - y'‖ / ‖y‖.  in_float: for INT8, layer → operator that
    the quantiser lacks, which computes in float32 as before.
    """

    path: Path
    difference: float
    in_float: Mapping[str, str] = field(default_factory=dict)


def to_program(net: nn.Module, example: Tensor, path: str | Path) -> Exported:
    """Write a network as a program of `torch.export` (.pt2), which needs torch alone: `torch.export.load`.

    example: a batch (N, C, H, W) in float32 that the network takes.  Raises InputError, with the layer where it can be
    told, for a network that torch.export cannot follow, and for an example that does not fit.
    """
    net = prepared(net, example)
    program, buffer = program_of(net, example), io.BytesIO()
    with quiet():
        torch.export.save(program, buffer)
    buffer.seek(0)
    difference = compared("the program", torch.export.load(buffer).module(), net, example)
    return Exported(write_whole(path, buffer.getvalue()), difference)


def to_onnx(net: nn.Module, example: Tensor, path: str | Path) -> Exported:
    """Write a network as ONNX, input `images` and output `outputs`, whose nodes are named by their layers.

    example: a batch (N, C, H, W) in float32 that the network takes.  The file passes ONNX's own checker, and
    onnxruntime gives the network's outputs.  Raises InputError for an example that does not fit, and, with the layer,
    for operators that ONNX or onnxruntime lack.
    """
    import onnx  # this and onnxruntime take a second

    net = contiguous_(prepared(net, example))
    model = onnx_model(program_of(net, example))
    name_nodes_(model)
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString()
    difference = compared("onnxruntime", OnnxNet(content), net, example)
    return Exported(write_whole(path, content), difference)


def to_int8(
    file: str | Path, images: Tensor, path: str | Path, *, batch_size: int = 32, reduce_range: bool = False
) -> Exported:
    """Write an ONNX file of `to_onnx` in 8-bit integers: weights per channel, activations by their range on images.

    images: (N, C, H, W) for calibration, transformed as for evaluation; a few hundred.  batch_size: so many at once.
    reduce_range: weights of 7 bits, for an x86 CPU without VNNI instructions, whose sums of products would saturate.
    Operators that the quantiser lacks stay in float32, see `Exported`.  Raises InputError where nothing is left to
    quantise, for a file that is INT8 already, and for images that do not fit or are not finite.

    Source: onnxruntime's static quantisation with its preprocessing, QuantizeLinear and DequantizeLinear around each
    operator.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    check_calibration(images, batch_size)
    expected = OnnxNet(file)
    expected(images[:1])  # images that do not fit show here
    model = onnx.load(file)
    operators = {node.op_type for node in model.graph.node}
    if "QuantizeLinear" in operators:
        raise InputError(f"{file}: is in 8-bit integers already; give the file of to_onnx in float32")
    if not operators & {"Conv", "ConvTranspose", "Gemm", "MatMul"}:
        raise InputError(f"{file}: has no convolution or linear layer to quantise, only {', '.join(sorted(operators))}")
    overflow = InputError(f"{file}: what it computes on these images is too large for float32; scale them as for it")
    with tempfile.TemporaryDirectory() as folder, quiet():
        ready, done = Path(folder) / "ready.onnx", Path(folder) / "int8.onnx"
        quant_pre_process(file, ready)
        try:
            quantize_static(
                ready,
                done,
                calibration_batches(expected.input_name, images, batch_size),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=reduce_range,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        except AssertionError as error:  # of a range that is not finite
            raise overflow from error
        content = done.read_bytes()
    some = images[:batch_size]
    difference = relative(OnnxNet(content)(some), expected(some))
    if not math.isfinite(difference):
        raise overflow
    return Exported(write_whole(path, content), difference, in_float(model))


class OnnxNet(nn.Module):
    """An ONNX file that computes as a network does: images (N, C, H, W) in, a tensor out, by onnxruntime on the CPU.

    file: its path or content.  threads: None, as many as torch uses.  Copies share the session.  Raises InputError for
    a file that is none or has operators that onnxruntime lacks, with the layer, and for images that do not fit.
    """

    def __init__(self, file: str | Path | bytes, threads: int | None = None):
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

    def forward(self, images: Tensor) -> Tensor:
        try:
            (outputs,) = self.session.run(None, {self.input_name: np.ascontiguousarray(images.numpy(force=True))})
        except _refusals() as error:
            wanted = self.session.get_inputs()[0]
            raise InputError(
                f"images are {_described(images)}; the file takes {wanted.type} of {tuple(wanted.shape)}, "
                f"as the example was that it was exported with; onnxruntime says: {_reason(error)}"
            ) from error
        return torch.from_numpy(outputs).to(images.device)

    def __deepcopy__(self, memo: dict) -> "OnnxNet":
        return self  # nothing in it changes


@dataclass(frozen=True)
class Alone:
    """What `run_onnx.py` found: outputs, median time of a batch, and memory beside the opened file (None: not told)."""

    outputs: Tensor
    milliseconds: float
    peak_bytes: int | None


def run_alone(file: str | Path, images: Tensor, *, threads: int | None = None, repeats: int = 5) -> Alone:
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
        return Alone(torch.from_numpy(np.load(found)), **json.loads(done.stdout))


# From a network to a program


def prepared(net: nn.Module, example: Tensor) -> nn.Module:
    """A copy on the CPU for evaluation.  Raises InputError for an example that it does not take."""
    if not (isinstance(example, Tensor) and example.ndim == 4 and len(example) and example.dtype == torch.float32):
        raise InputError(f"the example is {_described(example)}; give a batch of images (N, C, H, W) in float32")
    if net.training:
        warn("the network is in training mode; it is exported as it evaluates")
    net = getattr(net, "_orig_mod", net)  # what torch.compile was given
    net = copy.deepcopy(net).eval().cpu().requires_grad_(False)
    try:
        outputs = net(example[:1].cpu())
    except _DOES_NOT_TAKE as error:
        raise InputError(
            f"the network does not take the example, {_described(example)}: {_first_line(error)}; give a batch of "
            "images like those it was made for"
        ) from error
    if not isinstance(outputs, Tensor):
        raise InputError(
            f"the network gives a {type(outputs).__name__}; only networks that give one tensor are exported"
        )
    return net


def program_of(net: nn.Module, example: Tensor) -> ExportedProgram:
    """The network as a program for batches of any size."""
    two = example[:1].cpu().repeat(2, 1, 1, 1)  # at one image torch.export would take the batch size for a constant
    try:
        with quiet():
            return torch.export.export(net, (two,), dynamic_shapes=({0: Dim("batch")},))
    except (RuntimeError, ValueError) as error:  # the latter for shapes that it follows and finds bad
        layer = re.search(r"call_module\[target=([\w.]+)\]", str(error))
        raise InputError(
            f"torch.export cannot follow {layer[1] if layer else 'the network'} for batches of any size: "
            f"{_first_line(error)}"
        ) from error


def contiguous_(net: nn.Module) -> nn.Module:
    """Let a deployed network compute in torch's usual memory format.

    ONNX has no other, and would take the strides of channels-last for arithmetic on positions.  Other calls of
    `contiguous` stay: a view may need them.
    """
    if isinstance(net, torch.fx.GraphModule):
        for node in net.graph.find_nodes(op="call_method", target="contiguous"):
            if node.kwargs.get("memory_format") == torch.channels_last:
                node.replace_all_uses_with(node.args[0])
                net.graph.erase_node(node)
        net.recompile()
    return net.to(memory_format=torch.contiguous_format)


def onnx_model(program: ExportedProgram):
    """The program as an ONNX model."""
    names = {"input_names": ["images"], "output_names": ["outputs"], "dynamic_shapes": ({0: "batch"},)}
    try:
        with quiet():
            return torch.onnx.export(program, dynamo=True, verbose=False, **names).model_proto
    except torch.onnx.OnnxExporterError as error:
        operator = re.search(r"OpOverload\(op='([\w.:]+)'", str(error))
        if not operator:
            raise InputError(f"the network cannot be written as ONNX: {_first_line(error)}") from error
        layers = layers_with(operator[1], program.run_decompositions()) or layers_with(operator[1], program)
        raise InputError(
            f"{', '.join(layers) or 'the network'}: ONNX has no operator for {operator[1]}; compute it in another way, "
            "or use to_program"
        ) from error


def layers_with(operator: str, program: ExportedProgram) -> list[str]:
    """The layers of a program that an operator computes in."""
    return [_layer_of(node) for node in program.graph.nodes if str(node.target).startswith(operator)]


def _layer_of(node: torch.fx.Node) -> str:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return stack[-1][0] if stack and stack[-1][0] else "the network's own forward"


def name_nodes_(model) -> None:
    """Name the nodes of an ONNX model `layer/operator`, in the place of notes on where in the code they come from."""
    seen: Counter[str] = Counter()
    for node in model.graph.node:
        told = {entry.key: entry.value for entry in node.metadata_props}
        scopes = ast.literal_eval(told.get("pkg.torch.onnx.name_scopes", "[]"))  # outermost first, the operator last
        name = f"{scopes[-2] if len(scopes) > 1 else ''}/{node.op_type}".lstrip("/")
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"
        node.ClearField("metadata_props")
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        value.ClearField("metadata_props")


# INT8


def check_calibration(images: Tensor, batch_size: int) -> None:
    """Raise InputError for what no calibration can go by, whatever the network."""
    if not (isinstance(images, Tensor) and images.ndim == 4 and images.numel()):
        raise InputError(f"the images for calibration are {_described(images)}; give a few hundred as (N, C, H, W)")
    if not images.isfinite().all():
        raise InputError("the images for calibration hold values that are not finite; leave those out")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size is {batch_size!r}; it must be a whole number of at least 1")


def calibration_batches(name: str, images: Tensor, batch_size: int):
    """The images as onnxruntime's quantiser wants to read them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Batches(CalibrationDataReader):
        def __init__(self):
            self.batches = iter(images.split(batch_size))

        def get_next(self) -> dict | None:
            batch = next(self.batches, None)
            return None if batch is None else {name: batch.numpy(force=True)}

    return Batches()


def in_float(model) -> dict[str, str]:
    """Layer → operator on floating-point numbers that onnxruntime's quantiser does not know."""
    from onnx import TensorProto
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    known = {*QDQRegistry, *QLinearOpsRegistry, "Identity"}
    values = (*model.graph.value_info, *model.graph.output)
    floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return {
        node.name.rpartition("/")[0] or node.name: node.op_type
        for node in model.graph.node
        if node.op_type not in known and node.output[0] in floats
    }


# What is common to them


def compared(what: str, run: Callable[[Tensor], Tensor], net: nn.Module, example: Tensor) -> float:
    """The largest relative difference over batch sizes.  Raises InputError above `TOLERANCE`."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for size in _BATCHES:
        images = torch.randn(size, *example.shape[1:], generator=generator)
        worst = max(worst, relative(run(images), net(images)))
    if worst > TOLERANCE:
        raise InputError(
            f"the outputs of {what} differ from the network's by {worst:.1e} of their size, more than {TOLERANCE:.0e}; "
            "nothing was written"
        )
    return worst


def relative(found: Tensor, expected: Tensor) -> float:
    """‖y - y'‖ / ‖y‖, infinite where shapes differ or a value is not finite."""
    if found.shape != expected.shape or not found.isfinite().all():
        return float("inf")
    size = torch.linalg.vector_norm(expected)
    return (torch.linalg.vector_norm(found - expected) / size.where(size > 0, 1)).item()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the remarks of exporters and quantiser, which are for their developers; errors come through."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.ERROR))
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _refusals() -> tuple[type[Exception], ...]:
    """What onnxruntime raises; its exceptions have no common base."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented")
    names += ("RuntimeException",)
    return tuple(getattr(state, name) for name in names)


def _reason(error: Exception) -> str:
    """What onnxruntime says, without its codes."""
    return _first_line(str(error).rpartition(" : ")[2])


def _first_line(error: Exception | str) -> str:
    return first_line(error).partition(" For more information")[0].rstrip(".;:!")


def _described(images: object) -> str:
    if not isinstance(images, Tensor):
        return f"a {type(images).__name__}"
    return f"{str(images.dtype).removeprefix('torch.')} of {tuple(images.shape)}"
