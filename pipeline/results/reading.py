"""Reads the files of the stages; an error names the file and the command that writes it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError

from pipeline.core.cell import Key, cells_of
from pipeline.core.console import UserError
from pipeline.core.dataset import Dataset, load_dataset
from pipeline.core.files import read_json, sha256
from pipeline.core.params import Params, Recipe, mistakes
from pipeline.core.record import CellOutcome, Message, Record, StageRecord, Status, existing, load_record
from pipeline.evaluation.record import Evaluation
from pipeline.measuring.record import Measurement
from pipeline.results.mixture_record import Mixture
from pipeline.training.record import Run

MIXTURE = "python -m pipeline.mixture --out runs/mixture.json"
# The part of `runs/mixture.json` that `reports/mixture.json` repeats.
SHOWN = ("entropy", "message", "models", "printed", "printed_honest", "settings", "status")
Grid = Literal["samples", "by_class", "nearest", "interpolations"]
Stage = Literal["train", "evaluate", "measure"]
RECORDS: dict[str, type[StageRecord]] = {"train": Run, "evaluate": Evaluation, "measure": Measurement}
S = TypeVar("S", bound=StageRecord)


class CellStatus(Record):
    """The status of a cell; for a training, the ``epochs`` that each model has completed of ``planned_epochs``.

    Both are null for cells without training steps. A partial cell has the results of some classes; one that is missing
    or has failed has none. ``run`` is the time of the run that a published cell is of.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    stage: Stage
    dataset: str
    recipe: str
    seed: int | None = None
    status: Literal[CellOutcome, "missing", "failed"]
    message: Message | None
    epochs: dict[str, float | None] | None = None
    planned_epochs: float | None = None
    run: str | None = None

    @property
    def key(self) -> Key:
        """The cell of the grid."""
        return Key(self.dataset, self.recipe, self.seed)

    @property
    def finished(self) -> bool:
        """Whether the cell has ended, successfully or not."""
        return self.status in get_args(Status)

    @property
    def summary(self) -> str:
        """The status in words; of a partial cell, how many classes are trained."""
        words = self.status.replace("_", " ")
        return f"{words}, {self.message}" if self.status == "partial" else words

    @property
    def has_record(self) -> bool:
        """Whether the cell has a file, of all of its classes or of some."""
        return self.status in get_args(CellOutcome)


@dataclass(frozen=True)
class Cell:
    """One training with its evaluation; ``history`` and ``samples`` are the paths of files from the same stages."""

    key: Key
    run: Run
    evaluation: Evaluation
    history: Path
    samples: Path

    @property
    def status(self) -> CellOutcome:
        """The status of the training if it failed, otherwise that of the evaluation."""
        return self._decisive.status

    @property
    def message(self) -> str | None:
        """The message of the stage that failed, or of a training that is partial."""
        return self._decisive.message

    @property
    def _decisive(self) -> Run | Evaluation:
        return self.evaluation if self.run.status in ("complete", "partial") else self.run


@dataclass(frozen=True)
class Results:
    """Everything that collect reads: each cell is either read or in ``unfinished``."""

    params: Params
    datasets: dict[str, Dataset]
    cells: list[Cell]
    measurements: list[Measurement]
    mixture: Mixture
    unfinished: tuple[CellStatus, ...] = ()

    @property
    def records(self) -> list[tuple[str, StageRecord]]:
        """The record of each stage of each cell, with the stage's name."""
        records: list[tuple[str, StageRecord]] = []
        for cell in self.cells:
            records += [("train", cell.run), ("evaluate", cell.evaluation)]
        return records + [("measure", measured) for measured in self.measurements]

    @property
    def statuses(self) -> list[CellStatus]:
        """The status of each cell: of a training with its evaluation, and of a measurement."""
        cells: list[tuple[Stage, Cell | Measurement]] = [("train", cell) for cell in self.cells]
        cells += [("measure", measured) for measured in self.measurements]
        read = [
            CellStatus(stage=stage, **cell.key._asdict(), status=cell.status, message=cell.message)
            for stage, cell in cells
        ]
        return [*read, *self.unfinished]

    def image_shape(self, dataset: str) -> tuple[int, int]:
        """The height and the width of a data set's images."""
        height, width = self.datasets[dataset].train_images.shape[1:]
        return height, width

    def measured(self, dataset: str, recipe: str) -> Measurement | None:
        """The measurement that stands for a data set: of its own images, or else of images of the same shape."""
        shape = self.image_shape(dataset)
        fitting = [
            measured
            for measured in self.measurements
            if measured.recipe == recipe and (measured.dataset == dataset or measured.image_shape == shape)
        ]
        return min(fitting, key=lambda measured: measured.dataset != dataset, default=None)


def read_results(params: Params, data: Path, runs: Path, unfinished: Sequence[CellStatus] = ()) -> Results:
    """Read exactly the cells of the parameters.

    Args:
        params: The parameters, which say which cells are read.
        data: The folder of the data sets.
        runs: The folder of the train, evaluate and measure stages.
        unfinished: The cells that are not read, even if their files exist.

    Raises:
        UserError: If a file is missing or damaged, or was made with other parameters; the message names it and the
            command that writes it.
    """
    datasets = {name: load_dataset(data / name) for name in params.grid.datasets}
    return read_cells(params, datasets, runs, unfinished)


def read_cells(params: Params, datasets: dict[str, Dataset], runs: Path, unfinished: Sequence[CellStatus]) -> Results:
    """Read exactly the cells of the parameters, on data sets that are read already; see `read_results`."""
    cells, left_out = cells_of(params), {cell.key for cell in unfinished}
    return Results(
        params,
        datasets,
        [read_cell(runs, params, key) for key in cells["train"] if key not in left_out],
        [read_record(Measurement, runs, params, key) for key in cells["measure"] if key not in left_out],
        read_mixture(runs, params),
        tuple(unfinished),
    )


def read_unfinished(path: Path) -> list[CellStatus]:
    """Read the list of unfinished cells from a JSON file.

    Raises:
        UserError: If the file is missing or contains something else.
    """
    try:
        cells = TypeAdapter(list[CellStatus]).validate_python(read_json(path))
    except ValidationError as error:
        raise UserError(f"{path} is no list of unfinished cells: {mistakes(error, ())[0]}") from None
    for cell in cells:
        if cell.finished:
            raise UserError(f"{path} is no list of unfinished cells: {cell.stage} {cell.key} is {cell.status}")
    return cells


def record_path(runs: Path, stage: str, key: Key) -> Path:
    """The JSON file that a stage writes for a cell."""
    return runs / stage / (f"{key}/run.json" if stage == "train" else f"{key}.json")


def read_record(kind: type[S], runs: Path, params: Params, key: Key) -> S:
    """Read the record of a cell; a training must have been made with the parameters of its recipe.

    Settings that older trainings did not have are as their defaults say.
    """
    stage = next(stage for stage, record in RECORDS.items() if record is kind)
    path, command = record_path(runs, stage, key), key.command(stage)
    record = load_record(kind, path, command)
    if record.key != key:
        raise UserError(f"{path} is about {record.key} and not {key}; run: {command}")
    if isinstance(record, Run) and not _is_of(record, params.recipe(key.recipe)):
        raise UserError(
            f"{path} was trained with other parameters than recipes.{key.recipe} has now; "
            f"train it again with: {command}"
        )
    return record


def _is_of(run: Run, recipe: Recipe) -> bool:
    try:
        return Recipe.model_validate(run.recipe_params) == recipe
    except ValidationError:
        return False


def read_mixture(runs: Path, params: Params) -> Mixture:
    """Read the mixture experiment, which must have been made with the current parameters."""
    path = runs / "mixture.json"
    mixture = load_record(Mixture, path, MIXTURE)
    if mixture.settings != params.mixture.model_dump(mode="json"):
        raise UserError(f"{path} was made with other parameters than mixture has now; run: {MIXTURE}")
    return mixture


def read_densities(runs: Path, mixture: Mixture) -> dict[str, NDArray[np.float32]]:
    """The log-densities in nats of the mixture and of each model on a grid, each of shape (rows, columns)."""
    path = existing(runs / "mixture.npy", MIXTURE)
    if sha256(path) != mixture.densities_sha256:
        raise UserError(f"{path} is not what was written with {path.with_suffix('.json')}; run: {MIXTURE}")
    return dict(zip(mixture.densities, np.load(path, allow_pickle=False), strict=True))


def read_cell(runs: Path, params: Params, key: Key) -> Cell:
    """Read one training and its evaluation."""
    run, evaluation = read_record(Run, runs, params, key), read_record(Evaluation, runs, params, key)
    if {run.status, evaluation.status} == {"complete", "partial"}:
        raise UserError(
            f"{key} was evaluated with {'some' if evaluation.status == 'partial' else 'all'} of its classes, and then "
            f"trained again; run: {key.command('evaluate')}"
        )
    history = existing(runs / "train" / str(key) / "history.csv", key.command("train"))
    return Cell(key, run, evaluation, history, runs / "samples" / str(key) / "samples.npy")


def read_samples(cell: Cell, name: str = "samples") -> NDArray[np.uint8]:
    """A grid of images of a complete cell, of shape (rows, columns, height, width); see `pipeline.evaluate`."""
    command = cell.key.command("evaluate")
    path = existing(cell.samples.with_name(f"{name}.npy"), command)
    try:
        grid: NDArray[np.uint8] = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged ({error}); write it again with: {command}") from None
    if grid.ndim != 4 or grid.dtype != np.uint8 or grid.size == 0:
        raise UserError(
            f"{path} should be a grid (rows, columns, height, width) of uint8, but is {grid.shape} of "
            f"{grid.dtype}; write it again with: {command}"
        )
    return grid
