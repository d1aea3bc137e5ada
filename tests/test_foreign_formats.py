"""Safetensors and ONNX against their libraries, and the one reader of all formats."""

import json
import sys
import zipfile

import h5py
import hypothesis
import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from jaxface import foreign
from jaxface.foreign import onnx_graph, safetensor

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def same(got, wanted):
    assert list(got) == list(wanted)
    for name, array in wanted.items():
        assert got[name].dtype == array.dtype, name
        np.testing.assert_array_equal(got[name], array, err_msg=name)


def tensors(*, narrow):
    kinds = [
        np.float64,
        np.float32,
        np.int64,
        np.int8,
        np.uint16,
        np.bool_,
        np.complex64,
    ]
    kinds += [np.float16, ml_dtypes.bfloat16] if narrow else []
    out = {f"z.{np.dtype(k).name}": (3 * normal(2, 3)).astype(k) for k in kinds}
    return out | {"a.count": np.array(5), "a.none": np.zeros((0, 3), np.float32)}


def test_safetensors_are_read_as_their_library_does(tmp_path):
    library = pytest.importorskip(
        "safetensors.numpy", reason="pip install jaxface[test]"
    )
    library.save_file(tensors(narrow=True), tmp_path / "x.safetensors")
    got = foreign.read(tmp_path / "x.safetensors")
    wanted = {
        k: a.astype(np.float32) if a.dtype.itemsize == 2 and a.dtype.kind in "fV" else a
        for k, a in library.load_file(tmp_path / "x.safetensors").items()
    }
    same(got, {k: wanted[k] for k in got})
    assert got.keys() == wanted.keys()


def test_written_safetensors_are_those_of_their_library(tmp_path):
    library = pytest.importorskip(
        "safetensors.numpy", reason="pip install jaxface[test]"
    )
    given = tensors(narrow=True)
    given["a.turned"] = normal(2, 3).T
    safetensor.write(tmp_path / "x.safetensors", given)
    got = library.load_file(tmp_path / "x.safetensors")
    same({k: got[k] for k in given}, given)
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_safetensors_round_trip_in_order(tmp_path):
    given = tensors(narrow=False)
    given["big endian"] = np.arange(3).astype(">i4")
    safetensor.write(tmp_path / "x.safetensors", given)
    given["big endian"] = given["big endian"].astype("=i4")
    same(safetensor.read(tmp_path / "x.safetensors"), given)


def test_an_element_type_without_a_name_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="'w' of complex128 cannot be written"):
        safetensor.write(tmp_path / "x.safetensors", {"w": np.zeros(2, complex)})
    assert not list(tmp_path.iterdir())


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HEADERS = {
    "past the end": ({"w": entry(offsets=(0, 16), shape=(4,))}, "bytes 0 to 16 of 8"),
    "backwards": ({"w": entry(offsets=(8, 0))}, "bytes 8 to 0"),
    "negative": ({"w": entry(offsets=(-8, 0))}, "bytes -8"),
    "oversized": ({"w": entry(shape=(2**40, 2**20))}, "which takes"),
    "negative size": ({"w": entry(shape=(-1, -2))}, "wanted dtype"),
    "size no number": ({"w": entry(shape=(2.0,))}, "wanted dtype"),
    "overlap": ({"a": entry(), "b": entry()}, "overlap"),
    "hole": ({"w": entry(shape=(1,), offsets=(4, 8))}, "hole at byte 0"),
    "left over": ({"w": entry(shape=(1,), offsets=(0, 4))}, "4 bytes belong to no"),
    "unknown type": ({"w": entry(dtype="F4")}, "'F4' unknown; known:"),
    "no entry": ({"w": 3}, "wanted dtype"),
    "list": ([1], "no object"),
    "same name": (b'{"w":1,"w":2}', "same name"),
    "deep": (b'{"a":' + b"[" * 100_000, "not a safetensors"),
    "no JSON": (b"{\xff", "not a safetensors"),
}


def write_safetensors(path, header):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    return path


@pytest.mark.parametrize(("header", "says"), HEADERS.values(), ids=HEADERS)
def test_hostile_headers_are_refused(tmp_path, header, says):
    path = write_safetensors(tmp_path / "x.safetensors", header)
    with pytest.raises(ValueError, match=rf"x\.safetensors: .*{says}"):
        foreign.read(path)


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(at=st.integers(0), bits=st.integers(0, 255), end=st.integers(0))
def test_damaged_safetensors_open_or_say_why(tmp_path_factory, at, bits, end):
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    content = bytearray(write_safetensors(path, {"w": entry()}).read_bytes())
    content[at % len(content)] ^= bits
    path.write_bytes(content[: len(content) - end % len(content)])
    try:
        got = safetensor.read(path)
    except ValueError:  # and no other exception
        return
    assert all(a.nbytes <= 32 for a in got.values())


def model(nodes, constants, *, channels=3):
    wanted = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape)
              for n, shape in (("x", ["N", channels, 4, 4]), ("y", None))]  # fmt: skip
    weights = [numpy_helper.from_array(a, name) for name, a in constants.items()]
    graph = helper.make_graph(nodes, "g", wanted[:1], wanted[1:], weights)
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, ir_version=8, opset_imports=opset)


def network():
    c = {
        "cw": normal(8, 3, 3, 3), "cb": normal(8),
        "g": normal(8), "b": normal(8), "m": normal(8), "v": normal(8) ** 2 + 1,
        "slope": normal(8, 1, 1), "mw": normal(32, 6), "mb": normal(6),
        "gw": normal(6, 5), "gb": normal(5), "low": np.array(-9.0, np.float32),
    }  # fmt: skip
    shape = numpy_helper.from_array(np.array([0, -1]))
    slope = numpy_helper.from_array(c.pop("slope"))
    node = helper.make_node
    nodes = [
        node("Identity", ["cw"], ["cw2"]),
        node("Conv", ["x", "cw2", "cb"], ["1"], name="/layer1/layer1.0/conv/Conv"),
        node("BatchNormalization", ["1", "g", "b", "m", "v"], ["2"],
             name="/bn/BatchNormalization"),
        node("Constant", [], ["slope"], value=slope),
        node("PRelu", ["2", "slope"], ["3"]),
        node("Clip", ["3", "low"], ["4"]),
        node("Constant", [], ["shape"], value=shape),
        node("Reshape", ["4", "shape"], ["5"]),
        node("MatMul", ["5", "mw"], ["6"], name="/fc/MatMul"),
        node("Add", ["mb", "6"], ["7"], name="/fc/Add"),
        node("Gemm", ["7", "gw", "gb"], ["y"], name="/fc/Gemm"),
    ]  # fmt: skip
    return model(nodes, c), c | {"slope": numpy_helper.to_array(slope)}


def test_onnx_layers_come_in_order_and_in_the_layout_of_pytorch(tmp_path):
    net, c = network()
    onnx.save(net, tmp_path / "x.onnx")
    wanted = {
        "layer1.0.conv.weight": c["cw"], "layer1.0.conv.bias": c["cb"],
        "bn.weight": c["g"], "bn.bias": c["b"], "bn.running_mean": c["m"],
        "bn.running_var": c["v"], "PRelu_4.weight": c["slope"].ravel(),
        "fc.weight": c["mw"].T, "fc.bias": c["mb"],
        "fc_1.weight": c["gw"].T, "fc_1.bias": c["gb"],
    }  # fmt: skip
    same(foreign.read(tmp_path / "x.onnx"), wanted)


def test_onnx_half_precision_widens_and_its_data_may_lie_beside(tmp_path):
    w = normal(4, 3, 3, 3).astype(np.float16)
    net = model([helper.make_node("Conv", ["x", "w"], ["y"], name="c")], {"w": w})
    kept = {"save_as_external_data": True, "size_threshold": 0}
    onnx.save(net, tmp_path / "x.onnx", **kept, location="x.data")
    same(foreign.read(tmp_path / "x.onnx"), {"c.weight": w.astype(np.float32)})
    (tmp_path / "x.data").unlink()
    with pytest.raises(ValueError, match=r"x\.onnx.*x\.data"):
        foreign.read(tmp_path / "x.onnx")


BAD_NODES = {
    "lost": (
        helper.make_node("Mul", ["x", "w"], ["y"]),
        "no layer known here.*'w'.*Mul",
    ),
    "lost unused": (helper.make_node("Relu", ["x"], ["y"]), "'w'.*used by nothing"),
    "scaled": (helper.make_node("Gemm", ["x", "w"], ["y"], alpha=2.0), "'alpha': 2.0"),
    "computed": (helper.make_node("Conv", ["x", "x"], ["y"]), "'x' is computed"),
    "no matrix": (helper.make_node("MatMul", ["x", "w"], ["y"]), "no matrix"),
}


@pytest.mark.parametrize(("node", "says"), BAD_NODES.values(), ids=BAD_NODES)
def test_onnx_weights_are_never_lost(tmp_path, node, says):
    onnx.save(model([node], {"w": normal(1, 3, 1, 1)}), tmp_path / "x.onnx")
    with pytest.raises(ValueError, match=rf"x\.onnx.*{says}"):
        foreign.read(tmp_path / "x.onnx")


def test_onnx_runs_alike_with_and_without_onnxruntime(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="pip install jaxface[test]")
    onnx.save(network()[0], tmp_path / "x.onnx")
    images = normal(2, 3, 4, 4)
    got = onnx_graph.forward(tmp_path / "x.onnx", images)
    assert got.shape == (2, 5)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    slow = onnx_graph.forward(tmp_path / "x.onnx", images)
    np.testing.assert_allclose(got, slow, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="wanted NCHW float32"):
        onnx_graph.forward(tmp_path / "x.onnx", images.astype(float))


@pytest.mark.real_data
def test_the_real_graph_gives_all_its_weights_under_the_names_of_the_module(real_data):
    path = real_data / "weights" / "foamliu_MobileFaceNet.onnx"
    got = foreign.read(path)
    listed = [numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer]
    assert len(got) == len(listed) == 102
    for ours, theirs in zip(got.values(), listed, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # the exporter folded the norms, so the convolutions keep names and shapes only
    module = foreign.read(real_data / "weights" / "foamliu_mobilefacenet.pt")
    folded = {k: a.shape for k, a in got.items() if k.endswith("weight")}
    assert folded == {k: module[k].shape for k in folded}


def test_a_file_is_known_by_its_content_under_another_suffix(tmp_path):
    safetensor.write(tmp_path / "a.bin", {"w": normal(2)})
    onnx.save(network()[0], tmp_path / "b.safetensors")
    with h5py.File(tmp_path / "c.pth", "w") as f:
        f["layers/dense/vars/0"] = normal(2, 3)
    told = {"class_name": "Dense", "config": {"name": "dense"}}
    with zipfile.ZipFile(tmp_path / "d.pt", "w") as f:
        f.writestr("config.json", json.dumps({"config": {"layers": [told]}}))
        f.write(tmp_path / "c.pth", "model.weights.h5")
    found = {name: list(foreign.read(tmp_path / name)) for name in ("a.bin", "c.pth")}
    assert found == {"a.bin": ["w"], "c.pth": ["dense.weight"]}
    assert list(foreign.read(tmp_path / "d.pt")) == ["dense.weight"]
    assert "bn.running_var" in foreign.read(tmp_path / "b.safetensors")


CONTENTS = {
    "x.npz": (b"", r"suffix '\.npz' unknown.*Known: \.pth, \.pt"),
    "x.safetensor": (b"", r"did you mean '\.safetensors'"),
    "x.pth": (b"\x89PNG\r\n\x1a\n", "neither a zip nor a pickle"),
    "x.onnx": (b"\xff" * 99, "not an ONNX model"),
    "x.h5": (b"text", "not weights of Keras"),
    "x.safetensors": (b"\xff" * 99, "not a safetensors file"),
    "x.ckpt": (b"", "empty"),
    "x.bin": (b"\x80\x04]\x94.", "not one that torch.save wrote"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_other_files_are_refused_with_their_name(tmp_path, name):
    content, says = CONTENTS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: .*{says}"):
        foreign.read(tmp_path / name)


def test_other_archives_folders_and_missing_files_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as f:
        f.writestr("w.npy", b"")
    with pytest.raises(ValueError, match=r"x\.pt: a zip archive without .*w\.npy"):
        foreign.read(tmp_path / "x.pt")
    with pytest.raises(FileNotFoundError, match="no such file"):
        foreign.read(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="not a file"):
        foreign.read(tmp_path)


@pytest.mark.parametrize(("library", "suffix"), [("h5py", ".h5"), ("onnx", ".onnx")])
def test_a_missing_library_names_the_extra(tmp_path, monkeypatch, library, suffix):
    (tmp_path / f"x{suffix}").write_bytes(
        b"\x89HDF\r\n\x1a\n" if suffix == ".h5" else b""
    )
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=r"pip install jaxface\[convert\]"):
        foreign.read(tmp_path / f"x{suffix}")
