"""RMS norm in MindSpore's operators, called one by one as MindSpore does by default.

MindSpore dispatches without waiting, so a call ends when its result is there as numpy.
"""

from functools import cache
from typing import Any

import numpy as np

from frugalbench.specs.kernel_tax import EPSILON


@cache
def framework(threads: int) -> Any:
    """MindSpore on the processor with so many threads; it takes their number once in a process."""
    import mindspore

    mindspore.set_device("CPU")
    mindspore.device_context.cpu.op_tuning.threads_num(threads)
    return mindspore


def rms_norm(ms: Any, x_TD: Any, weights: dict[str, Any]) -> Any:
    """x / sqrt(mean(x²) + epsilon) · gain."""
    mean_T1 = ms.ops.mean(x_TD * x_TD, axis=-1, keep_dims=True)
    return x_TD * ms.ops.rsqrt(mean_T1 + EPSILON) * weights["gain"]


def held(ms: Any, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Arrays as MindSpore's tensors."""
    return {name: ms.Tensor(value) for name, value in arrays.items()}
