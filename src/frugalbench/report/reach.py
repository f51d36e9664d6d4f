"""The largest published model that fits this machine and generates fast enough, for each arm. Modelled."""

from collections.abc import Sequence

from frugalbench.analysis.claims import load_claims
from frugalbench.analysis.judge import evidence_of
from frugalbench.analysis.load import Run
from frugalbench.analysis.reach import ArmReach, arm_reaches
from frugalbench.report.tables import Cell, Table, tier_text
from frugalbench.schema import Reach, Tier
from frugalbench.units import DASH, byte_size, interval, significant

_COLUMNS = ("arm", "largest model", "10^9", "active", "memory", "token/s")


def reach_tables(runs: Sequence[Run]) -> list[Table]:
    """Per run and decoded model one table; empty where nothing can be modelled."""
    rule = next((claim.rule for claim in load_claims() if isinstance(claim.rule, Reach)), None)
    if rule is None:
        return []
    tables = []
    for run in runs:
        evidence = evidence_of(run)
        for shape, arms in arm_reaches(evidence, rule).items():
            tables.append(_table(run, rule, shape, arms, evidence.memory_bytes))
    return tables


def _table(run: Run, rule: Reach, shape: str, arms: Sequence[ArmReach], memory_bytes: float | None) -> Table:
    notes = (
        f"{tier_text(Tier.MODELLED)}: bytes per token over the bytes per second that the arm moved decoding {shape}",
        f"fits {byte_size(memory_bytes)} with the cache of {arms[0].pace.context} tokens and generates at least "
        f"{rule.least_token_per_s:g} token/s; shapes from memory (recalled) left out",
        "10^9: parameters held, and active ones, which a token reads; experts are taken to stream as dense weights",
    )
    columns = tuple((name, name not in _COLUMNS[:2]) for name in _COLUMNS)
    return Table(f"Reach from {shape} ({run.manifest.name})", columns, tuple(map(_line, arms)), notes, "quant")


def _line(arm: ArmReach) -> tuple[Cell, ...]:
    best, hint = arm.best, f"{significant(8 * arm.pace.bytes_per_weight)} bits per weight"
    if best is None:
        return (Cell(arm.pace.variant, hint=hint), *[Cell(DASH)] * 5)
    speed = best.token_per_s
    return (
        Cell(arm.pace.variant, hint=hint),
        Cell(best.name),
        Cell(significant(best.parameters / 1e9)),
        Cell(significant(best.active_parameters / 1e9)),
        Cell(byte_size(best.memory_bytes)),
        Cell(f"{significant(speed.value)} {interval(speed.low, speed.high)}", mark=Tier.MODELLED.value),
    )
