"""The device of a stage, and the description of the machine beside every result."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil
import pynvml
import torch

from pipeline.core.console import UserError
from pipeline.core.files import sha256
from pipeline.core.git import git
from pipeline.core.params import Params
from pipeline.core.record import Environment

# How the errors of torch's CPU allocator, CUDA, cuBLAS, cuSOLVER and cuDNN mention a lack of memory; all are plain
# RuntimeErrors. cuDNN looks for another algorithm when its workspace does not fit, and in the end finds none.
NO_MEMORY = re.compile(r"can't allocate memory|CUDA error: out of memory|_STATUS_ALLOC_FAILED|unable to find an engine")
# The constants in glibc's malloc.h; mallopt takes C ints.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, RETAINED_BYTES = -1, -3, 2**30


def choose_device(device: str, preset: str | None = None) -> torch.device:
    """The device that is asked for: ``cpu``, ``cuda`` or ``auto``, which is a GPU if there is one.

    Raises:
        UserError: If a GPU is asked for, by ``cuda`` or the paper's preset, and none is available.
    """
    available = torch.cuda.is_available()
    if preset == "paper" and (not available or device == "cpu"):
        raise UserError(
            f"the preset 'paper' needs a CUDA GPU, and none is in use here (device: {device}); "
            "go back with: python -m pipeline.preset laptop"
        )
    if device == "cuda" and not available:
        raise UserError("device: cuda is asked for, but no CUDA GPU is here; auto or cpu are allowed")
    return torch.device("cuda" if available and device != "cpu" else "cpu")


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raise a `MemoryError` with one line of text wherever the block runs out of memory, on any device."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or NO_MEMORY.search(str(error)):
            raise MemoryError((str(error).splitlines() or ["memory does not suffice"])[0]) from None
        raise


@contextmanager
def determinism(params: Params) -> Iterator[None]:
    """Allow only deterministic algorithms in the block, if the parameters ask for it.

    Raises:
        UserError: If an operation in the block has no such algorithm on its device.
    """
    previous = torch.get_deterministic_debug_mode()
    # cuBLAS reads this variable when the GPU is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Not torch.use_deterministic_algorithms, which imports torch's compiler for two seconds; it is unused here.
    torch.set_deterministic_debug_mode("error" if params.deterministic else "default")
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise UserError(
            f"params.yaml has deterministic: true, and {str(error).splitlines()[0]} Set deterministic: false"
        ) from None
    finally:
        torch.set_deterministic_debug_mode(previous)


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of returning it page by page; has no effect with another C library.

    Every training step allocates and frees the same tensors; without page faults it is about 10 % faster.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, RETAINED_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, RETAINED_BYTES)


def describe_environment(device: torch.device) -> Environment:
    """Time, machine, versions and commit, for the record beside every result; the host name only as a digest."""
    commit, dirty = _commit()
    return Environment(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        host=sha256(platform.node().encode())[:8],
        system=f"{platform.system()}-{platform.machine()}",
        processor=_processor(),
        cores=psutil.cpu_count(logical=True) or 1,
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        device=device.type,
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        gpu_driver=_gpu_driver() if device.type == "cuda" else None,
        cuda=torch.version.cuda if device.type == "cuda" else None,
        threads=torch.get_num_threads(),
        python=".".join(map(str, sys.version_info[:3])),
        torch=torch.__version__,
        numpy=np.__version__,
        commit=commit,
        dirty=dirty,
        tf32=device.type == "cuda" and (torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32),
    )


def _processor() -> str:
    """The processor's name; Linux gives it only in a file, and the libraries that read the file take over a second."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def _gpu_driver() -> str | None:
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    return None


def _commit() -> tuple[str | None, bool | None]:
    """The commit, and whether the code differs from it, both None without git; parameters are recorded separately."""
    changes = git("status", "--porcelain", "--", "lunet", "pipeline")
    return git("rev-parse", "HEAD"), None if changes is None else bool(changes)
