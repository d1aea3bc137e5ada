"""Light CNN as its makers and FaceX-Zoo define it; grey is made here, as in ours."""

import functools

import torch
from torch import nn
from torch.nn import functional

from twins import Twin

SMALL = (6, 8, 10, 4)
FULL = (48, 96, 192, 128)


class Mfm(nn.Module):
    """A layer called `filter`, and the larger of its two halves."""

    def __init__(self, layer):
        super().__init__()
        self.filter = layer

    def forward(self, x):
        return torch.maximum(*self.filter(x).chunk(2, dim=1))


def conv(inputs, outputs, kernel):
    return Mfm(nn.Conv2d(inputs, 2 * outputs, kernel, padding=kernel // 2))


def dense(inputs, outputs):
    return Mfm(nn.Linear(inputs, 2 * outputs))


class Group(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv_a = conv(inputs, inputs, 1)
        self.conv = conv(inputs, outputs, 3)

    def forward(self, x):
        return self.conv(self.conv_a(x))


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = conv(channels, channels, 3)
        self.conv2 = conv(channels, channels, 3)

    def forward(self, x):
        return x + self.conv2(self.conv1(x))


def grey(x):
    """From rgb images, by ITU-R BT.601."""
    red, green, blue = x.split(1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def largest(x):
    return functional.max_pool2d(x, 2, ceil_mode=True)


def largest_and_mean(x):
    return functional.max_pool2d(x, 2) + functional.avg_pool2d(x, 2)


class Nine(nn.Module):
    def __init__(self, widths, dim, pixels, classes):
        super().__init__()
        a, b, c, d = widths

        def pool():
            return nn.MaxPool2d(2, ceil_mode=True)

        self.features = nn.Sequential(
            conv(1, a, 5),
            pool(),
            Group(a, b),
            pool(),
            Group(b, c),
            pool(),
            Group(c, d),
            Group(d, d),
            pool(),
        )
        self.fc1 = dense(d * pixels, dim)
        self.fc2 = nn.Linear(dim, classes).requires_grad_(False)

    def forward(self, x):
        return self.fc1(self.features(grey(x)).flatten(1))


class TwentyNine(nn.Module):
    """All with residual blocks; `head` names and makes what follows the trunk."""

    def __init__(self, pool, head, stages, widths, dim, pixels, channels=1, classes=0):
        super().__init__()
        self.pool, self.channels = pool, channels
        a, b, c, d = widths
        self.conv1 = conv(channels, a, 5)
        rows = zip(stages, (a, b, c, d), (b, c, d, d), strict=True)
        for i, (blocks, inputs, outputs) in enumerate(rows, 1):
            layers = (Block(inputs) for _ in range(blocks))
            self.add_module(f"block{i}", nn.Sequential(*layers))
            self.add_module(f"group{i}", Group(inputs, outputs))
        self.head, layer = head(d, pixels, dim)
        self.add_module(self.head, layer)
        if classes:
            bias = isinstance(layer, Mfm)  # v2's classifier has none
            self.fc2 = nn.Linear(dim, classes, bias=bias).requires_grad_(False)

    def forward(self, x):
        x = self.pool(self.conv1(x if self.channels == 3 else grey(x)))
        for i in (1, 2, 3, 4):
            x = getattr(self, f"group{i}")(getattr(self, f"block{i}")(x))
            x = x if i == 3 else self.pool(x)
        layer = getattr(self, self.head)
        return layer(x if self.head == "output_layer" else x.flatten(1))


def mfm_head(c, pixels, dim):
    return "fc", dense(c * pixels, dim)


def linear_head(c, pixels, dim):
    return "fc", nn.Linear(c * pixels, dim)


def norm_head(c, pixels, dim):
    layers = (
        *(nn.BatchNorm2d(c), nn.Dropout(0.0), nn.Flatten()),
        *(nn.Linear(c * pixels, dim), nn.BatchNorm1d(dim)),
    )
    return "output_layer", nn.Sequential(*layers)


V1 = functools.partial(TwentyNine, largest, mfm_head)
V2 = functools.partial(TwentyNine, largest_and_mean, linear_head)
ZOO = functools.partial(TwentyNine, largest_and_mean, norm_head, channels=3)
OPTIONS = f"widths={SMALL}, dim=8, size=22, dropout=0"  # 22, 11, 6 (or 5), ...
STAGES = (1, 2, 3, 4)
FEW = (1, 0, 2, 1)

TWINS = {
    "lightcnn9": Twin(
        line=f"lightcnn.lightcnn9({OPTIONS})",
        small=functools.partial(Nine, SMALL, 8, 4, 5),
        full_line="lightcnn.lightcnn9",
        full=functools.partial(Nine, FULL, 256, 64, 79077),
        keys="lightcnn_9.txt",
    ),
    "lightcnn29": Twin(
        line=f"lightcnn.lightcnn29(stages={FEW}, {OPTIONS})",
        small=functools.partial(V1, FEW, SMALL, 8, 4, classes=5),
        full_line="lightcnn.lightcnn29",
        full=functools.partial(V1, STAGES, FULL, 256, 64, classes=79077),
        keys="lightcnn_29.txt",
    ),
    "lightcnn29v2": Twin(
        line=f"lightcnn.lightcnn29v2(stages={FEW}, {OPTIONS})",
        small=functools.partial(V2, FEW, SMALL, 8, 1, classes=5),
        full_line="lightcnn.lightcnn29v2",
        full=functools.partial(V2, STAGES, FULL, 256, 64, classes=80013),
        keys="lightcnn_29v2.txt",
    ),
    "facex_zoo": Twin(
        line=f"lightcnn.facex_zoo(stages={FEW}, {OPTIONS})",
        small=functools.partial(ZOO, FEW, SMALL, 8, 1),
        full_line="lightcnn.facex_zoo",
        full=functools.partial(ZOO, STAGES, FULL, 512, 49),
        keys="facex_zoo_lightcnn.txt",
    ),
}
