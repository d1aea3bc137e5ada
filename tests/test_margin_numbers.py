"""Every margin rule on one example of three classes, worked by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_margins import KEY, RULES, ctx, near

from jaxface import spec
from jaxface.losses import softmax
from jaxface.losses.rule import facts

PI = math.pi
# One example of true class 0, cosines (0.5, 0.6, -0.5), so 60 and 120 degrees;
# -> new target, new negatives. cos 90 = 0, 1.2 * 0.6 + 0.2 = 0.92, and so on.
BY_HAND = {
    "softmax": (0.5, 0.6, -0.5),
    "normface": (0.5, 0.6, -0.5),
    f"arcface(m={PI / 6})": (0.0, 0.6, -0.5),  # cos(60 + 30)
    f"arcface(m={5 * PI / 6})": (0.5 - 5 * PI / 12, 0.6, -0.5),  # c - m sin m
    f"arcface(m={PI / 6}, easy=True)": (0.0, 0.6, -0.5),
    "cosface(m=0.2)": (0.3, 0.6, -0.5),
    f"combined(m1=1.0, m2={PI / 6}, m3=0.2)": (-0.2, 0.6, -0.5),
    f"combined(m1=2.0, m2={PI / 6}, m3=0.1)": (-math.sqrt(0.75) - 0.1, 0.6, -0.5),
    "sphereface(m=2.0)": (-0.5, 0.6, -0.5),  # cos 120
    "sphereface(m=4.0)": (-1.5, 0.6, -0.5),  # -cos 240 - 2
    "sphereface_r(m=4.0)": (-1.0, 0.6, -0.5),  # cos 180
    "sphereface_r(m=2.0, version=2)": (0.5, math.sqrt(0.8), 0.5),  # cos(x/2), cos 60
    "circle(m=0.25)": (-0.1875, 0.2975, 0.0),  # 0.75 (0.5 - 0.75); 0.85 * 0.35
    f"qamface(m={PI / 3})": (16 * PI**2 / 9, 28.68556, 16 * PI**2 / 9),
    f"elastic_arc(m={PI / 6}, std=0.0)": (0.0, 0.6, -0.5),
    "elastic_cos(m=0.2, std=0.0, plus=True)": (0.3, 0.6, -0.5),
    # norm 60 is halfway from 10 to 110
    f"magface(l_m=0.0, u_m={PI / 3})": (0.0, 0.6, -0.5),
    "magface(l_m=0.2, u_m=0.4, cosine=True)": (0.2, 0.6, -0.5),
    "adaface(m=0.4, decay=0.0)": (0.1, 0.6, -0.5),  # mean is the norm, q = 0
    # mean 20, std 100: h (60 - 20) / 100 beyond 1, so cos(60 - 30) - 2 m
    f"adaface(m={PI / 6}, decay=1.0, h=3.0)": (math.sqrt(0.75) - PI / 3, 0.6, -0.5),
    # t = 0.01 * 0.5; 0.6 > 0 is hard: 0.6 * 0.605
    f"curricularface(m={PI / 6})": (0.0, 0.363, -0.5),
    "mv_softmax(m=0.25, t=1.2)": (0.25, 0.92, -0.5),
    f"mv_softmax(m={PI / 6}, t=1.2, angle=True, fixed=True)": (0.0, 0.8, -0.5),
    # 1.2 exp(-0.18) 1.6 - 1; 1.2 exp(-0.125) 0.5 - 1
    f"arcnegface(m={PI / 6})": (0.0, 0.603719, -0.470502),
    "adacos": (0.5, 0.6, -0.5),
}


@pytest.mark.parametrize("line", BY_HAND)
def test_numbers_by_hand(line):
    rule = softmax.resolve(line)
    with jax.enable_x64(True):
        cos, target = jnp.array([[0.5, 0.6, -0.5]]), jnp.array([0.5])
        new_cos, new, out = rule(cos, target, jnp.array([60.0]), ctx(facts(rule).state))
    want, *others = BY_HAND[line]
    near(np.array([new[0], *new_cos[0, 1:]]), np.array([want, *others]), 1e-6)
    if line.startswith("magface"):  # 35 (1/60 + 60/110^2)
        near(out.penalty, [0.756887], 1e-6)
    if line == "adacos":  # first s = sqrt(2) log 2, B = e^(0.6 s) + e^(-0.5 s),
        near(out.scale, math.log(1.800663 + 0.612547) / math.cos(PI / 4), 1e-5)


def test_every_rule_has_numbers_by_hand():
    assert {spec.parse_one(line).name for line in BY_HAND} == set(RULES)


def test_loss_by_hand():
    """Logits 0, 0.6, -0.5: log(1 + 1.822119 + 0.606531); smoothing takes 0.1 mean."""
    w = jnp.array([[1.0, 0.0], [0.6, 0.8], [-0.5, math.sqrt(0.75)]])
    gathered = (jnp.array([[2.0, 0.0]]), jnp.array([0]), jax.random.split(KEY, 1))
    for smoothing, want in ((0.0, 1.232167), (0.3, 1.232167 - 0.01)):
        loss = softmax.Loss(3, margin="cosface(m=1.0)", scale=1.0, smoothing=smoothing)
        got, _, _ = loss.on_rows(w, jnp.arange(3), gathered, ({}, {}), axis=None)
        near(got, want, 2e-6)


def test_filter_by_hand():
    """Of the cosines 0.6 and -0.5 to others, 0.6 is above 0.4 and becomes 0."""
    w = jnp.array([[1.0, 0.0], [0.6, 0.8], [-0.5, math.sqrt(0.75)]])
    gathered = (jnp.array([[2.0, 0.0]]), jnp.array([0]), jax.random.split(KEY, 1))
    loss = softmax.Loss(3, margin="cosface(m=1.0)", scale=1.0, filter=0.4)
    got, _, metrics = loss.on_rows(w, jnp.arange(3), gathered, ({}, {}), axis=None)
    near(got, math.log(1 + 1 + 0.606531), 2e-6)
    assert metrics["filtered"] == 1.0
    assert metrics["accuracy"] == 1.0  # the true class had 1
