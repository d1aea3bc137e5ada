import re

import pytest

from jaxface.eval import rows

LFW = {
    "accuracy": 0.994167, "accuracy_low": 0.988585, "accuracy_high": 0.996735,
    "pairs": 2400.0, "auc": 0.9994,
}  # fmt: skip
RANK = {"rank1": 0.5, "rank1_low": 0.25, "rank1_high": 0.75, "mated": 10.0}
RUNS = {"a_1": {"lfw": LFW, "tiny": RANK}, "b|&": {"lfw": LFW}}


def test_markdown_by_hand():
    assert rows.table(RUNS, kind="markdown") == (
        "| run | lfw accuracy | tiny rank1 |\n"
        "| --- | --- | --- |\n"
        "| a\\_1 | 99.42 [98.86, 99.67] | 50.00 [25.00, 75.00] |\n"
        "| b\\|& | 99.42 [98.86, 99.67] | -- |\n"
    )


def test_latex_by_hand():
    found = rows.table(RUNS, kind="latex", columns=["lfw/auc", "tiny/rank1"])
    assert found == (
        "run & lfw auc & tiny rank1 \\\\\n"
        "\\midrule\n"
        "a\\_1 & 0.9994 & $50.00$ {\\small [25.00, 75.00]} \\\\\n"
        "b|\\& & 0.9994 & -- \\\\\n"
    )


@pytest.mark.parametrize("kind", ["markdown", "latex"])
def test_a_name_adds_no_cell_and_no_line(kind):
    name = "a|b & c \\\\ \n % $x$ #~^{}"
    text = rows.table({name: {"lfw": LFW}}, kind=kind)
    lines = text.splitlines()
    assert len(lines) == 3
    bar = {"markdown": r"(?<!\\)\|", "latex": r"(?<!\\)&"}[kind]
    assert len(re.findall(bar, lines[0])) == len(re.findall(bar, lines[2]))
    assert "%" not in lines[2].replace(r"\%", "") or kind == "markdown"


def test_what_nobody_has_is_named_with_what_there_is():
    with pytest.raises(ValueError, match=r"'lfw/rank1'.*'tiny/rank1'"):
        rows.table(RUNS, kind="latex", columns=["lfw/rank1"])
    with pytest.raises(ValueError, match=r"'html' unknown.*\['latex', 'markdown'\]"):
        rows.table(RUNS, kind="html")


def test_the_headline_is_the_first_number():
    assert rows.headline(LFW) == ("accuracy", 0.994167, 0.988585, 0.996735)
    assert rows.headline({"loss": 2.0} | LFW) == ("loss", 2.0, None, None)
    assert rows.headline({})[0] == ""
