"""Checkpoints: whole or absent, best and latest kept, any mesh, clear refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import checkpoint, config, parallel


def state(value=0.0):
    return {"params": {"w": jnp.full((3, 2), value)}, "head": {"k": jnp.arange(16.0)}}


def like(tree, n):
    mesh = parallel.make_mesh(devices=jax.devices()[:n])
    where = parallel.shardings(parallel.state_specs(tree, axis="data"), mesh)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, where
    )


def fill(directory, accuracies, **kwargs):
    manager = checkpoint.open_manager(directory, best="lfw/accuracy", **kwargs)
    text = config.dumps(config.base())
    for step, accuracy in enumerate(accuracies, 1):
        checkpoint.save(
            manager,
            step,
            state(step),
            position=step * 8,
            shape=(8, 8, 3),
            config_text=text,
            metrics=None if accuracy is None else {"lfw/accuracy": accuracy},
        )
    manager.wait_until_finished()
    return manager


def test_latest_and_best_are_kept(tmp_path):
    with fill(tmp_path, [0.5, 0.9, 0.6, 0.7, None], keep=2) as manager:
        assert manager.all_steps() == [2, 4, 5]
        assert checkpoint.find(manager, "best") == 2
        assert checkpoint.find(manager, "latest") == 5


def test_what_was_saved_on_8_devices_restores_on_2(tmp_path):
    placed = jax.device_put(
        state(7.0), jax.tree.map(lambda x: x.sharding, like(state(), 8))
    )
    manager = checkpoint.open_manager(tmp_path)
    checkpoint.save(manager, 1, placed, position=8, shape=(8, 8, 3), config_text="{}")
    manager.wait_until_finished()
    back = checkpoint.restore(manager, 1, like=like(state(), 2))
    assert back["head"]["k"].sharding.mesh.size == 2
    jax.tree.map(np.testing.assert_array_equal, back, state(7.0))
    assert checkpoint.about(manager, 1)["position"] == 8


def test_donating_after_an_asynchronous_save_changes_nothing(tmp_path):
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    manager = checkpoint.open_manager(tmp_path)
    current = jax.tree.map(
        lambda x: jnp.tile(x, (4096,) + (1,) * (x.ndim - 1)), state()
    )
    kept = jax.device_get(current)
    checkpoint.save(manager, 1, current, position=0, shape=(8, 8, 3), config_text="{}")
    for _ in range(20):
        current = step(current)
    manager.wait_until_finished()
    back = checkpoint.restore(manager, 1, like=like(kept, 1))
    jax.tree.map(np.testing.assert_array_equal, back, kept)


def test_another_models_checkpoint_is_refused_by_name(tmp_path):
    manager = fill(tmp_path, [0.5])
    other = state() | {"params": {"w": jnp.zeros((4, 2)), "b": jnp.zeros(1)}}
    with pytest.raises(ValueError, match=r"another model, 2 arrays differ.*params/b"):
        checkpoint.restore(manager, 1, like=like(other, 1))


def test_missing_checkpoints_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="train there first"):
        checkpoint.open_manager(tmp_path / "none", create=False)
    with pytest.raises(FileNotFoundError, match="train first"):
        checkpoint.find(checkpoint.open_manager(tmp_path / "empty"), "latest")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint '3'.*best, 1"):
        checkpoint.find(fill(tmp_path / "one", [0.5]), "3")


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    manager = fill(tmp_path, [0.5])
    monkeypatch.setattr(config, "FORMAT", 0)
    with pytest.raises(ValueError, match="has format 1; this version reads up to 0"):
        checkpoint.about(manager, 1)
