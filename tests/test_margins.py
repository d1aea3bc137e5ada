"""Every margin rule is its oracle, and the same on any mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import PartitionSpec as P

from jaxface import parallel, spec
from jaxface.losses import softmax
from jaxface.losses.rule import facts
from jaxface.types import Ctx

RULES = softmax.rules()
# Each rule as it is, and what other arguments make of it.
LINES = [
    *RULES,
    "arcface(m=0.4, easy=True)",
    "combined(m1=1.3, m2=0.2, m3=0.1)",
    "sphereface_r(version=2)",
    "elastic_arc(plus=True)",
    "elastic_cos(plus=True)",
    "magface(cosine=True, l_m=0.35, lambda_g=150.0)",
    "mv_softmax(angle=True, fixed=True)",
    "adacos(dynamic=False)",
]
OPTIONS = [  # of the loss, over rules that meet them differently
    ("arcface", {"centers": 3, "filter": 0.3, "smoothing": 0.1}),
    ("softmax", {"centers": 2, "smoothing": 0.2}),
    ("adacos", {"filter": 0.5, "smoothing": 0.1}),
]
CASES = [(line, {}) for line in LINES] + OPTIONS
# Other arguments change no reduction, but for the one that sorts the batch.
SHARDED = [(line, {}) for line in [*RULES, "elastic_arc(plus=True)"]] + OPTIONS
# One of each reduction over classes or the batch; the rest are `slow` on meshes.
QUICK = ("softmax", "arcface", "adaface", "adacos", "curricularface")
B, C, D, S = 16, 1000, 4, 8.0  # on 8 devices the last holds padding too
KEY = jax.random.key(3)


def ids(case):
    return case if isinstance(case, str) else "-".join(map(str, case[1])) or case[0]


def make(line, **options):
    return softmax.Loss(num_classes=C, margin=line, scale=S, **options)


def held(line):
    """What the rule's paper holds constant while differentiating."""
    return facts(softmax.resolve(line)).held


@functools.cache
def data(centers=1):
    """Embeddings of length 9 to 90, class weights with their padding, a batch."""
    rng = np.random.default_rng(0)
    e = rng.normal(size=(B, D))
    e *= np.linspace(9, 90, B)[:, None] / np.linalg.norm(e, axis=1, keepdims=True)
    w = rng.normal(size=(1024 * centers, D))
    y = rng.integers(0, C, B).astype(np.int32)
    w[y * centers] = 0.9 * e / np.linalg.norm(e, axis=1)[:, None] + 0.4 * w[y * centers]
    return e, w, {"label": y, "position": np.arange(B, dtype=np.uint32)}


def body(loss, axis):
    """(value, gradients of embeddings, weights and scalars, statistics)."""

    def run(e, w, batch, margin):
        def share(e, w, params):
            out, state, _ = loss.share(
                {"kernel": w}, (params, margin[1]), e, batch, key=KEY, axis=axis
            )
            return out, state

        grad = jax.value_and_grad(share, argnums=(0, 1, 2), has_aux=True)
        (value, state), (de, dw, dp) = grad(e, w, margin[0])
        value, dp = parallel.psum((value, dp), axis)
        return value, (de, dw, dp), state

    return run


@functools.cache
def compiled(loss, how):
    axis = "data"
    if how == "dense":
        return jax.jit(body(loss, None))
    if how == "pmap":
        axes = (0, 0, {"label": 0, "position": 0}, None)
        one = jax.pmap(body(loss, axis), axis, in_axes=axes, out_axes=(None, 0, None))

        def run(*given):
            *split, margin = given
            split = jax.tree.map(lambda x: x.reshape(8, -1, *x.shape[1:]), split)
            value, (de, dw, dp), state = one(*split, margin)
            return value, (de.reshape(B, D), dw.reshape(-1, D), dp), state

        return run
    rows = P(axis)
    return jax.jit(
        jax.shard_map(
            body(loss, axis),
            mesh=parallel.make_mesh(),
            in_specs=(rows, rows, rows, P()),
            out_specs=(P(), (rows, rows, P()), P()),
            check_vma=False,
        )
    )


def run(line, options=None, how="dense", **changed):
    return run_loss(make(line, **(options or {})), how, **changed)


def run_loss(loss, how="dense", **changed):
    e, w, batch = data(getattr(loss, "centers", 1))
    given = {"e": e, "w": w, "batch": batch, "margin": loss.init_margin(dim=8)}
    return jax.device_get(compiled(loss, how)(*(given | changed).values()))


def near(a, b, tolerance=1e-10):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance),
        a,
        b,
    )


def normals():
    """What ElasticFace draws, one number per example."""
    return [
        float(jax.random.normal(jax.random.fold_in(KEY, p), dtype=float))
        for p in range(B)
    ]


def oracle(line, e, w, y, centers=1, filter=1.0, smoothing=0.0):
    """(loss, logits) by loops."""
    call = spec.parse_one(line)
    e, w = np.asarray(e).tolist(), np.asarray(w).tolist()
    cos = oracles.best_cosine(e, w, centers)
    if call.name == "softmax":
        cos = [
            [max(oracles.dot(x, w[c * centers + k]) for k in range(centers))
             for c in range(len(w) // centers)] for x in e
        ]  # fmt: skip
    cos = [
        [0.0 if filter < min(1.0, c) and j != label else c for j, c in enumerate(row)]
        for row, label in zip(cos, y, strict=True)
    ]
    given = dict(call.kwargs)
    if call.name.startswith("elastic"):
        given["normal"] = normals()[: len(y)]
    norm = [oracles.length(x) for x in e]
    logits, penalty = getattr(oracles, call.name)(cos, y, norm, S, **given)
    added = sum(penalty) / len(y)
    return oracles.cross_entropy(logits, y, smoothing) + added, logits


def ctx(state=None, count=1, dtype=None, scale=1.0):
    return Ctx(
        key=jax.random.split(KEY, count),
        params={},
        state=state or {},
        scale=jnp.asarray(scale, dtype),
        penalty=jnp.zeros((), dtype),
        classes=3,
        negatives=lambda x: x[:, 1:].sum(-1),
    )


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_rule_is_its_oracle(case):
    line, options = case
    with jax.enable_x64(True):
        e, w, batch = data(options.get("centers", 1))
        real = w[: C * options.get("centers", 1)]
        want, _ = oracle(line, e, real, batch["label"].tolist(), **options)
        near(run(line, options)[0], want)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[] if case[0] in QUICK else pytest.mark.slow)
        for case in SHARDED
    ],
    ids=ids,
)
def test_dense_is_sharded_is_pmap(case):
    with jax.enable_x64(True):
        want = run(*case)
        assert np.abs(want[1][1]).max() > 1e-8
        for how in ("sharded", "pmap"):
            near(run(*case, how=how), want)


@pytest.mark.parametrize("name", RULES)
def test_neutral_arguments_give_the_plain_rule(name):
    rule = facts(RULES[name])
    if rule.plain == "none":
        assert rule.why
        assert not rule.neutral
        return
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        cos, target = rng.uniform(-0.99, 0.99, (6, 9)), rng.uniform(-0.99, 0.99, 6)
        given = ctx(rule.state, 6, scale=5.0)
        norm = np.linspace(5, 120, 6)
        out = rule(cos, jnp.asarray(target), jnp.asarray(norm), given, **rule.neutral)
        near(out[:2], (cos, target), 1e-12)
        assert out[2].scale == 5.0
        assert not np.any(out[2].penalty)


@pytest.mark.parametrize("line", [n for n in LINES if held(n) in ("", "the order")])
def test_gradient_is_the_slope(line):
    """Along random directions; where the paper holds something, see below."""
    with jax.enable_x64(True):
        e, w, _ = data()
        rng = np.random.default_rng(1)
        de, dw = rng.normal(size=e.shape), rng.normal(size=w.shape)
        h = 1e-6
        above = run(line, e=e + h * de, w=w + h * dw)[0]
        below = run(line, e=e - h * de, w=w - h * dw)[0]
        ge, gw, _ = run(line)[1]
        slope = (above - below) / (2 * h)
        near(np.sum(ge * de) + np.sum(gw * dw), slope, 1e-6)


@pytest.mark.parametrize("name", [n for n in RULES if held(n)])
def test_gradient_with_what_the_paper_holds_constant(name):
    """Each new cosine by its own old one, other numbers of the rule as they were."""
    rule = facts(RULES[name])
    with jax.enable_x64(True):
        cos, target = jnp.array([[0.5, 0.6, -0.4]]), jnp.array([0.5])
        given = ctx({k: jnp.asarray(v) for k, v in rule.state.items()})
        moved = functools.partial(rule, norm=jnp.array([30.0]), ctx=given)
        by_cos = jax.jacobian(lambda c: moved(c, target)[0])(cos)[0, :, 0, :]
        by_target = jax.grad(lambda t: moved(cos, t)[1].sum())(target)
        h = 1e-6
        slope = (moved(cos + h, target)[0] - moved(cos - h, target)[0]) / (2 * h)
        if name == "circle":  # the derivative with its weights alpha held
            slope, want = jnp.array([[0.75, 0.85, 0.0]]), [0.75]
        else:
            want = moved(cos, target + h)[1] - moved(cos, target - h)[1]
            want = want / (2 * h)
        near(by_cos, np.diag(slope[0]), 1e-6)
        near(by_target, want, 1e-6)


@pytest.mark.parametrize("line", LINES)
def test_detached_gradient_passes_the_margin_by(line):
    """dL/dcos is s (p - [y]) / B at the new logits, on through the cosine alone."""
    with jax.enable_x64(True):
        small = line.replace("150.0", "0.0") if "lambda_g" in line else line
        small = "magface(lambda_g=0.0)" if line == "magface" else small
        e, w, batch = data()
        y, w = np.arange(B) % 5, np.array(w[:6])
        w[:5] += 0.01 * e[:5]
        loss = softmax.Loss(num_classes=6, margin=small, scale=S, gradient="detached")
        where = jnp.arange(6)
        keys = jax.vmap(lambda p: jax.random.fold_in(KEY, p))(batch["position"])

        def total(e):
            return loss.on_rows(
                w, where, (e, y, keys), loss.init_margin(dim=8), axis=None
            )

        got, (_, _, metrics) = jax.grad(
            lambda e: (total(e)[0], total(e)), has_aux=True
        )(jnp.asarray(e))
        _, z = oracle(small, e, w, y.tolist())
        p = np.exp(np.array(z) - np.max(z, 1, keepdims=True))
        p = p / p.sum(1, keepdims=True) - np.eye(6)[y]
        p *= metrics.get("scale", S if facts(loss.rule).unit else 1.0)
        _, back = jax.vjp(lambda e: loss._logits(e, w)[0], jnp.asarray(e))
        near(got, back(p / B)[0], 1e-9)


@pytest.mark.parametrize("line", LINES)
def test_order_of_classes_does_not_matter(line):
    with jax.enable_x64(True):
        _, w, batch = data()
        order = np.random.default_rng(2).permutation(C)
        order = np.concatenate([order, np.arange(C, len(w))])
        place = np.argsort(order)
        moved = batch | {"label": place[batch["label"]].astype(np.int32)}
        value, (de, dw, _), state = run(line)
        got = run(line, w=w[order], batch=moved)
        near(got, (value, (de, dw[order], {}), state))


@pytest.mark.parametrize("name", RULES)
def test_finite_at_the_edges_and_in_bfloat16(name):
    """cos = 1, cos = -1 and a zero embedding, true class and others."""
    w = jnp.eye(4, 6)
    e = jnp.stack([w[0], -w[0], w[1], 0.0 * w[0], 30.0 * w[2] + w[3]])
    y = jnp.array([0, 0, 2, 1, 2])
    loss = softmax.Loss(num_classes=4, margin=name, scale=S)
    batch = {"label": y, "position": jnp.arange(5)}
    for dtype in (jnp.float32, jnp.bfloat16):

        def share(e, w):
            margin = loss.init_margin(dim=8)
            e = softmax.gather(e, batch, key=KEY, axis=None)
            return loss.on_rows(w, jnp.arange(4), e, margin, axis=None)[0]

        args = (e.astype(dtype), w.astype(dtype))
        value, grads = jax.value_and_grad(share, argnums=(0, 1))(*args)
        assert value.dtype == jnp.float32
        for x in jax.tree.leaves((value, grads)):
            assert jnp.isfinite(x).all()


def test_a_sample_of_classes_is_the_loss_over_those():
    """Other ids, other places: the label's class and nine more, smoothed over ten."""
    with jax.enable_x64(True):
        e, w, _ = data()
        y = np.full(B, 700, np.int32)
        ids = np.array([3, 999, 700, 12, 5, 80, 411, 2000, 640, 90, 91])  # one is none
        keys = jax.random.split(KEY, B)
        loss = make("mv_softmax", smoothing=0.2)
        got, _, _ = loss.on_rows(w[ids % 1024], ids, (e, y, keys), ({}, {}), axis=None)
        kept = w[ids[ids < C]]
        want, _ = oracle("mv_softmax", e, kept, [2] * B, smoothing=0.2)
        near(got, want)


def test_one_center_is_drawn_as_ever_and_three_are_neighbours():
    one = make("arcface").init(KEY, num_classes=C, dim=D)["kernel"]
    three = make("arcface", centers=3).init(KEY, num_classes=C, dim=D)["kernel"]
    assert one.shape == (1024, D)
    assert three.shape == (3072, D)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"centers": 0}, "centers is 0; wanted a whole number from 1"),
        ({"filter": 1.5}, "filter is 1.5; wanted a cosine"),
        ({"smoothing": 1.0}, "smoothing is 1.0; wanted 0 to below 1"),
        ({"gradient": "both"}, "wanted 'exact' or 'detached'"),
        ({"scale": 0.0}, "wanted a positive number"),
        ({"margin": "softmax", "filter": 0.4}, "margin 'softmax' does not use"),
    ],
)
def test_wrong_arguments_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        softmax.Loss(**({"num_classes": 3, "margin": "arcface"} | options))


def test_a_rule_refuses_what_it_cannot_do():
    cos, target = jnp.zeros((1, 2)), jnp.zeros(1)
    with pytest.raises(ValueError, match="adacos got 2 classes; wanted 3 or more"):
        RULES["adacos"](cos, target, target, ctx({"s": 0.0})._replace(classes=2))
    with pytest.raises(ValueError, match="version=3; wanted 1 or 2"):
        RULES["sphereface_r"](cos, target, target, ctx(), version=3)
