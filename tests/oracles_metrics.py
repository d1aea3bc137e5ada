"""Slow, obvious references for the metrics: loops as the protocols are told."""

import numpy as np


def auc(scores, same):
    """Mann-Whitney: the share of (genuine, impostor) pairs in the right order."""
    won = [
        1.0 if g > i else 0.5 if g == i else 0.0
        for g in scores[same]
        for i in scores[~same]
    ]
    return float(np.mean(won))


def tar_at_far(scores, same, far):
    """Try every observed score as the threshold, keep the lowest admissible."""
    best = (0.0, np.inf)
    for threshold in sorted(set(scores), reverse=True):
        if np.mean(scores[~same] >= threshold) > far:
            break
        best = (float(np.mean(scores[same] >= threshold)), float(threshold))
    return best


def accuracy_at(distance, same, threshold):
    """Share of right decisions when a distance below the threshold means same."""
    right = 0
    for d, s in zip(distance, same, strict=True):
        right += (d < threshold) == s
    return right / len(same)


def kfold(left, right, same, splits):
    """insightface's verification loop on unit embeddings [N, D].

    Args:
        left, right: unit embeddings [N, D].
        same: [N] bool.
        splits: (train, test) index arrays, as scikit-learn's KFold gives them.

    Returns:
        (accuracies [K], squared-distance thresholds [K]).
    """
    distance = np.sum((left - right) ** 2, axis=1)
    accuracies, chosen = [], []
    for train, test in splits:
        best, best_accuracy = 0.0, -1.0
        for threshold in np.arange(0, 4, 0.01):
            accuracy = accuracy_at(distance[train], same[train], threshold)
            if accuracy > best_accuracy:
                best, best_accuracy = threshold, accuracy
        chosen.append(best)
        accuracies.append(accuracy_at(distance[test], same[test], best))
    return np.array(accuracies), np.array(chosen)


def dyadic_variance(correct, people):
    """Variance of a mean: products of residuals of all pairs that share a person."""
    residual = correct - np.mean(correct)
    total = 0.0
    for r, a in zip(residual, people, strict=True):
        for s, b in zip(residual, people, strict=True):
            total += r * s * bool(set(a) & set(b))
    return total / len(correct) ** 2


def searches(probe, gallery, probe_id, gallery_id):
    """Ranks, mates and strangers, probe by probe and row by row."""
    found = []
    for p, who in zip(probe, probe_id, strict=True):
        cos = [float(np.dot(p, g)) for g in gallery]
        own = [c for c, i in zip(cos, gallery_id, strict=True) if i == who]
        other = [c for c, i in zip(cos, gallery_id, strict=True) if i != who]
        mate = max(own, default=-np.inf)
        rank = 1 + sum(c >= mate for c in other) if own else 0
        found.append((rank, mate, max(other)))
    return zip(*found, strict=True)


def open_set(ranks, mate, stranger, fpir, *, rank):
    """Try thresholds just above every stranger, keep the lowest admissible."""
    alarms = stranger[ranks == 0]
    for score in sorted(set(alarms)):
        passed = np.mean(alarms > score)
        if passed <= fpir:
            hits = [
                m > score and r <= rank
                for m, r in zip(mate[ranks > 0], ranks[ranks > 0], strict=True)
            ]
            return float(passed), float(np.mean(hits))
    raise AssertionError("above the highest, nothing passes")


def pool(e, template, media, weight, normalise):
    """Mean over the images of a medium, sum over media, template by template."""
    out = []
    for t in range(template.max() + 1):
        total = np.zeros(e.shape[1])
        for m in set(media[template == t]):
            frames = []
            for i in np.flatnonzero((template == t) & (media == m)):
                x = e[i] / np.linalg.norm(e[i]) if normalise else e[i]
                frames.append(x if weight is None else x * weight[i])
            total += np.mean(frames, axis=0)
        out.append(total / np.linalg.norm(total))
    return np.array(out)
