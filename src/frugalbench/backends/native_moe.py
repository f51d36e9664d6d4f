"""Own kernels for a mixture of SwiGLU experts (``kernels/cpu/moe.cpp``), on CPU tensors through ctypes.

:func:`experts` is the differentiable operator ``frugalbench::moe_experts``, registered with ``torch.library``, so that
autograd, ``torch.compile`` and ``torch.export`` see it. :class:`Kernel` is the same without the operator's overhead.
Shape suffixes: T tokens, D model width, F expert width, E experts, K experts per token.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from frugalbench.backends import native_torch
from frugalbench.backends.native import Operation, peaks
from frugalbench.native_build import Built

SOURCE = "cpu/moe.cpp"
GATES = {"softmax": 0, "sigmoid": 1}
SIXTEEN = {torch.float16: 0, torch.bfloat16: 1}
"""Formats of 16 bits, with the kernel's number."""


def built(isa: str | None = None) -> Built:
    """The shared object for this processor's best instruction set, or for ``isa`` (a name of ``fb_which_kernel``).

    ``avx512`` on a processor with ``avx512_bf16`` multiplies bfloat16 weights as floats.
    """
    return native_torch.built(SOURCE, Operation.FMA, isa or peaks().which(Operation.BF16))


@cache
def kernel(isa: str | None = None) -> "Kernel":
    """The kernel, built on first use. Raises :class:`FrugalbenchError` when it cannot be."""
    return Kernel(native_torch.library(built(isa)))


class Kernel:
    """The C functions on contiguous CPU tensors: float32, and int32 for the numbers of experts.

    :meth:`forward` and :meth:`layer` also take tokens and weights in one format of 16 bits (mixing weights stay
    float32); they add in float32 and round y once. Where :meth:`path_of` says ``avx512_bf16``, experts with more than
    four tokens multiply bfloat16 by the processor's own instruction and round hidden values to it; elsewhere 16 bits
    are multiplied as floats.
    A call computes on the threads of torch's own OpenMP pool, as many as ``torch.get_num_threads()`` says.
    All methods raise ``RuntimeError`` with one sentence when the kernel refuses.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        library.fb_moe_path.restype = library.fb_moe_path_16.restype = ctypes.c_char_p
        library.fb_moe_workspace.restype = ctypes.c_int64
        sizes: list[Any] = [ctypes.c_int, *[ctypes.c_int64] * 5]
        library.fb_moe_workspace.argtypes = sizes
        library.fb_moe_forward.argtypes = [*sizes, *[ctypes.c_void_p] * 8, ctypes.c_int64]
        library.fb_moe_backward.argtypes = [*sizes, *[ctypes.c_void_p] * 12, ctypes.c_int64]
        library.fb_moe_lanes.restype = ctypes.c_int64
        library.fb_moe_lanes.argtypes = [*[ctypes.c_int64] * 3, *[ctypes.c_void_p] * 2, ctypes.c_int64]
        integers: list[Any] = [ctypes.c_int, *[ctypes.c_int64] * 4, ctypes.c_int, ctypes.c_int, ctypes.c_float]
        library.fb_moe_route.argtypes = [*integers, *[ctypes.c_void_p] * 6]
        library.fb_moe_layer_workspace.restype = ctypes.c_int64
        library.fb_moe_layer_workspace.argtypes = [ctypes.c_int, *[ctypes.c_int64] * 6]
        layer: list[Any] = [ctypes.c_int, *[ctypes.c_int64] * 6, ctypes.c_int, ctypes.c_int, ctypes.c_float]
        library.fb_moe_layer.argtypes = [*layer, *[ctypes.c_void_p] * 7, ctypes.c_int64]
        library.fb_moe_workspace_16.restype = library.fb_moe_layer_workspace_16.restype = ctypes.c_int64
        library.fb_moe_workspace_16.argtypes = sizes
        library.fb_moe_layer_workspace_16.argtypes = library.fb_moe_layer_workspace.argtypes
        library.fb_moe_forward_16.argtypes = [ctypes.c_int, *sizes, *[ctypes.c_void_p] * 7, ctypes.c_int64]
        library.fb_moe_layer_16.argtypes = [ctypes.c_int, *library.fb_moe_layer.argtypes]
        self._library = library
        self.path: str = library.fb_moe_path().decode()
        self.parallel = bool(library.fb_moe_parallel())

    def path_of(self, kind: torch.dtype) -> str:
        """Instruction set that multiplies weights of this format."""
        if kind not in SIXTEEN:
            return self.path
        found: bytes = self._library.fb_moe_path_16(SIXTEEN[kind])
        return found.decode()

    def route(
        self, x_TD: torch.Tensor, router_ED: torch.Tensor, chosen: int, gate: str = "softmax", normalise: bool = True,
        scale: float = 1.0, bias_E: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Numbers (int32) and mixing weights of the ``chosen`` experts of each token, T x K."""
        T, D = x_TD.shape
        E = len(router_ED)
        native_torch.contiguous(x_TD, router_ED)
        expert_TK = torch.empty((T, chosen), dtype=torch.int32)
        weight_TK = torch.empty((T, chosen))
        scores = native_torch.space("scores", T * E)
        status = self._library.fb_moe_route(
            torch.get_num_threads(), T, D, E, chosen, GATES[gate], normalise, scale, x_TD.data_ptr(),
            router_ED.data_ptr(), None if bias_E is None else bias_E.data_ptr(), expert_TK.data_ptr(),
            weight_TK.data_ptr(), scores.data_ptr(),
        )  # fmt: skip
        native_torch.check("fb_moe_route", status)
        return expert_TK, weight_TK

    def layer(
        self, router_ED: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, chosen: int, gate: str = "softmax",
        normalise: bool = True, scale: float = 1.0,
    ) -> Callable[[torch.Tensor], torch.Tensor]:  # fmt: skip
        """A function of x that routes and computes in one call. Experts beyond the router's are shared: every token
        takes them with weight 1. The weights must stay where they are."""
        E, D = router_ED.shape
        held, two_F, _ = gate_up.shape
        kind = native_torch.alike(router_ED, gate_up, down)
        sixteen, suffix = ((SIXTEEN[kind],), "_16") if kind in SIXTEEN else ((), "")
        compute = getattr(self._library, f"fb_moe_layer{suffix}")
        size_of = getattr(self._library, f"fb_moe_layer_workspace{suffix}")
        if gate_up.shape != (held, two_F, D) or down.shape != (held, D, two_F // 2):
            raise RuntimeError(
                f"shapes do not fit: {tuple(router_ED.shape)}, {tuple(gate_up.shape)}, {tuple(down.shape)}"
            )
        rest = (E, held - E, chosen)
        settings = (GATES[gate], normalise, scale)
        pointers = (router_ED.data_ptr(), None, gate_up.data_ptr(), down.data_ptr())
        spaces: dict[tuple[int, int], tuple[int, int]] = {}

        def call(x_TD: torch.Tensor) -> torch.Tensor:
            if x_TD.dtype is not kind or not x_TD.is_contiguous():
                native_torch.alike(router_ED, x_TD)
            y_TD = torch.empty_like(x_TD)
            threads, tokens = torch.get_num_threads(), len(x_TD)
            sizes = (threads, tokens, D, two_F // 2, *rest)
            if (threads, tokens) not in spaces:
                size_bytes = native_torch.known("fb_moe_layer_workspace", size_of(*sizes))
                spaces[threads, tokens] = (size_bytes, -(-size_bytes // 4))
            size_bytes, values = spaces[threads, tokens]
            space = native_torch.space("workspace", values)
            status = compute(
                *sixteen, *sizes, *settings, x_TD.data_ptr(), *pointers, y_TD.data_ptr(), space.data_ptr(), size_bytes
            )
            if status:
                native_torch.check("fb_moe_layer", status)
            return y_TD

        return call

    def lanes(self, expert_TK: torch.Tensor, experts: int) -> int:
        """Vector lanes that :meth:`forward` computes for these choices; beyond T·K they are padding."""
        T, K = expert_TK.shape
        space = native_torch.space("workspace", 64 * (experts + T * K) + 1024)
        found = self._library.fb_moe_lanes(T, experts, K, expert_TK.data_ptr(), space.data_ptr(), 4 * space.numel())
        return native_torch.known("fb_moe_lanes", found)

    def forward(
        self, x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor, gate_up: torch.Tensor,
        down: torch.Tensor, keep: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """y (T x D), and what :meth:`backward` needs when ``keep`` (T·K x 2F, else empty).

        ``gate_up`` is E x 2F x D, ``down`` E x D x F, as torch's linear layers store them.
        """
        sizes = self._sizes(x_TD, expert_TK, weight_TK, gate_up, down)
        y_TD = torch.empty_like(x_TD)
        if x_TD.dtype in SIXTEEN:
            if keep:
                raise RuntimeError("the kernel differentiates float32 only")
            self._forward_16(sizes, x_TD, expert_TK, weight_TK, gate_up, down, y_TD)
            return y_TD, x_TD.new_empty((0,))
        saved = x_TD.new_empty((sizes[1] * sizes[5], 2 * sizes[3]) if keep else (0,))
        space = self._workspace(sizes)
        status = self._library.fb_moe_forward(
            *sizes, x_TD.data_ptr(), expert_TK.data_ptr(), weight_TK.data_ptr(), gate_up.data_ptr(), down.data_ptr(),
            y_TD.data_ptr(), saved.data_ptr() if keep else None, space.data_ptr(), 4 * space.numel(),
        )  # fmt: skip
        native_torch.check("fb_moe_forward", status)
        return y_TD, saved

    def _forward_16(self, sizes: tuple[int, ...], *arrays: torch.Tensor) -> None:
        size_bytes = native_torch.known("fb_moe_workspace_16", self._library.fb_moe_workspace_16(*sizes))
        space = native_torch.space("workspace", -(-size_bytes // 4))
        pointers = (item.data_ptr() for item in arrays)
        kind = SIXTEEN[arrays[0].dtype]
        status = self._library.fb_moe_forward_16(kind, *sizes, *pointers, space.data_ptr(), 4 * space.numel())
        native_torch.check("fb_moe_forward_16", status)

    def backward(
        self, grad_TD: torch.Tensor, x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor,
        gate_up: torch.Tensor, down: torch.Tensor, saved: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
        """Gradients of x, of the mixing weights, of ``gate_up`` and of ``down``."""
        sizes = self._sizes(x_TD, expert_TK, weight_TK, gate_up, down)
        native_torch.contiguous(x_TD, gate_up, down, grad_TD, saved)
        grads = tuple(torch.empty_like(item) for item in (x_TD, weight_TK, gate_up, down))
        space = self._workspace(sizes)
        inputs = (x_TD, expert_TK, weight_TK, gate_up, down, saved, grad_TD, *grads, space)
        status = self._library.fb_moe_backward(*sizes, *(item.data_ptr() for item in inputs), 4 * space.numel())
        native_torch.check("fb_moe_backward", status)
        return grads[0], grads[1], grads[2], grads[3]

    def _sizes(
        self, x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor, gate_up: Any, down: Any
    ) -> tuple[int, ...]:
        T, D = x_TD.shape
        E, two_F, _ = gate_up.shape
        expected = ((T, expert_TK.shape[1]), (E, two_F, D), (E, D, two_F // 2))
        found = (tuple(weight_TK.shape), tuple(gate_up.shape), tuple(down.shape))
        if expected != found or expert_TK.dtype is not torch.int32 or len(expert_TK) != T:
            raise RuntimeError(f"shapes do not fit: mixing weights, gate_up and down are {found}, not {expected}")
        native_torch.contiguous(weight_TK)
        native_torch.alike(x_TD, gate_up, down)
        return torch.get_num_threads(), T, D, two_F // 2, E, expert_TK.shape[1]

    def _workspace(self, sizes: tuple[int, ...]) -> torch.Tensor:
        size_bytes = native_torch.known("fb_moe_workspace", self._library.fb_moe_workspace(*sizes))
        return native_torch.space("workspace", -(-size_bytes // 4))


@torch.library.custom_op("frugalbench::moe_experts", mutates_args=(), device_types="cpu")  # type: ignore[untyped-decorator]
def _experts(
    x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor,
    keep: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    return kernel().forward(x_TD.contiguous(), expert_TK, weight_TK.contiguous(), gate_up, down, keep)


@_experts.register_fake  # type: ignore[untyped-decorator]
def _(
    x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor,
    keep: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    del expert_TK, down
    rows = (weight_TK.shape[0] * weight_TK.shape[1], gate_up.shape[1])
    return torch.empty_like(x_TD), x_TD.new_empty(rows if keep else (0,))


@torch.library.custom_op("frugalbench::moe_experts_backward", mutates_args=(), device_types="cpu")  # type: ignore[untyped-decorator]
def _experts_backward(
    grad_TD: torch.Tensor, x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor,
    gate_up: torch.Tensor, down: torch.Tensor, saved: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    inputs = grad_TD.contiguous(), x_TD.contiguous(), expert_TK, weight_TK.contiguous(), gate_up, down, saved
    return kernel().backward(*inputs)


@_experts_backward.register_fake  # type: ignore[untyped-decorator]
def _(
    grad_TD: torch.Tensor, x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor,
    gate_up: torch.Tensor, down: torch.Tensor, saved: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    del grad_TD, expert_TK, saved
    return torch.empty_like(x_TD), torch.empty_like(weight_TK), torch.empty_like(gate_up), torch.empty_like(down)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    x_TD, expert_TK, weight_TK, gate_up, down, keep = inputs
    ctx.keep = keep
    ctx.save_for_backward(x_TD, expert_TK, weight_TK, gate_up, down, output[1])


def _differentiate(ctx: Any, grad_TD: torch.Tensor, _saved: Any) -> tuple[Any, ...]:
    if not ctx.keep:
        raise RuntimeError("frugalbench::moe_experts was called with keep=False, so it has no gradient")
    x_grad, weight_grad, gate_up_grad, down_grad = _experts_backward(grad_TD, *ctx.saved_tensors)
    return x_grad, None, weight_grad, gate_up_grad, down_grad, None


_experts.register_autograd(_differentiate, setup_context=_keep)


def experts(
    x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    """Sum over the K chosen experts of weight · down(silu(gate x) · up x), T x D; differentiable where asked.

    ``expert_TK`` is int32; ``gate_up`` E x 2F x D and ``down`` E x D x F are float32 and contiguous.
    """
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (x_TD, weight_TK, gate_up, down))
    y_TD: torch.Tensor = _experts(x_TD, expert_TK, weight_TK, gate_up, down, wanted)[0]
    return y_TD
