"""Low-rank adapters: nothing at first, equal to the merged network ever after."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_finetune as finetune
from flax import linen as nn

from jaxface import assembly, evaluation, experiment, lora
from jaxface.models import depthwise, iresnet, mobilefacenet
from jaxface.train import multipliers

RULES = ((lora.FROZEN, 0.0),)
own = finetune.own


class Net(nn.Module):
    """A convolution, a depthwise one and a dense layer."""

    dim: int = 5

    @nn.compact
    def __call__(self, x, train=False, keys=None):
        x = nn.relu(nn.Conv(6, (3, 3), name="conv")(x))
        x = depthwise.Depthwise(name="depthwise")(x)
        return nn.Dense(self.dim, name="dense")(x.mean((1, 2)))


def images(seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(2, 8, 8, 3)), jnp.float32)


def moved(variables):
    """The variables with every B away from zero."""
    key = jax.random.key(3)
    return variables | {
        "params": variables["params"]
        | {
            "lora": jax.tree.map(
                lambda x: x + jax.random.normal(key, x.shape),
                variables["params"]["lora"],
            )
        }
    }


def test_new_adapters_change_nothing():
    base = iresnet.Model(stages=(1,), widths=(4,), dim=8)
    model = lora.Model(base, rank=2)
    variables = jax.jit(model.init)(jax.random.key(0), images())
    plain = variables | {"params": variables["params"]["base"]}
    np.testing.assert_array_equal(
        model.apply(variables, images()), base.apply(plain, images())
    )
    finetune.equal(model.merge(variables["params"]), plain["params"])


def test_a_kernel_gains_alpha_over_r_times_a_b():
    model = lora.Model(Net(), rank=2, alpha=3.0)
    variables = moved(model.init(jax.random.key(0), images()))
    params = variables["params"]
    adapters = params["lora"]
    assert set(adapters) == {"conv", "dense"}  # none for the depthwise kernel
    merged = model.merge(params)
    for name in adapters:
        a, b = (np.asarray(adapters[name]["kernel"][k], np.float64) for k in "ab")
        w = np.asarray(params["base"][name]["kernel"], np.float64)
        assert a.shape == (np.prod(w.shape[:-1]), 2)
        want = w.reshape(-1, w.shape[-1]) + 1.5 * a @ b
        got = merged[name]["kernel"].reshape(want.shape)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
        finetune.equal(merged[name]["bias"], params["base"][name]["bias"])
    got = model.apply(variables, images())
    want = Net().apply({"params": merged}, images())
    np.testing.assert_array_equal(got, want)


def test_where_chooses_and_what_it_misses_is_told():
    model = lora.Model(Net(), where="^dense/")
    adapters = model.init(jax.random.key(0), images())["params"]["lora"]
    assert set(adapters) == {"dense"}
    with pytest.raises(ValueError, match=r"where='conf' matches no .*; there are conv"):
        lora.Model(Net(), where="conf").init(jax.random.key(0), images())
    with pytest.raises(ValueError, match="rank 0"):
        lora.Model(Net(), rank=0)


def test_a_wrapped_network_tells_what_the_network_is():
    base = mobilefacenet.Model()
    model = lora.Model(base)
    for name in ("dim", "color", "mean", "std"):
        assert getattr(model, name) == getattr(base, name)
    assert model.clone(dim=7).dim == 7
    with pytest.raises(AttributeError, match="depth"):
        _ = model.depth


@pytest.fixture(scope="module")
def adapted(own, tmp_path_factory):
    """A run of adapters on one device: its workdir and end."""
    workdir = tmp_path_factory.mktemp("adapted")
    return workdir, finetune.train(adapting(own), workdir)


def adapting(own, **changes):
    given = {"model__lora": "lora(rank=2, alpha=8.0)", "model__frozen_stats": True}
    return finetune.tuned(own[0], **given, **changes)


def test_only_adapters_and_head_train(own, adapted):
    state = adapted[1]
    finetune.equal(state.params["base"], own[1].params)
    finetune.equal(state.batch_stats, own[1].batch_stats)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(state.params["lora"]))
    moments = [path for path in finetune.flat(state.opt_state) if "trace" in path]
    assert any("/lora/" in path for path in moments)
    assert not any("/base/" in path for path in moments)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["jit", "pmap"])
def test_adapters_train_alike_on_8_devices(own, adapted, tmp_path, how):
    many = finetune.train(adapting(own, mesh__devices=8, mesh__how=how), tmp_path)
    finetune.equal(many.params["base"], own[1].params)
    finetune.equal(many.batch_stats, own[1].batch_stats)
    finetune.close(many, adapted[1])


def test_a_regex_frees_part_of_the_base(own, tmp_path):
    rules = "{'^params/base/bn1/': 1}"
    c = adapting(own, optim__multipliers=rules, train__length="2 steps")
    state = finetune.train(c, tmp_path)
    for path, value in finetune.flat(state.params["base"]).items():
        same = np.array_equal(value, finetune.flat(own[1].params)[path])
        assert same != path.startswith("bn1/"), path


def test_an_adapted_run_is_evaluated_and_passed_on_merged(adapted, tmp_path):
    workdir, state = adapted
    run = assembly.build(experiment.saved_config(workdir))
    _, want = experiment.evaluate(run, workdir, step="latest")
    plain = finetune.begin(finetune.tuned(workdir), tmp_path)
    merged = run.model.merge(state.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        plain.params,
        jax.device_get(merged),
    )
    got = evaluation.evaluate(assembly.build(finetune.recipe()), plain.variables)
    assert got["unseen"].scalars["auc"] == pytest.approx(
        want["unseen"].scalars["auc"], abs=1e-6
    )


def test_a_wrong_line_is_refused_before_training():
    for line, error, words in (
        ("lor(rank=2)", KeyError, "did you mean 'lora'"),
        ("lora(ranks=2)", ValueError, r"lora takes \(base, rank"),
        ("lora(where='(')", ValueError, r"where='\('"),
    ):
        with pytest.raises(error, match=words):
            assembly.build(finetune.recipe(model__lora=line))


def test_the_base_is_frozen_by_its_path():
    assert multipliers.factor(RULES, "params/base/conv1/kernel") == 0
    assert multipliers.factor(RULES, "params/lora/conv1/kernel/a") == 1
