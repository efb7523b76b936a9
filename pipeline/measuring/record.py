"""The record of the measure stage, `runs/measure/<key>.json`."""

from __future__ import annotations

from pydantic import Field, FiniteFloat

from pipeline.core.record import Parameters, PositiveTime, Record, StageRecord


class Timing(Record):
    """The raw samples of one time; if ``images`` is given, scaled from that many images to ``of`` images."""

    unit: str = "ms"
    per: str
    batch: int
    samples: list[PositiveTime] = Field(min_length=1)
    images: int | None = None
    of: int | None = None


class Memory(Record):
    """Memory of a process, in MiB; the last three only on a GPU."""

    process_start_mib: FiniteFloat
    process_peak_mib: FiniteFloat
    allocated_peak_mib: FiniteFloat | None = None
    reserved_peak_mib: FiniteFloat | None = None
    gpu_process_mib: FiniteFloat | None = None


class Determinant(Record):
    """Raw times of both computations of a log-determinant, a list of samples for each width."""

    widths: list[int]
    diagonal_ms: list[list[PositiveTime]]
    slogdet_ms: list[list[PositiveTime]]


class Measurement(StageRecord):
    """`runs/measure/<key>.json`; the names of times and memory are those of `pipeline.measuring.quantities`.

    ``floors_mib`` has a lower bound on the peak memory for sampling and, where there is one, for training.
    """

    device: str
    parameters: Parameters | None = None
    floors_mib: dict[str, FiniteFloat] | None = None
    times: dict[str, Timing | None] | None
    memory: dict[str, Memory | None] | None
    determinant: Determinant | None
