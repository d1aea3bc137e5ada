"""Element types of other people's weights, as NumPy has them.

One law: half precision widens to float32, which holds each of its values exactly;
everything else stays what it is.

    widen(np.zeros(3, ml_dtypes.bfloat16)).dtype     # float32
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

# The floats of two bytes or less of which PyTorch, ONNX and safetensors write some.
NARROW = frozenset(
    np.dtype(kind)
    for kind in (
        np.float16,
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e4m3fn,
        ml_dtypes.float8_e4m3fnuz,
        ml_dtypes.float8_e5m2,
        ml_dtypes.float8_e5m2fnuz,
    )
)


def widen(array: np.ndarray) -> np.ndarray:
    """Return a contiguous copy of its own, with narrow floats as float32.

    Args:
        array: of any shape, strides and byte order.

    Returns:
        Native byte order, C order; float32 where the array had a narrower float.
    """
    native = array.dtype.newbyteorder("=")
    kind = np.dtype(np.float32) if native in NARROW else native
    return np.array(array, dtype=kind, order="C")
