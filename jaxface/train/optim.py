"""Optimizers by name: `sgd(momentum=0.9, weight_decay=5e-4)`, `adamw()`, ...

Each takes the learning rate as a schedule (updates done -> rate) and is a plain
`optax.GradientTransformation`. Weight decay leaves biases, norms, slopes and a
margin's own parameters alone. `f.elementwise` says that each number's update depends
on that number alone, so it may run on a shard (mesh.how = "pmap"); LAMB and Muon look
at whole arrays and do not say so.

    tx = sgd(lr=schedules.cosine(peak=0.1, warmup_steps=0, total_steps=1000))
    opt_state = tx.init(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

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


@_elementwise
def adagrad(
    *,
    lr: optax.Schedule,
    start: float = 0.0,
    eps: float = 1e-10,
    weight_decay: float = 5e-4,
    no_decay: str = NO_DECAY,
) -> optax.GradientTransformation:
    """AdaGrad (Duchi et al., JMLR 2011, Figure 1), diagonal, with decay as in SGD.

    g += wd w; s += g^2; w -= lr g / sqrt(s + eps^2). The paper and torch divide by
    sqrt(s) + eps: the same where |g| is far from eps, and here s = 0 moves nothing.

    Args:
        lr: updates done -> learning rate.
        start: of the sum s.
        eps: delta, in the unit of a gradient.
        weight_decay: wd, joined to the gradient.
        no_decay: regex over the parameter's path; matches are not decayed.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=_decayed(no_decay)),
        optax.adagrad(lr, initial_accumulator_value=start, eps=eps**2),
    )


@_elementwise
def lion(
    *,
    lr: optax.Schedule,
    b1: float = 0.9,
    b2: float = 0.99,
    weight_decay: float = 0.5,
    no_decay: str = NO_DECAY,
) -> optax.GradientTransformation:
    """Lion: the sign of a momentum (Chen et al., NeurIPS 2023, Algorithm 2).

    w -= lr (sign(b1 m + (1 - b1) g) + wd w), then m = b2 m + (1 - b2) g. The paper
    takes a learning rate 3 to 10 times below AdamW's, and as much more decay.

    Args:
        lr: updates done -> learning rate.
        b1: share of the momentum in the sign.
        b2: decay of the momentum.
        weight_decay: wd.
        no_decay: regex over the parameter's path; matches are not decayed.
    """
    mask = _decayed(no_decay)
    return optax.lion(lr, b1=b1, b2=b2, weight_decay=weight_decay, mask=mask)


def lamb(
    *,
    lr: optax.Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 0.01,
    no_decay: str = NO_DECAY,
) -> optax.GradientTransformation:
    """LAMB: Adam with a step as long as the weights (You et al., ICLR 2020).

    Algorithm 2, phi the identity: u = m / (sqrt(v) + eps) + wd w with corrected
    moments; w -= lr |w| / |u| u, by array. What is not decayed takes u as it is: a
    bias that starts from zero could hardly grow at a rate of its own length.

    Args:
        lr: updates done -> learning rate.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the corrected second moment.
        weight_decay: wd.
        no_decay: regex over the parameter's path; matches are neither decayed nor
            scaled to the length of the weights.
    """
    mask = _decayed(no_decay)
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay, mask=mask),
        optax.masked(optax.scale_by_trust_ratio(), mask),
        optax.scale_by_learning_rate(lr),
    )


def muon(
    *,
    lr: optax.Schedule,
    beta: float = 0.95,
    steps: int = 5,
    rms: float = 0.2,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.05,
    no_decay: str = NO_DECAY,
) -> optax.GradientTransformation:
    """Muon for the backbone's kernels, AdamW for all else (Jordan et al., 2024).

    A kernel's momentum is replaced by the nearest matrix with orthonormal rows or
    columns (a convolution's is [kh kw I, O]). Scaled as Liu et al. (arXiv:2502.16982,
    eq. (4)) do, so that a learning rate of AdamW's fits both.

    Args:
        lr: updates done -> learning rate.
        beta: decay of the momentum.
        steps: of the Newton-Schulz iteration, which leaves singular values between
            about 0.7 and 1.2.
        rms: root mean square of an update at lr = 1; the factor of the orthonormal
            matrix is rms sqrt(max(kh kw I, O)).
        b1: AdamW's decay of the first moment.
        b2: AdamW's decay of the second moment.
        eps: AdamW's addend.
        weight_decay: of both, decoupled: w -= lr wd w.
        no_decay: regex over the parameter's path; matches are not decayed.
    """
    adam = adamw(
        lr=lr, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, no_decay=no_decay
    )
    kernels = optax.chain(
        optax.contrib.scale_by_muon(
            beta=beta, ns_steps=steps, eps=eps, weight_dimension_numbers=_matrices
        ),
        optax.stateless(
            lambda updates, _: jax.tree.map(
                lambda u: rms * max(math.prod(u.shape[:-1]), u.shape[-1]) ** 0.5 * u,
                updates,
            )
        ),
        optax.add_decayed_weights(weight_decay, mask=_decayed(no_decay)),
        optax.scale_by_learning_rate(lr),
    )

    def labels(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: "kernels" if _is_matrix(path, leaf) else "rest", params
        )

    return optax.partition({"kernels": kernels, "rest": adam}, labels)


def _is_matrix(path: Any, leaf: jax.Array) -> bool:
    """Whether a parameter is one of the backbone's linear maps."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    # a depthwise kernel [kh, kw, 1, C] maps channel by channel
    of_backbone = re.search(r"^params/(.*/)?kernel$", name) is not None
    return of_backbone and leaf.ndim > 1 and leaf.shape[-2] > 1


def _matrices(kernels: Any) -> Any:
    """Say of [..., I, O] arrays that they are matrices [... I, O]."""
    return jax.tree.map(
        lambda x: optax.contrib.MuonDimensionNumbers(
            tuple(range(x.ndim - 1)), x.ndim - 1
        ),
        kernels,
    )
