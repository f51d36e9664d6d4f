"""The answer of ``versus`` as text for a terminal."""

from collections.abc import Sequence
from textwrap import fill

from frugalbench.analysis.statistics import DEFAULT_FLOOR
from frugalbench.analysis.versus import Pair, Result, number
from frugalbench.units import seconds

WIDTH = 80


def versus_terminal(found: Result) -> str:
    """The sentence first, then the arms, then what a reader must know to trust it."""
    lines = [found.sentence, ""]
    width = min(WIDTH - 46, max(8, *(len(item.arm) for item in found.arms)))
    lines.append(f"{'arm':{width}}{'per call':>12}{'fresh starts':>14}{'samples':>9}{'calls':>11}")
    lines.append("─" * (width + 46))
    for item in found.arms:
        counts = f"{item.replicates:>14}{item.samples:>9}{item.calls:>11}"
        lines.append(f"{_cut(item.arm, width):{width}}{seconds(item.time_s):>12}{counts}")
        if item.problem:
            lines.append(f"  {item.problem}")
    if len(found.arms) > 2:
        lines += ["", *_table("speed", found.pairs, width)]
    if found.energy:
        lines += ["", *_table("calls per joule", found.energy, width)]
    lines += ["", fill(_trust(found), WIDTH)]
    return "\n".join(lines) + "\n"


def _table(what: str, pairs: Sequence[Pair], width: int) -> list[str]:
    lines = [f"{what}, ratio and interval"]
    for pair in pairs:
        span = "" if pair.low is None or pair.high is None else f" [{number(pair.low)}, {number(pair.high)}]"
        verdict = {True: "better", False: "worse", None: "cannot tell"}[pair.candidate_faster]
        names = f"{_cut(pair.candidate, width)} over {_cut(pair.baseline, width)}"
        lines.append(f"  {names}: {number(pair.ratio)}{span} {verdict}")
    return lines


def _trust(found: Result) -> str:
    void = f"{found.void_share:.0%} of samples were spoilt by the machine's other work"
    kept = (
        "; that is steady, so none was set aside" if found.steady_load else " and repeated" if found.void_share else ""
    )
    default = " (the default; `frugalbench selftest` finds this machine's own)" if found.floor == DEFAULT_FLOOR else ""
    return f"Intervals are widened by {found.floor:.2%} on each side{default}. {void}{kept}."


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
