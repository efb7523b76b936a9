"""Peak memory of the process, and the GPU memory that the driver reports."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.measuring import memory


class FakeDriver:
    """A fake NVML: the processes that it lists, the number of GPUs, and the memory in use, 100 MiB and later more."""

    NVMLError = OSError

    def __init__(self, processes: dict[int, int | None], gpus: int, after: int) -> None:
        self.after = after
        self.nvmlInit: Callable[[], None] = lambda: None
        self.nvmlDeviceGetHandleByUUID = self.nvmlDeviceGetHandleByIndex = lambda _: None
        self.nvmlDeviceGetComputeRunningProcesses: Callable[..., Any] = lambda _: [
            SimpleNamespace(pid=pid, usedGpuMemory=mib and mib * 2**20) for pid, mib in processes.items()
        ]
        self.nvmlDeviceGetCount = lambda: gpus
        self.nvmlDeviceGetMemoryInfo = lambda _: SimpleNamespace(used=100 * 2**20)


def failing(message: str) -> Callable[..., Any]:
    def fail(*_: Any) -> Any:
        raise FakeDriver.NVMLError(message)

    return fail


def process_memory(monkeypatch: pytest.MonkeyPatch, driver: Any) -> tuple[float | None, str]:
    """The GPU memory of this process and its source, for a call that allocates 800 MiB."""
    monkeypatch.setattr(memory, "pynvml", driver)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="u"))
    before = memory._gpu_used_mib()
    driver.nvmlDeviceGetMemoryInfo = lambda _: SimpleNamespace(used=driver.after * 2**20)
    return memory._gpu_process_mib(torch.device("cuda"), before)


@pytest.mark.parametrize(
    ("processes", "gpus", "after", "mib", "source"),
    [
        ({os.getpid(): 700, 1: 5}, 1, 900, 700, "counted by the driver for the process"),
        ({os.getpid(): 700}, 2, 900, 700, "counted by the driver for the process"),
        ({1: 650}, 1, 900, 800, "growth of the memory in use on the only GPU"),
        ({os.getpid(): None}, 1, 900, 800, "growth of the memory in use on the only GPU"),
        ({}, 2, 900, None, "unknown: the driver does not list the process, and .* of 2 GPUs"),
        ({}, 1, 100, None, "unknown: the driver does not list the process, and .* did not grow"),
    ],
)
def test_a_process_s_memory_on_a_gpu_is_the_driver_s_or_the_growth_of_the_only_gpu(
    monkeypatch: pytest.MonkeyPatch,
    processes: dict[int, int | None],
    gpus: int,
    after: int,
    mib: float | None,
    source: str,
) -> None:
    found, found_source = process_memory(monkeypatch, FakeDriver(processes, gpus, after))
    assert found == mib
    assert re.match(source, found_source)


def test_without_a_driver_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver({os.getpid(): 700}, 1, 900)
    driver.nvmlInit = failing("NVML Shared Library Not Found")
    assert process_memory(monkeypatch, driver) == (
        None,
        "unknown: the driver does not answer (NVML Shared Library Not Found)",
    )


def test_a_driver_that_hides_its_processes_still_knows_the_memory_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver({}, 1, 900)
    driver.nvmlDeviceGetComputeRunningProcesses = failing("Insufficient Permissions")
    assert process_memory(monkeypatch, driver)[0] == 800


def test_the_record_of_a_gpu_s_memory_has_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver({os.getpid(): 700}, 1, 900)
    monkeypatch.setattr(memory, "pynvml", driver)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="u"))
    for name in ("reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda _: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 30 * 2**20)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: 40 * 2**20)
    weighed = memory.weigh(lambda: None, torch.device("cuda"))
    assert (weighed.allocated_peak_mib, weighed.reserved_peak_mib, weighed.gpu_process_mib) == (30, 40, 700)
    assert weighed.gpu_process_source == "counted by the driver for the process"
    on_cpu = memory.weigh(lambda: None, torch.device("cpu"))
    assert on_cpu.gpu_process_source is None
    assert on_cpu.gpu_process_mib is None
