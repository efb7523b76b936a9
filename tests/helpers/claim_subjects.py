"""Made-up evidence of recipes, for the tests of the claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.evaluation.record import ClassSamples
from pipeline.measuring.record import Determinant
from pipeline.results.claims import load_claims
from pipeline.results.subjects import Curve, Subject, Times
from pipeline.results.verdicts import Scale, judge

CLAIMS = {claim.id: claim for claim in load_claims().claims}
LAPTOP = Scale("laptop", "MNIST", subset=False, as_in_paper=frozenset(), large_batch_as_in_paper=False)
PAPER = Scale("paper", "MNIST", subset=False, as_in_paper=frozenset({"lunet", "realnvp"}), large_batch_as_in_paper=True)
# What three seeds, or three processes, make of a figure.
JITTER = (0.99, 1.0, 1.01)


def subject(device: str = "cpu", /, **metrics: float | Sequence[float]) -> Subject:
    """A recipe with these metrics, one value for each seed; all recipes have the same times."""
    by_seed = {name: dict(enumerate(v if isinstance(v, Sequence) else [v])) for name, v in metrics.items()}
    times = {"density_large_ms": times_of(1.0, 1000), "sampling_large_ms": times_of(2.0, 1000)}
    return Subject(by_seed, times, None, "all", frozenset({device}), frozenset({"aa"}))


def verdict(claim: str, scale: Scale, **subjects: Subject) -> tuple[str, str]:
    """The overall verdict on a claim from one data set, and its sentence."""
    judgement = judge(CLAIMS[claim], {"mnist": scale}, {"mnist": subjects})
    return judgement["verdict"], judgement["datasets"][0]["sentence"]


def evidence_items(claim: str, scale: Scale, **subjects: Subject) -> dict[str, Any]:
    """The evidence of a claim on one data set, by name."""
    judged = judge(CLAIMS[claim], {"mnist": scale}, {"mnist": subjects})
    return {item["name"]: item for item in judged["datasets"][0]["evidence"]}


def times_of(milliseconds: float, batch: int = 256, spread: Sequence[float] = JITTER) -> Times:
    """A time that each process takes twice, processes being apart by the factors in ``spread``."""
    samples = [milliseconds * factor for factor in spread for _ in range(2)]
    return Times(samples, "step", "ms", batch, process=[number for number in range(len(spread)) for _ in range(2)])


def timed(device: str, milliseconds: float, batch: int = 256, machine: str = "aa") -> Subject:
    """A recipe whose training step and other times take ``milliseconds``."""
    names = ("step_ms", "density_large_ms", "sampling_large_ms")
    times = dict.fromkeys(names, times_of(milliseconds, batch))
    return Subject({}, times, None, "all", frozenset({device}), frozenset({machine}))


def weighed(*mebibytes: float) -> Subject:
    """A recipe whose training a GPU's allocator gave that much memory, at one or several counts."""
    times = {"memory_training_mib": Times([*mebibytes], "allocator", "MiB")}
    return replace(subject("cuda"), times=times)


def curve(scale: float, best: float = 1.0, last: float = 100.0, validations: int = 40) -> Curve:
    """A training whose gain depends on the epoch over ``scale``, and that tends to ``best`` bits/dim."""
    epochs = np.geomspace(0.01, last, validations)
    return Curve([0.0, *epochs.tolist()], [best + 1.0, *(best + 1 / (1 + epochs / scale)).tolist()])


def trained(*scales: float) -> Subject:
    """A recipe with a training curve for each seed."""
    return replace(subject("cuda"), curves={seed: {"all": curve(scale)} for seed, scale in enumerate(scales)})


def determined(
    diagonal: float, dense: float, widths: Sequence[int] = (256, 512, 1024, 2048), *, noise: float = 0.02
) -> Subject:
    """Determinant times, the 0.5 ms of a call and two power laws, which meet at D = 64 and 1.5 ms."""
    random = np.random.default_rng(0)

    def times(exponent: float) -> list[list[float]]:
        return [((0.5 + (width / 64) ** exponent) * random.lognormal(0, noise, 15)).tolist() for width in widths]

    timings = Determinant(
        widths=[*widths], diagonal_ms=times(diagonal), slogdet_ms=times(dense), call_ms=[0.5, 0.4, 0.6]
    )
    return replace(subject("cuda"), determinant=timings)


def drawn(*shares: float, of_each: int = 100, base: str = "fitted") -> Subject:
    """A recipe of whose samples, ten classes of each seed, these shares are right."""
    samples = {
        seed: ClassSamples(of_each=of_each, right=[round(of_each * share)] * 10) for seed, share in enumerate(shares)
    }
    return replace(subject("cuda"), class_samples={base: samples})
