"""One builder file per spec; builders run inside a worker."""

BUILDERS = {
    "machine_peaks": "frugalbench.workloads.machine_peaks",
    "moe_ffn": "frugalbench.workloads.moe_ffn",
    "lm_quality": "frugalbench.workloads.lm_quality",
    "quantized_linear": "frugalbench.workloads.quantized_linear",
    "quantized_model": "frugalbench.workloads.quantized_model",
    "model_decode": "frugalbench.workloads.model_decode",
    "onnx_model": "frugalbench.workloads.onnx_model",
    "onnx_conformance": "frugalbench.workloads.onnx_conformance",
    "onnx_graphs": "frugalbench.workloads.onnx_graphs",
    "onnx_task": "frugalbench.workloads.onnx_task",
    "allreduce": "frugalbench.workloads.allreduce",
    "expert_parallel": "frugalbench.workloads.expert_parallel",
    "emulated_network": "frugalbench.workloads.emulated_network",
    "local_steps": "frugalbench.workloads.local_steps",
    "foreign_device": "frugalbench.workloads.foreign_device",
    "kernel_tax": "frugalbench.workloads.kernel_tax",
    "selftest": "frugalbench.workloads.selftest",
    "versus": "frugalbench.workloads.versus",
}
"""Workload name to builder module."""
