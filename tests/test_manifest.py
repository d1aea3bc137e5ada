"""Damaged checkpoints: whatever file it is, it is found, told and passed over."""

import json
import logging
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import checkpoint, manifest

LATER = ("commit_success.txt", "_CHECKPOINT_METADATA")  # written after the manifest
FACTS = {"shape": (8, 8, 3), "config_text": "{}"}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder of steps 1 and 2, both evaluated."""
    folder = tmp_path_factory.mktemp("two")
    with checkpoint.open_manager(folder, best="lfw/accuracy") as manager:
        for step in (1, 2):
            state = {"w": jnp.arange(9.0) * step}
            metrics = {"lfw/accuracy": 0.5}
            checkpoint.save(
                manager, step, state, position=step, metrics=metrics, **FACTS
            )
        checkpoint.settle(manager)
    return folder


def damaged(two, folder, name, how):
    """A copy whose step 2 has one file cut, changed or gone."""
    shutil.copytree(two, folder)
    path = folder / "2" / name
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        flipped = bytes([content[middle] ^ 1])
        path.write_bytes(content[:middle] + flipped + content[middle + 1 :])
    return folder


def files(folder):
    found = (p for p in (folder / "2").rglob("*") if p.is_file())
    return [str(p.relative_to(folder / "2")) for p in found]


def open_manager(folder):
    return checkpoint.open_manager(folder, best="lfw/accuracy", create=False)


def test_a_saved_step_is_whole_and_every_file_is_hashed(two):
    for step in (1, 2):
        assert manifest.differences(two / str(step)) == []
    told = json.loads((two / "2" / manifest.NAME).read_text())["sha256"]
    later = {name for name in files(two) if pathlib.Path(name).name in LATER}
    assert set(told) == set(files(two)) - {manifest.NAME} - later
    with open_manager(two) as manager:
        assert checkpoint.newest(manager) == 2


@pytest.mark.parametrize("how", ["gone", "cut", "changed"])
def test_whatever_file_is_damaged_the_step_before_is_taken(two, tmp_path, how, caplog):
    for i, name in enumerate(set(files(two))):
        if pathlib.Path(name).name in LATER:
            continue
        folder = damaged(two, tmp_path / str(i), name, how)
        caplog.clear()
        with caplog.at_level(logging.ERROR), open_manager(folder) as manager:
            assert checkpoint.find(manager, "latest") == 1, name
            with pytest.raises((ValueError, FileNotFoundError)):
                checkpoint.find(manager, "2")
        told = [r.message for r in caplog.records if "DAMAGED" in r.message]
        assert f"{folder}/2: {name}: " in told[0]


@pytest.mark.parametrize("how", ["gone", "cut", "changed"])
@pytest.mark.parametrize("name", LATER)
def test_what_is_not_hashed_is_not_needed(two, tmp_path, name, how):
    folder = damaged(two, tmp_path / "x", name, how)
    with open_manager(folder) as manager:
        assert checkpoint.find(manager, "latest") == 2
        assert checkpoint.about(manager, 2)["position"] == 2
        like = {"w": jnp.zeros(9)}
        found = checkpoint.restore(manager, 2, like=like)["w"]
    np.testing.assert_array_equal(found, jnp.arange(9.0) * 2)


def test_all_damaged_is_an_error_that_names_them(two, tmp_path):
    folder = damaged(two, tmp_path / "all", "state/_METADATA", "cut")
    (folder / "1" / "about" / "metadata").unlink()
    with (
        open_manager(folder) as manager,
        pytest.raises(ValueError, match=r"every checkpoint is damaged: .*/2: state/_MET"
        r".* bytes, was .*/1: about/metadata: missing; put back a copy"),
    ):  # fmt: skip
        checkpoint.find(manager, "latest")


def test_a_manifest_cannot_name_files_elsewhere(two, tmp_path):
    folder = damaged(two, tmp_path / "x", "manifest.json", "gone") / "2"
    for told in ('{"sha256": {"../1/manifest.json": [1, ""]}}', "[", '{"sha256": [0]}'):
        (folder / manifest.NAME).write_text(told)
        (wrong,) = manifest.differences(folder)
        assert "missing" in wrong or "cannot be read" in wrong


def test_half_a_checkpoint_is_passed_over_and_removed_aloud(two, tmp_path, caplog):
    folder = damaged(two, tmp_path / "x", "state/_METADATA", "cut")
    half = folder / "2.orbax-checkpoint-tmp"
    (folder / "2").rename(half)
    with open_manager(folder) as manager:  # which only reads
        assert checkpoint.find(manager, "latest") == 1
    assert half.exists()
    with checkpoint.open_manager(folder) as manager:
        assert checkpoint.newest(manager) == 1
        checkpoint.save(manager, 2, {"w": jnp.ones(9)}, position=2, **FACTS)
        checkpoint.settle(manager)
        assert checkpoint.newest(manager) == 2
    assert not half.exists()
    assert f"HALF A CHECKPOINT, removed: {half}" in caplog.text


def test_what_an_earlier_version_saved_is_taken_with_a_warning(two, tmp_path, caplog):
    folder = damaged(two, tmp_path / "old", "manifest.json", "gone")
    about = pathlib.Path(folder / "2" / "about" / "metadata")
    facts = json.loads(about.read_text())
    del facts["manifest"]
    about.write_text(json.dumps(facts))
    with caplog.at_level(logging.WARNING), open_manager(folder) as manager:
        assert checkpoint.find(manager, "latest") == 2
    assert "has no manifest and is taken unchecked" in caplog.text


def test_a_damaged_step_is_set_aside_and_saved_anew(two, tmp_path):
    folder = damaged(two, tmp_path / "w", "state/_METADATA", "gone")
    for _ in range(2):
        with checkpoint.open_manager(folder, best="lfw/accuracy") as manager:
            (folder / "2" / "state" / "_METADATA").unlink(missing_ok=True)
            checkpoint.set_aside(manager, 2)
            assert checkpoint.newest(manager) == 1
            checkpoint.save(manager, 2, {"w": jnp.ones(9)}, position=2, **FACTS)
            checkpoint.settle(manager)
            assert checkpoint.newest(manager) == 2
    assert len(list(folder.glob("damaged-2-*"))) == 2
