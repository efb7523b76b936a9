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
from pipeline.training.models import start_
from pipeline.training.objectives import infinite_pixels
from pipeline.training.optimisation import make_optimizer, make_schedule, optimise

HISTORY = [
    "model", "step", "epoch", "seconds", "learning_rate", "train_bits_per_dim", "holdout_bits_per_dim",
    "smallest_diagonal", "condition", "latent_error", "pixels_exact",
]  # fmt: skip
DIAGNOSED = 100  # held-out images that go through the flow and back at each look
CHECK_EVERY = 20  # steps; looking at a loss makes a GPU wait
SCORING_BATCH = 128  # images; larger ones fall out of a CPU's caches


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
    """Fit one model to uint8 images of shape (N, H, W), in place; divergence and lack of memory are told, not raised.

    ``test`` is used where the recipe says that weights are chosen on the test set, and nowhere else.

    Raises:
        UserError: If the images cannot determine the model's start.
    """
    generator = torch.Generator(device).manual_seed(seed)
    own, holdout = split(images, test, recipe.training, seed)
    result = Fit(train_images=len(own), holdout_images=len(holdout))
    saved = checkpoint.read()
    begin = time.perf_counter()
    try:
        model.to(device)
        own, holdout = own.to(device), holdout.to(device)
        if saved is None:
            start_(model, recipe, own, generator)
            result.seconds = time.perf_counter() - begin
        else:
            model.load_state_dict(saved["model"])
            result = Fit(**saved["fit"])
            if saved["descent"] is None:
                say(f"{name}: {result.status} already, taken from its checkpoint")
                return result
        if recipe.training is not None:
            descent = None if saved is None else saved["descent"]
            descend(model, recipe.training, own, holdout, generator, name, result, checkpoint, descent)
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
    """The images to train on, in a random order, and those on which the best weights are chosen."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    if training is not None and training.holdout == "test":
        return images[order], test
    held = 0 if training is None else max(1, round(training.holdout * len(images)))
    return images[order[held:]], images[order[:held]]


class HoldoutTracker:
    """Looks at the held-out images now and then, draws the training curve, and keeps the ``best`` weights.

    Args:
        model: The model in training.
        holdout: The held-out images, uint8, with shape (N, H, W).
        per_epoch: Steps in an epoch.
        result: Where curve and best figures are written.
    """

    def __init__(self, model: ImageFlow, holdout: Tensor, per_epoch: int, result: Fit) -> None:
        self._model, self._holdout, self._per_epoch, self._result = model, holdout, per_epoch, result
        self.best: dict[str, Any] = {}

    def look(self, step: int, learning_rate: float, train_bits: float | None) -> float:
        """The held-out bits per dimension after a step; the curve gets a point.

        Raises:
            DivergedError: If it is not finite.
        """
        result = self._result
        try:
            held = score(self._model, self._holdout)
            diagnosis = diagnose(self._model, self._holdout[:DIAGNOSED])
        except NonFiniteError as error:
            raise DivergedError(f"held-out images fail after step {step}: {error}") from None
        epoch = round(step / self._per_epoch, 4)
        point = (step, epoch, round(result.seconds, 3), learning_rate, train_bits, held, *diagnosis)
        result.history.append(dict(zip(HISTORY[1:], point, strict=True)))
        if result.best_holdout_bits_per_dim is None or held < result.best_holdout_bits_per_dim:
            result.best_holdout_bits_per_dim, result.best_step, result.best_epoch = held, step, epoch
            self.best = copy.deepcopy(self._model.state_dict())
        return held

    def restore_best(self) -> None:
        """Put the best weights back into the model."""
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

    With ``saved``, a state that was written to the checkpoint, it goes on from there as if it had never stopped.

    Raises:
        DivergedError: When a loss is not finite.
    """
    descent = Descent(model, training, images, holdout, generator, result)
    if saved is None:
        descent.look()
    else:
        descent.restore(saved)
        say(f"{name}: goes on after step {descent.done}")
    model.train()
    note, clock = f"held out {descent.held:.3f}", Clock(result)
    with (
        Progress(name, descent.steps, descent.done) as progress,
        DivergenceGuard(model, descent.optimizer, generator, descent.done) as watch,
    ):
        while descent.done < descent.steps:
            descent.step(watch)
            due, looks = checkpoint.is_due(), descent.done in descent.looks
            if due or looks or descent.done % CHECK_EVERY == 0:
                mean = descent.losses.mean(descent.done)
                note = f"{mean:.3f} bits/dim, held out {descent.held:.3f}"
            if looks:
                clock.stop()
                descent.look(mean)
                clock.start()
            progress.step(note)
            if due:
                clock.stop()
                state = {"fit": asdict(result), "model": model.state_dict(), "descent": descent.state()}
                checkpoint.write(state, f"{name} after step {descent.done} of {descent.steps}")
                clock.start()
    descent.finish()


class Clock:
    """Adds the time of optimisation to a fit, without that of looks and of checkpoints; runs from the start."""

    def __init__(self, result: Fit) -> None:
        self._result = result
        self.start()

    def start(self) -> None:
        """Time counts from here on."""
        self._begin = time.perf_counter()

    def stop(self) -> None:
        """Time up to here is counted."""
        self._result.seconds += time.perf_counter() - self._begin


class Descent:
    """The optimisation of a model, step by step; all that the next step depends on is its `state` and the model's.

    Attributes:
        steps: How many steps there are.
        done: How many of them are done.
        looks: The steps after which the held-out images are looked at.
        held: The held-out bits per dimension at the last look.
        losses: The training losses since then.

    Args:
        model: The model.
        training: How it is trained.
        images: The images to train on, uint8, with shape (N, H, W).
        holdout: Those on which the best weights are chosen, likewise.
        generator: Where the order of the images and the noise of each step come from.
        result: What is written down about the fit.
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
        self.steps, self.done, self.held = max(1, round(training.epochs * self._per_epoch)), 0, math.nan
        looks = range(1, training.validations + 1)
        self.looks = {round(self.steps * look / training.validations) for look in looks} | {self.steps}
        self._tracker = HoldoutTracker(model, holdout, self._per_epoch, result)
        self.optimizer = make_optimizer(model, training)
        self._schedule = make_schedule(self.optimizer, training, self.steps, self._per_epoch)
        self._order = torch.empty(0, dtype=torch.int64, device=images.device)
        self.losses = Losses(torch.zeros((), device=images.device))
        self._infinite_pixels = torch.zeros((), dtype=torch.int64, device=images.device)

    def state(self) -> dict[str, Any]:
        """Tensors and plain values from which `restore` goes on."""
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
        """Put back what `state` has told; the model and the result of that moment are put back already."""
        self.done, self._order, self._tracker.best = saved["step"], saved["order"], saved["best"]
        self.losses, self._infinite_pixels = Losses(*saved["losses"]), saved["infinite_pixels"]
        self.optimizer.load_state_dict(saved["optimizer"])
        self._schedule.load_state_dict(saved["schedule"])
        restore_random_state(self._generator, saved["random"])
        self.held = float(self._result.history[-1]["holdout_bits_per_dim"] or math.nan)

    def step(self, watch: DivergenceGuard) -> None:
        """Take the next step, on the next batch of an order that is new in each epoch."""
        position = self.done % self._per_epoch
        if position == 0:
            self._order = torch.randperm(len(self._images), generator=self._generator, device=self._images.device)
        size = self._training.batch_size
        batch = self._images[self._order[position * size : (position + 1) * size]]
        self.losses.add(watch.take(self._optimise, batch))
        if self._counts_infinite_pixels:
            self._infinite_pixels += infinite_pixels(batch, self._generator)
        self._schedule.step()
        self.done += 1

    def _optimise(self, batch: Tensor) -> Tensor:
        return optimise(self._model, self.optimizer, batch, self._generator, self._training)

    def look(self, train_bits: float | None = None) -> None:
        """Look at the held-out images; ``train_bits`` is the mean of the training losses since the last look.

        Raises:
            DivergedError: If the held-out figure is not finite.
        """
        self.held = self._tracker.look(self.done, float(self._schedule.get_last_lr()[0]), train_bits)
        self.losses = Losses(torch.zeros((), device=self._images.device))

    def finish(self) -> None:
        """Leave the model at its best weights, and write down how long the way to the end was."""
        self._result.epochs, self._result.steps = round(self.steps / self._per_epoch, 4), self.steps
        self._result.infinite_pixels = int(self._infinite_pixels) if self._counts_infinite_pixels else None
        self._tracker.restore_best()


class Losses:
    """The mean of losses, summed on their device so that no step waits for it."""

    def __init__(self, total: Tensor, count: int = 0) -> None:
        self._sum, self._count = total, count

    def add(self, loss: Tensor) -> None:
        """Count one loss."""
        self._sum, self._count = self._sum + loss, self._count + 1

    def state(self) -> tuple[Tensor, int]:
        """The arguments that make these losses again."""
        return self._sum, self._count

    def mean(self, step: int) -> float:
        """The mean so far; `DivergedError`, naming the step, if it is not finite."""
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
    """Smallest diagonal entry, largest condition number, latent error, and the share of pixels that come back.

    Nothing is known where the way back leaves the range of the numbers, as it does from the start of the released code.
    """
    was_training = model.training
    try:
        found = model.eval().diagnostics(images)
    except NonFiniteError:
        return None, None, None, None
    finally:
        model.train(was_training)
    smallest = min((layer.smallest_diagonal for layer in found.layers), default=None)
    condition = max((layer.condition for layer in found.layers), default=None)
    return smallest, condition, found.latent_error, found.pixels_exact


def write_history(path: Path, fits: dict[str, Fit]) -> None:
    """Write the training curves of all models as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, HISTORY, lineterminator="\n")
        writer.writeheader()
        for key, fit in fits.items():
            writer.writerows({"model": key, **row} for row in fit.history)
