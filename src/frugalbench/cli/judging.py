"""Stored runs judged, and what their reader should know first. Imports nothing of the measuring wing."""

from collections import Counter
from collections.abc import Iterator, Sequence

from frugalbench.analysis.claims import claims_hash, evaluate, load_claims
from frugalbench.analysis.judge import evidence_of
from frugalbench.analysis.load import Run
from frugalbench.cli import output
from frugalbench.schema import Verdict


def judge(runs: Sequence[Run]) -> tuple[Verdict, ...]:
    """The verdicts of stored runs, from their manifests and records alone."""
    claims = load_claims()
    return tuple(verdict for item in runs for verdict in evaluate(evidence_of(item), claims))


def warn(runs: Sequence[Run]) -> None:
    """Say on standard error what a reader of ``runs`` should know first."""
    for warning in (*claim_warnings(runs), *_clashes(runs), *(problem for item in runs for problem in item.problems)):
        output.warn(warning)


def claim_warnings(runs: Sequence[Run]) -> list[str]:
    """Runs that were planned under other claims than those now installed; files of other tools were under none."""
    now = claims_hash()
    return [
        f"{item.path}: planned under other claim files than the installed ones; verdicts use the installed thresholds"
        for item in runs
        if item.manifest.claims_hash not in ("", now)
    ]


def _clashes(runs: Sequence[Run]) -> Iterator[str]:
    """Ids that several runs share; ids of older versions were a time and a name."""
    for name, count in Counter(item.manifest.run_id for item in runs).items():
        if count > 1:
            yield f"{count} runs have the id {name}; tables cannot tell them apart: give one of them at a time"
