"""The [energy] table: which keys go together."""

import msgspec
import pytest

from frugalbench import config
from frugalbench.config import runs_code
from frugalbench.schema import FrugalbenchError


def parse(**energy):
    return config.parse({"energy": energy}, "x.toml")


@pytest.mark.parametrize(
    ("energy", "says"),
    [
        ({"meter": "csv"}, "needs 'csv'"),
        ({"meter": "command"}, "needs 'command'"),
        ({"meter": "prometheus", "prometheus_query": "w"}, "needs 'prometheus_url'"),
        ({"prometheus_url": "http://x:9090"}, "needs 'prometheus_query'"),
        ({"meter": "powercap", "csv": "log.csv"}, "'csv' is only read with"),
        ({"meter": "csv", "csv": "log.csv", "command": ["x"]}, "'command' is only read with"),
        ({"prometheus_url": "x:9090", "prometheus_query": "w"}, "http://"),
        ({"prometheus_url": "file:///etc/passwd", "prometheus_query": "w"}, "http://"),
        ({"unit": "kWh"}, "'unit' must be one of W, J"),
        ({"scope": "rack"}, "'scope' must be one of"),
        ({"update_period_s": 0.0}, "'update_period_s'"),
        ({"update_period_s": float("nan")}, ""),
        ({"command": "wattmeter --once"}, "'command'"),
        ({"meter": "declared", "source": "x"}, "needs 'idle_w_per_core'"),
        ({"tdp_w_per_core": 3.0}, "'source'"),
        ({"idle_w_per_core": 5.0, "tdp_w_per_core": 3.0, "source": "x"}, "above 'tdp_w_per_core'"),
        ({"idle_w_per_core": -1.0, "source": "x"}, "negative"),
        ({"meter": "rapl"}, "did you mean"),
    ],
)
def test_what_does_not_fit_names_file_and_key(energy, says):
    with pytest.raises(FrugalbenchError) as refused:
        parse(**energy)
    assert "x.toml" in str(refused.value) and says in str(refused.value)


@pytest.mark.parametrize(
    "energy",
    [
        {},
        {"meter": "none"},
        {"meter": "csv", "csv": "log.csv", "scope": "gpu-board"},
        {"csv": "log.csv"},
        {"meter": "command", "command": ["wattmeter", "--once"], "unit": "J", "update_period_s": 2.0},
        {"prometheus_url": "https://x/prom", "prometheus_query": "sum(w)"},
        {"meter": "declared", "tdp_w_per_core": 3.0, "source": "data sheet"},
        *({"meter": name} for name in ("auto", "powercap", "nvml", "amdsmi", "hwmon", "battery", "ipmi")),
    ],
)
def test_what_fits(energy):
    found = parse(**energy).energy
    assert {key: msgspec.json.decode(msgspec.json.encode(getattr(found, key))) for key in energy} == energy


def test_only_a_command_is_code():
    assert runs_code(parse(csv="log.csv", prometheus_url="http://x", prometheus_query="w")) == []
    (found,) = runs_code(parse(command=["wattmeter", "--once"]))
    assert "wattmeter" in found
