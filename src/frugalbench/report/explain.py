"""An explanation in words and figures, for a terminal of 80 columns."""

from collections.abc import Iterable, Iterator, Sequence
from textwrap import wrap

from frugalbench.analysis.chain import COUNTS, Against, Chain, Datum, Explanation, RoundDatum, Side, Working
from frugalbench.report import safe
from frugalbench.report.tables import arm_text, ratio_text
from frugalbench.schema import Outcome
from frugalbench.units import DASH, byte_size, seconds, significant

WIDTH = 80
_LABEL = 10


def explanation_text(found: Explanation, samples: bool = False) -> str:
    """All chains of a claim; ``samples`` adds every round's values."""
    return "\n".join([*_claim_lines(found), *(line for item in found.chains for line in _chain_lines(item, samples))])


def _claim_lines(found: Explanation) -> Iterator[str]:
    sign = "≥" if found.direction == "at_least" else "≤"
    yield safe.terminal(found.claim)
    yield from _field("says", found.says)
    for source in found.sources:
        yield from _field("source", source)
    yield from _field("estimand", found.estimand)
    yield from _field("holds if", f"{sign} {significant(found.threshold)} ({found.scope})")
    yield from _field("flips", found.flips)
    if found.note:
        yield from _field("note", found.note)
    yield from _field("run", f"{found.run}, {found.started}, {found.state}, on {found.machine}")
    if not found.same_claims:
        yield from _field("", "planned under other claim files than the installed ones, whose thresholds are used here")
    if len(found.chains) > 1:
        yield from _field("", f"{len(found.chains)} verdicts follow; --regime and --arm choose among them")


def _field(name: str, text: object) -> list[str]:
    """``  name      text``, wrapped below itself."""
    lead = f"  {name:{_LABEL}}"
    return wrap(safe.terminal(text), WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead)) or [lead.rstrip()]


def _chain_lines(item: Chain, samples: bool) -> Iterator[str]:
    verdict = item.verdict
    arms = f" · {arm_text(verdict.arm)}" if verdict.arm else ""
    yield ""
    yield from wrap(safe.terminal(f"{verdict.claim} · {verdict.regime}{arms}: {verdict.verdict.value}"), WIDTH)
    yield "─" * WIDTH
    yield from _verdict_lines(item)
    for side in item.sides:
        yield from _side_lines(side)
    yield from _data_lines(item, samples)
    yield from _working_lines(item.working) if item.working else ()
    yield from _against_lines(item.against)
    yield from _flip_lines(item)
    yield from _field("repeat", item.repeat)
    yield from _field("", item.repeat_note)


def _verdict_lines(item: Chain) -> Iterator[str]:
    verdict = item.verdict
    if verdict.verdict is Outcome.NOT_TESTED:
        yield from _field("why", verdict.reason)
        return
    confidence = f", {100 * verdict.confidence:.4g}% interval" if verdict.confidence else ""
    count = f", {verdict.replicates} replicates" if verdict.replicates else ""
    tier = f", {verdict.tier.value}" if verdict.tier else ""
    yield from _field("value", f"{ratio_text(verdict)}{confidence}{count}{tier}")
    yield from _field("of", verdict.metric)
    over = f" over {verdict.baseline}" if verdict.baseline else ""
    yield from _field("arms", f"{verdict.candidate or DASH}{over}")
    yield from _field("needs", significant(verdict.threshold))
    yield from _field("why", verdict.reason)
    if item.method:
        yield from _field("method", item.method)


def _side_lines(item: Side) -> Iterator[str]:
    yield ""
    yield from _head(f"{item.role}: {item.variant} ({item.backend} on {item.device}, {item.dtype})")
    if item.time_s is not None:
        tokens = f" of {item.token:g} tokens" if item.token else ""
        tier = f", {item.tier.value}" if item.tier else ""
        per = f"{seconds(item.time_s)} per call{tokens}: median of {item.replicates} replicate medians{tier}"
        yield from _field("time", per)
    yield from _work("FLOP", item.flop, item.flop_formula)
    yield from _work("op", item.op, item.flop_formula)
    yield from _work("traffic", item.traffic_bytes, item.traffic_formula, " bytes at least")
    if item.weight_bytes:
        yield from _field("weights", f"{item.weight_bytes:,.0f} bytes ({byte_size(item.weight_bytes)})")
    yield from _field("energy", _energy(item))
    if item.tolerance is not None:
        error = "no error recorded" if item.error is None else f"error {item.error:.2e}"
        yield from _field("checked", f"{item.checked}: {error} of rms, {item.tolerance:.2e} allowed")
    if item.placed:
        yield from _field("ran on", item.placed)


def _head(text: str) -> list[str]:
    return wrap(safe.terminal(text[:1].upper() + text[1:]), WIDTH, subsequent_indent="  ")


def _work(name: str, value: float | None, formula: str, unit: str = "") -> list[str]:
    if value is None:
        return []
    how = f"; {formula}" if formula else "; by the workload's formula, before it was measured"
    return _field(name, f"{value:,.0f}{unit} a call{how}")


def _energy(item: Side) -> str:
    if item.energy_tier is None:
        return f"none: {item.energy_note}"
    if item.token_per_joule is not None:
        return f"{significant(item.token_per_joule)} token/J, {item.energy_tier.value}: {item.energy_note}"
    span = f"[{significant(item.token_per_joule_low)}, {significant(item.token_per_joule_high)}] token/J"
    return f"{span}, {item.energy_tier.value}: {item.energy_note}"


def _data_lines(item: Chain, samples: bool) -> Iterator[str]:
    if not item.data:
        return
    yield ""
    if any(datum.log_ratio is not None for datum in item.data):
        yield from _replicate_lines(item.data)
    else:
        yield "What was found"
        for datum in item.data:
            yield from _fact_lines(datum)
    for datum in item.data if samples else ():
        yield from _round_lines(datum)


def _replicate_lines(data: Sequence[Datum]) -> Iterator[str]:
    """One line each; the note, which may be long, below."""
    yield "Replicates"
    yield f"  {'n':>3}{'use':>10}{'rounds':>8}{'void':>6}{'ratio':>11}{'log':>13}  lines of records.jsonl"
    for datum in data:
        log = DASH if datum.log_ratio is None else f"{datum.log_ratio:.9f}"
        where = ", ".join(map(str, datum.records))
        counts = f"{datum.replicate if datum.replicate is not None else DASH:>3}{datum.use:>10}{datum.rounds:>8}"
        yield f"  {counts}{datum.void:>6}{significant(datum.value, 4):>11}{log:>13}  {where}"[:WIDTH].rstrip()
        if datum.note:
            yield from wrap(safe.terminal(datum.note), WIDTH, initial_indent=" " * 7, subsequent_indent=" " * 7)


def _fact_lines(datum: Datum) -> list[str]:
    span = "" if datum.low is None and datum.high is None else f" [{_number(datum.low)}, {_number(datum.high)}]"
    where = f" (line {', '.join(map(str, datum.records[:6]))}{' …' if len(datum.records) > 6 else ''})"
    use = "" if datum.use == COUNTS else f"; {datum.use}"
    note = f"; {datum.note}" if datum.note else ""
    text = f"{datum.name}: {_number(datum.value)}{span} {datum.unit}{use}{note}{where if datum.records else ''}"
    return wrap(safe.terminal(text), WIDTH, initial_indent="  ", subsequent_indent="    ")


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:.9g}"


def _round_lines(datum: Datum) -> Iterator[str]:
    if not datum.samples:
        return
    yield ""
    yield safe.terminal(f"Rounds of {datum.name}, per unit of work")
    yield f"  {'round':>5}{'candidate':>15}{'baseline':>15}  "
    for item in datum.samples:
        yield from wrap(safe.terminal(_round(item)), WIDTH, initial_indent="  ", subsequent_indent=" " * 39)


def _round(item: RoundDatum) -> str:
    values = "".join(f"{DASH if v is None else f'{v:.8g}':>15}" for v in (item.candidate, item.baseline))
    fate = f"void: {item.void}{'' if not item.used else ', kept'}" if item.void else "" if item.used else "not paired"
    return f"{item.round:>5}{values}  {fate}".rstrip()


def _working_lines(found: Working) -> Iterator[str]:
    yield ""
    yield "Interval"
    yield from _field("method", found.method)
    spread = "" if found.log_sd is None else f", sd {found.log_sd:.9f}"
    yield from _field("logs", f"mean {found.log_mean:.9f}{spread}, {found.replicates} replicates")
    yield from _field("alpha", _alpha(found))
    yield from _field("floor", f"{100 * found.floor:.3g}% on each side: what this machine sees between identical arms")
    if found.factor != 1 or found.scale != "none":
        yield from _field("scale", _scale(found))
    if found.t is None:
        yield from _field("so", f"{significant(found.ratio, 4)}; one replicate gives no interval")
        return
    yield from _field("t", f"{found.t:.6f} at {found.degrees} degrees of freedom")
    half = "t × sd / √n + log(1 + floor)"
    shown = f"{significant(found.ratio, 4)} [{significant(found.low, 4)}, {significant(found.high, 4)}]"
    yield from _field("so", f"exp(mean + log scale ± ({half})) = {shown}")


def _alpha(found: Working) -> str:
    planned = f"looks planned after {', '.join(map(str, found.looks))} replicates" if found.looks else "one look"
    whole = "" if found.alpha_run is None else f"{found.alpha_run:g} for the run, "
    text = f"{whole}{found.alpha_look:.6g} for this look ({planned}"
    text += f"; {found.decision})" if found.decision else ")"
    if len(found.rivals) > 1:
        text += f"; {found.alpha:.6g} after Holm among {', '.join(found.rivals)}"
    return text


def _scale(found: Working) -> str:
    words = {
        "flop": "FLOP of the candidate over FLOP of the baseline, per token",
        "peak_share": "work over each arm's own measured peak, candidate over baseline",
        "tax": "shown as 1 - 1 / ratio",
        "none": "none",
    }
    return f"{found.factor:.9g}: {words.get(found.scale, found.scale)}"


def _against_lines(found: Sequence[Against]) -> Iterator[str]:
    if len(found) < 2:
        return
    yield ""
    yield "Against every baseline (support needs each; the strongest refutes alone)"
    for item in found:
        span = f"{significant(item.ratio)} [{significant(item.low)}, {significant(item.high)}]"
        mark = " (strongest)" if item.strongest else ""
        yield from wrap(safe.terminal(f"{item.baseline}{mark}: {span} {item.outcome}"), WIDTH, initial_indent="  ")


def _flip_lines(item: Chain) -> Iterator[str]:
    yield ""
    if item.flips:
        yield "What would have flipped it (the interval as wide as it is)"
        yield from _bullets(flip.what for flip in item.flips)


def _bullets(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from wrap(safe.terminal(text), WIDTH, initial_indent="  - ", subsequent_indent="    ")
