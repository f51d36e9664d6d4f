"""Every claim file is strict, complete and able to swing; every published figure backs a claim and has a source."""

import csv
import math
import tomllib

import msgspec
import pytest

from frugalbench import paths
from frugalbench.schema import Claim, Coverage, ExactRatio, Modelled, NonInferiority, NotTested, PairedRatio
from frugalbench.specs import SPECS, model_decode, model_schemes

FILES = sorted(paths.data("claims").glob("*.toml"))
CLAIMS = {file.stem: msgspec.convert(tomllib.loads(file.read_text("utf-8")), Claim) for file in FILES}
TESTED = {
    *("moe.compute", "moe.overhead", "moe.per_flop", "moe.per_watt", "quality.moe"),
    *(
        "quant.accuracy_8bit",
        "quant.accuracy_4bit",
        "quant.memory",
        "quant.decode",
        "quant.prefill",
        "quant.per_watt",
        "quant.per_flop",
        "quant.reach",
    ),
    *("onnx.models", "onnx.conformance", "onnx.parity", "onnx.speed", "adaptation.torch", "adaptation.tax"),
    *("net.decay", "net.supernode", "net.supernode_power", "net.cheap_power", "net.cross_region", "net.trillion"),
    *("net.hetero", "net.memory_pool"),
}
UNTESTED: set[str] = set()
each = pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS.keys())


def paired() -> list[Claim]:
    return [claim for claim in CLAIMS.values() if isinstance(claim.rule, PairedRatio)]


def test_exactly_these_claims_exist():
    assert set(CLAIMS) == TESTED | UNTESTED
    assert {name for name, claim in CLAIMS.items() if isinstance(claim.rule, NotTested)} == UNTESTED


def test_an_unknown_key_is_refused():
    text = (paths.data("claims") / "moe.compute.toml").read_text("utf-8")
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.convert(tomllib.loads("colour = 'red'\n" + text), Claim)


@each
def test_rule_has_no_key_that_the_schema_would_drop(claim):
    rule = tomllib.loads((paths.data("claims") / f"{claim.id}.toml").read_text("utf-8"))["rule"]
    own = {field.name for field in msgspec.structs.fields(type(claim.rule))}
    assert set(rule) - {"kind"} <= own


@each
def test_file_is_named_after_its_claim(claim):
    assert CLAIMS[claim.id] is claim


@each
def test_every_text_is_filled_in(claim):
    texts = (claim.says, claim.estimand, claim.flips, *(source.document for source in claim.sources))
    assert all(text.strip() == text and text for text in texts)
    assert claim.sources
    assert claim.regimes


@each
def test_direction_scope_and_threshold_are_sane(claim):
    assert claim.direction in {"at_least", "at_most"}
    assert claim.scope in {"literal", "analogue"}
    assert math.isfinite(claim.threshold)
    assert claim.threshold > 0


@each
def test_no_path_of_a_machine_and_no_hidden_reference(claim):
    text = msgspec.json.encode(claim).decode()
    assert "/work" not in text
    assert "issue" not in text.lower()


@pytest.mark.parametrize("claim", paired(), ids=lambda claim: claim.id)
def test_paired_rules_can_be_evaluated(claim):
    rule = claim.rule
    assert rule.metric in {"time", "energy"}
    assert rule.scale in {"none", "flop", "peak_share", "tax"}
    for arms in (rule, *rule.beside):
        assert arms.workload in SPECS
        assert arms.baselines
        assert arms.as_shipped
        assert not arms.best or set(arms.as_shipped) <= set(arms.best)
        assert not set(arms.best) & set(arms.baselines)
    assert claim.direction == "at_least"


def test_whole_models_are_held_against_every_unquantised_arm():
    for name in ("quant.decode", "quant.prefill", "quant.per_watt"):
        (arms,) = CLAIMS[name].rule.beside
        assert arms.workload == model_decode.WORKLOAD
        bits = {variant: fmt.bits for variant, fmt in model_decode.KNOWN.items()}
        assert set(arms.baselines) == {variant for variant in bits if bits[variant] >= 16}
        assert set(arms.best) == {variant for variant in bits if bits[variant] < 16}
        assert not any(variant.startswith("native") for variant in arms.as_shipped)
    groups = [group for group in CLAIMS["quant.memory"].rule.groups if group.workload == model_decode.WORKLOAD]
    for group, width in zip(groups, (8, 4), strict=True):
        assert set(group.variants) == {name for name, fmt in model_decode.KNOWN.items() if fmt.bits == width}


def test_thresholds_of_the_claims_list():
    expected = {"moe.compute": 0.8, "moe.overhead": 0.9, "moe.per_flop": 0.9, "moe.per_watt": 0.8}
    expected |= {"quant.decode": 1, "quant.prefill": 1, "quant.per_watt": 1, "quant.per_flop": 0.8, "quant.reach": 2}
    expected |= {"quant.accuracy_8bit": 0.99, "quant.accuracy_4bit": 0.99, "quality.moe": 0.8}
    expected |= {"onnx.models": 1, "onnx.conformance": 0.95, "onnx.parity": 1, "onnx.speed": 0.9}
    expected |= {"adaptation.tax": 0.2, "adaptation.torch": 1, "net.decay": 0.9, "net.hetero": 0.95}
    expected |= {"net.supernode": 1, "net.supernode_power": 1.5, "net.cheap_power": 1, "net.cross_region": 0.95}
    expected |= {"net.trillion": 0.5, "net.memory_pool": 0.8, "quant.memory": 0.55}
    assert {name: claim.threshold for name, claim in CLAIMS.items()} == expected


def test_small_is_good_only_where_the_claim_says_less():
    at_most = {name for name, claim in CLAIMS.items() if claim.direction == "at_most"}
    less = {"quality.moe", "quant.memory", "net.decay", "net.hetero", "net.cheap_power", "net.trillion"}
    assert at_most == less


def test_memory_groups_cover_its_regimes():
    claim = CLAIMS["quant.memory"]
    assert isinstance(claim.rule, ExactRatio)
    assert tuple(dict.fromkeys(group.regime for group in claim.rule.groups)) == claim.regimes
    assert [group.threshold for group in claim.rule.groups] == [0.55, 0.32] * 3


def test_accuracy_is_held_against_the_unquantised_model():
    for bits in ("8", "4"):
        claim = CLAIMS[f"quant.accuracy_{bits}bit"]
        assert isinstance(claim.rule, NonInferiority)
        assert claim.rule.baseline not in claim.rule.candidates
        assert claim.threshold < claim.rule.strict < 1
        of_width = {name for name, scheme in model_schemes.SCHEMES.items() if scheme.bits == int(bits)}
        assert set(claim.rule.candidates) == of_width
        groups = [g for g in CLAIMS["quant.memory"].rule.groups if g.workload == claim.rule.workload]
        assert [set(g.variants) for g in groups if g.regime == f"{bits}-bit model"] == [of_width]


def test_coverage_and_modelled_rules():
    for claim in CLAIMS.values():
        if isinstance(claim.rule, Coverage):
            assert claim.regimes == ("all",)
        if claim.modelled is not None:
            assert (claim.modelled.workload, claim.modelled.variant) == ("cluster_model", claim.id)
            assert "Modelled beside it, opting in" in claim.note and not isinstance(claim.rule, Modelled)
        if isinstance(claim.rule, Modelled):
            assert (claim.rule.workload, claim.rule.variant) == ("cluster_model", claim.id)
            assert claim.regimes == ("*",)
            assert "modelled" in claim.note


def test_published_figures_back_known_claims_and_name_their_source():
    with paths.data("published_figures.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows
    for row in rows:
        assert set(row["claims"].split()) <= set(CLAIMS)
        assert row["claims"]
        assert row["value"]
        assert row["source"]
        assert row["read_or_recalled"] in {"read", "recalled", "derived"}
