"""Damaged files, thousands of them, in a process with little memory: see `fuzz.py`."""

import collections
import inspect
import json
import pathlib
import random
import subprocess
import sys

import fuzz
import mutations
import pytest

from jaxface import spec
from jaxface.data import sources

ROOT = pathlib.Path(__file__).parent.parent

# Modules that read no file of their own, or none but images.
NO_FILES = {"at_least", "enrolled", "gallery", "grouped", "mislabelled", "pairs_all"}
NO_FILES |= {"pairs_sampled", "synthetic", "tinyface"}


def damage(*readers, inputs, seconds=10.0):
    """What became of so many inputs for each reader."""
    done = subprocess.run(
        [sys.executable, fuzz.__file__, f"--readers={','.join(readers)}",
         f"--inputs={inputs}", f"--seconds={seconds}"],
        cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])  # TFDS prints too


def test_every_reader_is_damaged():
    assert {name.split("/")[0] for name in fuzz.READERS} | NO_FILES == set(
        spec.modules(sources)
    )


def test_damaged_files_are_read_or_refused():
    for name, found in damage(*fuzz.READERS, inputs=45).items():
        assert not found["failures"], name


@pytest.mark.slow
def test_twenty_thousand_damaged_files_are_read_or_refused():
    found = damage(*fuzz.READERS, inputs=20_000 // len(fuzz.READERS) + 1)
    total = collections.Counter()
    for name, one in found.items():
        assert not one["failures"], name
        total.update(one["outcomes"])
    assert total["accepted"] + total["damaged"] + total["refused"] >= 20_000
    for mutate in mutations.STRATA:  # each of them broke something
        assert total[f"{mutate.__name__} refused"] > 100
    assert total["damaged"] > 100


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hang", "HangError"),
        ("allocate", "MemoryError"),
        ("kind", "KeyError"),
        ("file", "says only: ValueError"),
        ("place", "says only: ValueError"),
        ("text", "exec (<code"),
        ("command", "os.system (b'true'"),
        ("class", "pickle.find_class ("),
    ],
)
def test_the_loop_sees_a_reader_misbehave(name, says):
    (found,) = damage(name, inputs=2, seconds=0.2).values()
    assert found["outcomes"]["failed"] == 2
    assert says in found["failures"][0]


def test_the_loop_sees_a_crash():
    with pytest.raises(AssertionError):
        damage("crash", inputs=1)


@pytest.mark.parametrize("mutate", mutations.STRATA, ids=lambda m: m.__name__)
def test_a_mutation_changes_bytes_and_is_the_seeds_alone(mutate):
    data = bytes(range(256)) + b"12 34\n"
    runs = [[mutate(random.Random(s), data) for s in range(20)] for _ in range(2)]
    assert runs[0] == runs[1]
    assert sum(new != data for new in runs[0]) > 15
    assert list(inspect.signature(mutate).parameters) == ["rng", "data"]
