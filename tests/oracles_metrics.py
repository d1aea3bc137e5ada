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


def view2(scores, same, fold):
    """Try infinity and every score of the other folds, the highest first."""
    accuracies, chosen = [], []
    for k in range(fold.max() + 1):
        train = fold != k if fold.max() else fold == k
        best, best_right = np.inf, np.sum(~same[train])
        for threshold in sorted(set(scores[train]), reverse=True):
            right = np.sum((scores[train] >= threshold) == same[train])
            if right > best_right:
                best, best_right = threshold, right
        chosen.append(best)
        test = fold == k
        accuracies.append(np.mean((scores[test] >= best) == same[test]))
    return accuracies, chosen


def spread(value, people, group):
    """Variance of a sum of group means over dyads, right in expectation.

    The products of residuals of all pairs that share a person, over what they would be
    on average if people had independent effects, times the true variance then.
    """
    N, P = len(people), people.max() + 1
    touches = np.zeros((N, P))
    for i, pair in enumerate(people):
        for p in set(pair):
            touches[i, p] = 1
    alike = np.equal.outer(group, group)
    centre = np.eye(N) - alike / alike.sum(axis=1)
    weight = np.diag(1 / alike.sum(axis=1))
    share = touches @ touches.T > 0
    # r' K r with K = w_i w_j where pairs i and j share a person
    products = weight @ share @ weight
    if (touches.sum(axis=1) == 2).any():
        double = touches @ touches.T == 2  # both people: the product counts twice
        np.fill_diagonal(double, 0)
        products = products + weight @ double @ weight
    residual = centre @ value
    effects = centre @ touches
    expected = np.trace(effects.T @ products @ effects)
    total = np.sum((touches.T @ np.diag(weight)) ** 2)
    return residual @ products @ residual * total / expected


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
