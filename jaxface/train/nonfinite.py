"""What to do about a step whose loss or gradient is not finite: `train.nonfinite`.

"stop"                          at the first, with the last good checkpoint named
"skip(after=100)"               leave it out and count it
"rollback(after=3, factor=0.5)" leave it out; after three in a row go back
"scaled(start=16, growth=2000)" leave it out and halve the scale of the loss: float16
"""

from __future__ import annotations

from jaxface.train import guard


def stop() -> guard.Policy:
    """End the run at the first loss that is not finite."""
    return guard.STOP


def skip(*, after: int = 100) -> guard.Policy:
    """Leave such steps out and count them; end after so many in a row.

    Args:
        after: how many in a row end the run.

    Raises:
        ValueError: out of range.
    """
    return guard.Policy(skips=True, after=_counted("after", after))


def rollback(*, after: int = 3, factor: float = 0.5, times: int = 5) -> guard.Policy:
    """Leave such steps out; go back to the last good checkpoint where they persist.

    Args:
        after: how many in a row lead back.
        factor: of the learning rate from there on, each time.
        times: how often; one more time ends the run.

    Raises:
        ValueError: out of range.
    """
    if not 0 < factor <= 1:
        raise ValueError(f"rollback's factor is {factor}; wanted above 0, up to 1")
    return guard.Policy(
        skips=True,
        after=_counted("after", after),
        times=_counted("times", times),
        factor=float(factor),
    )


def scaled(*, start: int = 16, growth: int = 2000, after: int = 100) -> guard.Policy:
    """Multiply the loss by a power of two, so that float16 holds its gradient.

    A step that overflows is left out and halves the scale; steps without overflow
    double it. Metrics tell `loss_scale`. All gradients are divided by it again, so a
    network in float32 trains to the same bits.

    Args:
        start: log2 of the first scale.
        growth: steps without overflow after which it doubles.
        after: how many left out in a row end the run.

    Raises:
        ValueError: out of range.
    """
    if not isinstance(start, int) or not 0 <= start <= guard.LARGEST:
        raise ValueError(
            f"train.nonfinite: start is {start!r}; wanted 0 to {guard.LARGEST}, the"
            " exponent of the loss scale"
        )
    return guard.Policy(
        skips=True,
        after=_counted("after", after),
        growth=_counted("growth", growth),
        scale=start,
    )


def _counted(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"train.nonfinite: {name} is {value!r}; wanted 1 or more")
    return value
