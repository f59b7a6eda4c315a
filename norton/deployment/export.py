"""A network as a file for other runtimes: a torch.export program or ONNX (`norton.deployment.int8`: in 8-bit integers).

What goes in is a deployed network (`norton.deploy`) or any other that torch.export can follow; what comes out takes
batches of any size.  Every file is opened again and its outputs compared with the network's before it is written, whole
or not at all.
"""

import ast
import io
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_flatten_with_path

from norton.common.errors import InputError, warn
from norton.common.extras import optional
from norton.common.files import write_whole
from norton.deployment.entrance import without_layout_
from norton.deployment.exported import Exported, compared, described, quiet, tensors_in, told_first
from norton.deployment.onnx_networks import OnnxNet
from norton.graph.copies import copied
from norton.graph.layers import network_in

if TYPE_CHECKING:
    from onnx import ModelProto

_DOES_NOT_TAKE = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)  # what networks raise for bad input


def to_program(net: nn.Module, example: Tensor, path: str | Path) -> Exported:
    """Write a network as a program of `torch.export` (.pt2), which needs torch alone: `torch.export.load`.

    example: a batch in float32 that the network takes, images (N, C, H, W) or others.  Raises InputError, with the
    layer where it can be told, for a network that torch.export cannot follow, and for an example that does not fit.
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

    Several outputs have the names that a dictionary gives them, else `outputs_0` and so on.

    example: a batch in float32 that the network takes, images (N, C, H, W) or others.  The file passes ONNX's own
    checker, and onnxruntime gives the network's outputs.  Raises InputError for an example that does not fit, and, with
    the layer, for operators that ONNX or onnxruntime lack.
    """
    with optional():
        import onnx  # this and onnxruntime take a second
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401

    net = contiguous_(prepared(net, example))
    model = onnx_model(program_of(net, example), output_names(net(example[:1].cpu())))
    name_nodes_(model)
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString()
    difference = compared("onnxruntime", OnnxNet(content), net, example)
    return Exported(write_whole(path, content), difference)


def prepared(net: nn.Module, example: Tensor) -> nn.Module:
    """A copy on the CPU for evaluation.  Raises InputError for an example that it does not take."""
    if not (isinstance(example, Tensor) and example.ndim > 1 and example.numel() and example.dtype == torch.float32):
        raise InputError(f"the example is {described(example)}; give a batch of images (N, C, H, W) in float32")
    if net.training:
        warn("the network is in training mode; it is exported as it evaluates")
    net = copied(network_in(net)).eval().cpu().requires_grad_(False)
    try:
        outputs = net(example[:1].cpu())
    except _DOES_NOT_TAKE as error:
        raise InputError(
            f"the network does not take the example, {described(example)}: {told_first(error)}; give a batch of "
            "images like those it was made for"
        ) from error
    if not tensors_in(outputs):
        raise InputError(f"the network gives a {type(outputs).__name__} without tensors; there is nothing to export")
    return net


def program_of(net: nn.Module, example: Tensor) -> ExportedProgram:
    """The network as a program for batches of any size."""
    two = (
        example[:1].cpu().repeat(2, *[1] * (example.ndim - 1))
    )  # at one image torch.export would take the batch size for a constant
    try:
        with quiet():
            return torch.export.export(net, (two,), dynamic_shapes=({0: Dim("batch")},))
    except (RuntimeError, ValueError) as error:  # the latter for shapes that it follows and finds bad
        layer = re.search(r"call_module\[target=([\w.]+)\]", str(error))
        raise InputError(
            f"torch.export cannot follow {layer[1] if layer else 'the network'} for batches of any size: "
            f"{told_first(error)}"
        ) from error


def contiguous_(net: nn.Module) -> nn.Module:
    """Let a deployed network compute in torch's usual memory format.

    ONNX has no other, and would take the strides of channels-last for arithmetic on positions.
    """
    return without_layout_(net).to(memory_format=torch.contiguous_format)


def output_names(outputs: Any) -> list[str]:
    """A name for each tensor that a network returns: `outputs`, or of where it is in what is returned."""
    leaves, _ = tree_flatten_with_path(outputs)
    paths = [path for path, value in leaves if isinstance(value, Tensor)]
    names = ["_".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path) for path in paths]
    if any(not name.isidentifier() for name in names):
        names = [f"outputs_{name}".rstrip("_") for name in names]
    distinct = len(set(names)) == len(names) and "images" not in names
    return names if distinct else [f"outputs_{place}" for place in range(len(names))]


def onnx_model(program: ExportedProgram, outputs: list[str]) -> "ModelProto":
    """The program as an ONNX model, whose outputs have these names."""
    names = {"input_names": ["images"], "output_names": outputs, "dynamic_shapes": ({0: "batch"},)}
    try:
        with quiet():
            return torch.onnx.export(program, dynamo=True, verbose=False, **names).model_proto
    except torch.onnx.OnnxExporterError as error:
        operator = re.search(r"OpOverload\(op='([\w.:]+)'", str(error))
        if not operator:
            raise InputError(f"the network cannot be written as ONNX: {told_first(error)}") from error
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


def name_nodes_(model: "ModelProto") -> None:
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
