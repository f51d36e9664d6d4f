"""A machine as planning sees it: two cores, a small cache, every package, no GPU."""


class Machine:
    logical_cores = 2
    last_level_cache_bytes = 2**20

    def installed(self, package):  # noqa: ARG002
        return "1"

    def has_cuda(self):
        return False
