"""A library that takes its process down on import."""

import os

print("the library gave up", flush=True)
os._exit(4)
