"""The record of the measure stage, `runs/measure/<key>.json`."""

from __future__ import annotations

from typing import Self

from pydantic import Field, FiniteFloat, model_validator

from pipeline.core.params import Precision
from pipeline.core.record import Message, Parameters, PositiveTime, Record, StageRecord

# The names of the times that a process takes together, after warm-up runs; of those that are first calls, and of the
# peaks of memory, each of which has a process of its own. Their functions are in `pipeline.measuring.quantities`.
WARM = ("step", "optimizer_step", "density_small", "density_large", "sampling_small", "sampling_large")
COLD = ("released_optimizer_step", "released_density", "released_sampling")
PEAKS = ("training", "sampling")


class Timing(Record):
    """The raw samples of one time; if ``images`` is given, scaled from that many images to ``of`` images.

    ``process`` has the number of the process, from 1, that took each sample; None if one took all. ``precision`` is
    that of the recipe's training, for a time of its steps.
    """

    unit: str = "ms"
    per: str
    batch: int
    samples: list[PositiveTime] = Field(min_length=1)
    process: list[int] | None = None
    images: int | None = None
    of: int | None = None
    precision: Precision | None = None

    @model_validator(mode="after")
    def _each_sample_has_its_process(self) -> Self:
        if self.process is not None and len(self.process) != len(self.samples):
            raise ValueError(f"has {len(self.samples)} samples and {len(self.process)} numbers of processes")
        return self

    def after(self, earlier: Timing | None) -> Timing:
        """The samples of ``earlier`` processes and then these, of one process more."""
        samples, process = (earlier.samples, earlier.process or []) if earlier else ([], [])
        process = [*process, *[max(process, default=0) + 1] * len(self.samples)]
        return self.model_copy(update={"samples": [*samples, *self.samples], "process": process})


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
    """Raw times of both computations of a log-determinant, a list of samples for each width.

    ``call_ms`` are times of the sum over the diagonal of a 1 x 1 matrix: what a call costs without any work.
    """

    widths: list[int]
    diagonal_ms: list[list[PositiveTime]]
    slogdet_ms: list[list[PositiveTime]]
    call_ms: list[PositiveTime] | None = None


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
    seconds: FiniteFloat | None = None
