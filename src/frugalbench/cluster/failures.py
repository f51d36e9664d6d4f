"""What is left of a job's time when devices drop out and it restarts from its last checkpoint."""

from random import Random

from frugalbench.schema import Frozen, FrugalbenchError

MOST_ROUNDS = 2_000_000
_HOUR_S, _DAY_S = 3600.0, 86400.0


class Survived(Frozen, frozen=True, kw_only=True):
    """A stretch of days with failures."""

    days: float
    failures: int
    useful_share: float
    """Of the time: what went into steps that were kept. Checkpoints, lost steps and restarts are the rest."""


def replay(
    step_s: float,
    devices: int,
    random: Random,
    *,
    device_hours: float,
    restart_s: float,
    checkpoint_steps: int,
    checkpoint_s: float,
    days: float,
) -> Survived:
    """Play ``days`` of steps of a mean duration; failures come at exponential times, none during a restart.

    Raises :class:`FrugalbenchError` where failures or checkpoints are too many to play.
    """
    per_s = devices / (device_hours * _HOUR_S)
    round_s = checkpoint_steps * step_s + checkpoint_s
    if days * _DAY_S * max(1 / round_s, per_s) > MOST_ROUNDS:
        raise FrugalbenchError(f"{days:g} days hold more than {MOST_ROUNDS:,} checkpoints or failures; ask for fewer")
    now_s, kept_s, failures = 0.0, 0.0, 0
    fails_s = random.expovariate(per_s)
    while now_s < days * _DAY_S:
        if now_s + round_s <= fails_s:
            now_s += round_s
            kept_s += checkpoint_steps * step_s
            continue
        failures += 1
        now_s = fails_s + restart_s
        fails_s = now_s + random.expovariate(per_s)
    return Survived(days=days, failures=failures, useful_share=kept_s / now_s)
