"""The self-test as text for a terminal of 80 columns."""

from collections.abc import Sequence
from textwrap import fill

from frugalbench.analysis.selftest import Kind, Live, Planted, Rate, SelfTest

WIDTH = 80


def selftest_terminal(found: SelfTest) -> str:
    """Everything that a reader needs to bet on a ratio from this machine."""
    widened = f"Intervals of later runs here are widened by {found.aa_floor:.2%}{_why_so_wide(found)}"
    if found.planted:
        widened = "On a simulated device, so this tells of the harness. Figures of this machine need a real one."
    lines = [found.machine, *fill(found.sentence, WIDTH).splitlines(), *fill(widened, WIDTH).splitlines()]
    for name, kinds in (("idle", found.idle), ("beside a busy core", found.loaded)):
        if kinds:
            lines += ["", *_bank(name, kinds), *(f"{kind.kind}: {kind.problem}" for kind in kinds if kind.problem)]
    if found.planted:
        lines += ["", *_planted(found.planted)]
    if found.live:
        lines += ["", *_live(found.live)]
    if found.quick:
        lines += ["", "Quick: idle only, few comparisons, no live ones. The full test takes about 15 minutes."]
    return "\n".join(lines) + "\n"


def _why_so_wide(found: SelfTest) -> str:
    comparisons = sum(kind.comparisons for kind in (*found.idle, *found.loaded))
    if not found.enough:
        return f", no less than anywhere else: {comparisons} comparisons of identical arms are too few to go lower."
    if found.quick:
        return ", no less than anywhere else: only the full self-test holds enough comparisons to go lower."
    return f": with that, at most {found.alpha:.0%} of identical arms were called different."


def _bank(name: str, kinds: Sequence[Kind]) -> list[str]:
    width = 15
    effects = sorted({item.percent for kind in kinds for item in kind.detection})
    rows: list[tuple[str, list[str]]] = [
        ("fresh starts of all arms", [str(kind.replicates) for kind in kinds]),
        ("comparisons of identical arms", [str(kind.comparisons) for kind in kinds]),
        ("  called different", [_share(kind.false_verdict_rate) for kind in kinds]),
        ("  … without the widening", [_share(kind.unwidened_false_verdict_rate) for kind in kinds]),
        ("  left undecided", [_share(kind.undecided_rate) for kind in kinds]),
        ("  champion called different", [_share(kind.champion_false_verdict_rate) for kind in kinds]),
        ("  … if chosen on the same data", [_share(kind.champion_reused_rate) for kind in kinds]),
        ("intervals that hold the truth", [_share(kind.coverage) for kind in kinds]),
    ]
    for percent in effects:
        label = f"{percent:.2g}% more work found"
        rows.append((label, [_share(_of(kind, percent)) for kind in kinds]))
    rows += [
        ("found in 4 of 5, 4 fresh starts", [_percent(kind.smallest_detectable_effect) for kind in kinds]),
        ("… up to 24 fresh starts", [_percent(kind.smallest_detectable_effect_at_most) for kind in kinds]),
        ("median time to a verdict", [_seconds(kind.median_time_to_verdict_s) for kind in kinds]),
        ("one fresh start of two arms", [_seconds(kind.pair_replicate_s) for kind in kinds]),
        ("noise: between fresh starts", [_noise(kind, "process") for kind in kinds]),
        ("       between rounds, shared", [_noise(kind, "round") for kind in kinds]),
        ("       between turns", [_noise(kind, "turn") for kind in kinds]),
        ("samples spoilt by surroundings", [f"{kind.void_share:.0%}" for kind in kinds]),
    ]
    head = f"{name:32}" + "".join(f"{kind.kind:>{width}}" for kind in kinds)
    rule = "─" * len(head)
    return [head, rule, *(f"{label:32}" + "".join(f"{cell:>{width}}" for cell in cells) for label, cells in rows)]


def _of(kind: Kind, percent: float) -> Rate | None:
    return next((item.detected for item in kind.detection if item.percent == percent), None)


def _share(value: Rate | None) -> str:
    return "-" if value is None or not value.of else f"{value.count} of {value.of}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def _noise(kind: Kind, name: str) -> str:
    return "-" if kind.components is None else f"{getattr(kind.components, name):.1%}"


def _planted(rows: Sequence[Planted]) -> list[str]:
    head = f"{'planted mistake':24}{'':8}reason"
    shown = [f"{row.mistake:24}{'caught' if row.caught else 'MISSED':8}{row.reason}" for row in rows]
    wrapped = [line for text in shown for line in fill(text, WIDTH, subsequent_indent=" " * 32).splitlines()]
    return [head, "─" * WIDTH, *wrapped]


def _live(rows: Sequence[Live]) -> list[str]:
    right = sum(row.right for row in rows)
    head = f"{'live comparisons':24}{'extra':>7}{'verdict':>10}{'ratio':>22}{'truth':>7}{'time':>8}"
    lines = [head, "─" * len(head)]
    words = {True: "faster", False: "slower", None: "undecided"}
    for row in rows:
        span = "" if row.low is None or row.high is None else f" [{row.low:.3f}, {row.high:.3f}]"
        lines.append(
            f"{row.condition + ' ' + row.kind:24}{row.percent:>6g}%{words[row.faster]:>10}"
            f"{f'{row.ratio:.3f}{span}':>22}{row.truth:>7.3f}{row.time_s:>6.0f} s{'' if row.right else ' !'}"
        )
    return [*lines, f"{right} of {len(rows)} ended as they should (! marks the others)."]
