"""GhostFaceNets are their Keras models: names, order, layouts and values.

The originals are written down here layer by layer, with the original's names: V1's
are Keras's own numbers. Weights pass through files, as published ones do.
"""

import functools

import jax
import numpy as np
import pytest

from jaxface import convert, foreign
from jaxface.convert import names, network
from jaxface.models import ghostfacenet

pytestmark = [
    pytest.mark.slow,  # TensorFlow takes 7 s to import
    # Keras with NumPy 2, when it saves
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

ROWS = (  # kernel, inner, outer, gate, stride
    (3, 16, 16, 0, 1),
    (3, 48, 24, 0, 2),
    (3, 72, 24, 0, 1),
    (5, 72, 40, 1, 2),
    (5, 120, 40, 1, 1),
    (3, 240, 80, 0, 2),
    (3, 200, 80, 0, 1),
    (3, 184, 80, 0, 1),
    (3, 184, 80, 0, 1),
    (3, 480, 112, 1, 1),
    (3, 672, 112, 1, 1),
    (5, 672, 160, 1, 2),
    (5, 960, 160, 0, 1),
    (5, 960, 160, 1, 1),
    (5, 960, 160, 0, 1),
)
LAST = {1: (5, 512, 160, 1, 1), 2: (5, 960, 160, 1, 1)}
KEPT = (0, 1, 3, 4, 5, 11)  # rows of the small nets: stages (1, 1, 2, 1, 1)


def rounded(n):
    m = max(4, int(n + 2) // 4 * 4)
    return m + 4 if m < 0.9 * n else m


class Layers:
    """Keras layers of one version: V1 leaves their names to Keras."""

    def __init__(self, version):
        import keras

        self.version, self.layers, self.ops = version, keras.layers, keras.ops

    def name(self, name):
        return {"name": name} if self.version == 2 else {}

    def conv(self, x, features, name, kernel=1, stride=1, bias=False):
        if self.version == 2 and kernel > 1:
            x = self.layers.ZeroPadding2D(kernel // 2)(x)
        padding = "valid" if self.version == 2 else "same"
        layer = self.layers.Conv2D(
            features,
            kernel,
            stride,
            padding,
            use_bias=bias,
            **self.name(f"{name}_conv"),
        )
        return layer(x)

    def shift(self, x, name, kernel=3, stride=1):
        kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        if self.version == 2:
            x = self.layers.ZeroPadding2D((kernel[0] // 2, kernel[1] // 2))(x)
        layer = self.layers.DepthwiseConv2D(
            kernel,
            stride,
            "valid" if self.version == 2 else "same",
            use_bias=False,
            **self.name(f"{name}_dw_conv"),
        )
        return layer(x)

    def norm(self, x, name, act=False):
        x = self.layers.BatchNormalization(
            momentum=0.9, epsilon=1e-5, **self.name(f"{name}_bn")
        )(x)
        return self.act(x, name) if act else x

    def act(self, x, name):
        if self.version == 1:
            return self.layers.Activation("relu")(x)  # replaced at the end
        return self.layers.PReLU(
            alpha_initializer="ones", shared_axes=[1, 2], name=f"{name}_prelu"
        )(x)

    def gate(self, x, name):
        C = x.shape[-1]
        slope = 5 if self.version == 1 else 6

        def hard_sigmoid(x):  # as it was before Keras 3, and as torch's
            return self.ops.clip(x / slope + 0.5, 0, 1)

        if self.version == 1:
            y = self.layers.GlobalAveragePooling2D()(x)
            y = self.layers.Reshape((1, 1, C))(y)
        else:
            y = self.ops.mean(x, (1, 2), keepdims=True)
        y = self.conv(y, rounded(C * 0.25), f"{name}_1", bias=True)
        y = self.conv(self.act(y, name), C, f"{name}_2", bias=True)
        y = self.layers.Activation(hard_sigmoid)(y)
        return self.layers.Multiply()([x, y])

    def ghost(self, x, features, name, act):
        y = self.norm(self.conv(x, features // 2, f"{name}_prim"), f"{name}_prim", act)
        z = self.norm(self.shift(y, f"{name}_cheap"), f"{name}_cheap", act)
        return self.layers.Concatenate()([y, z])

    def far(self, x, features, name):
        size = x.shape[1:3]
        x = self.layers.AveragePooling2D(2, 2)(x)
        x = self.norm(self.conv(x, features, f"{name}_1"), f"{name}_1")
        x = self.norm(self.shift(x, f"{name}_2", (1, 5)), f"{name}_2")
        x = self.norm(self.shift(x, f"{name}_3", (5, 1)), f"{name}_3")
        x = self.layers.Activation("sigmoid")(x)
        return self.ops.image.resize(x, size, "bilinear", antialias=False)

    def shortcut(self, x, features, kernel, stride, name):
        if stride == 1 and x.shape[-1] == features:
            return x
        x = self.shift(x, f"{name}short_1", kernel, stride)
        x = self.conv(self.norm(x, f"{name}short_1"), features, f"{name}short_2")
        return self.norm(x, f"{name}short_2")

    def bottleneck(self, x, row, width, name, attention):
        kernel, inner, features, gated, stride = row
        inner, features = rounded(inner * width), rounded(features * width)
        if self.version == 2:  # made first there, last in V1
            short = self.shortcut(x, features, kernel, stride, name)
        y = self.ghost(x, inner, f"{name}ghost_1", True)
        if attention:
            y = self.layers.Multiply()([self.far(x, inner, f"{name}ghost_1_short"), y])
        if stride > 1:
            y = self.norm(self.shift(y, f"{name}down", kernel, stride), f"{name}down")
        y = self.gate(y, f"{name}se") if gated else y
        y = self.ghost(y, features, f"{name}ghost_2", False)
        if self.version == 1:
            short = self.shortcut(x, features, kernel, stride, name)
        return self.layers.Add()([short, y])


def original(version, rows, *, width, stem_stride, bias, dim, size):
    """The Keras model, its ReLUs of V1 replaced as the original replaces them."""
    import keras

    keras.utils.clear_session()
    use, layers = Layers(version), keras.layers
    x = inputs = keras.Input((size, size, 3))
    x = use.conv(x, rounded(16 * width), "stem", 3, stem_stride)
    x = use.norm(x, "stem", True)
    for i, row in enumerate(rows):
        attention = version == 2 and i >= 2
        x = use.bottleneck(x, row, width, f"stack{i + 1}_", attention)
    x = use.conv(x, rounded(LAST[version][1] * width), "pre")
    x = use.norm(x, "pre", True)
    norm = functools.partial(layers.BatchNormalization, momentum=0.9, epsilon=1e-5)
    x = layers.DepthwiseConv2D(x.shape[1], use_bias=False, name="GDC_dw")(x)
    x = norm(name="GDC_batchnorm")(x)
    x = layers.Conv2D(dim, 1, use_bias=bias, name="GDC_conv")(x)
    x = norm(name="pre_embedding")(layers.Flatten()(x))
    model = keras.Model(inputs, x)

    def replaced(layer):
        relu = isinstance(layer, layers.Activation) and layer.activation is (
            keras.activations.relu
        )
        return layers.PReLU(shared_axes=[1, 2], name=layer.name) if relu else layer

    return keras.models.clone_model(model, clone_function=replaced)


@functools.cache
def small(version):
    """A small Keras model with random weights."""
    model = original(
        version,
        [ROWS[i] for i in KEPT],
        width=0.25,
        stem_stride=2,
        bias=True,
        dim=16,
        size=72,
    )
    rng = np.random.default_rng(0)
    for layer in model.layers:
        for v in layer.weights:
            low = 0.5 if v.name in ("moving_variance", "gamma") else -0.5
            noise = rng.uniform(low, low + 1, v.shape)
            v.assign(noise if "moving" in v.name else 0.3 * v.numpy() + noise)
    return model


def line(version):
    return (
        f"ghostfacenet(version={version}, stages=(1, 1, 2, 1, 1), width=0.25,"
        " stem_stride=2, bias=True, dim=16, size=72)"
    )


@pytest.fixture
def converted(version, suffix, tmp_path):
    path = str(tmp_path / f"theirs{suffix}")
    small(version).save(path)
    return convert.from_tensors(line(version), foreign.read(path))


every = pytest.mark.parametrize("version", [1, 2])


@every
def test_names_shapes_and_parameters_are_the_originals(version):
    theirs = original(
        version,
        [*ROWS, LAST[version]],
        width=1.3,
        stem_stride=1,
        bias=version == 1,
        dim=512,
        size=112,
    )
    net = network.Network(f"ghostfacenet.v{version}_1")
    port = ghostfacenet.PORTS[f"keras_v{version}"]
    ours = [names.their_name(layer, "", port) for layer in net.layers]
    listed = [layer.name for layer in theirs.layers if layer.weights]
    assert sorted(ours) == sorted(listed)
    if version == 1:  # where names may be of no use
        assert ours == listed
    count = sum(np.prod(v.shape) for v in theirs.trainable_weights)
    paths = [p for p in net.shapes if p.startswith("params/")]
    assert count == sum(np.prod(net.shapes[p]) for p in paths)


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@every
def test_same_weights_give_the_same_embeddings(version, suffix, converted):
    # V1's numbers are those of the whole model: a smaller one is matched by order
    assert converted.how == ("order" if version == 1 else "keras_v2")
    model = network.Network(line(version)).model
    x = np.random.default_rng(1).uniform(-1, 1, (4, 72, 72, 3)).astype(np.float32)
    for train in (False, True):
        want = np.asarray(small(version)(x, training=train))
        got = jax.jit(
            functools.partial(model.apply, train=train, mutable=["batch_stats"])
        )(converted.variables, x)[0]
        np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
