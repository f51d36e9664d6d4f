"""A library that asks on import what GPU there is, and so leaves no CUDA to forked processes; with its own torch."""

import os
import sys
from types import SimpleNamespace

_OWN = os.getpid()
sys.modules["torch"] = SimpleNamespace(cuda=SimpleNamespace(_is_in_bad_fork=lambda: os.getpid() != _OWN))
