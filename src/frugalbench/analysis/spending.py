"""How looks at growing data pay for themselves: alpha is spent along a convex function of the share of data seen.

After ``n`` of at most ``N`` replicates ``alpha * (n / N) ** 1.5`` may have been spent (the power family of Kim and
DeMets, Biometrika 1987). A look gets what was not spent before it, and looks add up by the union bound, which holds
for any dependence between them. Early looks therefore need clear cases and most of alpha is left for the last one.
"""

from collections.abc import Sequence

POWER = 1.5
"""Above 1: convex. 1 is an even split per replicate; 2 and more leave the first look too little to stop on."""


def spent(alpha: float, looks: Sequence[int], replicates: int) -> float:
    """Alpha spent once the look at ``replicates`` is taken; ``looks`` are the planned ones, increasing."""
    return float(alpha * min(1.0, replicates / looks[-1]) ** POWER)


def level(alpha: float, looks: Sequence[int], replicates: int) -> float:
    """What the planned look at ``replicates`` may spend: what was not spent before it, of what may be spent by then."""
    return spent(alpha, looks, replicates) - _spent_before(alpha, looks, replicates)


def last_level(alpha: float, looks: Sequence[int], replicates: int) -> float:
    """What the last look of all may spend: everything that earlier planned looks left.

    For a comparison that ends at ``replicates`` for a reason that its data did not give, such as the time budget.
    """
    return alpha - _spent_before(alpha, looks, replicates)


def _spent_before(alpha: float, looks: Sequence[int], replicates: int) -> float:
    earlier = [number for number in looks if number < replicates]
    return spent(alpha, looks, earlier[-1]) if earlier else 0.0
