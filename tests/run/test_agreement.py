"""Error distribution and top-1 of one answer against another."""

import numpy as np
import pytest

from frugalbench.run.agreement import Agreement


def facts(*pairs):
    found = Agreement()
    for got, want in pairs:
        found.add({"y": np.array(got)}, {"y": np.array(want)})
    return {name: fact.value for name, fact in found.facts().items()}


def test_the_worst_position_counts():
    exact = [[3.0, 4.0], [4.0, 3.0]]
    found = facts((exact, exact), ([[3.0, 4.0], [4.0, 4.5]], exact))
    rms = np.sqrt(12.5)
    assert found["error_max"] == pytest.approx(1.5 / rms)
    assert found["error_p50"] == 0.0
    assert found["error_p99"] == pytest.approx(np.quantile([0, 0, 0, 1.5], 0.99) / rms)
    assert found["top1_agreement"] == 0.75


def test_single_values_have_no_top():
    assert "top1_agreement" not in facts(([[1.0], [2.0]], [[1.0], [2.0]]))


def test_other_shapes_and_infinities_are_left_to_the_check():
    assert facts(([1.0], [1.0, 2.0])) == {}
    assert "error_max" not in facts(([np.inf, 1.0], [1.0, 2.0]))
