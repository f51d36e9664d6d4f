"""The identity of a program follows its files, wherever they lie."""

import json
import shutil
import subprocess
import sys

from frugalbench.fanout import agent, identity
from frugalbench.paths import data, shipped


def test_a_wheel_and_its_checkout_are_one_program_and_a_changed_file_is_another(tmp_path, monkeypatch) -> None:
    here = identity.code()
    wheel = tmp_path / "site" / "frugalbench"
    shutil.copytree(data().parent, wheel, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("configs", "kernels"):
        shutil.copytree(shipped(folder), wheel / f"_{folder}")
    monkeypatch.setattr(identity, "data", lambda: wheel / "data")
    monkeypatch.setattr(identity, "shipped", lambda folder: wheel / f"_{folder}")
    assert identity.code() == here
    (wheel / "_configs" / "smoke.toml").write_text("# another one\n")
    assert identity.code() != here


def test_an_agent_says_which_program_its_node_has() -> None:
    asked = agent.Agent()
    try:
        told = asked.hello()
    finally:
        asked.close()
    assert {name: told[name] for name in ("version", "code", "python")} == identity.identity() and told["boot"]


def test_a_node_without_the_package_says_so(monkeypatch) -> None:
    monkeypatch.setattr(agent, "IDENTITY", "no_such_package.identity")
    asked = agent.Agent()
    told = asked.hello()
    asked.close()
    assert "no_such_package" in told["problem"] and sys.executable in told["problem"] and "version" not in told


def test_the_agent_travels_with_nothing_but_the_standard_library() -> None:
    script = f"""
import json, sys
sys.modules["frugalbench"] = None
source = open({agent.__file__!r}).read()
space = {{"__name__": "sent"}}
exec(compile(source, "sent", "exec"), space)
made = space["Agent"]()
print(json.dumps(made.poll()))
made.close()
"""
    made = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(made.stdout) == {"lines": [], "records": "", "manifest": None, "code": None}
