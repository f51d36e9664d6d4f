"""What all tests share. Two processes of pytest may run at once on two cores, and each test has to bear that."""

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

TOGETHER = {
    "tests/workloads/test_moe_compiled.py": "tests/backends/test_conformance.py",
    "tests/workloads/test_onnx_model.py": "tests/backends/test_conformance.py",
    "tests/specs/test_cluster_model.py": "tests/cli/test_commands.py",
}
"""Files of one process, because it keeps what takes long: torch's compiler when it is warm, and modelled records."""

settings.register_profile("shared-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared-machine")

if "PYTEST_XDIST_WORKER" in os.environ:
    # Pools that no test gave a size take one core; pools of two do not spin on a core that the other process needs.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """``--dist loadfile``, with files of :data:`TOGETHER` as one."""
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return TOGETHER.get(file, file)

    return Together(config, log) if config.getoption("dist") == "loadfile" else None
