"""PyTorch's train step of the same network, head and optimizer, at its best.

Law: it is what a PyTorch user would write, in whichever memory format, compiled or not
and on however many threads it is fastest here: `steps` gives the ways, `bench_step`
keeps the best. Networks are the tests' twins, with the layers of arcface_torch.

    ways = steps("iresnet.r18", data, classes=1000, m=0.2, scale=24.0, lr=1e-3,
                 compiled=False, threads=2)
    ways["torch: channels last, eager, 2 threads"]()      # a step, until it is done
"""

from __future__ import annotations

import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxface import types

TWINS = pathlib.Path(__file__).parent.parent / "tests"


def steps(
    line: str,
    data: types.Batch,
    *,
    classes: int,
    m: float,
    scale: float,
    lr: float,
    compiled: bool,
    threads: int,
) -> dict[str, Callable[[], float]]:
    """Return train steps by the memory format, each of which goes on from its last.

    Args:
        line: a network of ours that has a twin, such as "iresnet.r50".
        data: image [B, H, W, 3] float32, H = W, and label [B].
        classes: C of the head.
        m: CosFace's margin.
        scale: of the logits.
        lr: learning rate of SGD with momentum 0.9 and weight decay 5e-4.
        compiled: by torch.compile, which takes minutes for a large network.
        threads: how many.

    Raises:
        ImportError: PyTorch is not installed.
        ValueError: a network without a twin.
    """
    try:
        import torch
    except ImportError:
        raise ImportError(
            "bench.py --vs=torch needs PyTorch: pip install jaxface[peers]"
        ) from None
    make = networks(data["image"].shape[1])
    if line not in make:
        raise ValueError(f"--vs=torch has no twin of {line}; it has {', '.join(make)}")
    how = "compiled" if compiled else "eager"
    return {
        f"torch: channels {way}, {how}, {threads} threads": _Step(
            torch,
            make[line](),
            data,
            classes=classes,
            loss=functools.partial(cosface, torch, m=m, scale=scale),
            lr=lr,
            last=way == "last",
            compiled=compiled,
            threads=threads,
        )
        for way in ("first", "last")
    }


def networks(size: int) -> dict[str, Callable[[], Any]]:
    """Return what makes the twins, by our lines."""
    if str(TWINS) not in sys.path:
        sys.path.insert(0, str(TWINS))
    from twins import iresnet, mobilefacenet, vit

    published = functools.partial(
        iresnet.IResNet, widths=iresnet.PUBLISHED, dim=512, side=size
    )
    return {
        "iresnet.r18": functools.partial(published, (2, 2, 2, 2)),
        "iresnet.r50": functools.partial(published, (3, 4, 14, 3)),
        "mobilefacenet.mbf": functools.partial(
            mobilefacenet.Arcface, (1, 4, 6, 2), 2, 512, size
        ),
        "vit.t": functools.partial(vit.Vit, 12, 256, 8, 9, 4, 512, size),
    }


def cosface(torch: Any, e: Any, w: Any, label: Any, *, m: float, scale: float) -> Any:
    """Return the mean loss of embeddings [B, D], weights [C, D] and labels [B]."""
    unit = torch.nn.functional.normalize
    cos = (unit(e) @ unit(w).T).clamp(-1 + 1e-7, 1 - 1e-7)
    margin = m * torch.nn.functional.one_hot(label, len(w))
    return torch.nn.functional.cross_entropy(scale * (cos - margin), label)


class _Step:
    """One network, its head and optimizer; a call is a step."""

    def __init__(
        self,
        torch: Any,
        net: Any,
        data: types.Batch,
        *,
        classes: int,
        loss: Callable[[Any, Any, Any], Any],
        lr: float,
        last: bool,
        compiled: bool,
        threads: int,
    ):
        self._torch, self._threads = torch, threads
        layout = torch.channels_last if last else torch.contiguous_format
        net = net.to(memory_format=layout).train()
        # Whatever JAX's array is backed by, torch has its own.
        pixels = torch.from_numpy(np.array(data["image"]).transpose(0, 3, 1, 2).copy())
        self._images = pixels.contiguous(memory_format=layout)
        self._labels = torch.from_numpy(np.array(data["label"])).long()
        with torch.no_grad():
            dim = net.eval()(self._images[:1]).shape[1]
        net.train()
        self._head = torch.nn.Parameter(0.01 * torch.randn(classes, dim))
        self._optimizer = torch.optim.SGD(
            [*(p for p in net.parameters() if p.requires_grad), self._head],
            lr=lr,
            momentum=0.9,
            weight_decay=5e-4,
        )

        def forward(images: Any, head: Any, labels: Any) -> Any:
            return loss(net(images), head, labels)

        self._plain, self._compiled = forward, compiled

    @functools.cached_property
    def _forward(self) -> Callable[..., Any]:
        # The compiler takes seconds to import: not before it is wanted.
        return self._torch.compile(self._plain) if self._compiled else self._plain

    def __call__(self) -> float:
        if self._torch.get_num_threads() != self._threads:
            self._torch.set_num_threads(self._threads)
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._forward(self._images, self._head, self._labels)
        loss.backward()
        self._optimizer.step()
        return float(loss.detach())
