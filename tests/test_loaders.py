"""Both loaders give the batches that seed and step say, whatever happens around."""

import io
import itertools
import subprocess
import sys
import threading
import time
import tracemalloc

import jax
import numpy as np
import pytest
from PIL import Image

from jaxface.data import decode, host, ops, stream, tfdata
from jaxface.data.sources import folder

LOADERS = pytest.mark.parametrize("module", [host, tfdata], ids=["host", "tfdata"])
LINE = "decode|resize(16)|random_rotate(20)|random_crop(16,pad=2)|flip|normalize"


class Memory:
    """A source over records in memory; `OSError` in place of one is raised."""

    color = "rgb"

    def __init__(self, records):
        self.records, self.num_classes = records, len(records)

    def __len__(self):
        return len(self.records)

    def read(self, i):
        if isinstance(self.records[i], BaseException):
            raise self.records[i]
        return self.records[i], i

    def name(self, i):
        return f"image-{i}"


def picture(i, height=16, width=16):
    y, x = np.mgrid[:height, :width, :1][:2]
    return (128 + 100 * np.sin(i + x / 3 + y / 5 + np.arange(3))).astype(np.uint8)


def jpeg(i, mode="RGB", kind="JPEG", height=20, width=18, **options):
    out = io.BytesIO()
    image = Image.fromarray(picture(i, height, width)).convert(mode)
    image.save(out, kind, **options)
    return out.getvalue()


def mixed():
    """Ten records of all kinds and sizes."""
    exif = Image.Exif()
    exif[0x0112] = 8
    return [
        *(jpeg(0), jpeg(1, "L"), jpeg(2, "CMYK"), jpeg(3, exif=exif)),
        *(jpeg(4, "P", "PNG"), jpeg(5, "RGBA", "PNG"), jpeg(6, "I;16", "PNG")),
        *(jpeg(7, "RGB", "PNG", height=9), jpeg(8, "RGB", "GIF"), picture(9)),
    ]


def damaged():
    """A JPEG that looks whole from outside and cannot be decoded."""
    data = bytearray(jpeg(0))
    at = data.index(b"\xff\xc4") + 5  # Huffman code lengths: more than there can be
    data[at : at + 16] = b"\xff" * 16
    assert decode.is_plain(bytes(data))
    return bytes(data)


def take(module, records, count, *, line=LINE, start_step=0, pool=None, **options):
    options = {"batch_size": 8, "seed": 3, "max_bad": 0.5, **options}
    source = Memory(records) if isinstance(records, list) else records
    order = stream.Stream(source, ops.parse(line), **options)
    loader = module.Loader(order, start_step=start_step, **(pool or {}))
    try:
        return list(itertools.islice(loader, count)), loader.bad
    finally:
        loader.close()


def assert_equal(found, wanted):
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ("label", "example", "position"):
            assert ours[name].dtype == theirs[name].dtype
            np.testing.assert_array_equal(ours[name], theirs[name])
        assert ours["image"].dtype == theirs["image"].dtype == np.float32
        level = 1.001 / 127.5
        np.testing.assert_allclose(ours["image"], theirs["image"], rtol=0, atol=level)


@pytest.mark.parametrize("line", [LINE, "decode|resize(16)|normalize"])
def test_the_loaders_agree_on_images_of_every_kind(line):
    ours, _ = take(host, mixed(), 5, line=line)
    assert_equal(ours, take(tfdata, mixed(), 5, line=line)[0])
    shapes = {name: (v.shape, v.dtype) for name, v in ours[0].items()}
    assert shapes == {
        "image": ((8, 16, 16, 3), np.float32),
        "label": ((8,), np.int32),
        "example": ((8,), np.uint32),
        "position": ((8,), np.uint32),
    }


def test_the_loaders_leave_the_same_to_the_device():
    given = {"line": "decode|resize(16)|random_shift(2)|flip|normalize", "split": True}
    ours, theirs = (take(m, mixed(), 3, **given)[0] for m in (host, tfdata))
    for a, b in zip(ours, theirs, strict=True):
        assert a["image"].dtype == b["image"].dtype == np.uint8
        assert np.abs(a["image"].astype(int) - b["image"]).max() <= 1
        for name in ("label", "example", "position"):
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name])


def test_without_threads_the_batches_are_the_same_and_none_is_made_ahead():
    records = [*mixed(), b"no image"]
    alone, bad = take(host, records, 5, start_step=2, pool={"workers": 0})
    np.testing.assert_equal(alone, take(host, records, 5, start_step=2)[0])
    assert len(bad) == 1

    asked = []

    class Counted(Memory):
        def read(self, i):
            asked.append(i)
            return super().read(i)

    order = stream.Stream(Counted(mixed()), ops.parse(LINE), batch_size=4, seed=0)
    batches = iter(host.Loader(order, workers=0))
    for step in range(3):
        next(batches)
        assert len(asked) == 4 * (step + 1)


@LOADERS
def test_an_epoch_shows_every_example_once(module):
    batches, _ = take(module, mixed(), 5)
    labels = np.concatenate([b["label"] for b in batches]).reshape(4, 10)
    np.testing.assert_array_equal(np.sort(labels), np.tile(np.arange(10), (4, 1)))


@LOADERS
@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_resuming_on_other_hosts_continues_the_run(module, hosts):
    whole, _ = take(module, mixed(), 4)
    parts = [
        take(module, mixed(), 2, start_step=2, host=h, hosts=hosts)[0]
        for h in range(hosts)
    ]
    joined = [
        {name: np.concatenate([p[k][name] for p in parts]) for name in whole[0]}
        for k in range(2)
    ]
    assert_equal(joined, whole[2:])


@LOADERS
def test_threads_and_read_ahead_change_nothing(module):
    one, _ = take(module, mixed(), 3, pool={"workers": 1, "prefetch": 1})
    many, _ = take(module, mixed(), 3, pool={"workers": 5, "prefetch": 4})
    assert_equal(one, many)


def settled(count):
    """What is counted, once it has stood still for a while."""
    seen = -1
    while seen != count():
        seen = count()
        time.sleep(0.3)
    return seen


def test_what_is_made_ahead_is_tuned_within_a_bound(monkeypatch):
    line = ops.parse("decode|normalize")
    made = []

    class Counted(stream.Stream):
        def facts(self, positions, *others):
            made.append(positions)
            return super().facts(positions, *others)

    def most_ahead(room):
        """Batches, where `room` of them are allowed."""
        monkeypatch.setattr(tfdata, "AHEAD", room * 8 * 16 * 16 * 3 * 4)
        order = Counted(Memory([picture(0)]), line, batch_size=8, seed=0)
        loader = tfdata.Loader(order)
        batches = iter(loader)
        made.clear()
        most = taken = 0
        for _ in range(4):
            taken += len(list(itertools.islice(batches, 100)))
            most = max(most, settled(lambda: len(made)) - taken)
        loader.close()
        return most

    few, many = most_ahead(4), most_ahead(64)
    assert 1 <= few <= 12
    assert 2 < many <= 96  # more than a constant of two


@LOADERS
def test_bad_images_are_replaced_and_reported(module):
    records = mixed()
    records[0] = damaged()
    records[4] = b""
    records[5] = jpeg(5)[:-300]
    records[8] = FileNotFoundError("gone")
    batches, bad = take(module, records, 5)
    assert set(bad) == {"image-0", "image-4", "image-5", "image-8"}
    assert bad["image-4"] == "empty file"
    labels = np.concatenate([b["label"] for b in batches])
    assert not set(labels) & {0, 4, 5, 8}
    assert_equal(batches, take(host, records, 5)[0])


def test_pillow_is_the_judge_where_the_decoders_differ():
    data = bytearray(jpeg(0))
    data[-132] = 0xFF  # a marker amid the scan
    records = [bytes(data), *mixed()[1:]]
    assert decode.is_plain(records[0])
    with pytest.raises(tfdata.tf.errors.InvalidArgumentError):
        tfdata.tf.io.decode_jpeg(records[0])
    batches, bad = take(tfdata, records, 5)
    assert not bad
    assert 0 in np.concatenate([b["label"] for b in batches])
    assert_equal(batches, take(host, records, 5)[0])


@LOADERS
def test_good_positions_keep_their_example_beside_bad_ones(module):
    records = mixed()
    whole = np.concatenate([b["label"] for b in take(module, records, 3)[0]])
    records[2] = damaged()
    rest = np.concatenate([b["label"] for b in take(module, records, 3)[0]])
    np.testing.assert_array_equal(whole[whole != 2], rest[whole != 2])


@LOADERS
@pytest.mark.parametrize("bad", [damaged(), b"", OSError("gone")])
def test_too_many_bad_images_stop_the_run(module, bad):
    records = mixed()
    records[1] = records[2] = bad
    message = r"2 of 10 images \(20\.00%\) are unreadable.*image-[12].*image-[12]"
    with pytest.raises(ValueError, match=message):
        take(module, records, 5, max_bad=0.1)


@LOADERS
def test_a_source_with_no_good_image_ends(module):
    with pytest.raises(ValueError, match=r"3 of 3 images \(100\.00%\)"):
        take(module, [b"", b"", damaged()], 1, max_bad=1.0)


@LOADERS
def test_a_bug_in_a_source_surfaces_as_it_is(module):
    with pytest.raises(RuntimeError, match="a bug"):
        take(module, [*mixed(), RuntimeError("a bug")], 5)


@LOADERS
def test_images_of_several_sizes_ask_for_a_resize(module):
    with pytest.raises(ValueError, match=r"add\s+a\s+resize"):
        take(module, mixed(), 5, line="decode|normalize")


@LOADERS
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hosts": 3}, "multiple of 3"),
        ({"line": "decode(color='bgr')|resize(16)"}, "gives rgb, .* declares bgr"),
        ({"records": []}, "source is empty"),
        ({"max_bad": 2}, "max_bad is 2"),
    ],
)
def test_wrong_arguments_are_refused(module, options, message):
    with pytest.raises(ValueError, match=message):
        take(module, **{"records": mixed(), "count": 1, **options})


@LOADERS
def test_closing_ends_the_threads(module):
    before = {t.ident for t in threading.enumerate()}
    order = stream.Stream(Memory(mixed()), ops.parse(LINE), batch_size=4, seed=0)
    loader = module.Loader(order)
    next(iter(loader))
    loader.close()
    left = [t for t in threading.enumerate() if t.ident not in before]
    assert not [t for t in left if t.name.startswith("jaxface")]
    with pytest.raises(RuntimeError, match="shutdown"):
        next(iter(loader))


class Endless(Memory):
    """A billion images."""

    def __init__(self):
        self.num_classes = 2

    def __len__(self):
        return 10**9

    def read(self, i):
        return picture(i), i % 2


@LOADERS
def test_a_billion_images_cost_no_memory(module):
    tracemalloc.start()
    take(module, Endless(), 2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30e6


def test_one_pass_has_every_image_in_order_and_a_mask():
    batches = list(
        host.batches_once(Memory(mixed()), ops.parse("decode|resize(16)"), batch_size=4)
    )
    labels = np.concatenate([b["label"][b["mask"]] for b in batches])
    np.testing.assert_array_equal(labels, np.arange(10))
    assert [b["image"].shape for b in batches] == [(4, 16, 16, 3)] * 3
    assert batches[2]["mask"].tolist() == [True, True, False, False]
    assert not batches[2]["image"][2:].any()
    np.testing.assert_array_equal(batches[2]["image"][1], picture(9))


def test_one_pass_leaves_nothing_out_and_draws_nothing():
    records = [*mixed(), b""]
    line = ops.parse("decode|resize(16)|normalize")
    with pytest.raises(ValueError, match="image-10 cannot be read: empty file"):
        list(host.batches_once(Memory(records), line, batch_size=4))
    with pytest.raises(ValueError, match="without random ops"):
        list(host.batches_once(Memory(mixed()), ops.parse(LINE), batch_size=4))


def test_the_host_loader_runs_where_tensorflow_cannot_be_imported():
    code = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tensorflow":
            raise ImportError("tensorflow is blocked")
sys.meta_path.insert(0, Blocked())
from jaxface.data import host, ops, stream
from jaxface.data.sources import synthetic
source = synthetic.Source(identities=3, per_identity=2, size=32)
line = ops.parse("decode|flip|normalize")
loader = host.Loader(stream.Stream(source, line, batch_size=4, seed=0))
assert next(iter(loader))["image"].shape == (4, 32, 32, 3)
loader.close()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.real_data
def test_real_faces_are_the_same_in_both_loaders(real_data):
    source = folder.Source(real_data / "celeba_train_112.tar")
    assert (len(source), source.num_classes) == (5794, 261)
    line = "decode|resize(96)|random_rotate(10)|flip|normalize"
    ours, bad = take(host, source, 2, line=line)
    assert_equal(ours, take(tfdata, source, 2, line=line)[0])
    assert not bad


@LOADERS
@pytest.mark.parametrize("line", ["decode", "decode|resize(16)"])
def test_a_cpu_device_takes_a_batch_without_copying(module, line):
    batches, _ = take(module, [picture(k) for k in range(8)], 1, line=line)
    image = batches[0]["image"]
    placed = jax.device_put(image, jax.local_devices(backend="cpu")[0])
    assert placed.unsafe_buffer_pointer() == image.ctypes.data
