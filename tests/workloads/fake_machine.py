"""A machine as planning sees it: two cores, a small cache, every package, no GPU."""


class Machine:
    logical_cores = 2
    last_level_cache_bytes = 2**20

    def installed(self, package):  # noqa: ARG002
        return "1"

    gpu_l2_bytes = 50 * 2**20
    gpu_memory_bytes = 80 * 2**30

    def has_cuda(self):
        return False
