"""The schemas of the JSON files that the stages write about the grid's cells."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat

from pipeline.core.cell import Key
from pipeline.core.files import without_paths

Message = Annotated[str, AfterValidator(without_paths)]
PositiveTime = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Status = Literal["complete", "diverged", "out_of_memory"]


class Record(BaseModel):
    """The part of a stage's file that collect reads: every number is finite, and other keys are ignored."""

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
    """The fields that the files of all three stages have in common."""

    dataset: str
    recipe: str
    seed: int | None = None
    status: Status
    message: Message | None
    environment: Environment

    @property
    def key(self) -> Key:
        """The key of the file's cell."""
        return Key(self.dataset, self.recipe, self.seed)


class Parameters(Record):
    """The number of stored parameters of a model, and the number of free ones among them."""

    stored: int
    free: int


class Model(Record):
    """The outcome of training one model."""

    holdout_images: int
    epochs: FiniteFloat | None = None
    best_epoch: FiniteFloat | None
    best_holdout_bits_per_dim: FiniteFloat | None
    infinite_pixels: int | None = None


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
    """The likelihood of the images of one class or of all; for all, also the mean of each dequantisation draw."""

    images: int
    bits_per_dim: Spread
    bits_per_dim_by_draw: list[FiniteFloat] | None = None
    poster_bits_per_pixel: FiniteFloat | None = None


class RoundTrip(Record):
    """The shares of pixels that survive the round trip to the latent and back."""

    pixels_exact: FiniteFloat
    pixels_within_one: FiniteFloat


class Latents(Record):
    """The figures of `pipeline.evaluation.latents.normality` for the latents of test images."""

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
    """The figures of `pipeline.evaluation.latents.fitted_normality` for the latents of test images."""

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
    """The raw samples of one time; if ``images`` is given, scaled from that many images to ``of`` images."""

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
    """Raw times of both computations of a log-determinant, a list of samples for each width."""

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
    """A model's negative log-likelihood on test points of the mixture, and its excess over that of the true density."""

    nats: Interval
    above_truth: Interval


class Mixture(Record):
    """`runs/mixture.json`; ``densities`` names the layers of the grid in `mixture.npy`; ``box`` has its corners."""

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
    """A cell of the grid that has no figures yet: its training is partial, or its stage is missing or failed."""

    stage: Literal["train", "evaluate", "measure"]
    dataset: str
    recipe: str
    seed: int | None = None
    status: Literal["partial", "missing", "failed"]
    message: Message

    @property
    def key(self) -> Key:
        """The key of the cell."""
        return Key(self.dataset, self.recipe, self.seed)
