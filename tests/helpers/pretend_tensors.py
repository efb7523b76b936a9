"""The tensors, the generators and the rules of a pretend CUDA device; see `pretend_cuda`.

To torch's C++ the tensors are on the meta device, since it does not differentiate on a GPU that is not there. So there
are no meta tensors while the device exists.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

CPU, META, CUDA = torch.device("cpu"), torch.device("meta"), torch.device("cuda", 0)
PRETENDED = ("cuda", "meta")  # types of device
ROOT = Path(__file__).parents[2]
CODE = tuple(f"{ROOT / package}/" for package in ("lunet", "pipeline"))
# Operations of which the host reads a result: a value, the size of the output, or whether there was an error.
WAITING = {
    "_linalg_check_errors", "_linalg_eigh", "_linalg_eigvals", "_linalg_svd", "_local_scalar_dense", "_unique2",
    "bincount", "equal", "linalg_eig", "linalg_lstsq", "masked_select", "nonzero", "repeat_interleave",
    "unique_consecutive", "unique_dim",
}  # fmt: skip
INDEXING = {"_index_put_impl_", "index", "index_put", "index_put_"}
COPYING = {"_to_copy", "copy_"}
# Operations that, like elementwise ones, accept tensors on the CPU that are scalars.
ACCEPTING_SCALARS = {
    "_fused_adam_",
    "_fused_adamw_",
    "_fused_sgd_",
    "fill_",
    "index_put_",
    "masked_fill",
    "masked_fill_",
}


class MixedDevicesError(RuntimeError):
    """Raised for an operation on both devices which a GPU refuses, or which copies an index to it."""


@dataclass
class Counts:
    """How often the host waited, by operation and place, and how often the device computed, by operation."""

    waits: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def of_block(self) -> Iterator[Counts]:
        """The counts of the block alone; they are filled in when it ends."""
        waits, operations, block = self.waits.copy(), self.operations.copy(), Counts()
        yield block
        block.waits, block.operations = self.waits - waits, self.operations - operations

    def add_wait(self, operation: str) -> None:
        """Count a wait at the innermost line of `lunet` or `pipeline` that is running."""
        frame: FrameType | None = sys._getframe()
        while frame is not None and not frame.f_code.co_filename.startswith(CODE):
            frame = frame.f_back
        place = "outside lunet and pipeline"
        if frame is not None:
            place = f"{Path(frame.f_code.co_filename).relative_to(ROOT).as_posix()}:{frame.f_lineno}"
        self.waits[f"{place} {operation}"] += 1


class PretendTensor(Tensor):
    """A tensor that says it is on cuda:0, and the tensor on the CPU that has its values."""

    counts: ClassVar[Counts] = Counts()
    on_cpu: Tensor
    device, is_cuda, is_meta = CUDA, True, False
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, values: Tensor) -> PretendTensor:
        tensor: PretendTensor = Tensor._make_wrapper_subclass(
            cls, values.size(), values.stride(), values.storage_offset(), dtype=values.dtype, device=META
        )
        tensor.on_cpu = values
        return tensor

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return compute(func, args, kwargs or {})

    def __repr__(self, **options: Any) -> str:  # type: ignore[override]
        return f"PretendTensor({self.on_cpu})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return to_device, (self.detach().cpu(),)

    def new_tensor(self, data: Any, **options: Any) -> Tensor:  # type: ignore[override]
        defaults: dict[str, Any] = {"dtype": self.dtype, "device": self.device}
        return torch.tensor(data, **defaults | options)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    data = property(Tensor.detach)  # cannot be set

    # With these two methods `Module.to` keeps the identity of parameters, as it does with a GPU.
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["on_cpu"], None

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, Tensor], *_: object) -> PretendTensor:
        return PretendTensor(parts["on_cpu"])


class PretendGenerator(torch.Generator):
    """A generator on the CPU that says it is on the device that was asked for."""

    addresses: ClassVar[set[int]] = set()  # of those on cuda:0, since torch hands on no Python object

    def __new__(cls, device: Any = "cpu") -> PretendGenerator:
        generator = super().__new__(cls)
        on_gpu = torch.device(device).type == "cuda"
        (cls.addresses.add if on_gpu else cls.addresses.discard)(generator._cdata)  # type: ignore[attr-defined]
        return generator

    def __init__(self, device: Any = "cpu") -> None:
        """Nothing, since the generator below is on the CPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA if self._cdata in self.addresses else CPU  # type: ignore[attr-defined]


class Interception(TorchDispatchMode):
    """Computes every operation in a block as `compute` says, also those that create tensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def to_device(values: Tensor) -> Tensor:
    """A tensor of a checkpoint, on the pretend device again."""
    return values.to(CUDA)


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The result of an operation, on cuda:0 if an argument is there or if the operation is told so."""
    name, tensors = func.overloadpacket.__name__, tensors_in((args, kwargs))
    on_gpu = [tensor for tensor in tensors if isinstance(tensor, PretendTensor)]
    to_gpu = kwargs["device"].type in PRETENDED if kwargs.get("device") else bool(on_gpu)
    if not on_gpu and not to_gpu:
        return func(*args, **kwargs)
    refuse_mixed(func, name, args, kwargs, tensors)
    PretendTensor.counts.operations[name] += 1
    if waits(name, args, kwargs, crosses=len(on_gpu) < len(tensors) or not to_gpu):
        PretendTensor.counts.add_wait(name)
    options = {option: value for option, value in (("device", CPU), ("pin_memory", False)) if kwargs.get(option)}
    result = func(*each(values_of, args), **each(values_of, kwargs | options))
    # What is computed in place is returned as the object that it was.
    arguments = {id(values_of(tensor)): tensor for tensor in tensors}

    def placed(value: Any) -> Any:
        if id(value) in arguments:
            return arguments[id(value)]
        return PretendTensor(value) if isinstance(value, Tensor) and to_gpu else value

    return each(placed, result)


def waits(name: str, args: Any, kwargs: dict[str, Any], *, crosses: bool) -> bool:
    """Whether the host waits for the device; ``crosses`` says that the operation involves both."""
    if name in COPYING:
        return crosses and not (kwargs.get("non_blocking") or args[2:3] == (True,))
    masks = name in INDEXING and any(index.dtype in (torch.bool, torch.uint8) for index in tensors_in(args[1]))
    return masks or name in WAITING


def refuse_mixed(func: Any, name: str, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> None:
    """Raise `MixedDevicesError` unless an operation is a copy, or its tensors and its generator are all on cuda:0."""
    strangers = [tensor for tensor in tensors if not isinstance(tensor, PretendTensor)]
    accepts_scalars = torch.Tag.pointwise in func.tags or name in ACCEPTING_SCALARS or name.startswith("_foreach_")
    writes_stranger = func._schema.is_mutable and any(args[0] is tensor for tensor in strangers)
    if accepts_scalars and not writes_stranger:
        strangers = [tensor for tensor in strangers if tensor.dim()]
    if strangers and name not in COPYING:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in strangers)
        raise MixedDevicesError(f"{name} is called with tensors on cuda:0 and others on cpu, with the shapes {shapes}")
    generator = kwargs.get("generator")
    if generator is not None and generator._cdata not in PretendGenerator.addresses:
        raise MixedDevicesError(f"{name} is called on cuda:0 with a generator on cpu")


def each(function: Callable[[Any], Any], value: Any) -> Any:
    """Nested lists, tuples and dictionaries with ``function`` of everything that they contain."""
    if isinstance(value, list | tuple):
        return type(value)([each(function, item) for item in value])
    if isinstance(value, dict):
        return {key: each(function, item) for key, item in value.items()}
    return function(value)


def tensors_in(value: Any) -> list[Tensor]:
    contents: list[Any] = []
    each(contents.append, value)
    return [content for content in contents if isinstance(content, Tensor)]


def values_of(value: Any) -> Any:
    """The tensor on the CPU that has the values of a pretend one; anything else as it is."""
    return value.on_cpu if isinstance(value, PretendTensor) else value
