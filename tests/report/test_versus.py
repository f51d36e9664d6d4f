"""The answer of ``versus`` in text: the sentence, each arm, each pair, and what its trust rests on."""

from dataclasses import replace

import pytest

from frugalbench.analysis.versus import Pair, Result, Standing
from frugalbench.report.versus import versus_terminal


def standing(name: str, time_s: float | None = 0.0123, problem: str = "") -> Standing:
    return Standing(name, time_s, 8 if time_s else 0, 56 if time_s else 0, 12345 if time_s else 0, problem)


def pair(baseline: str, candidate: str, faster: bool | None = True, metric: str = "time") -> Pair:
    return Pair(baseline, candidate, metric, 1.05, 1.01, 1.09, 0.95, faster, 0.02, 8)


TWO = Result(
    sentence="b is fastest: 1.050 times as fast as a (1.010 to 1.090, 95.0% sure).",
    arms=(standing("a"), standing("b")), pairs=(pair("a", "b"),), energy=(), floor=0.0123, void_share=0.25,
    steady_load=False,
)  # fmt: skip


def test_the_sentence_comes_first_and_each_arm_has_a_row() -> None:
    lines = versus_terminal(TWO).splitlines()
    assert lines[0] == TWO.sentence and lines[1] == ""
    rows = [line.split() for line in lines[2:] if line.startswith(("a ", "b "))]
    assert rows == [["a", "12.3", "ms", "8", "56", "12345"], ["b", "12.3", "ms", "8", "56", "12345"]]


def test_two_arms_need_no_table_of_pairs_and_three_do() -> None:
    assert "ratio and interval" not in versus_terminal(TWO)
    pairs = (pair("a", "b"), pair("a", "c", False), pair("b", "c", None))
    text = versus_terminal(replace(TWO, arms=tuple(map(standing, "abc")), pairs=pairs))
    assert "speed, ratio and interval" in text
    assert [line.split()[-1] for line in text.splitlines() if " over " in line] == ["better", "worse", "tell"]
    assert "b over a: 1.050 [1.010, 1.090] better" in text


def test_energy_is_shown_where_it_was_measured() -> None:
    text = versus_terminal(replace(TWO, energy=(pair("a", "b", metric="energy"),)))
    assert "calls per joule, ratio and interval" in text and "joule" not in versus_terminal(TWO)


def test_a_pair_without_interval() -> None:
    lone = replace(pair("a", "b", None), low=None, high=None)
    text = versus_terminal(replace(TWO, arms=tuple(map(standing, "abc")), pairs=(lone,)))
    assert "b over a: 1.050 cannot tell" in text


def test_a_failed_arm_has_a_dash_and_its_reason() -> None:
    text = versus_terminal(replace(TWO, arms=(standing("a"), standing("b", None, "ValueError: no")), pairs=()))
    row, reason = text.splitlines()[5:7]
    assert row.split() == ["b", "–", "0", "0", "0"] and reason == "  ValueError: no"


@pytest.mark.parametrize(
    ("void", "steady", "says"),
    [
        (0.0, False, "0% of samples were spoilt by the machine's other work."),
        (0.25, False, "25% of samples were spoilt by the machine's other work and repeated."),
        (0.8, True, "that is steady, so none was set aside."),
    ],
)
def test_the_last_line_says_what_trust_rests_on(void: float, steady: bool, says: str) -> None:
    text = versus_terminal(replace(TWO, void_share=void, steady_load=steady))
    *_, last = text.split("\n\n")
    assert max(map(len, last.splitlines())) <= 80
    last = " ".join(last.split())
    assert "widened by 1.23% on each side" in last and last.endswith(says)


def test_long_names_are_cut_in_the_table_and_lines_stay_short() -> None:
    long = "python3 -c 'print(sum(range(1000000)))' --with --many --options"
    text = versus_terminal(replace(TWO, arms=(standing(long), standing("b"))))
    table = text.split("\n\n")[1].splitlines()
    assert "…" in text and max(map(len, table)) <= 80 and len(table) == 4
    assert len({len(line) for line in table}) == 1


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_arms(count: int) -> None:
    text = versus_terminal(replace(TWO, arms=tuple(standing(f"arm {i}") for i in range(count)), pairs=()))
    assert text.endswith(".\n") and text.count("12.3 ms") == count
