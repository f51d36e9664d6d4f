"""Whole language models: what they take, how fast they read and generate, beside the fastest unquantised arm."""

from collections.abc import Iterator, Sequence

from frugalbench.analysis.load import Run
from frugalbench.analysis.quantized import Product
from frugalbench.analysis.whole_model import ModelArm, model_arms, prompt_tokens
from frugalbench.report.tables import Cell, Table, tier_text
from frugalbench.schema import Status, Tier
from frugalbench.units import DASH, share, significant

_COLUMNS = ("arm", "MB", "bits", "prompt/s", "token/s", "of read", "error")
_SPEEDS = ("arm", "speed, generating", "speed, prompt")
_NOTES = (
    "MB and bits per weight of what is loaded, look-up tables, gains and scales included; 1 MB is a million bytes",
    "of read: share of the measured read bandwidth while generating; weights and cache are read once a token",
    "error: distance to the float64 answer of the unquantised model, relative rms; of float32 arms the largest",
)


def whole_model_tables(runs: Sequence[Run]) -> list[Table]:
    """Per run and model what each arm takes and reaches, and its speeds; empty when no run measured whole models."""
    tables: list[Table] = []
    for run in runs:
        for shape, arms in _by_shape(model_arms(run)).items():
            tables += [_rates(run, shape, arms), _speeds(run, shape, arms)]
    return tables


def _by_shape(found: Sequence[ModelArm]) -> dict[str, list[ModelArm]]:
    shapes: dict[str, list[ModelArm]] = {}
    for item in found:
        shapes.setdefault(item.shape, []).append(item)
    return shapes


def _rates(run: Run, shape: str, arms: Sequence[ModelArm]) -> Table:
    columns = tuple((name, name != "arm") for name in _COLUMNS)
    notes = (*_measured(arms), *_NOTES, *_seen(arms))
    title = f"Whole model {shape} ({run.manifest.name})"
    return Table(title, columns, tuple(_rate_line(arm) for arm in arms), notes, "quant")


def _measured(arms: Sequence[ModelArm]) -> Iterator[str]:
    context = next((arm.context for arm in arms if arm.context), 0)
    prompt = prompt_tokens(arms)
    parts = [f"prompt/s: tokens a second of a prompt of {prompt}"] if prompt else []
    parts += [f"token/s: generated, one at a time, behind {context}"] if context else []
    tiers = dict.fromkeys(tier for arm in arms for tier in arm.tiers)
    yield "; ".join([*parts, " and ".join(tier_text(tier) for tier in tiers)])


def _seen(arms: Sequence[ModelArm]) -> Iterator[str]:
    both = [(arm.variant, item.row) for arm in arms for item in (arm.decode, arm.prefill) if item]
    if capped := dict.fromkeys(name for name, row in both if row.status is Status.CAPPED):
        yield f"capped, one round a replicate: {', '.join(capped)}"
    for name, tier in dict.fromkeys((name, row.tier) for name, row in both if row.tier not in (Tier.MEASURED, None)):
        yield f"{name}: {tier_text(tier)}"


def _rate_line(arm: ModelArm) -> tuple[Cell, ...]:
    stored, error, read = arm.stored_bytes, arm.error, arm.decode.row.mbu if arm.decode else None
    kernel = next((item.kernel for item in (arm.decode, arm.prefill) if item and item.kernel), "")
    return (
        Cell(arm.variant, hint=kernel),
        Cell(DASH if stored is None else f"{stored / 1e6:.0f}", hint="" if stored is None else f"{stored:.0f} bytes"),
        Cell(significant(arm.bits_per_weight)),
        _rate(arm.prefill),
        _rate(arm.decode),
        Cell(share(read)),
        Cell(DASH if error is None else f"{error:.1e}", hint="" if error is None else f"{error:.3g}"),
    )


def _rate(item: Product | None) -> Cell:
    return Cell(DASH) if item is None else Cell(significant(item.row.token_per_s), hint=item.row.source)


def _speeds(run: Run, shape: str, arms: Sequence[ModelArm]) -> Table:
    title = f"Whole model {shape}, speed over the fastest unquantised arm ({run.manifest.name})"
    columns = tuple((name, name != "arm") for name in _SPEEDS)
    lines = tuple((Cell(arm.variant), _speed(arm.decode), _speed(arm.prefill)) for arm in arms)
    notes = ("with its 95% interval; arms with 16 bits or more are unquantised; 1 is that arm itself",)
    return Table(title, columns, lines, notes, "quant")


def _speed(item: Product | None) -> Cell:
    ratio = item.over_unquantised if item else None
    if ratio is None:
        return Cell("1" if item and item.is_baseline else DASH)
    bounds = [significant(bound) for bound in (ratio.low, ratio.high)]
    text = significant(ratio.ratio) + ("" if bounds == [DASH, DASH] else f" [{', '.join(bounds)}]")
    return Cell(text, hint=f"{ratio.replicates} replicates")
