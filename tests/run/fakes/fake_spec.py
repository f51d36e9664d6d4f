"""The fake workload for configs: ``comparisons`` times two arms, every other option passed to the cases."""

from frugalbench.schema import Arm, Case, Comparison
from frugalbench.specs.base import Expansion


def make_case(name, comparison="fake", regime="decode", device="cpu", **params):
    return Case(
        id=f"{comparison}/{name}/{regime}",
        workload="fake",
        variant=name,
        shape="tiny",
        regime=regime,
        backend="python",
        device=device,
        dtype="float64",
        params={"threads": 1, **params},
        tolerance=1e-9,
    )


def make_arm(name, comparison="fake", regimes=("decode",), imports=("fake_workload",), **params):
    cases = tuple(make_case(name, comparison, regime, **params) for regime in regimes)
    return Arm(id=name, cases=cases, imports=imports)


def make_comparison(*arms, name="fake"):
    return Comparison(id=name, workload="fake", arms=arms, estimate_s=1.0)


def expand(settings, machine):  # noqa: ARG001
    options = dict(settings.options)
    names = [f"fake-{number}" for number in range(options.pop("comparisons", 1))]
    return Expansion(
        comparisons=tuple(
            make_comparison(*(make_arm(arm, name, **options) for arm in ("left", "right")), name=name) for name in names
        )
    )
