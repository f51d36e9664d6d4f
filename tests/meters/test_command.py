"""A command that prints what a meter shows."""

import os
import sys
import time
from pathlib import Path

import pytest

from frugalbench.meters import MeterError, Window, command
from frugalbench.meters.ask import last_number, output_of


def script(path: Path, code: str) -> tuple[str, ...]:
    path.write_text(f"import os, sys, time\n{code}\n")
    return (sys.executable, str(path))


@pytest.mark.parametrize(
    ("text", "number"),
    [("12.5\n", 12.5), ("wall meter v2\npower: 1.2e2 W\n\n", 120.0), ("-3", -3.0), ("5.", 5.0), ("7 W of 9", 7.0)],
)
def test_the_first_number_of_the_last_line(text, number):
    assert last_number(text) == number


@pytest.mark.parametrize("text", ["", "\n\n", "12\nno reading\n"])
def test_no_number(text):
    with pytest.raises(MeterError, match="no number"):
        last_number(text)


def test_watts_are_integrated_and_joules_subtracted(tmp_path):
    shown = tmp_path / "shown"
    now = [0.0]
    read = script(tmp_path / "read.py", f"print(open({str(shown)!r}).read())")
    for unit, joule in (("W", 2.0 * (100 + 150) / 2), ("J", 50.0)):
        (meter,) = command.discover(read, unit=unit, clock=lambda: now[0])
        shown.write_text("100")
        window = Window([meter], meter.clock)
        shown.write_text("150")
        now[0] += 2.0
        assert window.close(1)[0].joule == pytest.approx(joule)


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("sys.exit('meter is off')", "exit code 1: meter is off"),
        ("print('-5')", "no reading"),
        ("print('nothing')", "no number"),
        ("time.sleep(60)", "no answer within"),
    ],
)
def test_a_command_that_fails_is_unavailable_with_its_reason(tmp_path, code, problem):
    (meter,) = command.discover(script(tmp_path / "c.py", code), limit_s=5.0 if "sleep" not in code else 0.3)
    answer = meter.available()
    assert not answer and problem in answer.detail and "in W" in answer.remedy


def test_a_missing_program_is_no_traceback():
    assert "No such file" in command.probe(("/nonexistent/meter",)).detail
    assert command.discover(()) == [] and "not configured" in command.probe().detail


def test_children_of_a_command_that_hangs_are_ended_too(tmp_path):
    note = tmp_path / "pid"
    code = f"pid = os.fork()\nif pid: open({str(note)!r}, 'w').write(str(pid))\ntime.sleep(60)"
    begin_s = time.monotonic()
    with pytest.raises(MeterError, match="no answer"):
        output_of(script(tmp_path / "forks.py", code), 1.0)
    assert time.monotonic() - begin_s < 30  # nobody waited for the child's end
    pid, deadline = int(note.read_text()), time.monotonic() + 5
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(pid)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
