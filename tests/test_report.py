import html.parser
import os
import re

import numpy as np
import pytest

from jaxface import types
from jaxface.eval import report


def result(seed=0, *, n=80, gap=1.0):
    rng = np.random.default_rng(seed)
    same = np.arange(n) % 2 == 0
    scores = rng.normal(gap * same, 0.4)
    correct = (scores > 0.5) == same
    rate = float(correct.mean())
    return types.Result(
        scalars={
            "accuracy": rate,
            "accuracy_low": rate - 0.05,
            "accuracy_high": rate + 0.05,
            "pairs": 2400.0,
            "threshold": 0.5,
        },
        artefacts={
            "scores": scores,
            "same": same,
            "correct": correct,
            "left": np.arange(n),
            "right": np.arange(n) + 1,
        },
    )


HISTORY = [
    {"step": 1, "loss": 4.0, "accuracy": 0.1},
    {"step": 2, "loss": 3.0, "accuracy": 0.2, "lfw/accuracy": 0.6},
    {"step": 3, "loss": 2.0, "accuracy": 0.4},
]


def picture(i):
    return np.full((8, 8, 3), i, np.uint8)


def page(path, **given):
    found = {
        "title": "a run",
        "results": {"lfw": result()},
        "images": {"lfw": picture},
        "history": HISTORY,
        "config": {"model": {"name": "iresnet", "dim": 64}},
        "environment": {"device": "cpu"},
    }
    report.write(path, **(found | given))
    return path.read_text()


class Tags(html.parser.HTMLParser):
    """Collects tags and attributes, and fails on a tag left open."""

    def __init__(self, text):
        super().__init__()
        self.seen, self.open = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else(tmp_path):
    text = page(tmp_path / "report.html")
    tags = Tags(text).seen
    links = [a[key] for _, a in tags for key in ("src", "href") if key in a]
    assert len(links) >= 4
    assert all(link.startswith("data:image/") for link in links)
    assert not re.search(r"https?://|@import|url\(", text)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in tags}


def test_the_page_says_what_was_found(tmp_path):
    text = page(tmp_path / "report.html")
    rate = result().scalars["accuracy"]
    assert f"<strong>{rate:.3f}</strong>" in text
    assert f"[{rate - 0.05:.3f}, {rate + 0.05:.3f}] on 2,400 pairs, chance 0.5" in text
    assert f"<td>{rate - 0.05:.4f}, {rate + 0.05:.4f}</td>" in text
    assert "model.dim</th><td>64</td>" in text
    assert "device</th><td>cpu</td>" in text


def test_hostile_text_is_only_text(tmp_path):
    evil = "<script>alert(1)</script>"
    text = page(
        tmp_path / "report.html",
        title=evil,
        config={evil: {"a": f'"{evil}'}},
        environment={"command": evil},
        results={evil: result()},
        images={evil: picture},
    )
    assert "script" not in {tag for tag, _ in Tags(text).seen}
    assert "&lt;script&gt;alert(1)" in text


def test_the_worst_errors_come_first(tmp_path):
    found = result(n=200, gap=0.5)
    text = page(tmp_path / "report.html", results={"lfw": found})
    a = found.artefacts
    accepts = np.sort(a["scores"][~a["correct"] & ~a["same"]])[::-1][:8]
    rejects = np.sort(a["scores"][~a["correct"] & a["same"]])[:8]
    shown = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    assert len(shown) == 16
    assert shown == [f"{score:.3f}" for score in (*accepts, *rejects)]


def test_pictures_are_asked_for_by_the_pairs_indices(tmp_path):
    asked = []
    found = result()
    a = found.artefacts
    page(tmp_path / "r.html", images={"lfw": lambda i: asked.append(i) or picture(i)})
    wrong = np.flatnonzero(~a["correct"])
    assert len(wrong) > 0
    assert sorted(asked) == sorted([*a["left"][wrong], *a["right"][wrong]])


def test_a_run_without_errors_says_so(tmp_path):
    text = page(tmp_path / "report.html", results={"lfw": result(gap=9.0)})
    assert text.count("There is none.") == 1  # noise never reaches genuine pairs at 9


def test_the_same_results_give_the_same_bytes(tmp_path):
    assert page(tmp_path / "a.html") == page(tmp_path / "b.html")


def test_only_scalars_are_enough(tmp_path):
    bare = types.Result(scalars={"rank1": 0.5}, artefacts={})
    text = page(tmp_path / "r.html", results={"x": bare}, images={}, history=[])
    assert "img" not in {tag for tag, _ in Tags(text).seen}
    assert "<td>0.5000</td>" in text


def test_a_failed_write_leaves_the_old_page(tmp_path, monkeypatch):
    old = page(tmp_path / "report.html")

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        page(tmp_path / "report.html", title="another")
    assert (tmp_path / "report.html").read_text() == old
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
