"""The record of the mixture stage, `runs/mixture.json`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, FiniteFloat

from pipeline.core.record import Environment, Message, Record, Status


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
    settings: dict[str, Any]
    seconds: FiniteFloat | None = None
    centres: list[tuple[FiniteFloat, FiniteFloat]]
    std: FiniteFloat
    entropy: FiniteFloat
    printed: FiniteFloat
    printed_honest: FiniteFloat
    models: dict[str, MixtureModel]
    box: Annotated[list[FiniteFloat], Field(min_length=4, max_length=4)]
    points: list[tuple[FiniteFloat, FiniteFloat]]
    densities: list[str]
    densities_sha256: str
    environment: Environment
