"""The figures of a recipe on a data set, in the form that metrics and claims use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.evaluation.record import ClassSamples
from pipeline.measuring.record import Determinant
from pipeline.results.claims import Verdict


@dataclass(frozen=True)
class Times:
    """Raw samples of one quantity: times in milliseconds or memory in MiB.

    ``process`` has for each sample the number of the process that took it. Where ``images`` is less than ``of``, a time
    was taken on that many images and scaled to all of them. A time of training steps has their ``precision``. Memory by
    a GPU's allocator has in ``gpu_process`` how that of the whole process is known.
    """

    samples: list[float]
    per: str
    unit: str
    batch: int | None = None
    images: int | None = None
    of: int | None = None
    precision: str | None = None
    gpu_process: str | None = None
    process: list[int] | None = None


class Curve(NamedTuple):
    """The validations of a training: epochs, in order, and held-out bits/dim."""

    epochs: list[float]
    bits_per_dim: list[float]


@dataclass(frozen=True)
class Subject:
    """The figures of one recipe on one data set; ``trouble`` says why a figure may be missing.

    Metrics are by seed. ``by_class`` has those that are known by seed and class, if each class has a model of its own;
    ``curves`` has a training by seed and model, and ``class_samples`` the judged samples by the Gaussian that they are
    drawn from and by seed.
    """

    metrics: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    times: Mapping[str, Times] = field(default_factory=dict)
    determinant: Determinant | None = None
    classes: str | None = None
    devices: frozenset[str] = frozenset()
    machines: frozenset[str] = frozenset()
    trouble: str | None = None
    by_class: Mapping[str, Mapping[int, Mapping[str, float]]] = field(default_factory=dict)
    curves: Mapping[int, Mapping[str, Curve]] = field(default_factory=dict)
    class_samples: Mapping[str, Mapping[int, ClassSamples]] = field(default_factory=dict)

    def metric(self, name: str, label: str = "") -> Mapping[int, float]:
        """A metric's values by seed; raises an `UndecidedError`, which has the ``label``, if there are none."""
        if not self.metrics.get(name):
            raise UndecidedError(self.trouble or f"there is no figure for the {label or name}")
        return self.metrics[name]

    def time(self, name: str) -> Times:
        """The samples of a time or of memory; raises an `UndecidedError` if there are none."""
        if name not in self.times:
            raise UndecidedError(self.trouble or f"{name} was not measured")
        return self.times[name]


class UndecidedError(Exception):
    """A claim that cannot be decided: a figure is missing, or two recipes cannot be compared.

    The message says which and why; ``verdict`` is that of the claim.
    """

    def __init__(self, message: str, verdict: Verdict = "not_tested") -> None:
        super().__init__(message)
        self.verdict = verdict


# The figures of each recipe that a claim compares, in the claim's order; and those of all, by data set.
Compared = Mapping[str, Subject]
Subjects = Mapping[str, Mapping[str, Subject]]
