"""What the comparison with peers makes of their output, and how it counts. Times nothing."""

import json
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

pyperf = pytest.importorskip("pyperf", reason="needs the extra 'peers'")

from pytest_benchmark.utils import PercentageRegressionCheck  # noqa: E402

from benchmarks import overhead, peer_programs, peer_tools, peers  # noqa: E402
from benchmarks.peer_tools import FIRST, SECOND, ToolFailed  # noqa: E402

LISTED = "Mean +- std dev: [first] 10.1 ms +- 0.1 ms -> [second] 10.4 ms +- 0.1 ms: 1.03x slower"
BY_SPEED = "Faster (1):\n- arm: 10.1 ms +- 0.1 ms -> 9.8 ms +- 0.1 ms: 1.03x faster"
TABLE = "| Benchmark | first   | second               |\n| arm       | 10.1 ms | 10.4 ms: 1.03x slower |"
HIDDEN = "Benchmark hidden because not significant (1): arm"
GREEN, BLUE, OFF = "\x1b[92m\x1b[1m", "\x1b[34m\x1b[1m", "\x1b[0m\x1b[0m"
COMPARE = (
    "[- peers -]\n          |  time\n1 threads: ---\n  first   |  {} 10 {}\n  second  |  {} 10.4 {}\n\nTimes in ms."
)
times_s = st.floats(1e-9, 1e3)


@pytest.mark.parametrize(
    "text, faster",
    [(LISTED, FIRST), (BY_SPEED, SECOND), (TABLE, FIRST), (HIDDEN, None), ("... Not significant!", None)],
)
def test_pyperf_says_who_is_faster_in_any_of_its_formats(text, faster):
    assert peer_tools.read_pyperf(text) == faster


def test_an_answer_that_pyperf_does_not_give_is_no_verdict():
    with pytest.raises(ToolFailed, match="compare_to said"):
        peer_tools.read_pyperf("ERROR: Benchmark suites have no benchmark in common")


@pytest.mark.real
@pytest.mark.parametrize("option", [(), ("-G",), ("--table",), ("--min-speed", "2")])
def test_pyperf_itself_is_understood(tmp_path, option):
    for name, base in ((FIRST, 1.0), (SECOND, 1.05)):
        run = pyperf.Run([base, base + 0.001, base - 0.001], metadata={"name": "arm"}, collect_metadata=False)
        pyperf.BenchmarkSuite([pyperf.Benchmark([run])]).dump(str(tmp_path / f"{name}.json"))
    words = [sys.executable, "-m", "pyperf", "compare_to", "first.json", "second.json", *option]
    text = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert peer_tools.read_pyperf(text) == FIRST


@given(times_s, times_s, st.floats(0.1, 50))
def test_the_gate_is_pytest_benchmarks_own_and_reads_the_same_from_either_side(first_s, second_s, percent):
    found = peer_tools.gated(first_s, second_s, percent)
    check = PercentageRegressionCheck("mean", percent)
    assert (found == FIRST) == bool(check.fails({"mean": second_s}, {"mean": first_s}))
    assert peer_tools.gated(second_s, first_s, percent) == {FIRST: SECOND, SECOND: FIRST, None: None}[found]


def test_torchs_colours_count_only_where_one_arm_alone_is_best():
    assert peer_tools.painted(COMPARE.format(GREEN, OFF, BLUE, OFF)) == FIRST
    assert peer_tools.painted(COMPARE.format("", "", GREEN, OFF)) == SECOND
    assert peer_tools.painted(COMPARE.format(GREEN, OFF, GREEN, OFF)) is None
    with pytest.raises(ToolFailed, match="Compare said"):
        peer_tools.painted("no table")


@pytest.mark.parametrize("second_s, faster", [(10.0, None), (10.0000001, None), (11.0, FIRST), (9.0, SECOND)])
def test_torchs_medians_are_compared_after_trimming(second_s, faster):
    assert peer_tools.trimmed({FIRST: {"trimmed_s": 10.0}, SECOND: {"trimmed_s": second_s}}) == faster


@pytest.mark.parametrize("said, faster", [(True, SECOND), (False, FIRST), (None, None)])
def test_our_own_answer_is_read_from_its_json(said, faster):
    pair = {"candidate_faster": said, "ratio": 1.0, "low": None, "high": None, "replicates": 6, "detectable": None}
    text = {"pairs": [pair], "floor": 0.03, "void_share": 0.0, "steady_load": False, "state": "complete"}
    assert peer_tools.read_versus(json.dumps(text))[0] == faster
    with pytest.raises(ToolFailed, match="Nothing"):
        peer_tools.read_versus(json.dumps({**text, "pairs": [], "sentence": "Nothing to compare"}))
    assert peer_tools.read_versus(json.dumps({**text, "pairs": [], "state": "out of time"}))[0] is None


@given(st.floats(1, 60), st.floats(0.05, 2), st.floats(1e-6, 0.5))
def test_what_pyperf_is_asked_for_fits_its_half_unless_nothing_can(half_s, startup_s, call_s):
    plan = peer_tools.plan_pyperf(half_s, startup_s, call_s)
    assert plan.processes >= 1 and plan.values >= 2 and plan.loops * call_s >= peer_tools.PYPERF_VALUE_S * 0.999
    takes_s = plan.timed_s(call_s) + (1 + plan.processes) * startup_s
    smallest = peer_tools.PyperfPlan(1, 2, plan.loops)
    assert takes_s <= half_s + 1e-9 or plan == smallest


def test_programs_do_the_units_they_are_told(tmp_path):
    for kind in peer_programs.ARMS:
        peer_programs.write_programs(tmp_path, kind, (100, 103), threads=1, cache_bytes=2**16)
        text = (tmp_path / "arms.py").read_text()
        compile(text, "arms.py", "exec")
        assert "return work(100)" in text and "return work(103)" in text
    names = {"__name__": "arms"}
    exec((tmp_path / "arms.py").read_text(), names)  # the memory-bound one
    assert names["second"]() / names["first"]() == pytest.approx(1.03)
    assert names["first"]() * 8 >= 3 * 2**16


def test_the_last_level_cache_is_the_largest_that_the_kernel_names(tmp_path):
    for index, size in enumerate(("32K", "2048K", "48M")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    assert peer_programs.last_level_cache_bytes(tmp_path) == 48 * 2**20
    assert peer_programs.last_level_cache_bytes(tmp_path / "nowhere") == 32 * 2**20


def test_a_call_is_graded_by_what_is_true():
    grades = {(slower, said): peers.grade(slower, said) for slower in (None, FIRST) for said in (None, FIRST, SECOND)}
    assert grades == {
        (None, None): "silent", (None, FIRST): "alarm", (None, SECOND): "alarm",
        (FIRST, None): "undecided", (FIRST, FIRST): "wrong", (FIRST, SECOND): "found",
    }  # fmt: skip


def outcomes():
    """Two A/A comparisons with one alarm, one effect found and one missed, and one without an answer."""
    said = [(0, None, FIRST), (0, None, None), (10, FIRST, SECOND), (10, FIRST, None)]
    made = [peers.Outcome("torch", "cpu", effect, slower, 0, 5.0, {"rule": faster}) for effect, slower, faster in said]
    return [*made, peers.Outcome("pyperf", "cpu", 0, None, 0, problem="it broke")]


def test_tables_count_and_leave_out_what_gave_no_answer(tmp_path, capsys):
    titles, row = peers.rows(outcomes(), "cpu")
    assert dict(zip(titles, row, strict=True)) == {
        "tool": "torch", "rule": "rule", "false alarms": "1 of 2", "10%: found / wrong / undecided": "1 / 0 / 1",
        "seconds": "5.0",
    }  # fmt: skip
    setting = {"machine": "M", "versions": {}, "seconds": 5.0, "comparisons": 2, "seed": 1, "load": True}
    peers.save(tmp_path / "peers.json", setting, outcomes())
    assert peers.load(tmp_path / "peers.json") == (setting, outcomes())
    assert peers.main(["--from-json", str(tmp_path / "peers.json"), "--markdown"]) == 0
    text = capsys.readouterr().out
    assert "| torch | rule | 1 of 2 (1% to 99%) |" in text and "1 times: pyperf, cpu: it broke" in text


def test_an_effect_that_was_never_measured_is_no_zero():
    assert peers.cell(Counter(), bounds=True) == "-"


def test_repeats_fit_the_minutes():
    assert peers.parse(["--minutes", "24", "--seconds", "10"]).comparisons == 4
    assert peers.comparisons_for(0.1, 9, 4, 10.0) == 1
    assert peers.gates([0, 3, 10]) == (1.5, 5.0) and peers.gates([0]) == (1.5,)


def test_overhead_is_set_against_the_best_peer():
    costs = {
        overhead.OUR_LOOP: [overhead.Cost(20e-9, 1e-6), overhead.Cost(24e-9, 1e-6)],
        "timeit, callable": [overhead.Cost(20e-9, 2e-6), overhead.Cost(20e-9, 2e-6)],
        "pyperf bench_func": [overhead.Cost(40e-9, 3e-6)],
    }
    found = {row[0]: row[2] for row in overhead.rows(costs)[1:]}
    assert found == {overhead.OUR_LOOP: "1.10", "timeit, callable": "1.00", "pyperf bench_func": "2.00"}
    assert "over timeit, callable, round by round: 1.1 (1.05 to 1.15)" in overhead.target(costs)
    assert overhead.target({}) == ""
    assert [overhead.shown(value) for value in (0.1234, 21.46, 132_456.7)] == ["0.123", "21.5", "132,457"]
