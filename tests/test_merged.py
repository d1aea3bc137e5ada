"""Merged sets: contiguous labels, one for a person of two sets, nothing lost."""

import json

import numpy as np
import pytest
from test_sources import write, write_list

from jaxface import assembly, types
from jaxface.data import samplers
from jaxface.data.sources import folder, merged


def lines(tmp_path, **people):
    for name, who in people.items():
        write(tmp_path / name, who, images=len(name))
    return {name: f"folder(path={str(tmp_path / name)!r})" for name in people}


def test_shared_people_have_one_label_and_all_images_stay(tmp_path):
    sets = lines(tmp_path, web=["ann", "bob", "cy"], mine=["abe", "anna", "cyrus"])
    path = tmp_path / "shared.json"
    path.write_text(json.dumps([["mine/cyrus", "web/cy"], ["web/ann", "mine/anna"]]))
    both = merged.Source(sets, shared=path)
    assert both.classes == ["web/ann", "web/bob", "web/cy", "mine/abe"]
    assert both.people["mine"].tolist() == [3, 0, 2]
    parts = [folder.Source(tmp_path / name) for name in sets]
    records = [part.read(i)[0] for part in parts for i in range(len(part))]
    assert [both.read(i)[0] for i in range(len(both))] == records
    # three images of each in "web", four in "mine"
    assert (
        both.labels.tolist()
        == np.repeat([0, 1, 2, 3, 0, 2], [3] * 3 + [4] * 3).tolist()
    )
    assert both.labels.tolist() == [both.read(i)[1] for i in range(len(both))]
    assert both.name(9) == f"mine:{tmp_path / 'mine' / 'abe' / '0.png'}"
    with pytest.raises(IndexError, match="there are 0"):
        both.read(21)


def test_without_a_file_all_classes_differ(tmp_path):
    sets = lines(tmp_path, a=["x"], b=["x", "y"])
    sets = {k: v.replace(")", ", min_images=1)") for k, v in sets.items()}
    both = merged.Source(sets)
    assert both.classes == ["a/x", "b/x", "b/y"]
    assert both.labels.tolist() == [0, 1, 2]
    assert isinstance(both, types.Named)
    assert isinstance(both, types.Labelled)


def test_it_is_a_line_whose_sets_are_lines(tmp_path):
    sets = lines(tmp_path, web=["a", "b"], own=["c", "d"])
    kept = write_list(tmp_path, "own/c/1.png")
    sets["own"] += f"|without(path={str(kept)!r})"
    line = f"merged(sets={sets!r})|enrolled(identity=2, negatives=2)"
    assert len(assembly.flow(f"merged(sets={sets!r})")) == 11
    assert assembly.flow(line).num_classes == 2
    both = merged.Source(sets)
    assert both.starts.tolist() == [0, 6, 11]
    order = samplers.mixed(source=both, batch_size=8, seed=0, weights=(3, 1))
    assert (order(np.arange(8)) < 6).sum() == 6
    order = samplers.pk(source=both, batch_size=8, seed=0, k=2)
    drawn = both.labels[order(np.arange(8))]
    assert sorted(drawn.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_set_that_names_nobody_has_numbers():
    few = "synthetic(identities=2, per_identity=1, size=16, start={})"
    both = merged.Source({"a": few.format(0), "b": few.format(2)})
    assert both.classes == ["a/0", "a/1", "b/0", "b/1"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ('["a/x"]', "no list of lists"),
        ('[["a/x", "b/q"]]', "names 'b/q', a class that no set has"),
        ('[["a/x", "b/x"], ["a/x", "b/y"]]', "has 'a/x' twice"),
    ],
)
def test_a_file_of_other_sets_is_refused(tmp_path, text, words):
    (tmp_path / "shared.json").write_text(text)
    sets = lines(tmp_path, aa=["x"], bb=["x", "y"])
    sets = {"a": sets["aa"], "b": sets["bb"]}
    with pytest.raises(ValueError, match=words):
        merged.Source(sets, shared=tmp_path / "shared.json")


def test_sets_that_do_not_fit_are_refused(tmp_path):
    sets = lines(tmp_path, aa=["x"])
    other = merged.Source(sets)
    other.color = "bgr"
    with pytest.raises(ValueError, match="several colours"):
        merged.Source({**sets, "b": other})
    with pytest.raises(ValueError, match=r"wanted .name: line"):
        merged.Source({})
    with pytest.raises(KeyError, match="source 'foldr' unknown; did you mean 'folder'"):
        merged.Source({"a": "foldr(path='x')"})
