"""The backbone of CONTRIBUTING.md, in a file of its own, keeps the contract."""

import importlib
import re

import pytest
import test_models
from conftest import ROOT

from jaxface import models, spec


@pytest.fixture
def plain(tmp_path, monkeypatch):
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "plain.py").write_text(code)
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    module = importlib.import_module("jaxface.models.plain")
    monkeypatch.setitem(test_models.FAMILIES, "plain", module)
    for name, make in spec.public(module).items():
        monkeypatch.setitem(test_models.VARIANTS, f"plain.{name}", make)
    return module


def test_one_file_is_a_backbone(plain):
    call = spec.parse_one("plain(dim=128)")
    assert spec.module(models, call, kind="model", default="Model") is plain.Model
    test_models.test_a_family_has_all_that_the_contract_asks_for("plain")
    test_models.test_embedding_and_parameters_are_float32("plain.Model", "bfloat16")
    test_models.test_evaluation_repeats_and_rows_are_independent("plain")
    test_models.test_small_ones_train_on_eight_devices("plain")
