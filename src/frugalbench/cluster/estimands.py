"""What each claim about clusters asks for, as a ratio with bounds and the facts behind it.

Only figures that were read or announced enter (:meth:`Hardware.require`); bounds come from conflicting sources and from
the ranges in the cluster files, never from here.
"""

from functools import partial

from frugalbench.cluster import model, serving
from frugalbench.cluster.hardware import Hardware, hardware, prices
from frugalbench.cluster.published.points import published
from frugalbench.cluster.ranges import Range, exact, propagate
from frugalbench.cluster.step import Scaling, step
from frugalbench.cluster.topology import Cluster, Values, load
from frugalbench.schema import Quantity, Tier

Facts = dict[str, Quantity]

PEAK = "bf16_dense_flop_per_s"
POWER = "system_power_w"
POWER_THRESHOLD = 1.5
"""Threshold of ``net.supernode_power``; the sensitivity band for an unpublished power is drawn at it."""


def decay(fragmented: str, uniform: str, scaling: Scaling) -> Facts:
    """Area under marginal throughput over devices, fragmented over uniform; both curves' own decay beside it."""
    ours, theirs = load(fragmented), load(uniform)
    ratio, doublings, _ = model.compare(ours, theirs, lambda c, v: model.areas(model.curve(c, scaling, v)))
    facts = {
        "ratio": ratio.quantity("1", f"area under marginal throughput, {ours.says} / {theirs.says}"),
        "ratio_over_doublings": doublings.quantity("1", "the same areas with every doubling counting alike"),
    }
    for role, cluster in (("fragmented", ours), ("uniform", theirs)):
        found = model.summary(cluster, scaling)
        facts[f"{role}_retained"] = found.retained.quantity("1", "area over that of perfect scaling; below 1 is decay")
        facts[f"{role}_area_token_per_s"] = found.area_token_per_s.quantity("token/s", cluster.says)
    return facts


def peak(system: str, baseline: str, per: str) -> Facts:
    """Dense bf16 peak of one system over another's: ``system``, ``chip`` or ``kW``."""
    ours, theirs = hardware(system), hardware(baseline)
    figures = {name: _per(item, item.require(PEAK), per) for name, item in (("system", ours), ("baseline", theirs))}
    unit = {"system": "FLOP/s", "chip": "FLOP/s/device", "kW": "FLOP/s/kW"}[per]
    source = _sources((ours, theirs), (PEAK, POWER) if per == "kW" else (PEAK,))
    return {
        "ratio": (figures["system"] / figures["baseline"]).quantity("1", source),
        **{name: item.quantity(unit, source) for name, item in figures.items()},
    }


def training(clusters: tuple[str, str], systems: tuple[str, str], per: str) -> Facts:
    """Modelled training throughput of a whole system over another's: per ``system``, ``chip`` or ``kW``."""
    ours, theirs = load(clusters[0]), load(clusters[1])
    (rate,) = model.compare(ours, theirs, _throughput)
    scale = _scale(hardware(systems[0]), per) / _scale(hardware(systems[1]), per)
    source = f"data-parallel step of {ours.training.model}: {ours.says} / {theirs.says}"
    return {
        "ratio": (rate / scale).quantity("1", source),
        "system_token_per_s": _own_rate(ours).quantity("token/s", ours.says),
        "baseline_token_per_s": _own_rate(theirs).quantity("token/s", theirs.says),
    }


def inference(clusters: tuple[str, str], systems: tuple[str, str], per: str, limit_s: float | None) -> Facts:
    """Modelled expert-parallel decoding within ``limit_s`` a token (``None``: prefill) of one system over another's."""
    ours, theirs = load(clusters[0]), load(clusters[1])

    def rate(cluster: Cluster, values: Values) -> list[float]:
        if limit_s is None:
            return [serving.prefill_token_per_s(cluster, values)]
        return [serving.decode_token_per_s(cluster, limit_s, values)]

    read = partial(serving.inputs, phase="prefill" if limit_s is None else "decode")
    (found,) = model.compare(ours, theirs, rate, read)
    scale = _scale(hardware(systems[0]), per) / _scale(hardware(systems[1]), per)
    load_of = "prefill" if limit_s is None else f"decoding, a token every {limit_s * 1e3:.0f} ms"
    source = f"{load_of}, {serving.serving(ours).model}, {serving.CONTEXT} tokens: {ours.says} / {theirs.says}"
    facts = {"ratio": (found / scale).quantity("1", source)}
    for role, cluster in (("system", ours), ("baseline", theirs)):
        (own,) = propagate(lambda v, c=cluster: rate(c, v), read(cluster))  # type: ignore[misc]
        facts[f"{role}_token_per_s"] = own.quantity("token/s", cluster.says)
        each = own / exact(float(cluster.last_devices))
        facts[f"{role}_token_per_s_per_device"] = each.quantity("token/s", cluster.says)
    return facts | _published("prefill" if limit_s is None else "decode", clusters[0])


PUBLISHED = {("decode", "cloudmatrix384"): "P0433", ("prefill", "cloudmatrix384"): "P0432"}
"""Serving rates per device in ``data/network/points.csv``; none of GB200 NVL72 at a stated latency is among them."""


def _published(phase: str, cluster: str) -> Facts:
    if (phase, cluster) not in PUBLISHED:
        return {}
    point = next(p for p in published() if p.id == PUBLISHED[phase, cluster])
    source = f"{point.id}, {point.metric}, {point.source}"
    rate = Quantity(value=point.value, unit="token/s", tier=Tier.PUBLISHED, source=source)
    return {"published_system_token_per_s_per_device": rate}


def inference_joule_per_token(clusters: tuple[str, str], systems: tuple[str, str], limit_s: float | None) -> Facts:
    """Joules per token of modelled inference at the stated system power, one system over another."""
    per_kw = inference(clusters, systems, "kW", limit_s)
    ratio = exact(1.0) / _range(per_kw)
    return {**per_kw, "ratio": ratio.quantity("1", f"system power over throughput; {per_kw['ratio'].source}")}


def joule_per_flop(system: str, baseline: str) -> Facts:
    """Joules per peak bf16 FLOP, one system over another."""
    ours, theirs = hardware(system), hardware(baseline)
    source = _sources((ours, theirs), (PEAK, POWER))
    ratio = exact(1.0) / _range(peak(system, baseline, "kW"))
    facts = {"ratio": ratio.quantity("1", source)}
    for role, item in (("system", ours), ("baseline", theirs)):
        facts[f"{role}_power_w"] = item.require(POWER).quantity("W", item.sources(POWER))
        facts[f"{role}_joule_per_flop"] = (item.require(POWER) / item.require(PEAK)).quantity("J/FLOP", source)
    return facts


def joule_per_token(clusters: tuple[str, str], systems: tuple[str, str]) -> Facts:
    """Joules per token of modelled training at the stated system power, one system over another."""
    per_kw = training(clusters, systems, "kW")
    ratio = exact(1.0) / _range(per_kw)
    return {**per_kw, "ratio": ratio.quantity("1", f"system power over throughput; {per_kw['ratio'].source}")}


def unpublished_power(system: str, baseline: str) -> Facts:
    """No ratio, since the system's power is unpublished; instead the power at which it would meet the threshold."""
    ours, theirs = hardware(system), hardware(baseline)
    limit = exact(POWER_THRESHOLD) * (theirs.require(POWER) / theirs.require(PEAK)) * ours.require(PEAK)
    what = f"power at which joule per FLOP is {POWER_THRESHOLD} times; {_sources((ours, theirs), (PEAK,))}"
    return {
        "ratio": Quantity(value=None, unit="1", tier=Tier.MODELLED, source="power is not published"),
        "power_at_threshold_w": limit.quantity("W", what),
        "power_at_threshold_per_device_w": (limit / exact(ours.devices)).quantity("W", f"per device: {what}"),
    }


def electricity_cost(clusters: tuple[str, str], systems: tuple[str, str], pair: str) -> Facts:
    """Electricity cost per token, one system over another, at one pair of quoted prices.

    ``break_even_price_ratio`` is the price ratio at which both cost the same; cheaper than that offsets the power.
    """
    energy = _range(joule_per_token(clusters, systems))
    peak_energy = _range(joule_per_flop(*systems))
    price = prices().ratio(pair)
    chosen = next(item for item in prices().pair if item.name == pair)
    quoted = ", ".join(f"{p.id} ({p.source})" for p in prices().price if p.id in (*chosen.theirs, *chosen.baseline))
    return {
        "ratio": (energy * price).quantity("1", f"joule per token ratio x price ratio; prices {quoted}"),
        "price_ratio": price.quantity("1", quoted),
        "joule_per_token_ratio": energy.quantity("1", "modelled training at system power"),
        "ratio_per_flop": (peak_energy * price).quantity("1", "joule per peak FLOP ratio x price ratio"),
        "break_even_price_ratio": (exact(1.0) / energy).quantity("1", "inverse of the joule per token ratio"),
    }


def _throughput(cluster: Cluster, values: Values) -> list[float]:
    return [step(cluster, cluster.last_devices, "weak", values).token_per_s]


def _own_rate(cluster: Cluster) -> Range:
    return propagate(lambda v: _throughput(cluster, v), cluster.inputs())[0]


def _per(item: Hardware, figure: Range, per: str) -> Range:
    return figure / _scale(item, per)


def _scale(item: Hardware, per: str) -> Range:
    if per == "kW":
        return item.require(POWER) / exact(1000.0)
    return exact(float(item.devices) if per == "chip" else 1.0)


def _range(facts: Facts) -> Range:
    ratio = facts["ratio"]
    assert ratio.value is not None and ratio.low is not None and ratio.high is not None
    return Range(value=ratio.value, low=ratio.low, high=ratio.high)


def _sources(items: tuple[Hardware, ...], names: tuple[str, ...]) -> str:
    return "; ".join(dict.fromkeys(f"{item.name}: {item.sources(name)}" for item in items for name in names))
