"""On ``PYTHONPATH``, makes the fake workload known to every Python process: templates, workers, the command line."""

from frugalbench.specs import SPECS
from frugalbench.workloads import BUILDERS

BUILDERS["fake"] = "fake_workload"
SPECS["fake"] = "fake_spec"
