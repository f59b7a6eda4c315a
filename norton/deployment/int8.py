"""An ONNX file in 8-bit integers."""

import math
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from norton.calibration import ImageSource, read_images
from norton.common.checks import check_whole_number
from norton.common.errors import InputError, first_line
from norton.common.extras import optional
from norton.common.files import write_whole
from norton.deployment.exported import Exported, batch_of, described, quiet, relative_difference
from norton.deployment.onnx_networks import OnnxNet
from norton.graph.inputs import Inputs, inputs_of

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto
    from onnxruntime.quantization import CalibrationDataReader


def to_int8(
    file: str | Path, images: ImageSource, path: str | Path, *, batch_size: int = 32, reduce_range: bool | None = None
) -> Exported:
    """Write an ONNX file of `to_onnx` in 8-bit integers: weights per channel, activations by their range on images.

    images: for calibration, (N, C, H, W) or as the file takes them, transformed as for evaluation; a few hundred.  A
    tuple or a dict of the network's arguments where it takes several; or a DataLoader or list of batches.
    batch_size: so many at once.  reduce_range: weights of 7 bits, for an x86 CPU without VNNI instructions, whose sums
    of products would saturate; None: where this machine is one.  Operators that the quantiser lacks stay in float32,
    see `Exported`.  Raises InputError where nothing is left to quantise, for a file that is INT8 already or that the
    quantiser fails on, and for images that do not fit or are not finite.

    Source: onnxruntime's static quantisation with its preprocessing, QuantizeLinear and DequantizeLinear around each
    operator.
    """
    with optional():
        import onnx
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

    expected = OnnxNet(file)
    batches = calibration_batches(expected, images, batch_size)
    batch_of(batches[0], 1).call(expected)  # images that do not fit show here
    model = onnx.load(file)
    operators = {node.op_type for node in model.graph.node}
    if "QuantizeLinear" in operators:
        raise InputError(f"{file}: is in 8-bit integers already; give the file of to_onnx in float32")
    if not operators & {"Conv", "ConvTranspose", "Gemm", "MatMul"}:
        raise InputError(f"{file}: has no convolution or linear layer to quantise, only {', '.join(sorted(operators))}")
    skipped = {node.name: node.op_type for node in model.graph.node if not _is_quantised(node)}
    overflow = InputError(f"{file}: what it computes on these images is too large for float32; scale them as for it")
    with tempfile.TemporaryDirectory() as folder, quiet():
        ready, done = Path(folder) / "ready.onnx", Path(folder) / "int8.onnx"
        # Its symbolic inference fails where shapes are computed, as in F.normalize; ONNX's own finds them too.
        quant_pre_process(file, ready, skip_symbolic_shape=True)
        try:
            quantize_static(
                ready,
                done,
                read_by_quantiser(expected, batches),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=sums_saturate() if reduce_range is None else reduce_range,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=list(skipped),
            )
        except AssertionError as error:  # of a range that is not finite
            raise overflow from error
        except Exception as error:  # whatever the quantiser meets that it does not expect
            raise InputError(f"{file}: onnxruntime's quantiser fails on it ({first_line(error)})") from error
        content = done.read_bytes()
    difference = relative_difference(batches[0].call(OnnxNet(content)), batches[0].call(expected))
    if not math.isfinite(difference):
        raise overflow
    return Exported(
        write_whole(path, content), difference, in_float(model) | {_layer(name): kind for name, kind in skipped.items()}
    )


@cache
def sums_saturate() -> bool:
    """Whether onnxruntime's sums of products of 8-bit integers are wrong on this CPU, by the largest ones there are.

    Source: onnxruntime's page on quantisation, of the instructions VPMADDUBSW of AVX2 and AVX-512.
    """
    with optional():
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper

    length, sides = 64, ("images", "weights", "sums")
    product = helper.make_node("MatMulInteger", sides[:2], sides[2:])
    weights = numpy_helper.from_array(np.full((length, 32), 127, np.int8), sides[1])
    given = helper.make_tensor_value_info(sides[0], TensorProto.UINT8, [1, length])
    found = helper.make_tensor_value_info(sides[2], TensorProto.INT32, [1, 32])
    graph = helper.make_graph([product], "product", [given], [found], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (sums,) = session.run(None, {sides[0]: np.full((1, length), 255, np.uint8)})
    return bool((sums != 127 * 255 * length).any())


def calibration_batches(net: nn.Module, images: ImageSource, batch_size: int) -> list[Inputs]:
    """The images in batches.  Raises InputError for what no calibration can go by, whatever the network."""
    check_whole_number("batch_size", batch_size, 1)
    if not isinstance(images, tuple | Mapping):
        images, _ = read_images(net, images)
    if isinstance(images, list):
        return [batch for one in images for batch in calibration_batches(net, one, batch_size)]
    inputs = inputs_of(images) if isinstance(images, Tensor | tuple | Mapping) else Inputs()
    count = max((len(x) for x in inputs.tensors if x.ndim > 1 and x.numel()), default=0)
    if not count:
        raise InputError(f"the images for calibration are {described(images)}; give a few hundred as (N, C, H, W)")
    if not all(x.isfinite().all() for x in inputs.tensors):
        raise InputError("the images for calibration hold values that are not finite; leave those out")

    def part(start: int) -> Inputs:
        return inputs.map(lambda x: x[start : start + batch_size] if x.ndim and len(x) == count else x)

    return [part(start) for start in range(0, count, batch_size)]


def read_by_quantiser(net: OnnxNet, batches: list[Inputs]) -> "CalibrationDataReader":
    """Batches as onnxruntime's quantiser wants to read them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Batches(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> dict | None:
            batch = next(self.left, None)
            if batch is None:
                return None
            return {name: x.numpy(force=True) for name, x in net.given(*batch.args, **batch.kwargs).items()}

    return Batches()


def in_float(model: "ModelProto") -> dict[str, str]:
    """Layer → operator on floating-point numbers that onnxruntime's quantiser does not know."""
    from onnx import TensorProto
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    known = {*QDQRegistry, *QLinearOpsRegistry, "Identity"}
    values = (*model.graph.value_info, *model.graph.output)
    floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return {
        _layer(node.name): node.op_type
        for node in model.graph.node
        if node.op_type not in known and node.output[0] in floats
    }


def _layer(node: str) -> str:
    return node.rpartition("/")[0] or node


def _is_quantised(node: "NodeProto") -> bool:
    """Whether onnxruntime's quantiser takes a node: of grouped transposed convolutions it mistakes the channels."""
    groups = next((given.i for given in node.attribute if given.name == "group"), 1)
    return node.op_type != "ConvTranspose" or groups == 1
