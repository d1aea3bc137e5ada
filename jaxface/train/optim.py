"""Optimizers by name: `sgd(momentum=0.9, weight_decay=5e-4)`, `adamw()`, ...

Each takes the learning rate as a schedule (updates done -> rate) and is a plain
`optax.GradientTransformation`. Weight decay leaves biases, norms, slopes and a
margin's own parameters alone. `f.elementwise` says that a parameter's update
depends on that parameter alone, so it may run on a shard (mesh.how = "pmap").

    tx = sgd(lr=schedules.cosine(peak=0.1, warmup_steps=0, total_steps=1000))
    opt_state = tx.init(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

# of the path "params/layer1_0/bn1/scale"
NO_DECAY = r"^margin/|(^|/)(bias|scale|slope)$"


def _elementwise(make: Any) -> Any:
    make.elementwise = True
    return make


def _decayed(no_decay: str) -> Callable[[Any], Any]:
    """Make the mask: True where the path does not match."""
    pattern = re.compile(no_decay)

    def decayed(path: Any, _: Any) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return not pattern.search(name)

    return lambda params: jax.tree_util.tree_map_with_path(decayed, params)


@_elementwise
def sgd(
    *,
    lr: optax.Schedule,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    nesterov: bool = False,
    no_decay: str = NO_DECAY,
) -> optax.GradientTransformation:
    """SGD with momentum, as torch has it: g += wd w; m = mu m + g; w -= lr m.

    Args:
        lr: updates done -> learning rate.
        momentum: mu.
        weight_decay: wd, joined to the gradient before momentum.
        nesterov: step along g + mu m instead of m.
        no_decay: regex over the parameter's path; matches are not decayed.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=_decayed(no_decay)),
        optax.sgd(lr, momentum=momentum, nesterov=nesterov),
    )


@_elementwise
def adam(
    *, lr: optax.Schedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba, ICLR 2015, Algorithm 1), without weight decay."""
    return optax.adam(lr, b1=b1, b2=b2, eps=eps)


@_elementwise
def adamw(
    *,
    lr: optax.Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.05,
    no_decay: str = NO_DECAY,
) -> optax.GradientTransformation:
    """Adam with decoupled decay, w -= lr wd w (Loshchilov and Hutter, ICLR 2019).

    Args:
        lr: updates done -> learning rate.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the corrected second moment.
        weight_decay: wd.
        no_decay: regex over the parameter's path; matches are not decayed.
    """
    return optax.adamw(
        lr,
        b1=b1,
        b2=b2,
        eps=eps,
        weight_decay=weight_decay,
        mask=_decayed(no_decay),
    )


@_elementwise
def keras_adam(
    *, lr: optax.Schedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-7
) -> optax.GradientTransformation:
    """Adam as Keras computes it, with epsilon placed before the bias correction.

    w -= lr sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps): the "epsilon hat" form
    in the last lines of section 2 of Kingma and Ba (ICLR 2015), as in Keras 3's
    `keras/src/optimizers/adam.py`. In Algorithm 1, which `adam` follows, this is an
    epsilon of eps / sqrt(1 - b2^t): 32 times eps at the first update.
    """

    def update(
        grads: Any, state: optax.ScaleByAdamState, params: Any = None
    ) -> tuple[Any, optax.ScaleByAdamState]:
        del params
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        nu = optax.tree.update_moment(grads, state.nu, b2, 2)
        count = optax.safe_increment(state.count)

        def scaled(m: jax.Array, v: jax.Array) -> jax.Array:
            t = count.astype(m.dtype)
            correction = jnp.sqrt(1 - b2**t) / (1 - b1**t)
            return correction * m / (jnp.sqrt(v) + eps)

        updates = jax.tree.map(scaled, mu, nu)
        return updates, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    moments = optax.GradientTransformation(optax.scale_by_adam().init, update)
    return optax.chain(moments, optax.scale_by_learning_rate(lr))
