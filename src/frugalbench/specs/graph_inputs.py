"""From the declared inputs of an ONNX graph to arrays: sizes for its free dimensions, values that make sense.

An input is ``{"name", "dtype", "shape", "below"}`` as a model declares it: a dimension is a number or a name, ``below``
the number of rows of the table that an integer input picks from. Names are all there is to go by, so what was guessed
is said, and ``--dim NAME=N`` or a file of inputs takes the place of any guess.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from frugalbench.schema import FrugalbenchError
from frugalbench.units import byte_size
from frugalbench.untrusted import shown

BATCHES, SEQUENCES = (1, 8), (16, 128)
PAST = 16
OTHER = 16
"""Size of a dimension whose name says nothing."""
MOST_SIZE = 2**31 - 1
MOST_FEED_BYTES = 2**30
_BATCH = re.compile(r"batch|^(n|b|bs)$", re.IGNORECASE)
_SUM = re.compile(r"total|\+|past.*(and|plus).*seq", re.IGNORECASE)
_PAST = re.compile(r"past|cache|history", re.IGNORECASE)
_SEQUENCE = re.compile(r"seq|len|token|time|frame|sample|step", re.IGNORECASE)
_SYMBOL = re.compile(r"s\d+$")
"""How torch's exporter names a free dimension that its caller did not name."""
_DEFAULT_BELOW = 100
"""Below this lie integers of which no table tells the bound."""

Inputs = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Point:
    """One choice of sizes."""

    regime: str
    sizes: dict[str, int]
    batch: int
    sequence: int


def bind(inputs: Inputs, given: Mapping[str, int], where: str) -> list[Point]:
    """The sizes to run with, smallest first; raises :class:`FrugalbenchError` for sizes that make no sense.

    Batch 1 and 8 and sequences of 16 and 128, as far as there are such dimensions and ``given`` leaves them open.
    """
    _check(inputs, given, where)
    names = list(dict.fromkeys(dim for item in inputs for dim in item["shape"] if isinstance(dim, str)))
    unknown = [name for name in given if name not in names]
    if unknown:
        free = f"free dimensions are: {', '.join(names)}" if names else "it has no free dimension"
        raise FrugalbenchError(f"--dim {unknown[0]}: {shown(where)} has no such dimension; {free}")
    roles = {name: role_of(name, inputs) for name in names if name not in given}
    batches = BATCHES if "batch" in roles.values() else (1,)
    sequences = SEQUENCES if "sequence" in roles.values() else (0,)
    pairs = [(batches[0], length) for length in sequences]
    pairs += [(batches[-1], sequences[-1])] if len(batches) > 1 else []
    points = [_point(names, roles, given, *pair) for pair in pairs]
    for point in points:
        _check_bytes(inputs, point, where)
    return points


def role_of(name: str, inputs: Inputs) -> str:
    """``batch``, ``sequence``, ``past``, ``sum`` (past and new together) or ``other``, by name.

    A dimension whose name says nothing and that is only ever the first axis of an input is its batch; so is a second
    one a sequence where torch made up its name.
    """
    if not _nameless(name, inputs):
        for role, pattern in (("batch", _BATCH), ("sum", _SUM), ("past", _PAST), ("sequence", _SEQUENCE)):
            if pattern.search(name):
                return role
    axes = {axis for item in inputs for axis, dim in enumerate(item["shape"]) if dim == name}
    if _SYMBOL.match(name) and axes == {1}:
        return "sequence"
    return "batch" if axes == {0} else "other"


def _nameless(name: str, inputs: Inputs) -> bool:
    """Whether the dimension was named here, after its input and axis."""
    return any(name == f"{item['name']}.{axis}" for item in inputs for axis in range(len(item["shape"])))


def guessed(inputs: Inputs, given: Mapping[str, int]) -> list[str]:
    """Names of the free dimensions whose size nothing but a default tells."""
    names = dict.fromkeys(dim for item in inputs for dim in item["shape"] if isinstance(dim, str))
    return [name for name in names if name not in given and role_of(name, inputs) == "other"]


def _point(names: Sequence[str], roles: Mapping[str, str], given: Mapping[str, int], batch: int, length: int) -> Point:
    new = length or given.get(next((n for n in names if n in given and _SEQUENCE.search(n)), ""), 1)
    past = next((given[name] for name in names if name in given and _PAST.search(name)), PAST)
    by_role = {"batch": batch, "sequence": length, "past": past, "sum": past + new, "other": OTHER}
    sizes = {name: given[name] if name in given else by_role[roles[name]] for name in names}
    parts = [f"batch-{batch}"] if "batch" in roles.values() else []
    parts += [f"seq-{length}"] if "sequence" in roles.values() else []
    return Point("-".join(parts) or "as-declared", sizes, batch, length)


def _check(inputs: Inputs, given: Mapping[str, int], where: str) -> None:
    for name, size in given.items():
        if not 1 <= size <= MOST_SIZE:
            raise FrugalbenchError(f"--dim {name}={size}: a dimension must lie between 1 and {MOST_SIZE}")
    for item in inputs:
        what = f"{shown(where)}: its input '{shown(item['name'], 100)}'"
        if item["dtype"] == "object":
            raise FrugalbenchError(f"{what} holds text; give it with --input FILE.npz")
        if item["dtype"] == "no tensor":
            raise FrugalbenchError(f"{what} is no tensor (a sequence, map or optional); only tensors are measured")
        for dim in item["shape"]:
            if not isinstance(dim, str) and not 1 <= dim <= MOST_SIZE:
                raise FrugalbenchError(f"{what} has a dimension of {dim}; nothing can be measured on it")


def _check_bytes(inputs: Inputs, point: Point, where: str) -> None:
    total = sum(_bytes(item, point.sizes) for item in inputs)
    if total > MOST_FEED_BYTES:
        raise FrugalbenchError(
            f"{shown(where)}: its inputs would hold {byte_size(float(total))} at {point.regime}, more than "
            f"{byte_size(MOST_FEED_BYTES)}; choose smaller sizes with --dim NAME=N"
        )


def _bytes(item: Mapping[str, Any], sizes: Mapping[str, int]) -> int:
    count = 1
    for dim in item["shape"]:
        count *= sizes[dim] if isinstance(dim, str) else dim
    return count * np.dtype(_numpy_name(item["dtype"])).itemsize


def _numpy_name(dtype: str) -> str:
    return "float16" if dtype == "bfloat16" else dtype


def describe_inputs(inputs: Inputs, sizes: Mapping[str, int]) -> list[dict[str, Any]]:
    """Each input with numbers for its dimensions and what it is to be filled with."""
    return [
        {
            "name": item["name"],
            "dtype": item["dtype"],
            "shape": [sizes[dim] if isinstance(dim, str) else dim for dim in item["shape"]],
            "below": item.get("below"),
            "fill": item.get("fill") or fill_of(item),
        }
        for item in inputs
    ]


def fill_of(item: Mapping[str, Any]) -> str:
    """``ones`` for masks, ``positions`` for position ids, ``ids`` for other integers, ``normal`` for floats."""
    name = item["name"].lower()
    if "mask" in name:
        return "ones"
    if "position" in name and "int" in item["dtype"]:
        return "positions"
    if item["dtype"] == "bool":
        return "ones"
    return "ids" if "int" in item["dtype"] else "normal"


def make_feed(inputs: Inputs, seed: int, index: int = 0) -> dict[str, np.ndarray]:
    """Seeded arrays for what :func:`describe_inputs` gave; another ``index`` draws others, never constant ones."""
    return {item["name"]: _values(item, np.random.default_rng([seed, index, n])) for n, item in enumerate(inputs)}


def _values(item: Mapping[str, Any], random: np.random.Generator) -> np.ndarray:
    shape, fill = tuple(item["shape"]), item["fill"]
    if isinstance(fill, int | float):
        return np.full(shape, fill, item["dtype"])
    if fill == "ones":
        return np.ones(shape, item["dtype"])
    if fill == "positions":
        return np.broadcast_to(np.arange(shape[-1] if shape else 1), shape).astype(item["dtype"])
    if fill == "ids":
        most = np.iinfo(item["dtype"]).max
        return random.integers(0, min(item["below"] or _DEFAULT_BELOW, most), shape).astype(item["dtype"])
    values = np.asarray(random.standard_normal(shape, dtype=np.float32))
    if item["dtype"] == "bfloat16":
        import ml_dtypes

        return values.astype(ml_dtypes.bfloat16)
    return values.astype(item["dtype"])


def filled(item: Mapping[str, Any], fills: Mapping[str, Any]) -> dict[str, Any]:
    """An input with what is known of its values beside what the file says."""
    known = fills.get(item["name"])
    if isinstance(known, Mapping):
        return {**item, **known}
    return {**item} if known is None else {**item, "fill": known}
