"""Triton's interpreter made good for what its version 3.6 gets wrong.

With numpy 2.4 and later it cannot end a loop at a number that the kernel is given, as numpy no longer makes a scalar of
an array of one element. It cuts float32 off to bfloat16 where a GPU rounds to the nearest. And it holds bfloat16 as
16-bit integers, which ``tl.dot`` multiplies as such. For speed it neither wraps the whole language again in every call
of a function inside a kernel nor checks each sum of integers for overflow.
"""

import os
import subprocess
import sys
from dataclasses import replace
from inspect import ismodule
from typing import Any

import numpy as np

ON = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether this process interprets: Triton decides when it is imported, so that takes a process of its own."""


def run(file: str, passed: int) -> None:
    """Run a file's tests in a process that interprets; ``passed`` of them must."""
    program = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
    environ = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(program, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"{passed} passed" in done.stdout


def mend() -> None:
    """Right all of that in this process, before the first kernel runs."""
    from triton.runtime import interpreter

    builder, tl = interpreter.InterpreterBuilder, interpreter.tl
    before, dot, cast = interpreter._patch_lang_tensor, builder.create_dot, builder.cast_impl

    def patched(tensor: Any, *scope: Any) -> None:
        before(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    def wide(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def right_cast(self: Any, source: Any, wanted: Any) -> Any:
        kinds = source.dtype.scalar, wanted.scalar
        if kinds == (tl.bfloat16, tl.float32):
            return wide(source)
        if kinds != (tl.float32, tl.bfloat16):
            return cast(self, source, wanted)
        bits = np.ascontiguousarray(source.data).view(np.uint32)
        return interpreter.TensorHandle(((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16), tl.bfloat16)

    interpreter._patch_lang_tensor = patched
    interpreter.interpreter_builder.options = replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
    _patch_once(interpreter)
    builder.create_dot = lambda self, a, b, *others: dot(self, wide(a), wide(b), *others)
    builder.cast_impl = right_cast


def _patch_once(interpreter: Any) -> None:
    """One patch of the language for each launch and each set of its modules that functions see."""
    language = interpreter.tl, interpreter.tl.core
    launch, seen = interpreter.GridExecutor.__call__, set()

    def launched(self: Any, *arguments: Any, **options: Any) -> Any:
        seen.clear()
        return launch(self, *arguments, **options)

    def called(self: Any, *arguments: Any, **options: Any) -> Any:
        visible = frozenset(
            id(value) for value in self.fn.__globals__.values() if ismodule(value) and value in language
        )
        if visible not in seen:
            interpreter._patch_lang(self.fn)
            seen.add(visible)
        return self.rewrite()(*arguments, **options)

    interpreter.GridExecutor.__call__ = launched
    interpreter.InterpretedFunction.__call__ = called
