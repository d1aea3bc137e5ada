"""Every recipe builds, takes two steps and is evaluated."""

import functools
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


@pytest.fixture(scope="module")
def trained(faces, tmp_path_factory):
    """A recipe's name -> its workdir after two steps; each is trained once."""

    @functools.cache
    def train(name):
        workdir, get_config = tmp_path_factory.mktemp(name), load(name).get_config
        given = []
        if "faces=PATH" in get_config.__doc__:
            given.append(f"faces={faces}")
        if name == "finetune":
            given.append(f"init={train('real_small')},head=grow")
        c = config.tiny(get_config(*([",".join(given)] if given else [])))
        c.mesh.devices = 1
        c.data.max_bad = 0.0
        # As many pairs as so few people have.
        for key, line in c.eval.sets.items():
            c.eval.sets[key] = line.replace("count=1000, folds=5", "count=12, folds=2")
        experiment.train(assembly.build(c), workdir)
        return workdir

    return train


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_and_is_evaluated(name, trained):
    rows = (trained(name) / "metrics.jsonl").read_text().splitlines()
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
