"""Peak memory of the process, and the GPU memory that the driver reports."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

from pipeline.measuring import memory


class FakeDriver:
    """A fake NVML: the processes that it distinguishes, the number of GPUs, and the memory in use in MiB."""

    NVMLError = OSError

    def __init__(self, processes: dict[int, int], gpus: int, used: int) -> None:
        self.nvmlInit = lambda: None
        self.nvmlDeviceGetHandleByUUID = self.nvmlDeviceGetHandleByIndex = lambda _: None
        self.nvmlDeviceGetComputeRunningProcesses = lambda _: [
            SimpleNamespace(pid=pid, usedGpuMemory=mib * 2**20) for pid, mib in processes.items()
        ]
        self.nvmlDeviceGetCount = lambda: gpus
        self.nvmlDeviceGetMemoryInfo = lambda _: SimpleNamespace(used=used * 2**20)


@pytest.mark.parametrize(
    ("processes", "gpus", "before", "expected"),
    [
        ({os.getpid(): 700, 1: 5}, 1, 100.0, 700),
        ({1: 650}, 1, 100.0, 800),
        ({}, 1, 100.0, 800),
        ({}, 2, None, None),
        ({}, 1, 900.0, None),
    ],
)
def test_a_process_s_memory_on_a_gpu_is_the_driver_s_or_the_growth_of_the_only_gpu(
    monkeypatch: pytest.MonkeyPatch, processes: dict[int, int], gpus: int, before: float | None, expected: float | None
) -> None:
    monkeypatch.setattr(memory, "pynvml", FakeDriver(processes, gpus, 900))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="u"))
    assert memory._gpu_process_mib(torch.device("cuda"), before) == expected
