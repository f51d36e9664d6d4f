"""Unit suffixes and how quantities are shown.

Names carry their unit as a suffix (``time_s``, ``energy_j``, ``weight_bytes``, ``rate_token_per_s``);
this module turns such numbers into short text. A missing number is shown as a dash.
"""

import math

DASH = "–"

_SI = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_MOST_DIGITS = 12
_SMALL = ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))
_BINARY = ((2**40, "Ti"), (2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki"), (1, ""))


def significant(value: float | None, digits: int = 3) -> str:
    """``value`` with ``digits`` significant digits and no exponent, or a dash."""
    if value is None or not math.isfinite(value):
        return DASH
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, 12)}f}"


def against(value: float | None, limit: float) -> str:
    """``value`` with three significant digits, or as many as it takes to show on which side of ``limit`` it lies."""
    digits = 3
    while value is not None and value != limit and digits < _MOST_DIGITS and _same(value, limit, digits):
        digits += 1
    return significant(value, digits)


def _same(value: float, limit: float, digits: int) -> bool:
    return float(f"{value:.{digits}g}") == float(f"{limit:.{digits}g}")


def si(value: float | None, unit: str, digits: int = 3) -> str:
    """``value`` with an SI prefix: ``si(1.5e9, 'FLOP/s')`` is ``1.50 GFLOP/s``."""
    if value is None or not math.isfinite(value):
        return DASH
    scales = _SI if abs(value) >= 1 or value == 0 else _SMALL
    for factor, prefix in scales:
        if abs(value) >= factor:
            return f"{significant(value / factor, digits)} {prefix}{unit}"
    factor, prefix = scales[-1]
    return f"{significant(value / factor, digits)} {prefix}{unit}"


def byte_size(value: float | None) -> str:
    """Bytes with a binary prefix."""
    if value is None:
        return DASH
    for factor, prefix in _BINARY:
        if abs(value) >= factor:
            return f"{significant(value / factor)} {prefix}B"
    return "0 B"


def seconds(value: float | None) -> str:
    """A time in the largest prefix that keeps it readable."""
    return si(value, "s") if value is None or abs(value) < 1000 else f"{value:.0f} s"


def share(value: float | None) -> str:
    """A fraction as a percentage."""
    return DASH if value is None else f"{significant(100 * value, 2)}%"


def interval(low: float | None, high: float | None) -> str:
    """``[low, high]``, open where a bound is missing."""
    if low is None and high is None:
        return DASH
    return f"[{significant(low)}, {significant(high)}]"
