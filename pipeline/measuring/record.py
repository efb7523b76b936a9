"""The record of the measure stage, `runs/measure/<key>.json`."""

from __future__ import annotations

from pydantic import Field, FiniteFloat

from pipeline.core.params import Precision
from pipeline.core.record import Message, Parameters, PositiveTime, Record, StageRecord

# The names of the times that one process takes, after warm-up runs; of those that are first calls, and of the peaks of
# memory, each of which has a process of its own. Their functions are in `pipeline.measuring.quantities`.
WARM = ("step", "optimizer_step", "density_small", "density_large", "sampling_small", "sampling_large")
COLD = ("released_optimizer_step", "released_density", "released_sampling")
PEAKS = ("training", "sampling")


class Timing(Record):
    """The raw samples of one time; if ``images`` is given, scaled from that many images to ``of`` images.

    ``precision`` is that of the recipe's training, for a time of its steps.
    """

    unit: str = "ms"
    per: str
    batch: int
    samples: list[PositiveTime] = Field(min_length=1)
    images: int | None = None
    of: int | None = None
    precision: Precision | None = None


class Memory(Record):
    """Memory of a process, in MiB; all but the first two only on a GPU.

    ``gpu_process_source`` tells how ``gpu_process_mib`` was determined, or why it is unknown.
    """

    process_start_mib: FiniteFloat
    process_peak_mib: FiniteFloat
    allocated_peak_mib: FiniteFloat | None = None
    reserved_peak_mib: FiniteFloat | None = None
    gpu_process_mib: FiniteFloat | None = None
    gpu_process_source: Message | None = None


class Determinant(Record):
    """Raw times of both computations of a log-determinant, a list of samples for each width."""

    widths: list[int]
    diagonal_ms: list[list[PositiveTime]]
    slogdet_ms: list[list[PositiveTime]]


class Measurement(StageRecord):
    """`runs/measure/<key>.json`, with None for times and memory that do not apply to the recipe or were not reached.

    ``image_shape`` is the height and the width of the images; the measurement holds for all data sets with such images.
    ``floors_mib`` has a lower bound on the peak memory for sampling and, where there is one, for training.
    """

    device: str
    image_shape: tuple[int, int] | None = None
    parameters: Parameters | None = None
    floors_mib: dict[str, FiniteFloat] | None = None
    times: dict[str, Timing | None] | None
    memory: dict[str, Memory | None] | None
    determinant: Determinant | None
