"""EdgeNeXt as timm defines it, and EdgeFace, which makes its linear layers low-rank."""

import functools
import math

import torch
from torch import nn

from twins import Twin


class LowRank(nn.Module):
    def __init__(self, layer, ratio):
        super().__init__()
        inputs, outputs = layer.in_features, layer.out_features
        rank = max(2, int(min(inputs, outputs) * ratio))
        self.linear1 = nn.Linear(inputs, rank, bias=False)
        self.linear2 = nn.Linear(rank, outputs, bias=layer.bias is not None)

    def forward(self, x):
        return self.linear2(self.linear1(x))


def lower_ranks(module, ratio):
    """Replace every linear layer in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, LowRank(child, ratio))
        else:
            lower_ranks(child, ratio)


def depthwise(c, kernel):
    return nn.Conv2d(c, c, kernel, padding=kernel // 2, groups=c)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of [B, C, H, W]."""

    def __init__(self, c):
        super().__init__(c, eps=1e-6)

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Mlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.fc1 = nn.Linear(c, 4 * c)
        self.fc2 = nn.Linear(4 * c, c)

    def forward(self, x):
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """The convolving block, and the last part of the attending one."""

    def __init__(self, c, **first):
        super().__init__()
        for name, part in first.items():  # registered before the branch
            self.add_module(name, part)
        self.norm = nn.LayerNorm(c, eps=1e-6)
        self.mlp = Mlp(c)
        self.gamma = nn.Parameter(1e-6 * torch.ones(c))

    def branch(self, x):
        x = self.gamma * self.mlp(self.norm(x.movedim(1, -1)))
        return x.movedim(-1, 1)


class ConvBlock(Block):
    def __init__(self, c, kernel):
        super().__init__(c, conv_dw=depthwise(c, kernel))

    def forward(self, x):
        return x + self.branch(self.conv_dw(x))


class Fourier(nn.Module):
    """Waves of each pixel's row, then of its column, mapped to the channels."""

    def __init__(self, c, hidden=32):
        super().__init__()
        self.hidden = hidden
        self.token_projection = nn.Conv2d(2 * hidden, c, 1)

    def forward(self, h, w):
        like = self.token_projection.weight
        n = torch.arange(self.hidden)
        period = 10000.0 ** (2 * (n // 2) / self.hidden).to(like)
        row = torch.arange(1, h + 1).to(like)[:, None].expand(h, w) / (h + 1e-6)
        col = torch.arange(1, w + 1).to(like)[None].expand(h, w) / (w + 1e-6)
        waves = []
        for place in (row, col):
            angle = 2 * math.pi * place[None] / period[:, None, None]
            waves += [a.sin() if i % 2 == 0 else a.cos() for i, a in enumerate(angle)]
        return self.token_projection(torch.stack(waves)[None])


class Attention(nn.Module):
    def __init__(self, c, heads):
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Linear(c, 3 * c)
        self.proj = nn.Linear(c, c)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).transpose(1, 2).chunk(3, 1)
        q, k, v = (y.reshape(b, self.heads, c // self.heads, n) for y in (q, k, v))
        q, k = (nn.functional.normalize(y, dim=-1) for y in (q, k))
        weight = (q @ k.mT * self.temperature).softmax(-1)
        return self.proj((weight @ v).reshape(b, c, n).transpose(1, 2))


class AttentionBlock(Block):
    def __init__(self, c, scales, heads, positions):
        width = math.ceil(c / scales)
        super().__init__(
            c,
            convs=nn.ModuleList(depthwise(width, 3) for _ in range(scales - 1)),
            pos_embd=Fourier(c) if positions else None,
            norm_xca=nn.LayerNorm(c, eps=1e-6),
            xca=Attention(c, heads),
        )
        self.gamma_xca = nn.Parameter(1e-6 * torch.ones(c))

    def forward(self, x):
        *parts, last = x.chunk(len(self.convs) + 1, dim=1)
        out, y = [], 0
        for part, conv in zip(parts, self.convs, strict=True):
            y = conv(part + y)
            out.append(y)
        y = torch.cat([*out, last], 1)
        b, c, h, w = y.shape
        if self.pos_embd is not None:
            y = y + self.pos_embd(h, w)
        y = y.flatten(2).transpose(1, 2)
        y = y + self.gamma_xca * self.xca(self.norm_xca(y))
        return x + self.branch(y.transpose(1, 2).reshape(b, c, h, w))


class Stage(nn.Module):
    def __init__(self, inputs, c, blocks):
        super().__init__()
        self.downsample = nn.Identity()
        if inputs:
            self.downsample = nn.Sequential(
                ChannelNorm(inputs), nn.Conv2d(inputs, c, 2, 2)
            )
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x):
        return self.blocks(self.downsample(x))


class EdgeNeXt(nn.Module):
    def __init__(self, stages, widths, heads, outputs):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, 4), ChannelNorm(widths[0]))
        rows = zip(stages, widths, (3, 5, 7, 9), (2, 2, 3, 4), strict=True)
        parts = []
        for i, (n, c, kernel, scales) in enumerate(rows):
            last = [AttentionBlock(c, scales, heads, i == 1)] if i else []
            first = [ConvBlock(c, kernel) for _ in range(n - len(last))]
            parts.append(Stage(i and widths[i - 1], c, first + last))
        self.stages = nn.Sequential(*parts)
        self.head = nn.Module()
        self.head.norm = ChannelNorm(widths[-1])
        self.head.fc = nn.Linear(widths[-1], outputs)

    def forward(self, x):
        x = self.stages(self.stem(x)).mean((2, 3), keepdim=True)
        return self.head.fc(self.head.norm(x).flatten(1))


class EdgeFace(nn.Module):
    def __init__(self, *args, ratio):
        super().__init__()
        self.model = EdgeNeXt(*args)
        lower_ranks(self.model, ratio)

    def forward(self, x):
        return self.model(x)


SMALL = "stages=(1, 2, 2, 1), widths=(8, 12, 16, 18), dim=16, size=64"
TWINS = {
    "edgeface": Twin(
        line=f"edgeface({SMALL}, heads=2, rank=0.6)",
        small=functools.partial(
            EdgeFace, (1, 2, 2, 1), (8, 12, 16, 18), 2, 16, ratio=0.6
        ),
        full_line="edgeface.xs_gamma_06",
        full=functools.partial(
            EdgeFace, (3, 3, 9, 3), (32, 64, 100, 192), 4, 512, ratio=0.6
        ),
        keys="edgeface_xs_gamma_06.txt",
    ),
    "timm": Twin(
        line=f"edgeface({SMALL}, heads=2)",
        small=functools.partial(EdgeNeXt, (1, 2, 2, 1), (8, 12, 16, 18), 2, 16),
        full_line="edgeface.xxs(dim=1000)",
        full=functools.partial(EdgeNeXt, (2, 2, 6, 2), (24, 48, 88, 168), 4, 1000),
        keys="timm_edgenext_xx_small.txt",
    ),
}
