"""A file imports its own floor or a lower one, and TensorFlow stays in its rooms."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / "jaxface").rglob("*.py"))

# The longest match decides; see the design: 0 has no JAX arrays, 4 wires all.
FLOORS = {
    "types": 0,
    "atomic": 0,
    "places": 0,
    "spec": 0,
    "config": 0,
    "cli": 0,
    "foreign": 0,
    "align": 0,
    "manifest": 0,
    "models": 1,
    "losses": 1,
    "parallel": 1,
    "parts": 1,
    "processes": 1,
    "collectives": 0,
    "hardware": 0,
    "page": 1,
    "lora": 1,
    "subcenters": 1,
    "eval.curves": 1,
    "eval.decisions": 1,
    "eval.delong": 1,
    "eval.dyads": 1,
    "eval.folds": 1,
    "eval.histogram": 1,
    "eval.intervals": 1,
    "eval.bootstrap": 1,
    "eval.pooling": 1,
    "eval.ranking": 1,
    "eval.rejection": 1,
    "eval.significance": 1,
    "train": 2,
    "checkpoint": 2,
    "embed": 2,
    "eval": 3,
    "convert": 3,
    "data": 3,
    "describe": 3,
    "detect": 3,
    "prepare": 3,
    "card": 3,
    "curate": 3,
    "examine": 3,
    "assembly": 4,
    "evaluation": 4,
    "checks": 4,
    "transfer": 4,
    "teacher": 4,
    "experiment": 4,
    "plan": 4,
    "overlaps": 4,
    "rehearsal": 4,
}
# `data` is a floor of its own: it may use 0 and itself only.
LIMITS = {"data": 0}
TENSORFLOW = {"data/service.py", "data/tfdata.py", "data/sources/tfds.py"}
TENSORFLOW_INSIDE = {
    "data/builder.py",
    "data/ops.py",
    "data/prepared.py",
    "export.py",
}


def room(module):
    """The entry of FLOORS a module belongs to, or None for the package itself."""
    parts = module.split(".")
    for n in range(len(parts), 0, -1):
        if ".".join(parts[:n]) in FLOORS:
            return ".".join(parts[:n])
    return None


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def name_of(path):
    return ".".join(path.relative_to(ROOT / "jaxface").with_suffix("").parts)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_imports_a_higher_floor(path):
    name = name_of(path).removesuffix(".__init__")
    if name == "__init__":
        return
    home = room(name)
    assert home, f"{name} has no floor: add it to the table"
    for imported in imports(ast.parse(path.read_text())):
        if not imported.startswith("jaxface."):
            continue
        other = room(imported.removeprefix("jaxface."))
        if other is None or other == home:
            continue
        limit = LIMITS.get(home, FLOORS[home])
        assert FLOORS[other] <= limit, f"{name} imports {imported}"
        packages = {"models", "losses", "train", "eval", "data"}
        ends = {other.split(".")[0], home.split(".")[0]}
        sideways = len(ends) == 2 and ends <= packages
        same_floor = FLOORS[other] == FLOORS[home]
        assert not (sideways and same_floor), f"{name} imports {imported} sideways"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_tensorflow_is_named_only_where_it_lives(path):
    relative = path.relative_to(ROOT / "jaxface").as_posix()
    if relative in TENSORFLOW:
        return
    tree = ast.parse(path.read_text())
    scope = tree.body if relative in TENSORFLOW_INSIDE else [tree]
    for statement in scope:
        if relative in TENSORFLOW_INSIDE and not isinstance(
            statement, ast.Import | ast.ImportFrom
        ):
            continue
        for imported in imports(statement):
            assert not imported.startswith(("tensorflow", "keras")), relative


def test_the_core_runs_without_tensorflow_in_memory():
    code = (
        "import sys, jaxface.experiment, jaxface.models.iresnet, jaxface.eval.report\n"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_importing_the_package_imports_no_array_library():
    code = "import sys, jaxface; assert not {'jax', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
