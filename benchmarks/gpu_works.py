"""The quantities that the GPU benchmark measures, and its training steps, densities and samples in each precision.

Needs torch, numpy and safetensors, but no other library of the project.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.contestants import FEATURES, FLOOR, SHAPE, VECTORS, Contestant, from_flow
from lunet import Flow, ImageFlow, RealNVP
from pipeline.measuring.stopwatch import MINIMUM_ROUNDS, Call, clock, rounds

CLASSES = 10
INITIALISATION_IMAGES = 4096
WARMUP = 3
SUBSET = Path(__file__).parents[1] / "pipeline" / "subset" / "mnist"
Row = dict[str, Any]


class Key(NamedTuple):
    """A figure to measure, the variant of the code, and the precision of its arithmetic."""

    figure: str
    variant: str
    precision: str


@dataclass(frozen=True)
class Figure:
    """A figure's unit, the most that it should be, and the poster's value, in the same unit."""

    unit: str
    target: float | None = None
    poster: float | None = None


# The poster divides the time of all 60,000 images by the batch size; its times for density are converted here.
FIGURES = {
    "lunet step": Figure("ms", 0.12, 1.2),
    "lunet_learned step": Figure("ms"),
    f"{FLOOR} step": Figure("ms"),
    "lunet density": Figure("us an image", 1.0, 158.0),
    "lunet sampling": Figure("us an image", 2.0, 45_150.0),
    "lunet training peak": Figure("MiB allocated", 100.0, 1127.0),
    "lunet workspaces": Figure("MiB allocated"),
    "lunet training": Figure("s", 15.0),
    "lunet training set-up": Figure("s"),
    "realnvp step": Figure("ms", 6.0, 56.0),
    "realnvp density": Figure("us an image", None, 553.0),
    "realnvp sampling": Figure("us an image", None, 1030.0),
    "realnvp training peak": Figure("MiB allocated", None, 3725.0),
    "realnvp workspaces": Figure("MiB allocated"),
}


@dataclass(frozen=True)
class Setting:
    """Device and sizes of a run, and the folder of images, if any.

    Without a folder, each class has ``class_images`` random training images; with one, at most ``most_images``.
    """

    device: str
    data: Path | None = None
    batch: int = 256
    realnvp_batch: int = 128
    many: int = 10_000
    planes: int = 64
    blocks: int = 2
    rounds: int = 30
    seconds: float = 20.0
    in_a_row: int = 20
    classes: int = CLASSES
    class_images: int = 6000
    most_images: int = 10_000
    epochs: int = 40
    likelihood_steps: int = 300
    likelihood_images: int = 1000

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device == "cuda"

    def batch_of(self, name: str) -> int:
        """The batch size of a model's training."""
        return self.realnvp_batch if name == "realnvp" else self.batch


QUICK: dict[str, Any] = {
    "batch": 8, "realnvp_batch": 2, "many": 16, "planes": 2, "blocks": 1, "rounds": MINIMUM_ROUNDS, "in_a_row": 2,
    "classes": 2, "class_images": 20, "most_images": 20, "epochs": 2, "likelihood_steps": 2, "likelihood_images": 8,
}  # fmt: skip


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Compute matrix products and convolutions in TF32 where ``precision`` is tf32, else in full float32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def network_autocast(precision: str, setting: Setting) -> torch.autocast:
    """Autocast to bfloat16, if asked for; it affects only the networks of a RealNVP, and nothing in an LU-Net."""
    return torch.autocast(setting.device, torch.bfloat16, enabled=precision == "bfloat16")


def make_contestant(setting: Setting, name: str) -> Contestant:
    """A model of `VECTORS`, or the paper's RealNVP in the size of the setting, on the setting's device."""
    if name == "realnvp":
        contestant = from_flow(RealNVP(SHAPE, (3, 3, 2), setting.planes, setting.blocks))
    else:
        contestant = VECTORS[name][1]()
    contestant.model.to(setting.device)
    return contestant


def image_flow(setting: Setting, name: str) -> ImageFlow:
    """The flow of that name, of 8-bit images."""
    flow = make_contestant(setting, name).model
    assert isinstance(flow, Flow)
    return ImageFlow(flow, SHAPE)


@torch.no_grad()
def perturb(model: nn.Module) -> None:
    """Add noise to every parameter: a GPU multiplies zeros, as in a new flow, faster than other numbers."""
    for parameter in model.parameters():
        parameter.add_(0.01 * torch.randn_like(parameter))


def class_images(setting: Setting) -> list[tuple[Tensor, Tensor]]:
    """Training and test images of each class, uint8 on the device; random images without a data folder."""
    if setting.data is None:
        generator = torch.Generator().manual_seed(0)
        draw = partial(torch.randint, 256, generator=generator, dtype=torch.uint8)
        pairs = [(draw((setting.class_images, *SHAPE)), draw((100, *SHAPE))) for _ in range(setting.classes)]
    else:
        arrays = {
            name: torch.from_numpy(np.load(setting.data / f"{name}.npy"))
            for name in ("train_images", "train_labels", "test_images", "test_labels")
        }
        pairs = [
            (
                arrays["train_images"][arrays["train_labels"] == label][: setting.most_images],
                arrays["test_images"][arrays["test_labels"] == label][: setting.most_images],
            )
            for label in range(setting.classes)
        ]
    return [(train.to(setting.device), test.to(setting.device)) for train, test in pairs]


def real_images(setting: Setting) -> tuple[Tensor, Tensor]:
    """Training and test images of all classes; without a data folder, those of the bundled subset."""
    if setting.data is not None:
        parts = [torch.from_numpy(np.load(setting.data / f"{name}_images.npy")) for name in ("train", "test")]
    else:
        parts = [
            torch.from_numpy(
                np.frombuffer(gzip.decompress((SUBSET / name).read_bytes()), np.uint8, offset=16).copy()
            ).view(-1, *SHAPE[1:])
            for name in ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz")
        ]
    return parts[0].to(setting.device), parts[1][: setting.likelihood_images].to(setting.device)


def make_optimiser_step(
    loss: Callable[[], Tensor], model: nn.Module, setting: Setting, precision: str, *, graph: bool, rate: float | Tensor
) -> tuple[Callable[[], None], torch.optim.Optimizer]:
    """A training step (forward, backward, fused Adam) and its optimiser."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, fused=True, capturable=graph)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with network_autocast(precision, setting):
            value = loss()
        value.backward()
        optimizer.step()

    return step, optimizer


@dataclass(frozen=True)
class CapturedStep:
    """A step as one CUDA graph; it refers to the step too, which keeps the graph's tensors alive."""

    graph: torch.cuda.CUDAGraph
    step: Call

    def __call__(self) -> None:
        """Replay the step."""
        self.graph.replay()


def captured(step: Call) -> CapturedStep:
    """A step as one CUDA graph, after some steps that allocate what only the first ones allocate."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return CapturedStep(graph, step)


def compiled(function: Callable[..., Tensor], setting: Setting) -> Callable[..., Tensor]:
    """A function compiled into one graph; on a CPU, which only rehearses the run, without generated code."""
    backend = "inductor" if setting.cuda else "aot_eager"
    return torch.compile(function, fullgraph=True, dynamic=False, backend=backend)


def require_same_gradients(
    actual: Callable[[Tensor], Tensor],
    expected: Callable[[Tensor], Tensor],
    x: Tensor,
    parameters: Sequence[Tensor],
    precision: str,
) -> None:
    """Raise `ArithmeticError` if a gradient of two losses differs by more than rounding errors of the precision."""
    references = torch.autograd.grad(expected(x), parameters)
    # The error of a nearly zero gradient is relative to the gradients of all parameters.
    smallest_norm = 1e-4 * torch.stack([grad.norm() for grad in references]).norm()
    pairs = zip(torch.autograd.grad(actual(x), parameters), references, strict=True)
    worst = max(float((grad - ref).norm() / torch.maximum(ref.norm(), smallest_norm)) for grad, ref in pairs)
    if not worst <= (0.1 if precision == "bfloat16" else 0.01):
        raise ArithmeticError(f"compiled gradients are off by {worst:.2g} of their norm")


def make_step(setting: Setting, key: Key) -> Call:
    """One training step of a key's model on a batch of floats, in the key's variant and precision."""
    torch.manual_seed(0)
    name = key.figure.removesuffix(" step")
    contestant = make_contestant(setting, name)
    model, log_prob = contestant.model, contestant.log_prob
    if "channels last" in key.variant:
        model.to(memory_format=torch.channels_last)
    x, graph = torch.randn(setting.batch_of(name), FEATURES, device=setting.device), "graph" in key.variant

    def negative(x: Tensor) -> Tensor:
        return -log_prob(x).mean()

    perturb(model.train())
    loss: Callable[[Tensor], Tensor] = negative
    if "compiled" in key.variant:
        loss = compiled(negative, setting)
        with network_autocast(key.precision, setting):
            require_same_gradients(loss, negative, x, list(model.parameters()), key.precision)
    step, _ = make_optimiser_step(lambda: loss(x), model, setting, key.precision, graph=graph, rate=1e-5)
    return captured(step) if graph else step


def make_evaluation(setting: Setting, key: Key) -> Call:
    """A call that scores or draws many 8-bit images, dequantisation and logit included."""
    torch.manual_seed(0)
    name, work = key.figure.split()
    model = image_flow(setting, name).eval()
    perturb(model)
    images = torch.randint(256, (setting.many, *SHAPE), dtype=torch.uint8, device=setting.device)

    @torch.no_grad()
    def evaluate() -> None:
        with network_autocast(key.precision, setting):
            _ = model.bits_per_dim(images) if work == "density" else model.sample(setting.many)

    return evaluate


def interleave(setting: Setting, keys: Sequence[Key], make: Callable[[Setting, Key], Call]) -> Iterator[Row]:
    """Yield samples of all keys, each once in every round; a key that fails gives one row, and the others go on."""
    calls: dict[Key, Call] = {}

    def prepare(key: Key) -> Iterable[Row]:
        with matmul_precision(key.precision):
            call = make(setting, key)
            clock(call, setting.device, WARMUP)
        calls[key] = call
        return ()

    yield from attempt(keys, prepare)
    for number in rounds(setting.rounds, setting.seconds):
        for key, call in calls.items():
            steps = key.figure.endswith("step")
            with matmul_precision(key.precision):
                milliseconds = clock(call, setting.device, setting.in_a_row if steps else 1).wall
            yield sample(key, milliseconds if steps else 1e3 * milliseconds / setting.many, number)


def attempt(keys: Sequence[Key], measure: Callable[[Key], Iterable[Row]]) -> Iterator[Row]:
    """Yield the rows of all keys; a key that fails gives a row that says why, and the others go on."""
    for key in keys:
        try:
            yield from measure(key)
        except Exception as error:  # of any kind: the other keys do not depend on it
            yield failure(key, f"{type(error).__name__}: {error}".strip().splitlines()[0])


def sample(key: Key, value: float, number: int = 0) -> Row:
    """A row with one value of a figure, in the figure's unit."""
    return {"kind": "sample", **key._asdict(), "round": number, "value": value}


def failure(key: Key, message: str) -> Row:
    """A row that says why a figure could not be measured."""
    return {"kind": "failed", **key._asdict(), "message": message[:500]}
