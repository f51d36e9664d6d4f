"""The replay of void rules, on runs whose truth is known."""

import msgspec
import numpy as np
import pytest

from benchmarks.void_rules import RULES, lines, main, settings
from factory import make_record, make_run
from frugalbench.analysis.load import load_run
from frugalbench.schema import Environment

QUIET = {"run_delay_s": 0.0, "steal_s": 0.0, "foreign_cpu_s": 0.0}


def bank(path, disturbed_share: float, seed: int = 1, replicates: int = 12, rounds: int = 12):
    """Two identical arms. Some replicates of the second are disturbed: a turn that is takes 1.5 times as long and shows
    run delay. Steal comes and goes and costs nothing.
    """
    rng = np.random.default_rng(seed)
    records = []
    for replicate in range(1, replicates + 1):
        for name in ("same", "same-2"):
            share = disturbed_share if name == "same-2" and replicate % 2 else 0.0
            hit = rng.random(rounds) < share
            times = 0.01 * np.exp(0.01 * rng.standard_normal(rounds) + np.log(1.5) * hit)
            record = make_record(name, time_s=[float(t) for t in times], replicate=replicate)
            samples = tuple(
                msgspec.structs.replace(
                    sample,
                    environment=Environment(
                        wall_s=0.1,
                        cpu_s=0.1,
                        **QUIET | {"run_delay_s": 0.05 * bool(struck), "steal_s": 0.1 * (rng.random() < 0.5)},
                    ),
                )
                for sample, struck in zip(record.samples, hit, strict=True)
            )
            records.append(msgspec.structs.replace(record, samples=samples))
    return make_run(path, records)


def by_rule(path):
    (setting,) = settings(load_run(path))
    return {x.rule: x for x in lines(setting, ["same", "same-2"], 6, 0.05, np.random.default_rng(1))}


def test_a_rule_that_sees_the_cause_helps_and_one_that_sees_chance_does_harm(tmp_path):
    found = by_rule(bank(tmp_path / "run", disturbed_share=0.6))
    assert set(found) == {rule.name for rule in RULES}
    assert found["keep all"].against == (1.0, 1.0, 1.0) and found["keep all"].void == 0
    assert found["run delay alone"].against[2] < 1
    assert found["steal alone"].void == pytest.approx(0.75, abs=0.1)
    assert found["steal alone"].against[0] > 1
    assert found["keep all"].verdicts == 2


def test_ours_keeps_everything_where_the_load_is_steady(tmp_path):
    found = by_rule(bank(tmp_path / "run", disturbed_share=1.0))
    assert (found["ours"].void, found["ours"].lost) == (0, 0)
    assert found["ours, but always drops"].void > 0.5 and found["ours, but always drops"].lost == 6


def test_the_script_prints_a_table_and_names_a_wrong_directory(tmp_path, capsys):
    run = bank(tmp_path / "run", 0.2, replicates=4)
    assert main([str(run), "--same", "same,same-2", "--replicates", "4"]) == 0
    text = capsys.readouterr().out
    assert "vs all" in text and "Over 1 settings" in text and "of 1" in text
    assert max(map(len, text.splitlines())) <= 100
    assert main([str(tmp_path)]) == 2
    assert "not a run directory" in capsys.readouterr().err
