"""The mini-language: what it reads, what it refuses, what it says then."""

import ast
import inspect
import keyword

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxface import losses, spec
from jaxface.losses import margin

literals = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda x: st.tuples(x, x) | st.lists(x, max_size=2),
    max_leaves=4,
)
names = st.from_regex(r"[a-z]{1,6}(\.[a-z]{1,4})?", fullmatch=True).filter(
    lambda name: not any(map(keyword.iskeyword, name.split(".")))
)


@given(
    st.lists(
        st.builds(
            spec.Call,
            names,
            st.lists(literals, max_size=2).map(tuple),
            st.dictionaries(st.sampled_from(["m", "size", "p"]), literals).map(
                lambda d: tuple(d.items())
            ),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_what_is_printed_is_read_back(calls):
    assert list(spec.parse("|".join(map(str, calls)))) == calls


@pytest.mark.parametrize(
    "line",
    [
        "",
        "a(",
        "a(b=open('x'))",
        "a(__import__('os'))",
        "a()(1)",
        "a(*[1])",
        "a(**{})",
        "1",
        "a and b",
        "a[0]",
        "lambda: 0",
        "(" * 200 + ")" * 200,
    ],
)
def test_anything_else_is_refused(line):
    with pytest.raises(ValueError, match="cannot read"):
        spec.parse(line)


def test_unknown_member_names_the_nearest():
    with pytest.raises(KeyError, match="margin 'arcfce' unknown; did you mean 'arcfac"):
        spec.member(margin, spec.parse_one("arcfce(m=1)"), kind="margin")


def test_unknown_module_names_the_choices():
    with pytest.raises(KeyError, match=r"did you mean 'softmax'.*binary"):
        spec.module(losses, spec.parse_one("sofmax"), kind="loss", default="Loss")


def test_wrong_argument_shows_the_signature():
    call = spec.parse_one("arcface(margin=1)")
    with pytest.raises(
        ValueError, match=r"unexpected keyword.*arcface takes .*m, easy\)"
    ):
        spec.bind(margin.arcface, call)


def test_given_arguments_cannot_be_overridden():
    call = spec.parse_one("arcface(m=1)")
    with pytest.raises(ValueError, match="multiple values"):
        spec.bind(margin.arcface, call, {"m": 2})


def test_evaluation_is_never_used():
    calls = [n.func for n in ast.walk(ast.parse(inspect.getsource(spec)))
             if isinstance(n, ast.Call)]  # fmt: skip
    named = {f.id for f in calls if isinstance(f, ast.Name)}
    assert not named & {"eval", "exec", "compile", "__import__"}
