"""Plans of a step for devices that are not here, against what is known of them."""

import dataclasses
import math
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny
from conftest import ROOT

from jaxface import assembly, collectives, hardware, plan
from jaxface.models import convolve


@pytest.fixture(scope="module")
def made():
    """The tiny run, planned for one and for eight devices."""
    return {n: plan.make(tiny.recipe(), plan.topology(f"h100:{n}")) for n in (1, 8)}


def test_one_device_sends_nothing_and_eight_meet(made):
    assert made[1].met == ()
    assert {c.group for c in made[8].met} == {8}
    state = assembly.build(tiny.recipe()).abstract
    sizes = [4 * math.prod(x.shape) for x in jax.tree.leaves(state.params)]
    reduced = sum(c.bytes for c in made[8].met if c.kind == "all-reduce")
    assert sum(sizes) <= reduced < 1.3 * sum(sizes)  # and statistics of BatchNorm
    assert made[8].sent > 2 * 7 / 8 * sum(sizes)


def test_the_head_is_split_and_the_rest_is_not(made):
    state = assembly.build(tiny.recipe()).abstract
    whole = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))
    head = 2 * 1024 * 8 * 4  # weights and momentum
    assert made[1].state == whole
    assert made[8].state == whole - head + head // 8
    assert made[1].memory > made[1].state


def test_work_is_shared(made):
    assert made[1].flops > 4 * made[8].flops > 0
    assert (made[8].batch, made[8].classes, made[8].dtype) == (16, 6, "float32")


def test_a_stand_in_counts_what_the_device_would_do(monkeypatch):
    c = tiny.recipe()
    c.data.source = "synthetic(identities=6, per_identity=4, size=16)"
    c.model.name = "iresnet(stages=(1,), widths=(32,), dim=8)"
    found = plan.make(c, plan.topology("h100:1")).flops
    monkeypatch.setattr(convolve, "_gains", lambda *_: False)  # a CPU's short cut
    assert found == plan.make(c, plan.topology("h100:1")).flops


def test_more_memory_than_a_device_has_is_said(made):
    assert "does not fit" not in plan.text(made[8])
    large = dataclasses.replace(made[8], memory=1e12)
    assert re.search(r"does not fit\s+a h100 has \d\d GiB", plan.text(large))


def test_the_prediction_is_the_roofline_of_its_parts(made):
    one = made[8]
    chip = hardware.CHIPS["h100"]
    assert one.seconds == (
        one.flops / chip.flops32,
        one.moved / chip.bandwidth,
        one.sent / chip.link,
    )
    cpu = dataclasses.replace(one.topology, kind="cpu")
    unknown = dataclasses.replace(one, topology=cpu)
    assert unknown.seconds is None
    assert "cannot be told: no peak rates of a cpu" in plan.text(unknown)


def test_what_is_said_names_parts_and_stand_ins(made):
    said = plan.text(made[8])
    assert "8 of h100:8" in said
    assert "all-reduce" in said
    assert "CPU devices stood in" in said
    assert plan.row(made[8]).count("|") == plan.HEAD.splitlines()[0].count("|")


def test_a_program_too_large_is_a_plan_that_says_so(monkeypatch, made):
    class Lowered:
        def compile(self, options):
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory"
                " in memory space hbm. Used 42.50G of 15.75G hbm. Exceeded by 26.75G."
            )

    monkeypatch.setattr(jax.stages.Traced, "lower", lambda *_, **__: Lowered())
    found = plan.make(tiny.recipe(), plan.topology("cpu:1"))
    assert found.memory == 42.5 * 2**30
    assert "Used 42.50G of 15.75G hbm" in plan.text(found)
    assert "does not fit" in plan.row(found)
    assert found.seconds is None


@pytest.mark.parametrize("name", ["v5e", "v5e:64", "h100:8x8", "h100:0", "tpu:8", ""])
def test_an_unknown_topology_lists_the_known(name):
    with pytest.raises(ValueError, match="wanted v4, v5e, v5p, v6e with a shape"):
        plan.cpu_devices(name)


def test_what_cannot_be_described_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="wants 64 CPU devices, got 8"):
        plan.topology("cpu:64")
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(ImportError, match=r"pip install jaxface\[tpu\]"):
        plan.topology("v5e:2x4")
    c = tiny.recipe()
    c.loss.also = "distill.cosine(weight=1.0)"
    c.distill.workdir = "/nowhere"
    with pytest.raises(ValueError, match="with a teacher cannot be planned"):
        plan.make(c, plan.topology("cpu:1"))


def test_a_plan_counts_what_collectives_read(made):
    assert made[8].sent == sum(c.wire_bytes for c in made[8].met)
    assert all(isinstance(c, collectives.Collective) for c in made[8].met)


@pytest.mark.slow
def test_the_command_plans_for_sixteen_devices():
    line = [sys.executable, "launch/describe.py", f"--config={ROOT}/tests/tiny.py"]
    line += ["--topology=cpu:1,h100:16", "--per_device=4", "--table"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    head, _, *rows = done.stdout.splitlines()
    assert head in plan.HEAD
    assert [row.split(" | ")[1] for row in rows] == ["cpu:1", "h100:16"]


@pytest.mark.slow
# of a program for absent devices, which cannot be loaded
@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")
def test_a_tpus_own_compiler_agrees_with_stand_ins(made):
    """On what does not depend on the device: state, arithmetic, and what is sent."""
    pytest.importorskip("libtpu", reason="pip install jaxface[tpu]")
    found = plan.make(tiny.recipe(), plan.topology("v5e:2x4"))
    assert (found.state, found.batch) == (made[8].state, made[8].batch)
    assert not found.topology.stand_in
    np.testing.assert_allclose(found.sent, made[8].sent, rtol=0.1)
    assert {c.group for c in found.met} == {8}
    assert made[8].flops < found.flops < 2 * made[8].flops  # a few channels are padded
    assert "predicted step" in plan.text(found)
