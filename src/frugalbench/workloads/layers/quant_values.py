"""Seeded weights, inputs and output digests of ``quantized_linear``: the same numbers for every arm.

Shapes: N outputs, K inputs, M tokens. Weights are w_NK, inputs x_MK, outputs y_MN = x_MK @ w_NK.T.
"""

from functools import cache
from statistics import NormalDist

import numpy as np

from frugalbench.workloads.base import Arrays

DISTINCT_INPUTS = 4
"""Inputs differ between the first so many positions of the rotation, then repeat (the weights do not)."""
ROW_BLOCK = 64
"""Rows are moved by multiples of this, so that layouts which interleave 4 to 64 rows can be moved as they are."""
OUTLIER = 8.0
"""Magnitude of the outlier channels: above the threshold 6 that LLM.int8 keeps in float (arXiv 2208.07339, 3.2)."""
LARGEST_INPUT = OUTLIER + 0.5
"""No activation lies farther from 0."""
_CHECKED_TOKENS = 16


@cache
def _normal_table() -> np.ndarray:
    """65,536 quantiles of the standard normal distribution, float32, in order."""
    quantile = NormalDist().inv_cdf
    return np.array([quantile((i + 0.5) / 65536) for i in range(65536)], np.float32)


def place(copy: int, n: int) -> tuple[int, int]:
    """Which drawn matrix ``copy`` is, and how many rows it is moved on.

    Drawing and quantising each copy would take most of a run. The first four are drawn; each later one holds the rows
    of one of them from another row on, so its bytes are nowhere the same and its answer is that one's, moved on. Where
    no further block of rows is left, and where ``n`` is not made of whole blocks, more matrices are drawn.
    """
    turn, number = divmod(copy, DISTINCT_INPUTS)
    epoch, block = divmod(turn, _row_blocks(n))
    return epoch * DISTINCT_INPUTS + number, block * ROW_BLOCK


def unmoved(number: int, n: int) -> int:
    """The copy that is drawn matrix ``number`` as it was drawn."""
    epoch, first = divmod(number, DISTINCT_INPUTS)
    return epoch * _row_blocks(n) * DISTINCT_INPUTS + first


def _row_blocks(n: int) -> int:
    return n // ROW_BLOCK if n % ROW_BLOCK == 0 else 1


def moved(rows: np.ndarray, shift: int) -> np.ndarray:
    """``rows`` with the first axis moved on by ``shift``; the very same array where there is nothing to move."""
    return np.roll(rows, shift, axis=0) if shift else rows


def weights(seed: int, copy: int, n: int, k: int) -> np.ndarray:
    """Matrix number ``copy``: float32 (n, k), normal with standard deviation 1/sqrt(k), the same everywhere."""
    number, shift = place(copy, n)
    return moved(drawn(seed, number, n, k), shift)


def drawn(seed: int, number: int, n: int, k: int) -> np.ndarray:
    """Drawn matrix ``number`` (see :func:`place`).

    Random 16-bit numbers pick quantiles from a table: several times cheaper than drawing normal deviates.
    """
    return np.asarray(quantiles(k)[random_words(seed, number, n, k)]).reshape(n, k)


def random_words(seed: int, number: int, n: int, k: int) -> np.ndarray:
    """The uint16 numbers (n k) that pick the weights of drawn matrix ``number``."""
    return np.random.SFC64([seed, number]).random_raw((n * k + 3) // 4).view(np.uint16)[: n * k]


def quantiles(k: int) -> np.ndarray:
    """65,536 quantiles, float32, of the weights' distribution."""
    return np.asarray((_normal_table() / np.sqrt(k)).astype(np.float32))


def inputs(seed: int, position: int, m: int, k: int) -> np.ndarray:
    """Activations at ``position``: float32 (m, k), magnitudes 0.5 to 1.5 with random signs, never near zero.

    One channel in 1024 (at least one) is an outlier of magnitude 8 +- 1 in every token, as in real language models.
    """
    rng = np.random.default_rng([seed, position % DISTINCT_INPUTS, m, k])
    magnitude = rng.uniform(0.5, 1.5, (m, k)).astype(np.float32)
    channels = np.random.default_rng([seed, k]).choice(k, max(1, k // 1024), replace=False)
    magnitude[:, channels] += OUTLIER - 1.0
    return np.asarray(magnitude * rng.choice(np.array([-1.0, 1.0], np.float32), (m, k)))


@cache
def projection(m: int) -> np.ndarray:
    """P_CM, float64: 16 tokens spread over the m, and one row that adds all of them with random signs.

    The product is linear, so P @ y can be checked at a fraction of the cost of y, and an error in any element
    of y shows: a sampled token shows it as it is, any other token in the signed sum.
    """
    chosen = np.unique(np.linspace(0, m - 1, min(m, _CHECKED_TOKENS)).astype(int))
    signs = np.random.default_rng(m).choice([-1.0, 1.0], m)
    return np.vstack([np.eye(m)[chosen], signs])


def digest(projected_CN: np.ndarray) -> Arrays:
    """Name the rows of P @ y: ``tokens`` (float64, at most 16 x n) and ``signed_sum`` (n)."""
    return {"tokens": projected_CN[:-1], "signed_sum": projected_CN[-1]}
