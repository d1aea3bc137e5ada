"""Weights come in whole or not at all, and go out as they came."""

import json
import os
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT

from jaxface import checkpoint, convert, foreign
from jaxface.convert import names, network, order
from jaxface.data import ops
from jaxface.foreign import safetensor
from jaxface.models import iresnet, mobilefacenet

MAGFACE = "iresnet.magface_r50(stages=(1, 1), widths=(8, 16), dim=8, size=16)"
LINE = "iresnet(stages=(1, 1), widths=(8, 16), dim=8, size=16)"
PORT = "arcface_torch"


def theirs(line=LINE, port=PORT, seed=0):
    """Random weights of a small net under a port's names."""
    net, rng = network.Network(line), np.random.default_rng(seed)
    arrays = {
        path: rng.uniform(0.5, 1.5, shape).astype(np.float32)
        for path, shape in net.shapes.items()
    }
    return convert.to_torch(line, net.tree(arrays), port=port), arrays


def command(*args):
    done = subprocess.run(
        [sys.executable, "launch/convert.py", *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr.strip()


def test_in_and_out_is_exact():
    tensors, arrays = theirs()
    found = convert.from_tensors(LINE, tensors)
    assert (found.how, found.left, found.folded) == (PORT, (), False)
    for path, array in network.flatten(found.variables).items():
        np.testing.assert_array_equal(array, arrays[path])
    back = convert.to_torch(found.line, found.variables, port=PORT)
    assert back.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(back[name], array)


@pytest.mark.parametrize("prefix", ["module.", "state_dict.backbone.module."])
def test_a_wrapper_is_looked_through_and_what_is_beside_it_is_told(prefix):
    tensors, arrays = theirs()
    wrapped = {prefix + k: v for k, v in tensors.items()}
    wrapped["head.kernel"] = np.zeros((8, 100))
    found = convert.from_tensors(LINE, wrapped)
    assert found.left == ("head.kernel",)
    kernel = found.variables["params"]["conv1"]["kernel"]
    np.testing.assert_array_equal(kernel, arrays["params/conv1/kernel"])


def test_pixels_are_flattened_channel_by_channel_over_there():
    tensors, arrays = theirs()
    ours = arrays["params/head/fc/kernel"].reshape(4, 4, 16, 8)  # H W C D
    there = tensors["fc.weight"].reshape(8, 16, 4, 4)  # D C H W
    for h, w, c, d in [(0, 1, 2, 3), (3, 0, 15, 7), (2, 2, 0, 0)]:
        assert ours[h, w, c, d] == there[d, c, h, w]


def broken(kind):
    tensors, _ = theirs()
    if kind == "missing":
        del tensors["layer1.0.conv2.weight"]
    if kind == "extra":
        tensors["layer1.0.conv3.weight"] = np.zeros((8, 8, 3, 3), np.float32)
    if kind == "shape":
        tensors["layer2.0.bn1.bias"] = np.zeros(9, np.float32)
    if kind == "constant":
        tensors["features.weight"] = np.full(8, 0.5, np.float32)
    return tensors


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"layer1\.0\.conv2\.weight is missing"),
        ("extra", r"layer1\.0\.conv3\.weight is left over"),
        ("shape", r"layer2\.0\.bn1\.bias is \(9,\), wanted \(8,\)"),
        ("constant", r"features\.weight should be 1\.0"),
    ],
)
def test_what_differs_is_named(kind, message):
    with pytest.raises(convert.MismatchError, match=message):
        convert.from_tensors(LINE, broken(kind))


def test_another_family_is_refused():
    tensors, _ = theirs()
    with pytest.raises(convert.MismatchError, match="differ"):
        convert.from_tensors("mobilefacenet(stages=(1, 0, 0, 0), size=16)", tensors)


def test_the_variant_that_fits_is_found():
    tensors, _ = theirs("mobilefacenet.xiaoccer", "xiaoccer")
    with pytest.raises(convert.MismatchError):
        convert.from_tensors("mobilefacenet.mbf", tensors)
    assert convert.variants("mobilefacenet.mbf", tensors) == ["mobilefacenet.xiaoccer"]


def test_unknown_port_and_model_get_the_nearest_name():
    with pytest.raises(KeyError, match="did you mean 'arcface_torch'"):
        convert.from_tensors(LINE, {}, port="arcface_pytorch")
    with pytest.raises(KeyError, match="did you mean 'iresnet'"):
        convert.from_tensors("iresnett", {})


def test_the_images_a_project_trained_on_go_into_the_line():
    line = LINE[:-1] + ", affine='both')"
    tensors, _ = theirs(line, "magface")
    found = convert.from_tensors(line, tensors, port="magface")
    model = network.Network(found.line).model
    assert (model.color, model.mean, model.std) == ("bgr", 0.0, 255.0)
    told = convert.from_tensors(
        line[:-1] + ", color='rgb', std=1.0)", tensors, port="magface"
    )
    assert "color='rgb', std=1.0, mean=0.0" in told.line


def test_names_that_two_projects_share_need_a_port():
    line = "iresnet.ir18(stages=(1, 1), widths=(8, 16), dim=8, size=16)"
    tensors, _ = theirs(line, "adaface")
    with pytest.raises(ValueError, match=r"adaface: .* cvlface: .*say which"):
        convert.from_tensors(line, tensors)
    assert convert.from_tensors(line, tensors, port="cvlface").how == "cvlface"


# By order.


def renamed(tensors):
    """The same tensors under names that nobody knows."""
    layers, out = {}, {}
    for name, array in tensors.items():
        layer, _, suffix = name.rpartition(".")
        out[f"{layers.setdefault(layer, len(layers))}.{suffix}"] = array
    return out


def test_unknown_names_are_matched_by_order():
    tensors, arrays = theirs()
    found = convert.from_tensors(LINE, renamed(tensors))
    assert found.how == "order"
    for path, array in network.flatten(found.variables).items():
        np.testing.assert_array_equal(array, arrays[path])


def test_named_parts_may_change_places_and_numbered_ones_may_not():
    line = "mobilefacenet.xiaoccer"
    tensors, arrays = theirs(line, "xiaoccer")
    last_first = dict(reversed(list(tensors.items())))
    blocks = {}
    for name in last_first:
        blocks.setdefault(name.partition(".")[0], []).append(name)
    moved = {n: tensors[n] for b in blocks for n in tensors if n in set(blocks[b])}
    assert list(moved) != list(tensors)
    got, _, _ = order.match(network.Network(line), strip(moved))
    np.testing.assert_array_equal(
        got["params/head/fc/kernel"], arrays["params/head/fc/kernel"]
    )
    with pytest.raises(convert.MismatchError, match="layers by order"):
        order.match(network.Network(line), strip(last_first))


def strip(tensors):
    return {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}


def test_folded_norms_give_the_same_embedding():
    line = "mobilefacenet.paper(stages=(1, 1, 0, 0), dim=8, size=16)"
    net, rng = network.Network(line), np.random.default_rng(0)
    arrays = {p: rng.uniform(0.5, 1.5, s) for p, s in net.shapes.items()}
    variables = net.tree(arrays)
    folded, waiting = {}, None
    for i, layer in enumerate(net.layers):
        part = {s: arrays[p] for s, p in layer.arrays.items()}
        if "running_mean" in part:
            kernel, path, before = waiting
            factor = part["weight"] / np.sqrt(part["running_var"] + 1e-5)
            scaled = network.to_theirs(kernel * factor, path, before, names.Port())
            folded[f"{i}.weight"] = scaled.astype(np.float32)
            bias = part["bias"] - part["running_mean"] * factor
            folded[f"{i}.bias"] = bias.astype(np.float32)
        elif layer.kind == "PReLU":
            folded[f"{i}.weight"] = part["weight"].astype(np.float32)
        else:
            waiting = (part["weight"], layer.arrays["weight"], layer)
    found = convert.from_tensors(line, folded)
    assert found.folded
    x = rng.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    want, got = (jax.jit(net.model.apply)(v, x) for v in (variables, found.variables))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def test_a_wrong_order_says_how_far_it_came():
    tensors = renamed(theirs()[0])
    tensors["3.weight"] = tensors["3.weight"][:-1]
    with pytest.raises(convert.MismatchError, match=r"matched \d+ of 2\d layers"):
        convert.from_tensors(LINE, tensors)


def test_ports_name_every_array_once():
    for module in (iresnet, mobilefacenet):
        for port in module.PORTS.values():
            line = "iresnet.r18" if module is iresnet else "mobilefacenet"
            net = network.Network(line)
            made = [
                names.their_name(layer, suffix, port)
                for layer in net.layers
                for suffix in layer.arrays
            ]
            assert len(set(made)) == len(made)


# The command.


def test_command_makes_a_workdir_that_evaluates_and_goes_back_out(tmp_path):
    source, out = tmp_path / "theirs.safetensors", tmp_path / "run"
    tensors, _ = theirs(MAGFACE, "magface")
    safetensor.write(source, tensors)
    code, said, wrong = command(
        f"--source={source}", f"--model={MAGFACE}", f"--out={out}", "--port=magface"
    )
    assert code == 0, wrong
    assert "bgr" in said
    config = json.loads((out / "config.json").read_text())
    assert config["data"]["eval_ops"].endswith("|bgr|normalize(mean=0.0, std=255.0)")
    assert json.loads((out / "convert.json").read_text())["matched by"] == "magface"
    back = tmp_path / "back.safetensors"
    code, _, wrong = command(
        f"--workdir={out}", "--to=torch", f"--out={back}", "--port=magface"
    )
    assert code == 0, wrong
    for name, array in foreign.read(back).items():
        np.testing.assert_array_equal(array, tensors[name])
    code, _, wrong = command(f"--source={source}", f"--model={LINE}", f"--out={out}")
    assert code == 1
    assert "is there already" in wrong


def test_command_cuts_the_sides_off_for_a_narrow_network(tmp_path):
    source, out = tmp_path / "theirs.safetensors", tmp_path / "run"
    safetensor.write(source, theirs("mobilefacenet.xiaoccer", "xiaoccer")[0])
    code, _, wrong = command(
        f"--source={source}", "--model=mobilefacenet.xiaoccer", f"--out={out}"
    )
    assert code == 0, wrong
    line = json.loads((out / "config.json").read_text())["data"]["eval_ops"]
    assert line == (
        "decode|resize(112)|center_crop((112, 96))|normalize(mean=127.5, std=128.0)"
    )
    pipeline, face = ops.parse(line), np.zeros((112, 112, 3), np.uint8)
    image = pipeline.numpy(face, pipeline.numbers(np.arange(1), seed=0)[0])
    assert image.shape == (112, 96, 3)


def test_command_refuses_a_malicious_pickle_and_leaves_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    source, out = tmp_path / "evil.pth", tmp_path / "run"
    source.write_bytes(pickle.dumps(Evil(), protocol=2))
    code, _, wrong = command(f"--source={source}", "--model=iresnet", f"--out={out}")
    assert code == 1
    assert str(source) in wrong
    assert not (tmp_path / "ran").exists()
    assert not out.exists()


# Somebody's real network.


@pytest.fixture(scope="module")
def foamliu(real_data):
    found = {}
    for name in ("foamliu_mobilefacenet.pt", "foamliu_MobileFaceNet.onnx"):
        tensors = foreign.read(real_data / "weights" / name)
        found[name[-4:]] = convert.from_tensors("mobilefacenet.foamliu", tensors)
    return found


@pytest.mark.real_data
def test_one_network_from_two_files_is_one(foamliu):
    (_, pt), (_, onnx) = foamliu.items()
    assert (pt.how, pt.folded) == ("foamliu", False)
    assert (onnx.how, onnx.folded) == ("order", True)
    model = network.Network(pt.line).model
    x = np.random.default_rng(0).uniform(-2, 2, (4, 112, 112, 3)).astype(np.float32)
    a, b = (jax.jit(model.apply)(f.variables, x) for f in (pt, onnx))
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(a).max())


@pytest.mark.slow
@pytest.mark.real_data
def test_real_weights_have_their_published_accuracy(real_data, tmp_path):
    pack, out = real_data / "lfw_dev_folds1-4.bin", tmp_path / "run"
    source = real_data / "weights" / "foamliu_MobileFaceNet.onnx"
    code, said, wrong = command(
        f"--source={source}", "--model=mobilefacenet.foamliu", f"--out={out}"
    )
    assert code == 0, wrong
    cosine = said.split("cosine with the graph: ")[1].split()[0]
    assert float(cosine) > 0.9999
    with checkpoint.open_manager(out / "checkpoints", create=False) as manager:
        assert checkpoint.about(manager, 0)["trainable"] is False
    subprocess.run(
        [
            *(sys.executable, "launch/evaluate.py", f"--workdir={out}"),
            *(f"--pack={pack}", "--folds=4", f"--names={real_data / 'pairs.txt'}"),
        ],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": ""},  # of ten thousand images, not in haste
        check=True,
        capture_output=True,
    )
    result = json.loads((out / "eval" / "0" / f"{pack.stem}.json").read_text())
    assert result["accuracy"] == pytest.approx(0.9942, abs=0.001)
