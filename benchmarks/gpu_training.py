"""Whole trainings on a GPU: their time, their memory, and the likelihoods of the trained models."""

from __future__ import annotations

import copy
import gc
import math
import time
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.contestants import FEATURES, SHAPE
from benchmarks.gpu_works import (
    INITIALISATION_IMAGES,
    WARMUP,
    Key,
    Row,
    Setting,
    attempt,
    captured,
    class_images,
    compiled,
    image_flow,
    make_optimiser_step,
    matmul_precision,
    network_autocast,
    real_images,
    sample,
)
from lunet import ImageFlow, LUNet, RealNVP, pixel_bits
from pipeline.measuring.stopwatch import Call, clock, synchronize

SCORINGS = ("float32", "tf32")


def measure_memory(setting: Setting, keys: Sequence[Key]) -> Iterator[Row]:
    """Yield the most memory that torch allocates during training steps from 8-bit images, and the part in workspaces.

    The workspaces of cuBLAS stay allocated after all else is freed; they depend on the GPU and not on the model.
    """

    def measure(key: Key) -> Iterator[Row]:
        yield sample(key, peak_mib(setting, key))
        gc.collect()
        workspaces = key._replace(figure=key.figure.replace("training peak", "workspaces"))
        yield sample(workspaces, torch.cuda.memory_allocated() / 2**20)

    return attempt(keys, measure)


def peak_mib(setting: Setting, key: Key) -> float:
    """The peak of one key, in MiB; expects that all earlier tensors have been freed."""
    name = key.figure.split()[0]
    torch.cuda.init()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with matmul_precision(key.precision):
        model = image_flow(setting, name).train()
        images = torch.randint(256, (setting.batch_of(name), *SHAPE), dtype=torch.uint8, device=setting.device)
        graph = key.variant == "graph"
        step, _ = make_optimiser_step(
            lambda: model.bits_per_dim(images).mean(), model, setting, key.precision, graph=graph, rate=1e-5
        )
        clock(captured(step) if graph else step, setting.device, WARMUP)
    return torch.cuda.max_memory_allocated() / 2**20


class Trainer:
    """Trains flows of one architecture one after another, each on its own images, with one step function for all.

    The settings are those of the paper's scale: standardised initialisation, Adam with a one-cycle schedule, gradients
    clipped to a norm of 0.1. Images stay on the device as 8-bit integers; each step gathers its batch, dequantises it
    and takes the logit there.
    """

    RATE, CLIP = 1e-3, 0.1

    def __init__(self, setting: Setting, variant: str, precision: str, name: str = "lunet") -> None:
        self._device, self._graph = setting.device, "graph" in variant
        self.model = image_flow(setting, name).train()
        self._batch = torch.zeros((setting.batch_of(name), *SHAPE), dtype=torch.uint8, device=setting.device)
        self._rate = torch.zeros((), device=setting.device)
        bits = self.model.bits_per_dim
        loss = compiled(bits, setting) if "compiled" in variant else bits
        step, self._optimizer = make_optimiser_step(
            lambda: loss(self._batch).mean(), self.model, setting, precision, graph=self._graph, rate=self._rate
        )
        self._optimizer.register_step_pre_hook(self._clip)
        self._step: Call = step
        if self._graph:
            self._step = captured(step)
        else:
            step()
        synchronize(setting.device)

    def _clip(self, *_: object) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.CLIP)

    def initialise(self, images: Tensor) -> None:
        """Initialise the model from images, and reset the optimiser."""
        flow = self.model.flow
        assert isinstance(flow, LUNet | RealNVP)
        flow.standardise_(self.model.preprocess(images[:INITIALISATION_IMAGES])[0])
        for state in self._optimizer.state.values():
            for tensor in state.values():
                tensor.zero_()

    def train(self, images: Tensor, steps: int) -> None:
        """Take steps on images with shape (N, 28, 28), reshuffled in each epoch; its last batch is filled up."""
        size = len(self._batch)
        order: Iterator[Tensor] = iter(())
        images = images.view(-1, *SHAPE)
        for number in range(steps):
            rows = next(order, None)
            if rows is None:
                shuffled = torch.randperm(len(images), device=images.device)
                order = iter(
                    shuffled.repeat(math.ceil(size / len(shuffled)) + 1)[: -(-len(shuffled) // size) * size].split(size)
                )
                rows = next(order)
            torch.index_select(images, 0, rows, out=self._batch)
            self._rate.fill_(one_cycle(number, steps, self.RATE))
            self._step()
        synchronize(self._device)


def one_cycle(number: int, steps: int, peak: float, warmup: float = 0.1) -> float:
    """The learning rate of a step: up from 1/25 of its peak, then down to almost zero, along half cosines."""
    rise = max(1.0, warmup * steps)
    if number < rise:
        return peak * (0.52 - 0.48 * math.cos(math.pi * number / rise))
    return peak * (0.5 + 0.5 * math.cos(math.pi * (number - rise) / max(1.0, steps - rise)))


def train_all(setting: Setting, keys: Sequence[Key]) -> Iterator[Row]:
    """Yield the seconds that training one LU-Net per class takes, and separately those of making the step.

    Also yields the bits per pixel of test images under the models, with the same noise in float32 and in TF32.
    """
    return attempt(keys, partial(_train_classes, setting, class_images(setting)))


def _train_classes(setting: Setting, data: Sequence[tuple[Tensor, Tensor]], key: Key) -> Iterator[Row]:
    torch.manual_seed(0)
    begin = time.perf_counter()
    with matmul_precision(key.precision):
        trainer = Trainer(setting, key.variant, key.precision)
        ready = time.perf_counter()
        training_seconds, bits = 0.0, []
        for images, test in data:
            begun = time.perf_counter()
            trainer.initialise(images)
            trainer.train(images, setting.epochs * -(-len(images) // setting.batch))
            training_seconds += time.perf_counter() - begun
            bits.append(torch.stack([bits_in(precision, trainer.model, test) for precision in SCORINGS]))
    yield sample(key._replace(figure="lunet training set-up"), ready - begin)
    yield sample(key, training_seconds)
    scores = torch.cat(bits, dim=1).double()
    for precision, values in zip(SCORINGS, scores, strict=True):
        yield likelihood(f"lunet, one a class, {key.variant}", key.precision, precision, values, scores[0])


@torch.no_grad()
def bits_in(precision: str, model: ImageFlow, images: Tensor) -> Tensor:
    """Bits per pixel of images, with matrix products in a precision and the same noise in each call."""
    with matmul_precision(precision):
        return model.bits_per_dim(images, generator=torch.Generator(images.device).manual_seed(0))


def likelihoods(setting: Setting, keys: Sequence[Key]) -> Iterator[Row]:
    """Yield the bits per pixel of models on the same images with the same noise, scored in each precision.

    Each model is first trained for some steps in the precision of its key, from the same initialisation.
    ``largest_difference`` is the largest difference of an image's bits per pixel from those in float64 (in `train_all`,
    from those in float32); ``pixels_exact`` is the share of pixels that the inverse restores exactly.
    """
    images, test = real_images(setting)

    def measure(key: Key) -> Iterator[Row]:
        name = key.figure.removesuffix(" likelihood")
        torch.manual_seed(0)
        with matmul_precision(key.precision):
            trainer = Trainer(setting, "eager", key.precision, name)
            trainer.initialise(images)
            trainer.train(images, setting.likelihood_steps)
        yield from score(trainer.model.eval(), test, setting, name, key.precision)

    return attempt(keys, measure)


@torch.no_grad()
def score(model: ImageFlow, test: Tensor, setting: Setting, name: str, trained_in: str) -> Iterator[Row]:
    """Yield the rows of one model, scored in each precision."""
    y, log_slope = model.preprocess(test, torch.Generator(setting.device).manual_seed(0))
    double = copy.deepcopy(model).double().flow
    exact = pixel_bits(double.log_prob(y.double()) + log_slope, FEATURES)
    for precision in ("float64", "float32", "tf32", *(("bfloat16",) if name == "realnvp" else ())):
        flow, rows = (double, y.double()) if precision == "float64" else (model.flow, y)
        with matmul_precision(precision), network_autocast(precision, setting):
            bits = pixel_bits(flow.log_prob(rows) + log_slope, FEATURES)
            restored = model.postprocess(flow.inverse(flow(rows).z))
        pixels_exact = float((restored.flatten(1) == test.flatten(1)).double().mean())
        yield likelihood(name, trained_in, precision, bits, exact, pixels_exact)


def likelihood(
    model: str, trained_in: str, scored_in: str, bits: Tensor, reference: Tensor, pixels_exact: float | None = None
) -> Row:
    """A row on the bits per pixel of images, with their largest difference from a reference."""
    return {
        "kind": "likelihood", "model": model, "trained_in": trained_in, "scored_in": scored_in, "images": len(bits),
        "bits_per_dim": float(bits.mean()), "largest_difference": float((bits - reference).abs().amax()),
        "pixels_exact": pixels_exact,
    }  # fmt: skip
