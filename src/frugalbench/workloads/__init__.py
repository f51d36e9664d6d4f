"""One builder file per spec; builders run inside a worker."""

BUILDERS = {
    "machine_peaks": "frugalbench.workloads.machine_peaks",
    "moe_ffn": "frugalbench.workloads.moe_ffn",
    "lm_quality": "frugalbench.workloads.lm_quality",
    "quantized_linear": "frugalbench.workloads.quantized_linear",
    "onnx_model": "frugalbench.workloads.onnx_model",
    "allreduce": "frugalbench.workloads.allreduce",
    "selftest": "frugalbench.workloads.selftest",
    "versus": "frugalbench.workloads.versus",
}
"""Workload name to builder module."""
