"""Lists of images, written by hand in every form that is read."""

import pathlib

import pytest

from jaxface.data.sources import folder, lists

PATHS = ["ann/1.jpg", "ann/2.jpg", "bob/1.jpg", "bob/2.jpg", "cy/1.jpg", "cy/2.jpg"]


def write(root, rows, *, paths=PATHS, end="\n"):
    """Write the images, each with its path in it, and the list."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())
    (root / "x.txt").write_bytes(end.join([*rows, ""]).encode())
    return root / "x.txt"


def content(source):
    return [(source.read(i)[0].decode(), source.read(i)[1]) for i in range(len(source))]


WANTED = list(zip(PATHS, [0, 0, 1, 1, 2, 2], strict=True))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("separator", ["\t", " ", ",", " , ", "  ", " \t "])
@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize("names", [["ann", "bob", "cy"], ["0", "1", "2"], "279"])
def test_a_line_is_a_path_and_a_label(tmp_path, end, separator, quote, names):
    rows = [f"{quote}{p}{quote}{separator}{names[k]}" for p, k in WANTED]
    source = lists.Source(write(tmp_path, rows, end=end))
    assert content(source) == WANTED
    assert (source.num_classes, source.classes) == (3, list(names))
    assert source.ignored == 0


def test_numbers_are_sorted_as_numbers_and_names_as_text(tmp_path):
    rows = [
        f"{p} {label}" for p, label in zip(PATHS, [10, 10, 9, 9, 2, 2], strict=True)
    ]
    source = lists.Source(write(tmp_path, rows))
    assert source.classes == ["2", "9", "10"]
    assert source.labels.tolist() == [2, 2, 1, 1, 0, 0]
    rows[0] = f"{PATHS[0]} x"
    source = lists.Source(write(tmp_path, rows), min_images=1)
    assert source.classes == ["10", "2", "9", "x"]


STRANGE = ["my faces/a 1.jpg", "x,y.jpg", 'say "b".jpg', "é/ü.jpg"]


@pytest.mark.parametrize("separator", ["\t", " ", ","])
def test_paths_may_have_spaces_commas_and_quotes(tmp_path, separator):
    quoted = ['"' + p.replace('"', '""') + '"' for p in STRANGE]
    for paths in (STRANGE, quoted):
        path = write(tmp_path, [f"{p}{separator}7" for p in paths], paths=STRANGE)
        assert [text for text, _ in content(lists.Source(path))] == STRANGE


def test_what_is_no_image_is_counted(tmp_path):
    rows = [
        "\ufeff# faces",
        "",
        "path,label",
        *(f"{p},{k}" for p, k in WANTED),
        "  ",
        "#",
    ]
    source = lists.Source(write(tmp_path, rows))
    assert content(source) == WANTED
    assert source.ignored == 5


def test_a_list_of_paths_takes_the_folder_for_the_person(tmp_path):
    path = write(tmp_path / "faces", PATHS)
    ours = lists.Source(path, label="folder")
    path.unlink()
    assert content(ours) == content(folder.Source(tmp_path / "faces"))
    assert ours.classes == ["ann", "bob", "cy"]


@pytest.mark.parametrize("part", ["train", "validation"])
def test_parts_are_those_of_the_folder(tmp_path, part):
    paths = [f"p{k}/{i}.jpg" for k in range(20) for i in range(2)]
    rows = [f"{p}\t{pathlib.PurePath(p).parent}" for p in reversed(paths)]
    path = write(tmp_path / "faces", rows, paths=paths)
    moved = path.rename(tmp_path / "x.txt")
    given = {"part": part, "holdout": 0.3, "seed": 4}
    ours = lists.Source(moved, root=tmp_path / "faces", **given)
    theirs = folder.Source(tmp_path / "faces", **given)
    assert ours.classes == theirs.classes
    assert sorted(content(ours)) == sorted(content(theirs))
    assert 0 < ours.num_classes < 20


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            ["ann/1.jpg 0", "ann/2.jpg"],
            r"x.txt:2: wanted `path label`, got 'ann/2.jpg'",
        ),
        (["ann/1.jpg\t0", "\t1"], "x.txt:2: wanted"),
        (["ann/1.jpg,0", "ann/2.jpg,"], "x.txt:2: wanted"),
        (
            ["ann/1.jpg 0", "", "ann/1.jpg 1"],
            "x.txt:3: an image that is listed already",
        ),
        (["ann/1.jpg -1"], "x.txt:1: a label below 0"),
        (["a\0b 1"], "x.txt:1: a path with a zero byte"),
        (["path,who,label", "a,b,0"], "x.txt:1: wanted two columns"),
        (["# nobody"], "x.txt:1: the list names no image"),
        (["ann/1.jpg 0", "ann/2.jpg 1"], "2 identities have fewer than 2 images: 0, 1"),
    ],
)
def test_lines_of_another_form_are_refused(tmp_path, rows, says):
    with pytest.raises(ValueError, match=says):
        lists.Source(write(tmp_path, rows))


def test_a_path_without_a_folder_names_nobody(tmp_path):
    with pytest.raises(ValueError, match=r"x.txt:1: wanted `identity/file`"):
        lists.Source(write(tmp_path, ["1.jpg"]), label="folder")
    with pytest.raises(ValueError, match="wanted 'last' or 'folder'"):
        lists.Source(tmp_path / "x.txt", label="first")


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"a.jpg 1\n\xff.jpg 1\n")
    with pytest.raises(ValueError, match=r"x.txt, byte 8: not UTF-8"):
        lists.Source(tmp_path / "x.txt")


def test_missing_images_are_an_error_of_their_own_or_of_the_root(tmp_path):
    path = write(tmp_path, [f"{p} {k}" for p, k in WANTED])
    (tmp_path / PATHS[0]).unlink()
    (tmp_path / PATHS[1]).unlink()
    (tmp_path / PATHS[1]).symlink_to("/dev/zero")
    source = lists.Source(path)
    for i in (0, 1):
        with pytest.raises(FileNotFoundError, match=f"no file at .*{PATHS[i]}"):
            source.read(i)
    with pytest.raises(FileNotFoundError, match=r"none of its first 6 images.*root="):
        lists.Source(path, root=tmp_path / "elsewhere")
