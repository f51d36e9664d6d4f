"""Plans of the graph set on a machine where some packages are missing."""

from frugalbench.specs import onnx_graphs as spec
from frugalbench.specs.base import Settings


class Machine:
    logical_cores = 2
    last_level_cache_bytes = 32 * 2**20

    def __init__(self, *missing):
        self.missing = missing

    def installed(self, package):
        return None if package in self.missing else "1.0"

    gpu_l2_bytes = 50 * 2**20
    gpu_memory_bytes = 80 * 2**30

    def has_cuda(self):
        return False


def expand(machine=None, **options):
    settings = Settings(workload="onnx_graphs", device="cpu", threads=2, seed=0, options=options, where="here")
    return spec.expand(settings, machine or Machine("magika", "silero-vad", "rapidocr-onnxruntime"))
