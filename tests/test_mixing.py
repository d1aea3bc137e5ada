"""mixup and cutmix: two labels for an image, the same on any mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
import tiny
from scipy import stats

from jaxface import assembly
from jaxface.losses import mixing, partial_fc, softmax

B, SIZE = 4096, 8
MIXES = {"mixup": mixing.mixup, "cutmix": mixing.cutmix}


def batch(count=B, size=SIZE):
    """Every image is one number, its place."""
    image = np.broadcast_to(
        np.arange(count)[:, None, None, None], (count, size, size, 3)
    )
    return {
        "image": jnp.asarray(image, jnp.float32),
        "label": jnp.arange(count, dtype=jnp.int32),
        "position": jnp.arange(count, dtype=jnp.uint32) + 7,
    }


@functools.partial(jax.jit, static_argnums=(0, 2, 3, 4))
def _mixed(name, given, seed, alpha, p):
    mix = functools.partial(MIXES[name], alpha=alpha, p=p)
    return mixing.mixed(given, mix=mix, seed=seed)


def mixed(name, given, seed=0, alpha=1.0, p=1.0):
    return jax.device_get(_mixed(name, given, seed, alpha, p))


@pytest.mark.parametrize("name", MIXES)
def test_lam_is_the_share_of_the_own_image(name):
    given = batch()
    found = mixed(name, given, p=0.7)
    own, other = np.arange(B), np.roll(np.arange(B), B // 2)
    assert (found["partner"] == other).all()
    assert (found["label"] == own).all()
    lam = found["lam"]
    assert lam.min() >= 0.5
    pixels = found["image"].mean((1, 2, 3))
    np.testing.assert_allclose(pixels, lam * own + (1 - lam) * other, rtol=1e-4)


@pytest.mark.parametrize(("alpha", "p"), [(0.2, 1.0), (1.0, 0.25), (3.0, 1.0)])
def test_lam_is_the_larger_part_of_a_beta(alpha, p):
    lam = mixed("mixup", batch(size=1), alpha=alpha, p=p)["lam"]
    beta = stats.beta(alpha, alpha)
    for x in np.linspace(0.55, 0.95, 9):
        law = p * (beta.cdf(x) - beta.cdf(1 - x))
        assert abs((lam <= x).mean() - law) < 4.5 * np.sqrt(law * (1 - law) / B)


def test_cutmix_pastes_a_box_of_the_drawn_size():
    found = mixed("cutmix", batch(64, size=20))
    own = np.arange(64)[:, None, None]
    pasted = found["image"][..., 0] != own
    sides = []
    for where in pasted:
        rows, columns = where.any(1), where.any(0)
        assert (where == rows[:, None] & columns[None]).all()
        assert (np.diff(np.flatnonzero(rows)) == 1).all()
        sides.append((rows.sum(), columns.sum()))
    assert len(set(sides)) > 20
    assert np.array(sides).prod(1).max() <= 200  # never more than half


@pytest.mark.parametrize("name", MIXES)
def test_it_goes_by_seed_and_position_alone(name):
    given = batch(16)
    whole = mixed(name, given, p=0.9)
    again = mixed(name, given, p=0.9)
    small.close(whole, again, 0)
    later = mixed(name, {**given, "position": given["position"] + 16}, p=0.9)
    other = mixed(name, given, seed=1, p=0.9)
    for changed in (later, other):
        assert (changed["lam"] != whole["lam"]).sum() > 8
    # the same places in another batch take the same part
    some = mixed(name, {k: v[4:8] for k, v in given.items()}, p=0.9)
    small.close(some["lam"], whole["lam"][4:8], 0)


# --- the loss -----------------------------------------------------------------


def of_lam(loss, lam):
    """(value, gradients, statistics) of a batch with this lam; None: not mixed."""
    rng = np.random.default_rng(0)
    e, w = rng.normal(size=(8, 4)) * 20, rng.normal(size=(1024, 4))
    y, other = rng.integers(0, 50, (2, 8)).astype(np.int32)
    given = {"label": y, "position": np.arange(8, dtype=np.uint32)}
    if lam is not None:
        given |= {"partner": other, "lam": lam}
    margin = loss.init_margin(dim=4)

    def share(e, w):
        key = jax.random.key(1)
        out, state, _ = loss.share({"kernel": w}, margin, e, given, key=key, axis=None)
        return out, state

    value, grads = jax.jit(jax.value_and_grad(share, (0, 1), has_aux=True))(e, w)
    return value, grads


def by_hand(loss, lam):
    """lam L(y1) + (1 - lam) L(y2), an image at a time."""
    rng = np.random.default_rng(0)
    e, w = rng.normal(size=(8, 4)) * 20, rng.normal(size=(1024, 4))
    y, other = rng.integers(0, 50, (2, 8)).astype(np.int32)
    one = jax.jit(
        lambda e, y: loss.share(
            {"kernel": jnp.asarray(w)},
            loss.init_margin(dim=4),
            e[None],
            {"label": y[None], "position": jnp.zeros(1, jnp.uint32)},
            key=jax.random.key(1),
            axis=None,
        )[0]
    )
    terms = [
        p * one(x, a) + (1 - p) * one(x, b)
        for x, a, b, p in zip(e, y, other, lam, strict=True)
    ]
    return np.mean(terms)


LINES = ["softmax", "arcface", "magface", "mv_softmax"]
LOSSES = [softmax.Loss(50, line, 8.0) for line in LINES]
LOSSES += [softmax.Loss(50, "cosface", 8.0, centers=1, smoothing=0.1, sets=(20, 30))]
LOSSES += [partial_fc.Loss(50, "cosface", 8.0, rate=1.0)]


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_it_is_the_weighted_sum_over_both_labels(loss):
    lam = np.random.default_rng(1).uniform(0.5, 1, 8)
    with jax.enable_x64(True):
        (value, _), _ = of_lam(loss, lam)
        np.testing.assert_allclose(value, by_hand(loss, lam), rtol=0, atol=1e-12)


@pytest.mark.parametrize("line", ["arcface", "adaface", "curricularface"])
def test_all_of_the_own_image_is_the_plain_loss(line):
    with jax.enable_x64(True):
        loss = softmax.Loss(50, line, 8.0)
        small.close(of_lam(loss, np.ones(8)), of_lam(loss, None))


# --- the wiring ---------------------------------------------------------------


def recipe(mix="mixup(alpha=0.4)", devices=8, **changed):
    c = tiny.recipe()
    c.data.mix, c.mesh.devices = mix, devices
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changed.items()})
    return c


def first_batches(c, start, count):
    run = assembly.build(c)
    loader = run.loader(start)
    found = run.batches(loader)
    out = [jax.device_get(next(found)) for _ in range(count)]
    loader.close()
    return out


@pytest.mark.parametrize("mix", ["mixup(alpha=0.4)", "cutmix(p=1.0)"])
def test_batches_are_the_same_on_one_device_and_eight_and_resumed(mix):
    eight, one = (first_batches(recipe(mix, n), 0, 3) for n in (8, 1))
    small.close(eight, one, 1e-6)
    small.close(first_batches(recipe(mix), 2, 1)[0], eight[2], 0)
    plain = first_batches(recipe(""), 0, 3)
    for a, b in zip(eight, plain, strict=True):
        assert (a["label"] == b["label"]).all()
        own = a["lam"] == 1
        small.close(a["image"][own], b["image"][own], 1e-6)
        assert not np.allclose(a["image"][~own], b["image"][~own])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["softmax(scale=16.0)", "partial_fc(scale=16.0)"])
def test_training_is_the_same_on_one_device_and_eight(name):
    def losses(devices):
        built = assembly.build(recipe(devices=devices, loss__name=name))
        loader, state, out = built.loader(0), built.first_state(), []
        batches = built.batches(loader)
        for _ in range(2):
            state, metrics = built.step(state, next(batches))
            out.append((metrics["loss"], metrics["lam"]))
        loader.close()
        return jax.device_get(out)

    small.close(losses(1), losses(8), 1e-4)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"loss__name": "metric.triplet()", "loss__margin": ""}, "wants one person"),
        ({"loss__name": "binary.uniface()", "loss__margin": ""}, "wants one person"),
        ({"loss__name": "memory"}, "wants one person in each image"),
        ({"loss__also": "center(weight=0.1)"}, "'center.weight=0.1.' wants one person"),
        ({"data__mix": "mixup(alpha=0)"}, "wanted alpha above 0"),
        ({"data__mix": "cutmix(p=2)"}, "p from 0 to"),
        ({"data__mix": "cutmix(beta=2)"}, "cutmix takes"),
    ],
)
def test_what_cannot_be_mixed_is_refused(changed, words):
    with pytest.raises(ValueError, match=words):
        assembly.build(recipe(**changed))


def test_an_unknown_mix_is_told():
    with pytest.raises(KeyError, match="did you mean 'cutmix'"):
        assembly.build(recipe("cutmx"))
