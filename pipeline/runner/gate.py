"""Tries the ways to compute a training step on this machine, against eager float32, and records which can be used."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from math import ceil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.core.cell import Key
from pipeline.core.console import UserError, command_parser, exit_with, say
from pipeline.core.dataset import Dataset, load_dataset
from pipeline.core.environment import choose_device, memory_errors
from pipeline.core.files import write_json
from pipeline.core.params import Recipe, Training, load_params
from pipeline.runner.plan import Gate, Trial
from pipeline.training.models import build, groups, initialise_
from pipeline.training.optimisation import TrainingStep

# Precision, capture and compile: the reference, then the variants, those that need longest to begin last.
REFERENCE = Trial(precision="float32", capture=False, compile=False)
VARIANTS = (
    Trial(precision="float32", capture=True, compile=False),
    Trial(precision="tf32", capture=True, compile=False),
    Trial(precision="bfloat16", capture=True, compile=False),
    Trial(precision="bfloat16", capture=False, compile=True),
    Trial(precision="bfloat16", capture=True, compile=True),
)
# The largest norm of a gradient's difference from the reference, relative to the reference's norm.
TOLERANCES = {"float32": 0.01, "tf32": 0.01, "bfloat16": 0.1}
STEPS, WARMUP = 20, 3
DISTURBANCE = 0.01  # the standard deviation of the noise on all parameters
TESTS, TESTS_SECONDS = Path("tests/pipeline/training/test_capture.py"), 20.0


def main() -> None:
    """Try the variants that the command line asks for."""
    parser = command_parser(
        "runner.gate",
        "Take some training steps of a recipe in eager float32 and in each faster way. Writes after each the time of a "
        "step and the error of the gradient to a JSON file.",
        example="--params runs/plan/params.yaml --dataset mnist --recipe realnvp --inputs x --out runs/plan/gate.json",
    )
    parser.add_argument("--dataset", required=True, help="which data set of the parameter file")
    parser.add_argument("--recipe", required=True, help="which recipe of the parameter file")
    parser.add_argument("--inputs", required=True, help="a digest of what the trials depend on, for the record")
    parser.add_argument("--fixed", action="store_true", help="try only the recipe's own settings beside the reference")
    parser.add_argument("--out", required=True, type=Path, help="the JSON file to write")
    arguments = parser.parse_args()
    params = load_params(arguments.params)
    recipe, device = params.recipe(arguments.recipe), choose_device(params.device, params.preset)
    if recipe.training is None:
        raise UserError(f"{arguments.recipe} is fitted in closed form and has no training steps to try")
    dataset = load_dataset(Path("data", arguments.dataset), arguments.dataset)
    gate = Gate(
        inputs=arguments.inputs,
        dataset=arguments.dataset,
        recipe=arguments.recipe,
        device=device.type,
        steps=steps_of(dataset, recipe, recipe.training),
        classes=len(groups(dataset, recipe)),
        cuda_tests=cuda_tests(TESTS, TESTS_SECONDS) if device.type == "cuda" else None,
    )
    if gate.cuda_tests:
        say(f"the tests on the GPU: {gate.cuda_tests}")
    own = REFERENCE.model_copy(update={name: getattr(recipe.training, name) for name in REFERENCE.settings})
    for trial in trials(recipe, dataset, device, (own,) if arguments.fixed else VARIANTS):
        gate = gate.model_copy(update={"trials": [*gate.trials, trial]})
        write_json(arguments.out, gate.model_dump(mode="json"))
        time_and_error = f"{trial.step_ms or 0:.2f} ms, gradient off by {trial.gradient_error or 0:.2g}"
        say(f"{Key(gate.dataset, gate.recipe)}, {trial}: {trial.error or time_and_error}")


def steps_of(dataset: Dataset, recipe: Recipe, training: Training) -> int:
    """The optimisation steps of all models of a recipe."""
    holdout = 0.0 if training.holdout == "test" else training.holdout
    counts = [
        len(dataset.train_labels) if label is None else int(np.sum(dataset.train_labels == label))
        for label in groups(dataset, recipe).values()
    ]
    batches = (ceil((count - round(holdout * count)) / training.batch_size) for count in counts)
    return sum(round(training.epochs * number) for number in batches)


def trials(
    recipe: Recipe, dataset: Dataset, device: torch.device, variants: tuple[Trial, ...] = VARIANTS
) -> Iterator[Trial]:
    """Try the reference and then each variant; one that raises has its error, and the others are still tried.

    On a CPU, precision, graphs and compilation hardly matter: the variants then differ in their times alone.
    """
    images = torch.from_numpy(dataset.train_images)
    reference: Tensor | None = None
    for variant in (REFERENCE, *(variant for variant in variants if variant != REFERENCE)):
        try:
            with memory_errors():
                step_ms, gradient = measure(recipe, images, device, variant)
        except (RuntimeError, MemoryError, UserError) as error:
            message = (str(error).splitlines() or [type(error).__name__])[0][:300]
            yield variant.model_copy(update={"error": f"{type(error).__name__}: {message}"})
            continue
        reference = gradient if variant == REFERENCE else reference
        if reference is None:
            yield variant.model_copy(update={"error": "there is no reference to compare its gradient with"})
            continue
        off = float((gradient - reference).norm() / reference.norm())
        tolerance = TOLERANCES[variant.precision]
        refusal = None if off <= tolerance else f"its gradient is off by {off:.2g}; at most {tolerance:g} is allowed"
        yield variant.model_copy(update={"step_ms": round(step_ms, 4), "gradient_error": off, "error": refusal})


def measure(recipe: Recipe, images: Tensor, device: torch.device, variant: Trial) -> tuple[float, Tensor]:
    """The milliseconds of a full step in a variant, and the gradient of the first step on the CPU, with shape (P,).

    Raises:
        RuntimeError: If the step fails, or its likelihood or gradient is not finite.
    """
    assert recipe.training is not None
    training = recipe.training.model_copy(update=variant.settings)
    torch.manual_seed(0)
    model = build(recipe, (1, *images.shape[1:])).to(device)
    chosen = images[: 8 * training.batch_size].to(device)
    initialise_(model, recipe, chosen, torch.Generator(device).manual_seed(1))
    disturbance = torch.Generator(device).manual_seed(3)
    with torch.no_grad():
        # The last convolutions of a RealNVP start at zero, and those before them would have no gradient to compare.
        for parameter in model.parameters():
            parameter.add_(DISTURBANCE * torch.randn(parameter.shape, generator=disturbance, device=device))
    batch = chosen[: training.batch_size]
    step = TrainingStep(model.train(), training, torch.Generator(device).manual_seed(2))
    step.take(batch)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    gradient = torch.cat([part.detach().flatten().double().cpu() for part in gradients])
    for _ in range(WARMUP):
        step.take(batch)
    step.read()
    begin = time.perf_counter()
    for _ in range(STEPS):
        step.take(batch)
    if step.read().failed:
        raise RuntimeError("the likelihood or the gradient is not finite")
    return 1000 * (time.perf_counter() - begin) / STEPS, gradient


def cuda_tests(path: Path, seconds: float) -> str:
    """The last line of the tests in a file that need a GPU, or why there is none; not of compiled networks.

    Whether compiled networks work here, the trials show.
    """
    if not path.is_file():
        return "there are none"
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-k", "not compiled", "-p", "no:cacheprovider", str(path)]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:g} s"
    lines = (finished.stdout + finished.stderr).strip().splitlines()
    return f"exit status {finished.returncode}: {lines[-1] if lines else 'no output'}"


if __name__ == "__main__":
    exit_with(main)
