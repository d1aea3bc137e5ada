"""Losses by loops over examples and classes, from each paper's formula.

Slow and plain, with `math` only. A rule takes a matrix of cosines as nested lists, the
labels, the embeddings' lengths and the scale; it returns (logits [B][C], what is added
to each example's loss [B]).
"""

import math
import statistics


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def length(a):
    return math.sqrt(dot(a, a))


def cosine(a, b):
    return dot(a, b) / (length(a) * length(b))


def best_cosine(e, w, centers):
    """[B][C]: the best of each class's `centers` neighbours in w."""
    classes = range(len(w) // centers)
    return [
        [max(cosine(x, w[c * centers + k]) for k in range(centers)) for c in classes]
        for x in e
    ]


def cross_entropy(logits, y, smoothing=0.0):
    """The mean of -sum_j q_j log p_j, q the smoothed label."""
    total = 0.0
    for row, label in zip(logits, y, strict=True):
        top = max(row)
        log_z = top + math.log(math.fsum(math.exp(z - top) for z in row))
        for j, z in enumerate(row):
            q = smoothing / len(row) + (1.0 - smoothing) * (j == label)
            total -= q * (z - log_z)
    return total / len(y)


def per_class(cos, y, s, true, other=lambda i, c: c):
    """Logits from what the true class and the others make of a cosine."""
    logits = [
        [s * (true(i, c) if j == y[i] else other(i, c)) for j, c in enumerate(row)]
        for i, row in enumerate(cos)
    ]
    return logits, [0.0] * len(y)


def turn(c, m):
    """cos(theta + m), and ArcFace's straight line where that passes pi."""
    theta = math.acos(c)
    return c - m * math.sin(m) if m > 0 and theta + m > math.pi else math.cos(theta + m)


def folded(phi):
    k = 0
    while phi > (k + 1) * math.pi:
        k += 1
    return (-1) ** k * math.cos(phi) - 2 * k


def softmax(cos, y, norm, s):
    return per_class(cos, y, 1.0, lambda i, c: c)


def normface(cos, y, norm, s):
    return per_class(cos, y, s, lambda i, c: c)


def arcface(cos, y, norm, s, m=0.5, easy=False):
    return per_class(cos, y, s, lambda i, c: c if easy and c <= 0 else turn(c, m))


def cosface(cos, y, norm, s, m=0.35):
    return per_class(cos, y, s, lambda i, c: c - m)


def combined(cos, y, norm, s, m1=1.0, m2=0.3, m3=0.2):
    return per_class(cos, y, s, lambda i, c: folded(m1 * math.acos(c) + m2) - m3)


def sphereface(cos, y, norm, s, m=1.7):
    return per_class(cos, y, s, lambda i, c: folded(m * math.acos(c)))


def sphereface_r(cos, y, norm, s, m=1.5, version=1):
    if version == 1:
        return per_class(
            cos, y, s, lambda i, c: math.cos(min(math.pi, m * math.acos(c)))
        )
    return per_class(cos, y, s, lambda i, c: c, lambda i, c: math.cos(math.acos(c) / m))


def circle(cos, y, norm, s, m=0.25):
    return per_class(
        cos,
        y,
        s,
        lambda i, c: max(0.0, 1 + m - c) * (c - (1 - m)),
        lambda i, c: max(0.0, c + m) * (c - m),
    )


def qamface(cos, y, norm, s, m=0.5):
    return per_class(
        cos,
        y,
        s,
        lambda i, c: (2 * math.pi - (math.acos(c) + m)) ** 2,
        lambda i, c: (2 * math.pi - math.acos(c)) ** 2,
    )


def margins_drawn(cos, y, m, std, plus, normal):
    """ElasticFace's margin of each example, from draws of N(0, 1)."""
    drawn = [m + std * x for x in normal]
    if not plus:
        return drawn
    far_last = sorted(range(len(y)), key=lambda i: -cos[i][y[i]])
    given = dict(zip(far_last, sorted(drawn), strict=True))
    return [given[i] for i in range(len(y))]


def elastic_arc(cos, y, norm, s, normal, m=0.5, std=0.05, plus=False):
    drawn = margins_drawn(cos, y, m, std, plus, normal)
    return per_class(cos, y, s, lambda i, c: turn(c, drawn[i]))


def elastic_cos(cos, y, norm, s, normal, m=0.35, std=0.05, plus=False):
    drawn = margins_drawn(cos, y, m, std, plus, normal)
    return per_class(cos, y, s, lambda i, c: c - drawn[i])


def magface(
    cos, y, norm, s, l_a=10, u_a=110, l_m=0.45, u_m=0.8, lambda_g=35, cosine=False
):
    a = [min(max(x, l_a), u_a) for x in norm]
    m = [(u_m - l_m) / (u_a - l_a) * (x - l_a) + l_m for x in a]
    logits, _ = per_class(cos, y, s, lambda i, c: c - m[i] if cosine else turn(c, m[i]))
    return logits, [lambda_g * (1 / x + x / u_a**2) for x in a]


def adaface(cos, y, norm, s, m=0.4, h=0.333, decay=0.99, mean=20.0, std=100.0):
    mean = decay * mean + (1 - decay) * statistics.mean(norm)
    std = decay * std + (1 - decay) * statistics.pstdev(norm)
    q = [max(-1.0, min(1.0, (x - mean) / (std + 1e-3) * h)) for x in norm]

    def true(i, c):
        angle, add = -m * q[i], m * q[i] + m
        return math.cos(min(max(math.acos(c) + angle, 1e-3), math.pi - 1e-3)) - add

    return per_class(cos, y, s, true)


def curricularface(cos, y, norm, s, m=0.5, decay=0.99, t=0.0):
    t = decay * t + (1 - decay) * statistics.mean(cos[i][y[i]] for i in range(len(y)))

    def other(i, c):
        return c if turn(cos[i][y[i]], m) >= c else c * (t + c)

    return per_class(cos, y, s, lambda i, c: turn(c, m), other)


def mv_softmax(cos, y, norm, s, m=0.35, t=1.12, angle=False, fixed=False):
    def true(i, c):
        return turn(c, m) if angle else c - m

    def other(i, c):
        if true(i, cos[i][y[i]]) >= c:
            return c
        return c + (t - 1) * (1 if fixed else c + 1)  # h = exp(s (t - 1) (c + 1))

    return per_class(cos, y, s, true, other)


def arcnegface(cos, y, norm, s, m=0.5, alpha=1.2, mu=0.0, sigma=1.0):
    def other(i, c):
        far = c - turn(cos[i][y[i]], m) - mu
        return alpha * math.exp(-(far**2) / (2 * sigma**2)) * (c + 1) - 1

    return per_class(cos, y, s, lambda i, c: turn(c, m), other)


def adacos(cos, y, norm, s, dynamic=True):
    s = math.sqrt(2) * math.log(len(cos[0]) - 1)
    if dynamic:
        sums = [
            math.fsum(math.exp(s * c) for j, c in enumerate(row) if j != label)
            for row, label in zip(cos, y, strict=True)
        ]
        angles = [math.acos(cos[i][y[i]]) for i in range(len(y))]
        median = statistics.median(angles)
        s = math.log(statistics.mean(sums)) / math.cos(min(math.pi / 4, median))
    return per_class(cos, y, s, lambda i, c: c)


def softplus(x):
    return x + math.log1p(math.exp(-x)) if x > 0 else math.log1p(math.exp(x))


def uniface(cos, y, b, s=64.0, m=0.4):
    """The mean over examples; b is taken off, as the paper writes it."""
    total = 0.0
    for row, label in zip(cos, y, strict=True):
        total += softplus(-(s * (row[label] - m) - b))
        total += math.fsum(softplus(s * c - b) for j, c in enumerate(row) if j != label)
    return total / len(y)


def sphereface2(cos, y, b, r=40.0, m=0.4, t=3.0, lam=0.7, lw=50.0):
    """The mean over examples; b is added, as the paper writes it."""
    total = 0.0
    for row, label in zip(cos, y, strict=True):
        for j, c in enumerate(row):
            g = 2 * ((c + 1) / 2) ** t - 1
            if j == label:
                total += lw * lam / r * softplus(-(r * (g - m) + b))
            else:
                total += lw * (1 - lam) / r * softplus(r * (g + m) + b)
    return total / len(y)


def prototypes(w, faces, now, lam, span):
    """VPL's class weights: `faces` maps a class to (step seen, embedding)."""
    out = []
    for c, row in enumerate(w):
        unit = [x / length(row) for x in row]
        seen, face = faces.get(c, (-math.inf, row))
        if now - seen <= span:
            face = [x / length(face) for x in face]
            unit = [(1 - lam) * a + lam * b for a, b in zip(unit, face, strict=True)]
        out.append(unit)
    return out
