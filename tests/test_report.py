import html.parser
import os
import re

import numpy as np
import pytest
import samples

from jaxface import page as html_page
from jaxface import types
from jaxface.eval import bootstrap, figures, report


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
EVIL = "_$<script>alert(1)</script>\x01\udc80 #0072b2 漢字 " + "x" * 50


def picture(i):
    return np.full((8, 8, 3), i, np.uint8)


def run(**given):
    found = {
        "results": {"lfw": result()},
        "images": {"lfw": picture},
        "history": HISTORY,
        "config": {"model": {"name": "iresnet", "dim": 64}},
        "environment": {"device": "cpu"},
    } | given
    return report.Run(found.pop("results"), **found)


def page(path, *, title="a run", runs=None, projections=("pca",), **given):
    runs = runs or {"a": run(**given)}
    report.write(path, title=title, runs=runs, projections=projections)
    return path.read_text()


def every_kind(names=("African", "Asian", "Indian"), kind="blur"):
    """Artefacts of all agreed names."""
    rate, few = np.linspace(0.5, 0.9, 5), np.linspace(0.5, 0.9, len(names))
    found = dict(result().artefacts)
    for name, value in {"cmc": rate, "tpir": rate, "group_tar": few}.items():
        found |= {name: value, f"{name}_low": value - 0.1, f"{name}_high": value + 0.1}
    found |= {"group": np.array(names), "group_pairs": np.full(len(names), 10)}
    found |= {f"group_far{end}": 0.1 * few for end in ("", "_low", "_high")}
    found |= {f"curve:{kind}:{end}": rate for end in ("x", "y", "low", "high")}
    found |= {"fpir": rate / 10, "reject:norm:x": rate, "reject:norm:y": 1 - rate}
    embedding = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    found |= {"embedding": embedding, "identity": np.arange(12) // 3}
    return types.Result(scalars=result().scalars, artefacts=found)


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


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A page of one run with all that can be drawn."""
    path = tmp_path_factory.mktemp("full") / "report.html"
    return page(path, results={"lfw": every_kind()})


def figures_of(text):
    """The figures of a page by their ids: (what is said aloud, caption)."""
    found = re.findall(
        r'<figure class="figure" id="(.*?)">(.*?)</figure>', text, re.DOTALL
    )
    aloud = {k: re.search(r'role="img" aria-label="(.*?)"', v)[1] for k, v in found}
    said = {k: re.search(r"<figcaption>(.*?)</fig", v)[1] for k, v in found}
    return {k: (aloud[k], said[k]) for k in aloud}


def test_the_page_is_whole_and_needs_nothing_else(full):
    tags = Tags(full).seen
    links = [a[key] for _, a in tags for key in ("src", "href") if key in a]
    assert len(links) >= 4
    assert all(link.startswith(("data:image/", "#")) for link in links)
    assert not re.search(r"https?://|@import|url\((?!#)", full)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in tags}


def test_the_page_can_be_read_and_walked_by_anyone(tmp_path):
    runs = {"a": run(results={"lfw": every_kind()}), "b": run()}
    tags = Tags(page(tmp_path / "r.html", runs=runs)).seen
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))
    named = [a for tag, a in tags if tag == "img" or a.get("role") == "img"]
    assert all(a.get("alt") or a.get("aria-label") for a in named)
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert max(np.diff(levels)) <= 1
    assert {"main", "nav", "header"} <= {tag for tag, _ in tags}
    assert next(a for tag, a in tags if tag == "a")["href"] == "#main"
    referred = [a[k][1:] for _, a in tags for k in ("href",) if a.get(k, "")[:1] == "#"]
    referred += [a["aria-labelledby"] for _, a in tags if "aria-labelledby" in a]
    referred += [a["clip-path"][5:-1] for _, a in tags if "clip-path" in a]
    assert set(referred) <= set(ids)
    assert all("scope" in a for tag, a in tags if tag == "th")
    scrolled = [a for _, a in tags if a.get("class", "").startswith("card")]
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in scrolled)


@pytest.mark.parametrize(
    ("kind", "of"),
    [
        ("roc", "AUC"), ("det", "EER"), ("scores-0", "threshold 0.500"),
        ("cmc", "0.9000 at 5"), ("open-set", "0.9000 at FPIR 0.09"),
        ("groups", "lowest TAR 0.5000 of African, highest FAR 0.09 of Indian"),
        ("curve-0", "lowest 0.500 at 0.5"), ("reject", "0.5000 with 50% gone"),
        ("pca-0", "12 images of 4 people"),
    ],
)  # fmt: skip
def test_each_kind_of_artefact_is_drawn_and_told(full, kind, of):
    found = figures_of(full)
    assert len(found) == 9 + 2  # and the two of training
    aloud, said = found[f"set0-{kind}"]
    assert of in said
    assert said in aloud


def test_a_caption_gives_the_interval_that_was_found_and_an_axis_its_unit():
    plain, blurred = result(), every_kind()
    plain.scalars.update(eer_low=0.0123, eer_high=0.4567)
    with html_page.drawn():
        assert "[0.0123, 0.4567], on the dotted" in figures.det({"a": plain}).says
        assert "[" not in figures.roc({"a": plain}).says
        axes = figures.curve({"a": blurred}, "blur").figure.axes[0]
    assert axes.get_xlabel() == "sigma, pixels"
    assert axes.get_ylim() == (0, 1.02)


def test_a_band_is_one_over_people_where_they_are_known():
    rng = np.random.default_rng(0)
    scores, same, people, _ = samples.scored(rng, P=40, N=600, effect=1.0)
    a = {"scores": scores, "same": same, "people": people}
    far, tar, low, high = figures._operating(a)
    assert np.all((low >= 0) & (low <= tar) & (tar <= high) & (high <= 1))
    few = figures._thinned(far, np.flatnonzero(far < 1), figures._BANDED)
    assert 20 < len(few) < len(far)
    for k in few[::5]:
        found = bootstrap.people_tar(scores, same, people, far=far[k])
        assert (low[k], tar[k], high[k]) == pytest.approx(
            (found.low, found.value, found.high)
        )
    del a["people"]
    alone = figures._operating(a)
    assert np.mean(high - low) > 1.1 * np.mean(alone[3] - alone[2])
    for given, words in ((people, "interval, point"), (None, "of independent pairs")):
        kept = a | ({} if given is None else {"people": given})
        drawn = figures.roc({"a": types.Result({}, kept)})
        assert words in drawn.says


def test_training_is_drawn(full):
    found = figures_of(full)
    assert "2 at step 3" in found["training-loss"][1]
    assert found["training-accuracy"][1].endswith("lfw: 0.6 at step 2.")


def test_drawings_have_no_colour_that_the_page_does_not_know(full):
    light, dark, _ = re.findall(r":root \{(.*?)\}", full, re.DOTALL)
    drawings = "".join(re.findall(r"<svg.*?</svg>", full, re.DOTALL))
    assert not re.search("#[0-9a-f]{3,6};", drawings)
    used = set(re.findall(r"var\((--\w+)\)", drawings))
    for scheme in (light, dark):
        assert used <= set(re.findall(r"(--\w+):", scheme))


def test_several_runs_stand_side_by_side(tmp_path):
    other = run(results={"lfw": result(1)}, config={"model": {"name": "vit"}})
    text = page(tmp_path / "r.html", runs={"a": run(), "b": other})
    assert re.search(r'colspan="2">a</th>\s*<th scope="colgroup" colspan="2">b', text)
    named = r"<td>iresnet</td>\s*<td>vit</td>"
    assert re.search(
        rf'class="differs"><th scope="row">model.name ≠</th>\s*{named}', text
    )
    assert re.search(r"dim ≠</th>\s*<td>64</td>\s*<td>not set</td>", text)
    assert re.search(r'scope="row">device</th>', text)
    assert "a: AUC" in figures_of(text)["set0-roc"][1]


def test_the_page_says_what_was_found(tmp_path):
    text = page(tmp_path / "report.html")
    rate = result().scalars["accuracy"]
    assert f"<strong>{rate:.3f}</strong>" in text
    assert f"[{rate - 0.05:.3f}, {rate + 0.05:.3f}] on 2,400 pairs" in text
    assert f"<td>{rate - 0.05:.4f}, {rate + 0.05:.4f}</td>" in text
    assert re.search(r"model.dim</th>\s*<td>64</td>", text)
    assert re.search(r"device</th>\s*<td>cpu</td>", text)


def test_hostile_text_is_only_text(tmp_path):
    hostile = every_kind(names=(EVIL, "b"), kind=EVIL)
    evil = run(
        config={EVIL: {"a": f'"{EVIL}'}},
        environment={"command": EVIL},
        results={EVIL: hostile},
        images={EVIL: picture},
        history=[{"step": 1, "loss": 1.0, f"{EVIL}/accuracy": 0.5}],
    )
    text = page(
        tmp_path / "r.html",
        title=EVIL,
        runs={EVIL: evil, "b": run(results={EVIL: result()})},
    )
    assert "script" not in {tag for tag, _ in Tags(text).seen}
    assert "&lt;script&gt;alert(1)" in text
    assert "\\udc80" in text
    assert "_$&lt;script&gt;" in re.search(r"<svg.*</svg>", text, re.DOTALL)[0]


def test_the_worst_errors_come_first(tmp_path):
    found = result(n=200, gap=0.5)
    text = page(tmp_path / "report.html", results={"lfw": found})
    a = found.artefacts
    accepts = np.sort(a["scores"][~a["correct"] & ~a["same"]])[::-1][:8]
    rejects = np.sort(a["scores"][~a["correct"] & a["same"]])[:8]
    shown = re.findall(r"</div><figcaption>(.*?)</figcaption>", text)
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


def test_the_same_results_give_the_same_bytes(tmp_path, full):
    assert page(tmp_path / "again.html", results={"lfw": every_kind()}) == full


def test_what_drives_a_match_is_laid_over_the_grey_picture(tmp_path):
    asked = []

    def heat(i, j):
        asked.append((i, j))
        return picture(i)

    text = page(tmp_path / "r.html", saliency={"lfw": heat})
    a = result().artefacts
    wrong = np.flatnonzero(~a["correct"])
    ends = np.stack([a["left"][wrong], a["right"][wrong]], axis=1)
    assert sorted(asked) == sorted(map(tuple, [*ends, *ends[:, ::-1]]))
    assert text.count("drives the score") == len(asked) > 0
    grey = np.repeat(np.arange(64, dtype=np.uint8).reshape(8, 8, 1), 3, axis=2)
    one = np.zeros((8, 8))
    one[0, 0] = 5
    drawn = report.heated(grey, one)
    np.testing.assert_array_equal(drawn.reshape(64, 3)[1:], grey.reshape(64, 3)[1:])
    assert drawn[0, 0, 0] > 100
    np.testing.assert_array_equal(report.heated(grey, 0 * one), grey)
    with pytest.raises(ValueError, match="wanted \\(8, 8\\), finite"):
        report.heated(grey, np.full((8, 8), np.nan))


def test_an_unknown_projection_or_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'mds'.*'pca', 'tsne', 'umap'"):
        page(tmp_path / "r.html", projections=("mds",))
    with pytest.raises(ValueError, match="0 runs"):
        report.write(tmp_path / "r.html", title="", runs={})


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
