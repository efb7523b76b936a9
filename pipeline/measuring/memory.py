"""Peak memory of a process and of its GPU."""

from __future__ import annotations

import os
import resource
import sys
from contextlib import suppress

import psutil
import pynvml
import torch

from pipeline.measuring.record import Memory
from pipeline.measuring.stopwatch import Call, synchronize

MIB = 2**20


def weigh(call: Call, device: torch.device) -> Memory:
    """Memory of the process in MiB, before the call and at the peak; on a GPU also by its allocator and its driver."""
    start, on_gpu = psutil.Process().memory_info().rss, device.type == "cuda"
    used = _gpu_used_mib() if on_gpu else ""
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    call()
    synchronize(device)
    # In bytes on macOS, in KiB on Linux.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    gpu_process_mib, source = _gpu_process_mib(device, used) if on_gpu else (None, None)
    return Memory(
        process_start_mib=round(start / MIB, 2),
        process_peak_mib=round(peak / MIB, 2),
        allocated_peak_mib=torch.cuda.max_memory_allocated(device) / MIB if on_gpu else None,
        reserved_peak_mib=torch.cuda.max_memory_reserved(device) / MIB if on_gpu else None,
        gpu_process_mib=gpu_process_mib,
        gpu_process_source=source,
    )


def _gpu_process_mib(device: torch.device, used_before: float | str) -> tuple[float | None, str]:
    """The GPU memory of this process in MiB, the CUDA context included, and its source; or None, and the reason.

    In a container the driver often cannot distinguish processes. Then this is the growth of the memory in use on the
    machine's only GPU, which is the same if nothing else runs there.
    """
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.pid == os.getpid() and process.usedGpuMemory is not None:
                return float(process.usedGpuMemory) / MIB, "counted by the driver for the process"
    used = _gpu_used_mib()
    for figure in (used_before, used):
        if isinstance(figure, str):
            return None, f"unknown: {figure}"
    growth = float(used) - float(used_before)
    if growth <= 0:
        return None, "unknown: the driver does not list the process, and the memory in use on the GPU did not grow"
    return growth, "growth of the memory in use on the only GPU, as the driver does not list the process"


def _gpu_used_mib() -> float | str:
    """The memory in use on the machine's only GPU, in MiB, or why it is not known."""
    try:
        pynvml.nvmlInit()
        if (count := pynvml.nvmlDeviceGetCount()) > 1:
            return f"the driver does not list the process, and the memory in use is that of {count} GPUs"
        return float(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used) / MIB
    except pynvml.NVMLError as error:
        return f"the driver does not answer ({error})"
