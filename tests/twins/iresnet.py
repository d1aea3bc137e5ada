"""IResNet and its kin as seven projects define them."""

import functools

from torch import nn

from twins import Twin

PUBLISHED = (64, 128, 256, 512)
SMALL = (8, 16)


def conv(inputs, outputs, kernel=3, stride=1):
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class Named(nn.Module):
    """arcface_torch's block: parts by name; the last may project the input."""

    def __init__(self, inputs, outputs, stride, eps):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs, eps)
        self.conv1 = conv(inputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs, eps)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = conv(outputs, outputs, 3, stride)
        self.bn3 = nn.BatchNorm2d(outputs, eps)
        if stride == 2:
            self.downsample = nn.Sequential(
                conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs, eps)
            )

    def forward(self, x):
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        y = self.bn3(self.conv2(y))
        return y + (self.downsample(x) if hasattr(self, "downsample") else x)


class IResNet(nn.Module):
    """arcface_torch's, and with another epsilon and a learned last scale MagFace's."""

    def __init__(self, stages, widths, dim, side, *, eps=1e-5, frozen=True):
        super().__init__()
        c = widths[0]
        self.conv1 = conv(3, c)
        self.bn1 = nn.BatchNorm2d(c, eps)
        self.prelu = nn.PReLU(c)
        for i, (blocks, width) in enumerate(zip(stages, widths, strict=True), 1):
            rows = [
                Named(width if j else c, width, 1 if j else 2, eps)
                for j in range(blocks)
            ]
            self.add_module(f"layer{i}", nn.Sequential(*rows))
            c, side = width, side // 2
        self.bn2 = nn.BatchNorm2d(c, eps)
        self.fc = nn.Linear(c * side**2, dim)
        self.features = nn.BatchNorm1d(dim, eps)
        self.features.weight.requires_grad = not frozen

    def forward(self, x):
        x = self.prelu(self.bn1(self.conv1(x)))
        for name, stage in self.named_children():
            x = stage(x) if name.startswith("layer") else x
        return self.features(self.fc(self.bn2(x).flatten(1)))


class Squeeze(nn.Module):
    def __init__(self, channels, reduction):
        super().__init__()
        self.fc1 = conv(channels, channels // reduction, 1)
        self.fc2 = conv(channels // reduction, channels, 1)

    def forward(self, x):
        y = x.mean((2, 3), keepdim=True)
        return x * self.fc2(self.fc1(y).relu()).sigmoid()


class Unit(nn.Module):
    """`res_layer` plus `shortcut_layer`, which keeps every other pixel or projects."""

    def __init__(self, inputs, outputs, stride, layers):
        super().__init__()
        self.shortcut_layer = (
            nn.MaxPool2d(1, stride)
            if inputs == outputs
            else nn.Sequential(
                conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )
        )
        self.res_layer = layers

    def forward(self, x):
        return self.res_layer(x) + self.shortcut_layer(x)


def evolve_layers(c, out, stride, squeeze):
    """One norm before, one after two convolutions."""
    layers = nn.Sequential(
        nn.BatchNorm2d(c),
        conv(c, out),
        nn.PReLU(out),
        conv(out, out, 3, stride),
        nn.BatchNorm2d(out),
    )
    return layers.append(Squeeze(out, squeeze)) if squeeze else layers


def adaface_layers(c, out, stride, squeeze, *, bottleneck=False):
    """A norm after every convolution; squeeze-excitation has a name."""
    inner = out // 4 if bottleneck else out
    parts = [nn.BatchNorm2d(c), conv(c, inner, 1 if bottleneck else 3)]
    parts += [nn.BatchNorm2d(inner), nn.PReLU(inner)]
    if bottleneck:
        parts += [conv(inner, inner), nn.BatchNorm2d(inner), nn.PReLU(inner)]
    parts += [conv(inner, out, 1 if bottleneck else 3, stride), nn.BatchNorm2d(out)]
    layers = nn.Sequential(*parts)
    if squeeze:
        layers.add_module("se_block", Squeeze(out, squeeze))
    return layers


class Backbone(nn.Module):
    """face.evoLVe's and all that came from it."""

    def __init__(
        self, stages, widths, dim, side, layers, *, stem=0, squeeze=0, affine=True
    ):
        super().__init__()
        c = stem or widths[0]
        self.input_layer = nn.Sequential(conv(3, c), nn.BatchNorm2d(c), nn.PReLU(c))
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(widths[-1]),
            nn.Dropout(0.0),
            nn.Flatten(),
            nn.Linear(widths[-1] * (side // 2 ** len(stages)) ** 2, dim),
            nn.BatchNorm1d(dim, affine=affine),
        )
        self.body = nn.Sequential()
        for blocks, width in zip(stages, widths, strict=True):
            for j in range(blocks):
                stride = 1 if j else 2
                parts = layers(c, width, stride, squeeze)
                self.body.append(Unit(c, width, stride, parts))
                c = width

    def forward(self, x):
        return self.output_layer(self.body(self.input_layer(x)))


def twin(name, full_line, make, stages, keys, *, small="", full=None, **given):
    """A pair of the same class: stages (2, 1) on 16 pixels, and as published."""
    full = {"widths": PUBLISHED, "dim": 512, "side": 112, **given, **(full or {})}
    line = f"iresnet.{name}(stages=(2, 1), widths=(8, 16), dim=8, dropout=0.0, size=16"
    few = {"widths": SMALL, "dim": 8, "side": 16, **given}
    if "squeeze" in given:
        few["squeeze"], small = 2, ", squeeze=2" + small
    if "stem" in given:
        few["stem"], small = 4, ", stem_width=4" + small
    return Twin(
        line=f"{line}{small})",
        small=functools.partial(make, (2, 1), **few),
        full_line=f"iresnet.{full_line}",
        full=functools.partial(make, stages, **full),
        keys=keys,
    )


_50, _100, _152 = (3, 4, 14, 3), (3, 13, 30, 3), (3, 8, 36, 3)
IRSE = functools.partial(
    twin, "irse50", "irse50", Backbone, _50, "evolve_irse50.txt", squeeze=16
)
TWINS = {
    "arcface_torch": twin("r18", "r18", IResNet, (2, 2, 2, 2), "arcface_torch_r18.txt"),
    "magface": twin(
        "magface_r50",
        "magface_r50",
        IResNet,
        _50,
        "magface_r50.txt",
        eps=2e-5,
        frozen=False,
    ),
    "adaface": twin(
        "ir18",
        "ir18",
        Backbone,
        (2, 2, 2, 2),
        "adaface_ir18.txt",
        layers=adaface_layers,
        affine=False,
    ),
    "cvlface": twin(
        "ir152",
        "ir152(squeeze=16)",
        Backbone,
        _152,
        "cvlface_irse152.txt",
        layers=functools.partial(adaface_layers, bottleneck=True),
        affine=False,
        squeeze=16,
        stem=64,
        full={"widths": (256, 512, 1024, 2048)},
    ),
    "curricularface": twin(
        "curricularface_ir101",
        "curricularface_ir101",
        Backbone,
        _100,
        "curricularface_ir101.txt",
        layers=evolve_layers,
        affine=False,
    ),
    "evolve": IRSE(layers=evolve_layers),
    "insightface_pytorch": IRSE(layers=evolve_layers),
}
