"""Keras' files, written by hand and by Keras, in the layout of PyTorch."""

import io
import json
import zipfile

import h5py
import numpy as np
import pytest

from jaxface import foreign
from jaxface.foreign import keras_file

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def same(got, wanted):
    assert list(got) == list(wanted)
    for name, array in wanted.items():
        assert got[name].dtype == array.dtype, name
        np.testing.assert_array_equal(got[name], array, err_msg=name)


def write_hdf5(path, *, order=("stem", "inner"), cut=""):
    """Write what Keras 2 does, from its documentation of the attributes."""
    weights = {
        "stem": {"stem/kernel:0": normal(3, 3, 2, 4), "stem/bias:0": normal(4)},
        "inner": {"dw/depthwise_kernel:0": normal(3, 3, 4, 2), "bn/gamma:0": normal(8),
                  "bn/beta:0": normal(8), "fc/kernel:0": normal(8, 5),
                  "act/alpha:0": normal(1, 1, 8), "bn/moving_mean:0": normal(8),
                  "bn/moving_variance:0": normal(8)},
    }  # fmt: skip
    with h5py.File(path, "w") as f:
        root = f.create_group(cut) if cut else f
        for k, name in enumerate(order):  # long lists of names come in pieces
            root.attrs[f"layer_names{k}"] = [name.encode()]
        for layer, arrays in weights.items():
            group = root.create_group(layer)
            group.attrs["weight_names"] = [w.encode() for w in arrays]
            for name, array in arrays.items():
                group[name] = array
    return {k: a for arrays in weights.values() for k, a in arrays.items()}


@pytest.mark.parametrize("cut", ["", "model_weights"])
def test_keras_2_weights_are_turned_to_pytorchs_layout(tmp_path, cut):
    w = write_hdf5(tmp_path / "x.h5", cut=cut)
    dw = w["dw/depthwise_kernel:0"]
    got = foreign.read(tmp_path / "x.h5")
    same(got, {
        "stem.weight": np.einsum("hwio->oihw", w["stem/kernel:0"]),
        "stem.bias": w["stem/bias:0"],
        "inner.dw.weight": np.stack(
            [dw[None, :, :, c, m] for c in range(4) for m in (0, 1)]),
        "inner.bn.weight": w["bn/gamma:0"],
        "inner.bn.bias": w["bn/beta:0"],
        "inner.bn.running_mean": w["bn/moving_mean:0"],
        "inner.bn.running_var": w["bn/moving_variance:0"],
        "inner.fc.weight": w["fc/kernel:0"].T,
        "inner.act.weight": w["act/alpha:0"].ravel(),
    })  # fmt: skip


def store(layers):
    """The bytes of Keras 3's `model.weights.h5`."""
    content = io.BytesIO()
    with h5py.File(content, "w") as f:
        for path, arrays in layers.items():
            for k, array in enumerate(arrays):
                f[f"layers/{path}/vars/{k}"] = array
    return content.getvalue()


def config(*layers):
    listed = [{"class_name": c, "config": {"name": n, **more}} for c, n, more in layers]
    return {"class_name": "Functional", "config": {"layers": listed}}


def write_keras(path, model_config, content):
    with zipfile.ZipFile(path, "w") as f:
        f.writestr("config.json", json.dumps(model_config))
        f.writestr("model.weights.h5", content)
    return path


def test_keras_3_layers_come_in_the_order_of_the_config(tmp_path):
    last, first = normal(1, 1, 2, 3), normal(1, 1, 2, 2)
    vectors = [normal(2) for _ in range(3)]
    layers = {"conv2d_1": [last], "conv2d": [first], "batch_normalization": vectors}
    norm = ("BatchNormalization", "a", {"scale": False, "center": True})
    told = config(("Conv2D", "z", {}), norm, ("Lambda", "l", {}), ("Conv2D", "b", {}))
    got = foreign.read(write_keras(tmp_path / "x.keras", told, store(layers)))
    leaves = ["bias", "running_mean", "running_var"]
    wanted = {"z.weight": np.einsum("hwio->oihw", first)}
    wanted |= {f"a.{k}": v for k, v in zip(leaves, vectors, strict=True)}
    same(got, wanted | {"b.weight": np.einsum("hwio->oihw", last)})


def test_bare_keras_3_weights_come_by_kind_and_number(tmp_path):
    names = ["dense", "conv2d_10", "conv2d_2", "conv2d"]
    arrays = [normal(2, 2), *(normal(1, 1, 2, 2) for _ in range(3))]
    layers = {k: [a] for k, a in zip(names, arrays, strict=True)}
    (tmp_path / "x.weights.h5").write_bytes(store(layers))
    got = list(foreign.read(tmp_path / "x.weights.h5"))
    assert got == [f"{k}.weight" for k in ("conv2d", "conv2d_2", "conv2d_10", "dense")]


BAD_STORES = {
    "unknown layer": ({"arc_face": [normal(2, 2)]}, "arc_face, has 1 variables"),
    "slope per pixel": ({"p_re_lu": [normal(2, 2, 3)]}, "slope per pixel"),
    "norm without a config": (
        {"batch_normalization": [normal(2)] * 3},
        "not told which",
    ),
    "weight of no layer": ({"dense/own": [normal(2, 2)]}, "layers unknown here"),
    "text": ({"dense": [np.bytes_(b"abc")]}, "no numbers"),
    "nothing": ({}, "no weights"),
}


@pytest.mark.parametrize(("layers", "says"), BAD_STORES.values(), ids=BAD_STORES)
def test_keras_weights_are_never_lost(tmp_path, layers, says):
    (tmp_path / "x.weights.h5").write_bytes(store(layers))
    with pytest.raises(ValueError, match=rf"x\.weights\.h5: .*{says}"):
        foreign.read(tmp_path / "x.weights.h5")


def test_hdf5_does_not_lead_out_of_its_file_nor_take_memory(tmp_path):
    write_hdf5(tmp_path / "secret.h5")
    linked, bomb = tmp_path / "link.h5", tmp_path / "bomb.h5"
    with h5py.File(linked, "w") as f:
        f["layers/dense/vars/0"] = h5py.ExternalLink("secret.h5", "stem/stem/kernel:0")
    with pytest.raises(ValueError, match="link to another place"):
        foreign.read(linked)
    with h5py.File(bomb, "w") as f:
        f.create_dataset("layers/dense/vars/0", (2**20, 2**20), "f4", chunks=(64, 64))
    with pytest.raises(ValueError, match="larger than the file"):
        foreign.read(bomb)
    with h5py.File(bomb, "w") as f:
        outside = [(str(tmp_path / "secret.h5"), 0, 400)]
        f.create_dataset("layers/dense/vars/0", (10, 10), "f4", external=outside)
    with pytest.raises(ValueError, match="in another file"):
        foreign.read(bomb)


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_keras_files_cut_short_are_refused(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    write_hdf5(path)
    if suffix == ".keras":
        write_keras(path, config(("Dense", "d", {})), store({"dense": [normal(2, 2)]}))
    content = path.read_bytes()
    for part in range(20):
        path.write_bytes(content[: len(content) * part // 20])
        with pytest.raises(ValueError, match=rf"x\{suffix}"):
            keras_file.read(path)


def keras_model():
    import keras

    layers = keras.layers
    inner = keras.Sequential([
        keras.Input((6, 6, 4)),
        layers.BatchNormalization(name="bn", epsilon=1e-3),
        layers.PReLU(shared_axes=[1, 2], name="act"),
        layers.DepthwiseConv2D(3, depth_multiplier=2, name="dw"),
    ], name="inner")  # fmt: skip
    pieces = [layers.Conv2D(4, 3, name="stem"), inner, layers.Dropout(0.1)]
    pieces += [layers.SeparableConv2D(5, 2, name="sep")]
    pieces += [layers.GlobalAveragePooling2D(), layers.Dense(3, name="fc")]
    x = images = keras.Input((8, 8, 3))
    for piece in pieces:
        x = piece(x)
    net = keras.Model(images, x)
    net.set_weights([np.abs(normal(*w.shape)) for w in net.get_weights()])
    net.compile("adam", "mse")  # its state is no weight
    return net


def torch_forward(w, images):
    """Run the layers of `keras_model` in torch."""
    import torch

    f = torch.nn.functional
    w = {k: torch.from_numpy(a) for k, a in w.items()}
    y = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    y = f.conv2d(y, w["stem.weight"], w["stem.bias"])
    bn = [w[f"inner.bn.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
    y = f.prelu(f.batch_norm(y, *bn, eps=1e-3), w["inner.act.weight"])
    y = f.conv2d(y, w["inner.dw.weight"], w["inner.dw.bias"], groups=4)
    y = f.conv2d(y, w["sep.depthwise.weight"], groups=8)
    y = f.conv2d(y, w["sep.pointwise.weight"], w["sep.pointwise.bias"]).mean((2, 3))
    return f.linear(y, w["fc.weight"], w["fc.bias"]).numpy()


@pytest.mark.slow  # TensorFlow takes 7 s to import
@pytest.mark.filterwarnings("ignore:__array__ implementation")  # within Keras
def test_keras_and_pytorch_agree_on_what_is_read(tmp_path):
    pytest.importorskip("torch", reason="pip install jaxface[peers]")
    net = keras_model()
    net.save(tmp_path / "x.h5")
    net.save(tmp_path / "x.keras")
    net.save_weights(tmp_path / "x.weights.h5")
    whole, old, bare = (
        foreign.read(tmp_path / f"x{s}") for s in (".keras", ".h5", ".weights.h5")
    )
    order = ["stem", "inner", "sep", "fc"]
    assert list(dict.fromkeys(k.split(".")[0] for k in whole)) == order
    same(old, whole)
    assert bare.keys() == whole.keys()
    same(bare, {k: whole[k] for k in bare})
    images = normal(2, 8, 8, 3)
    got = torch_forward(whole, images)
    np.testing.assert_allclose(got, net(images), rtol=1e-4, atol=1e-4)
