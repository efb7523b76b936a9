"""The times that the stopwatch of the released code would report.

It does not wait for a GPU, and the released code does not check its results, which would wait too. So the flows do not
check theirs here.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lunet import LUNet, triangular, unchecked
from pipeline.measuring.record import Timing
from pipeline.measuring.stopwatch import clock, synchronize
from pipeline.measuring.work import Work

# From the released code: the batch sizes, by which its stopwatch divides; the samples of one call; and the points
# of the spline that inverts the activation. A CPU times only the first CPU_IMAGES images, since all would take minutes.
RELEASED_BATCH = {"lunet": 256, "realnvp": 128, "realnvp_released": 128}
RELEASED_SAMPLES = {"lunet": 100, "realnvp": 64, "realnvp_released": 64}
RELEASED_POINTS = (-1000, 1000.001, 0.001)
CPU_IMAGES = 1024


def time_released_optimizer(work: Work) -> Timing | None:
    """The released stopwatch's time of a step: the first ``optimizer.step()`` alone, without synchronisation."""
    training = work.recipe.training
    if training is None or work.recipe.model.kind not in RELEASED_BATCH:
        return None
    samples = [clock(work.first_update(training), None).wall]
    return Timing(per="step", batch=training.batch_size, samples=samples, precision=training.precision)


def time_released_density(work: Work) -> Timing | None:
    """The released stopwatch's time of the density of an image: a pass over all images divided by the *batch size*.

    The images are loaded one by one in this process, without synchronisation. A CPU gets the first `CPU_IMAGES`, and
    the time of all batches except the first, which is slower, is scaled to all images; ``images`` is the number of
    timed images, ``of`` the number of all images.
    """
    size = RELEASED_BATCH.get(work.recipe.model.kind)
    if size is None:
        return None
    model, total = work.model().eval(), len(work.images)
    count = total if work.device.type == "cuda" else min(total, CPU_IMAGES)
    batches = iter(DataLoader(TensorDataset(work.images[:count]), batch_size=size))

    @torch.no_grad()
    @unchecked()
    def score(batches: Iterable[list[Tensor]]) -> None:
        for (batch,) in batches:
            model.bits_per_dim(batch.to(work.device))

    first, others = clock(partial(score, islice(batches, 1)), None).wall, clock(partial(score, batches), None).wall
    total_ms = first + (others * (total - size) / (count - size) if count > size else 0)
    return Timing(per="image", batch=size, samples=[total_ms / size], images=count, of=total)


def time_released_sampling(work: Work) -> Timing | None:
    """The released stopwatch's time of sampling an image: the first call, without synchronisation, per image.

    LU-Net's activations are inverted on the CPU, each by a newly fitted spline, and its matrices by a general solver;
    see `sample_as_released`. Its layers are standardised first: looking up values in the spline takes longer the
    farther apart they are, and without standardisation they are farther apart than in a trained network.
    """
    count = RELEASED_SAMPLES.get(work.recipe.model.kind)
    if count is None:
        return None
    model = work.model().eval()
    importlib.import_module("scipy.interpolate")  # outside the timed call
    sample = partial(model.sample, count)
    with torch.no_grad(), unchecked():
        if isinstance(model.flow, LUNet):
            model.flow.standardise_(model.preprocess(work.batch(len(work.images)))[0])
            sample = partial(sample_as_released, model.flow, count)
        synchronize(work.device)  # the standardisation is not the released code's
        return Timing(per="image", batch=count, samples=[clock(sample, None).wall / count])


def sample_as_released(flow: LUNet, count: int) -> Tensor:
    """Samples of an LU-Net with leaky softplus, of shape (count, D), computed as in the released code.

    Cost: one spline through 2,000,001 points for each activation, about a second.
    """
    from scipy.interpolate import splev, splrep  # here, so that other quantities do not count its memory

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
