"""Claims about clusters that no single machine can measure: computed from published figures by the cluster model.

The variant is the claim's id, the regime the metric or load; each case becomes one record of tier ``modelled`` whose
fact ``ratio`` carries the bounds that the ranges of its inputs allow.
"""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, get_args

from msgspec import to_builtins

from frugalbench.cluster import estimands, mix, parallel, pool, region, serving, trillion
from frugalbench.cluster.estimands import Facts
from frugalbench.cluster.hardware import hardware, prices
from frugalbench.cluster.model import Sweeps, sweeps
from frugalbench.cluster.scene import load_scene
from frugalbench.cluster.step import Scaling
from frugalbench.cluster.topology import load
from frugalbench.schema import SCHEMA_VERSION, Case, FrugalbenchError, Record, Status, Tier
from frugalbench.specs.base import Expansion, MachineView, Settings, choose, take

WORKLOAD = "cluster_model"
SYSTEMS = ("cloudmatrix-384", "gb200-nvl72")
CLUSTERS = ("cloudmatrix384", "nvl72")
ANNOUNCED = ("atlas-950-superpod", "vera-rubin-nvl72")
PER = {"system": "", "chip": " per chip", "kW": " per kW"}

DECODE_LIMIT_S = 0.05
"""Between two tokens of a sequence: the published decoding rate's, rounded."""
PHASES = {"decode": DECODE_LIMIT_S, "prefill": None}
SITES = (("llama3.1-8b", 128), ("deepseek-llm-67b", 512), ("deepseek-v3-671b", 1024))
"""Models, and devices of each of two sites."""
JUDGED = tuple(name for name, _ in SITES[1:])
"""Models whose points are judged one by one; the region of the first is shown only."""
JUDGED_WAYS = ("no overlap", "overlapped")
NO_CXL = "no bandwidth of a CXL link was read; the record holds the link that the threshold asks for"
SPLITS = ("equal", "proportional")
POOL, CXL = "ascend-910c", "h100-sxm"
REGION = "cross-region map"
"""Variant of the records that hold a whole region; no claim's rule reads it."""
NO_POWER = "the power of Atlas 950 SuperPoD is not published"


def expand(settings: Settings, machine: MachineView) -> Expansion:  # noqa: ARG001
    """One modelled case per claim and regime.

    Options: ``claims`` (list of claim ids), ``uniform`` (cluster), ``fragmented`` (list of clusters), ``mixes`` (list
    of scenes with two kinds of device), ``wan_gbit`` (rates between sites) and ``local_steps`` between exchanges that
    ``net.cross_region`` is judged at; its whole region is in a record of each model beside them.
    Raises :class:`FrugalbenchError` for an unknown key, claim or cluster.
    """
    defaults: dict[str, Any] = {"claims": list(_CASES), "uniform": "uniform", "fragmented": ["fragmented", "islands"]}
    defaults |= {"mixes": ["mixed", "mixed-h800"], "wan_gbit": [1.0, 10.0, 100.0], "local_steps": [1, 100]}
    options = take(settings, defaults)
    for claim in options["claims"]:
        choose(settings, "claim", claim, _CASES)
    for cluster in (options["uniform"], *options["fragmented"]):
        load(cluster)
    for key in ("wan_gbit", "local_steps"):
        if not options[key] or not all(item > 0 for item in options[key]):
            raise FrugalbenchError(f"{settings.where}: '{key}' must hold positive numbers, not {options[key]}")
    cases = [case for claim in options["claims"] for case in _CASES[claim](options)]
    return Expansion(modelled=tuple(cases))


def model(case: Case) -> Record:
    """Compute one case of :func:`expand`. A ratio without a value is a skipped record with its reason."""
    params = dict(case.params)
    facts = _ESTIMANDS[params.pop("estimand")](params)
    known = "ratio" not in facts or facts["ratio"].value is not None
    return Record(
        schema_version=SCHEMA_VERSION,
        comparison=WORKLOAD,
        arm=case.variant,
        case=case,
        replicate=1,
        status=Status.OK if known else Status.SKIPPED,
        reason="" if known else _REASONS[case.variant],
        tier=Tier.MODELLED,
        facts=facts,
        details=_details(params) | _more(case),
        sweeps=_sweeps(case),
    )


def _decay_cases(options: dict[str, Any]) -> list[Case]:
    uniform = options["uniform"]
    return [
        _case("net.decay", f"{scaling} scaling {_span(name)}, {name}", f"{name} / {uniform}", estimand="decay", **extra)
        for name in options["fragmented"]
        for scaling in get_args(Scaling)
        for extra in ({"fragmented": name, "uniform": uniform, "scaling": scaling},)
    ]


def _supernode_cases(_: dict[str, Any]) -> list[Case]:
    case = partial(_case, "net.supernode")
    shape, announced = " / ".join(SYSTEMS), " / ".join(ANNOUNCED)
    peak = partial(case, estimand="peak")
    training = partial(case, shape=shape, estimand="training", systems=SYSTEMS, clusters=CLUSTERS)
    return [
        *(peak(f"peak bf16{text}", shape, systems=SYSTEMS, per=per) for per, text in PER.items()),
        *(training(f"modelled training{text}", per=per) for per, text in PER.items()),
        *(
            training(f"modelled MoE {phase}{text}", estimand="inference", limit_s=limit_s, per=per)
            for phase, limit_s in PHASES.items()
            for per, text in PER.items()
        ),
        *(peak(f"peak bf16{PER[per]}, announced", announced, systems=ANNOUNCED, per=per) for per in ("system", "chip")),
    ]


def _power_cases(_: dict[str, Any]) -> list[Case]:
    claim, shape = "net.supernode_power", " / ".join(SYSTEMS)
    return [
        _case(claim, "peak bf16", shape, estimand="joule_per_flop", systems=SYSTEMS),
        _case(claim, "modelled training", shape, estimand="joule_per_token", systems=SYSTEMS, clusters=CLUSTERS),
        *(
            _case(
                claim,
                f"modelled MoE {phase}",
                shape,
                estimand="inference_joule_per_token",
                systems=SYSTEMS,
                clusters=CLUSTERS,
                limit_s=limit_s,
            )
            for phase, limit_s in PHASES.items()
        ),
        _case(claim, "peak bf16, announced", " / ".join(ANNOUNCED), estimand="unpublished_power", systems=ANNOUNCED),
    ]


def _price_cases(_: dict[str, Any]) -> list[Case]:
    common = {"estimand": "electricity_cost", "systems": SYSTEMS, "clusters": CLUSTERS}
    shape = " / ".join(SYSTEMS)
    return [_case("net.cheap_power", pair.name, shape, pair=pair.name, **common) for pair in prices().pair]


def _trillion_cases(options: dict[str, Any]) -> list[Case]:
    uniform = options["uniform"]
    return [
        _case(
            "net.trillion", f"dense 1T on {load(name).last_devices} devices, {name}", f"{name} / {uniform}",
            estimand="trillion", fragmented=name, uniform=uniform,
        )
        for name in options["fragmented"]
    ]  # fmt: skip


def _hetero_cases(options: dict[str, Any]) -> list[Case]:
    return [
        _case("net.hetero", f"{split} split, {name}", shape, estimand="hetero", scene=name, split=split)
        for name in options["mixes"]
        for shape in (" + ".join(f"{number} {kind}" for kind, number in load_scene(name).kinds()),)
        for split in SPLITS
    ]


def _pool_cases(_: dict[str, Any]) -> list[Case]:
    case = partial(_case, "net.memory_pool")
    return [
        case("decode, UnifiedBus pool", POOL, estimand="pooled", device=POOL),
        case("decode, CXL card", CXL, estimand="unknown_link", device=CXL),
    ]


def _region_cases(options: dict[str, Any]) -> list[Case]:
    sites = [
        region.Sites(cluster=options["uniform"], model=model, devices=devices)
        for model, devices in SITES
        if devices <= load(options["uniform"]).last_devices
    ]
    whole = [
        _case(REGION, f"{region.DISTANCE_M / 1e3:.0f} km, {s.model}", s.says, estimand="region", **to_builtins(s))
        for s in sites
    ]
    return whole + [case for s in sites if s.model in JUDGED for case in _point_cases(s, options)]


def _point_cases(sites: region.Sites, options: dict[str, Any]) -> Iterator[Case]:
    for gbit, every, overlap in itertools.product(options["wan_gbit"], options["local_steps"], JUDGED_WAYS):
        way = f"every {every} steps{', overlapped' if overlap != JUDGED_WAYS[0] else ''}"
        yield _case(
            "net.cross_region", f"{way}, {gbit:g} Gbit/s, {sites.model}", sites.says, estimand="point",
            bit_per_s=gbit * 1e9, every=every, overlap=overlap, baseline="one site", **to_builtins(sites),
        )  # fmt: skip


def _sites(params: dict[str, Any]) -> region.Sites:
    return region.Sites(cluster=params["cluster"], model=params["model"], devices=params["devices"])


def _point(params: dict[str, Any]) -> Facts:
    way = region.Way(every=params["every"], overlap=params["overlap"])
    return region.judged(_sites(params), way, params["bit_per_s"])


_CASES: dict[str, Callable[[dict[str, Any]], list[Case]]] = {
    "net.decay": _decay_cases,
    "net.supernode": _supernode_cases,
    "net.supernode_power": _power_cases,
    "net.cheap_power": _price_cases,
    "net.trillion": _trillion_cases,
    "net.hetero": _hetero_cases,
    "net.memory_pool": _pool_cases,
    "net.cross_region": _region_cases,
}

_REASONS = {"net.supernode_power": NO_POWER, "net.memory_pool": NO_CXL}

_ESTIMANDS: dict[str, Callable[[dict[str, Any]], Facts]] = {
    "decay": lambda p: estimands.decay(p["fragmented"], p["uniform"], p["scaling"]),
    "trillion": lambda p: trillion.ratio(p["fragmented"], p["uniform"]),
    "peak": lambda p: estimands.peak(*_two(p["systems"]), p["per"]),
    "training": lambda p: estimands.training(_two(p["clusters"]), _two(p["systems"]), p["per"]),
    "inference": lambda p: estimands.inference(_two(p["clusters"]), _two(p["systems"]), p["per"], p["limit_s"]),
    "inference_joule_per_token": lambda p: estimands.inference_joule_per_token(
        _two(p["clusters"]), _two(p["systems"]), p["limit_s"]
    ),
    "joule_per_flop": lambda p: estimands.joule_per_flop(*p["systems"]),
    "joule_per_token": lambda p: estimands.joule_per_token(_two(p["clusters"]), _two(p["systems"])),
    "unpublished_power": lambda p: estimands.unpublished_power(*p["systems"]),
    "hetero": lambda p: mix.hetero(p["scene"], p["split"]),
    "region": lambda p: region.region(_sites(p)),
    "point": _point,
    "pooled": lambda p: pool.pooled(p["device"]),
    "unknown_link": lambda p: pool.unknown_link(p["device"]),
    "electricity_cost": lambda p: estimands.electricity_cost(_two(p["clusters"]), _two(p["systems"]), p["pair"]),
}


def _case(claim: str, regime: str, shape: str, **params: Any) -> Case:
    listed = {key: list(value) if isinstance(value, tuple) else value for key, value in params.items()}
    return Case(
        id=f"{WORKLOAD}/{claim}/{_slug(regime)}",
        workload=WORKLOAD,
        variant=claim,
        shape=shape,
        regime=regime,
        backend="model",
        device="published",
        dtype="bf16",
        params=listed,
    )


def _slug(regime: str) -> str:
    return regime.replace(", ", "-").replace(" ", "-").replace("/", "-per-")


def _details(params: dict[str, Any]) -> dict[str, Any]:
    """What the numbers rest on: inputs of the clusters with sources, which are assumed, and notes of the systems."""
    clusters = [
        *params.get("clusters", ()),
        *(params[key] for key in ("fragmented", "uniform", "cluster") if key in params),
    ]
    assumed = {name: load(name).assumptions() for name in clusters}
    if scene := params.get("scene"):
        assumed[scene] = load_scene(scene).assumptions()
    return {
        "sources": {name: load(name).sources() for name in clusters},
        "assumptions": assumed,
        "notes": {name: hardware(name).note for name in params.get("systems", ())},
    }


def _more(case: Case) -> dict[str, Any]:
    """Of single claims: the cuts of a model over a cluster, and sources of inputs that no cluster file holds."""
    if "limit_s" in case.params:
        return {"model_sources": serving.SOURCES, "shares": {name: _shares(name) for name in case.params["clusters"]}}
    if case.params["estimand"] in ("region", "point"):
        return _of_sites(case)
    if case.variant != "net.trillion":
        return {}
    cuts = {key: trillion.described(case.params[key]) for key in ("fragmented", "uniform")}
    return {"cuts": cuts, "model_sources": parallel.SOURCES}


def _of_sites(case: Case) -> dict[str, Any]:
    sites = _sites(case.params)
    points = {"grid": region.grid(sites), "frontier": region.frontier(sites)} if case.variant == REGION else {}
    return {"basis": region.described(sites), **points}


def _shares(name: str) -> dict[str, str]:
    """Achieved shares of peak of a cluster's serving section, each with its source."""
    found = serving.serving(load(name))
    given = {key: getattr(found, key) for key in ("product_share", "attention_share", "memory_share", "bulk_share")}
    return {key: f"{item.value}{', assumed' if item.assumption else ''}: {item.source}" for key, item in given.items()}


def _span(name: str) -> str:
    cluster = load(name)
    return f"{cluster.first_devices}-{cluster.last_devices}"


def _sweeps(case: Case) -> Sweeps:
    """Both curves under which ``net.decay`` takes the areas, and their throughput per device."""
    if case.variant != "net.decay":
        return ()
    names, scaling = (case.params[key] for key in ("uniform", "fragmented")), case.params["scaling"]
    return tuple(sweep for name in names for sweep in sweeps(load(name), scaling)[1:])


def _two(names: list[str]) -> tuple[str, str]:
    first, second = names
    return first, second
