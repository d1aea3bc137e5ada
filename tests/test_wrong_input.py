"""What a user gets wrong is told in one line: what was got, wanted, and to do."""

import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from jaxface import assembly, experiment
from jaxface.train import loop

ROOT = pathlib.Path(__file__).parent.parent


def changed(**values):
    c = tiny.recipe()
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in values.items()})
    return c


@pytest.mark.parametrize(
    ("key", "value", "error", "words"),
    [
        ("model__name", "iresnett", KeyError, "did you mean 'iresnet'"),
        ("model__name", "iresnet.r5", KeyError, r"did you mean 'iresnet.r50'"),
        ("model__name", "iresnet(depth=5)", ValueError, r"iresnet takes \(stages"),
        ("loss__margin", "arcfce", KeyError, "did you mean 'arcface'"),
        ("loss__margin", "arcface(n=1)", ValueError, "arcface takes"),
        ("loss__name", "softmx", KeyError, "did you mean 'softmax'"),
        ("loss__name", "softmax(scale=-1)", ValueError, "wanted a positive number"),
        ("loss__name", "binary", ValueError, "takes no margin"),
        ("data__ops", "decode|flp|normalize", KeyError, "did you mean 'flip'"),
        ("data__ops", "decode|flip", ValueError, "end the line with normalize"),
        ("data__ops", "decode('bgr')|normalize", ValueError, "the model wants rgb"),
        ("data__source", "foldr(path='x')", KeyError, "did you mean 'folder'"),
        ("data__source", "folder(path='none')", FileNotFoundError, "none"),
        ("data__source", "synthetic(people=3)", ValueError, r"takes \(identities"),
        ("optim__name", "sgdd", KeyError, "did you mean 'sgd'"),
        ("optim__name", "lmab", KeyError, "did you mean 'lamb'"),
        ("optim__name", "muon(b3=1)", ValueError, r"muon takes \(lr, beta"),
        ("train__microbatches", 4, ValueError, "the 2 images of each.*multiple of 32"),
        ("optim__schedule", "cosin", KeyError, "did you mean 'cosine'"),
        ("train__length", "3 weeks", ValueError, "wanted a number and one of steps"),
        ("data__batch_size", 12, ValueError, "8 devices cannot share.*multiple of 8"),
        ("eval__batch_size", 9, ValueError, "8 devices cannot share.*multiple of 8"),
        ("mesh__devices", 9, ValueError, "this machine has 8"),
        ("checkpoint__every", "3 steps", ValueError, "needs checkpoints that were"),
        ("checkpoint__best", "unsen/accuracy", KeyError, "did you mean 'unseen'"),
    ],
)
def test_a_wrong_config_is_refused_before_training(key, value, error, words):
    with pytest.raises(error, match=words):
        assembly.build(changed(**{key: value}))


def test_losses_over_pairs_refuse_parts_of_a_batch():
    line = {"loss__name": "metric.triplet()", "loss__margin": ""}
    with pytest.raises(ValueError, match="microbatches is 2, and a loss over pairs"):
        assembly.build(changed(train__microbatches=2, **line))


@pytest.mark.parametrize("name", ["lamb", "muon"])
def test_pmap_refuses_optimizers_that_look_at_whole_arrays(name):
    with pytest.raises(ValueError, match=f"element-wise optimizer, got '{name}'"):
        assembly.build(changed(mesh__how="pmap", optim__name=name))


def save_faces(root, counts):
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)):
        assembly.build(changed(data__source=f"folder(path={str(tmp_path)!r})"))


def test_an_identity_with_one_image_is_named(tmp_path):
    save_faces(tmp_path, {"ann": 3, "bob": 1})
    with pytest.raises(ValueError, match=r"bob.*min_images=1"):
        assembly.build(changed(data__source=f"folder(path={str(tmp_path)!r})"))


def test_unreadable_images_are_counted_and_too_many_stop_the_run(tmp_path):
    save_faces(tmp_path / "faces", {"ann": 9, "bob": 9})
    (tmp_path / "faces" / "ann" / "3.png").write_bytes(b"not an image")
    c = changed(data__source=f"folder(path={str(tmp_path / 'faces')!r})")
    c.train.length, c.data.max_bad, c.mesh.devices = "4 steps", 0.1, 1
    experiment.train(assembly.build(c), tmp_path / "run")
    assert "ann/3.png" in (tmp_path / "run" / "bad_images.0.json").read_text()
    c.data.max_bad = 0.01
    with pytest.raises(ValueError, match=r"1 of 18 images.*ann/3.png.*raise max_bad"):
        experiment.train(assembly.build(c), tmp_path / "again")


def test_a_missing_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no run in .*config.json is missing"):
        experiment.saved_config(tmp_path)


def test_a_workdir_of_another_run_is_refused(tmp_path):
    c = changed(train__length="2 steps", mesh__devices=1)
    experiment.train(assembly.build(c), tmp_path)
    c.optim.lr = 0.5
    with pytest.raises(ValueError, match=r"another config.*optim.lr: 0.002 there, 0.5"):
        experiment.train(assembly.build(c), tmp_path)
    c = changed(model__name="iresnet(stages=(1,), widths=(8,), dim=8)")
    with pytest.raises(ValueError, match=r"is of another model, \d+ arrays differ"):
        experiment.evaluate(assembly.build(c), tmp_path, step="latest")


def test_a_workdir_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        experiment.train(assembly.build(tiny.recipe()), tmp_path / "file" / "run")


def test_a_lost_loss_names_step_batch_and_last_checkpoint(tmp_path, monkeypatch):
    run = loop.run

    def break_at_7(state, *, step, **kwargs):
        def broken(state, batch):
            state, metrics = step(state, batch)
            lost = metrics | {"loss": jax.numpy.float32("nan")}
            return state, lost if int(state.step) == 7 else metrics

        return run(state, step=broken, **kwargs)

    monkeypatch.setattr(loop, "run", break_at_7)
    words = r"loss is nan at step 7: .*positions 96 to 111 .*step 5 in .*checkpoints"
    with pytest.raises(FloatingPointError, match=words):
        experiment.train(assembly.build(changed(mesh__devices=1)), tmp_path)


def test_the_command_line_says_it_in_one_line(tmp_path):
    for flag, words in (
        ("--config.optm.lr=1", 'error: Did you mean "optim" instead of "optm"'),
        ("--config.model.name=vgg", "error: model 'vgg' unknown"),
        ("--workdir=ftp://faces/run", "wanted a folder, or gs://bucket/folder"),
    ):
        line = ["launch/train.py", "--config=tests/tiny.py", f"--workdir={tmp_path}"]
        done = subprocess.run(
            [sys.executable, *line, flag],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert words in done.stderr
