"""What all tests share. Two processes of pytest may run at once on two cores, and each test has to bear that."""

import os

from hypothesis import settings

settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")

if "PYTEST_XDIST_WORKER" in os.environ:
    # Pools that no test gave a size take one core; pools of two do not spin on a core that the other process needs.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
