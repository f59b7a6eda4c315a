"""CP filters in one pass, in Triton's interpreter on the CPU, against a convolution with the composed weight.

Triton reads once, where it is imported, whether to interpret; so that happens in a process of its own.
"""

import copy
import importlib.util
import os
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers.repository import REPOSITORY
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import norton
from norton.decomposition import DECOMPOSITIONS
from norton.deployment import exact_forms
from norton.deployment.assembling import assemble
from norton.deployment.exact_forms import FusedCP
from norton.deployment.folding import fold

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")

# (C, O, rank, height, width), geometry of the convolution, tile (None: the layer chooses), dtype
WHOLE, ROWS, COLUMNS, BOTH = (1, 8, 8, 16), (1, 4, 16, 16), (2, 16, 4, 16), (1, 8, 8, 16)
CASES = {
    "whole images": ((5, 6, 1, 7, 6), {"padding": 1}, WHOLE),
    "several images in a tile": ((5, 6, 2, 4, 3), {"padding": 1}, (4, 4, 4, 16)),
    "no padding": ((5, 6, 2, 8, 7), {}, WHOLE),
    "much padding": ((3, 4, 1, 4, 4), {"padding": 3}, WHOLE),
    "padding that one tile does not hold": ((3, 4, 1, 7, 7), {"padding": 3}, WHOLE),
    "tiles along rows": ((3, 4, 2, 7, 13), {"padding": 1}, ROWS),
    "tiles along columns": ((3, 4, 2, 13, 7), {"padding": 1, "bias": False}, COLUMNS),
    "tiles along both, blocks of filters": ((3, 19, 1, 9, 10), {"padding": 1}, BOTH),
    "steps of channels": ((70, 6, 2, 5, 5), {"padding": 1}, WHOLE),
    "stride": ((3, 4, 2, 11, 10), {"padding": 1, "stride": 2}, BOTH),
    "stride, whole images": ((3, 4, 1, 8, 7), {"padding": 1, "stride": (2, 3)}, WHOLE),
    "stride beyond the kernel": ((3, 4, 1, 11, 13), {"stride": (5, 4)}, BOTH),
    "dilation": ((3, 4, 2, 13, 12), {"padding": 2, "dilation": (2, 1)}, (1, 16, 8, 16)),
    "dilation beyond the image": ((3, 4, 1, 3, 3), {"padding": 5, "dilation": 5}, (1, 16, 16, 16)),
    "stride and dilation": ((3, 4, 3, 10, 12), {"padding": (2, 0), "stride": (1, 2), "dilation": (2, 1)}, BOTH),
    "even kernel": ((3, 4, 2, 9, 10), {"kernel_size": (2, 4), "padding": "same"}, BOTH),
    "5×3, valid": ((3, 4, 2, 13, 9), {"kernel_size": (5, 3), "padding": "valid"}, BOTH),
    "1×3": ((3, 4, 2, 8, 9), {"kernel_size": (1, 3), "padding": (0, 1)}, BOTH),
    "one row of inputs": ((3, 4, 1, 1, 9), {"padding": 1}, (4, 1, 16, 16)),
    "full rank": ((3, 4, 9, 5, 5), {"padding": 1}, WHOLE),
    "a tile of its choice": ((6, 40, 2, 19, 9), {"padding": 1}, None),
    "bfloat16": ((20, 6, 2, 9, 9), {"padding": 1}, BOTH),
    "float16": ((20, 6, 2, 9, 9), {"padding": 1, "stride": 2}, BOTH),
}


def layer_of(name):
    (channels, filters, rank, *size), geometry, tile = CASES[name]
    batch = 5 if tile and tile[0] > 1 else 2  # images of one tile, or of two
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(name, torch.float32)
    torch.manual_seed(0)
    geometry = {"kernel_size": 3} | geometry
    layer = DECOMPOSITIONS["cp"].shaped_like(nn.Conv2d(channels, filters, **geometry), rank)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer.to(dtype).requires_grad_(False), torch.randn(batch, channels, *size).to(dtype)


def fused(layer):
    """The form, which is not offered on a CPU."""
    before, exact_forms._fusible = exact_forms._fusible, lambda layer: True
    try:
        return exact_forms.exact_forms(layer)["fused"]
    finally:
        exact_forms._fusible = before


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """What the kernel gives in all cases: one process, as importing takes longest."""
    path = tmp_path_factory.mktemp("kernels") / "outputs.pt"
    code = f"import test_triton_cp; test_triton_cp.interpret({str(path)!r})"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": "tests:tests/deployment", "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(path)


def interpret(path):
    """In a process of its own, with TRITON_INTERPRET=1."""
    assert "norton.deployment.triton_cp" not in sys.modules  # which imports triton
    from norton.deployment import triton_cp

    torch.set_num_threads(1)
    teach_bfloat16()
    exact_forms.runs_in_triton = lambda weight: True  # on the CPU too
    found, chosen = {}, triton_cp._tile
    for name, (_, _, tile) in CASES.items():
        triton_cp._tile = (lambda *_, tile=tile: triton_cp.Tile(*tile)) if tile else chosen
        layer, x = layer_of(name)
        found[name] = fused(layer)(x)
        assert found[name].is_contiguous(memory_format=torch.channels_last)
    triton_cp._tile = chosen
    layer, x = layer_of("stride")
    form = fused(layer)
    arguments = x, form[0].weight, form.taps, form[1].bias, [3, 3], [2, 2], [1, 1, 1, 1], [1, 1]
    torch.library.opcheck(triton_cp.fused_cp, arguments, test_utils=["test_schema", "test_faketensor"])
    assert torch.equal(torch.compile(form, backend="eager", fullgraph=True)(x), form(x))
    assert not form(x[:0]).numel()
    found["errors"] = errors(triton_cp.fused_cp, arguments)
    torch.save(found, path)


def teach_bfloat16():
    """The interpreter keeps bfloat16 as its bits, of which its matrix product would take the integer values."""
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    def floats(handle):
        bits = handle.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32) if handle.dtype == tl.bfloat16 else handle

    builder = interpreter.InterpreterBuilder
    product = builder.create_dot
    builder.create_dot = lambda self, a, b, *rest: product(self, floats(a), floats(b), *rest)


def errors(op, arguments):
    """What is said of arguments that the kernel would read beyond the end of."""
    x, head, taps, bias, kernel, stride, padding, dilation = arguments
    bad = {
        "channels": (x[:, 1:], head, taps, bias, kernel, stride, padding, dilation),
        "one image": (x[0], head, taps, bias, kernel, stride, padding, dilation),
        "types": (x.half(), head, taps, bias, kernel, stride, padding, dilation),
        "taps": (x, head, taps[..., :4].contiguous(), bias, kernel, stride, padding, dilation),
        "bias": (x, head, taps, bias[:2], kernel, stride, padding, dilation),
        "small": (x[..., :2, :2], head, taps, bias, kernel, stride, [0] * 4, dilation),
        "reach": (x, head, taps, bias, kernel, stride, padding, [8, 8]),
    }
    said = {}
    for name, wrong in bad.items():
        try:
            op(*wrong)
        except norton.InputError as error:
            said[name] = str(error)
    return said


def dense(layer, x):
    """The convolution with the composed weight, in float64."""
    (top, bottom), (left, right) = layer.padding_by_side()
    layer, x = copy.deepcopy(layer).double(), F.pad(x.double(), (left, right, top, bottom))
    return F.conv2d(x, layer.composed_weight(), layer.bias, layer.stride, 0, layer.dilation)


def check(found, wanted, dtype):
    assert found.dtype == dtype and found.shape == wanted.shape
    error = (found.double() - wanted).abs().max() / wanted.abs().max()
    # The interpreter cuts bfloat16 off where a GPU rounds.
    assert error < {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]


@pytest.mark.parametrize("name", CASES)
def test_one_pass_computes_the_same(interpreted, name):
    layer, x = layer_of(name)
    check(interpreted[name], dense(layer, x), x.dtype)


@pytest.mark.parametrize("name", CASES)
def test_two_convolutions_on_a_cpu(name):
    layer, x = layer_of(name)
    layer, x = layer.double(), x.double()
    torch.testing.assert_close(fused(layer)(x), dense(layer, x))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu(name, monkeypatch):
    from norton.deployment import triton_cp

    if (tile := CASES[name][2]) is not None:
        monkeypatch.setattr(triton_cp, "_tile", lambda *_: triton_cp.Tile(*tile))
    monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee")
    layer, x = layer_of(name)
    form = exact_forms.exact_forms(layer.cuda())["fused"]
    check(form(x.cuda()).cpu(), dense(layer.cpu(), x), x.dtype)
    torch.testing.assert_close(form.cpu().float()(x.float()).double(), dense(layer, x), rtol=1e-3, atol=1e-3)


MESSAGES = {
    "channels": r"input is \(2, 2, 11, 10\); a layer of 3 channels takes",
    "one image": r"input is \(3, 11, 10\)",
    "types": "torch.float16 on cpu, torch.float32 on cpu",
    "taps": r"\(2, 6, 4\), \(4,\) do not fit a kernel of \(3, 3\)",
    "bias": r"\(2,\) do not fit",
    "small": r"images of \(2, 2\) are smaller than the kernel of \(3, 3\)",
    "reach": r"\(k - 1\)·dilation is to be below 16",
}


@pytest.mark.parametrize("name", MESSAGES)
def test_arguments_that_do_not_fit(interpreted, name):
    assert re.search(MESSAGES[name], interpreted["errors"][name])


@pytest.mark.parametrize(("dtype", "capability", "tile"), [("bf16", 90, (1, 8, 16, 64)), ("fp32", 80, (1, 16, 16, 32))])
def test_compiles_for_gpus(dtype, capability, tile, tmp_path, monkeypatch):
    """What the interpreter does not tell: shapes that the compiler takes, and shared memory that all GPUs have."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from norton.deployment.triton_cp import _kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    known = dict(zip(("IMAGES", "ROWS", "COLUMNS", "FILTERS"), tile, strict=True))
    known |= {"TERMS": 2, "PRECISION": "ieee", "CHANNELS": 64 if dtype == "bf16" else 32}
    known |= {"KH": 3, "KW": 3, "SH": 2, "SW": 1, "DH": 1, "DW": 1, "TOP": 1, "LEFT": 1}
    pointers = dict.fromkeys(("x", "head", "taps", "bias", "y"), f"*{dtype}")
    names = _kernel.arg_names
    source = ASTSource(
        _kernel,
        {name: "constexpr" if name in known else pointers.get(name, "i32") for name in names},
        {(names.index(name),): value for name, value in known.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in (*pointers, "channels", "outputs")},
    )
    options = {"num_warps": 8, "num_stages": 2 if capability == 90 else 3, "enable_fp_fusion": True}
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert made.metadata.shared <= 99 * 1024
    # Four moves of a 3×3 kernel, one shuffle for each of a thread's 32 values: within warps, not by way of memory.
    assert 4 * 32 <= made.asm["ptx"].count("shfl.sync") < 5 * 32


def test_every_tile_covers_its_outputs():
    """Each output is stored by one tile, which holds all inputs under its kernel: the rule by itself, literally."""
    from norton.deployment.triton_cp import _axis

    seen = 0
    for size in range(1, 12):
        for kernel, stride, dilation, padding in ((3, 1, 1, 1), (3, 2, 1, 1), (2, 1, 2, 0), (5, 3, 1, 4), (3, 1, 2, 3)):
            outputs = (size + 2 * padding - (kernel - 1) * dilation - 1) // stride + 1
            for tile in (2, 4, 8, 16):
                axis = _axis(size, outputs, kernel, stride, dilation, padding, tile) if outputs > 0 else None
                if axis is None:
                    continue
                for output in range(outputs):
                    inputs = [output * stride - padding + i * dilation for i in range(kernel)]
                    middle = inputs[(kernel - 1) // 2]
                    owners = [
                        start
                        for start in (axis.first + i * axis.step for i in range(axis.tiles))
                        if 0 <= middle - start - axis.own < axis.step and middle - start < tile
                    ]
                    assert len(owners) == 1
                    assert all(owners[0] <= place < owners[0] + tile for place in inputs if 0 <= place < size)
                seen += 1
    assert seen > 100


def test_offered_where_it_can_run(monkeypatch):
    layer, _ = layer_of("dilation")
    assert "fused" not in exact_forms.exact_forms(layer)
    monkeypatch.setattr(exact_forms, "runs_in_triton", lambda weight: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    found = exact_forms.exact_forms(layer)
    assert isinstance(found["fused"], FusedCP) and list(found)[-1] == exact_forms.DENSE
    layer.feature.vertical.padding_mode = "reflect"
    assert not exact_forms._fusible(layer)
    layer.feature.vertical.padding_mode = "zeros"
    layer.feature.horizontal.dilation = (1, 8)
    assert not exact_forms._fusible(layer)
    layer.feature.horizontal.dilation = (1, 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not exact_forms._fusible(layer)


def test_exported_as_convolutions(monkeypatch):
    """Whatever device it was on: an exported network needs neither triton nor norton."""
    monkeypatch.setattr(exact_forms, "runs_in_triton", lambda weight: True)
    layer, x = layer_of("stride")
    program = torch.export.export(fused(layer), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert "norton" not in str(program.graph)
    x = torch.randn(3, *x.shape[1:])
    check(program.module()(x), dense(layer, x), x.dtype)


def test_in_a_network(monkeypatch):
    monkeypatch.setattr(exact_forms, "_fusible", lambda layer: True)
    net = norton.decompose(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3)), 2)
    x = torch.randn(2, 3, 6, 6)
    folded = fold(net.eval(), x)
    for channels_last in (True, False):
        deployed = assemble(folded, dict.fromkeys(folded.decomposed, "fused"), channels_last)
        assert sum(isinstance(layer, FusedCP) for layer in deployed.modules()) == 2
        torch.testing.assert_close(copy.deepcopy(deployed)(x), net(x))


def test_a_gpu_is_sent_to_the_kernel():
    """By tensors that have a device and no values: what torch.compile sees."""
    layer, x = layer_of("stride")
    form = fused(layer)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        on_gpu = {name: mode.from_tensor(value).to("cuda") for name, value in form.state_dict().items()}
        found = torch.func.functional_call(form, on_gpu, (mode.from_tensor(x).to("cuda"),))
    assert found.device.type == "cuda" and found.shape == form(x).shape
    assert found.is_contiguous(memory_format=torch.channels_last)
