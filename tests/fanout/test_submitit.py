"""submitit for real, on its local executor and on stand-ins for Slurm's programs: jobs, mailboxes, what comes home."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fanned import manifest, slow_config, started, wait_for
from frugalbench.analysis.load import load_run
from frugalbench.fanout import submitit_place

pytest.importorskip("submitit")
pytestmark = pytest.mark.real


def test_ctrl_c_brings_home_what_was_measured(command, surroundings, tmp_path) -> None:
    line = command("--on", "submitit-local", config=slow_config(tmp_path))
    with started(line, surroundings) as process:
        wait_for(lambda: any(file.stat().st_size for file in (tmp_path / "out").glob("*/records.jsonl")))
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in errors and "Traceback" not in errors
    (folder,) = (file.parent for file in (tmp_path / "out").glob("*/manifest.json"))
    assert manifest(folder)["state"] == "interrupted" and load_run(folder).records


STAND_IN = """#!{python}
import os, re, subprocess, sys
from pathlib import Path
here, program = Path({folder!r}), Path(sys.argv[0]).name
if program == "sinfo":
    print("alloc busy-1\\nidle n2\\nidle n1\\nidle n1")
elif program == "sbatch":
    text = Path(sys.argv[1]).read_text()
    flags = dict(re.findall(r"#SBATCH --([a-z-]+)=?(.*)", text))
    with (here / "jobs").open("a") as log:
        print(text, file=log)
    if flags["nodelist"] == "n2":
        sys.exit("sbatch: error: Batch job submission failed: Requested node configuration is not available")
    number = 100 + (here / "jobs").read_text().count("#!/bin/bash")
    out = flags["output"].strip("'").replace("%j", str(number))
    env = {{**os.environ, "SLURM_JOB_ID": str(number), "SLURM_PROCID": "0"}}
    job = subprocess.Popen(["bash", sys.argv[1]], env=env, start_new_session=True,
                           stdout=open(os.devnull, "w"), stderr=subprocess.STDOUT)
    (here / f"{{number}}.pid").write_text(str(job.pid))
    print(f"Submitted batch job {{number}}")
elif program == "srun":
    words = sys.argv[1:]
    while words[0].startswith("--"):
        words = words[1:] if "=" in words[0] or words[0] == "--unbuffered" else words[2:]
    os.execvp(words[0], words)
elif program == "squeue":
    number = re.search(r"--jobs=(\\d+)", " ".join(sys.argv))[1]
    if not Path("/proc", (here / f"{{number}}.pid").read_text()).exists():
        sys.exit("slurm_load_jobs error: Invalid job id specified")
    print("RUNNING None")
elif program == "scontrol":
    print("JobId=101 JobState=NODE_FAIL Reason=None")
"""


@pytest.fixture
def slurm(tmp_path: Path, surroundings: dict[str, str]) -> Path:
    """Stand-ins for Slurm's programs, first on the path: they run a job's script here."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name in ("sinfo", "sbatch", "srun", "squeue", "scancel", "scontrol"):
        (folder / name).write_text(STAND_IN.format(python=sys.executable, folder=str(folder)))
        (folder / name).chmod(0o755)
    surroundings["PATH"] = f"{folder}:{surroundings['PATH']}"
    return folder


def test_slurm_gets_exclusive_jobs_bound_to_their_nodes(command, surroundings, slurm, tmp_path) -> None:
    words = ("--partition", "gpu", "--constraint", "a100", "--on-option", "account=lab", "--json")
    made = subprocess.run(
        command("--on", "slurm", "--nodes", "1", *words),
        env=surroundings, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    script = (slurm / "jobs").read_text()
    for flag in ("--exclusive", "--nodelist=n1", "--nodes=1", "--mem=0", "--no-requeue", "--partition=gpu"):
        assert f"#SBATCH {flag}\n" in script
    assert "--constraint=a100" in script and "--account=lab" in script and "--time=61" in script
    told = json.loads(made.stdout)
    (node,) = told["nodes"]
    run = load_run(tmp_path / "out" / "n1")
    assert (node["node"], node["state"], node["exit_code"], run.manifest.state) == ("n1", "measured", 0, "complete")
    assert len(run.records) == node["records"] > 0 and run.manifest.machine_before["host"] == "n1"
    assert (tmp_path / "out" / "report.html").exists() and not (tmp_path / "out" / "jobs").exists()
    assert "n1: measuring" in made.stderr and "n1: doubling" in made.stderr


def test_a_job_that_slurm_ends_is_one_line(call, surroundings, slurm, tmp_path, monkeypatch) -> None:
    (slurm / "srun").write_text("#!/bin/sh\nexit 1\n")
    monkeypatch.setenv("PATH", surroundings["PATH"])
    monkeypatch.setattr(submitit_place, "CHECK_S", 0.0)
    code, errors = call(tmp_path, "--on", "slurm", "--nodes", "1")
    assert code == 1 and "frugalbench: n1: lost: Slurm ended its job (NODE_FAIL): it left no message" in errors


def test_nodes_that_slurm_refuses_are_left_out(call, surroundings, slurm, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", surroundings["PATH"])
    refusing = (slurm / "sbatch").read_text().replace('flags["nodelist"] == "n2"', "True")
    (slurm / "sbatch").write_text(refusing)
    code, errors = call(tmp_path, "--on", "slurm")
    assert code == 3 and errors.count("left out: sbatch: error") == 3 and "no node was given to us" in errors


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--on-option", "nodelist=n1"), "holds one whole machine"),
        (("--on-option", "bogus=1"), "--on-option: Unknown argument 'bogus'"),
        (("--on-option", "account"), "write KEY=VALUE"),
    ],
)
def test_parameters_that_slurm_cannot_take(call, surroundings, slurm, tmp_path, monkeypatch, words, told) -> None:
    monkeypatch.setenv("PATH", surroundings["PATH"])
    code, errors = call(tmp_path, "--on", "slurm", *words)
    assert code == 2 and told in errors and len(errors.splitlines()) <= 3
    assert not (slurm / "jobs").exists()
