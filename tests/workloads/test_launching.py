"""How calls reach a device: one by one or recorded, and the record says which."""

from types import SimpleNamespace

import numpy as np
import pytest

from frugalbench.backends import torch_eager
from frugalbench.backends.base import Options
from frugalbench.workloads import device
from frugalbench.workloads.layers import launching


class FakeDevice:
    def captured(self, call, rotation):
        made = [call(index) for index in range(rotation)]
        return (lambda index: made[index % rotation]), "recorded"


def case(launch, place="cuda"):
    return SimpleNamespace(device=place, params={"launch": launch} if launch else {})


def runnable(**details):
    return SimpleNamespace(run=lambda _prepared: object(), details=details)


@pytest.fixture(autouse=True)
def fake_device(monkeypatch):
    monkeypatch.setattr(device, "of", lambda name: None if name == "cpu" else FakeDevice())


@pytest.mark.parametrize(
    ("asked", "details", "how", "replays"),
    [
        (case("graph"), {}, {"launch": "recorded"}, True),
        (case("eager"), {}, {"launch": "eager"}, False),
        (case("graph"), {"launch": "by the provider"}, {}, False),
        (case("graph", "cpu"), {}, {}, False),
        (case("graph", "webgpu"), {}, {}, False),
        (case(None, "cpu"), {}, {}, False),
    ],
)
def test_what_is_recorded(asked, details, how, replays):
    call, said = launching.launched(runnable(**details), ["first", "second"], asked)
    assert said == how
    assert (call(0) is call(2)) is replays


def test_torch_computes_float32_without_tf32(tmp_path):
    import torch

    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    options = Options(1, "cpu", tmp_path, "k", ("x",), ("y",))
    torch_eager.load(torch.nn.Identity(), options, [{"x": np.ones(2, np.float32)}])
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.allow_tf32
