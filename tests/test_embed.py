"""The network that evaluators are handed: one function, whichever way it is asked."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxface import assembly, evaluation, types
from jaxface.data import ops


@functools.cache
def built(devices=8, how="flip_sum", model=""):
    c = tiny.recipe()
    c.mesh.devices, c.eval.embed = devices, how
    c.model.name = model or c.model.name
    return assembly.build(c)


@functools.cache
def network(seed=0, **given):
    """A network with drawn weights, and the training images."""
    run = built(**given)
    whole = jax.sharding.NamedSharding(run.mesh, jax.sharding.PartitionSpec())
    init = jax.jit(run.model.init, out_shardings=whole)
    variables = init(jax.random.key(seed), jnp.zeros((8, 16, 16, 3)))
    return evaluation.embedder(run, variables), run.source


asked = jax.jit(lambda features, images: features(images))


def stacked(net, source):
    """Every image of a source as the network eats it."""
    return np.concatenate([np.asarray(x)[mask] for x, mask in net.inputs(source)])


def test_features_are_the_embeddings_and_one_image_will_do():
    net, source = network()
    assert isinstance(net, types.Network)
    assert not isinstance(lambda source: source, types.Network)
    e, images = net(source), stacked(net, source)
    assert images.shape == (24, 16, 16, 3)
    np.testing.assert_allclose(asked(net.features, images), e, atol=1e-5)
    np.testing.assert_allclose(asked(net.features, images[:1]), e[:1], atol=1e-5)
    first = next(net.inputs(source))[0]
    np.testing.assert_allclose(net.vectors(first), e[: len(first)], atol=1e-5)


def test_flip_sum_is_the_sum_and_keeps_its_length():
    net, source = network()
    plain = network(how="output")[0]
    images = stacked(net, source)
    mirrored = images[:, :, ::-1]
    want = np.asarray(asked(plain.features, images)) + np.asarray(
        asked(plain.features, mirrored)
    )
    np.testing.assert_allclose(net(source), want, atol=1e-5)
    assert np.std(np.linalg.norm(want, axis=1)) > 1e-3


def test_features_can_be_differentiated_as_an_argument_of_one_compiled_function():
    slope = jax.jit(jax.grad(lambda x, features: jnp.sum(features(x)[:, 0])))
    image = np.random.default_rng(0).normal(size=(1, 16, 16, 3)).astype(np.float32)
    for seed in (0, 1):
        features = network(seed)[0].features
        way = np.asarray(slope(image, features))
        step = 1e-2 / np.abs(way).max() * way
        up, down = asked(features, image + step), asked(features, image - step)
        rise = np.sum(step * way)
        assert float((up - down)[0, 0]) / 2 == pytest.approx(rise, rel=0.05)
    assert slope._cache_size() == 1  # other weights, the same program


@pytest.mark.parametrize(
    "line", ["blur(1, 1)", "jpeg(20, 20)", "cutout(5)", "random_shift(2)|rotate(9)"]
)
def test_degraded_images_are_those_of_the_ops(line):
    net, source = network()
    by_hand = ops.parse(f"decode|{line}|normalize")
    numbers = by_hand.numbers(np.arange(len(source)), seed=0)
    images = [by_hand.numpy(source.read(i)[0], z) for i, z in enumerate(numbers)]
    found = net.degraded(line)(source)
    np.testing.assert_allclose(found, asked(net.features, np.stack(images)), atol=1e-5)
    assert np.abs(found - net(source)).max() > 1e-3
    np.testing.assert_array_equal(found, net.degraded(line)(source))


@pytest.mark.parametrize("line", ["resize(8)", "bgr", "normalize", "center_crop(16)"])
def test_degradations_that_the_network_could_not_take_are_refused(line):
    net, source = network()
    with pytest.raises(ValueError, match="must leave size, scale and channels"):
        net.degraded(line)(source)
    with pytest.raises(KeyError, match="did you mean 'blur'"):
        net.degraded("blurr(1, 1)")(source)


def test_degradations_come_before_the_mirror_and_the_scale():
    base = ops.parse("decode|resize(16)|bgr|normalize")
    got = base.inserted(ops.parse("decode|jpeg(50, 50)"))
    want = ops.parse("decode|resize(16)|jpeg(50, 50)|bgr|normalize")
    record = np.random.default_rng(0).integers(0, 255, (20, 20, 3), np.uint8)
    z = want.numbers(np.zeros(1), seed=0)[0]
    np.testing.assert_array_equal(got.numpy(record, z), want.numpy(record, z))


def test_dropout_alone_is_on_where_numbers_are_given():
    net, source = network(how="output")
    images = next(net.inputs(source))[0]
    assert net.drops(images)
    assert net.drops(images)  # also where the shapes are known already
    numbers = np.arange(len(images))
    a, b = net.vectors(images, numbers), net.vectors(images, numbers + 1)
    np.testing.assert_array_equal(a, net.vectors(images, numbers))
    assert np.abs(a - b).max() > 1e-3
    # after the head E's dropout come a dense layer and an affine map, so that the
    # mean over what is dropped is the embedding itself
    mean = np.mean([net.vectors(images, numbers + 99 * k) for k in range(300)], axis=0)
    assert np.abs(mean - net.vectors(images)).max() < 0.3 * np.abs(a - b).max()


def test_a_network_without_dropout_says_so():
    still = "iresnet(stages=(1,), widths=(4,), dim=8, dropout=0.0)"
    net, source = network(how="output", model=still)
    images = next(net.inputs(source))[0]
    assert not net.drops(images)
    numbers = np.arange(len(images))
    np.testing.assert_array_equal(net.vectors(images, numbers), net.vectors(images))


@pytest.mark.parametrize(
    "line",
    ["decode", "decode|normalize", "decode|normalize((120., 110., 9.), (60., 1., 2.))"],
)
def test_the_span_is_what_black_and_white_become(line):
    pipeline = ops.parse(line)
    for level, want in zip((0, 255), pipeline.span, strict=True):
        got = pipeline.numpy(np.full((1, 1, 3), level, np.uint8), np.zeros(0))
        np.testing.assert_array_equal(got[0, 0], want)
    low, high = network()[0].span
    assert (low[0], high[2]) == (-1, 1)


def test_one_device_or_eight():
    a, b = (network(devices=n) for n in (1, 8))
    np.testing.assert_allclose(a[0](a[1]), b[0](b[1]), atol=1e-5)
