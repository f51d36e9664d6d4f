"""How far an answer may lie from the float64 one: by number format and by depth, before anything is run.

The largest absolute error over the reference's root mean square may reach

    LAMBDA * (u32 * sqrt(k) * d + u * sqrt(d))

with u32 = 2^-24 the unit roundoff of the float32 in which runtimes accumulate, k the longest sum of products over a
stored matrix, d how many such sums follow each other, and u the unit roundoff of what is stored between them.
sqrt(k) * u per sum is the probabilistic bound of Higham and Mary, "A New Approach to Probabilistic Rounding Error
Analysis", SIAM J. Sci. Comput. 41(5), 2019, theorem 3.1, which LAMBDA = 4 lets fail with probability 2 exp(-8) per
sum; errors of successive layers are added up as if each were carried on unchanged. Runtimes replace exp, tanh and erf
by approximations of a few units, so nothing is asked below FLOOR. Where activations are rounded to 8 bits, two right
runtimes may round one value to neighbouring codes: u is half a code of a range of four rms to each side, 2^-6.
"""

import math

LAMBDA = 4.0
FLOOR = 2e-5
U32 = 2.0**-24
STORED = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8, "float64": 2.0**-53, "int8": 2.0**-6}
"""Unit roundoff of what lies between layers, by format; float formats as IEEE 754 and bfloat16 define them."""
SOURCE = "4 (2^-24 sqrt(k) d + u sqrt(d)), Higham and Mary 2019"


def tolerance(stored: str, reduction: int, depth: int) -> float:
    """Largest allowed max abs error / reference rms; ``stored`` is a key of :data:`STORED`."""
    return max(FLOOR, LAMBDA * (U32 * math.sqrt(reduction) * depth + STORED[stored] * math.sqrt(depth)))


def stored_format(initialisers: dict[str, dict[str, int]], rounds_activations: bool) -> str:
    """The format between layers: 8 bits where activations are rounded, else the one of most stored float values."""
    if rounds_activations:
        return "int8"
    names = {"float": "float32", "float16": "float16", "bfloat16": "bfloat16", "double": "float64"}
    counts = {names[kind]: entry["values"] for kind, entry in initialisers.items() if kind in names}
    return max(counts, key=lambda name: counts[name], default="float32")
