"""A local Ray cluster of two nodes for real. Skipped where ray is not installed."""

import contextlib
import json
import os
import signal
import subprocess

import pytest

from fanned import manifest, slow_config, started, wait_for
from frugalbench.analysis.load import load_run
from frugalbench.fanout.ray_place import reservation

pytestmark = pytest.mark.real
OPTIONS = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster():
    """Head and a second node, both on this machine."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args=OPTIONS)
    try:
        made.add_node(**OPTIONS)
        made.wait_for_nodes()
        yield made
    finally:
        made.shutdown()


@pytest.fixture
def there(cluster, surroundings) -> dict[str, str]:
    """Environment in which ``--on ray`` finds the cluster."""
    return {**surroundings, "RAY_ADDRESS": cluster.address}


def test_two_nodes_of_one_machine_take_turns(command, there) -> None:
    line = command("--on", "ray", "--json")
    made = subprocess.run(line, env=there, capture_output=True, text=True, timeout=120, check=False)
    assert made.returncode == 0, made.stderr
    nodes = json.loads(made.stdout)["nodes"]
    assert len(nodes) == 2 and {node["state"] for node in nodes} == {"measured"}
    runs = [load_run(node["run"]).manifest for node in nodes]
    assert [run.machine_before["host"] for run in runs] == [node["node"] for node in nodes]
    first, second = sorted(runs, key=lambda run: run.started)
    assert first.ended is not None and first.ended <= second.started
    assert [bool(node["same_machine_as"]) for node in nodes].count(True) == 1 and "they take turns" in made.stderr


def test_ctrl_c_and_nodes_in_others_hands(command, there, tmp_path) -> None:
    with started(command("--on", "ray", config=slow_config(tmp_path)), there) as process:
        wait_for(lambda: any(file.stat().st_size for file in (tmp_path / "out").glob("*/records.jsonl")))
        other = command("--on", "ray", "--wait", "3", "--out", str(tmp_path / "other"))
        busy = subprocess.run(other, env=there, capture_output=True, text=True, timeout=60, check=False)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=90)
    assert busy.returncode == 3 and busy.stderr.count("not free: in others' hands for 3 s") == 2
    assert process.returncode == 130 and "Traceback" not in errors
    (folder,) = (file.parent for file in (tmp_path / "out").glob("*/manifest.json"))
    assert manifest(folder)["state"] == "interrupted" and load_run(folder).records


def test_a_node_that_dies_is_one_line(command, there, cluster, tmp_path) -> None:
    """The second node's daemon is killed while that node waits for its turn or measures; the other one goes on."""
    with started(command("--on", "ray"), there) as process:
        wait_for(lambda: any((tmp_path / "out").glob("*/manifest.json")))
        victim = cluster.list_all_nodes()[-1]
        for info in victim.all_processes["raylet"]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(info.process.pid, signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
    lost = [line for line in errors.splitlines() if ": lost: " in line]
    assert process.returncode == 1 and len(lost) == 1 and "died" in lost[0] and "Traceback" not in errors
    assert ": measured" in errors


def test_all_of_a_node_is_asked_for() -> None:
    whole = {"CPU": 8.0, "GPU": 2.0, "memory": 1e9, "object_store_memory": 1e8, "node:10.0.0.1": 1.0, "TPU": 4.0}
    cut = {"CPU_group_0_ab": 2.0, "bundle_group_ab": 1000.0, "accelerator_type:A100": 1.0}
    assert reservation({**whole, **cut}) == {
        "num_cpus": 8.0, "num_gpus": 2.0, "memory": 10**9, "resources": {"TPU": 4.0, "accelerator_type:A100": 1.0},
    }  # fmt: skip
    assert reservation({"CPU": 0.0, "GPU": 1.0}) is None and reservation({}) is None
