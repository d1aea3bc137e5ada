"""The rendered people: pure functions of their numbers, and hard for simple means."""

import concurrent.futures
import dataclasses
import hashlib
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from jaxface.data.faces import people, portrait, stage
from jaxface.data.sources import synthetic

ROOT = pathlib.Path(__file__).parent.parent


def _bytes(job):
    identity, index = job
    return synthetic.render(3, identity, index, size=48).tobytes()


def test_same_bytes_in_any_order_and_any_thread():
    jobs = [(identity, index) for identity in range(6) for index in range(4)]
    once = [_bytes(job) for job in jobs]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        threads = list(pool.map(_bytes, reversed(jobs)))[::-1]
    assert once == threads
    assert len(set(once)) == len(jobs)


def test_same_bytes_in_another_process():
    script = (
        "import hashlib; from jaxface.data.sources import synthetic;"
        "image = synthetic.render(1, 2, 3, size=64);"
        "print(hashlib.sha256(image.tobytes()).hexdigest())"
    )
    command = [sys.executable, "-c", script]
    there = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    )
    here = synthetic.render(1, 2, 3, size=64)
    assert there.stdout.strip() == hashlib.sha256(here.tobytes()).hexdigest()


def test_the_renderer_is_frozen():
    # Coarse on purpose: rounding may differ between processors, the faces may not.
    source = synthetic.Source(identities=8, per_identity=8, size=32)
    images = np.stack([source.read(i)[0] for i in range(64)]).astype(float)
    halves = images.reshape(8, 8, 2, 16, 32, 3).mean((1, 3, 4, 5))  # upper, lower
    upper = [93.6, 82.4, 123.2, 106.1, 114.2, 150.3, 111.7, 74.9]
    lower = [102.0, 92.6, 148.3, 135.7, 122.1, 138.8, 121.6, 78.2]
    np.testing.assert_allclose(halves.T, [upper, lower], atol=0.5)
    np.testing.assert_allclose(images.std((1, 2, 3)).mean(), 49.4, atol=0.5)


@pytest.mark.parametrize("size", [16, 17, 56, 112, 113, 224])
def test_any_size_and_any_index(size):
    image = synthetic.render(0, 10**9, 10**9, size=size)
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8
    assert image.std() > 10


def test_the_same_picture_at_two_sizes():
    for identity in range(8):
        small = synthetic.render(0, identity, 0, size=56).astype(float)
        large = synthetic.render(0, identity, 0, size=112).astype(float)
        halved = large.reshape(56, 2, 56, 2, 3).mean((1, 3))
        other = synthetic.render(0, identity, 1, size=56).astype(float)
        assert np.abs(small - halved).mean() < 8
        assert np.abs(small - halved).mean() < 0.3 * np.abs(small - other).mean()


def test_pictures_of_a_person_differ_in_pose_light_and_backdrop():
    views = [people.view(seed=0, identity=5, index=i) for i in range(50)]
    fields = ("yaw", "pitch", "roll", "light_side", "light_up", "ambient")
    fields += ("backdrop_colours", "backdrop_shape")
    for field in fields:
        assert len({getattr(view, field) for view in views}) == len(views)


def test_a_person_stays_the_same_and_differs_from_others():
    crowd = [people.identity(seed=0, identity=i) for i in range(50)]
    assert crowd == [people.identity(seed=0, identity=i) for i in range(50)]
    assert crowd[3] != people.identity(seed=1, identity=3)
    for field in ("eye_gap", "nose_long", "mouth_wide", "skin", "hair_colour"):
        assert len({getattr(who, field) for who in crowd}) == len(crowd)


def test_a_view_tells_nothing_of_the_person():
    # Frozen to one view, another person is another picture; and the reverse.
    view = people.view(seed=0, identity=0, index=0)
    grain = people.grain(seed=0, identity=0, index=0, size=48)
    crowd = [people.identity(seed=0, identity=i) for i in range(5)]
    images = [portrait.draw(who, view, grain, size=48).tobytes() for who in crowd]
    assert len(set(images)) == 5
    again = portrait.draw(crowd[0], view, grain, size=48).tobytes()
    assert again == images[0]


def test_a_point_of_the_face_is_seen_where_its_box_is():
    for index in range(20):
        who = people.identity(seed=0, identity=index)
        view = people.view(seed=0, identity=index, index=0)
        scene = stage.build(who, view, size=112)
        box = scene.box(0.0, 0.3, 0.03, 0.03)
        away = np.hypot(scene.u[box], scene.v[box] - 0.3)
        assert away.size
        assert away.min() < 0.03


def test_a_turn_moves_the_near_features_and_narrows_the_far_side():
    who = people.identity(seed=0, identity=1)
    front = people.view(seed=0, identity=1, index=0)
    still = {"yaw": 0.0, "pitch": 0.0, "roll": 0.0}
    front = dataclasses.replace(front, **still, scale=1.0, shift_x=0.0, shift_y=0.0)
    turned = dataclasses.replace(front, yaw=0.5)
    width = {}
    for name, view in (("front", front), ("turned", turned)):
        scene = stage.build(who, view, size=112)
        row = scene.u[56][scene.edge[56] > 0]  # what the middle line sees
        width[name] = np.sum(row > 0), np.sum(row < 0)
    assert abs(width["front"][0] - width["front"][1]) <= 1
    assert width["turned"][0] < 0.7 * width["turned"][1]


def test_labels_names_and_disjoint_ranges():
    source = synthetic.Source(identities=3, per_identity=4, size=16, start=7)
    assert (len(source), source.num_classes, source.color) == (12, 3, "rgb")
    assert [source.read(i)[1] for i in range(12)] == [i // 4 for i in range(12)]
    assert source.name(5) == "synthetic/0/8/1"
    np.testing.assert_array_equal(source.read(5)[0], synthetic.render(0, 8, 1, size=16))
    assert len({source.name(i) for i in range(12)}) == 12


def test_sheet_has_one_person_a_row():
    source = synthetic.Source(identities=3, per_identity=5, size=16)
    sheet = synthetic.sheet(source, rows=2, columns=4)
    assert sheet.shape == (32, 64, 3)
    np.testing.assert_array_equal(sheet[16:, 32:48], source.read(5 + 2)[0])
    with pytest.raises(ValueError, match="4 x 4"):
        synthetic.sheet(source, rows=4, columns=4)


@pytest.mark.parametrize(
    "bad", [{"identities": 0}, {"per_identity": 0}, {"size": 15}, {"start": -1}]
)
def test_bad_arguments_are_named(bad):
    (name,) = bad if "start" not in bad else ("identity",)
    with pytest.raises(ValueError, match=name):
        synthetic.Source(**{"identities": 2, "per_identity": 2, **bad})


def test_what_is_not_there_is_refused():
    source = synthetic.Source(identities=2, per_identity=2, size=16)
    for i in (-1, 4):
        with pytest.raises(IndexError, match=r"0 \.\. 3"):
            source.read(i)
    with pytest.raises(ValueError, match="index"):
        synthetic.render(0, 0, -1, size=16)
