"""Peak rates of devices, as their makers state them, and the time they allow.

The law: a prediction is the best that could be, never a measurement: arithmetic and
memory overlap perfectly, communication not at all, and every rate is a peak.

    chip = hardware.CHIPS["v5e"]
    seconds(chip, flops=2e12, moved=8e9, sent=1e8, dtype="bfloat16")
"""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one device can do.

    Attributes:
        memory: bytes.
        flops: per second in bfloat16.
        flops32: per second of float32 products as JAX does them by default: one pass
            in bfloat16 on TPU, TF32 on GPU.
        bandwidth: bytes a second of its memory.
        link: bytes a second it sends to the other devices, one way.
        source: who says so.
    """

    memory: float
    flops: float
    flops32: float
    bandwidth: float
    link: float
    source: str


_TPU = "docs.cloud.google.com/tpu/docs/"
_GPU = "NVIDIA's data sheet, SXM, dense: "

# TPU: peak in bfloat16, memory and interconnect per chip as those pages state them; of
# the interconnect, told for both directions, half. v4's page has no such line: there it
# is the all-reduce bandwidth of a pod, 1.1 PB/s, over its 4,096 chips, by which others
# come out at that half too (v5e: 51.2 TB/s over 256 chips; v6e: 102.4 TB/s over 256).
# GPU: tensor cores without sparsity (Hopper's sheets state twice that, with it); half
# of NVLink, which holds within a machine: between them it is what the network gives.
CHIPS = {
    "v4": Chip(32 * 2**30, 275e12, 275e12, 1.2e12, 1.1e15 / 4096, _TPU + "v4"),
    "v5e": Chip(16e9, 197e12, 197e12, 819e9, 200e9, _TPU + "v5e"),
    "v5p": Chip(95e9, 459e12, 459e12, 2.765e12, 600e9, _TPU + "v5p"),
    "v6e": Chip(32e9, 918e12, 918e12, 1.6e12, 400e9, _TPU + "v6e"),
    "a100": Chip(80e9, 312e12, 156e12, 2.039e12, 300e9, _GPU + "A100 80 GB"),
    "h100": Chip(80e9, 989e12, 494e12, 3.35e12, 450e9, _GPU + "H100"),
    "h200": Chip(141e9, 989e12, 494e12, 4.8e12, 450e9, _GPU + "H200"),
}


def seconds(
    chip: Chip, *, flops: float, moved: float, sent: float, dtype: Any
) -> tuple[float, float, float]:
    """Return (arithmetic, memory, communication) seconds at peak rates.

    Their roofline (Williams et al. 2009) is max(arithmetic, memory) + communication.

    Args:
        chip: of `CHIPS`.
        flops: floating-point operations of one device.
        moved: bytes it reads and writes in its memory.
        sent: bytes it sends.
        dtype: what the network computes in.
    """
    peak = chip.flops32 if str(dtype) == "float32" else chip.flops
    return flops / peak, moved / chip.bandwidth, sent / chip.link
