"""The plan of a run in limited time: what comes first, how long each step may take, and what a speed allows."""

from __future__ import annotations

import contextlib
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, FiniteFloat, ValidationError

from pipeline.core.cell import COMMANDS, cells_of
from pipeline.core.console import UserError
from pipeline.core.files import read_json, sha256
from pipeline.core.params import Params, Precision, Recipe
from pipeline.core.record import Message, Record
from pipeline.runner.archive import code_digests
from pipeline.runner.processes import run_while
from pipeline.runner.steps import Step

FOLDER = Path("runs/plan")
PLANNED, GATE = FOLDER / "params.yaml", FOLDER / "gate.json"
# The recipe whose arithmetic is chosen by the gate.
GATED = "realnvp"
# What is worth most comes first. The blocks come in order; in a block, one data set after the other, row by row.
# An architecture is measured on the first data set only; its other measurements and all other cells come at the end.
ORDER = (
    (("measure", ("lunet", "realnvp")),),
    (("train", ("gaussian", "histogram", "lunet")), ("train", ("realnvp",))),
    (("train", ("lunet_learned",)),),
    (("train", ("lunet_released",)),),
    (("train", ("realnvp_released",)),),
)
# Seconds. STOPPING: a training ends its step and writes its checkpoint. WRITING, EVALUATING: its finished classes are
# written and evaluated. PACKING: the archive is written. WORTHWHILE: the least that must be left to begin a cell.
STOPPING, WRITING, EVALUATING, PACKING, WORTHWHILE = 3.0, 8.0, 30.0, 1.0, 5.0
SHORTEST = STOPPING + WRITING + EVALUATING + PACKING + 2 * WORTHWHILE
# For the decision after the gate: the seconds of all that comes before the gated training; the time of a training with
# its validations relative to its steps alone; the limits of both calls, and what the second needs to start.
BEFORE, WITH_VALIDATIONS, FIRST_CALL, SECOND_CALL, STARTING = 50.0, 1.07, 590, 190, 10.0


def in_order(cells: Iterable[Step], params: Params) -> list[Step]:
    """Sort cells by worth: the first seed before all others, then by `ORDER`, then by the order of the grid."""
    seeds, stages, keys = params.grid.seeds, tuple(COMMANDS), cells_of(params)
    places = {key: place for of_stage in keys.values() for place, key in enumerate(of_stage)}
    datasets = list(dict.fromkeys(key.dataset for key in [*keys["train"], *keys["measure"]]))
    measured = keys["measure"][0].dataset

    def rank(step: Step) -> tuple[int, ...]:
        kind, key = "measure" if step.stage == "measure" else "train", step.key
        seed = 0 if key.seed is None else seeds.index(key.seed)
        stage, dataset = stages.index(step.stage), datasets.index(key.dataset)
        for block, rows in enumerate(ORDER):
            for row, (of_kind, recipes) in enumerate(rows):
                if of_kind == kind and key.recipe in recipes and (kind == "train" or key.dataset == measured):
                    return seed, block, dataset, row, recipes.index(key.recipe), stage
        return seed, len(ORDER) + (kind == "measure"), dataset, 0, places[key], stage

    return sorted(cells, key=rank)


@dataclass
class Budget:
    """The time that a command has, and how much of it is kept back to stop, to evaluate and to pack.

    Args:
        limit: The seconds after ``begin`` within which the command must end.
        clock: The clock, in seconds.
        begin: The clock's time at the beginning; now by default.
        packing: The seconds that packing takes; a runner replaces it by what it measures.
        evaluating: The seconds that the evaluation of a recipe took, where it is known.
    """

    limit: float
    clock: Callable[[], float] = time.monotonic
    begin: float | None = None
    packing: float = PACKING
    evaluating: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.begin = self.clock() if self.begin is None else self.begin

    @property
    def elapsed(self) -> float:
        """The seconds since the beginning."""
        return self.clock() - (self.begin or 0.0)

    def left(self, step: Step | None = None) -> float:
        """The seconds until a step must be stopped; without one, until everything but packing must be."""
        reserve = STOPPING + self.packing
        if step is not None and step.stage == "train":
            reserve += WRITING + self.evaluating.get(step.key.recipe, EVALUATING)
        return self.limit - self.elapsed - reserve


class Trial(Record):
    """One way to compute a training step: its time, and how far its first gradient is from the reference's.

    ``gradient_error`` is the norm of the difference divided by the reference's norm. ``error`` says why the variant
    cannot be used, if it cannot.
    """

    precision: Precision
    capture: bool
    compile: bool
    step_ms: FiniteFloat | None = None
    gradient_error: FiniteFloat | None = None
    error: Message | None = None

    @property
    def settings(self) -> dict[str, str | bool]:
        """The settings of ``training`` in a recipe."""
        return self.model_dump(include={"precision", "capture", "compile"})

    def __str__(self) -> str:
        words = [self.precision, *(["captured"] if self.capture else []), *(["compiled"] if self.compile else [])]
        return ", ".join(words)


class Gate(Record):
    """`runs/plan/gate.json`: the variants that were tried on this machine; the first is eager float32, the reference.

    ``inputs`` is a digest of what the trials depend on, ``steps`` the number of steps of the whole training.
    """

    inputs: str
    dataset: str
    recipe: str
    device: str
    steps: int
    classes: int
    cuda_tests: Message | None = None
    trials: list[Trial] = Field(default_factory=list)

    def of(self, training: Mapping[str, Any]) -> Gate:
        """The gate with those trials alone that can be used and have the settings of a training."""
        trials = [trial for trial in self.trials if trial.error is None and trial.step_ms is not None]
        own = [trial for trial in trials if not trial.settings.items() - training.items()]
        return self.model_copy(update={"trials": own})

    @property
    def chosen(self) -> Trial:
        """The fastest variant without an error; eager float32 if there is none."""
        usable = [trial for trial in self.trials if trial.error is None and trial.step_ms is not None]
        fallback = Trial(precision="float32", capture=False, compile=False)
        return min(usable, key=lambda trial: trial.step_ms or 0.0, default=fallback)


def decision(gate: Gate, seconds: float, second_call: float) -> str:
    """What the chosen variant's speed means for a training, in a sentence.

    Args:
        gate: The gate's record.
        seconds: What this call has for the training.
        second_call: What a second call on the same machine would have.
    """
    step_ms = gate.chosen.step_ms
    if step_ms is None:
        return f"{gate.recipe}: no variant was timed, so nothing is known about its training; it runs in {gate.chosen}"
    needed = gate.steps * step_ms / 1000 * WITH_VALIDATIONS
    shares = [min(1.0, max(0.0, total) / needed) for total in (seconds, seconds + second_call)]
    fits = [int(share * gate.classes) for share in shares]
    has = "has no limit" if math.isinf(seconds) else f"has {max(0.0, seconds):.0f} s for them"
    sentence = (
        f"{gate.recipe}: {step_ms:.2f} ms a step ({gate.chosen}), so {gate.steps:,} steps for {gate.classes} class(es) "
        f"take {needed:.0f} s; this call {has}: "
    )
    if fits[0] == gate.classes:
        return f"{sentence}all fit"
    if fits[1] == gate.classes:
        return f"{sentence}{fits[0]} of {gate.classes} classes fit, and the training goes on in a second call"
    return f"{sentence}{fits[0]} of {gate.classes} classes fit, with a second call {fits[1]}; never fewer epochs"


def gate_inputs(recipe: Recipe, dataset: str, *, fixed: bool) -> str:
    """A digest of what the gate's trials depend on.

    Args:
        recipe: The recipe.
        dataset: The data set.
        fixed: Whether the recipe's own precision, capture and compilation are tried, or all are.
    """
    settings = recipe.model_dump(mode="json")
    if not fixed:
        for name in ("precision", "capture", "compile"):
            settings["training"].pop(name)
    inputs = [platform.node(), platform.python_version(), code_digests(), dataset, settings]
    return sha256(json.dumps(inputs, sort_keys=True).encode())


def try_variants(path: Path, dataset: str, inputs: str, is_allowed: Callable[[], bool], *, fixed: bool) -> int:
    """Run the gate in a process of its own, as long as it is allowed to run, and return its exit status."""
    GATE.unlink(missing_ok=True)
    options = ["--params", str(path), "--dataset", dataset, "--recipe", GATED, "--inputs", inputs, "--out", str(GATE)]
    command = [sys.executable, "-m", "pipeline.runner.gate", *options, *(["--fixed"] if fixed else [])]
    return run_while(command, is_allowed)


def read_gate() -> Gate | None:
    """The gate's record, if there is one that can be read."""
    with contextlib.suppress(UserError, ValidationError):
        return Gate.model_validate(read_json(GATE)) if GATE.exists() else None
    return None


def advice(archive: Path, options: str, published: Path | None, *, done: bool) -> list[str]:
    """The commands to give next.

    Args:
        archive: The archive of this call.
        options: The options of this call, but for its limit, archive and published run.
        published: The published run whose cells this call left out.
        done: Whether nothing is left to do.
    """
    name, left_out = (published.name, f" --published {published}") if published else ("NAME", "")
    publish = f"publish it: python -m pipeline.publish {archive} {name}"
    if done:
        return [publish]
    command = f"python -m pipeline.run{options} --out {archive.parent} --time-limit"
    return [
        f"next, here and at once: {command} {SECOND_CALL}{left_out}",
        publish,
        f"then, on a fresh machine: {command} {FIRST_CALL} --published reports/published/{name}",
    ]
