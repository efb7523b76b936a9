"""What the stopwatch of the released code would report."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lunet import LUNet, triangular
from pipeline.measuring.work import Work, unsynchronised
from pipeline.training.objectives import loss_and_bits
from pipeline.training.optimisation import make_optimizer

# The released code's batch sizes, by which its stopwatch divides; its numbers of samples a call; the points to which it
# fits the inverse of the activation; and how many images a CPU is given in place of all, which would take minutes.
RELEASED_BATCH = {"lunet": 256, "realnvp": 128, "realnvp_released": 128}
RELEASED_SAMPLES = {"lunet": 100, "realnvp": 64, "realnvp_released": 64}
RELEASED_POINTS = (-1000, 1000.001, 0.001)
CPU_IMAGES = 1024


def time_released_optimizer(work: Work) -> dict[str, Any] | None:
    """What the released stopwatch calls a step: the first ``optimizer.step()`` alone, not waited for."""
    training = work.recipe.training
    if training is None or work.recipe.model.kind not in RELEASED_BATCH:
        return None
    model, batch = work.model().train(), work.batch(work.training_batch)
    optimizer = make_optimizer(model, training)
    generator = torch.Generator(work.device)
    loss_and_bits(model, batch, generator, training.objective, training.batch_size)[0].backward()
    if training.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
    return {"unit": "ms", "per": "step", "batch": len(batch), "samples": [unsynchronised(optimizer.step)]}


def time_released_density(work: Work) -> dict[str, Any] | None:
    """What the released stopwatch calls the density of an image: a pass over all images over the *batch size*.

    The images are loaded one by one in this process and nothing waits for the device. A CPU is given the first
    `CPU_IMAGES`, and the time of all batches but the first, which is slow for once, is scaled to all images;
    ``images`` says how many were timed, ``of`` how many there are.
    """
    size = RELEASED_BATCH.get(work.recipe.model.kind)
    if size is None:
        return None
    model, total = work.model().eval(), len(work.images)
    count = total if work.device.type == "cuda" else min(total, CPU_IMAGES)
    batches = iter(DataLoader(TensorDataset(work.images[:count]), batch_size=size))

    def one_batch() -> None:
        (batch,) = next(batches)
        model.bits_per_dim(batch.to(work.device))

    def the_others() -> None:
        for _ in range(size, count, size):
            one_batch()

    with torch.no_grad():
        first, others = unsynchronised(one_batch), unsynchronised(the_others)
    passed = first + (others * (total - size) / (count - size) if count > size else 0)
    return {"unit": "ms", "per": "image", "batch": size, "samples": [passed / size], "images": count, "of": total}


def time_released_sampling(work: Work) -> dict[str, Any] | None:
    """What the released stopwatch calls the sampling of an image: the first call, not waited for, over its images.

    LU-Net's activations are inverted on the CPU, each by a spline that is fitted anew, and its matrices by a general
    solver; see `sample_as_released`. Its layers are standardised before: finding values among the spline's points takes
    the longer the farther apart they lie, and without it they lie farther apart than in a trained net.
    """
    count = RELEASED_SAMPLES.get(work.recipe.model.kind)
    if count is None:
        return None
    model = work.model().eval()
    importlib.import_module("scipy.interpolate")  # no part of the call
    with torch.no_grad():
        if isinstance(model.flow, LUNet):
            model.flow.standardise_(model.preprocess(work.batch(len(work.images)))[0])
            sample = unsynchronised(partial(sample_as_released, model.flow, count))
        else:
            sample = unsynchronised(partial(model.sample, count))
    return {"unit": "ms", "per": "image", "batch": count, "samples": [sample / count]}


def sample_as_released(flow: LUNet, count: int) -> Tensor:
    """Samples of an LU-Net with leaky softplus, of shape (count, D), found in the way of the released code.

    Cost: for each activation a spline through 2,000,001 points, about a second.
    """
    from scipy.interpolate import splev, splrep  # here, so that it adds nothing to the memory of other quantities

    weights = flow.layers[0].lu
    x = torch.randn(count, flow.features, dtype=weights.dtype, device=weights.device)
    for layer in reversed(flow.layers):
        if layer.activation is not None:
            arguments = np.arange(*RELEASED_POINTS)
            spline = splrep(layer.activation(torch.from_numpy(arguments))[0].numpy(), arguments, s=0)
            x = torch.from_numpy(splev(x.cpu().numpy(), spline)).to(x)
        lower, upper = triangular.unpack(layer.lu)
        x = torch.linalg.solve(upper, torch.linalg.solve(lower, (x - layer.bias).T)).T
    return x
