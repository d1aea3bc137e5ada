"""Starting from weights: taken bit for bit, frozen bit for bit, rows by name."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from PIL import Image

from jaxface import assembly, checkpoint, config, evaluation, experiment, spec, transfer
from jaxface.data.sources import synthetic
from jaxface.losses import softmax
from jaxface.train import multipliers, optim

BEFORE = 4  # steps of the run that is started from


def recipe(**changes):
    c = tiny.recipe()
    c.train.length = c.eval.every = c.checkpoint.every = f"{BEFORE} steps"
    c.mesh.devices = 1
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


def tuned(workdir, **changes):
    """A recipe that starts from a workdir."""
    return recipe(init__workdir=str(workdir), seed=1, **changes)


def train(c, workdir):
    return jax.device_get(experiment.train(assembly.build(c), workdir))


def begin(c, tmp_path):
    """The state before the first step."""
    run = assembly.build(c)
    with checkpoint.open_manager(tmp_path / "none") as empty:
        start, state = experiment._start(run, empty)
    assert start == 0
    return jax.device_get(state)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b):
    """Equal up to the order of sums."""
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), a, b
    )


def flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {multipliers.name_of(path): leaf for path, leaf in leaves}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A run to start from, and its last state."""
    workdir = tmp_path_factory.mktemp("own")
    return workdir, train(recipe(), workdir)


@pytest.fixture(scope="module")
def half(own, tmp_path_factory):
    """A run from those weights, a part frozen, the rest at half the rate; its end."""
    workdir = tmp_path_factory.mktemp("half")
    return workdir, train(halved(own[0]), workdir)


def halved(origin, **changes):
    every = {"checkpoint__every": "2 steps", "eval__every": "2 steps"}
    rules = "{'^params/(conv1|layer1_0)/': 0, '^params/': 0.5}"
    return tuned(origin, optim__multipliers=rules, **every, **changes)


def written(workdir, c, *, change=lambda state: state, only=(), notes=None):
    """Write a workdir without training; return the state it holds."""
    run = assembly.build(c)
    state = jax.device_get(change(run.first_state()))
    experiment._claim(workdir, run)
    tree = {name: getattr(state, name) for name in only} if only else state
    with checkpoint.open_manager(workdir / "checkpoints") as manager:
        about = {"position": 0, "shape": run.shape, "config_text": config.dumps(c)}
        checkpoint.save(manager, 0, tree, **about, notes=notes)
    return state


def faces(root, people):
    """Write a folder of rendered people with these names and numbers."""
    for name, number in people.items():
        (root / name).mkdir(parents=True)
        for i in range(3):
            pixels = synthetic.render(0, number, i, size=16)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return f"folder(path={str(root)!r})"


def test_a_run_from_weights_has_these_weights_and_scores(own, tmp_path):
    workdir, before = own
    c = tuned(workdir, mesh__devices=8)
    state = begin(c, tmp_path)
    equal(state.params, before.params)
    equal(state.batch_stats, before.batch_stats)
    drawn = jax.device_get(assembly.build(c).first_state())
    equal(state.head, drawn.head)
    equal(state.opt_state, drawn.opt_state)
    there, want = experiment.evaluate(assembly.build(recipe()), workdir)
    got = evaluation.evaluate(assembly.build(c), state.variables)
    assert there == BEFORE
    assert got["unseen"].scalars == want["unseen"].scalars


def test_averaged_weights_are_what_is_taken(tmp_path):
    def apart(state):
        return state.replace(ema=jax.tree.map(lambda x: x + 1, state.params))

    before = written(tmp_path / "a", recipe(optim__ema=0.5), change=apart)
    state = begin(tuned(tmp_path / "a", optim__ema=0.9, init__step="0"), tmp_path)
    equal(state.params, before.ema)
    equal(state.ema, before.ema)


def test_a_stopped_run_resumes_and_its_origin_may_be_gone(own, half, tmp_path):
    copy = shutil.copytree(half[0], tmp_path / "half")
    with checkpoint.open_manager(copy / "checkpoints") as manager:
        manager.delete(BEFORE)
    moved = own[0].rename(tmp_path / "moved")
    try:
        equal(train(halved(own[0]), copy), half[1])
        again = assembly.build(experiment.saved_config(copy))
        assert experiment.evaluate(again, copy, step="latest")[0] == BEFORE
        with pytest.raises(FileNotFoundError, match=r"no run in .*own"):
            train(halved(own[0]), tmp_path / "other")
    finally:
        moved.rename(own[0])


def test_what_is_frozen_stays_bit_for_bit_and_has_no_moments(own, half):
    before = flat({"params": own[1].params})
    for path, value in flat({"params": half[1].params}).items():
        still = path.startswith(("params/conv1/", "params/layer1_0/"))
        assert np.array_equal(value, before[path]) == still, path
    moments = [path for path in flat(half[1].opt_state) if "trace" in path]
    assert any("params/bn1" in path for path in moments)
    assert not any("conv1" in path or "layer1_0" in path for path in moments)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["jit", "pmap"])
def test_frozen_and_scaled_runs_are_the_same_on_8_devices(own, half, tmp_path, how):
    many = train(halved(own[0], mesh__devices=8, mesh__how=how), tmp_path)
    equal(many.params["conv1"], own[1].params["conv1"])
    close(many, half[1])


def test_a_frozen_network_is_trained_as_it_is_evaluated(own, tmp_path):
    c = tuned(own[0], train__length="3 steps", optim__multipliers="{'^params/': 0}")
    with pytest.raises(ValueError, match=r"whole network.*model.frozen_stats=True"):
        assembly.build(c)
    c.model.frozen_stats = True
    state = train(c, tmp_path)
    equal(state.params, own[1].params)
    equal(state.batch_stats, own[1].batch_stats)
    assert np.abs(state.head["kernel"] - begin(c, tmp_path).head["kernel"]).max() > 0


@pytest.mark.parametrize("name", spec.public(optim))
def test_a_factor_is_that_learning_rate_and_zero_is_none(name):
    make = getattr(optim, name)
    rules = (("^params/slow/", 0.25), ("^params/still/", 0.0))
    w = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    groups = ("slow", "still", "usual")
    params = {"params": {k: {"kernel": jnp.asarray(w)} for k in groups}}

    def run(tx, params):
        state = tx.init(params)
        for t in range(3):
            g = jax.tree.map(lambda x, t=t: jnp.cos(x + t), params)
            updates, state = tx.update(g, state, params)
            params = optax.apply_updates(params, updates)
        return params["params"]

    got = run(multipliers.scaled(make(lr=lambda t: 0.1), rules), params)
    slow = run(make(lr=lambda t: 0.025), params)
    usual = run(make(lr=lambda t: 0.1), params)
    np.testing.assert_allclose(got["slow"]["kernel"], slow["slow"]["kernel"], rtol=1e-6)
    equal(got["usual"], usual["usual"])
    equal(got["still"], params["params"]["still"])


def test_rows_go_by_name_when_people_come_and_go(tmp_path):
    old = faces(tmp_path / "old", {"bob": 1, "cy": 2, "eve": 3})
    new = faces(tmp_path / "new", {"ann": 9, "bob": 1, "dan": 8, "eve": 3})
    before = written(tmp_path / "a", recipe(data__source=old)).head["kernel"]
    assert json.loads((tmp_path / "a" / "classes.json").read_text()) == [
        *("bob", "cy", "eve")
    ]
    c = tuned(tmp_path / "a", init__step="0", init__head="grow", data__source=new)
    c.mesh.devices = 8
    head = begin(c, tmp_path).head["kernel"]
    drawn = jax.device_get(assembly.build(c).first_state().head["kernel"])
    equal(head[[1, 3]], before[[0, 2]])
    rest = np.delete(np.arange(len(head)), [1, 3])
    equal(head[rest], drawn[rest])


def test_without_names_rows_go_by_label_and_none_may_be_missing(own, tmp_path):
    c = tuned(own[0], init__head="grow")
    c.data.source = c.data.source.replace("identities=6", "identities=7")
    head = begin(c, tmp_path).head["kernel"]
    equal(head[:6], own[1].head["kernel"][:6])
    assert np.abs(head[6] - own[1].head["kernel"][6]).max() > 0
    c.data.source = c.data.source.replace("identities=7", "identities=5")
    with pytest.raises(ValueError, match=r"from 6 to 5 classes: without names"):
        begin(c, tmp_path)


def test_strangers_are_no_growth():
    with pytest.raises(ValueError, match=r"none of 2 people, such as 'x'"):
        transfer.match(["a", "b"], ["x", "y"], counts=(2, 2))


def test_a_growing_head_keeps_its_margins_own_numbers(tmp_path, monkeypatch):
    def rule(cos, target, norm, ctx):
        state = {"t": 0.5 * ctx.state["t"] + target.mean()}
        return cos, target - ctx.params["b"] ** 2, ctx._replace(state=state)

    rule.unit, rule.params, rule.state = True, {"b": 0.1}, {"t": 0.0}
    monkeypatch.setattr(softmax, "resolve", lambda line: rule)

    def apart(state):
        numbers = {"margin_params": {"b": 0.7}, "margin_state": {"t": -0.2}}
        return state.replace(**jax.tree.map(jnp.float32, numbers))

    before = written(tmp_path / "a", recipe(), change=apart, notes={"num_classes": 6})
    c = tuned(tmp_path / "a", init__step="0", init__head="grow")
    state = begin(c, tmp_path)
    equal(state.margin_params, before.margin_params)
    equal(state.margin_state, before.margin_state)


def converted(workdir, **notes):
    """Write what `launch/convert.py` does: a network and nothing else."""
    c, only = recipe(checkpoint__best=""), ("params", "batch_stats")
    return workdir, written(workdir, c, only=only, notes=notes)


def test_a_converted_network_has_no_head_to_grow(tmp_path):
    workdir, before = converted(tmp_path / "a")
    equal(begin(tuned(workdir), tmp_path).params, before.params)
    with pytest.raises(ValueError, match=r"takes .* here and nothing in .*head='new'"):
        begin(tuned(workdir, init__head="grow"), tmp_path)


def test_a_network_that_is_not_for_training_says_why(tmp_path):
    workdir, _ = converted(tmp_path / "a", trainable=False, why="BatchNorm is folded")
    with pytest.raises(ValueError, match=r"cannot be trained on: BatchNorm is folded"):
        begin(tuned(workdir), tmp_path)


def test_another_network_is_refused_with_both_named(own, tmp_path):
    other = "iresnet(stages=(1,), widths=(4,), dim=6)"
    words = r"has model 'iresnet.*dim=8.*this run 'iresnet.*dim=6.*: saved .*here"
    with pytest.raises(ValueError, match=words):
        begin(tuned(own[0], model__name=other), tmp_path)
    same = "iresnet(stages=(1,), widths=(4,), dim=8, dropout=0.5)"
    equal(begin(tuned(own[0], model__name=same), tmp_path).params, own[1].params)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("optim__multipliers", "{'^parms/': 0}", "'.parms/' matches no parameter;"),
        ("optim__multipliers", "{'^p': 0.1, 'conv1': 0}", "the narrower one first"),
        ("optim__multipliers", "{'': 0}", "freezes every parameter"),
        ("optim__multipliers", "{'a': 0, 'a': 1}", "has a regex twice"),
        ("optim__multipliers", "{'a': -1}", "the factor of 'a' is -1"),
        ("optim__multipliers", "{'(': 1}", "wanted a dict of path regexes"),
        ("optim__multipliers", "a=1", "wanted a dict of path regexes"),
        ("init__head", "old", "init.head is 'old'; wanted one of new, grow"),
        ("init__head", "grow", "has no head to grow; set init.workdir"),
    ],
)
def test_wrong_settings_are_refused_before_training(key, value, words):
    with pytest.raises(ValueError, match=words):
        assembly.build(recipe(**{key: value}))


def test_a_workdir_of_other_people_is_not_resumed(tmp_path):
    people = {"ann": 1, "bob": 2}
    c = recipe(data__source=faces(tmp_path / "faces", people))
    written(tmp_path / "run", c)
    faces(tmp_path / "faces", {"abe": 3})
    with pytest.raises(ValueError, match=r"trained on 2 people, data.source now has 3"):
        train(c, tmp_path / "run")
