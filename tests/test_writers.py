"""Rows of a run in every file: whole, once, in order, whatever the disk does."""

import csv
import json
import sys
import types

import numpy as np
import pytest

from jaxface.train import writers

ROWS = [(1, {"loss": 2.5, "lr": 0.1}), (2, {"loss": 1 / 3}), (2, {"lfw/tar": 0.5})]
KINDS = {"jsonl": writers.Jsonl, "csv": writers.Csv}


def write(kind, path, rows, start=0):
    log = KINDS[kind](path, start=start)
    for step, row in rows:
        log.write(step, row)
    log.close()


def read(kind, path):
    """All (step, name, value), by the standard library."""
    if kind == "csv":
        with path.open(newline="") as file:
            return [
                (int(r["step"]), r["name"], float(r["value"]))
                for r in csv.DictReader(file)
            ]
    rows = map(json.loads, path.read_text().splitlines())
    return [(r["step"], k, v) for r in rows for k, v in r.items() if k != "step"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_written_is_read_to_the_last_bit(kind, tmp_path):
    write(kind, tmp_path / "log", ROWS)
    want = [(step, k, v) for step, row in ROWS for k, v in row.items()]
    assert read(kind, tmp_path / "log") == want


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", [0, 1, 2])
def test_a_resumed_log_has_no_row_twice_and_none_missing(kind, tmp_path, start):
    path = tmp_path / "log"
    write(kind, path, ROWS)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 3, "lo'[: 1 if kind == "csv" else None])
    write(kind, path, [r for r in ROWS if r[0] > start], start=start)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("kind", KINDS)
def test_a_line_that_is_no_row_is_named(kind, tmp_path):
    (tmp_path / "log").write_text("garbage\n")
    with pytest.raises(ValueError, match=r"log, line 1: 'garbage\\n' is no row"):
        KINDS[kind](tmp_path / "log", start=0)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_wait_for_a_folder_that_is_away(kind, tmp_path, caplog):
    folder, away = tmp_path / "mount", tmp_path / "away"
    folder.mkdir()
    log = KINDS[kind](folder / "log", start=0)
    log.write(*ROWS[0])
    folder.rename(away)
    log.write(*ROWS[1])
    with pytest.raises(OSError, match="1 rows are not in"):
        log.close()
    folder.mkdir()  # another, empty one: nothing may be written as if it were the first
    log.write(*ROWS[2])
    assert not (folder / "log").read_bytes()
    (folder / "log").unlink()
    folder.rmdir()
    away.rename(folder)
    log.close()
    write(kind, tmp_path / "want", ROWS)
    assert (folder / "log").read_bytes() == (tmp_path / "want").read_bytes()
    assert caplog.text.count("rows are kept in memory") == 1


def test_half_a_piece_that_a_full_disk_took_is_taken_back(tmp_path):
    log = writers.Appended(tmp_path / "log")
    log.add(b"one\n")
    with (tmp_path / "log").open("ab") as file:
        file.write(b"tw")
    log.add(b"two\n")
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"


def test_boards_of_a_resumed_run_forget_what_is_done_again(tmp_path):
    from tensorboard.backend.event_processing import event_accumulator

    for start, stop in ((0, 5), (3, 6)):
        board = writers.TensorBoard(tmp_path, start=start)
        for step in range(start + 1, stop + 1):
            board.write(step, {"loss": step / 10 + start})
        board.close()
    reader = event_accumulator.EventAccumulator(str(tmp_path))
    reader.Reload()
    found = [(e.step, e.value) for e in reader.Scalars("loss")]
    want = [(1, 0.1), (2, 0.2), (3, 0.3), (4, 3.4), (5, 3.5), (6, 3.6)]
    np.testing.assert_allclose(found, want, rtol=1e-6)


def test_wandb_is_offline_and_one_run_however_often_resumed(tmp_path, monkeypatch):
    calls = []

    class Run:
        def log(self, row):
            calls.append(("log", row))

        def define_metric(self, name, *, step_metric=None):
            calls.append(("over", name, step_metric))

        def finish(self):
            calls.append(("finish",))

    def init(**given):
        calls.append(("init", given))
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for step in (2, 1):  # the second time after a rollback
        board = writers.Wandb(tmp_path, project="faces", settings={"seed": 0})
        board.write(step, {"loss": 2.0})
        board.close()
    given = [call[1] for call in calls if call[0] == "init"]
    assert {x["mode"] for x in given} == {"offline"}
    assert {x["id"] for x in given} == {(tmp_path / "wandb.id").read_text()}
    assert calls[1:5] == [
        ("over", "step", None),
        ("over", "*", "step"),
        ("log", {"step": 2, "loss": 2.0}),
        ("finish",),
    ]
    assert calls[-2] == ("log", {"step": 1, "loss": 2.0})


def test_a_missing_wandb_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"pip install jaxface\[wandb\]"):
        writers.Wandb(tmp_path, project="faces")
