"""``frugalbench claims``."""

import argparse

from frugalbench.analysis.claims import load_claims
from frugalbench.analysis.judge import sources
from frugalbench.cli import output
from frugalbench.schema import Claim, NotTested
from frugalbench.units import significant


def main(arguments: argparse.Namespace) -> int:
    """List every claim."""
    claims = load_claims()
    if arguments.json:
        output.print_json(claims)
        return 0
    for claim in claims:
        print(text(claim))
    print(f"{len(claims)} claims; {sum(not isinstance(claim.rule, NotTested) for claim in claims)} are tested.")
    return 0


def text(claim: Claim) -> str:
    """One claim in a few lines of at most 80 columns."""
    import textwrap

    sign = "≥" if claim.direction == "at_least" else "≤"
    tested = claim.rule.reason if isinstance(claim.rule, NotTested) else f"by workload {', '.join(_workloads(claim))}"
    lines = [
        f"says     {claim.says}",
        f"holds if {claim.estimand} {sign} {significant(claim.threshold)} ({', '.join(claim.regimes)}; {claim.scope})",
        f"flips    {claim.flips}",
        f"tested   {tested}",
        f"source   {sources(claim)}",
    ]
    wrapped = [textwrap.fill(line, 78, initial_indent="  ", subsequent_indent=" " * 11) for line in lines]
    return "\n".join([claim.id, *wrapped, ""])


def _workloads(claim: Claim) -> list[str]:
    """The rule's own workload, then those of arms beside it, of its groups and of the claim's second rule."""
    rule = claim.rule
    places = (rule, *getattr(rule, "beside", ()), *getattr(rule, "groups", ()), claim.modelled)
    return list(dict.fromkeys(item.workload for item in places if getattr(item, "workload", "")))
