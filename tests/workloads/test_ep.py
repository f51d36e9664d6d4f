"""The same step under a real torchrun: one line of JSON, and one line for what cannot be."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from frugalbench.schema import Case
from frugalbench.specs import expert_parallel as spec
from frugalbench.specs.base import Settings
from frugalbench.workloads.base import Context
from workloads.torchrun_ranks import torchrun

pytest.importorskip("torch")

from frugalbench.workloads import ep
from frugalbench.workloads import expert_parallel as builder

SMALL = (
    "--shape own --d-model 32 --d-expert 16 --experts 8 --top-k 2 --stream-bytes 100000 --decode-tokens 4 "
    "--batch-tokens 8 --prefill-tokens 32 --sizes-kib 1 64 --rounds 3 --window-s 0.01"
)


@pytest.mark.real
def test_two_ranks_print_one_line() -> None:
    done = torchrun(ep.WHERE, *SMALL.split(), "--routing", "zipf-1")
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert (found["ranks"], found["transport"], found["shape"]) == (2, "gloo", "32x16-e8-k2-zipf-1-r2")
    assert [(item["regime"], item["tokens"]) for item in found["regimes"]] == [
        ("decode", 4), ("batch", 8), ("prefill", 32)
    ]  # fmt: skip
    for item in found["regimes"]:
        assert item["error"] < 1e-5
        assert min(item[name] for name in ("step_s", "exchange_s", "compute_s", "predicted_exchange_s")) > 0
        assert item["miss"] == pytest.approx(item["predicted_exchange_s"] / item["exchange_s"] - 1)
        model_s = 3 * found["alpha_s"] + item["exchange_bytes"] * found["beta_s_per_byte"]
        assert item["predicted_exchange_s"] == pytest.approx(model_s)
        assert item["rank_imbalance"] >= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shape", "own", "--experts", "7"], "7 experts do not divide over 2 ranks"),
        (["--decode-tokens", "5"], "'decode_tokens' 5 does not divide over 2 ranks"),
        (["--shape", "qwen3"], "unknown shape 'qwen3'; did you mean 'qwen3-"),
        (["--rankss", "3"], "unrecognized arguments: --rankss 3"),
        (["--rounds", "0"], "--rounds and --window-s must be positive"),
        (["--device", "tpu"], "no device 'tpu' here"),
        (["--sizes-kib", "4"], "two or more distinct"),
    ],
)
def test_what_cannot_be_is_one_line_of_rank_0_before_the_ranks_meet(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", rank)
        assert ep.main(words) == 2
        said = capsys.readouterr()
        assert len(said.err.splitlines()) == lines and said.out == ""
        assert message in said.err or not lines


def test_more_ranks_than_cores_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4096")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4096")
    assert ep.main(["--device", "cpu"]) == 2
    assert "4096 ranks on a machine need a core each" in capsys.readouterr().err


def test_without_torchrun_it_says_how(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert ep.main([]) == 2
    assert "try: torchrun --nproc-per-node 2" in capsys.readouterr().err


def test_a_wrong_answer_is_no_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    (case,) = [case for case in _cases() if case.variant == spec.STEP]
    folder = Path()
    right = {name: array[0] for name, array in builder.reference(case, Context(1, 1, "cpu", folder, folder)).items()}
    monkeypatch.setattr(ep, "dist", SimpleNamespace(get_rank=lambda: 0, broadcast=lambda *_: None))
    assert ep._check(case, right, "cpu") == 0
    for wrong in (right["y"] * (1 + 1e-3), right["y"] * np.nan):
        with pytest.raises(ep.WrongAnswer, match="wrong answer: error"):
            ep._check(case, {"y": wrong}, "cpu")


def _cases() -> tuple[Case, ...]:
    own = {"shape": "own", "d_model": 16, "d_expert": 8, "experts": 4, "stream_bytes": 1, "regimes": ["decode"]}
    view: Any = SimpleNamespace(logical_cores=2, last_level_cache_bytes=1, installed=lambda _: "1")
    settings = Settings(spec.WORKLOAD, "cpu", 2, 1, own)
    return spec.split_cases(spec.split_layer(settings, view, {**spec.DEFAULTS, **own}), "own", "cpu")


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(ep.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(ep.torch.cuda, "device_count", lambda: 1)
    assert ep.main([]) == 2
    assert "2 ranks on a machine need a GPU each; this one has 1; or --device cpu" in capsys.readouterr().err
