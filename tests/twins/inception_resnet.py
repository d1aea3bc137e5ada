"""Inception-ResNet-v1 as facenet-pytorch defines it."""

import functools

import torch
from torch import nn

from twins import Twin


class Basic(nn.Module):
    def __init__(self, inputs, outputs, kernel, stride=1, pad=0):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, pad, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x):
        return self.bn(self.conv(x)).relu()


class Residual(nn.Module):
    def __init__(self, channels, scale, inner, *branches, relu=True):
        super().__init__()
        for i, branch in enumerate(branches):
            self.add_module(f"branch{i}", branch)
        self.conv2d = nn.Conv2d(inner, channels, 1)
        self.number, self.scale, self.relu = len(branches), scale, relu

    def forward(self, x):
        parts = [getattr(self, f"branch{i}")(x) for i in range(self.number)]
        x = x + self.conv2d(torch.cat(parts, 1)) * self.scale
        return x.relu() if self.relu else x


class Mixed(nn.Module):
    """Branches, the last of which is a max-pool, side by side."""

    def __init__(self, *branches):
        super().__init__()
        for i, branch in enumerate((*branches, nn.MaxPool2d(3, 2))):
            self.add_module(f"branch{i}", branch)

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.children()], 1)


def block35(c, n):
    def three():
        return Basic(n, n, 3, pad=1)

    branches = (
        Basic(c, n, 1),
        nn.Sequential(Basic(c, n, 1), three()),
        nn.Sequential(Basic(c, n, 1), three(), three()),
    )
    return Residual(c, 0.17, 3 * n, *branches)


def cross(c, n, k, scale, relu=True):
    """The blocks of 17 and 8 pixels: a row, then a column of k."""
    cross = nn.Sequential(
        Basic(c, n, 1),
        Basic(n, n, (1, k), pad=(0, k // 2)),
        Basic(n, n, (k, 1), pad=(k // 2, 0)),
    )
    return Residual(c, scale, 2 * n, Basic(c, n, 1), cross, relu=relu)


class InceptionResnetV1(nn.Module):
    def __init__(self, stages, dim, *, part=1, classes=0):
        super().__init__()

        def n(channels):
            return channels // part

        a, b, c = n(256), n(896), n(1792)
        last = functools.partial(Basic, stride=2)
        self.conv2d_1a = last(3, n(32), 3)
        self.conv2d_2a = Basic(n(32), n(32), 3)
        self.conv2d_2b = Basic(n(32), n(64), 3, pad=1)
        self.maxpool_3a = nn.MaxPool2d(3, 2)
        self.conv2d_3b = Basic(n(64), n(80), 1)
        self.conv2d_4a = Basic(n(80), n(192), 3)
        self.conv2d_4b = last(n(192), a, 3)
        self.repeat_1 = nn.Sequential(*(block35(a, n(32)) for _ in range(stages[0])))
        self.mixed_6a = Mixed(
            last(a, n(384), 3),
            nn.Sequential(
                Basic(a, n(192), 1),
                Basic(n(192), n(192), 3, pad=1),
                last(n(192), a, 3),
            ),
        )
        self.repeat_2 = nn.Sequential(
            *(cross(b, n(128), 7, 0.10) for _ in range(stages[1]))
        )
        self.mixed_7a = Mixed(
            nn.Sequential(Basic(b, a, 1), last(a, n(384), 3)),
            nn.Sequential(Basic(b, a, 1), last(a, a, 3)),
            nn.Sequential(Basic(b, a, 1), Basic(a, a, 3, pad=1), last(a, a, 3)),
        )
        self.repeat_3 = nn.Sequential(
            *(cross(c, n(192), 3, 0.20) for _ in range(stages[2]))
        )
        self.block8 = cross(c, n(192), 3, 1.0, relu=False)
        self.last_linear = nn.Linear(c, dim, bias=False)
        self.last_bn = nn.BatchNorm1d(dim, eps=1e-3)
        if classes:
            self.logits = nn.Linear(dim, classes)

    def forward(self, x):
        for name, part in self.named_children():
            x = x.mean((2, 3)) if name == "last_linear" else x
            x = part(x) if name != "logits" else x
        return x


TWINS = {
    "facenet_pytorch": Twin(
        # 107 pixels leave a last map of 2 x 2
        line="inception_resnet(stages=(1, 2, 1), width=0.125, dim=8, dropout=0.0,"
        " size=107)",
        small=functools.partial(InceptionResnetV1, (1, 2, 1), 8, part=8),
        full_line="inception_resnet",
        full=functools.partial(InceptionResnetV1, (5, 10, 5), 512, classes=8631),
        keys="facenet_pytorch_vggface2.txt",
    )
}
