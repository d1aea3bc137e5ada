"""What every source owes, and what folders and enrolled people owe besides."""

import importlib
import io
import itertools
import json
import tarfile
import zipfile
from concurrent import futures

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sets
from PIL import Image

from jaxface import spec, types
from jaxface.data import host, ops, prepared, sources, stream
from jaxface.data.sources import (
    array_record,
    at_least,
    enrolled,
    folder,
    lists,
    lmdb_records,
    merged,
    mislabelled,
    parquet,
    recordio,
    synthetic,
    tfds,
    tfrecord,
    without,
)


def write(path, people, *, images=3):
    """Make a folder of people; each image has a colour of its own."""
    for k, name in enumerate(people):
        (path / name).mkdir(parents=True)
        for i in range(images):
            color = (40 * k % 256, 60 * i % 256, 99)
            Image.new("RGB", (8, 6), color).save(path / name / f"{i}.png")
    return path


def tar(path, root, *, mode="w"):
    with tarfile.open(path, mode) as out:
        out.add(root, arcname="faces")
    return path


def write_list(tmp_path, *names):
    path = tmp_path / "far.json"
    path.write_text(json.dumps([{"name": str(tmp_path / name)} for name in names]))
    return path


class Silent:
    """Another source, which does not tell its labels."""

    def __init__(self, base):
        self.color, self.num_classes = base.color, base.num_classes
        self.read, self.name, self.n = base.read, base.name, len(base)

    def __len__(self):
        return self.n


def write_shared(tmp_path, *groups):
    path = tmp_path / "shared.json"
    path.write_text(json.dumps(groups))
    return path


def folder_source(tmp_path):
    return folder.Source(write(tmp_path / "people", "abcd"))


def png(*color):
    file = io.BytesIO()
    Image.new("RGB", (8, 6), color).save(file, "PNG")
    return file.getvalue()


def write_lines(tmp_path, people):
    """Make a folder of people and a list of its images, not in order."""
    write(tmp_path / "faces", people)
    lines = [f"faces/{name}/{i}.png {name}" for i in range(3) for name in people]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    return tmp_path / "train.txt"


# of four people, three each
PICTURES = [[png(40 * k, 60 * i, 99) for i in range(3)] for k in range(4)]


def write_shards(tmp_path):
    """Make two TFRecord files of PICTURES."""
    rows = [sets.example(i, k) for k, images in enumerate(PICTURES) for i in images]
    for k in range(2):
        path = tmp_path / f"x.tfrecord-{k:05d}-of-00002"
        path.write_bytes(sets.tfrecord(rows[k::2]))
    return tmp_path


def prepared_source(tmp_path, opens=array_record.Source):
    faces = folder_source(tmp_path)
    images = np.arange(len(faces))[::-1]
    prepared.write(
        faces, tmp_path, images=images, labels=faces.labels[images],
        classes=faces.classes, name="faces", shard_size=5,
    )  # fmt: skip
    return opens(tmp_path / "faces")


def parquet_source(tmp_path):
    faces = folder_source(tmp_path)
    images = [{"bytes": faces.read(i)[0], "path": None} for i in range(len(faces))]
    table = pa.table({"image": images, "label": faces.labels})
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=5)
    return parquet.Source(tmp_path)


def folder_of_two_and_three(tmp_path):
    write(tmp_path, "ac", images=2)
    return folder.Source(write(tmp_path, "bd"))


# How to make a small one of each; a new source has its line here.
MAKE = {
    "folder": folder_source,
    "array_record": prepared_source,
    "enrolled": lambda tmp_path: enrolled.Source(
        folder_source(tmp_path), identity=2, negatives=2
    ),
    "mislabelled": lambda tmp_path: mislabelled.Source(
        folder_source(tmp_path), share=0.25
    ),
    "without": lambda tmp_path: without.Source(
        folder_source(tmp_path), path=write_list(tmp_path, "people/b/1.png")
    ),
    "tfds": lambda tmp_path: prepared_source(tmp_path, tfds.Source),
    "parquet": parquet_source,
    "lists": lambda tmp_path: lists.Source(write_lines(tmp_path, "abcd")),
    "lmdb_records": lambda tmp_path: lmdb_records.Source(
        sets.database(tmp_path / "x.lmdb", sets.packed(PICTURES))
    ),
    "recordio": lambda tmp_path: recordio.Source(
        sets.write_set(tmp_path / "rec", sets.insightface(PICTURES))
    ),
    "tfrecord": lambda tmp_path: tfrecord.Source(write_shards(tmp_path)),
    "at_least": lambda tmp_path: at_least.Source(
        folder_of_two_and_three(tmp_path), images=3
    ),
    "merged": lambda tmp_path: merged.Source(
        {"a": folder_source(tmp_path), "b": folder_source(tmp_path / "b")},
        shared=write_shared(tmp_path, ["b/c", "a/d"]),
    ),
    "synthetic": lambda tmp_path: synthetic.Source(
        identities=4, per_identity=3, size=24
    ),
}


def listed():
    """Modules of the package that expose a Source."""
    for name in spec.modules(sources):
        module = importlib.import_module(f"{sources.__name__}.{name}")
        if "Source" in spec.public(module):
            yield name


@pytest.fixture(params=list(listed()))
def source(request, tmp_path):
    return MAKE[request.param](tmp_path)


def test_records_and_labels_are_what_the_contract_says(source):
    assert source.color in ("rgb", "bgr")
    labels = []
    for i in range(len(source)):
        record, label = source.read(i)
        assert isinstance(record, bytes | np.ndarray)
        assert isinstance(label, int)
        assert isinstance(source.name(i), str)
        labels.append(label)
    assert set(labels) == set(range(source.num_classes))
    assert len({source.name(i) for i in range(len(source))}) == len(source)
    if hasattr(source, "labels"):
        assert source.labels.dtype == np.int32
        assert source.labels.tolist() == labels


def test_threads_read_what_one_thread_reads(source):
    wanted = [source.read(i) for i in range(len(source))]
    with futures.ThreadPoolExecutor(4) as pool:
        for i, (record, label) in enumerate(pool.map(source.read, range(len(source)))):
            assert np.array_equal(record, wanted[i][0])
            assert label == wanted[i][1]


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_hosts_share_an_epoch_without_loss_or_overlap(source, hosts):
    line, n = ops.parse("decode|resize(8)"), len(source)
    steps = n  # of eight: eight epochs
    seen = []
    for h in range(hosts):
        order = stream.Stream(source, line, batch_size=8, seed=0, host=h, hosts=hosts)
        loader = host.Loader(order)
        seen += [
            (int(p), int(y))
            for batch in itertools.islice(loader, steps)
            for p, y in zip(batch["position"], batch["label"], strict=True)
        ]
        loader.close()
    positions, labels = np.array(sorted(seen)).T
    np.testing.assert_array_equal(positions, np.arange(8 * n))
    wanted = sorted(source.read(i)[1] for i in range(n))
    np.testing.assert_array_equal(np.sort(labels.reshape(8, n)), [wanted] * 8)


def test_folder_labels_follow_sorted_names(tmp_path):
    found = folder.Source(write(tmp_path, ["zoe", "adam", "mia"]))
    assert found.classes == ["adam", "mia", "zoe"]
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert found.name(4) == str(tmp_path / "mia" / "1.png")
    assert found.read(4)[0] == (tmp_path / "mia" / "1.png").read_bytes()


def test_parts_share_nobody_and_adding_people_moves_nobody(tmp_path):
    names = [f"p{k}" for k in range(30)]
    write(tmp_path / "few", names[:20])
    write(tmp_path / "many", names)
    parts = {}
    for size, part in itertools.product(("few", "many"), ("train", "validation")):
        found = folder.Source(tmp_path / size, part=part, holdout=0.3)
        parts[size, part] = set(found.classes)
        assert found.num_classes == len(found.classes) == found.labels.max() + 1
    for size, count in (("few", 20), ("many", 30)):
        train, held = parts[size, "train"], parts[size, "validation"]
        assert not train & held
        assert len(train | held) == count
    assert parts["few", "train"] <= parts["many", "train"]
    assert parts["few", "validation"] <= parts["many", "validation"]


def test_the_seed_chooses_the_split(tmp_path):
    write(tmp_path, [f"p{k}" for k in range(20)])
    held = {
        tuple(folder.Source(tmp_path, part="validation", holdout=0.5, seed=s).classes)
        for s in range(4)
    }
    assert len(held) == 4


def test_other_files_are_counted_not_read(tmp_path):
    write(tmp_path, "ab")
    (tmp_path / "a" / ".hidden.png").write_bytes(b"x")
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "stray.jpg").write_bytes(b"x")
    (tmp_path / "nobody").mkdir()
    for path in (tmp_path, tar(tmp_path.parent / "others.tar", tmp_path)):
        found = folder.Source(path)
        assert (len(found), found.ignored, found.empty) == (6, 3, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": "test"}, "'train' or 'validation'"),
        ({"part": "train", "holdout": 0.0}, "leaves a part empty"),
        ({"part": "train", "holdout": 1.0}, "leaves a part empty"),
        ({"min_images": 4}, "2 identities have fewer than 4 images: a, b.*min_images"),
    ],
)
def test_wrong_folder_arguments_say_what_to_do(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        folder.Source(write(tmp_path, "ab"), **options)


def test_a_missing_or_empty_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        folder.Source(tmp_path / "no")
    with pytest.raises(ValueError, match="holds no images; wanted <identity>/<file>"):
        folder.Source(tmp_path)


def test_a_person_with_one_image_must_be_accepted_in_words(tmp_path):
    write(tmp_path, "a", images=1)
    with pytest.raises(ValueError, match=r"fewer than 2 images: a;.*min_images=1"):
        folder.Source(tmp_path)
    assert len(folder.Source(tmp_path, min_images=1)) == 1


def test_a_tar_is_the_folder_it_was_made_of(tmp_path):
    root = write(tmp_path / "people", "abc")
    ours = folder.Source(root)
    theirs = folder.Source(tar(tmp_path / "people.tar", root))
    assert theirs.classes == ours.classes
    assert [theirs.read(i) for i in range(9)] == [ours.read(i) for i in range(9)]
    assert theirs.name(0) == str(tmp_path / "people.tar" / "faces/a/0.png")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_the_folder_it_was_made_of(tmp_path, method):
    root, path = write(tmp_path / "people", "abc"), tmp_path / "people.zip"
    with zipfile.ZipFile(path, "w", method) as out:
        for file in sorted(root.rglob("*")):
            out.write(file, f"lfw/{file.relative_to(root)}")
        out.writestr("lfw/a/notes.txt", "x")
        link = zipfile.ZipInfo("lfw/a/link.png")
        link.external_attr = 0o120777 << 16
        out.writestr(link, "/etc/passwd")
    ours, theirs = folder.Source(root), folder.Source(path)
    assert (theirs.classes, theirs.ignored) == (ours.classes, 2)
    assert [theirs.read(i) for i in range(9)] == [ours.read(i) for i in range(9)]
    assert theirs.name(0) == str(path / "lfw/a/0.png")
    data = bytearray(path.read_bytes())
    data[data.index(b"b/1.png") + 20] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match=r"b/1\.png at byte \d+"):
        folder.Source(path).read(4)
    path.write_bytes(data[:-30])
    with pytest.raises(ValueError, match="not a whole"):
        folder.Source(path)


def test_links_and_escaping_names_in_a_tar_are_left_out(tmp_path):
    path = tar(tmp_path / "x.tar", write(tmp_path / "people", "ab"))
    with tarfile.open(path, "a") as out:
        for name in ("faces/a/link.png", "faces/a/hard.png", "faces/../9.png"):
            member = tarfile.TarInfo(name)
            if "link" in name or "hard" in name:
                member.type = tarfile.SYMTYPE if "link" in name else tarfile.LNKTYPE
                member.linkname = "/etc/passwd"
            out.addfile(member, io.BytesIO())
    found = folder.Source(path)
    assert (len(found), found.classes, found.ignored) == (6, ["a", "b"], 3)


def test_a_compressed_or_cut_tar_is_an_error(tmp_path):
    root = write(tmp_path / "people", "ab")
    with pytest.raises(ValueError, match="decompress it, with `gunzip`"):
        folder.Source(tar(tmp_path / "x.tar", root, mode="w:gz"))
    path = tar(tmp_path / "y.tar", root)
    last = folder.Source(path)
    size = last.read(5)[0]
    cut = path.read_bytes().index(size) + len(size) - 9
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(OSError, match=r"ends within b/2\.png"):
        last.read(5)
    with pytest.raises(ValueError, match="not a whole"):
        folder.Source(path)


def test_enrolled_is_one_against_the_rest(tmp_path):
    base = folder.Source(write(tmp_path, [f"p{k}" for k in range(12)], images=10))
    names = {}
    for part, counts in (("train", (28, 7)), ("test", (12, 3))):
        found = enrolled.Source(base, identity=5, part=part)
        assert tuple(np.bincount(found.labels)) == counts
        names[part] = {found.name(i) for i in range(len(found))}
        own = {found.name(i) for i in np.flatnonzero(found.labels)}
        assert own == {name for name in names[part] if "/p3/" in name}
        assert base.classes[5] == "p3"
    assert not names["train"] & names["test"]
    assert len(names["train"] | names["test"]) == 50


def test_the_seed_draws_the_negatives(tmp_path):
    base = folder.Source(write(tmp_path, "abcdefgh"))
    drawn = [
        {found.name(i) for i in range(len(found))}
        for found in (enrolled.Source(base, identity=0, seed=s) for s in (0, 0, 1))
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_enrolled_without_enough_images_says_so(tmp_path):
    base = folder.Source(write(tmp_path, "ab"))
    with pytest.raises(ValueError, match="fewer negatives"):
        enrolled.Source(base, identity=0, negatives=4)
    with pytest.raises(ValueError, match="has 0 images"):
        enrolled.Source(base, identity=7)


def test_a_stated_share_of_labels_is_wrong_and_the_seed_says_which(tmp_path):
    base = synthetic.Source(identities=5, per_identity=40, size=16)
    drawn = [mislabelled.Source(base, share=0.2, seed=s) for s in (0, 0, 1)]
    for found in drawn:
        np.testing.assert_array_equal(found.truth, base.labels)
        assert (found.labels != base.labels).sum() == 40
        # every other label takes its part of the wrong ones
        assert np.bincount(found.labels[found.labels != base.labels]).min() > 2
    np.testing.assert_array_equal(drawn[0].labels, drawn[1].labels)
    assert (drawn[0].labels != drawn[2].labels).any()
    none, all_ = (mislabelled.Source(base, share=x) for x in (0, 1))
    assert not (none.labels != none.truth).any()
    assert (all_.labels != all_.truth).all()
    with pytest.raises(ValueError, match=r"share is 2; wanted 0 \.\. 1"):
        mislabelled.Source(base, share=2)


def test_without_leaves_out_what_the_list_names(tmp_path):
    base = folder_source(tmp_path)
    kept = without.Source(base, path=write_list(tmp_path, "people/b/1.png"))
    names = [base.name(i) for i in range(len(base))]
    left = [name for name in names if not name.endswith("b/1.png")]
    assert [kept.name(i) for i in range(len(kept))] == left
    assert len(left) == len(names) - 1
    for i, name in enumerate(left):
        assert kept.read(i) == base.read(names.index(name))
    assert (kept.classes, kept.num_classes) == (base.classes, 4)


def test_without_tells_labels_where_its_base_does(tmp_path):
    base = folder_source(tmp_path)
    kept = without.Source(base, path=write_list(tmp_path, "people/b/1.png"))
    assert kept.labels.tolist() == [kept.read(i)[1] for i in range(len(kept))]
    listed = write_list(tmp_path, "people/b/1.png")
    assert not isinstance(without.Source(Silent(base), path=listed), types.Labelled)
    with pytest.raises(ValueError, match="at_least needs the label of every image"):
        at_least.Source(Silent(base), images=1)


def test_at_least_drops_people_and_never_an_image_of_the_rest(tmp_path):
    base = folder_of_two_and_three(tmp_path)
    kept = at_least.Source(base, images=3)
    assert (kept.classes, kept.num_classes, kept.dropped) == (["b", "d"], 2, (2, 4))
    wanted = [i for i in range(len(base)) if base.read(i)[1] in (1, 3)]
    assert [kept.name(i) for i in range(len(kept))] == [base.name(i) for i in wanted]
    assert [kept.read(i)[1] for i in range(len(kept))] == [0, 0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="nobody has 4 images, the most are 3"):
        at_least.Source(base, images=4)


def test_without_refuses_a_list_of_another_source(tmp_path):
    base = folder_source(tmp_path)
    with pytest.raises(ValueError, match=r"names 1 images that the source lacks, such"):
        without.Source(base, path=write_list(tmp_path, "people/b/9.png"))
    (tmp_path / "far.json").write_text('["a"]')
    with pytest.raises(ValueError, match=r"is no list of"):
        without.Source(base, path=tmp_path / "far.json")
