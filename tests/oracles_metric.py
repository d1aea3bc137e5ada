"""Metric losses as their papers write them: loops over images, no arrays."""

import decimal
import math


def unit(v):
    n = math.sqrt(sum(x * x for x in v))
    return [x / n for x in v]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def square(a, b):
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def mean(values):
    return sum(values) / len(values) if values else 0.0


def split(labels, a):
    """Return (positives, negatives) of an anchor."""
    others = [i for i in range(len(labels)) if i != a]
    return (
        [i for i in others if labels[i] == labels[a]],
        [i for i in others if labels[i] != labels[a]],
    )


def triplet(rows, labels, *, m=0.2, mining="semi", squared=True):
    """FaceNet eqs. (3), (4); Hermans et al. eqs. (5), (6)."""
    rows = [unit(v) for v in rows]

    def d(i, j):
        found = square(rows[i], rows[j])
        return found if squared else math.sqrt(found)

    terms = []
    for a in range(len(rows)):
        positives, negatives = split(labels, a)
        if mining == "hard":
            if positives and negatives:
                far = max(d(a, p) for p in positives)
                near = min(d(a, n) for n in negatives)
                terms.append(max(0.0, far - near + m))
            continue
        for p in positives:
            if mining == "semi":
                beyond = [d(a, n) for n in negatives if d(a, n) > d(a, p)]
                if beyond:
                    terms.append(max(0.0, d(a, p) - min(beyond) + m))
            else:
                terms += [max(0.0, d(a, p) - d(a, n) + m) for n in negatives]
    if mining == "active":
        terms = [t for t in terms if t > 0]
    return mean(terms)


def contrastive(rows, labels, *, m=1.0):
    """Hadsell et al. eq. (4), the two kinds of pairs averaged apart."""
    rows = [unit(v) for v in rows]
    near, far = [], []
    for i in range(len(rows)):
        for j in range(len(rows)):
            d = math.sqrt(square(rows[i], rows[j]))
            if i != j and labels[i] == labels[j]:
                near.append(d * d / 2)
            elif i != j:
                far.append(max(0.0, m - d) ** 2 / 2)
    return mean(near) + mean(far)


def supervised_contrastive(rows, labels, *, temperature=0.1):
    """Khosla et al. eq. (2)."""
    rows, out = [unit(v) for v in rows], []
    for i in range(len(rows)):
        positives, negatives = split(labels, i)
        if not positives:
            continue
        below = sum(
            math.exp(dot(rows[i], rows[a]) / temperature) for a in positives + negatives
        )
        logs = [
            math.log(math.exp(dot(rows[i], rows[p]) / temperature) / below)
            for p in positives
        ]
        out.append(-sum(logs) / len(positives))
    return mean(out)


def n_pair(rows, labels, *, l2=0.002):
    """Sohn's (N+1)-tuplet loss for every anchor and positive, and its penalty."""
    terms = []
    for i in range(len(rows)):
        positives, negatives = split(labels, i)
        if negatives:
            for p in positives:
                plus = dot(rows[i], rows[p])
                total = sum(math.exp(dot(rows[i], rows[n]) - plus) for n in negatives)
                terms.append(math.log(1 + total))
    return mean(terms) + l2 * mean([dot(v, v) for v in rows])


def multi_similarity(rows, labels, *, alpha=2.0, beta=50.0, base=1.0, epsilon=0.1):
    """Wang et al. section 4: mining, then weighting."""
    rows, out = [unit(v) for v in rows], []
    for i in range(len(rows)):
        positives, negatives = split(labels, i)
        near = [dot(rows[i], rows[k]) for k in positives]
        far = [dot(rows[i], rows[k]) for k in negatives]
        kept_far = [s for s in far if near and s > min(near) - epsilon]
        kept_near = [s for s in near if far and s < max(far) + epsilon]
        first = 1 + sum(math.exp(-alpha * (s - base)) for s in kept_near)
        second = 1 + sum(math.exp(beta * (s - base)) for s in kept_far)
        out.append(math.log(first) / alpha + math.log(second) / beta)
    return mean(out)


def circle(rows, labels, *, m=0.25, gamma=256.0):
    """Sun et al. eq. (6)."""
    rows, out = [unit(v) for v in rows], []
    for i in range(len(rows)):
        positives, negatives = split(labels, i)
        if not positives or not negatives:
            continue
        first = second = decimal.Decimal(0)  # e^1000 is no float
        for k in positives:
            s = dot(rows[i], rows[k])
            z = -gamma * max(0.0, 1 + m - s) * (s - (1 - m))
            second += decimal.Decimal(z).exp()
        for k in negatives:
            s = dot(rows[i], rows[k])
            first += decimal.Decimal(gamma * max(0.0, s + m) * (s - m)).exp()
        out.append(float((1 + first * second).ln()))
    return mean(out)


def center(rows, labels, centres, *, alpha=0.5):
    """Wen et al. eqs. (2), as a mean, and (4): (loss, centres after the step)."""
    loss = mean([square(v, centres[y]) / 2 for v, y in zip(rows, labels, strict=True)])
    moved = []
    for j, c in enumerate(centres):
        mine = [v for v, y in zip(rows, labels, strict=True) if y == j]
        delta = [
            sum(c[d] - v[d] for v in mine) / (1 + len(mine)) for d in range(len(c))
        ]
        moved.append([x - alpha * dx for x, dx in zip(c, delta, strict=True)])
    return loss, moved


def cosine(rows, teacher):
    """One less the cosine of the two embeddings."""
    both = zip(rows, teacher, strict=True)
    return mean([1 - dot(unit(v), unit(t)) for v, t in both])


def l2(rows, teacher, *, unit_rows=False):
    """Squared distance of the two embeddings."""
    f = unit if unit_rows else list
    return mean([square(f(v), f(t)) for v, t in zip(rows, teacher, strict=True)])


def huber(x, y):
    gap = abs(x - y)
    return gap * gap / 2 if gap <= 1 else gap - 0.5


def relations(vectors):
    """Return all distances over their mean, and the cosines of all angles i j k."""
    n = range(len(vectors))
    pairs = [(i, j) for i in n for j in n if i != j]
    d = [math.sqrt(square(vectors[i], vectors[j])) for i, j in pairs]
    angles = []
    for i, j in pairs:
        for k in n:
            if k not in (i, j):
                a = [x - y for x, y in zip(vectors[i], vectors[j], strict=True)]
                b = [x - y for x, y in zip(vectors[k], vectors[j], strict=True)]
                angles.append(dot(unit(a), unit(b)))
    return [x / mean(d) for x in d], angles


def relational(rows, teacher, *, distance=1.0, angle=2.0, unit_rows=False):
    """Park et al.: distance-wise and angle-wise losses, as means."""
    f = unit if unit_rows else list
    d, a = relations([f(v) for v in rows])
    d_there, a_there = relations([f(v) for v in teacher])
    apart = [huber(x, y) for x, y in zip(d, d_there, strict=True)]
    turned = [huber(x, y) for x, y in zip(a, a_there, strict=True)]
    return distance * mean(apart) + angle * mean(turned)


def logits(rows, teacher, weights, their_weights, *, temperature=4.0, scale=64.0):
    """Hinton et al. section 2: T^2 KL(teacher || network)."""

    def probabilities(v, w):
        z = [scale * dot(unit(v), unit(c)) / temperature for c in w]
        total = sum(math.exp(x) for x in z)
        return [math.exp(x) / total for x in z]

    out = []
    for v, t in zip(rows, teacher, strict=True):
        p, q = probabilities(t, their_weights), probabilities(v, weights)
        out.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return temperature**2 * mean(out)
