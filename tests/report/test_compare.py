"""What ``compare`` says of two runs: outcomes, gates, exit-code lines, job page and JUnit."""

import json
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from factory import COST, make_fact, make_reading, make_record, make_replicates, make_run, scaled
from frugalbench.analysis.compare import Change, Compared, compare, require_common
from frugalbench.analysis.load import Run, load_run
from frugalbench.report.compare import compared_markdown, compared_plain, compared_terminal, headline, junit
from frugalbench.schema import FrugalbenchError, Record, Status


def two_runs(tmp_path: Path, base: list[Record], new: list[Record], **manifest: object) -> tuple[Run, Run]:
    shared = {"floor": 0.005}
    return (
        load_run(make_run(tmp_path / "base", base, **shared)),
        load_run(make_run(tmp_path / "new", new, **{**shared, **manifest})),
    )


def compare_scaled(tmp_path: Path, factor: float, between: float = 0.01, limit: float | None = 5.0) -> Compared:
    base = make_replicates("dense", 0.01, 6, between, seed=1)
    new = [scaled(r, factor) for r in make_replicates("dense", 0.01, 6, between, seed=2)]
    return compare(*two_runs(tmp_path, base, new), limit)


def only(compared: Compared) -> Change:
    (change,) = compared.changes
    return change


def many(tmp_path: Path, factors: list[float], **manifest: object) -> tuple[Run, Run]:
    """A case per factor, by which the new run is slower."""
    base, new = [], []
    for number, factor in enumerate(factors):
        fields = {"id": f"case{number}"}
        base += make_replicates("dense", 0.01, 6, 0.01, seed=2 * number, case_fields=fields)
        again = make_replicates("dense", 0.01, 6, 0.01, seed=2 * number + 1, case_fields=fields)
        new += [scaled(record, factor) for record in again]
    return two_runs(tmp_path, base, new, **manifest)


# Times


def test_a_clear_slowdown_is_a_regression(tmp_path: Path) -> None:
    compared = compare_scaled(tmp_path, 1.2)
    change = only(compared)
    assert change.outcome == "regressed" and change.alarm and change.case in compared.regressions[0]
    assert change.low is not None and change.high is not None and change.low < 1.2 < change.high


def test_a_slowdown_within_the_limit_is_none(tmp_path: Path) -> None:
    compared = compare_scaled(tmp_path, 1.2, limit=30)
    assert only(compared).outcome == "regressed" and compared.regressions == ()


def test_without_a_limit_nothing_regresses_by_time(tmp_path: Path) -> None:
    compared = compare_scaled(tmp_path, 1.2, limit=None)
    assert only(compared).outcome == "regressed" and compared.regressions == ()


def test_improved_and_undecided_with_what_would_have_been_found(tmp_path: Path) -> None:
    assert only(compare_scaled(tmp_path / "a", 0.8)).outcome == "improved"
    quiet, noisy = (only(compare_scaled(tmp_path / str(b), 1.0, between=b)) for b in (0.002, 0.3))
    assert quiet.outcome == noisy.outcome == "no difference shown"
    assert quiet.detectable is not None and noisy.detectable is not None
    assert 0.005 < quiet.detectable < 0.05 < 0.3 < noisy.detectable


def test_one_replicate_shows_nothing(tmp_path: Path) -> None:
    runs = two_runs(tmp_path, make_replicates("dense", 0.01, 1), make_replicates("dense", 0.1, 1))
    change = only(compare(*runs, 5.0))
    assert (change.outcome, change.low, change.detectable, change.alarm) == ("no difference shown", None, None, False)
    assert change.ratio is not None and change.ratio > 5 and "one replicate" in change.note


def test_the_floor_of_the_machine_widens(tmp_path: Path) -> None:
    compared = [compare(*many(tmp_path / str(f), [1.05], floor=f), 0.0) for f in (0.005, 0.06)]
    assert [only(item).outcome for item in compared] == ["regressed", "no difference shown"]
    assert compared[1].floor == 0.06, "the larger one of both runs"


def test_one_of_many_is_named_and_no_other(tmp_path: Path) -> None:
    compared = compare(*many(tmp_path, [1.0] * 11 + [1.08]), 5.0)
    assert {c.case: c.outcome for c in compared.changes if c.outcome != "no difference shown"} == {
        "case11": "regressed"
    }
    assert len(compared.regressions) == 1


def test_what_all_cases_share_is_laid_to_the_machine_up_to_a_limit(tmp_path: Path) -> None:
    drifted = compare(*many(tmp_path / "a", [1.06] * 12), 2.0)
    assert {c.outcome for c in drifted.changes} == {"no difference shown"} and drifted.regressions == ()
    assert drifted.shifts[0].ratio == pytest.approx(1.06, rel=0.01) and "two runs cannot say" in compared_terminal(
        drifted
    )
    broken = compare(*many(tmp_path / "b", [1.3] * 12), 2.0)
    assert broken.shifts[0].alarm and len(broken.regressions) == 1 and "all cases: time 1.3" in broken.regressions[0]


def test_half_of_the_cases_slower_makes_no_case_faster(tmp_path: Path) -> None:
    compared = compare(*many(tmp_path, [1.0] * 6 + [1.3] * 6), 5.0)
    assert "improved" not in {c.outcome for c in compared.changes}


def test_energy_is_compared_where_both_have_joules(tmp_path: Path) -> None:
    def side(joule: float, seed: int) -> list[Record]:
        readings = tuple(make_reading(joule, round=i) for i in range(3))
        return make_replicates("dense", 0.01, 6, 0.01, seed=seed, readings=readings)

    compared = compare(*two_runs(tmp_path, side(1.0, 1), side(1.5, 2)), 5.0)
    by_metric = {change.metric: change for change in compared.changes}
    assert by_metric["energy"].ratio == pytest.approx(1.5) and by_metric["energy"].alarm
    assert by_metric["time"].outcome == "no difference shown"


def test_pilot_and_void_rounds_do_not_count(tmp_path: Path) -> None:
    base = [make_record("dense", time_s=[0.01, 9.0, 0.01], void=[1], replicate=i) for i in range(7)]
    change = only(compare(*two_runs(tmp_path, base, base), 5.0))
    assert change.base == pytest.approx(0.01) and change.replicates == (6, 6)


# Two machines


def test_machines_are_compared_without_an_alarm(tmp_path: Path) -> None:
    other = {"machine_before": {"fingerprint": "other", "cpu_model": "Another CPU"}, "config": {"a": 1}}
    compared = compare(*many(tmp_path, [2.0] * 12, **other), 5.0)
    assert not compared.same_machine and compared.regressions == () and compared.shifts == ()
    assert {c.outcome for c in compared.changes} == {"slower"}
    text = compared_terminal(compared)
    assert text.index("Another CPU") < text.index("New machine against base machine") < text.index("case0")
    assert "--fail-above does not apply" in compared.warnings[0] and "different configs" in compared.warnings[1]
    told = {**other, "config": {"description": "other words", "path": "elsewhere"}}
    assert not any("different configs" in line for line in compare(*many(tmp_path / "b", [2.0] * 12, **told)).warnings)


def test_what_differs_within_a_list_is_named(tmp_path: Path) -> None:
    """A list of tables as one text would be cut before the place that differs."""
    records = make_replicates("dense", 0.01, 6)
    sides = [
        load_run(make_run(tmp_path / str(scale), records, config={"workloads": [{"name": "x" * 300, "scale": scale}]}))
        for scale in (1.0, 0.5)
    ]
    (found,) = compare(*sides).differences
    assert (found.what, found.base, found.new) == ("config.workloads.1.scale", "1.0", "0.5")


# Gates


def gate_of(tmp_path: Path, base: dict[str, object], new: dict[str, object]) -> list[tuple[str, str, bool]]:
    runs = two_runs(tmp_path, *(make_replicates("dense", 0.01, 3, **side) for side in (base, new)))
    compared = compare(*runs)
    assert bool(compared.regressions) is any(gate.worse for gate in compared.gates)
    return [(gate.gate, gate.what, gate.worse) for gate in compared.gates]


def cost(**changed: float) -> dict[str, object]:
    return {"case_fields": {"cost": msgspec.structs.replace(COST, **changed)}}


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (cost(), []),
        (cost(flop=3e9), [("work", "flop per token", True)]),
        (cost(flop=1e9), [("work", "flop per token", False)]),
        (cost(weight_bytes=5e8), [("bytes", "weight_bytes per token", True)]),
        (cost(token=8, flop=4e9, weight_bytes=8e8, traffic_bytes=8e8), []),
        ({"pss_bytes": 3.2e8}, [("memory", "pss_bytes", True)]),
        ({"pss_bytes": 3.02e8}, []),
        ({"facts": {"share_nodes_asked": make_fact(0.9)}}, [("placement", "share_nodes_asked", True)]),
        ({"facts": {"share_nodes_asked": make_fact(1.0), "accuracy": make_fact(0.5)}}, []),
        ({"details": {"placement": {"CPU": {"Add": 3}, "GPU": {"Add": 1}}}}, [("placement", "nodes per device", True)]),
        ({"details": {"placement": "odd"}}, []),
    ],
)
def test_gates(tmp_path: Path, new: dict[str, object], expected: list[tuple[str, str, bool]]) -> None:
    base = {"facts": {"share_nodes_asked": make_fact(1.0)}, "details": {"placement": {"CPU": {"Add": 4}}}}
    assert gate_of(tmp_path, base, {**base, **new}) == expected


def test_accuracy_has_a_direction(tmp_path: Path) -> None:
    base, new = (
        {"facts": {"accuracy": make_fact(a), "output_error": make_fact(e)}} for a, e in ((0.9, 0.1), (0.8, 0.05))
    )
    assert gate_of(tmp_path, base, new) == [("accuracy", "accuracy", True), ("accuracy", "output_error", False)]


def test_new_failures_regress_even_without_a_limit(tmp_path: Path) -> None:
    base = make_replicates("dense", 0.01)
    new = [make_record("dense", status=Status.FAILED, reason="wrong answer")]
    compared = compare(*two_runs(tmp_path, base, new))
    assert only(compared).outcome == "only in base" and "failed (wrong answer)" in compared.regressions[0]
    mended = compare(load_run(tmp_path / "new"), load_run(tmp_path / "base"))
    assert mended.regressions == () and not mended.gates[0].worse


def test_a_case_that_is_now_hopelessly_slow_regresses(tmp_path: Path) -> None:
    new = [make_record("dense", status=Status.CAPPED, time_s=None, reason="100 times slower")]
    assert (
        "capped (100 times slower)" in compare(*two_runs(tmp_path, make_replicates("dense", 0.01), new)).regressions[0]
    )
    timed = make_replicates("dense", 0.01, status=Status.CAPPED)
    assert compare(*two_runs(tmp_path / "b", make_replicates("dense", 0.01), timed)).gates == ()


def test_only_chosen_gates_count(tmp_path: Path) -> None:
    runs = two_runs(tmp_path, make_replicates("dense", 0.01), make_replicates("dense", 0.01, **cost(flop=3e9)))
    assert compare(*runs, None, ("bytes",)).gates == () and compare(*runs, None, ("work",)).regressions


# Runs that cannot be compared


def test_silence_is_no_pass(tmp_path: Path) -> None:
    failed = [make_record("dense", status=Status.FAILED, reason="no")]
    for base, new, says in (
        ([], failed, "no measured case"),
        (failed, failed, "every case failed in both runs"),
        (make_replicates("a", 0.01), make_replicates("b", 0.01), "no case in common"),
    ):
        folder = tmp_path / says.replace(" ", "-")
        with pytest.raises(FrugalbenchError, match=says):
            require_common(*two_runs(folder, base, new))


def test_cases_of_one_run_only_are_named(tmp_path: Path) -> None:
    shared = make_replicates("c", 0.01)
    runs = two_runs(tmp_path, shared + make_replicates("a", 0.01), shared + make_replicates("b", 0.01))
    require_common(*runs)
    compared = compare(*runs)
    assert sorted(c.outcome for c in compared.changes) == ["no difference shown", "only in base", "only in new"]
    assert compared.regressions == () and "1 cases only in new" in compared_terminal(compared)


def test_other_claims_and_schemas_are_said(tmp_path: Path) -> None:
    records = make_replicates("dense", 0.01)
    compared = compare(*two_runs(tmp_path, records, records, claims_hash="f" * 16, schema_version=0))
    assert any("different claims" in item for item in compared.warnings)
    assert any("different schema versions" in item for item in compared.warnings)


# For CI


def test_a_job_page(tmp_path: Path) -> None:
    text = compared_markdown(compare(*many(tmp_path, [1.0] * 11 + [1.2]), 5.0))
    assert text.startswith("# frugalbench compare\n\n**Failed. Times: 12 tested: 1 regressed, 0 improved, 11 no")
    first = next(line for line in text.splitlines() if line.startswith("| case11"))
    assert "**regressed, beyond the limit**" in first and text.count("| case") == 12 + 1


def test_junit_has_a_failure_per_regression(tmp_path: Path) -> None:
    base, new = many(tmp_path, [1.0] * 11 + [1.2])
    hostile = make_replicates(
        "x", 0.01, 3, case_fields={"id": 'a<b>"\x1b[31m&\ud800'.encode(errors="replace").decode()}
    )
    runs = (
        load_run(make_run(tmp_path / "h", [*base.records, *hostile])),
        load_run(make_run(tmp_path / "i", [*new.records, *hostile])),
    )
    compared = compare(*runs, 5.0)
    tree = ElementTree.fromstring(junit(compared))
    assert sum(int(suite.attrib["failures"]) for suite in tree) == len(compared.regressions) == 1
    (failure,) = tree.iter("failure")
    assert "beyond" not in failure.attrib["message"] and "regressed: new/base 1." in failure.attrib["message"]
    assert any("a<b>" in case.attrib["name"] for case in tree.iter("testcase"))


def test_json_and_headline_agree(tmp_path: Path) -> None:
    compared = compare_scaled(tmp_path, 1.0)
    plain = json.loads(msgspec.json.encode(compared_plain(compared)))
    assert plain["regressions"] == [] and plain["same_machine"] is True and len(plain["changes"]) == 1
    assert headline(compared).startswith("Passed. Times: 1 tested: 0 regressed, 0 improved, 1 no difference")
