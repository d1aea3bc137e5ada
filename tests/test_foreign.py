"""PyTorch's files without PyTorch: its equal on good files, inert on the others.

Files are made of opcodes here, so that the reader is tested where torch is missing.
"""

import pickle
import sys
import tracemalloc
import zipfile

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxface import foreign
from jaxface.foreign import pickles, pytorch

W = np.arange(6, dtype=np.float32)


def num(n):
    return pickle.dumps(n, 2)[2:-1]


def text(s):
    return b"X" + len(s).to_bytes(4, "little") + s.encode()


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def tup(*items):
    return b"(" + b"".join(items) + b"t"


def call(module, attribute, *args):
    return name(module, attribute) + tup(*args) + b"R"


def storage(*, key="0", kind="FloatStorage", numel=6, view=b"N"):
    where = text("storage"), name("torch", kind), text(key), text("cpu")
    return tup(*where, num(numel), view) + b"Q"


def rebuild(*args):
    return call("torch._utils", "_rebuild_tensor_v2", *args)


def tensor(*, size=(2, 3), stride=(3, 1), offset=0, **where):
    shape = tup(*map(num, size)), tup(*map(num, stride))
    hooks = call("collections", "OrderedDict")
    return rebuild(storage(**where), num(offset), *shape, b"\x89", hooks)


def state(items=None, /, **more):
    pairs = [text(k) + v for k, v in {**(items or {}), **more}.items()]
    return b"}(" + b"".join(pairs) + b"u"


def write_zip(path, body, storages=None, *, root="archive", order=b"little"):
    with zipfile.ZipFile(path, "w") as f:
        f.writestr(f"{root}/data.pkl", b"\x80\x02" + body + b".")
        f.writestr(f"{root}/byteorder", order)
        for key, array in (storages or {"0": W}).items():
            f.writestr(f"{root}/data/{key}", array.tobytes())
    return path


def write_legacy(path, body, storages=None):
    storages = storages or {"0": W}
    head = [pickle.dumps(v, 2) for v in (pytorch.MAGIC, 1001, {"little_endian": True})]
    raw = [len(a).to_bytes(8, "little") + a.tobytes() for a in storages.values()]
    keys = pickle.dumps(list(storages), 2)
    path.write_bytes(b"".join([*head, b"\x80\x02", body, b".", keys, *raw]))
    return path


LAYOUTS = {"zip": write_zip, "legacy": write_legacy}
layouts = pytest.mark.parametrize("write", LAYOUTS.values(), ids=LAYOUTS)


@layouts
def test_a_file_made_by_hand_is_read(tmp_path, write):
    items = {
        "fc.weight": tensor(),
        "turned": tensor(size=(3, 2), stride=(1, 3)),
        "tail": tensor(size=(2,), stride=(2,), offset=3),
        "count": tensor(key="k", kind="LongStorage", numel=1, size=(), stride=()),
        "half": tensor(key="h", kind="HalfStorage", numel=2, size=(2,), stride=(1,)),
    }
    body = state(items, epoch=num(3))
    half = np.array([0.5, 65504], np.float16)
    path = write(tmp_path / "x.pth", body, {"0": W, "k": np.array([7]), "h": half})
    got = foreign.read(path)
    assert list(got) == list(items)
    np.testing.assert_array_equal(got["fc.weight"], W.reshape(2, 3))
    np.testing.assert_array_equal(got["turned"], W.reshape(2, 3).T)
    np.testing.assert_array_equal(got["tail"], W[[3, 5]])
    assert got["count"].dtype == np.int64
    assert got["count"] == 7
    assert got["half"].dtype == np.float32
    np.testing.assert_array_equal(got["half"], half)
    got["fc.weight"][:] = 0  # a copy of its own, though the storage is shared
    np.testing.assert_array_equal(got["turned"], W.reshape(2, 3).T)


def test_big_endian_storages_are_swapped(tmp_path):
    path = write_zip(tmp_path / "x.pt", state(w=tensor()), {"0": W.astype(">f4")},
                     root="any name", order=b"big")  # fmt: skip
    np.testing.assert_array_equal(pytorch.read(path)["w"], W.reshape(2, 3))


@layouts
def test_containers_and_modules_join_their_names(tmp_path, write):
    def module(parameters=b"}", buffers=b"}", modules=b"}", unsaved=b"\x8f"):
        parts = {"_parameters": parameters, "_buffers": buffers, "_modules": modules,
                 "_non_persistent_buffers_set": unsaved}  # fmt: skip
        return name("any", "Net") + b")\x81" + state(parts) + b"b"

    cache = b"\x8f(" + text("cache") + b"\x90"
    inner = module(buffers=state(mean=tensor(), cache=tensor()), unsaved=cache)
    net = module(parameters=state(weight=tensor(), bias=b"N"), modules=state(bn=inner))
    both = b"](" + tensor() + tensor() + b"e"
    steps = b"}" + num(4) + tensor() + b"s"
    path = write(tmp_path / "x.ckpt", state(net=net, ema=both, steps=steps))
    wanted = ["net.weight", "net.bn.mean", "ema.0", "ema.1", "steps.4"]
    assert list(pytorch.read(path)) == wanted


def evil(command):
    """What tries to run a command, and the name of what it would call."""
    arg = text(command)
    py = text(f"__import__('os').system({command!r})")
    return {
        "REDUCE": (call("os", "system", arg), "os.system"),
        "STACK_GLOBAL": (text("posix") + text("system") + b"\x93" + tup(arg) + b"R",
                         "posix.system"),
        "eval": (call("builtins", "eval", py), "builtins.eval"),
        "exec of python 2": (call("__builtin__", "exec", py), "__builtin__.exec"),
        "INST": (b"(" + arg + b"ios\nsystem\n", "os.system"),
        "OBJ": (b"(" + name("os", "system") + arg + b"o", "os.system"),
        "torch.load": (call("torch", "load", arg), "torch.load"),
        "hub": (call("torch.hub", "load", arg, arg), "torch.hub.load"),
        "getattr": (call("builtins", "getattr", name("os", "system"), arg), "getattr"),
        "walk": (text("collections") + text("OrderedDict.__init__.__globals__")
                 + b"\x93" + tup(arg) + b"R", "__globals__"),
        "subclass": (call("torch._tensor", "_rebuild_from_type_v2",
                          name("os", "system"), b"N", tup(arg), b"N"), "own way"),
        "method of a value": (arg + tup() + b"R", "a str"),
        "extension": (b"\x82\x01", "EXT1"),
        "state of a function": (name("os", "system") + b"}b", "os.system"),
    }  # fmt: skip


def inert(command):
    """What only plants things, and makes nothing run."""
    arg = text(command)
    plant = state(__setstate__=name("os", "system"))
    new = name("os", "system") + tup(arg) + b"\x81"
    return {
        "NEWOBJ": new,
        "NEWOBJ_EX": name("os", "system") + tup(arg) + b"}\x92",
        "__setstate__": name("any", "X") + b")\x81" + plant + b"b" + arg + b"b",
        "copyreg": call("copyreg", "_reconstructor", name("os", "system"),
                        name("builtins", "object"), b"N"),
        "factory": call("collections", "defaultdict", name("os", "system")),
        "named only": name("os", "system"),
        "items": new + arg + arg + b"s",
    }  # fmt: skip


@layouts
@pytest.mark.parametrize("trick", evil(""))
def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path, write, trick):
    canary = tmp_path / "canary"
    body, says = evil(f"touch {canary}")[trick]
    path = write(tmp_path / "x.pth", state(w=tensor(), x=body))
    with pytest.raises(ValueError, match=rf"x\.pth.*{says}"):
        foreign.read(path)
    assert not canary.exists()


@layouts
@pytest.mark.parametrize("trick", inert(""))
def test_what_is_only_planted_stays_inert(tmp_path, write, trick):
    canary = tmp_path / "canary"
    body = inert(f"touch {canary}")[trick]
    path = write(tmp_path / "x.pth", state(w=tensor(), x=body))
    assert list(foreign.read(path)) == ["w"]
    assert not canary.exists()


def test_the_canary_is_alive(tmp_path):
    body, _ = evil(f"touch {tmp_path / 'canary'}")["REDUCE"]
    pickle.loads(b"\x80\x02" + body + b".")
    assert (tmp_path / "canary").exists()


WRONG = {
    "size of a tiny file": (tensor(size=(2**40,), stride=(1,)), "reaches element"),
    "sizes that overflow": (tensor(size=(2**61, 2**61), stride=(2**61, 1)), "reaches"),
    "size beyond 64 bits": (tensor(size=(2**80,), stride=(0,)), "whole numbers"),
    "negative stride": (tensor(stride=(-3, 1)), "whole numbers"),
    "negative offset": (tensor(offset=-1), "whole numbers"),
    "offset past the end": (tensor(offset=1), "reaches element 6 of a storage of 6"),
    "expanded": (tensor(size=(2**36,), stride=(0,)), "many times the file's size"),
    "too many axes": (tensor(size=(1,) * 65, stride=(1,) * 65), "'w'"),
    "sizes without strides": (tensor(stride=(3,)), "2 sizes and 1 strides"),
    "storage declared larger": (tensor(numel=2**50), "storage|elements"),
    "missing storage": (tensor(key="9"), "missing"),
    "unknown storage": (tensor(kind="AnyStorage"), "torch.AnyStorage' unknown"),
    "no storage": (rebuild(*[num(0)] * 6), "without a storage"),
    "negated": (rebuild(storage(), num(0), tup(), tup(), b"\x89", b"N",
                        state(neg=b"\x88")), "negated"),
    "deep key": (b"}" + b")" + b"\x85" * 50_000 + num(1) + b"s", "part of a key"),
    "deep value": (b"]" * 50_000 + b"a" * 49_999, "nest deeper"),
    "within itself": (b"]q\x07h\x07a", "nest deeper"),
    "bytes of gigabytes": (call("builtins", "bytearray", num(2**40)), "bytes are made"),
    "long text": (b"\x8d" + b"\xff" * 7 + b"\x7f", "remain"),
    "one list copied often": (
        b"(" + b"](" + num(1) * 5000 + b"eq\x01"
        + b"".join(name("torch", "Size") + b"h\x01\x85R" for _ in range(100)) + b"l",
        "copy more"),
}  # fmt: skip


@layouts
@pytest.mark.parametrize(("body", "says"), WRONG.values(), ids=WRONG)
def test_impossible_tensors_are_named_and_take_no_memory(tmp_path, write, body, says):
    path = write(tmp_path / "x.pth", state(w=body, good=tensor()))
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"x\.pth: not weights of PyTorch.*({says})"):
        pytorch.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**26


@layouts
@pytest.mark.parametrize("body", [num(1), b"}", b"]r\xff\xff\xff\x7f", W.tobytes()])
def test_a_pickle_without_tensors_is_refused(tmp_path, write, body):
    with pytest.raises(ValueError, match=r"x\.pth: not weights of PyTorch"):
        pytorch.read(write(tmp_path / "x.pth", body))


def test_more_opcodes_than_weights_need_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "MAX_OPCODES", 10)
    with pytest.raises(ValueError, match="more than 10 opcodes"):
        pytorch.read(write_zip(tmp_path / "x.pt", state(w=tensor())))


def test_two_tensors_of_one_name_are_refused(tmp_path):
    body = state({"a.b": tensor()}, a=state(b=tensor()))
    with pytest.raises(ValueError, match=r"two tensors are called 'a\.b'"):
        pytorch.read(write_zip(tmp_path / "x.pt", body))


def test_a_compressed_archive_is_refused(tmp_path):
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as f:
        f.writestr("a/data.pkl", b"\x80\x02" + state(w=tensor()) + b".")
        f.writestr("a/data/0", bytes(2**24))
    with pytest.raises(ValueError, match=r"x\.pth.*compressed"):
        pytorch.read(path)


def test_an_archive_without_its_storage_is_refused(tmp_path):
    path = write_zip(tmp_path / "x.pth", state(w=tensor()), {"1": W})
    with pytest.raises(ValueError, match="'archive/data/0' is missing"):
        pytorch.read(path)


GOOD = state(w=tensor(), sub=state(b=tensor(size=(3,), stride=(2,))))


def right_or_refused(path):
    """Read a damaged file: its tensors fit its storages, or a ValueError says why."""
    try:
        got = pytorch.read(path)
    except ValueError:  # and no other exception
        return False
    return all(a.size <= 6 for a in got.values())


@layouts
def test_a_file_cut_anywhere_is_refused(tmp_path, write):
    path = write(tmp_path / "x.pth", GOOD)
    content = path.read_bytes()
    for end in range(len(content)):
        path.write_bytes(content[:end])
        assert not right_or_refused(path)


@layouts
@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(data=st.data())
def test_a_damaged_file_opens_or_says_why(tmp_path_factory, write, data):
    folder = tmp_path_factory.getbasetemp()
    body = bytearray(GOOD)
    flips = st.lists(st.tuples(st.integers(0), st.integers(1, 255)), max_size=3)
    for at, bits in data.draw(flips):  # within the pickle, whose CRC-32 is right
        body[at % len(body)] ^= bits
    path = write(folder / "fuzz.pth", bytes(body))
    content = bytearray(path.read_bytes())
    for at, bits in data.draw(flips):
        content[at % len(content)] ^= bits
    path.write_bytes(content)
    right_or_refused(path)  # raises nothing


def same_as_torch(path, torch):
    """Compare with torch.load, which may run code: for files of the test itself."""
    got = pytorch.read(path)
    wanted = torch.load(path, map_location="cpu", weights_only=False)
    wanted = wanted if isinstance(wanted, dict) else wanted.state_dict()
    assert list(got) == list(wanted)
    for key, array in got.items():
        want = wanted[key].detach()
        narrow = want.is_floating_point() and want.itemsize < 4
        want = (want.float() if narrow else want).numpy()
        assert array.dtype == want.dtype
        np.testing.assert_array_equal(array, want)


def torch_or_skip():
    return pytest.importorskip("torch", reason="pip install jaxface[peers]")


@pytest.mark.parametrize("zipped", [True, False], ids=LAYOUTS)
def test_tensors_are_those_of_torch(tmp_path, zipped):
    torch = torch_or_skip()
    torch.manual_seed(0)
    base = torch.randn(2, 3, 4)
    kinds = [
        "float64",
        "float16",
        "bfloat16",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
    ]
    kinds += ["bool", "complex64", *(["uint16", "float8_e4m3fn"] if zipped else [])]
    tensors = {kind: (5 * base[0]).abs().to(getattr(torch, kind)) for kind in kinds}
    tensors |= {
        "base": base,
        "tied": base,
        "turned": base.permute(2, 0, 1),
        "view": base[:, 1, ::2],
        "expanded": torch.arange(3.0).expand(4, 3),
        "one": torch.tensor(5.0),
        "none": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(base),
    }
    tensors["parameter"].note = 3  # pickled together with its attributes
    path = tmp_path / "x.pth"
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    same_as_torch(path, torch)


@pytest.mark.parametrize("zipped", [True, False], ids=LAYOUTS)
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_modules_and_checkpoints_are_those_of_torch(tmp_path, zipped, monkeypatch):
    torch = torch_or_skip()
    nn = torch.nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)
            self.body = nn.Sequential(
                nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4)
            )
            self.register_buffer("cache", torch.zeros(2), persistent=False)
            self.register_buffer("kept", torch.ones(2))
            self.act = nn.functional.relu

    Net.__qualname__ = "Net"  # pickle finds it here
    monkeypatch.setattr(sys.modules[__name__], "Net", Net, raising=False)
    net = Net()
    path = tmp_path / "x.pth.tar"
    torch.save(net, path, _use_new_zipfile_serialization=zipped)
    same_as_torch(path, torch)
    checkpoint = {"state_dict": net.state_dict(), "epoch": np.float64(3)}
    checkpoint |= {"path": tmp_path, "best": np.zeros(3), "sizes": torch.Size([1, 2])}
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    wanted = [f"state_dict.{k}" for k in net.state_dict()]
    assert list(foreign.read(path)) == wanted


@pytest.mark.real_data
def test_the_real_file_is_that_of_torch(real_data):
    torch = torch_or_skip()
    for file in sorted((real_data / "weights").glob("*.pt")):
        same_as_torch(file, torch)
