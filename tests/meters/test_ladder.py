"""Which meters are picked: the rungs of the ladder, by files and fakes that answer."""

import sys
from pathlib import Path

import pytest

from frugalbench import config
from frugalbench.meters import KINDS, MeterSettings, pick, probes
from frugalbench.meters.base import SCOPES
from frugalbench.schema import FrugalbenchError, NothingRunsHere

NOWHERE = Path("/nonexistent")


class NoDriver:
    """In place of a driver: shows no board, whatever this machine has."""

    def nvmlDeviceGetCount(self):  # noqa: N802
        return 0

    def amdsmi_get_processor_handles(self):
        return []


class Board(NoDriver):
    """An NVIDIA board with a counter and nothing else."""

    def nvmlDeviceGetCount(self):  # noqa: N802
        return 1

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return index

    def nvmlDeviceGetTotalEnergyConsumption(self, _handle):  # noqa: N802
        return 1000


def settings(tmp_path, **given) -> MeterSettings:
    usual = {
        "powercap_root": tmp_path / "powercap", "hwmon_root": tmp_path / "hwmon", "battery_root": tmp_path / "battery",
        "nvml_driver": NoDriver(), "amd_library": NoDriver(), "ipmi_command": ("/nonexistent",),
    }  # fmt: skip
    return MeterSettings(**(usual | given))


def files(folder: Path, **texts: object) -> Path:
    folder.mkdir(parents=True)
    for name, text in texts.items():
        (folder / name).write_text(f"{text}\n")
    return folder


def rapl(tmp_path) -> None:
    names = {"": "package-0", ":0": "core", ":1": "dram"}
    for place, name in names.items():
        files(tmp_path / "powercap" / f"intel-rapl:0{place}", name=name, energy_uj=1, max_energy_range_uj=10**9)


def battery(tmp_path) -> None:
    files(tmp_path / "battery" / "BAT0", type="Battery", status="Discharging", power_now=10**7)


def acpi(tmp_path) -> None:
    files(tmp_path / "hwmon" / "hwmon0", name="power_meter", power1_average=10**8)


IPMI = (sys.executable, "-c", "print('Instantaneous power reading: 200 Watts')")


def scopes(meters) -> list[str]:
    return [meter.scope for meter in meters]


def test_counters_come_before_the_machine_and_slow_extras_are_left_out(tmp_path):
    rapl(tmp_path)
    battery(tmp_path)
    acpi(tmp_path)
    found = pick(settings(tmp_path, ipmi_command=IPMI, nvml_driver=Board()))
    assert scopes(found) == ["cpu-package", "cpu-core", "cpu-dram"]


def test_a_gpu_case_counts_board_and_processor(tmp_path):
    rapl(tmp_path)
    found = pick(settings(tmp_path, nvml_driver=Board(), device="cuda"))
    assert scopes(found) == ["cpu-package", "cpu-core", "cpu-dram", "gpu-board"]


def test_a_processors_counter_does_not_cover_a_gpu(tmp_path):
    rapl(tmp_path)
    assert pick(settings(tmp_path, device="cuda")) == []
    assert pick(settings(tmp_path, device="cuda", kind="powercap")) == []
    assert "machine" in scopes(pick(settings(tmp_path, device="cuda", ipmi_command=IPMI)))


def test_the_machine_where_no_counter_answers_one_source_of_it(tmp_path):
    battery(tmp_path)
    found = pick(settings(tmp_path, ipmi_command=IPMI))
    assert [meter.name for meter in found] == ["battery BAT0"]
    acpi(tmp_path)
    assert [meter.name for meter in pick(settings(tmp_path))] == ["hwmon power_meter power"]


def test_a_second_source_of_a_scope_is_left_out_by_auto(tmp_path):
    rapl(tmp_path)
    files(tmp_path / "hwmon" / "hwmon0", name="amd_energy", energy1_input=1, energy1_label="Esocket0")
    assert scopes(pick(settings(tmp_path))).count("cpu-package") == 1
    assert scopes(pick(settings(tmp_path, kind="hwmon"))) == ["cpu-package"]


def test_a_configured_external_meter_goes_with_auto_or_is_an_error(tmp_path):
    rapl(tmp_path)
    read = (sys.executable, "-c", "print(120)")
    found = pick(settings(tmp_path, command=read, scope="gpu-board", device="cuda", update_period_s=2.0))
    assert scopes(found)[-1] == "gpu-board" and found[-1].update_period_s == 2.0
    with pytest.raises(NothingRunsHere, match="csv does not answer"):
        pick(settings(tmp_path, csv=str(tmp_path / "none.csv")))


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_that_does_not_answer_says_why_and_what_to_do(tmp_path, kind):
    with pytest.raises(NothingRunsHere, match=f"energy: {kind} does not answer: .+; .+"):
        pick(settings(tmp_path, kind=kind))


def test_each_kind_answers_a_probe_with_a_remedy(tmp_path):
    answers = probes(settings(tmp_path))
    assert list(answers) == list(KINDS)
    assert all(answer.detail and answer.remedy for answer in answers.values() if not answer)


def test_the_config_knows_the_same_kinds_and_scopes():
    assert set(config.METERS) == {*KINDS, "auto", "declared", "none"}
    assert set(config.METER_SCOPES) <= set(SCOPES)


def test_an_unknown_kind(tmp_path):
    with pytest.raises(FrugalbenchError, match=r"'rapl'; choose one of .*powercap"):
        pick(settings(tmp_path, kind="rapl"))
