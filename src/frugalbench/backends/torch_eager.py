"""PyTorch as it comes: each operator dispatched when it is reached."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from frugalbench.backends.base import Arrays, Options, Placement, Steps, check_device, installed
from frugalbench.schema import Artefact, FirstStart

NAME = "torch-eager"
DISTRIBUTION = "torch"
FAMILY = "torch"
TAKES = "module"
DEVICES = ("cpu", "cuda")
MOST_THREADS = None

MADE = "the module was handed over ready-made"


def available() -> tuple[str | None, str]:
    """Version of torch, or how to get it."""
    return installed(DISTRIBUTION)


def load(model: Any, options: Options, examples: Sequence[Arrays]) -> "TorchRunnable":
    """Put the module on its device; nothing is built."""
    module = placed(model, options)
    runnable, steps = TorchRunnable(module, module, options), Steps()
    runnable.first_call(examples[0], steps)
    runnable.first_start = steps.told(f"{MADE}; nothing is compiled")
    runnable.found = runnable.watch(examples[0])
    return runnable


def placed(model: Any, options: Options) -> Any:
    """``model`` in eval mode on the asked device, with the asked number of threads."""
    import torch

    check_device("torch", options.device, DEVICES)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("torch finds no CUDA device; install a CUDA build of torch or run with device = 'cpu'")
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("highest")  # no TF32, as in the other runtimes
    torch.backends.cudnn.allow_tf32 = False
    return model.eval().to(options.device)


class TorchRunnable:
    """A module, called as it is or through a compiled callable."""

    def __init__(self, module: Any, call: Any, options: Options) -> None:
        import torch

        self._torch, self._module, self._call, self._options = torch, module, call, options
        self.artefacts: tuple[Artefact, ...] = ()
        self.first_start: FirstStart | None = None
        self.details: dict[str, Any] = {"threads": torch.get_num_threads()}
        self.found = Placement(options.device, {})

    def prepare(self, inputs: Arrays) -> list[Any]:
        """Tensors on the device, in the order of the model's inputs."""
        return [self._torch.from_numpy(inputs[name]).to(self._options.device) for name in self._options.inputs]

    def run(self, prepared: list[Any]) -> tuple[Any, ...]:
        """One forward pass without autograd; the tensors stay on the device."""
        with self._torch.inference_mode():
            outputs = self._call(*prepared)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def fetch(self, outputs: tuple[Any, ...]) -> Arrays:
        """Copies of the tensors as numpy arrays."""
        return {name: value.cpu().numpy().copy() for name, value in zip(self._options.outputs, outputs, strict=True)}

    def placement(self) -> Placement:
        """Device of each leaf module's output, seen in one call."""
        return self.found

    def synchronize(self) -> None:
        """Wait for the CUDA stream; nothing to wait for on a CPU."""
        if self._options.device == "cuda":
            self._torch.cuda.synchronize()

    def first_call(self, example: Arrays, steps: Steps) -> None:
        """Time one call of what is ready to be called."""
        prepared = self.prepare(example)
        self.synchronize()
        with steps.step("first_inference"):
            self.run(prepared)
            self.synchronize()

    def watch(self, example: Arrays) -> Placement:
        """Run once and note where each leaf module put its output."""
        places: dict[str, str] = {}
        with _hooks(self._module, places):
            self.run(self.prepare(example))
        kinds = {name or "model": type(leaf).__name__ for name, leaf in _leaves(self._module)}
        return Placement(self._options.device, places, operators=kinds, grain="module")


def _leaves(module: Any) -> list[tuple[str, Any]]:
    return [(name, leaf) for name, leaf in module.named_modules() if not any(leaf.children())]


@contextmanager
def _hooks(module: Any, places: dict[str, str]) -> Iterator[None]:
    handles = [leaf.register_forward_hook(partial(_note, places, name or "model")) for name, leaf in _leaves(module)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _note(places: dict[str, str], name: str, _module: Any, _inputs: Any, output: Any) -> None:
    first = output[0] if isinstance(output, tuple) else output
    places[name] = first.device.type
