"""Every test here may start real processes that know the fake workload."""

import os
from pathlib import Path

import pytest

FAKES = Path(__file__).parent / "fakes"


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory):
    """The fakes on the path of child processes; cache and state of their own."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(FAKES), prepend=os.pathsep)
        patch.setenv("FRUGALBENCH_CACHE_DIR", str(home / "cache"))
        patch.setenv("FRUGALBENCH_STATE_DIR", str(home / "state"))
        patch.syspath_prepend(str(FAKES))
        yield
