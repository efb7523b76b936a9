"""What settings of an experiment change in the made-up figures of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from pipeline.results.subjects import Curve, Subject

T = TypeVar("T")


def by_seed(model: Subject, count: int) -> Subject:
    """The recipe with its first seeds alone, or with more that are like them."""

    def some(values: Mapping[int, T]) -> dict[int, T]:
        return {seed: values[seed % len(values)] for seed in range(count)} if values else {}

    metrics = {name: some(values) for name, values in model.metrics.items()}
    samples = {base: some(found) for base, found in model.class_samples.items()}
    return replace(model, metrics=metrics, curves=some(model.curves), class_samples=samples)


def by_process(model: Subject, count: int) -> Subject:
    """The recipe with the times of its first processes alone."""
    times = {}
    for name, time in model.times.items():
        left = [index for index, number in enumerate(time.process or []) if number < count]
        samples, process = [time.samples[index] for index in left], [(time.process or [])[index] for index in left]
        times[name] = replace(time, samples=samples, process=process) if left else time
    return replace(model, times=times)


def by_curve(model: Subject, change: Callable[[Curve], Curve]) -> Subject:
    curves = {seed: {name: change(found) for name, found in models.items()} for seed, models in model.curves.items()}
    return replace(model, curves=curves)


def by_metric(model: Subject, **values: float) -> Subject:
    count = max(map(len, model.metrics.values()), default=1)
    return replace(
        model, metrics={**model.metrics, **{name: dict.fromkeys(range(count), v) for name, v in values.items()}}
    )


def by_width(model: Subject, widths: slice) -> Subject:
    if model.determinant is None:
        return model
    values = model.determinant.model_dump()
    for name in ("widths", "diagonal_ms", "slogdet_ms"):
        values[name] = values[name][widths]
    return replace(model, determinant=type(model.determinant).model_validate(values))


def longer(curve: Curve) -> Curve:
    """The training, ten times as long, with nothing gained."""
    return Curve([*curve.epochs, 10 * curve.epochs[-1]], [*curve.bits_per_dim, curve.bits_per_dim[-1]])


def sparser(curve: Curve) -> Curve:
    """The training with a third of its validations."""
    epochs, bits = ([values[0], *values[1::3], values[-1]] for values in curve)
    return Curve(epochs, bits)


def elsewhere(curve: Curve) -> Curve:
    """The training from a worse start."""
    return Curve(curve.epochs, [curve.bits_per_dim[0] + 5, *curve.bits_per_dim[1:]])


# Recorded bits/dim of LU-Net on MNIST, of one seed, by what was set; of all but the lengths on held-out images.
RECORDED: dict[str, dict[str, float]] = {
    "start": {"copula": 1.568, "whitening": 1.863, "identity": 2.037},
    "margin": {"1e-3": 1.563, "1e-4": 1.584, "1e-6": 1.591},
    "epochs": {"laptop": 1.553, "overnight": 1.508},
}
RECORDED_GAUSSIAN, RECORDED_REALNVP = 2.012, 1.243
FIGURES = ("bits_per_dim", "gain_over_gaussian", "gain_over_identity")
# How far three seeds of one recipe are apart, by their gains over its start.
RECORDED_SPREAD = {
    "lunet": Subject({name: {0: 0.057, 1: 0.073, 2: 0.067} for name in FIGURES}),
    "realnvp": Subject({"bits_per_dim": {0: 0.0, 1: 0.0, 2: 0.0}}),
}


def recorded(bits: float) -> dict[str, Subject]:
    """Both recipes at one seed, of which LU-Net needs so many bits/dim and its identity about 6."""
    values = (bits, RECORDED_GAUSSIAN - bits, 6 - bits)
    return {
        "lunet": Subject({name: {0: value} for name, value in zip(FIGURES, values, strict=True)}),
        "realnvp": Subject({"bits_per_dim": {0: RECORDED_REALNVP}}),
    }


# The name of a setting, and what it makes of a recipe's figures.
SETTINGS: dict[str, Callable[[Subject], Subject]] = {
    "one seed": lambda model: by_seed(model, 1),
    "two seeds": lambda model: by_seed(model, 2),
    "six seeds": lambda model: by_seed(model, 6),
    "one process": lambda model: by_process(model, 1),
    "two processes": lambda model: by_process(model, 2),
    "epochs": lambda model: by_metric(by_curve(model, longer), best_epoch=400.0),
    "validations": lambda model: by_curve(model, sparser),
    "start": lambda model: by_metric(by_curve(model, elsewhere), gain_over_start=5.0),
    "margin": lambda model: by_metric(model, margin=0.01, outside_least=0.01, outside_most=0.03),
    "fewer widths": lambda model: by_width(model, slice(1, None)),
    "two widths": lambda model: by_width(model, slice(2)),
}
