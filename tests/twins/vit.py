"""The ViT of arcface_torch, and the same as CVLface wraps it."""

import torch
from torch import nn

from twins import Twin


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        n, tokens, width = x.shape
        qkv = self.qkv(x).view(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(n, tokens, width))


class Mlp(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(self.fc1(x).clamp(0, 6))


class Block(nn.Module):
    def __init__(self, width, heads, expand):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.mlp = Mlp(width, width * expand)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Patches(nn.Module):
    def __init__(self, width, patch):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x):
        return self.proj(x).permute(0, 2, 3, 1).flatten(1, 2)


class Vit(nn.Module):
    def __init__(self, depth, width, heads, patch, expand, dim, side, token=True):
        super().__init__()
        tokens = (side // patch) ** 2
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width)) if token else None
        self.patch_embed = Patches(width, patch)
        blocks = (Block(width, heads, expand) for _ in range(depth))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        self.feature = nn.Sequential(
            nn.Linear(tokens * width, width, bias=False),
            nn.BatchNorm1d(width, eps=2e-5),
            nn.Linear(width, dim, bias=False),
            nn.BatchNorm1d(dim, eps=2e-5),
        )

    def forward(self, x):
        x = self.patch_embed(x) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        if self.mask_token is not None:  # no token is left out: its gradient is 0
            x = x + 0 * self.mask_token
        return self.feature(x.flatten(1))


class Cvlface(nn.Module):
    def __init__(self, *args):
        super().__init__()
        self.net = Vit(*args, token=False)

    def forward(self, x):
        return self.net(x)


TWINS = {
    "arcface_torch": Twin(
        line="vit(stages=(2,), width=16, heads=2, patch=4, dim=8, size=18,"
        " drop_path=0.0, mask=0.0)",
        small=lambda: Vit(2, 16, 2, 4, 4, 8, 18),
        full_line="vit.t",
        full=lambda: Vit(12, 256, 8, 9, 4, 512, 112),
        keys="arcface_torch_vit_t.txt",
    ),
    "cvlface": Twin(
        line="vit.cvlface_small(stages=(1,), width=12, heads=3, patch=4, dim=8,"
        " size=16, drop_path=0.0)",
        small=lambda: Cvlface(1, 12, 3, 4, 5, 8, 16),
        full_line="vit.cvlface_base",
        full=lambda: Cvlface(24, 512, 16, 8, 3, 512, 112),
        keys="cvlface_vit_base.txt",
    ),
}
