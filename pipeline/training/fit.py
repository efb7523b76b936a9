"""The training of one model: optimisation steps, validation, and the best weights."""

from __future__ import annotations

import copy
import csv
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lunet import ImageFlow, NonFiniteError, ReleasedRealNVP, unchecked
from lunet.pixels import ImpossibleLikelihoodError, mean_bits
from pipeline.core.console import say
from pipeline.core.environment import memory_errors
from pipeline.core.holdout import split_indices
from pipeline.core.params import Recipe, Training
from pipeline.core.progress import Progress
from pipeline.core.record import Status
from pipeline.core.streams import Stream, generator
from pipeline.training.checkpoints import Checkpoint, random_state, restore_random_state
from pipeline.training.divergence import DivergedError, batch_that_fits, describe_failure
from pipeline.training.models import initialise_
from pipeline.training.optimisation import Totals, TrainingStep, rate_factor
from pipeline.training.record import DIAGNOSES, HISTORY, Fit, Row

DIAGNOSED_IMAGES = 100  # held-out images in a diagnosis of the model's inverse
READ_EVERY = {"cpu": 1, "cuda": 20}  # steps; in between, nothing waits for a GPU
TRAINING_STREAMS: tuple[Stream, ...] = ("order", "training", "released pixels")
VALIDATION_STREAMS: tuple[Stream, ...] = ("validation", "diagnosis")
SCORING_BATCH = {"cpu": 128, "cuda": 1024}  # images that fit a CPU's caches, and that fill a GPU


def fit(
    model: ImageFlow,
    recipe: Recipe,
    images: Tensor,
    test: Tensor,
    device: torch.device,
    seed: int,
    title: str,
    checkpoint: Checkpoint,
    name: str = "all",
) -> Fit:
    """Fit one model to uint8 images of shape (N, H, W), in place; record divergence and lack of memory, not raise them.

    ``test`` is used only if the recipe selects the weights on the test set. With a checkpoint, training resumes there
    as if it had never stopped, but for the algorithms that a GPU may choose anew if it need not be deterministic.
    ``title`` is the name of the training in messages, ``name`` that of the model in the run.

    Raises:
        UserError: If the images cannot determine the model's initialisation.
    """
    saved = checkpoint.read()
    if saved is not None:
        model.load_state_dict(saved["model"])
        if "fit" in saved:
            result = Fit(**saved["fit"])
            say(f"{title}: {result.status} already, taken from its checkpoint")
            return result
    trainer = Trainer(model, recipe, *split(images, test, recipe.training, seed, name), seed, title, name)
    status: Status = "complete"
    message = None
    try:
        with memory_errors():
            trainer.run(device, checkpoint, None if saved is None else saved["trainer"])
    except DivergedError as error:
        status, message = "diverged", str(error)
    except MemoryError as error:
        status, message = "out_of_memory", str(error)
    result = trainer.outcome(status, message)
    if status != "complete":
        say(f"{title}: {status}: {result.message}")
    if status != "out_of_memory":
        done = {**result.model_dump(mode="json"), "history": result.history}
        checkpoint.write({"epochs": trainer.epoch, "model": model.state_dict(), "fit": done}, f"{title} is trained")
    return result


def split(
    images: Tensor, test: Tensor, training: Training | None, seed: int, name: str = "all"
) -> tuple[Tensor, Tensor]:
    """The training images, in a random order, and the held-out images, on which the best weights are selected."""
    if training is not None and training.holdout != "test":
        rows = split_indices(len(images), training.holdout, seed, name)
        return images[rows.training], images[rows.heldout]
    order = torch.randperm(len(images), generator=generator("split", seed, name))
    return images[order], images[:0] if training is None else test


def validation_steps(training: Training, steps: int) -> set[int]:
    """The steps after which a training is validated, the last among them.

    Released recipes are validated at equal distances. All others are validated more often at first, at the cubes of
    equal distances, since the likelihood improves in proportion to the logarithm of the step.
    """
    power = 1 if training.objective == "released" else 3
    shares = ((index / training.validations) ** power for index in range(1, training.validations + 1))
    return {max(1, round(steps * share)) for share in shares}


class Attempt(NamedTuple):
    """A step that has been taken: its batch, the state of the noise before it, and its learning rate."""

    batch: Tensor
    noise: Tensor
    rate: float


class Trainer:
    """The training of one model: it owns the model, its images, optimiser, history and best weights.

    Args:
        model: The untrained model.
        recipe: Its recipe; without ``training``, the model is fitted in closed form and there are no steps.
        images: The training images, uint8, with shape (N, H, W).
        holdout: The held-out images, uint8, with shape (M, H, W), on which the best weights are selected.
        seed: The seed of initialisation, order of the images, and noise, each a stream of its own.
        title: The name of the training in messages.
        name: The name of the model among those of the run.

    Attributes:
        steps: The number of optimisation steps.
        done: The number of steps taken.
        history: A row for each validation.
    """

    def __init__(
        self, model: ImageFlow, recipe: Recipe, images: Tensor, holdout: Tensor, seed: int, title: str, name: str
    ) -> None:
        self._model, self._recipe, self._title, self._images, self._holdout = model, recipe, title, images, holdout
        self._stream = partial(generator, seed=seed, model=name)
        training = recipe.training
        self._per_epoch = 1 if training is None else math.ceil(len(images) / training.batch_size)
        self.steps = 0 if training is None else max(1, round(training.epochs * self._per_epoch))
        self.done, self.history = 0, list[Row]()
        self._seconds, self._best_weights, self._unread = 0.0, dict[str, Any](), list[Attempt]()
        self._counts_infinite_pixels = training is not None and isinstance(model.flow, ReleasedRealNVP)

    @property
    def epoch(self) -> float:
        """The number of completed epochs."""
        return round(self.done / self._per_epoch, 4)

    @property
    def _best(self) -> Row:
        """The first row of the history with the best held-out likelihood."""
        return min(self.history, key=lambda row: row["holdout_bits_per_dim"], default={})

    def run(self, device: torch.device, checkpoint: Checkpoint, saved: Mapping[str, Any] | None) -> None:
        """Train the model from its initialisation, or from a saved state, and leave it at its best held-out weights.

        Raises:
            DivergedError: If a likelihood or a gradient is not finite.
            MemoryError: If memory does not suffice; the message names a batch size that fits, if any does.
        """
        with self._timed():
            self._model.to(device)
            self._images, self._holdout = self._images.to(device), self._holdout.to(device)
            if saved is None:
                initialise_(self._model, self._recipe, self._images, self._stream("start", device=device))
        if self._recipe.training is not None:
            self._descend(self._recipe.training, checkpoint, saved)

    def _descend(self, training: Training, checkpoint: Checkpoint, saved: Mapping[str, Any] | None) -> None:
        device = self._images.device
        self._streams: dict[str, torch.Generator] = {
            name: self._stream(name, device=device) for name in TRAINING_STREAMS
        }
        pixels = self._streams["released pixels"] if self._counts_infinite_pixels else None
        self._step = TrainingStep(self._model.train(), training, self._streams["training"], pixels)
        self._totals = self._validated = self._step.read()
        read_every, validated = READ_EVERY[device.type], validation_steps(training, self.steps)
        if saved is None:
            self.validate(training)
            self._diagnose(self.history[0])
        else:
            self.restore(saved)
            say(f"{self._title}: goes on after step {self.done}")
        with Progress(self._title, self.steps, self.done) as progress:
            while self.done < self.steps:
                before = self.done
                next_stop = min(step for step in validated if step > before)
                due = self._advance(training, checkpoint, min(next_stop, before - before % read_every + read_every))
                note = self._note()
                if self.done in validated:
                    self.validate(training)
                progress.step(note, self.done - before)
                if due:
                    state = {"epochs": self.epoch, "model": self._model.state_dict(), "trainer": self.state()}
                    checkpoint.write(state, f"{self._title} after step {self.done} of {self.steps}")
        if self._best is not self.history[-1]:
            self._diagnose(self.history[-1])
            self._model.load_state_dict(self._best_weights)
        self._diagnose(self._best)
        self._model.zero_grad(set_to_none=True)  # gradients may be in the memory of a graph

    def _advance(self, training: Training, checkpoint: Checkpoint, until: int) -> bool:
        """Take steps to the step ``until`` or to one at which a checkpoint is due, and say whether it is.

        Raises:
            DivergedError: If one of them was not finite.
        """
        due, setup_seconds = False, self._step.setup_seconds
        with self._timed():
            while self.done < until and not due:
                self.step(training)
                due = checkpoint.is_due()
            self._read(training)
        self._seconds -= self._step.setup_seconds - setup_seconds
        return due

    def step(self, training: Training) -> None:
        """Take the next step, on the next batch, without a wait; the images are shuffled anew in each epoch."""
        position, size = self.done % self._per_epoch, training.batch_size
        if position == 0:
            self._order = torch.randperm(
                len(self._images), generator=self._streams["order"], device=self._images.device
            )
        batch = self._images[self._order[position * size : (position + 1) * size]]
        factor = rate_factor(training, self.done, self.steps, self._per_epoch)
        self._unread.append(Attempt(batch, self._streams["training"].get_state(), training.learning_rate * factor))
        try:
            with memory_errors():
                self._step.take(batch, factor)
        except MemoryError as error:
            message = str(error)
        else:
            self.done += 1
            return
        # Here the error no longer keeps the tensors of the failed step alive.
        fits = batch_that_fits(self._step.try_out, batch)
        raise MemoryError(f"{message}; a batch of {fits} images would fit" if fits else message)

    def _read(self, training: Training) -> None:
        """Wait until the steps so far are done.

        Raises:
            DivergedError: If one of them was not finite; the message describes the first.
        """
        totals = self._step.read()
        if totals.failed:
            failed, self.done = self._unread[totals.completed - self._totals.completed], totals.completed
            noise = self._streams["training"].set_state(failed.noise)
            with self._step.eager():
                failure = describe_failure(self._model, failed.batch, noise, training)
            failure += f"; step {totals.completed + 1}, learning rate {failed.rate:.3g}"
            if totals.completed:
                failure += f", last finite loss {totals.last_bits:.4f} bits/dim"
                failure += f", norm of its gradient {totals.last_norm:.3g}"
            raise DivergedError(failure)
        self._totals, self._unread = totals, []

    def validate(self, training: Training) -> None:
        """Evaluate on the held-out images, add a row to the history, and keep the weights if they are the best so far.

        Raises:
            DivergedError: If the held-out likelihood is not finite.
        """
        try:
            with self._step.eager():
                holdout_bits = score(
                    self._model, self._holdout, self._stream("validation", device=self._holdout.device)
                )
        except NonFiniteError as error:
            raise DivergedError(f"held-out images fail after step {self.done}: {error}") from None
        rate = training.learning_rate * rate_factor(training, self.done, self.steps, self._per_epoch)
        point = (self.done, self.epoch, round(self._seconds, 3), rate, self._train_bits(), holdout_bits)
        self.history.append(dict.fromkeys([*HISTORY][1:]) | dict(zip([*HISTORY][1:], point, strict=False)))
        if self._best is self.history[-1]:
            self._best_weights = copy.deepcopy(self._model.state_dict())
        self._validated = self._totals

    def _diagnose(self, row: Row) -> None:
        """Add to a row of the history how accurately the model, with the weights of that row, can be inverted."""
        noise = self._stream("diagnosis", device=self._holdout.device)
        with self._step.eager():
            row |= zip(DIAGNOSES, diagnose(self._model, self._holdout[:DIAGNOSED_IMAGES], noise), strict=True)

    def state(self) -> dict[str, Any]:
        """The tensors and plain values that `restore` takes; the next step depends only on them and the model."""
        return {
            "done": self.done,
            "order": self._order,
            "history": self.history,
            "seconds": self._seconds,
            "best_weights": self._best_weights,
            "validated": tuple(self._validated),
            "step": self._step.state(),
            "random": random_state(self._streams),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state` returned; the caller restores the model first."""
        self.done, self._order, self.history = saved["done"], saved["order"], saved["history"]
        self._seconds, self._best_weights = saved["seconds"], saved["best_weights"]
        self._step.restore(saved["step"])
        self._totals, self._validated = self._step.read(), Totals(*saved["validated"])
        restore_random_state(self._streams, saved["random"])

    def outcome(self, status: Status, message: str | None) -> Fit:
        """The record of the training; ``status`` says how it ended, ``message`` why."""
        trained = status == "complete" and self._recipe.training is not None
        return Fit(
            train_images=len(self._images),
            holdout_images=len(self._holdout),
            status=status,
            message=message,
            epochs=self.epoch if trained else None,
            steps=self.steps if trained else None,
            seconds=self._seconds,
            setup_seconds=self._step.setup_seconds if trained and self._step.captures else None,
            best_epoch=self._best.get("epoch"),
            best_step=self._best.get("step"),
            best_holdout_bits_per_dim=self._best.get("holdout_bits_per_dim"),
            infinite_pixels=self._totals.infinite_pixels if trained and self._counts_infinite_pixels else None,
            history=self.history,
        )

    def _train_bits(self) -> float | None:
        """The mean training loss since the last validation, in bits per dimension."""
        steps = self._totals.completed - self._validated.completed
        return (self._totals.bits - self._validated.bits) / steps if steps else None

    def _note(self) -> str:
        """The likelihoods so far, for messages."""
        train_bits, holdout = self._train_bits(), f"held out {self.history[-1]['holdout_bits_per_dim']:.3f}"
        return holdout if train_bits is None else f"{train_bits:.3f} bits/dim, {holdout}"

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Add the time of the block to the training's, which contains no validation and no checkpoint."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._seconds += time.perf_counter() - begin


@torch.no_grad()
def score(model: ImageFlow, images: Tensor, noise: torch.Generator) -> float:
    """The mean bits per dimension of images.

    Raises:
        NonFiniteError: If one is not finite, or their mean is below 0.
    """
    was_training, batches, state = model.training, images.split(SCORING_BATCH[images.device.type]), noise.get_state()
    model.eval()
    try:
        with unchecked():  # so that a GPU is waited for once
            bits = torch.cat([model.bits_per_dim(batch, generator=noise) for batch in batches])
        return mean_bits(bits)
    except ImpossibleLikelihoodError:
        raise
    except NonFiniteError:
        noise.set_state(state)
        for batch in batches:
            model.bits_per_dim(batch, generator=noise)  # raises an error that names the cause
        raise
    finally:
        model.train(was_training)


def diagnose(
    model: ImageFlow, images: Tensor, noise: torch.Generator
) -> tuple[float | None, float | None, float | None, float | None]:
    """Smallest diagonal entry, largest condition number, latent error, and share of pixels exact after a round trip.

    All four are None if the inverse overflows, as it does at the released code's initialisation.
    """
    was_training = model.training
    try:
        diagnostics = model.eval().diagnostics(images, noise)
    except NonFiniteError:
        return None, None, None, None
    finally:
        model.train(was_training)
    smallest = min((layer.smallest_diagonal for layer in diagnostics.layers), default=None)
    condition = max((layer.condition for layer in diagnostics.layers), default=None)
    return smallest, condition, diagnostics.latent_error, diagnostics.pixels_exact


def write_history(path: Path, fits: Mapping[str, Fit]) -> None:
    """Write the training curves of all models as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, HISTORY, lineterminator="\n")
        writer.writeheader()
        writer.writerows({"model": key, **row} for key, fit in fits.items() for row in fit.history)
