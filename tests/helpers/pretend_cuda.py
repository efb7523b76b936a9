"""A pretend CUDA device, for tests of device placement and of waits on machines without a GPU.

Its tensors say that they are on cuda:0 and keep their values on the CPU. An operation on tensors of both devices is an
error, as on a GPU, and each operation that makes the host wait for a GPU is counted with the line of `lunet` or
`pipeline` that asked for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pretend_tensors import META, Counts, Interception, PretendGenerator, PretendTensor, to_device
from torch import Tensor

# What functions of `torch.cuda` return.
CONSTANTS = {
    "is_available": True, "is_initialized": True, "is_bf16_supported": True, "is_current_stream_capturing": False,
    "device_count": 1, "get_device_name": "Pretend GPU", "get_device_capability": (9, 0),
    "get_device_properties": SimpleNamespace(name="Pretend GPU", uuid="pretend", total_memory=2**36),
    "max_memory_allocated": 2**21, "max_memory_reserved": 2**22, "memory_allocated": 2**20, "memory_reserved": 2**22,
    "mem_get_info": (2**35, 2**36), "_lazy_init": None, "empty_cache": None, "reset_peak_memory_stats": None,
}  # fmt: skip


@contextmanager
def pretend_cuda() -> Iterator[Counts]:
    """Pretend in the block that there is a CUDA device, and count what happens on it.

    Afterwards everything is as before. `torch.compile`, CUDA graphs, streams and events are not pretended.
    """
    create, move = torch.tensor, Tensor.to

    def tensor(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        created = create(data, **options)
        return created if device is None else created.to(device)

    def to(self: Tensor, *args: Any, **options: Any) -> Tensor:
        named = {"device": on_meta(options["device"])} if "device" in options else {}
        return move(self, *map(on_meta, args), **options | named)

    counts = Counts()
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr(PretendTensor, "counts", counts)
        patch.setattr(PretendGenerator, "addresses", {torch.default_generator._cdata})  # type: ignore[attr-defined]
        patch.setattr(torch, "Generator", PretendGenerator)
        patch.setattr(torch, "tensor", tensor)
        patch.setattr(Tensor, "to", to)
        for name, value in CONSTANTS.items():
            patch.setattr(torch.cuda, name, lambda *_, value=value, **__: value)
        patch.setattr(torch.cuda, "default_generators", (torch.default_generator,))
        patch.setattr(torch.cuda, "synchronize", lambda *_: counts.add_wait("synchronize"))
        patch.setattr(torch._C, "_cuda_getDevice", lambda: 0, raising=False)
        for name in ("conv2d", "linear"):
            patch.setattr(torch.nn.functional, name, partial(autocast, getattr(torch.nn.functional, name)))
        stream = SimpleNamespace(is_capturing=lambda: False)
        patch.setattr(torch.accelerator, "current_stream", lambda *_: stream)
        stack.enter_context(torch.serialization.safe_globals([to_device]))
        stack.enter_context(Interception())  # type: ignore[no-untyped-call]
        yield counts


def on_meta(argument: Any) -> Any:
    """The meta device for a CUDA device or its name; anything else as it is."""
    is_device = isinstance(argument, str | torch.device)
    return META if is_device and torch.device(argument).type == "cuda" else argument


def autocast(function: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
    """The result of a function of float32 tensors in the dtype of an autocast for CUDA, which C++ does not see."""
    if not torch.is_autocast_enabled("cuda"):
        return function(*args, **options)
    lower = {torch.float32: torch.get_autocast_dtype("cuda")}
    return function(
        *(arg.to(lower.get(arg.dtype, arg.dtype)) if isinstance(arg, Tensor) else arg for arg in args), **options
    )
