"""The training of one model: optimisation steps, validation, and the best weights."""

from __future__ import annotations

import copy
import csv
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lunet import ImageFlow, NonFiniteError, ReleasedRealNVP
from pipeline.core.console import say
from pipeline.core.environment import (
    is_out_of_memory,
)
from pipeline.core.files import without_paths
from pipeline.core.params import Recipe, Training
from pipeline.core.progress import Progress
from pipeline.training.checkpoints import Checkpoint, random_state, restore_random_state
from pipeline.training.divergence import DivergedError, DivergenceGuard
from pipeline.training.models import initialise_
from pipeline.training.objectives import infinite_pixels
from pipeline.training.optimisation import make_optimizer, make_schedule, optimise

HISTORY = [
    "model", "step", "epoch", "seconds", "learning_rate", "train_bits_per_dim", "holdout_bits_per_dim",
    "smallest_diagonal", "condition", "latent_error", "pixels_exact",
]  # fmt: skip
DIAGNOSED_IMAGES = 100  # held-out images in the round trip of each validation
CHECK_EVERY = 20  # steps; reading a loss makes the CPU wait for the GPU
SCORING_BATCH = 128  # images; larger batches exceed a CPU's caches


@dataclass
class Fit:
    """How the fit of one model went; ``status`` is complete, diverged or out_of_memory.

    ``infinite_pixels`` counts the pixels that the released RealNVP's preprocessing would have made infinite; see
    `pipeline.training.objectives.infinite_pixels`.
    """

    train_images: int
    holdout_images: int
    status: str = "complete"
    message: str | None = None
    epochs: float | None = None
    steps: int | None = None
    seconds: float = 0.0
    best_epoch: float | None = None
    best_step: int | None = None
    best_holdout_bits_per_dim: float | None = None
    infinite_pixels: int | None = None
    history: list[dict[str, float | None]] = field(default_factory=list, repr=False)


def fit(
    model: ImageFlow,
    recipe: Recipe,
    images: Tensor,
    test: Tensor,
    device: torch.device,
    seed: int,
    name: str,
    checkpoint: Checkpoint,
) -> Fit:
    """Fit one model to uint8 images of shape (N, H, W), in place; record divergence and lack of memory, not raise them.

    ``test`` is used only if the recipe selects the weights on the test set.

    Raises:
        UserError: If the images cannot determine the model's initialisation.
    """
    generator = torch.Generator(device).manual_seed(seed)
    train_images, holdout = split(images, test, recipe.training, seed)
    result = Fit(train_images=len(train_images), holdout_images=len(holdout))
    saved = checkpoint.read()
    begin = time.perf_counter()
    try:
        model.to(device)
        train_images, holdout = train_images.to(device), holdout.to(device)
        if saved is None:
            initialise_(model, recipe, train_images, generator)
            result.seconds = time.perf_counter() - begin
        else:
            model.load_state_dict(saved["model"])
            result = Fit(**saved["fit"])
            if saved["descent"] is None:
                say(f"{name}: {result.status} already, taken from its checkpoint")
                return result
        if recipe.training is not None:
            descent = None if saved is None else saved["descent"]
            descend(model, recipe.training, train_images, holdout, generator, name, result, checkpoint, descent)
    except DivergedError as error:
        result.status, result.message = "diverged", without_paths(str(error))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        result.status, result.message = "out_of_memory", without_paths(str(error).splitlines()[0])
    if result.status != "complete":
        say(f"{name}: {result.status}: {result.message}")
    if result.status != "out_of_memory":
        checkpoint.write({"fit": asdict(result), "model": model.state_dict(), "descent": None}, f"{name} is trained")
    return result


def split(images: Tensor, test: Tensor, training: Training | None, seed: int) -> tuple[Tensor, Tensor]:
    """The training images, in a random order, and the held-out images, on which the best weights are selected."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    if training is not None and training.holdout == "test":
        return images[order], test
    holdout_size = 0 if training is None else max(1, round(training.holdout * len(images)))
    return images[order[holdout_size:]], images[order[:holdout_size]]


class HoldoutTracker:
    """Evaluates a model on the held-out images, records the training curve, and keeps the ``best`` weights.

    Args:
        model: The model in training.
        holdout: The held-out images, uint8, with shape (N, H, W).
        per_epoch: Steps in an epoch.
        result: The fit that receives the curve and the best bits per dimension.
    """

    def __init__(self, model: ImageFlow, holdout: Tensor, per_epoch: int, result: Fit) -> None:
        self._model, self._holdout, self._per_epoch, self._result = model, holdout, per_epoch, result
        self.best: dict[str, Any] = {}

    def validate(self, step: int, learning_rate: float, train_bits: float | None) -> float:
        """The held-out bits per dimension after a step; adds a point to the curve.

        Raises:
            DivergedError: If it is not finite.
        """
        result = self._result
        try:
            holdout_bits = score(self._model, self._holdout)
            diagnosis = diagnose(self._model, self._holdout[:DIAGNOSED_IMAGES])
        except NonFiniteError as error:
            raise DivergedError(f"held-out images fail after step {step}: {error}") from None
        epoch = round(step / self._per_epoch, 4)
        point = (step, epoch, round(result.seconds, 3), learning_rate, train_bits, holdout_bits, *diagnosis)
        result.history.append(dict(zip(HISTORY[1:], point, strict=True)))
        if result.best_holdout_bits_per_dim is None or holdout_bits < result.best_holdout_bits_per_dim:
            result.best_holdout_bits_per_dim, result.best_step, result.best_epoch = holdout_bits, step, epoch
            self.best = copy.deepcopy(self._model.state_dict())
        return holdout_bits

    def restore_best(self) -> None:
        """Load the best weights into the model."""
        self._model.load_state_dict(self.best)


def descend(
    model: ImageFlow,
    training: Training,
    images: Tensor,
    holdout: Tensor,
    generator: torch.Generator,
    name: str,
    result: Fit,
    checkpoint: Checkpoint,
    saved: Mapping[str, Any] | None = None,
) -> None:
    """Take the recipe's optimisation steps and leave the model at its best held-out weights.

    With ``saved``, the state in a checkpoint, training resumes there as if it had never stopped.

    Raises:
        DivergedError: When a loss is not finite.
    """
    descent = Descent(model, training, images, holdout, generator, result)
    if saved is None:
        descent.validate()
    else:
        descent.restore(saved)
        say(f"{name}: goes on after step {descent.done}")
    model.train()
    note, clock = f"held out {descent.holdout_bits:.3f}", Clock(result)
    with (
        Progress(name, descent.steps, descent.done) as progress,
        DivergenceGuard(model, descent.optimizer, generator, descent.done) as guard,
    ):
        while descent.done < descent.steps:
            descent.step(guard)
            due, validates = checkpoint.is_due(), descent.done in descent.validation_steps
            if due or validates or descent.done % CHECK_EVERY == 0:
                mean = descent.losses.mean(descent.done)
                note = f"{mean:.3f} bits/dim, held out {descent.holdout_bits:.3f}"
            if validates:
                clock.stop()
                descent.validate(mean)
                clock.start()
            progress.step(note)
            if due:
                clock.stop()
                state = {"fit": asdict(result), "model": model.state_dict(), "descent": descent.state()}
                checkpoint.write(state, f"{name} after step {descent.done} of {descent.steps}")
                clock.start()
    descent.finish()


class Clock:
    """Adds the optimisation time to a fit, without validation and checkpoints; starts when it is made."""

    def __init__(self, result: Fit) -> None:
        self._result = result
        self.start()

    def start(self) -> None:
        """Start a timed interval."""
        self._begin = time.perf_counter()

    def stop(self) -> None:
        """Add the time since the last start to the fit."""
        self._result.seconds += time.perf_counter() - self._begin


class Descent:
    """The optimisation of a model, step by step; the next step depends only on its `state` and the model's.

    Attributes:
        steps: The number of optimisation steps.
        done: The number of completed steps.
        validation_steps: The steps after which the model is evaluated on the held-out images.
        holdout_bits: The held-out bits per dimension at the last validation.
        losses: The training losses since the last validation.

    Args:
        model: The model.
        training: The settings of the training.
        images: The training images, uint8, with shape (N, H, W).
        holdout: The held-out images, uint8, with shape (M, H, W), on which the best weights are selected.
        generator: The source of the order of the images and of each step's noise.
        result: The record of the fit.
    """

    def __init__(
        self,
        model: ImageFlow,
        training: Training,
        images: Tensor,
        holdout: Tensor,
        generator: torch.Generator,
        result: Fit,
    ) -> None:
        self._model, self._training, self._images, self._generator = model, training, images, generator
        self._result, self._counts_infinite_pixels = result, isinstance(model.flow, ReleasedRealNVP)
        self._per_epoch = math.ceil(len(images) / training.batch_size)
        self.steps, self.done, self.holdout_bits = max(1, round(training.epochs * self._per_epoch)), 0, math.nan
        indices = range(1, training.validations + 1)
        self.validation_steps = {round(self.steps * index / training.validations) for index in indices} | {self.steps}
        self._tracker = HoldoutTracker(model, holdout, self._per_epoch, result)
        self.optimizer = make_optimizer(model, training)
        self._schedule = make_schedule(self.optimizer, training, self.steps, self._per_epoch)
        self._order = torch.empty(0, dtype=torch.int64, device=images.device)
        self.losses = Losses(torch.zeros((), device=images.device))
        self._infinite_pixels = torch.zeros((), dtype=torch.int64, device=images.device)

    def state(self) -> dict[str, Any]:
        """The tensors and plain values that `restore` takes."""
        return {
            "step": self.done,
            "order": self._order,
            "best": self._tracker.best,
            "losses": self.losses.state(),
            "infinite_pixels": self._infinite_pixels,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "random": random_state(self._generator),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state` returned; the caller restores the model and the fit first."""
        self.done, self._order, self._tracker.best = saved["step"], saved["order"], saved["best"]
        self.losses, self._infinite_pixels = Losses(*saved["losses"]), saved["infinite_pixels"]
        self.optimizer.load_state_dict(saved["optimizer"])
        self._schedule.load_state_dict(saved["schedule"])
        restore_random_state(self._generator, saved["random"])
        self.holdout_bits = float(self._result.history[-1]["holdout_bits_per_dim"] or math.nan)

    def step(self, guard: DivergenceGuard) -> None:
        """Take the next step, on the next batch; the images are shuffled anew in each epoch."""
        position = self.done % self._per_epoch
        if position == 0:
            self._order = torch.randperm(len(self._images), generator=self._generator, device=self._images.device)
        size = self._training.batch_size
        batch = self._images[self._order[position * size : (position + 1) * size]]
        self.losses.add(guard.take(self._optimise, batch))
        if self._counts_infinite_pixels:
            self._infinite_pixels += infinite_pixels(batch, self._generator)
        self._schedule.step()
        self.done += 1

    def _optimise(self, batch: Tensor) -> Tensor:
        return optimise(self._model, self.optimizer, batch, self._generator, self._training)

    def validate(self, train_bits: float | None = None) -> None:
        """Evaluate on the held-out images; ``train_bits`` is the mean training loss since the last validation.

        Raises:
            DivergedError: If the held-out bits per dimension are not finite.
        """
        self.holdout_bits = self._tracker.validate(self.done, float(self._schedule.get_last_lr()[0]), train_bits)
        self.losses = Losses(torch.zeros((), device=self._images.device))

    def finish(self) -> None:
        """Load the best weights into the model and record the numbers of epochs and steps."""
        self._result.epochs, self._result.steps = round(self.steps / self._per_epoch, 4), self.steps
        self._result.infinite_pixels = int(self._infinite_pixels) if self._counts_infinite_pixels else None
        self._tracker.restore_best()


class Losses:
    """The mean of losses, summed on their device so that no step waits for the sum."""

    def __init__(self, total: Tensor, count: int = 0) -> None:
        self._sum, self._count = total, count

    def add(self, loss: Tensor) -> None:
        """Add one loss."""
        self._sum, self._count = self._sum + loss, self._count + 1

    def state(self) -> tuple[Tensor, int]:
        """The arguments from which this object can be made again."""
        return self._sum, self._count

    def mean(self, step: int) -> float:
        """The mean so far; raises a `DivergedError` that names the step if it is not finite."""
        mean = float(self._sum) / self._count
        if not math.isfinite(mean):
            raise DivergedError(f"the training loss is {mean} by step {step}")
        return mean


@torch.no_grad()
def score(model: ImageFlow, images: Tensor) -> float:
    """The mean bits per dimension of images, with the same noise at every call."""
    generator = torch.Generator(images.device).manual_seed(0)
    was_training = model.training
    model.eval()
    bits = torch.cat([model.bits_per_dim(batch, generator=generator) for batch in images.split(SCORING_BATCH)])
    model.train(was_training)
    return float(bits.mean())


def diagnose(model: ImageFlow, images: Tensor) -> tuple[float | None, float | None, float | None, float | None]:
    """Smallest diagonal entry, largest condition number, latent error, and share of pixels exact after a round trip.

    All four are None if the inverse overflows, as it does at the released code's initialisation.
    """
    was_training = model.training
    try:
        diagnostics = model.eval().diagnostics(images)
    except NonFiniteError:
        return None, None, None, None
    finally:
        model.train(was_training)
    smallest = min((layer.smallest_diagonal for layer in diagnostics.layers), default=None)
    condition = max((layer.condition for layer in diagnostics.layers), default=None)
    return smallest, condition, diagnostics.latent_error, diagnostics.pixels_exact


def write_history(path: Path, fits: dict[str, Fit]) -> None:
    """Write the training curves of all models as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, HISTORY, lineterminator="\n")
        writer.writeheader()
        for key, fit in fits.items():
            writer.writerows({"model": key, **row} for row in fit.history)
