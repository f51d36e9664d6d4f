"""The management controller's answers, from programs that print them. The text is made up in ipmitool's form."""

import sys
from pathlib import Path

import pytest

from frugalbench.meters import MeterError, MeterSettings, ipmi, pick
from frugalbench.schema import NothingRunsHere

ANSWER = (Path(__file__).parent / "traces" / "ipmitool_dcmi.txt").read_text()


def program(path: Path, code: str) -> tuple[str, ...]:
    path.write_text(f"import sys, time\n{code}\n")
    return (sys.executable, str(path))


def test_instantaneous_watts():
    assert ipmi.parsed_w(ANSWER) == 172.0


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no instantaneous"),
        (ANSWER.replace("activated", "deactivated"), "deactivated"),
        (ANSWER.replace("172", "  0"), "0 W"),
        ("    Average power reading over sample period:      158 Watts\n", "no instantaneous"),
    ],
)
def test_a_controller_that_does_not_measure(text, problem):
    with pytest.raises(MeterError, match=problem):
        ipmi.parsed_w(text)


def test_a_meter_of_the_machine(tmp_path):
    command = program(tmp_path / "ok.py", f"print({ANSWER!r})")
    (meter,) = pick(MeterSettings(kind="ipmi", device="cuda", ipmi_command=command))
    assert (meter.scope, meter.update_period_s) == ("machine", 1.0)
    assert meter.available().detail.endswith("172 W now")
    assert ipmi.discover(command, 3.0)[0].update_period_s == 3.0


def test_no_permission_says_the_fix(tmp_path):
    complaint = "Could not open device at /dev/ipmi0 or /dev/ipmi/0: Permission denied"
    command = program(tmp_path / "refused.py", f"sys.exit({complaint!r})")
    with pytest.raises(NothingRunsHere, match="Permission denied"):
        pick(MeterSettings(kind="ipmi", ipmi_command=command))
    device = tmp_path / "ipmi0"
    device.touch()
    assert ipmi.remedy([str(device)]).startswith(f"sudo chmod a+rw {device}")
    assert "modprobe ipmi_devintf" in ipmi.remedy([str(tmp_path / "none")])


def test_a_controller_that_hangs_is_given_up(tmp_path):
    command = program(tmp_path / "hangs.py", "time.sleep(60)")
    (meter,) = ipmi.discover(command, limit_s=0.2)
    assert "no answer within 0.2 s" in meter.available().detail


def test_without_the_program_the_command_that_gets_it():
    assert ipmi.discover(("/nonexistent/ipmitool",)) == []
    assert ipmi.probe(("/nonexistent/ipmitool",)).remedy.startswith("apt install ipmitool")
