"""Configs: what is read, what is refused, and that every refusal names the file, the key and what to write instead."""

import os
import tomllib
from pathlib import Path

import msgspec
import pytest

from frugalbench import config
from frugalbench.config import Config, load_config
from frugalbench.schema import FrugalbenchError

TEXT = """
seed = 7
[measure]
looks = [4, 8]
sample_s = 1
[energy]
meter = "none"
[[workload]]
name = "moe_ffn"
scale = 0.25
[[workload]]
name = "allreduce"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(TEXT)
    return path


def refused(file: Path, text: str | None = None, overrides: tuple[str, ...] = ()) -> str:
    """The message of the error, which must be short and name the file."""
    if text is not None:
        file.write_text(text)
    with pytest.raises(FrugalbenchError) as problem:
        load_config(str(file), overrides)
    message = str(problem.value)
    assert problem.value.exit_code == 2
    assert len(message.splitlines()) <= 2
    assert str(file) in message or "--set" in message
    return message


def test_reads_what_is_there_and_defaults_the_rest(file: Path) -> None:
    found = load_config(str(file))
    assert (found.name, found.seed, found.path) == ("mine", 7, str(file))
    assert found.measure.looks == (4, 8) and found.measure.sample_s == 1.0
    assert found.measure.alpha == config.Measure().alpha
    assert found.energy.meter == "none" and found.energy.tdp_w_per_core is None
    assert [item["name"] for item in found.workloads] == ["moe_ffn", "allreduce"]


@pytest.mark.parametrize("name", config.shipped_names())
def test_shipped_configs_load(name: str) -> None:
    found = load_config(name)
    assert isinstance(found, Config) and found.name == name
    assert found.description and found.workloads


def test_smoke_and_cpu_are_shipped() -> None:
    assert "smoke" in config.shipped_names()
    smoke = load_config("smoke")
    assert smoke.measure.looks == (4,) and smoke.measure.time_budget_s <= 180


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("sed = 1\n", "sed", "seed"),
        ("[measur]\nrounds = 3\n", "measur", "measure"),
        ("[measure]\nround = 3\n", "round", "rounds"),
        ("[energy]\ntdp_w = 3.0\n", "tdp_w", "tdp_w_per_core"),
    ],
)
def test_an_unknown_key_names_file_key_and_nearest(file: Path, text: str, key: str, nearest: str) -> None:
    message = refused(file, text)
    assert f"'{key}'" in message and f"'{nearest}'" in message


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('seed = "one"\n', "seed"),
        ("seed = true\n", "seed"),
        ("seed = 1.5\n", "seed"),
        ("name = 3\n", "name"),
        ('[measure]\nrounds = "many"\n', "rounds"),
        ('[measure]\nlooks = ["four"]\n', "looks"),
        ("[measure]\nlooks = 4\n", "looks"),
        ("[energy]\nmeter = 1\n", "meter"),
        ("measure = 3\n", "measure"),
        ("workload = 3\n", "workload"),
        ("[workload]\nname = 'moe_ffn'\n", "workload"),
        ("[[workload]]\nscale = 1.0\n", "name"),
        ("[[workload]]\nname = 3\n", "name"),
    ],
)
def test_a_wrong_type_names_file_and_key(file: Path, text: str, key: str) -> None:
    assert f"{key}" in refused(file, text).removeprefix(str(file))


@pytest.mark.parametrize("text", ["seed = \n", "[measure\n", "seed = 1\nseed = 2\n"])
def test_what_is_not_toml(file: Path, text: str) -> None:
    message = refused(file, text)
    assert "not valid TOML" in message and "line" in message


def test_what_is_not_text(file: Path) -> None:
    file.write_bytes(b"seed = 1 # \xff\xfe\n")
    assert "not valid TOML" in refused(file)


@pytest.mark.parametrize(
    "text",
    [
        "[measure]\nlooks = []\n",
        "[measure]\nlooks = [4, 2]\n",
        "[measure]\nlooks = [0]\n",
        "[measure]\nalpha = 7.0\n",
        "[measure]\nalpha = 0.0\n",
        "[measure]\nrounds = -1\n",
        "[measure]\nsample_s = -0.5\n",
        "[measure]\ntime_budget_s = -1.0\n",
        '[energy]\nmeter = "wattmeter"\n',
    ],
)
def test_a_value_out_of_range(file: Path, text: str) -> None:
    refused(file, text)


def test_a_config_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FrugalbenchError, match=r"no such config file; shipped configs: .*smoke"):
        load_config(str(tmp_path / "none.toml"))
    with pytest.raises(FrugalbenchError, match="did you mean 'smoke'"):
        load_config("smok")
    with pytest.raises(FrugalbenchError, match="no such config file"):
        load_config(str(tmp_path))


def test_a_folder_does_not_hide_a_shipped_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "smoke").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_config("smoke").name == "smoke"


# Overrides


def test_overrides_apply_with_their_toml_type(file: Path) -> None:
    found = load_config(
        str(file), ["seed=3", "measure.looks=[2, 3]", "energy.source=a label", "workload.moe_ffn.scale=0.5"]
    )
    assert (found.seed, found.measure.looks, found.energy.source) == (3, (2, 3), "a label")
    assert [item.get("scale") for item in found.workloads] == [0.5, None]


def test_an_override_may_create_a_table(file: Path) -> None:
    file.write_text("seed = 1\n")
    assert load_config(str(file), ["measure.rounds=2"]).measure.rounds == 2


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seed", "KEY=VALUE"),
        ("sed=1", "'seed'"),
        ("=1", "unknown key ''"),
        ("measure.round=1", "'rounds'"),
        ("measure.rounds=lots", "rounds"),
        ("seed.x=1", "'seed' is not a table"),
        ("workload.moe.scale=1", "allreduce, moe_ffn"),
        ("workload.scale=1", "workload.NAME.KEY"),
    ],
)
def test_a_malformed_override(file: Path, override: str, says: str) -> None:
    assert says in refused(file, overrides=(override,))


def test_overriding_leaves_the_file_alone(file: Path) -> None:
    load_config(str(file), ["seed=3"])
    assert tomllib.loads(file.read_text())["seed"] == 7


# What strangers may have written


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[measure]\nrounds = 1000000\n", "'rounds'"),
        ("[measure]\nlooks = [2, 1000000]\n", "looks"),
        (f"[measure]\nlooks = {list(range(2, 100))}\n", "looks"),
        ("[measure]\nsample_s = inf\n", "inf"),
        ("[measure]\nalpha = nan\n", "nan"),
        ("[measure]\nlead_in_s = -1.0\n", "'lead_in_s'"),
        ("[measure]\nenergy_rounds = -1\n", "'energy_rounds'"),
        ("[measure]\nmemory_limit_bytes = 9000000000000000000\n", "'memory_limit_bytes'"),
        ("seed = 99999999999999999999\n", "64 bits"),
        (f"seed = {'9' * 5000}\n", "not valid TOML"),
        (f"seed = {'[' * 5000}\n", "not valid TOML"),
        (f"seed = {'[' * 100}{']' * 100}\n", "deeper"),
        ('description = "\\u001b[31m"\n', "control character"),
        ('"a\\nb" = 1\n', "the key"),
        ('name = "../../etc"\n', "'name'"),
        ('name = "/tmp/x"\n', "'name'"),
        ('name = ".hidden"\n', "'name'"),
        ('name = ""\n', "'name'"),
        ("[[workload]]\nname = 'moe_ffn'\n" * 101, "101 [[workload]]"),
    ],
)
def test_a_trap_is_refused_with_a_reason(file: Path, text: str, says: str) -> None:
    message = refused(file, text)
    assert says in message and len(message) < 600


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 5000, "nan", "1e999"])
def test_a_trap_in_an_override(file: Path, value: str) -> None:
    refused(file, overrides=(f"measure.sample_s={value}",))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.toml")
    with pytest.raises(FrugalbenchError, match="not a regular file"):
        load_config(str(tmp_path / "config.toml"))


def test_a_name_that_is_no_path() -> None:
    for name in ("x" * 5000, "x" * 5000 + ".toml", "nul\0byte.toml", "nul\0byte"):
        with pytest.raises(FrugalbenchError) as problem:
            load_config(name)
        assert problem.value.exit_code == 2


def test_what_a_config_runs_is_named(file: Path) -> None:
    file.write_text("[[workload]]\nname = 'mine.py:Kernel'\n[[workload]]\nname = 'package.module:Kernel'\n")
    found = load_config(str(file))
    assert config.runs_code(found) == [f"code from {file.parent}/mine.py:Kernel", "code from package.module:Kernel"]
    with pytest.raises(FrugalbenchError, match="--allow-code") as problem:
        config.require_permission(found, False)
    assert str(file.parent / "mine.py") in str(problem.value)
    config.require_permission(found, True)
    assert config.runs_code(load_config("smoke")) == []


def test_a_stored_config_is_read_like_a_file(file: Path) -> None:
    found = load_config(str(file))
    stored = msgspec.json.decode(msgspec.json.encode(found))
    assert config.from_stored(stored, "manifest.json") == found
    broken = stored | {"measure": {"rounds": 10**9}}
    with pytest.raises(FrugalbenchError, match=r"manifest.json: \[measure\] 'rounds'"):
        config.from_stored(broken, "manifest.json")


def test_a_meter_that_is_a_command_needs_permission(file: Path) -> None:
    file.write_text("[energy]\nmeter = 'command'\ncommand = ['sh', '-c', 'echo 1']\n")
    found = load_config(str(file))
    assert config.runs_code(found) == ["the command 'sh -c echo 1' ([energy] command)"]
    with pytest.raises(FrugalbenchError, match="would run the command 'sh -c echo 1'"):
        config.require_permission(found, False)
