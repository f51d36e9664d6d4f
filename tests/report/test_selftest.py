"""The self-test's page: every figure it has, a dash for each it has not, and what it may conclude from."""

from dataclasses import replace

import pytest

from frugalbench.analysis.selftest import Effect, Kind, Live, Rate, SelfTest, rate
from frugalbench.analysis.variance import Components
from frugalbench.report.selftest import selftest_terminal

EMPTY = Rate(0, 0, None, None, None)


def share(count: int, of: int) -> Rate:
    return rate([True] * count + [False] * (of - count))


FULL = Kind(
    kind="compute-bound", looks=(6,), comparisons=40, unusable=0, replicates=123, false_verdict_rate=share(1, 40),
    unwidened_false_verdict_rate=share(3, 40), undecided_rate=share(39, 40), champion_false_verdict_rate=share(2, 17),
    champion_reused_rate=share(7, 20), coverage=share(95, 100), spread=0.01, smallest_detectable_effect=0.0234,
    smallest_detectable_effect_at_most=0.0112, median_time_to_verdict_s=8.25, pair_replicate_s=1.25,
    components=Components(0.02, 0.011, 0.004, 0.033, 123, 5.0), void_share=0.07,
    detection=(
        Effect(2.0, share(11, 20), share(9, 20), share(0, 20)), Effect(10.0, share(20, 20), share(0, 20), share(0, 20)),
    ),
)  # fmt: skip
NOTHING = Kind(
    kind="memory-bound", looks=(6,), comparisons=0, unusable=0, replicates=1, false_verdict_rate=EMPTY,
    unwidened_false_verdict_rate=EMPTY, undecided_rate=EMPTY, champion_false_verdict_rate=EMPTY,
    champion_reused_rate=EMPTY, coverage=EMPTY, spread=None, smallest_detectable_effect=None,
    smallest_detectable_effect_at_most=None, median_time_to_verdict_s=None, pair_replicate_s=None, components=None,
    void_share=0.0, detection=(),
)  # fmt: skip
FOUND = SelfTest(
    machine="Test CPU", fingerprint="0" * 16, device="cpu", quick=False, ended="2026-01-01T00:00:00Z", wall_s=900.0,
    alpha=0.05, aa_floor=0.0123, sentence="Your machine tells 1.2% of compute-bound work from nothing in 20 s.",
    idle=(FULL,), loaded=(), live=(), runs="/somewhere",
)  # fmt: skip


def row(text: str, label: str) -> str:
    (found,) = [line for line in text.splitlines() if line.strip().startswith(label)]
    return found.removeprefix(line_label(found, label)).strip()


def line_label(line: str, label: str) -> str:
    return line[: line.index(label) + len(label)]


def test_machine_and_sentence_come_first_and_the_floor_with_its_reason() -> None:
    head = selftest_terminal(FOUND).split("\n\n")[0]
    assert max(map(len, head.splitlines())) <= 80
    first, rest = head.split("\n", 1)
    assert first == FOUND.machine and " ".join(rest.split()).startswith(FOUND.sentence)
    assert "1.23%" in rest and "at most 5% of identical arms" in " ".join(rest.split())


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("fresh starts of all arms", "123"),
        ("comparisons of identical arms", "40"),
        ("called different", "1 of 40"),
        ("… without the widening", "3 of 40"),
        ("left undecided", "39 of 40"),
        ("champion called different", "2 of 17"),
        ("… if chosen on the same data", "7 of 20"),
        ("intervals that hold the truth", "95 of 100"),
        ("2% more work found", "11 of 20"),
        ("10% more work found", "20 of 20"),
        ("found in 4 of 5, 4 fresh starts", "2.3%"),
        ("… up to 24 fresh starts", "1.1%"),
        ("median time to a verdict", "8.2 s"),
        ("one fresh start of two arms", "1.2 s"),
        ("noise: between fresh starts", "1.1%"),
        ("between rounds, shared", "0.4%"),
        ("between turns", "3.3%"),
        ("samples spoilt by surroundings", "7%"),
    ],
)
def test_each_figure_stands_in_its_row(label: str, shown: str) -> None:
    assert row(selftest_terminal(FOUND), label) == shown


def test_what_is_not_known_is_a_dash_never_a_zero() -> None:
    text = selftest_terminal(replace(FOUND, idle=(NOTHING,)))
    for label in ("called different", "intervals that hold the truth", "found in 4 of 5, 4 fresh starts",
                  "… up to 24 fresh starts", "median time to a verdict", "one fresh start of two arms",
                  "between turns"):  # fmt: skip
        assert row(text, label) == "-", label


def test_kinds_stand_side_by_side_also_when_one_found_nothing() -> None:
    text = selftest_terminal(replace(FOUND, idle=(FULL, NOTHING)))
    assert row(text, "10% more work found").split("  ")[0] == "20 of 20"
    assert row(text, "10% more work found").endswith("-")
    assert "compute-bound   memory-bound" in text


def test_too_few_comparisons_claim_no_rate() -> None:
    few = replace(FULL, comparisons=19)
    text = selftest_terminal(replace(FOUND, idle=(few,), aa_floor=0.03))
    assert "19 comparisons of identical arms are too few" in text and "at most 5%" not in text
    assert "at most 5%" in selftest_terminal(replace(FOUND, idle=(few,), loaded=(few,)))


def test_conditions_and_quickness_are_said() -> None:
    whole = selftest_terminal(replace(FOUND, loaded=(FULL,)))
    assert whole.index("idle") < whole.index("beside a busy core") and "Quick" not in whole
    quick = selftest_terminal(replace(FOUND, quick=True))
    assert "Quick: idle only" in quick and "beside a busy core" not in quick


def make_live(**fields: object) -> Live:
    usual: dict[str, object] = {
        "condition": "idle", "kind": "compute-bound", "percent": 5.0, "faster": False, "ratio": 0.951, "low": 0.93,
        "high": 0.97, "truth": 100 / 105, "replicates": 6, "time_s": 9.4,
    }  # fmt: skip
    return Live(**{**usual, **fields})  # type: ignore[arg-type]


def test_live_comparisons_are_counted_and_the_wrong_ones_marked() -> None:
    live = (
        make_live(), make_live(percent=0.0, faster=True, truth=1.0), make_live(faster=None, low=None, high=None),
        make_live(percent=0.0, faster=None, truth=1.0, condition="loaded"),
    )  # fmt: skip
    text = selftest_terminal(replace(FOUND, live=live))
    lines = [line for line in text.splitlines() if line.startswith(("idle c", "loaded c"))]
    assert [line.endswith("!") for line in lines] == [False, True, True, False]
    assert [word for line in lines for word in line.split() if word in ("slower", "faster", "undecided")] == [
        "slower", "faster", "undecided", "undecided",
    ]  # fmt: skip
    assert "0.951 [0.930, 0.970]" in lines[0] and "[" not in lines[2] and "0.952" in lines[0]
    assert "2 of 4 ended as they should" in text


def test_it_fits_a_terminal() -> None:
    kinds = tuple(replace(FULL, kind=name) for name in ("compute-bound", "memory-bound", "dispatch-bound"))
    text = selftest_terminal(replace(FOUND, idle=kinds, loaded=kinds, live=(make_live(kind="dispatch-bound"),)))
    tables = [line for line in text.splitlines() if not line.startswith(("Your", "Intervals", "Quick"))]
    assert max(map(len, tables)) <= 80 and text.endswith("\n") and not text.endswith("\n\n")


def test_why_a_kind_gave_nothing_is_said() -> None:
    text = selftest_terminal(replace(FOUND, idle=(FULL, replace(NOTHING, problem="no C++ compiler"))))
    assert text.splitlines()[-1] == "memory-bound: no C++ compiler" and "compute-bound: " not in text
