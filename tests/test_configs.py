"""Every recipe builds, takes two steps and is evaluated."""

import importlib.util
import json
import pathlib

import pytest
from PIL import Image

from jaxface import assembly, config, experiment
from jaxface.data.sources import synthetic

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.py"))


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """A folder of forty rendered people, five pictures each."""
    root = tmp_path_factory.mktemp("faces")
    source = synthetic.Source(identities=40, per_identity=5, size=32)
    for i in range(len(source)):
        pixels, label = source.read(i)
        (root / f"{label:03}").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(root / f"{label:03}" / f"{i}.png")
    return root


def load(name):
    module_spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


def train(name, workdir, given):
    """Train a recipe for two steps."""
    c = config.tiny(load(name).get_config(*given))
    c.mesh.devices = 1
    c.data.max_bad = 0.0
    # As many pairs as so few people have.
    for key, line in c.eval.sets.items():
        c.eval.sets[key] = line.replace("count=1000, folds=5", "count=12, folds=2")
    experiment.train(assembly.build(c), workdir)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_and_is_evaluated(name, faces, tmp_path):
    takes_faces = "faces=PATH" in load(name).get_config.__doc__
    given = (f"faces={faces}",) if takes_faces else ()
    if name == "finetune":
        train("real_small", tmp_path / "before", given)
        given = (f"{given[0]},init={tmp_path / 'before'},head=grow",)
    train(name, tmp_path, given)
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[0])["step"] == 2
    assert any(key.endswith("/accuracy") for key in json.loads(rows[-1]))


def test_fine_tuning_augments_and_keeps_what_the_network_was_made_for():
    line = "decode('bgr')|center_crop(100)|resize(96)|normalize(mean=(1, 2, 3), std=4)"
    assert load("finetune").augmented(line) == (
        "decode('bgr')|random_shift(4)|center_crop(100)|resize(96)"
        "|flip|color_jitter(0.2, 0.2, 0.2)|normalize(mean=(1, 2, 3), std=4)"
    )
    with pytest.raises(ValueError, match=r"finetune starts from a workdir.*:init="):
        load("finetune").get_config("faces=x")
