"""What the stages wrote about the grid's cells: read, checked, and refused with the file and the command to mend it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat

from pipeline.core.cell import Key
from pipeline.core.files import without_paths

Message = Annotated[str, AfterValidator(without_paths)]
PositiveTime = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Status = Literal["complete", "diverged", "out_of_memory"]


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
    """What `pipeline.evaluation.latents.normality` says of the latents of test images."""

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
    """What `pipeline.evaluation.latents.fitted_normality` says of the latents of test images."""

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
