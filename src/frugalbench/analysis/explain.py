"""From a verdict back to the numbers it rests on, as data; from manifest and records alone.

Each rule kind has a function that finds its data; a kind that this module does not know still gives the generic part:
the verdict, the records of its workload with what became of them, and the command that measures it again. Numbers are
those of the functions that gave the verdict, never a second computation of them.
"""

import dataclasses
import difflib
from collections.abc import Callable, Sequence

import msgspec

from frugalbench.analysis.chain import Asked, Chain, Explanation
from frugalbench.analysis.claims import claims_hash, evaluate, load_claims, under
from frugalbench.analysis.command import REST, command_of
from frugalbench.analysis.explain_facts import coverage, equal_loss, exact, generic, modelled, non_inferiority, reached
from frugalbench.analysis.explain_paired import paired_chain
from frugalbench.analysis.judge import evidence_of
from frugalbench.analysis.load import Run
from frugalbench.schema import (
    Claim,
    Coverage,
    EqualLoss,
    ExactRatio,
    FrugalbenchError,
    Modelled,
    NonInferiority,
    Outcome,
    PairedRatio,
    Reach,
    Verdict,
)


def explain(run: Run, claim_id: str, regime: str | None = None, arm: str | None = None) -> Explanation:
    """The chain behind every verdict of one claim, or of those in ``regime`` and for ``arm``.

    ``arm`` is ``as_shipped``, ``best`` or a candidate's name.

    Raises :class:`FrugalbenchError` for an unknown claim, and where nothing is left to explain.
    """
    return _explain(run, _claim(claim_id), _numbers(run), regime, arm)


def _numbers(run: Run) -> dict[int, int]:
    return {id(record): number for number, record in enumerate(run.records, 1)}


def _explain(run: Run, claim: Claim, numbers: dict[int, int], regime: str | None, arm: str | None) -> Explanation:
    evidence = evidence_of(run)
    asked = Asked(run, claim, evidence, numbers)
    verdicts = _chosen(evaluate(evidence, [claim]), claim, regime, arm)
    return _explanation(asked, tuple(_chain(asked, item) for item in verdicts))


def _claim(name: str) -> Claim:
    known = {claim.id: claim for claim in load_claims()}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0)
        raise FrugalbenchError(f"{name}: no such claim; did you mean '{near[0]}'?\n`frugalbench claims` lists them.")
    return known[name]


def _chosen(verdicts: Sequence[Verdict], claim: Claim, regime: str | None, arm: str | None) -> list[Verdict]:
    found = [item for item in verdicts if regime in (None, item.regime) and _speaks(item, arm)]
    if not found:
        asked = " and ".join(f"--{n} {v}" for n, v in (("regime", regime), ("arm", arm)) if v is not None)
        regimes = ", ".join(dict.fromkeys(item.regime for item in verdicts))
        arms = dict.fromkeys(name for item in verdicts for name in (item.arm, item.candidate) if name)
        raise FrugalbenchError(
            f"{claim.id}: no verdict for {asked}; regimes: {regimes}; arms: {', '.join(arms) or 'none'}"
        )
    return found


def _speaks(verdict: Verdict, arm: str | None) -> bool:
    candidate = verdict.candidate or ""
    return arm is None or arm in (verdict.arm, candidate, candidate.partition(" @ ")[0])


def _explanation(asked: Asked, chains: tuple[Chain, ...]) -> Explanation:
    manifest, claim = asked.run.manifest, asked.claim
    return Explanation(
        run=manifest.run_id,
        path=str(asked.run.path),
        machine=asked.evidence.machine,
        revision=manifest.revision,
        started=manifest.started,
        state=manifest.state,
        claim=claim.id,
        says=claim.says,
        sources=tuple(f"{item.document}, {item.place}" if item.place else item.document for item in claim.sources),
        estimand=claim.estimand,
        direction=claim.direction,
        threshold=claim.threshold,
        scope=claim.scope,
        flips=claim.flips,
        note=claim.note,
        same_claims=manifest.claims_hash == claims_hash(),
        chains=chains,
    )


def _chain(asked: Asked, verdict: Verdict) -> Chain:
    """The rule's own chain; the generic one for a kind without a function and for what was not tested."""
    asked = dataclasses.replace(asked, claim=under(asked.claim, verdict))
    make = _KINDS.get(type(asked.claim.rule))
    found = make(asked, verdict) if make is not None and verdict.verdict is not Outcome.NOT_TESTED else None
    base = found or generic(asked, verdict)
    command, note = repeat(asked, base.comparison)
    return msgspec.structs.replace(base, rule=_kind(asked.claim), repeat=command, repeat_note=note)


def _kind(claim: Claim) -> str:
    return str(claim.rule.__struct_config__.tag)


def repeat(asked: Asked, comparison: str | None) -> tuple[str, str]:
    """The command that measures again what a verdict rests on, and what it cannot carry."""
    manifest = asked.run.manifest
    only = comparison if getattr(asked.claim.rule, "scale", "none") != "peak_share" else None
    revision = f" at revision {manifest.revision}" if manifest.revision else ""
    return command_of(manifest, only), f"measured{revision}; {REST}"


_KINDS: dict[type, Callable[[Asked, Verdict], Chain | None]] = {
    PairedRatio: paired_chain,
    ExactRatio: exact,
    Coverage: coverage,
    Modelled: modelled,
    EqualLoss: equal_loss,
    NonInferiority: non_inferiority,
    Reach: reached,
}
