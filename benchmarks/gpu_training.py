"""Whole trainings on a GPU: their time, their memory, and the likelihoods of what they have trained."""

from __future__ import annotations

import copy
import gc
import math
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.contestants import FEATURES, SHAPE
from benchmarks.gpu_works import (
    FLOWS,
    START_IMAGES,
    WARMUP,
    Call,
    Key,
    Row,
    Setting,
    captured,
    class_images,
    compiled,
    failure,
    networks_in,
    products_in,
    real_images,
    stepper,
    synchronize,
)
from lunet import ImageFlow, LUNet, RealNVP, pixel_bits


def weigh(setting: Setting, keys: Sequence[Key]) -> Iterator[Row]:
    """The most that torch has allocated during training steps from 8-bit images, and what of it is workspaces.

    Those of cuBLAS stay when all else has been freed; they depend on the GPU and not on the model.
    """
    for key in keys:
        try:
            peak = peak_mib(setting, key)
        except Exception as error:  # as above
            yield failure(key, error)
        else:
            gc.collect()
            kept = key._replace(figure=key.figure.replace("training peak", "workspaces"))
            for of, value in ((key, peak), (kept, torch.cuda.memory_allocated() / 2**20)):
                yield {"kind": "sample", **of._asdict(), "round": 0, "value": value}


def peak_mib(setting: Setting, key: Key) -> float:
    """That of one key; everything else has been freed before."""
    name = key.figure.split()[0]
    size = setting.realnvp_batch if name == "realnvp" else setting.batch
    torch.cuda.init()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with products_in(key.precision):
        model = ImageFlow(FLOWS[name](setting), SHAPE).train()
        images = torch.randint(256, (size, *SHAPE), dtype=torch.uint8, device=setting.device)
        graph = key.variant == "graph"
        step, _ = stepper(
            lambda: model.bits_per_dim(images).mean(), model, setting, key.precision, graph=graph, rate=1e-5
        )
        call = captured(step) if graph else step
        for _ in range(WARMUP):
            call()
        torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**20


class Trainer:
    """Trains LU-Nets of one architecture one after the other, each from its own images, with one step made for all.

    The settings are those of the paper's scale: from standardised layers, Adam with a one-cycle schedule, gradients
    clipped to a norm of 0.1. Images stay on the device as 8-bit numbers; each step gathers its batch, dequantises it
    and takes the logit there.
    """

    RATE, CLIP = 1e-3, 0.1

    def __init__(self, setting: Setting, variant: str, precision: str, make: str = "lunet", size: int = 0) -> None:
        self._setting, self._graph = setting, "graph" in variant
        self.model = ImageFlow(FLOWS[make](setting), SHAPE).train()
        self._batch = torch.zeros((size or setting.batch, *SHAPE), dtype=torch.uint8, device=setting.device)
        self._rate = torch.zeros((), device=setting.device)
        bits = self.model.bits_per_dim
        loss = compiled(bits, setting) if "compiled" in variant else bits
        step, self._optimizer = stepper(
            lambda: loss(self._batch).mean(), self.model, setting, precision, graph=self._graph, rate=self._rate
        )
        self._optimizer.register_step_pre_hook(self._clip)
        self._step: Call = step
        if self._graph:
            self._step = captured(step)
        else:
            step()
        synchronize(setting)

    def _clip(self, *_: object) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.CLIP)

    def start(self, images: Tensor) -> None:
        """Set the model from images, and the optimiser to its beginning."""
        sample, flow = self.model.preprocess(images[:START_IMAGES])[0], self.model.flow
        assert isinstance(flow, LUNet | RealNVP)
        flow.standardise_(sample)
        for state in self._optimizer.state.values():
            for tensor in state.values():
                tensor.zero_()

    def run(self, images: Tensor, steps: int) -> None:
        """Take steps on images with shape (N, 28, 28), in a new order in each epoch, its last batch filled up."""
        size = len(self._batch)
        order: Iterator[Tensor] = iter(())
        images = images.view(-1, *SHAPE)
        for number in range(steps):
            rows = next(order, None)
            if rows is None:
                mixed = torch.randperm(len(images), device=images.device)
                order = iter(
                    mixed.repeat(math.ceil(size / len(mixed)) + 1)[: -(-len(mixed) // size) * size].split(size)
                )
                rows = next(order)
            torch.index_select(images, 0, rows, out=self._batch)
            self._rate.fill_(one_cycle(number, steps, self.RATE))
            self._step()
        synchronize(self._setting)


def one_cycle(number: int, steps: int, peak: float, warmup: float = 0.1) -> float:
    """The learning rate of a step: up from a 25th of its peak, and down to nearly nothing, along half cosines."""
    rise = max(1.0, warmup * steps)
    if number < rise:
        return peak * (0.52 - 0.48 * math.cos(math.pi * number / rise))
    return peak * (0.5 + 0.5 * math.cos(math.pi * (number - rise) / max(1.0, steps - rise)))


def train_all(setting: Setting, keys: Sequence[Key]) -> Iterator[Row]:
    """Seconds of the training of one LU-Net a class; what it takes to make the step is told apart.

    Also the bits per pixel of test images under the models, with the same noise in float32 and in TF32.
    """
    data = class_images(setting)
    for key in keys:
        set_up = key._replace(figure="lunet training set-up")
        try:
            torch.manual_seed(0)
            begin = time.perf_counter()
            with products_in(key.precision):
                trainer = Trainer(setting, key.variant, key.precision)
                ready = time.perf_counter()
                spent, bits = 0.0, []
                scorings = ("float32", "tf32")
                for images, test in data:
                    begun = time.perf_counter()
                    trainer.start(images)
                    trainer.run(images, setting.epochs * -(-len(images) // setting.batch))
                    spent += time.perf_counter() - begun
                    bits.append(torch.stack([bits_in(precision, trainer.model, test) for precision in scorings]))
        except Exception as error:  # as above
            yield failure(key, error)
            continue
        yield {"kind": "sample", **set_up._asdict(), "round": 0, "value": ready - begin}
        yield {"kind": "sample", **key._asdict(), "round": 0, "value": spent}
        found = torch.cat(bits, dim=1).double()
        for precision, own in zip(scorings, found, strict=True):
            yield {
                "kind": "likelihood", "model": f"lunet, one a class, {key.variant}", "trained_in": key.precision,
                "scored_in": precision, "images": len(own), "bits_per_dim": float(own.mean()),
                "largest_difference": float((own - found[0]).abs().amax()), "pixels_exact": None,
            }  # fmt: skip
        del trainer


@torch.no_grad()
def bits_in(precision: str, model: ImageFlow, images: Tensor) -> Tensor:
    """Bits per pixel of images with products in an arithmetic, with the same noise in each call."""
    with products_in(precision):
        return model.bits_per_dim(images, generator=torch.Generator(images.device).manual_seed(0))


def likelihoods(setting: Setting, keys: Sequence[Key]) -> Iterator[Row]:
    """Bits per pixel of the same models on the same images with the same noise, scored in each arithmetic.

    The models have been trained for some steps in each arithmetic too, from the same start. ``largest_difference`` is
    that of an image's bits per pixel to those in float64 (in `train_all`, in float32); ``pixels_exact`` the share of
    pixels that comes back.
    """
    images, test = real_images(setting)
    for key in keys:
        name = key.figure.removesuffix(" likelihood")
        try:
            torch.manual_seed(0)
            with products_in(key.precision):
                size = setting.realnvp_batch if name == "realnvp" else setting.batch
                trainer = Trainer(setting, "eager", key.precision, name, size)
                trainer.start(images)
                trainer.run(images, setting.likelihood_steps)
            yield from score(trainer.model.eval(), test, setting, name, key.precision)
        except Exception as error:  # as above
            yield failure(key, error)


@torch.no_grad()
def score(model: ImageFlow, test: Tensor, setting: Setting, name: str, trained_in: str) -> Iterator[Row]:
    """The rows of one model."""
    y, log_slope = model.preprocess(test, torch.Generator(setting.device).manual_seed(0))
    double = copy.deepcopy(model).double().flow
    exact = pixel_bits(double.log_prob(y.double()) + log_slope, FEATURES)
    for precision in ("float64", "float32", "tf32", *(("bfloat16",) if name == "realnvp" else ())):
        flow, rows = (double, y.double()) if precision == "float64" else (model.flow, y)
        with products_in(precision), networks_in(precision, setting):
            bits = pixel_bits(flow.log_prob(rows) + log_slope, FEATURES)
            back = model.postprocess(flow.inverse(flow(rows).z))
        yield {
            "kind": "likelihood", "model": name, "trained_in": trained_in, "scored_in": precision, "images": len(test),
            "bits_per_dim": float(bits.mean()), "largest_difference": float((bits - exact).abs().amax()),
            "pixels_exact": float((back.flatten(1) == test.flatten(1)).double().mean()),
        }  # fmt: skip
