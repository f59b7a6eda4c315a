"""Operations as people write them: methods, functions, by position, by keyword, counted from the end."""

import pytest
import torch
import torch.nn.functional as F
from helpers.between import Between, wiring_of_exact
from torch import nn

# Operation → how it may be written; each way is followed, from what one convolution writes to what the next one reads.
SPELLINGS = {
    "permute": [
        lambda n, x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2),
        lambda n, x: torch.permute(x, (0, 2, 3, 1)).permute((0, 3, 1, 2)),
        lambda n, x: torch.permute(input=x, dims=(0, 2, 3, 1)).permute(dims=(0, -1, 1, 2)),
        lambda n, x: torch.movedim(input=torch.movedim(x, 1, -1), source=-1, destination=1),
        lambda n, x: x.moveaxis(1, -1).moveaxis(source=3, destination=1),
        lambda n, x: torch.transpose(dim0=1, dim1=-1, input=x).swapaxes(axis0=3, axis1=1).transpose(2, 3).mT,
    ],
    "reshape": [
        lambda n, x: x.reshape(x.shape[0], x.shape[1], -1).view(x.shape),
        lambda n, x: torch.reshape(input=x, shape=(len(x), x.size(1), -1)).view(size=x.size()),
        lambda n, x: torch.flatten(x, start_dim=2).unflatten(-1, (8, 8)),
        lambda n, x: x.flatten(-2).unflatten(dim=2, sizes=(8, 8)),
        lambda n, x: torch.flatten(input=x, start_dim=-2, end_dim=-1).view_as(x),
        lambda n, x: torch.unflatten(
            input=torch.unsqueeze(input=x, dim=-1).squeeze(dim=-1), dim=2, sizes=(2, -1)
        ).flatten(2, 3),
    ],
    "cat": [
        lambda n, x: torch.cat([x.sin(), x.cos() - 1], 1)[:, : x.shape[1]],
        lambda n, x: torch.cat(dim=1, tensors=[x.sin(), x.tanh()])[:, : x.size(1)],
        lambda n, x: torch.concat((x.sin(), x.tanh()), dim=-3).chunk(2, -3)[1],
        lambda n, x: torch.concatenate([x.sin(), x.tanh()], axis=1).chunk(2, dim=1)[0],
        lambda n, x: torch.stack(dim=1, tensors=(x.sin(), x.tanh())).flatten(1, 2).chunk(2, 1)[0],
        lambda n, x: torch.hstack([x.sin(), x.tanh()]).chunk(2, 1)[1],
    ],
    "chunk": [
        lambda n, x: torch.cat(x.chunk(2, 1)[::-1], 1),
        lambda n, x: torch.cat(torch.chunk(x, 2, dim=-3)[::-1], 1),
        lambda n, x: torch.cat(torch.chunk(input=x, chunks=2, dim=1)[::-1], -3),
        lambda n, x: torch.cat(x.chunk(chunks=2, dim=1)[::-1], 1),
        lambda n, x: torch.cat(x.split(x.shape[1] // 2, 1)[::-1], 1),
        lambda n, x: torch.cat(torch.split(split_size_or_sections=x.shape[1] // 2, dim=1, tensor=x)[::-1], 1),
        lambda n, x: torch.cat(torch.tensor_split(x, indices=(1,), dim=2)[::-1], 2),
        lambda n, x: torch.cat(torch.tensor_split(x, sections=2, dim=-1), 3),
        lambda n, x: torch.cat(x.tensor_split(dim=2, indices=(1, 3)), 2),
        lambda n, x: torch.cat(x.split(split_size=n.half, dim=1)[::-1], 1),
        lambda n, x: torch.cat(torch.split(tensor=x, split_size_or_sections=n.half, dim=1)[::-1], 1),
        lambda n, x: torch.cat(torch.split(x, [n.half, n.half], -3)[::-1], 1),
        lambda n, x: torch.cat(x.tensor_split(2, 2)[::-1], dim=2),
    ],
    "narrow": [
        lambda n, x: torch.cat([x.narrow(1, 0, n.half), x.narrow(1, n.half, n.half)], 1),
        lambda n, x: torch.cat([torch.narrow(x, dim=-3, start=0, length=n.half), x.narrow(-3, -n.half, n.half)], 1),
        lambda n, x: torch.cat([x[:, : n.half], x[:, -n.half :]], 1),
        lambda n, x: torch.cat([x[..., : n.half, :, :], x[..., n.half :, :, :]], 1),
        lambda n, x: x.select(2, 1).unsqueeze(2) + torch.select(input=x, dim=-1, index=-1).unsqueeze(-1),
        lambda n, x: sum(torch.unbind(input=x.unflatten(2, (2, 4)), dim=2)),
    ],
    "matmul": [
        lambda n, x: (x.flatten(2) @ n.mix).view(x.shape),
        lambda n, x: torch.matmul(input=x.flatten(2), other=n.mix).view(x.shape),
        lambda n, x: torch.matmul(x.flatten(2), n.mix[None].expand(len(x), -1, -1)).view(x.shape),
        lambda n, x: torch.bmm(input=x.flatten(2), mat2=n.mix[None].expand(len(x), -1, -1)).view(x.shape),
        lambda n, x: x.flatten(2).matmul(n.mix[None].repeat(len(x), 1, 1)).view_as(x),
        lambda n, x: x * (x.flatten(2).transpose(1, 2) @ x.flatten(2)).mean((1, 2))[:, None, None, None],
        lambda n, x: x * torch.einsum("bcn,bcm->b", x.flatten(2), x.flatten(2)).view(-1, 1, 1, 1),
    ],
    "sums": [
        lambda n, x: x * x.sum((2, 3), keepdim=True),
        lambda n, x: torch.mul(input=x, other=torch.sum(input=x, dim=(-1, -2), keepdim=True)),
        lambda n, x: torch.multiply(x, torch.sum(x, axis=(2, 3), keepdims=True)),
        lambda n, x: x.mul(torch.norm(x, p=2, dim=1, keepdim=True)),
        lambda n, x: x * torch.linalg.norm(x, dim=1, keepdim=True),
        lambda n, x: x * torch.linalg.norm(x, ord=2, dim=1, keepdim=True),
        lambda n, x: x * torch.linalg.vector_norm(x, dim=1, keepdim=True),
        lambda n, x: x * torch.linalg.vector_norm(x, 1, 1, keepdim=True),
        lambda n, x: F.normalize(input=x, dim=1) + F.normalize(x, p=2.0, dim=-3),
    ],
    "element by element": [
        lambda n, x: F.relu(input=x) + F.leaky_relu(x, negative_slope=0.1, inplace=False),
        lambda n, x: torch.add(x, x.sin()).add_(torch.add(input=x, other=x, alpha=2)),
        lambda n, x: torch.sub(x, other=x.sin()).div(2.0) - torch.div(x, 3),
        lambda n, x: torch.tanh(input=x) * F.tanh(x) * x.tanh(),
        lambda n, x: torch.clamp(input=x, min=-1, max=1) + x.clamp(-1, 1) + x.clip(max=0.5),
        lambda n, x: torch.maximum(input=x, other=x.sin()) + torch.max(x, other=x.sin()),
        lambda n, x: x.clamp_min(-0.2) + torch.clamp_max(input=x, max=0.2) + torch.fmax(x, x.atan().cpu()),
        lambda n, x: torch.softmax(input=x, dim=-1) * x + F.softmax(x, dim=3) * x + x.softmax(2) * x,
    ],
    "over positions": [
        lambda n, x: F.interpolate(F.max_pool2d(input=x, kernel_size=2), scale_factor=2),
        lambda n, x: F.interpolate(input=F.avg_pool2d(x, 2), size=x.shape[-2:], mode="nearest"),
        lambda n, x: F.interpolate(F.adaptive_avg_pool2d(input=x, output_size=(2, 2)), size=x.shape[2:]),
        lambda n, x: F.pad(input=x, pad=(1, 1))[..., 1:-1] + F.pad(x, [0, 0, 1, 1], mode="reflect")[:, :, 2:],
        lambda n, x: torch.roll(input=x, shifts=1, dims=-1) + x.roll((1, 1), (2, 3)),
        lambda n, x: torch.flip(input=x, dims=(-1,)) + x.flip(2) + x.flip([2, 3]),
        lambda n, x: F.pixel_unshuffle(F.pixel_shuffle(input=x, upscale_factor=2), downscale_factor=2),
    ],
    "layers as functions": [
        lambda n, x: F.conv2d(x, n.conv.weight, n.conv.bias, padding=1),
        lambda n, x: F.conv2d(input=x, weight=n.conv.weight, bias=n.conv.bias, padding=1),
        lambda n, x: torch.conv2d(weight=n.conv.weight, input=x, bias=n.conv.bias, padding=1),
        lambda n, x: F.linear(input=x.movedim(1, -1), weight=n.fc.weight, bias=n.fc.bias).movedim(-1, 1),
        lambda n, x: n.conv(input=x),
        lambda n, x: F.group_norm(input=x, num_groups=n.norm.num_groups, weight=n.norm.weight, bias=n.norm.bias),
    ],
}
WAYS = [(name, number) for name, ways in SPELLINGS.items() for number in range(len(ways))]


def network(between):
    net = Between(
        between,
        conv=nn.Conv2d(16, 16, 3, padding=1),
        fc=nn.Linear(16, 16),
        norm=nn.GroupNorm(4, 16),
        response=nn.LocalResponseNorm(3),
    )
    net.register_buffer("mix", torch.linspace(-1, 1, 64 * 64).view(64, 64))
    net.half = 8
    return net


WHOLE = {
    "the smallest of some": (lambda n, x: x * torch.linalg.norm(x, ord=-2, dim=1, keepdim=True), "mixes all channels"),
    "a norm of matrices": (lambda n, x: x * torch.linalg.norm(x, ord=2, dim=(1, 2), keepdim=True), "norm of matrices"),
    "neighbours": (lambda n, x: F.local_response_norm(x, size=3), "it reads the neighbours of each channel"),
    "neighbours by a layer": (lambda n, x: n.response(x), "it reads the neighbours of each channel"),
    "a start that is written down": (
        lambda n, x: torch.cat([x.narrow(1, -8, 8), x[:, :8]], 1),
        "which does not follow them",
    ),
    "a vector": (lambda n, x: x * (x.movedim(1, -1) @ torch.arange(16.0, dtype=x.dtype))[:, None], "with a vector"),
}


@pytest.mark.parametrize("what", WHOLE)
def test_left_whole(what):
    between, reason = WHOLE[what]
    assert reason in wiring_of_exact(lambda: network(between), cuts=1).left_whole["first"]


@pytest.mark.parametrize("name, number", WAYS)
def test_followed_in_each_spelling(name, number):
    wiring = wiring_of_exact(lambda: network(SPELLINGS[name][number]), cuts=1)
    assert "first" not in wiring.left_whole and "second" not in wiring.left_whole
