"""Devices, memory errors, and the record of a result's environment."""

from __future__ import annotations

import subprocess

import pytest
import torch

from pipeline.core.console import UserError
from pipeline.core.environment import choose_device, describe_environment, memory_errors


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_refused() -> None:
    assert choose_device("auto", "laptop") == torch.device("cpu")
    for device, preset in (("cuda", "laptop"), ("auto", "paper")):
        with pytest.raises(UserError, match="CUDA GPU"):
            choose_device(device, preset)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), MemoryError, "CUDA out of memory."),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            MemoryError,
            "DefaultCPUAllocator: .*tried",
        ),
        (
            RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported at another call"),
            MemoryError,
            "CUDA error: out of memory",
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            MemoryError,
            r"CUDA error: CUBLAS_STATUS_ALLOC_FAILED when .*",
        ),
        (
            RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
            MemoryError,
            "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, .*",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), MemoryError, "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        (
            RuntimeError("GET was unable to find an engine to execute this computation"),
            MemoryError,
            "GET was unable to find an engine to execute this computation",
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
            RuntimeError,
            "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`",
        ),
        (MemoryError(), MemoryError, "memory does not suffice"),
        (RuntimeError("shapes differ"), RuntimeError, "shapes differ"),
        (ValueError("can it?"), ValueError, "can it"),
    ],
)
def test_memory_errors_are_recognised(error: Exception, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=rf"^{message}\??$") as caught, memory_errors():
        raise error
    assert type(caught.value) is kind


def test_the_record_hides_the_host_name() -> None:
    record = describe_environment(torch.device("cpu"))
    assert (record.device, record.gpu, record.torch) == ("cpu", None, torch.__version__)
    name = subprocess.run(["uname", "-n"], capture_output=True, text=True, check=True).stdout.strip()
    assert record.host != name
    assert len(record.host) == 8


def test_tf32_is_of_a_gpu() -> None:
    assert torch.backends.cudnn.allow_tf32
    assert describe_environment(torch.device("cpu")).tf32 is False
