"""The constants in the package are what a fit without the test rows gives."""

import msgspec

from frugalbench.cluster.published.constants import shipped
from frugalbench.cluster.published.points import published
from frugalbench.cluster.published.refit import constants


def test_a_fit_without_the_test_rows_gives_the_same_constants() -> None:
    """Test rows keep their place in their table, which decides what is fitted on; their figures are made wrong."""
    known = shipped()
    used = known.fitted_on()
    blind = [p if p.id in used else msgspec.structs.replace(p, value=p.value * 1.1) for p in published()]
    again = constants(blind)
    assert again.rows == known.rows
    for key, factors in known.collective.factors.items():
        for name, value in factors.items():
            assert abs(again.collective.factors[key][name] - value) < 2e-3, (key, name)
    assert abs(again.collective.up_s / known.collective.up_s - 1) < 2e-3
    assert abs(again.training.product / known.training.product - 1) < 2e-3
    for name, factor in known.training.stack.items():
        assert abs(again.training.stack[name] / factor - 1) < 5e-3
    assert again.wan == known.wan and again.device == known.device and again.serving == known.serving
