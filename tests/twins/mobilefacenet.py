"""MobileFaceNet as four projects define it."""

import functools

from torch import nn

from twins import Twin

SMALL = (1, 1, 0, 0)  # of the paper's stages; the projects take the list themselves


def conv(inputs, outputs, kernel=1, stride=1, groups=1, bias=False):
    pad = (kernel - 1) // 2 if isinstance(kernel, int) else 0
    return nn.Conv2d(inputs, outputs, kernel, stride, pad, groups=groups, bias=bias)


def whole(channels, kernel):
    """A depthwise kernel over all pixels."""
    return nn.Conv2d(channels, channels, kernel, groups=channels, bias=False)


class Named(nn.Sequential):
    """A sequence with names instead of numbers."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


class Block(nn.Module):
    """conv, bn and perhaps prelu, under those names (cavaface, Xiaoccer)."""

    def __init__(self, layer, prelu=True):
        super().__init__()
        self.conv = layer
        self.bn = nn.BatchNorm2d(layer.out_channels)
        self.prelu = nn.PReLU(layer.out_channels) if prelu else nn.Identity()

    def forward(self, x):
        return self.prelu(self.bn(self.conv(x)))


class Plus(nn.Module):
    """A branch added to its input where `residual`; parts by name, in order."""

    def __init__(self, residual, **parts):
        super().__init__()
        self.residual = residual
        self.names = list(parts)
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        y = x
        for name in self.names:
            y = getattr(self, name)(y)
        return x + y if self.residual else y


def cavaface(stages, dim, side):
    def bottleneck(c, inner, out, stride=1):
        return Plus(
            stride == 1,
            conv=Block(conv(c, inner)),
            conv_dw=Block(conv(inner, inner, 3, stride, inner)),
            project=Block(conv(inner, out), prelu=False),
        )

    def repeat(c, inner, n):
        return Named(model=nn.Sequential(*(bottleneck(c, inner, c) for _ in range(n))))

    return Named(
        conv1=Block(conv(3, 64, 3, 2)),
        conv2_dw=Block(conv(64, 64, 3, 1, 64)),
        conv_23=bottleneck(64, 128, 64, 2),
        conv_3=repeat(64, 128, stages[1]),
        conv_34=bottleneck(64, 256, 128, 2),
        conv_4=repeat(128, 256, stages[2]),
        conv_45=bottleneck(128, 512, 128, 2),
        conv_5=repeat(128, 256, stages[3]),
        conv_6_sep=Block(conv(128, 512)),
        conv_6_dw=Block(whole(512, side // 16), prelu=False),
        conv_6_flatten=nn.Flatten(),
        linear=nn.Linear(512, dim, bias=False),
        bn=nn.BatchNorm1d(dim),
    )


class Layers(nn.Module):
    """A sequence called `layers`, added to its input where `residual`."""

    def __init__(self, *parts, residual=False):
        super().__init__()
        self.layers = nn.Sequential(*parts)
        self.residual = residual

    def forward(self, x):
        return x + self.layers(x) if self.residual else self.layers(x)


class Arcface(nn.Module):
    def __init__(self, stages, scale, dim, side):
        super().__init__()
        t = 64 * scale

        def block(layer, *rest):
            return Layers(layer, nn.BatchNorm2d(layer.out_channels), *rest)

        def active(layer):
            return block(layer, nn.PReLU(layer.out_channels))

        def bottleneck(c, inner, out, stride=1):
            return Layers(
                active(conv(c, inner)),
                active(conv(inner, inner, 3, stride, inner)),
                block(conv(inner, out)),
                residual=stride == 1,
            )

        def repeat(c, inner, n):
            return Layers(*(bottleneck(c, inner, c) for _ in range(n)))

        self.layers = nn.ModuleList(
            [
                active(conv(3, t, 3, 2)),
                active(conv(t, t, 3, 1, 64))
                if stages[0] == 1
                else repeat(t, 128, stages[0]),
                bottleneck(t, 128, t, 2),
                repeat(t, 128, stages[1]),
                bottleneck(t, 256, 2 * t, 2),
                repeat(2 * t, 256, stages[2]),
                bottleneck(2 * t, 512, 2 * t, 2),
                repeat(2 * t, 256, stages[3]),
            ]
        )
        self.conv_sep = active(conv(2 * t, 512))
        self.features = Layers(
            block(whole(512, side // 16)),
            nn.Flatten(),
            nn.Linear(512, dim, bias=False),
            nn.BatchNorm1d(dim),
        )

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.features(self.conv_sep(x))


ROWS = (  # factor, channels, repeats, stride of the first
    (2, 64, 5, 2),
    (4, 128, 1, 2),
    (2, 128, 6, 1),
    (4, 128, 1, 2),
    (2, 128, 2, 1),
)


def bottlenecks(make):
    """The paper's rows of bottlenecks: make(inputs, inner, outputs, stride)."""
    made, c = [], 64
    for factor, out, repeats, first in ROWS:
        for i in range(repeats):
            made.append(make(c, factor * c, out, 1 if i else first))
            c = out
    return nn.Sequential(*made)


def xiaoccer():
    def bottleneck(c, inner, out, stride):
        layers = (
            *(conv(c, inner), nn.BatchNorm2d(inner), nn.PReLU(inner)),
            *(conv(inner, inner, 3, stride, inner), nn.BatchNorm2d(inner)),
            *(nn.PReLU(inner), conv(inner, out), nn.BatchNorm2d(out)),
        )
        return Plus(stride == 1 and c == out, conv=nn.Sequential(*layers))

    return nn.Sequential(
        Named(
            conv1=Block(conv(3, 64, 3, 2)),
            dw_conv1=Block(conv(64, 64, 3, 1, 64)),
            blocks=bottlenecks(bottleneck),
            conv2=Block(conv(128, 512)),
            linear7=Block(whole(512, (7, 6)), prelu=False),
            linear1=Block(conv(512, 128), prelu=False),
        ),
        nn.Flatten(),
    )[0]


class Flat(nn.Module):
    """Runs a net of this file that ends in [B, D, 1, 1] and flattens it."""

    def __init__(self, net):
        super().__init__()
        for name, part in net.named_children():
            self.add_module(name, part)

    def forward(self, x):
        for part in self.children():
            x = part(x)
        return x.flatten(1)


class Foamliu(nn.Module):
    def __init__(self, side=112):
        super().__init__()

        def block(layer):
            out = layer.out_channels
            return nn.Sequential(layer, nn.BatchNorm2d(out), nn.ReLU6())

        def bottleneck(c, inner, out, stride):
            layers = (
                block(conv(c, inner)),
                block(conv(inner, inner, 3, stride, inner)),
                conv(inner, out),
                nn.BatchNorm2d(out),
            )
            return Plus(stride == 1 and c == out, conv=nn.Sequential(*layers))

        self.conv1 = block(conv(3, 64, 3, 2))
        self.dw_conv = Named(
            depthwise=conv(64, 64, 3, 1, 64),
            pointwise=conv(64, 64),
            bn1=nn.BatchNorm2d(64),
            bn2=nn.BatchNorm2d(64),
        )
        self.conv2 = block(conv(128, 512))
        self.gdconv = Named(depthwise=whole(512, side // 16), bn=nn.BatchNorm2d(512))
        self.conv3 = conv(512, 128, bias=True)
        self.bn = nn.BatchNorm2d(128)
        self.features = bottlenecks(bottleneck)

    def forward(self, x):
        x, dw = self.conv1(x), self.dw_conv
        x = dw.bn1(dw.depthwise(x)).relu()
        x = dw.bn2(dw.pointwise(x)).relu()
        x = self.gdconv(self.conv2(self.features(x)))
        return self.bn(self.conv3(x)).flatten(1)


TWINS = {
    "arcface_torch": Twin(
        line="mobilefacenet.mbf(stages=(1, 1, 0, 1), dim=16, size=32)",
        small=functools.partial(Arcface, (1, 1, 0, 1), 2, 16, 32),
        full_line="mobilefacenet.mbf",
        full=functools.partial(Arcface, (1, 4, 6, 2), 2, 512, 112),
        keys="arcface_torch_mbf.txt",
    ),
    "cavaface": Twin(
        line="mobilefacenet(stages=(1, 1, 0, 1), dim=16, size=32)",
        small=functools.partial(cavaface, (1, 1, 0, 1), 16, 32),
        full_line="mobilefacenet",
        full=functools.partial(cavaface, (1, 4, 6, 2), 512, 112),
        keys="cavaface_mobilefacenet.txt",
    ),
    "foamliu": Twin(
        line="mobilefacenet.foamliu(size=32)",
        small=functools.partial(Foamliu, 32),
        full_line="mobilefacenet.foamliu",
        full=Foamliu,
        keys="foamliu_mobilefacenet.txt",
    ),
    "xiaoccer": Twin(
        line="mobilefacenet.xiaoccer",
        small=lambda: Flat(xiaoccer()),
        full_line="mobilefacenet.xiaoccer",
        full=lambda: Flat(xiaoccer()),
        keys="xiaoccer_mobilefacenet.txt",
        gradients=False,  # cavaface's layers
    ),
}
