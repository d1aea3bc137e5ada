"""What goes together trains as the plain run, and the table of it is true."""

import pathlib
import re

import combinations
import jax
import numpy as np
import pytest

from jaxface import assembly

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "combinations.md"
RUNS = combinations.runs()


def test_the_page_is_what_the_code_says():
    assert PAGE.read_text() == combinations.text(), (
        "python tests/combinations.py > docs/combinations.md"
    )


def test_every_pair_is_run_or_refused():
    names = combinations.VALUES
    for a in names:
        for b in names:
            if combinations.SETTING_OF[a] != combinations.SETTING_OF[b]:
                assert combinations.cell(a, b)


@pytest.mark.slow
def test_all_combinations_are_built_or_refused():
    for chosen in combinations.every():
        why = combinations.refusal(chosen)
        if why is None:
            assembly.build(combinations.recipe(chosen))
        else:
            with pytest.raises(ValueError, match=re.escape(why)):
                assembly.build(combinations.recipe(chosen))


def trained(chosen, count=3):
    """Return (losses, the state) after a few steps."""
    run = assembly.build(combinations.recipe(chosen))
    state, losses, loader = run.first_state(), [], run.loader(0)
    for _, batch in zip(range(count), run.batches(loader), strict=False):
        state, metrics = run.step(state, batch)
        losses.append(float(metrics["loss"]))
    loader.close()
    return losses, jax.device_get(state)


@pytest.fixture(scope="module")
def plain():
    return trained(("EMA",))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(RUNS)))
def test_a_combination_trains_as_the_plain_run(plain, number):
    losses, state = trained(RUNS[number])
    bound = 0.02 if combinations.rounded(RUNS[number]) else 1e-4
    np.testing.assert_allclose(losses, plain[0], rtol=bound)
    assert abs(losses[-1] - losses[0]) > 0.02 * losses[0]
    for name in ("params", "head") + ("ema",) * ("EMA" in RUNS[number]):
        pairs = jax.tree.map(
            lambda a, b: (np.sum((a - b) ** 2), np.sum(b**2)),
            getattr(state, name),
            getattr(plain[1], name),
        )
        error, size = np.sum(
            jax.tree.leaves(pairs, is_leaf=lambda x: isinstance(x, tuple)), 0
        )
        assert error < bound**2 * size, name
