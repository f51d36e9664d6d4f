"""One file per workload: shapes, inputs, FLOPs, bytes, tolerance. No torch."""

SPECS = {
    "machine_peaks": "frugalbench.specs.machine_peaks",
    "moe_ffn": "frugalbench.specs.moe_ffn",
    "lm_quality": "frugalbench.specs.lm_quality",
    "quantized_linear": "frugalbench.specs.quantized_linear",
    "quantized_model": "frugalbench.specs.quantized_model",
    "model_decode": "frugalbench.specs.model_decode",
    "onnx_model": "frugalbench.specs.onnx_model",
    "onnx_conformance": "frugalbench.specs.onnx_conformance",
    "onnx_graphs": "frugalbench.specs.onnx_graphs",
    "onnx_task": "frugalbench.specs.onnx_task",
    "allreduce": "frugalbench.specs.allreduce",
    "expert_parallel": "frugalbench.specs.expert_parallel",
    "emulated_network": "frugalbench.specs.emulated_network",
    "local_steps": "frugalbench.specs.local_steps",
    "foreign_device": "frugalbench.specs.foreign_device",
    "kernel_tax": "frugalbench.specs.kernel_tax",
    "cluster_model": "frugalbench.specs.cluster_model",
    "selftest": "frugalbench.specs.selftest",
}
"""Workload name to spec module."""
