"""Growing and mixed ranks in the report: known laws give known ratios, and strange records are left out."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from factory import make_record, make_run
from frugalbench.analysis import grown as analysis
from frugalbench.analysis.grown import growth, mixes
from frugalbench.analysis.load import load_run
from frugalbench.gloo import Network, Port
from frugalbench.report.grown import grown_tables
from frugalbench.schema import Cost, Record, Tier
from frugalbench.specs import emulated_network as spec

RATE = 12.5e6


def record(variant: str, ranks: Any, unit_per_s: float, replicate: int = 1, scene: str = "growth") -> Record:
    """A call is one unit of work for each rank."""
    count = ranks if isinstance(ranks, int) else 2
    cost = Cost(token=float(count), flop=1.0, weight_bytes=0.0, traffic_bytes=1.0)
    network = msgspec.to_builtins(Network(ports=(Port(rate_bytes_per_s=RATE),) * count))
    fields = {"shape": f"{scene}-r{count}", "cost": cost, "peaks": (), "params": {"ranks": ranks, "network": network}}
    return make_record(
        variant, "step", "emulated_network", time_s=[count / unit_per_s] * 3, replicate=replicate, case_fields=fields,
        tier=Tier.EMULATED, comparison=f"emulated_network/{scene}-r{count}",
    )  # fmt: skip


def grown(**slow: float) -> list[Record]:
    """Fast links carry 10, 19 and 36 units a second, slow ones what is given, a little apart in each replicate."""
    fast = {2: 10.0, 4: 19.0, 8: 36.0}
    rates = {"fast-links": fast, "slow-links": {int(name[1:]): rate for name, rate in slow.items()}}
    return [
        record(variant, ranks, rate * (1 + 0.001 * number), number)
        for variant, found in rates.items()
        for ranks, rate in found.items()
        for number in (1, 2, 3)
    ]


def test_both_sides_of_the_records_use_the_same_names() -> None:
    assert (analysis.FAST_LINKS, analysis.SLOW_LINKS) == (spec.FAST_LINKS, spec.SLOW_LINKS)
    assert (analysis.FAST_PAIR, analysis.SLOW_PAIR, *analysis.MIXES) == (
        spec.FAST_PAIR, spec.SLOW_PAIR, spec.EQUAL, spec.BY_SPEED,
    )  # fmt: skip


def test_areas_and_what_a_rank_keeps(tmp_path: Path) -> None:
    found = growth(load_run(make_run(tmp_path / "run", grown(r2=8.0, r4=12.0, r8=16.0))))
    expected = [(variant, ranks) for variant in ("fast-links", "slow-links") for ranks in (2, 4, 8)]
    assert [(point.variant, point.ranks) for point in found.points] == expected
    assert found.area is not None and found.area.ratio == pytest.approx((16 - 8) / (36 - 10))
    assert found.points[0].kept is None and found.points[0].link_bytes_per_s == RATE
    kept = found.points[-1].kept
    assert kept is not None and kept.ratio == pytest.approx(16 / 8 / 4)
    assert kept.low is not None and kept.low < kept.ratio


def test_links_on_which_growing_gains_nothing_have_no_ratio_of_areas(tmp_path: Path) -> None:
    found = growth(load_run(make_run(tmp_path / "run", grown(r2=8.0, r4=8.0, r8=7.0))))
    assert found.area is None and len(found.points) == 6


def test_a_mix_over_the_sum_of_its_parts(tmp_path: Path) -> None:
    rates = {"fast-pair": (2, 10.0), "slow-pair": (2, 6.0), "equal-shares": (4, 11.0), "shares-by-speed": (4, 15.0)}
    made = [record(name, ranks, rate, n, "mix") for name, (ranks, rate) in rates.items() for n in (1, 2, 3)]
    run = load_run(make_run(tmp_path / "run", made))
    ratios = {item.variant: item.over_parts.ratio for item in mixes(run) if item.over_parts}
    assert ratios == pytest.approx({"equal-shares": 11 / 16, "shares-by-speed": 15 / 16})
    (table,) = grown_tables([run])
    assert [row[2].text.split(" ")[0] for row in table.rows] == ["0.688", "0.938"]


@pytest.mark.parametrize("ranks", [1, 1000, "many", None, 2.0, True])
def test_records_without_a_number_of_ranks_are_left_out(tmp_path: Path, ranks: Any) -> None:
    assert grown_tables([load_run(make_run(tmp_path / "run", [record("fast-links", ranks, 5.0)]))]) == []
