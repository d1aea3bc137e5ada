"""Freezing and multiples of the learning rate, by regex over the parameter's path.

The law: rules are (regex, factor) and the first that matches a path decides; a factor
m multiplies the whole update, decay included, so it is the learning rate times m, and
0 freezes: no gradient, no moments, not a bit of change. No match is 1.

    rules = (("^params/conv1/", 0.0), ("^params/", 0.1))
    tx = scaled(sgd(lr=schedule), rules)
    grads = step.make_grads(model, loss, axis="data", frozen=frozen(rules))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

Rules = Sequence[tuple[str, float]]


def factor(rules: Rules, path: str) -> float:
    """Return what multiplies the learning rate of "params/layer1_0/conv1/kernel"."""
    return next((f for pattern, f in rules if re.search(pattern, path)), 1.0)


def frozen(rules: Rules) -> Callable[[str], bool]:
    """Make the function that tells whether a path is frozen."""
    return lambda path: factor(rules, path) == 0


def scaled(
    tx: optax.GradientTransformation, rules: Rules
) -> optax.GradientTransformation:
    """Multiply an optimizer's updates by path; it is not shown what is frozen.

    Element-wise where `tx` is; `tx` itself where there are no rules.

    Args:
        tx: any optimizer, over {"params", "head", "margin"}.
        rules: (regex, factor), the first match wins.
    """
    if not rules:
        return tx

    def factors(tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: factor(rules, name_of(path)), tree
        )

    def moves(tree: Any) -> Any:
        return jax.tree.map(lambda f: f != 0, factors(tree))

    def times(updates: Any, _: Any) -> Any:
        # What `masked` left out is still the gradient, so zero is not a product.
        return jax.tree.map(
            lambda u, f: f * u if f else jnp.zeros_like(u), updates, factors(updates)
        )

    return optax.chain(optax.masked(tx, moves), optax.stateless(times))


def check(rules: Rules, trainable: Any) -> None:
    """Refuse rules that decide nothing, and a network in which nothing moves.

    Args:
        rules: (regex, factor).
        trainable: {"params", "head", "margin"}, arrays or shapes.

    Raises:
        ValueError: a regex that matches no path, or none that is left to it by those
            before it; or all is frozen.
    """
    leaves = jax.tree_util.tree_leaves_with_path(trainable)
    paths = [name_of(path) for path, _ in leaves]
    free = paths
    for pattern, _ in rules:
        found = [path for path in paths if re.search(pattern, path)]
        if not found:
            raise ValueError(
                f"optim.multipliers: {pattern!r} matches no parameter; there are"
                f" {', '.join(_some(paths))}"
            )
        if not set(found) & set(free):
            raise ValueError(
                f"optim.multipliers: all that {pattern!r} matches is decided by the"
                f" regexes before it, such as {found[0]}; put the narrower one first"
            )
        free = [path for path in free if path not in found]
    if all(factor(rules, path) == 0 for path in paths):
        raise ValueError("optim.multipliers freezes every parameter; nothing is left")


def name_of(path: Any) -> str:
    """Return a tree path as "params/layer1_0/conv1/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _some(paths: list[str], count: int = 8) -> list[str]:
    """Return paths spread over the network, its ends included."""
    if len(paths) <= count:
        return paths
    last = len(paths) - 1
    return [paths[round(i * last / (count - 1))] for i in range(count)] + ["..."]
