"""The seed's CNN is the Keras model: same weights, same numbers, same training.

Keras sees channels last as we do, so weights pass over as they are.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxface import convert, foreign
from jaxface.models import seed_cnn
from jaxface.train import optim

LAYERS = ("conv0", "conv1", "conv2", "dense", "logit")


def keras_model(size, dtype):
    """The seed's model as it is written in Keras, up to the sigmoid."""
    import keras

    pieces = [keras.Input((size, size, 3), dtype=dtype)]
    for features in (32, 64, 128):
        pieces.append(keras.layers.Conv2D(features, 3, activation="relu", dtype=dtype))
        pieces.append(keras.layers.MaxPooling2D(2, dtype=dtype))
    pieces.append(keras.layers.Flatten(dtype=dtype))
    pieces.append(keras.layers.Dense(128, activation="relu", dtype=dtype))
    pieces.append(keras.layers.Dense(1, dtype=dtype))
    return keras.Sequential(pieces)


def give_weights(model, params):
    arrays = [params[name][part] for name in LAYERS for part in ("kernel", "bias")]
    model.set_weights([np.asarray(a) for a in arrays])


def bce(logit, label):
    return optax.sigmoid_binary_cross_entropy(logit[:, 0], label).mean()


def batch(size, dtype, n=4):
    rng = np.random.default_rng(0)
    return rng.uniform(size=(n, size, size, 3)).astype(dtype), np.arange(n) % 2


def test_embedding_is_the_layer_under_the_logit():
    x, _ = batch(24, np.float32)
    whole, part = seed_cnn.Model(size=24), seed_cnn.embedding(size=24)
    variables = whole.init(jax.random.key(0), x)
    params = dict(variables["params"])
    last = params.pop("logit")
    y = part.apply({"params": params}, x)
    assert y.shape == (4, 128)
    want = y @ last["kernel"] + last["bias"].reshape(1, 1)
    np.testing.assert_allclose(whole.apply(variables, x), want, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_keras_file_converts_by_the_order_of_its_layers(tmp_path):
    theirs = keras_model(24, "float32")
    theirs.save(tmp_path / "seed.keras")
    found = convert.from_tensors(
        "seed_cnn(size=24)",
        foreign.read(tmp_path / "seed.keras"),
        channels_last=foreign.flattens_rows(tmp_path / "seed.keras"),
    )
    assert (found.how, found.folded) == ("order", False)
    x, _ = batch(24, np.float32)
    got = seed_cnn.Model(size=24).apply({"params": found.variables["params"]}, x)
    np.testing.assert_allclose(got, theirs(x).numpy(), rtol=1e-5, atol=1e-6)


def test_first_weights_are_keras_defaults():
    """Glorot uniform: within sqrt(6 / (fan_in + fan_out)), and zero biases."""
    x, _ = batch(24, np.float32)
    params = seed_cnn.Model().init(jax.random.key(0), x)["params"]
    kernel = params["conv2"]["kernel"]
    bound = np.sqrt(6 / (9 * (64 + 128)))
    assert 0.99 * bound < np.abs(kernel).max() <= bound
    assert not any(np.any(p["bias"]) for p in params.values())


@pytest.mark.slow  # TensorFlow takes 7 s to import
def test_forward_and_loss_agree_with_keras_at_full_size():
    import keras

    x, label = batch(224, np.float32)
    model = seed_cnn.Model()
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]
    theirs = keras_model(224, "float32")
    give_weights(theirs, params)
    assert theirs.count_params() == 11_169_089
    logit = np.asarray(theirs(x))
    got = jax.jit(model.apply)({"params": params}, x)
    np.testing.assert_allclose(got, logit, atol=1e-5)
    want = keras.losses.BinaryCrossentropy(from_logits=True)(label[:, None], logit)
    assert float(bce(got, label)) == pytest.approx(float(want), abs=1e-5)


@pytest.mark.slow
def test_three_adam_steps_agree_with_keras_in_float64():
    """At 48 pixels: the same layers, 2 MB of weights instead of 90.

    Keras keeps the rate in float32 and takes powers of float32 betas even for
    float64 weights; numbers that float32 holds exactly make that no matter.
    """
    import keras
    import tensorflow as tf

    x, label = batch(48, np.float64)
    theirs = keras_model(48, "float64")
    lr, b1, b2 = (float(np.float32(a)) for a in (1e-3, 0.9, 0.999))
    adam = keras.optimizers.Adam(lr, b1, b2)
    assert adam.epsilon == 1e-7
    with jax.enable_x64(True):
        model = seed_cnn.Model(dtype="float64", size=48)
        params = jax.jit(model.init)(jax.random.key(0), x)["params"]
        give_weights(theirs, params)
        tx = optim.keras_adam(lr=optax.constant_schedule(lr), b1=b1, b2=b2)
        state = tx.init(params)

        def loss(p):
            return bce(model.apply({"params": p}, jnp.asarray(x)), label)

        @jax.jit
        def step(params, state):
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        for _ in range(3):
            params, state = step(params, state)
            with tf.GradientTape() as tape:
                logit, y = theirs(x)[:, 0], tf.constant(label, tf.float64)
                each = tf.nn.sigmoid_cross_entropy_with_logits(y, logit)
                mean = tf.reduce_mean(each)
            weights = theirs.trainable_variables
            adam.apply(tape.gradient(mean, weights), weights)
    ours = [params[name][part] for name in LAYERS for part in ("kernel", "bias")]
    for a, b in zip(ours, theirs.get_weights(), strict=True):
        assert a.dtype == b.dtype == np.float64
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-8)
