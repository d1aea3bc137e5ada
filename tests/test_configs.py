"""Every recipe builds, takes two steps and is evaluated."""

import importlib.util
import inspect
import json
import pathlib

import pytest
from PIL import Image

from jaxface import assembly, config, experiment
from jaxface.data.sources import synthetic

RECIPES = sorted((pathlib.Path(__file__).parent.parent / "configs").glob("*.py"))


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


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_trains_and_is_evaluated(path, faces, tmp_path):
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    takes_faces = inspect.signature(module.get_config).parameters
    given = (f"faces={faces}",) if takes_faces else ()
    c = config.tiny(module.get_config(*given))
    c.mesh.devices = 1
    c.data.max_bad = 0.0
    # As many pairs as so few people have.
    for name, line in c.eval.sets.items():
        c.eval.sets[name] = line.replace("count=1000, folds=5", "count=12, folds=2")
    experiment.train(assembly.build(c), tmp_path)
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[0])["step"] == 2
    assert any(key.endswith("/accuracy") for key in json.loads(rows[-1]))
