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
