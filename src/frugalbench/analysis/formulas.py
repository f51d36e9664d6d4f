"""How a case's FLOP and bytes follow from its shape, told only where the formula gives the recorded number.

``data/formulas.toml`` lists the formulas; the numbers themselves were computed before the case was measured and
stand in its record.
"""

import ast
import math
import operator
import tomllib
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache

import msgspec

from frugalbench.paths import data
from frugalbench.schema import Case

_MOST = 1e30
_OPERATIONS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Pow: operator.pow,
}


class Formula(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"quantity": "of", "expression": "is"}):
    """One entry of the file."""

    workload: str
    variants: str
    """Glob on variant names."""
    quantity: str
    """``flop`` (with integer operations) or ``traffic_bytes``."""
    what: str
    expression: str


@lru_cache(maxsize=1)
def formulas() -> tuple[Formula, ...]:
    """All formulas, in the order of the file."""
    text = data("formulas.toml").read_text(encoding="utf-8")
    return tuple(msgspec.convert(tomllib.loads(text)["formula"], list[Formula]))


def formula_of(case: Case, quantity: str) -> str:
    """``what: expression = with numbers`` of the formula that gives the recorded number; empty where none does."""
    recorded = _recorded(case, quantity)
    if not recorded:
        return ""
    known = _names(case)
    for item in formulas():
        fits = item.workload == case.workload and item.quantity == quantity and fnmatchcase(case.variant, item.variants)
        if fits and (found := evaluate(item.expression, known)) is not None and _equal(found, recorded):
            return f"{item.what}: {item.expression} = {_with_numbers(item.expression, known)}"
    return ""


def _recorded(case: Case, quantity: str) -> float | None:
    if case.cost is None:
        return None
    return case.cost.flop + case.cost.op if quantity == "flop" else case.cost.traffic_bytes


def _names(case: Case) -> dict[str, float]:
    """Numbers that a formula may name; parameters of a record may be anything."""
    found = {k: v for k, v in case.params.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    stored = case.cost.weight_bytes if case.cost else 0.0
    return {"weight_bytes": stored, "value_bytes": 2 if case.dtype in ("bf16", "fp16") else 4, **found}


def _equal(found: float, recorded: float) -> bool:
    return math.isclose(found, recorded, rel_tol=1e-9)


def evaluate(expression: str, names: Mapping[str, float]) -> float | None:
    """Sums, products and powers of numbers and names; ``None`` where a name is unknown or the number too large."""
    try:
        return _value(ast.parse(expression, mode="eval").body, names)
    except (KeyError, OverflowError):
        return None


def _value(node: ast.expr, names: Mapping[str, float]) -> float:
    if isinstance(node, ast.BinOp):
        found = _OPERATIONS[type(node.op)](_value(node.left, names), _value(node.right, names))
        if abs(found) > _MOST:
            raise OverflowError
        return found
    if isinstance(node, ast.Name):
        return float(names[node.id])
    assert isinstance(node, ast.Constant)
    return float(node.value)  # type: ignore[arg-type]


def _with_numbers(expression: str, names: Mapping[str, float]) -> str:
    tree = ast.parse(expression, mode="eval")
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            node.id = f"{names[node.id]:.12g}"
    return ast.unparse(tree)
