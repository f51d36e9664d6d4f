"""Void shares, flags and causes, from synthetic records; and that a loaded machine still finds an effect."""

import math

import msgspec
import numpy as np
import pytest

from factory import make_record, make_samples
from frugalbench.analysis.noise import case_flags, cause, clock_drift, noise, noise_text, share_void, unsteady_warmups
from frugalbench.analysis.statistics import interval, pair_logs, void_rounds
from frugalbench.run.schedule import is_steady_load
from frugalbench.schema import Warmup

RESTLESS = Warmup(calls=3, time_s=1.0, steady=False)


def arms(replicate: int, void=(), **fields):
    """One replicate of two arms; the environment spoilt rounds of the second."""
    return [make_record("a", replicate=replicate, **fields), make_record("b", replicate=replicate, void=void, **fields)]


def altered(record, **changes):
    """The record with every sample's environment changed; a callable is given the sample's number."""
    samples = []
    for number, sample in enumerate(record.samples):
        values = {name: value(number) if callable(value) else value for name, value in changes.items()}
        samples.append(
            msgspec.structs.replace(sample, environment=msgspec.structs.replace(sample.environment, **values))
        )
    return msgspec.structs.replace(record, samples=tuple(samples))


def test_a_round_is_void_once_and_the_pilot_does_not_count():
    records = [
        *arms(0, void=(0, 1, 2)),
        *arms(1, void=(1, 3)),
        *arms(2),
        make_record("a", replicate=3, interrupted=True, void=(0,)),
    ]
    (part,) = noise(records)
    assert (part.replicates, part.rounds, part.void, part.kept) == (2, 10, 2, 0)
    assert part.void_share == pytest.approx(0.2)
    assert part.causes == {"foreign CPU time": 2}
    assert noise_text(part) == "20% of 10 rounds void, repeated (foreign CPU time 2)"


def test_regimes_have_rounds_of_their_own():
    records = [make_record("a", regime, comparison="x", void=(0,)) for regime in ("decode", "batch")]
    (part,) = noise(records)
    assert (part.rounds, part.void) == (10, 2)


def test_under_a_steady_load_void_rounds_are_kept_and_the_report_says_so():
    (part,) = noise([*arms(1, void=(0, 1, 2, 3), steady_load=True), *arms(2)])
    assert (part.void, part.kept, part.steady_load) == (4, 4, 1)
    assert "nothing was set aside" in noise_text(part)
    assert part.flags[0] == "steady load in 1 of 2 replicates: nothing set aside there"


def test_a_run_is_the_sum_of_its_comparisons():
    records = [*arms(1, void=(0,), comparison="x"), *arms(1, void=(0, 1, 2), steady_load=True, comparison="y")]
    parts = noise(records)
    whole = share_void(parts)
    assert [part.comparison for part in parts] == ["x", "y"]
    assert (whole.rounds, whole.void, whole.kept, whole.void_share) == (10, 4, 3, 0.4)
    assert "3 kept under a steady load, the others repeated" in noise_text(whole)
    assert share_void(()).void_share is None and noise_text(share_void(())) == "no rounds"
    assert noise_text(share_void(noise(arms(1)))) == "none of 5 rounds void"


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("run delay 3.1 ms above 2.0 ms", "run delay"),
        ("foreign CPU 51.0 ms above 40.0 ms", "foreign CPU"),
        ("swapping 5.1 MB above 1.0 MB", "swapping"),
        ("GPU throttled: hw slowdown", "GPU throttled"),
        ("CPU throttled", "CPU throttled"),
    ],
)
def test_a_cause_is_the_reason_without_its_numbers(reason, expected):
    assert cause(reason) == expected


def test_a_clock_that_falls_is_flagged_and_one_that_wanders_is_not():
    falls = altered(make_record(rounds=40), clock_hz=lambda i: 3e9 * (1 - 0.16 * i / 39))
    assert clock_drift(falls.samples) == pytest.approx(-0.12, abs=0.02)
    assert noise([falls])[0].flags == ("clock fell 13%",)
    wanders = altered(make_record(rounds=40), clock_hz=lambda i: 3e9 * (1 + 0.02 * (i % 2)))
    assert noise([wanders])[0].flags == ()
    assert clock_drift(make_samples(0.01, 40)) is None


def test_heat_throttling_and_reads_from_disk_are_flagged():
    warm = altered(make_record(rounds=40), temperature_c=lambda i: 50.0 + i, throttled=lambda i: i >= 36)
    assert noise([warm])[0].flags == ("processor warmed from 54 to 84 °C", "CPU throttled in 10% of samples")
    capped = altered(make_record(rounds=20), gpu_throttle=("sw power cap",), major_faults=lambda i: i == 0)
    assert noise([capped])[0].flags == (
        "GPU held back (sw power cap) in 100% of samples",
        "reads from disk in 5% of samples",
    )
    rare = altered(make_record(rounds=40), throttled=lambda i: i == 7)
    assert noise([rare])[0].flags == ()


def test_no_steady_state_is_counted_not_dropped():
    records = [make_record(replicate=number, warmup=RESTLESS) for number in range(3)]
    records.append(make_record(replicate=3))
    assert unsteady_warmups(records) == 2  # not the pilot
    assert noise(records)[0].flags == ("no steady state in 2 of 3 warm-ups",)
    assert case_flags(records) == ""


def mixture(rng, rounds, share=0.4):
    return [float(t) for t in 0.01 * np.exp(0.01 * rng.standard_normal(rounds) + 0.19 * (rng.random(rounds) < share))]


def test_two_modes_are_flagged_within_processes():
    rng = np.random.default_rng(1)
    records = [make_record(time_s=mixture(rng, 12), replicate=number) for number in range(1, 6)]
    flags = case_flags(records)
    assert flags.startswith("two modes, 1.21x apart, ") and flags.endswith("% slow")


def test_two_kinds_of_process_are_flagged_as_such():
    records = [make_record(time_s=0.012 if n % 3 == 0 else 0.01, replicate=n) for n in range(1, 13)]
    assert case_flags(records) == "two kinds of process, 1.20x apart, 4 of 12 slow"


def test_values_that_were_set_aside_make_no_modes():
    times = [0.01, 0.0101, 0.0099] * 4 + [0.02] * 4
    spoilt = range(12, 16)
    records = [make_record(time_s=times, void=spoilt, replicate=n) for n in (1, 2, 3)]
    assert case_flags(records) == ""
    assert "two modes" in case_flags([msgspec.structs.replace(r, steady_load=True) for r in records])


def test_trends_are_flagged_over_rounds_and_over_replicates():
    warming = [0.01 * (1 + 0.02 * i) for i in range(10)]
    records = [make_record(time_s=warming, replicate=n) for n in (1, 2, 3)]
    assert case_flags(records) == "14% slower from the first rounds of a replicate to its last"
    ageing = [make_record(time_s=[0.01 * 0.97**n] * 5, replicate=n) for n in range(1, 13)]
    assert case_flags(ageing) == "22% faster from the first replicates to the last"


def test_plain_noise_has_no_flags():
    records = [make_record(noise=0.03, rounds=12, replicate=n, seed=5) for n in range(1, 9)]
    assert case_flags(records) == "" and noise(records)[0].flags == ()
    assert case_flags([]) == ""


# A loaded machine must still find a 20% effect.


def loaded_pair(seed: int, effect: float, replicates: int = 6, rounds: int = 9):
    """Two arms under a load that slows both by a random factor each round, half as much again: every round is void."""
    rng = np.random.default_rng(seed)
    baseline, candidate = [], []
    steady = is_steady_load(rounds, rounds)
    for replicate in range(1, replicates + 1):
        load = 1 + 0.5 * rng.random(rounds)
        luck = 0.01 * rng.standard_normal(2)
        for name, factor, out in (("a", effect * math.exp(luck[0]), baseline), ("b", math.exp(luck[1]), candidate)):
            times = [float(t) for t in 0.01 * factor * load * np.exp(0.08 * rng.standard_t(3, rounds))]
            out.append(make_record(name, time_s=times, replicate=replicate, void=range(rounds), steady_load=steady))
    return baseline, candidate


def ratio_of(pair):
    logs = pair_logs(*pair, "time", void_rounds([*pair[0], *pair[1]]))
    return interval(logs, 1.0, 0.05, 0.0) if logs else None


def test_under_a_steady_load_a_20_percent_effect_is_found_and_none_is_invented():
    found = [ratio_of(loaded_pair(seed, 1.2)) for seed in range(200)]
    assert sum(item.low > 1 for item in found) >= 0.95 * len(found)
    assert np.median([item.ratio for item in found]) == pytest.approx(1.2, rel=0.02)
    same = [ratio_of(loaded_pair(seed, 1.0)) for seed in range(400)]
    assert sum(not item.low <= 1 <= item.high for item in same) <= 0.08 * len(same)


def test_without_the_steady_rule_nothing_would_be_left_of_a_loaded_machine():
    pair = [[msgspec.structs.replace(r, steady_load=False) for r in side] for side in loaded_pair(1, 1.2)]
    assert ratio_of(pair) is None
