"""Swin transformer as FaceX-Zoo defines it."""

import functools

import torch
from torch import nn

from twins import Twin


def windows(x, side):
    """[B, H, W, C] -> [B n, side^2, C]."""
    rows = (strip.split(side, 2) for strip in x.split(side, 1))
    all_of_them = torch.stack([w.flatten(1, 2) for row in rows for w in row], 1)
    return all_of_them.flatten(0, 1)


def whole(x, H, W):
    """`windows` backwards."""
    side = round(x.shape[1] ** 0.5)
    down, across = H // side, W // side
    x = x.unflatten(0, (-1, down * across)).unflatten(2, (side, side))
    rows = [
        torch.cat([x[:, r * across + c] for c in range(across)], 2) for r in range(down)
    ]
    return torch.cat(rows, 1)


def numbers(side):
    """Which row of the table is added for tokens i and j."""
    token = torch.arange(side**2)
    row, column = token // side, token % side
    down = row[:, None] - row + side - 1
    right = column[:, None] - column + side - 1
    return down * (2 * side - 1) + right


def mask(H, W, side, shift):
    """-100 where two tokens of a shifted window come from different parts."""
    part = torch.zeros((1, H, W, 1))
    part[:, H - shift :] += 1
    part[:, :, W - shift :] += 2
    part = windows(part, side)[..., 0]
    return torch.where(part[:, :, None] == part[:, None], 0.0, -100.0)


class Attention(nn.Module):
    def __init__(self, dim, heads, side):
        super().__init__()
        self.heads = heads
        table = 0.02 * torch.randn((2 * side - 1) ** 2, heads)
        self.relative_position_bias_table = nn.Parameter(table)
        self.register_buffer("relative_position_index", numbers(side))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, mask):
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(x).chunk(3, -1)
        )
        bias = self.relative_position_bias_table[self.relative_position_index]
        scores = q @ k.mT / q.shape[-1] ** 0.5 + bias.permute(2, 0, 1)
        if mask is not None:
            n = len(mask)
            scores = scores.unflatten(0, (-1, n)) + mask[:, None]
            scores = scores.flatten(0, 1)
        y = scores.softmax(-1) @ v
        return self.proj(y.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim, size, heads, window, expand, shifted):
        super().__init__()
        self.side = min(window, *size)
        self.shift = window // 2 if shifted and min(size) > window else 0
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, self.side)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, expand * dim)
        far = mask(*size, self.side, self.shift) if self.shift else None
        self.register_buffer("attn_mask", far)

    def forward(self, x):
        _, H, W, _ = x.shape
        y, far = self.norm1(x), self.attn_mask
        if self.shift:
            y = y.roll((-self.shift, -self.shift), (1, 2))
            far = 100 * (far / 100).round()  # test_twins adds noise to what floats
        y = whole(self.attn(windows(y, self.side), far), H, W)
        x = x + (y.roll((self.shift, self.shift), (1, 2)) if self.shift else y)
        return x + self.mlp(self.norm2(x))


class Merge(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x):
        parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class Stage(nn.Module):
    def __init__(self, dim, size, depth, heads, window, expand, last):
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(dim, size, heads, window, expand, i % 2 == 1) for i in range(depth)
        )
        self.downsample = None if last else Merge(dim)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class Patches(nn.Module):
    def __init__(self, dim, patch):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x):
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class Swin(nn.Module):
    def __init__(self, depths, heads, width, patch, window, expand, size, dim):
        super().__init__()
        H, W = (n // patch for n in size)
        self.patch_embed = Patches(width, patch)
        self.layers = nn.ModuleList()
        for i, (depth, h) in enumerate(zip(depths, heads, strict=True)):
            last = i == len(depths) - 1
            area = (H >> i, W >> i)
            self.layers.append(Stage(width << i, area, depth, h, window, expand, last))
        c, tokens = width << i, area[0] * area[1]
        self.output_layer = nn.Sequential(
            nn.LayerNorm(c),
            nn.Flatten(),
            nn.Linear(tokens * c, dim),
            nn.BatchNorm1d(dim),
        )

    def forward(self, x):
        x = self.patch_embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.output_layer(x)


TWINS = {
    "facex_zoo": Twin(
        # 8 x 16 tokens in windows of 4, shifted by 2; 4 x 8; 2 x 4 in windows of 2
        line="swin.t(stages=(2, 2, 1), heads=(2, 4, 4), width=8, patch=2, window=4,"
        " expand=2.0, dim=8, size=(16, 32), drop_path=0)",
        small=functools.partial(Swin, (2, 2, 1), (2, 4, 4), 8, 2, 4, 2, (16, 32), 8),
        full_line="swin.t",
        full=functools.partial(
            Swin, (2, 2, 6, 2), (3, 6, 12, 24), 96, 4, 7, 4, (224, 224), 512
        ),
        keys="facex_zoo_swin_t.txt",
    ),
}
