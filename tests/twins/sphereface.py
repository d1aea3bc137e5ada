"""SphereFace's nets as four projects define them."""

import functools

from torch import nn

from twins import Twin

WIDTHS = (64, 128, 256, 512)
SMALL = {"stages": (1, 2), "widths": (8, 16), "dim": 8}


def conv(inputs, outputs, stride=1, bias=True):
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=bias)


class Parts(nn.Module):
    """Layers by name, one after the other; with `plus` their input is added.

    "branch" adds it to what they give; "sum" adds it before the last of them.
    """

    def __init__(self, plus="", **parts):
        super().__init__()
        self.plus, self.order = plus, list(parts)
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        y = x
        for name in self.order:
            if self.plus == "sum" and name == self.order[-1]:
                y = y + x
            y = getattr(self, name)(y)
        return x + y if self.plus == "branch" else y


class Staged(nn.Module):
    """layer1, layer2, ...: `down`'s modules, then as many blocks as the stage has."""

    def __init__(self, down, block, *, stages, widths, dim, pixels, norm=False):
        super().__init__()
        if norm:
            self.features = nn.BatchNorm1d(dim)
        c = 3
        for i, (blocks, width) in enumerate(zip(stages, widths, strict=True), 1):
            rows = [*down(c, width), *(block(width) for _ in range(blocks))]
            self.add_module(f"layer{i}", nn.Sequential(*rows))
            c = width
        self.count, self.norm = len(stages), norm
        self.fc = nn.Linear(c * pixels, dim)

    def forward(self, x):
        for i in range(1, self.count + 1):
            x = getattr(self, f"layer{i}")(x)
        x = self.fc(x.flatten(1))
        return self.features(x) if self.norm else x


def opensphere(**sizes):
    def down(c, width):
        layers = {"conv1": conv(c, width, 2, False), "bn1": nn.BatchNorm2d(width)}
        return [Parts(**layers, relu=nn.ReLU())]

    def block(width):
        return Parts(
            "sum",
            conv1=conv(width, width, 1, False),
            bn1=nn.BatchNorm2d(width),
            relu1=nn.ReLU(),
            conv2=conv(width, width, 1, False),
            bn2=nn.BatchNorm2d(width),
            relu2=nn.ReLU(),
        )

    return Staged(down, block, norm=True, **sizes)


def deprecated(**sizes):
    def down(c, width):
        return [Parts(conv=conv(c, width, 2), act=nn.ReLU())]

    def block(width):
        return Parts(
            "branch",
            conv1=conv(width, width),
            act1=nn.ReLU(),
            conv2=conv(width, width),
            act2=nn.ReLU(),
        )

    return Staged(down, block, **sizes)


def cosface(**sizes):
    def down(c, width):
        return [conv(c, width, 2), nn.PReLU(width)]

    def block(width):
        return Parts(
            "branch",
            conv1=conv(width, width, 1, False),
            prelu1=nn.PReLU(width),
            conv2=conv(width, width, 1, False),
            prelu2=nn.PReLU(width),
        )

    return Staged(down, block, **sizes)


class Numbered(nn.Module):
    """clcarwin's: conv2_3 and relu2_3 are the third layers of the second stage."""

    def __init__(self, *, stages, widths, dim, pixels, classes):
        super().__init__()
        self.stages, c = stages, 3
        for i, (blocks, width) in enumerate(zip(stages, widths, strict=True), 1):
            for j in range(1, 2 * blocks + 2):
                self.add_module(f"conv{i}_{j}", conv(c, width, 2 if j == 1 else 1))
                self.add_module(f"relu{i}_{j}", nn.PReLU(width))
                c = width
        self.fc5 = nn.Linear(c * pixels, dim)
        self.fc6 = nn.Linear(classes, dim, bias=False)  # lies the other way round
        self.fc6.weight.requires_grad = False

    def layer(self, x, i, j):
        x = getattr(self, f"conv{i}_{j}")(x)
        return getattr(self, f"relu{i}_{j}")(x)

    def forward(self, x):
        for i, blocks in enumerate(self.stages, 1):
            x = self.layer(x, i, 1)
            for j in range(2, 2 * blocks + 2, 2):
                x = x + self.layer(self.layer(x, i, j), i, j + 1)
        return self.fc5(x.flatten(1))


def twin(variant, make, stages, keys, pixels, **given):
    full = {"stages": stages, "widths": WIDTHS, "dim": 512, "pixels": pixels}
    options = "stages=(1, 2), widths=(8, 16), dim=8, size=16"
    classes = {name: 5 for name in given}
    return Twin(
        line=f"sphereface.{variant}({options})",
        small=functools.partial(make, **SMALL, pixels=16, **classes),
        full_line=f"sphereface.{variant}",
        full=functools.partial(make, **full, **given),
        keys=keys,
    )


_20, _64 = (1, 2, 4, 1), (3, 8, 16, 3)
TWINS = {
    "opensphere": twin("sfnet64bn", opensphere, _64, "opensphere_sfnet64bn.txt", 49),
    "opensphere_deprecated": twin(
        "sfnet20_deprecated", deprecated, _20, "opensphere_sfnet20_deprecated.txt", 49
    ),
    "clcarwin": twin(
        "sphere20a", Numbered, _20, "clcarwin_sphere20a.txt", 42, classes=10574
    ),
    "cosface_pytorch": twin(
        "cosface20", cosface, _20, "cosface_pytorch_sphere20.txt", 42
    ),
}
