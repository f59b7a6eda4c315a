"""A network as a file for other runtimes: a torch.export program or ONNX (`norton.deployment.int8`: in 8-bit integers).

What goes in is a deployed network (`norton.deploy`) or any other that torch.export can follow; what comes out takes
batches of any size.  Every file is opened again and its outputs compared with the network's before it is written, whole
or not at all.
"""

import ast
import inspect
import io
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_map

from norton.common.errors import InputError, warn
from norton.common.extras import optional
from norton.common.files import write_whole
from norton.deployment.entrance import without_layout_
from norton.deployment.exported import Exported, batch_of, compared, described, names_of, quiet, tensors_in, told_first
from norton.deployment.onnx_networks import OnnxNet
from norton.graph.copies import copied
from norton.graph.inputs import Example, Inputs, inputs_of
from norton.graph.layers import network_in

if TYPE_CHECKING:
    from onnx import ModelProto

_DOES_NOT_TAKE = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)  # what networks raise for bad input


def to_program(net: nn.Module, example: Example, path: str | Path) -> Exported:
    """Write a network as a program of `torch.export` (.pt2), which needs torch alone: `torch.export.load`.

    example: a batch in float32 that the network takes, images (N, C, H, W) or others; a tuple of several, or a dict of
    arguments by name.  Raises InputError, with the layer where it can be told, for a network that torch.export cannot
    follow, and for an example that does not fit.
    """
    net = prepared(net, example)
    program, buffer = program_of(net, example), io.BytesIO()
    with quiet():
        torch.export.save(program, buffer)
    buffer.seek(0)
    difference = compared("the program", torch.export.load(buffer).module(), net, inputs_of(example).to("cpu"))
    return Exported(write_whole(path, buffer.getvalue()), difference)


def to_onnx(net: nn.Module, example: Example, path: str | Path) -> Exported:
    """Write a network as ONNX, input `images` and output `outputs`, whose nodes are named by their layers.

    Several inputs have the names of their arguments, several outputs those that a dictionary gives them, else
    `outputs_0` and so on.

    example: a batch in float32 that the network takes, images (N, C, H, W) or others; a tuple of several, or a dict of
    arguments by name.  The file passes ONNX's own checker, and onnxruntime gives the network's outputs.  Raises
    InputError for an example that does not fit, and, with the layer, for operators that ONNX or onnxruntime lack.
    """
    with optional():
        import onnx  # this and onnxruntime take a second
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401

    net = contiguous_(prepared(net, example))
    inputs = batch_of(inputs_of(example).to("cpu"), 1)
    given = names_of(arguments(net, inputs), "inputs")
    given = given if isinstance(example, Mapping) or len(given) > 1 else ["images"]
    program = program_of(net, example)
    model = onnx_model(program, given, names_of(inputs.call(net), "outputs"), sized(net, inputs, "batch"))
    name_nodes_(model)
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString()
    difference = compared("onnxruntime", OnnxNet(content), net, inputs)
    return Exported(write_whole(path, content), difference)


def prepared(net: nn.Module, example: Example) -> nn.Module:
    """A copy on the CPU for evaluation.  Raises InputError for an example that it does not take."""
    inputs = inputs_of(example) if isinstance(example, Tensor | tuple | list | Mapping) else Inputs()
    numbers = [x for x in inputs.tensors if x.is_floating_point()]
    batch = any(x.ndim > 1 for x in numbers) and all(x.numel() for x in inputs.tensors)
    if not batch or any(x.dtype != torch.float32 for x in numbers):
        raise InputError(f"the example is {described(example)}; give a batch of images (N, C, H, W) in float32")
    if net.training:
        warn("the network is in training mode; it is exported as it evaluates")
    net = copied(network_in(net)).eval().cpu().requires_grad_(False)
    try:
        outputs = batch_of(inputs.to("cpu"), 1).call(net)
    except _DOES_NOT_TAKE as error:
        raise InputError(
            f"the network does not take the example, {described(example)}: {told_first(error)}; give a batch of "
            "images like those it was made for"
        ) from error
    if not tensors_in(outputs):
        raise InputError(f"the network gives a {type(outputs).__name__} without tensors; there is nothing to export")
    return net


def program_of(net: nn.Module, example: Example) -> ExportedProgram:
    """The network as a program for batches of any size."""
    two = batch_of(inputs_of(example).to("cpu"), 2)  # at one torch.export would take the batch size for a constant
    shapes = sized(net, two, Dim("batch"))
    try:
        with quiet():
            return torch.export.export(net, two.args, dict(two.kwargs), dynamic_shapes=shapes)
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


def sized(net: nn.Module, inputs: Inputs, batch: Any) -> dict[str, Any]:
    """Argument → for each tensor in it, what its first dimension is called where that is the batch, else None."""
    same = zip(inputs.tensors, batch_of(inputs, len(inputs.tensors[0]) + 1).tensors, strict=True)
    batches = {id(x) for x, other in same if x is not other}
    return tree_map(lambda x: {0: batch} if id(x) in batches else None, arguments(net, inputs))


def arguments(net: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """What a network is called with, by the names of its arguments."""
    return dict(inspect.signature(net.forward).bind(*inputs.args, **inputs.kwargs).arguments)


def onnx_model(program: ExportedProgram, inputs: list[str], outputs: list[str], sizes: dict[str, Any]) -> "ModelProto":
    """The program as an ONNX model, whose inputs, outputs and sizes have these names."""
    clash = set(inputs) & set(outputs)
    outputs = [f"{name}_out" if name in clash else name for name in outputs]
    names = {"input_names": inputs, "output_names": outputs, "dynamic_shapes": sizes}
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
