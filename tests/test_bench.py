"""The bench: opponents take turns, figures are summed up right, tables are whole."""

import functools
import importlib
import json
import pathlib

import numpy as np
import pytest
import tiny

from jaxface import assembly, evaluation, experiment, parallel
from jaxface.models import iresnet

LAUNCH = pathlib.Path(__file__).parent.parent / "launch"
SIMPLE = ["mean colour", "mean-centred pixels", "HOG + PCA"]


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(LAUNCH)
    return importlib.import_module("bench")


def test_opponents_take_turns_and_the_median_is_given(bench):
    seen, now = [], [0.0]
    costs = {"a": iter([9, 9, 1, 2, 4]), "b": iter([9, 9, 5, 5, 5])}

    def runner(name):
        def run():
            seen.append(name)
            now[0] += next(costs[name])

        return run

    candidates = {name: bench.harness.Candidate(runner(name), 20) for name in "ab"}
    a, b = bench.harness.race(
        candidates, unit="x/s", warmup=2, repeats=3, clock=lambda: now[0]
    )
    assert seen == ["a", "b"] * 5
    assert a == bench.harness.Row(
        "a", "x/s", 10, 5, 20, 3
    )  # 20 items in 1, 2 and 4 seconds
    assert b == bench.harness.Row("b", "x/s", 4, 4, 4, 3)


def test_json_and_table_hold_every_row(bench):
    rows = [
        bench.harness.Row(name, "images/s", 2.5, 2.0, 3.0, 7) for name in ("one", "two")
    ]
    found = json.loads(json.dumps(bench.report({"render": rows})))
    assert found["benchmarks"]["render"][1] == {
        "name": "two",
        "unit": "images/s",
        "value": 2.5,
        "low": 2.0,
        "high": 3.0,
        "count": 7,
    }
    assert [line.split() for line in bench.harness.table(rows).splitlines()] == [
        ["2.5", "images/s", "[2,", "3]", "of", "7", name] for name in ("one", "two")
    ]


@pytest.mark.slow
def test_every_head_is_timed_and_what_is_too_large_is_not_run(bench):
    head = functools.partial(
        bench.bench_head.head, batch=8, sampled_rows=64, optimizer="sgd", repeats=1
    )
    kinds = ("full", "sharded", "partial_fc")
    rows = head([(1000, 4), (2000, 4)], memory=1.0)
    names = [f"{kind} {c} x 4" for c in ("1,000", "2,000") for kind in kinds]
    assert [(r.name, r.unit) for r in rows] == [
        *((name, unit) for name in names for unit in ("GB", "s")),
        *((f"growth {kind} x 4", "power") for kind in kinds),
    ]
    (row,) = head([(10**8, 512)], kinds=["partial_fc"], memory=8.0)
    assert "not run: more than 8 GB" in row.name
    state = 2 * 10**8 * 512 * 4 / 1e9  # weights and momentum, in place
    assert state < row.value < 1.01 * state


def test_sizes_of_heads_are_read(bench):
    assert bench.bench_head.sizes(["1e4x512", "77x3"]) == [(10_000, 512), (77, 3)]
    with pytest.raises(ValueError, match=r"head '1e4'; wanted classes x dimension"):
        bench.bench_head.sizes(["1e4"])
    with pytest.raises(KeyError, match="did you mean 'full'"):
        bench.bench_head.make_loss("ful", 10, 10)


def test_a_large_evaluation_agrees_with_the_usual_code(bench):
    rows = bench.bench_eval.templates(images=300, count=40, pairs=500, dim=8)
    names = [f"{side}: {part}" for side in ("ours", "usual") for part in
             ("pool", "score", "TAR@FAR", "in all", "of one core")]  # fmt: skip
    assert [(r.name, r.unit) for r in rows] == [
        *((name, "s") for name in [*names, "ours: with intervals over people"]),
        ("peak of ours", "GB"),
    ]  # fmt: skip
    rows = bench.bench_eval.galleries([30, 50], probes=20, dim=8, k=3, repeats=1)
    assert [r.name for r in rows] == [
        *("ranks in 30", "3 nearest in 30", "usual: ranks in 30"),
        *("ranks in 50", "3 nearest in 50", "usual: ranks in 50"),
    ]
    with pytest.raises(ValueError, match="usual code differ by 1"):
        bench.bench_eval._agree(np.array([1.0]), np.array([2.0]))


def test_an_unknown_benchmark_lists_the_choices(bench):
    assert list(bench.choose(["baselines", "render"])) == ["baselines", "render"]
    with pytest.raises(KeyError, match=r"did you mean 'render'.*baselines"):
        bench.choose(["rendr"])


def test_a_model_is_compiled_trained_and_passed(bench):
    net = "iresnet(stages=(1,), widths=(4,), dim=8)"
    rows = bench.bench_step.step([net], batch=8, size=16, classes=10, repeats=1)
    assert [(row.name, row.unit) for row in rows] == [
        (f"compile train {net}", "s"),
        (f"memory of a device, train {net}", "MB"),
        (f"compile forward {net}", "s"),
        ("matmul", "GFLOP/s"),
        (f"train {net}", "images/s"),
        (f"forward {net}", "images/s"),
        (f"train {net}", "of matmul"),
        (f"forward {net}", "of matmul"),
    ]
    for row in rows:
        assert 0 < row.low <= row.value <= row.high, row


def test_our_forms_are_raced_against_xlas(bench):
    net = "iresnet(stages=(1,), widths=(32,), dim=8)"
    given = {"batch": 8, "size": 16, "classes": 10, "repeats": 1}
    rows = bench.bench_step.step([net], vs="native", **given)
    memory = [row.value for row in rows if row.unit == "MB"]
    assert len(set(memory)) == 2  # another program
    assert rows[-1].name == f"train {net} / native: train {net}"
    assert (rows[-1].unit, rows[-1].value > 0) == ("times", True)


def test_a_timed_step_goes_on_from_the_one_before(bench):
    room = bench.bench_step
    mesh = parallel.make_mesh(axis="data")
    data = parallel.put_batch(room.batch_of(8, 16, 10), mesh=mesh, axis="data")
    net = iresnet.Model(stages=(1,), widths=(4,), dim=8)
    program, state = room.train_step(net, mesh=mesh, data=data, classes=10)
    run = room.training(program, state, data)
    assert [int(run().step) for _ in range(3)] == [1, 2, 3]
    assert state.step.is_deleted()  # donated: two copies would need twice the memory


def test_step_refuses_what_devices_cannot_share(bench):
    with pytest.raises(ValueError, match="8 devices cannot share 12 images evenly"):
        bench.bench_step.step(["iresnet"], batch=12, size=16, classes=10)
    with pytest.raises(ValueError, match="in float32; this is bfloat16 on cpu"):
        bench.bench_step.step(
            ["iresnet"], batch=8, size=16, classes=10, dtype="bfloat16", vs="torch"
        )


@pytest.mark.slow  # importing PyTorch's optimizers takes as long as all else
def test_torch_learns_its_batch(bench):
    pytest.importorskip("torch", reason="needs pip install jaxface[peers]")
    room = bench.bench_step.bench_torch
    data = bench.bench_step.batch_of(8, 32, 10)
    given = {"classes": 10, "m": 0.2, "scale": 8.0, "lr": 0.1, "threads": 1}
    ways = room.steps("mobilefacenet.mbf", data, compiled=False, **given)
    for run in ways.values():
        losses = [run() for _ in range(3)]
        assert losses[-1] < losses[0]


def test_torch_says_which_twins_it_has(bench):
    pytest.importorskip("torch", reason="needs pip install jaxface[peers]")
    room = bench.bench_step.bench_torch
    data = bench.bench_step.batch_of(8, 32, 10)
    with pytest.raises(ValueError, match=r"no twin of swin\.t; it has iresnet\.r18, "):
        room.steps(
            "swin.t", data, classes=10, m=0, scale=8, lr=0, compiled=False, threads=1
        )


@pytest.mark.slow
def test_baselines_judge_all_on_the_same_pairs(bench, tmp_path):
    c = tiny.recipe()
    c.data.source = "synthetic(identities=40, per_identity=2, size=16)"
    c.train.length = "5 steps"
    run = assembly.build(c)
    experiment.train(run, tmp_path / "run")
    rows = bench.baselines(c, workdir=str(tmp_path / "run"))
    assert [row.name for row in rows] == [*SIMPLE, "untrained net", "trained net"]
    _, results = experiment.evaluate(run, tmp_path / "run")
    want = (
        evaluation.evaluate(run, run.first_state().variables)["unseen"],
        results["unseen"],
    )
    assert [row.value for row in rows[3:]] == [r.scalars["accuracy"] for r in want]
    for row in rows:
        assert 0 <= row.low <= row.value <= row.high <= 1, row
        assert (row.unit, row.count) == ("accuracy on unseen", 40)


def test_simple_embeddings_see_the_pixels_of_the_source(bench):
    run = assembly.build(tiny.recipe())
    images = np.stack([run.source.read(i)[0] for i in range(len(run.source))])
    np.testing.assert_array_equal(bench._pixels(run, run.source), images)


def test_baselines_want_a_set(bench):
    c = tiny.recipe()
    c.eval.sets, c.checkpoint.best = {}, ""
    with pytest.raises(ValueError, match=r"nothing to verify.*no eval.sets"):
        bench.baselines(c)


def test_hog_sees_direction_and_not_brightness(bench):
    ramp = np.arange(32) * 4
    across = np.broadcast_to(ramp[None, :, None], (32, 32, 3)).astype(np.uint8)
    down = across.transpose(1, 0, 2)
    images = np.stack([across, across // 2 + 60, down])
    a, dim, b = bench.hog(images)
    np.testing.assert_allclose(a, dim, atol=1e-2)
    assert a @ b < 0.1 * (a @ a)


def test_pca_of_a_line_finds_the_line(bench):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 1)) @ rng.normal(size=(1, 6)) + 3
    found = bench.pca(x, keep=1)(x)[:, 0]
    assert abs(np.corrcoef(found, x[:, 0])[0, 1]) == pytest.approx(1)


@pytest.mark.slow
def test_simple_baselines_cannot_tell_rendered_people_apart(bench):
    # The law of the default data: hard for pixels, histograms and colours.
    c = tiny.recipe()
    c.data.source = "synthetic(identities=150, per_identity=4, size=56)"
    unseen = "synthetic(identities=200, per_identity=4, size=56, start=5000)"
    c.eval.sets = {"unseen": f"{unseen}|pairs_sampled(count=1000)|verification"}
    rows = bench.baselines(c)
    assert [row.name for row in rows] == [*SIMPLE, "untrained net"]
    for row in rows:
        assert 0.45 < row.value < 0.75, row


@pytest.mark.slow
def test_input_is_raced_against_decoding_and_torch(bench):
    pytest.importorskip("torch")
    rows = bench.bench_input.feed(
        "", lines=bench.bench_input.LINES, cores=[1], batch=8, repeats=1, count=16
    )
    line = bench.bench_input.LINES[0]
    ours = [f"1 cores, {kind} loaded: {line}" for kind in bench.bench_input.KINDS]
    speeds = {r.name: r.value for r in rows if r.unit == "images/s"}
    shares = {r.name: r.value for r in rows if r.unit == "of the bound"}
    bound = max(v for name, v in speeds.items() if "bound: " in name)
    for name in ours:
        assert shares[name] == speeds[name] / bound
    assert sum("DataLoader" in name for name in speeds) == 3
    assert [r.unit for r in rows][-2:] == ["MB", "MB"]


@pytest.mark.slow  # 20 s: two processes
def test_a_start_is_measured_cold_and_warm(bench):
    line = "iresnet(stages=(1,), widths=(8,), dim=8, size=16)"
    rows = bench.bench_start.start(line, batch=4, size=16, classes=5, cpu_devices=2)
    assert [r.name for r in rows] == [
        f"cold start {line}",
        f"warm start {line}",
        f"step {line}",
    ]
    assert all(r.value > 0 and r.unit == "s" for r in rows)


def test_a_start_that_fails_says_why(bench):
    with pytest.raises(RuntimeError, match="model 'nothing' unknown"):
        bench.bench_start.start("nothing", batch=4, size=16, classes=5, cpu_devices=2)
