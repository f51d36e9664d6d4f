"""Registers, shared memory and spills of the Triton expert kernels as compiled for GPUs that need not be here.

``python tests/kernels/triton_sizes.py`` prints a Markdown table of every plan's products in bfloat16, and of the
kernels around them, for sm_80, sm_90 and sm_100.
"""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from frugalbench.workloads.layers import triton_ffn

CAPABILITIES = (80, 90, 100)
POINTERS = {
    "x": "*bf16", "gate_up": "*bf16", "hidden": "*bf16", "down": "*bf16", "answers": "*bf16", "y": "*bf16",
    "logits": "*bf16", "weight_TK": "*bf16", "scale": "fp32", "expert_TK": "*i32", "copy_P": "*i32",
    "expert_of_block": "*i32",
}  # fmt: skip
DIVISIBLE = {*POINTERS, "stride", "model", "width"} - {"scale"}


class Sizes(NamedTuple):
    """What one program of a compiled kernel takes."""

    registers: int
    shared_bytes: int
    spill_bytes: int
    tensor_cores: str


def compiled(function: Any, constants: dict[str, Any], capability: int, warps: int, stages: int) -> Sizes:
    """Compile for ``sm_<capability>`` and ask ptxas."""
    names = function.arg_names
    signature = {name: "constexpr" if name in constants else POINTERS.get(name, "i32") for name in names}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in names if name in DIVISIBLE}
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": warps, "num_stages": stages}
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, spills = asked(made.asm["ptx"], capability)
    instructions = re.findall(r"\b(wgmma|tcgen05|mma)\b\S*", made.asm["ptx"])
    return Sizes(registers, made.metadata.shared, spills, next(iter(sorted(set(instructions), reverse=True)), "none"))


def asked(ptx: str, capability: int) -> tuple[int, int]:
    """Registers per thread and bytes spilled, as ptxas tells them."""
    program = triton.knobs.nvidia.ptxas_blackwell if capability >= 100 else triton.knobs.nvidia.ptxas
    suffix = "a" if capability >= 90 else ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [program.path, "-v", f"--gpu-name=sm_{capability}{suffix}", str(path), "-o", f"{folder}/kernel.cubin"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = re.findall(r"(\d+) bytes spill stores", said)
    return int(re.findall(r"Used (\d+) registers", said)[0]), sum(map(int, spills))


def kernels() -> list[tuple[str, Any, dict[str, Any], int, int]]:
    """Name, function, constants, warps and stages of everything that is launched at the default widths."""
    moe = triton_ffn.kernel()
    found: dict[str, tuple[str, Any, dict[str, Any], int, int]] = {}
    for copies in (512, 2560, 8192, 65536):
        for plan in moe.plans(copies, 128, torch.bfloat16):
            for name, function, tiles in (("expand", moe._expand, plan.expand), ("reduce", moe._reduce, plan.reduce)):
                constants = {
                    "TOKENS": plan.tokens, "COLUMNS": tiles.columns, "DEPTH": tiles.depth, "DIRECT": False,
                    "EVEN": True, "PRECISION": "tf32",
                }  # fmt: skip
                size = f"{plan.tokens}x{tiles.columns}x{tiles.depth}, {tiles.warps} warps, {tiles.stages} stages"
                label = f"{name} {size}"
                found[label] = (label, function, constants, tiles.warps, tiles.stages)
    choose = {
        "CHOSEN": 8, "SHARED": 0, "SIGMOID": False, "NORMALISE": True, "ROWS": 1, "WIDE": 128, "SLOTS": 8,
    }  # fmt: skip
    place = {"TOKENS": 16, "BINS": 256, "CHUNK": 2048}
    around = [
        ("choose", moe._choose, choose, 1, 3),
        ("place", moe._place, place, 8, 3),
        ("add", moe._add, {"CHOSEN": 8, "COLUMNS": 1024}, 4, 3),
    ]
    return [*around, *found.values()]


def main() -> None:
    """Print the table."""
    columns = " | ".join(f"sm_{capability}" for capability in CAPABILITIES)
    print(f"| kernel | {columns} |\n|---{'|---' * len(CAPABILITIES)}|")
    for label, *rest in kernels():
        cells = []
        for capability in CAPABILITIES:
            function, constants, warps, stages = rest
            sizes = compiled(function, constants, capability, warps, stages)
            spilled = f", {sizes.spill_bytes} B spilled" if sizes.spill_bytes else ""
            cells.append(f"{sizes.registers} regs, {sizes.shared_bytes / 1024:.0f} KiB, {sizes.tensor_cores}{spilled}")
        print(f"| {label} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
