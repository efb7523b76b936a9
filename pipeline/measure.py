"""The measure stage: times and memory of one recipe's architecture, in processes of their own.

Each of `measure.processes` takes all times that are warmed up: the same code is faster in one process than in another,
because of where its memory lies and what else the machine does, and repetitions within one cannot show that. Each first
call and each peak of memory has a process of its own, between those, which are thus apart in time. This process does
not import torch: a server imports it once, and every measuring process is forked from the server.
"""

from __future__ import annotations

import math
import multiprocessing
import signal
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pipeline.core.cell import Key, cell_parser
from pipeline.core.console import UserError, exit_with, say
from pipeline.core.dataset import load_dataset
from pipeline.core.files import write_json
from pipeline.core.load import OtherCores
from pipeline.core.params import Params, load_params
from pipeline.measuring.record import COLD, PEAKS, WARM, Measurement

WHOLE = ["times.released_density"]  # timed on all training images
# The server's imports. The first optimiser imports torch's compiler, which would count as memory of a quantity.
PRELOADED = ["pipeline.measuring.quantities", "torch._dynamo"]


def main() -> None:
    """Measure the cell that the command line names."""
    parser = cell_parser(
        "measure",
        "Measure one recipe's architecture: time of a whole optimisation step, of optimizer.step() alone, of density "
        "and sampling per image, and peak memory of training and sampling. Times are warmed up and synchronised, and "
        "every raw sample is kept. What the stopwatch of the released code would print is measured too. Let nothing "
        "else run meanwhile.",
        out="runs/measure/mnist-lunet.json",
        out_help="the JSON file to write",
        seed=False,
    )
    arguments = parser.parse_args()
    begin, params, other_cores = time.perf_counter(), load_params(arguments.params), OtherCores()
    params.recipe(arguments.recipe)
    dataset = load_dataset(arguments.data or Path("data") / arguments.dataset, arguments.dataset)
    measured = measure(params, Key(arguments.dataset, arguments.recipe), dataset.train_images)
    others = other_cores.mean(seconds_of_children()) if psutil.LINUX else None
    seconds = round(time.perf_counter() - begin, 3)
    measured = measured.model_copy(update={"other_cores": others, "seconds": seconds})
    write_json(arguments.out, measured.model_dump(mode="json"), sealed=True)
    say(f"{arguments.dataset} {arguments.recipe}: {measured.status}, written to {arguments.out}")


def processes(count: int) -> list[list[str]]:
    """The quantities of each process in turn, named by the field of the record that they fill.

    Args:
        count: How many processes take the times that are warmed up.
    """
    warm = [f"times.{name}" for name in WARM]
    single = [*([f"times.{name}"] for name in COLD), *([f"memory.{name}"] for name in PEAKS)]
    turns, gaps = [["about", *warm, "determinant"]], max(count - 1, 1)
    share = math.ceil(len(single) / gaps)
    for gap in range(gaps):
        turns += single[gap * share : (gap + 1) * share]
        if count > 1:
            turns.append(warm)
    return turns


def measure(params: Params, key: Key, images: np.ndarray[Any, np.dtype[np.uint8]]) -> Measurement:
    """Measure one architecture; a quantity that does not apply is None, and lack of memory is a status.

    Args:
        params: The parameters.
        key: The data set and the recipe.
        images: All training images, uint8, with shape (N, H, W).
    """
    training = params.recipe(key.recipe).training
    largest = max(params.measure.large_batch, 1 if training is None else training.batch_size)
    first_images = images[:largest].copy()
    values = {"dataset": key.dataset, "recipe": key.recipe, "status": "complete", "message": None, "determinant": None}
    fields: dict[str, dict[str, Any]] = {"times": dict.fromkeys((*WARM, *COLD)), "memory": dict.fromkeys(PEAKS)}
    try:
        for quantities in processes(params.measure.processes):
            shown = images if quantities == WHOLE else first_images
            outcomes = apart(quantities, params, key.recipe, shown)
            for quantity, value in zip(quantities, outcomes, strict=True):
                field, _, name = quantity.partition(".")
                if name in WARM and value is not None:
                    fields[field][name] = value.after(fields[field][name])
                elif name:
                    fields[field][name] = value
                else:
                    values |= value if field == "about" else {field: value}
    except MemoryError as error:
        if "environment" not in values:
            raise
        values |= {"status": "out_of_memory", "message": str(error)}
    return Measurement.model_validate(values | fields)


def apart(quantities: Sequence[str], *work: Any) -> Iterator[Any]:
    """Measure quantities in a new process, forked if possible from a server that has only imported modules.

    Each value is yielded as soon as it is known.

    Raises:
        MemoryError: If memory did not suffice, or the system killed the process for lack of memory.
        UserError: If the process ended with an error status for another reason.
    """
    forked = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver") if forked else multiprocessing.get_context("spawn")
    context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send, args=(sender, quantities, *work))
    process.start()
    sender.close()
    for quantity in quantities:
        try:
            outcome = receiver.recv()
        except EOFError:
            process.join()
            outcome = (
                MemoryError(f"the process that took {quantity} was killed, as the system does when memory runs out")
                if process.exitcode == -signal.SIGKILL
                else UserError(f"the process that took {quantity} ended with exit status {process.exitcode}")
            )
        if isinstance(outcome, BaseException):
            process.join()
            raise outcome
        yield outcome
    process.join()


def seconds_of_children() -> float:
    """The CPU seconds of this process's running children and, known on Linux alone, of those children's own.

    The measuring processes are children of their server.
    """
    return float(sum(sum(child.cpu_times()[:4]) for child in psutil.Process().children()))


def send(sender: Connection, quantities: Sequence[str], *work: Any) -> None:
    """Measure quantities and send each result, or the first error."""
    from pipeline.measuring.quantities import take

    try:
        for quantity in quantities:
            sender.send(take(quantity, *work))
    except Exception as error:
        sender.send(error)


if __name__ == "__main__":
    exit_with(main)
