"""What the stages wrote about the grid's cells: read, checked, and refused with the file and the command to mend it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from pipeline.console import UserError
from pipeline.datasets import Dataset, load_dataset
from pipeline.files import read_json, sha256, without_paths
from pipeline.params import Params

COMMANDS = {
    "train": "python -m pipeline.train --dataset {0} --recipe {1} --seed {2} --out runs/train/{key}",
    "evaluate": "python -m pipeline.evaluate --dataset {0} --recipe {1} --seed {2} --out runs/evaluate/{key}.json",
    "measure": "python -m pipeline.measure --dataset {0} --recipe {1} --out runs/measure/{key}.json",
}

MIXTURE = "python -m pipeline.mixture --out runs/mixture.json"


class Key(NamedTuple):
    """Which cell of the grid; measurements have no seed."""

    dataset: str
    recipe: str
    seed: int | None = None

    def __str__(self) -> str:
        return "-".join(str(part) for part in self if part is not None)

    def command(self, stage: str) -> str:
        """The exact command with which a stage writes this cell."""
        return COMMANDS[stage].format(*self, key=self)


Message = Annotated[str, AfterValidator(without_paths)]
PositiveTime = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Status = Literal["complete", "diverged", "out_of_memory"]
Grid = Literal["samples", "fitted_base", "nearest", "interpolations"]


class Record(BaseModel):
    """A part of a stage's file: what collect reads of it, every number finite; more may stand in the file."""

    model_config = ConfigDict(frozen=True)


class Environment(Record):
    """Where and when a cell ran."""

    time: str
    host: str
    system: str
    processor: str
    cores: int
    memory_gib: FiniteFloat
    device: str
    gpu: str | None
    gpu_driver: str | None
    cuda: str | None
    threads: int
    python: str
    torch: str
    numpy: str
    commit: str | None
    dirty: bool | None


class StageRecord(Record):
    """What the files of all three stages say."""

    dataset: str
    recipe: str
    seed: int | None = None
    status: Status
    message: Message | None
    environment: Environment

    @property
    def key(self) -> Key:
        """Which cell the file is about."""
        return Key(self.dataset, self.recipe, self.seed)


class Parameters(Record):
    """How many numbers a model holds, and how many of them are free."""

    stored: int
    free: int


class Model(Record):
    """How the training of one model went."""

    holdout_images: int
    epochs: FiniteFloat | None = None
    best_epoch: FiniteFloat | None
    best_holdout_bits_per_dim: FiniteFloat | None
    accidents: int | None = None


class Run(StageRecord):
    """`runs/train/<key>/run.json`."""

    seed: int
    seconds: FiniteFloat
    parameters: Parameters | None
    recipe_params: dict[str, Any]
    models: dict[str, Model]


class Spread(Record):
    """Bits per dimension over some images."""

    mean: FiniteFloat
    median: FiniteFloat
    std: FiniteFloat
    min: FiniteFloat
    max: FiniteFloat
    worst_percent_share: FiniteFloat


class Likelihood(Record):
    """The likelihood of the images of one class, or of all; of all also the mean of each dequantisation draw."""

    images: int
    bits_per_dim: Spread
    bits_per_dim_by_draw: list[FiniteFloat] | None = None
    poster_bits_per_pixel: FiniteFloat | None = None


class RoundTrip(Record):
    """What survives the way to the latent and back."""

    pixels_exact: FiniteFloat
    pixels_within_one: FiniteFloat


class Latents(Record):
    """What `pipeline.latents.normality` says of the latents of test images."""

    mean: FiniteFloat
    variance: FiniteFloat
    variance_min: FiniteFloat
    variance_max: FiniteFloat
    projection_distance: FiniteFloat
    projection_distance_max: FiniteFloat
    radius: FiniteFloat
    radius_distance: FiniteFloat
    critical_distance: FiniteFloat
    critical_distance_max: FiniteFloat
    levels: list[FiniteFloat]
    projection_quantiles: list[FiniteFloat]


class FittedLatents(Record):
    """What `pipeline.latents.fitted_normality` says of the latents of test images."""

    projection_distance: FiniteFloat
    projection_distance_max: FiniteFloat
    radius_distance: FiniteFloat


class Evaluation(StageRecord):
    """`runs/evaluate/<key>.json`."""

    seed: int
    classes: Literal["all", "each"]
    draws: int
    test: Likelihood | None
    per_class: dict[str, Likelihood] | None
    round_trip: RoundTrip | None
    latents: Latents | None
    fitted_base_bits_per_dim: FiniteFloat | None
    fitted_latents: FittedLatents | None
    interpolations: int | None
    sample_class_accuracy: FiniteFloat | None
    classification_accuracy: FiniteFloat | None
    seconds: FiniteFloat | None = None


class Timing(Record):
    """The raw samples of one time, which may have been scaled from some ``images`` to all ``of`` them."""

    unit: str
    per: str
    batch: int
    samples: list[PositiveTime] = Field(min_length=1)
    images: int | None = None
    of: int | None = None


class Memory(Record):
    """Memory of a process, in MiB; the last three only on a GPU."""

    process_start_mib: FiniteFloat
    process_peak_mib: FiniteFloat
    allocated_peak_mib: FiniteFloat | None
    reserved_peak_mib: FiniteFloat | None
    gpu_process_mib: FiniteFloat | None


class Determinant(Record):
    """Raw times of both ways to a log-determinant, a list of samples for each width."""

    widths: list[int]
    diagonal_ms: list[list[PositiveTime]]
    slogdet_ms: list[list[PositiveTime]]


class Measurement(StageRecord):
    """`runs/measure/<key>.json`."""

    parameters: Parameters | None = None
    times: dict[str, Timing | None] | None
    memory: dict[str, Memory | None] | None
    determinant: Determinant | None


class Interval(Record):
    """A mean over points with its interval."""

    mean: FiniteFloat
    ci_low: FiniteFloat | None
    ci_high: FiniteFloat | None
    n: int


class MixtureModel(Record):
    """A model's negative log-likelihood on test points of the mixture, and by how much it is above the truth's."""

    nats: Interval
    above_truth: Interval


class Mixture(Record):
    """`runs/mixture.json`; ``densities`` names the layers of the grid beside it, whose corners are in ``box``."""

    status: Status
    message: Message | None
    seconds: FiniteFloat | None = None
    settings: dict[str, Any]
    entropy: FiniteFloat
    printed: FiniteFloat
    printed_honest: FiniteFloat
    models: dict[str, MixtureModel]
    box: Annotated[list[FiniteFloat], Field(min_length=4, max_length=4)]
    points: list[tuple[FiniteFloat, FiniteFloat]]
    densities: list[str]
    densities_sha256: str
    environment: Environment


class Unfinished(Record):
    """A cell of the grid that has no figures yet: a training that has come part of its way, or what is still to do."""

    stage: Literal["train", "evaluate", "measure"]
    dataset: str
    recipe: str
    seed: int | None = None
    status: Literal["partial", "missing", "failed"]
    message: Message

    @property
    def key(self) -> Key:
        """Which cell it is."""
        return Key(self.dataset, self.recipe, self.seed)


@dataclass(frozen=True)
class Cell:
    """One training with its evaluation; ``history`` and ``samples`` are files that stand beside them."""

    key: Key
    run: Run
    evaluation: Evaluation
    history: Path
    samples: Path

    @property
    def complete(self) -> bool:
        """Whether both training and evaluation came to their end."""
        return self.status == "complete"

    @property
    def status(self) -> Status:
        """What became of the cell: of its training, or else of its evaluation."""
        return self.run.status if self.run.status != "complete" else self.evaluation.status

    @property
    def message(self) -> str | None:
        """What the failing stage said."""
        return self.run.message or self.evaluation.message


@dataclass(frozen=True)
class Results:
    """Everything that collect reads: exactly what the grid names, or else what of it is ``unfinished``."""

    params: Params
    datasets: dict[str, Dataset]
    cells: list[Cell]
    measurements: list[Measurement]
    mixture: Mixture
    unfinished: tuple[Unfinished, ...] = ()


def read_results(params: Params, data: Path, runs: Path, unfinished: Sequence[Unfinished] = ()) -> Results:
    """Read exactly the grid's cells.

    Args:
        params: The parameters, whose grid says which cells are read.
        data: The folder of the data sets.
        runs: The folder of the train, evaluate and measure stages.
        unfinished: The cells of the grid of which nothing is read, whatever files there are.

    Raises:
        UserError: If a file is missing or damaged, or was made with other parameters; the message names it and the
            command that writes it.
    """
    grid = params.grid
    pairs = [Key(dataset, recipe) for dataset in grid.datasets for recipe in grid.recipes]
    left_out = {cell.key for cell in unfinished}
    keys = [pair._replace(seed=seed) for pair in pairs for seed in grid.seeds]
    return Results(
        params,
        {name: load_dataset(data / name) for name in grid.datasets},
        [read_cell(runs, params, key) for key in keys if key not in left_out],
        [read_measurement(runs, pair) for pair in pairs if pair not in left_out],
        read_mixture(runs, params),
        tuple(unfinished),
    )


def read_unfinished(path: Path) -> list[Unfinished]:
    """The cells that a file, a list in JSON, says are unfinished.

    Raises:
        UserError: If the file is missing or says something else.
    """
    try:
        return TypeAdapter(list[Unfinished]).validate_python(read_json(path))
    except ValidationError as error:
        raise UserError(f"{path} is no list of unfinished cells: {error.errors()[0]['msg']}") from None


def read_measurement(runs: Path, key: Key) -> Measurement:
    """Read the measurement of a recipe on a data set."""
    return _read(Measurement, runs / "measure" / f"{key}.json", "measure", key)


def read_run(runs: Path, params: Params, key: Key) -> Run:
    """Read one training, which must have been made with the parameters of its recipe."""
    path = runs / "train" / str(key) / "run.json"
    run = _read(Run, path, "train", key)
    if run.recipe_params != params.recipe(key.recipe).model_dump(mode="json"):
        raise UserError(
            f"{path} was trained with other parameters than recipes.{key.recipe} has now; "
            f"train it again with: {key.command('train')}"
        )
    return run


def read_evaluation(runs: Path, key: Key) -> Evaluation:
    """Read the evaluation of one training."""
    return _read(Evaluation, runs / "evaluate" / f"{key}.json", "evaluate", key)


def read_mixture(runs: Path, params: Params) -> Mixture:
    """Read the experiment with the mixture, which must have been made with the present parameters."""
    path = runs / "mixture.json"
    mixture = _validated(Mixture, _found(path, MIXTURE), MIXTURE)
    if mixture.settings != params.mixture.model_dump(mode="json"):
        raise UserError(f"{path} was made with other parameters than mixture has now; run: {MIXTURE}")
    return mixture


def read_densities(runs: Path, mixture: Mixture) -> dict[str, NDArray[np.float32]]:
    """The log-densities in nats of the mixture and of each model on a grid, each of shape (rows, columns)."""
    path = _found(runs / "mixture.npy", MIXTURE)
    if sha256(path) != mixture.densities_sha256:
        raise UserError(f"{path} is not what was written with {path.with_suffix('.json')}; run: {MIXTURE}")
    return dict(zip(mixture.densities, np.load(path, allow_pickle=False), strict=True))


def read_cell(runs: Path, params: Params, key: Key) -> Cell:
    """Read one training and its evaluation."""
    run, evaluation = read_run(runs, params, key), read_evaluation(runs, key)
    history = _present(runs / "train" / str(key) / "history.csv", "train", key)
    return Cell(key, run, evaluation, history, runs / "samples" / str(key) / "samples.npy")


def read_samples(cell: Cell, name: Grid = "samples") -> NDArray[np.uint8]:
    """A grid of images of a complete cell, of shape (rows, columns, height, width); see `pipeline.evaluate`."""
    path = _present(cell.samples.with_name(f"{name}.npy"), "evaluate", cell.key)
    try:
        grid: NDArray[np.uint8] = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged ({error}); write it again with: {cell.key.command('evaluate')}") from None
    if grid.ndim != 4 or grid.dtype != np.uint8 or grid.size == 0:
        raise UserError(
            f"{path} should be a grid (rows, columns, height, width) of uint8, but is {grid.shape} of "
            f"{grid.dtype}; write it again with: {cell.key.command('evaluate')}"
        )
    return grid


Q = TypeVar("Q", bound=Record)
R = TypeVar("R", bound=StageRecord)


def _read(kind: type[R], path: Path, stage: str, key: Key) -> R:
    record = _validated(kind, _present(path, stage, key), key.command(stage))
    if record.key != key:
        raise UserError(f"{path} is about {record.key} and not {key}; run: {key.command(stage)}")
    return record


def _validated(kind: type[Q], path: Path, command: str) -> Q:
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{path}: {place} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}; "
            f"write it again with: {command}"
        ) from None


def _present(path: Path, stage: str, key: Key) -> Path:
    return _found(path, key.command(stage))


def _found(path: Path, command: str) -> Path:
    if not path.is_file():
        raise UserError(f"{path} is missing; run: dvc repro, or: {command}")
    return path
