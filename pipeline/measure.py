"""The measure stage: times and memory of one recipe's architecture, each quantity in a separate process.

This process does not import torch: a server imports it once, and every measuring process is forked from the server.
"""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.cell import Key, cell_parser
from pipeline.core.console import UserError, exit_with, say
from pipeline.core.dataset import load_dataset
from pipeline.core.files import write_json
from pipeline.core.params import Params, load_params
from pipeline.measuring.record import Measurement

WHOLE = "time_released_density"  # timed on all training images
# The server's imports. The first optimiser imports torch's compiler, which would count as memory of a quantity.
PRELOADED = ["pipeline.measuring.quantities", "torch._dynamo"]


def main() -> None:
    """Measure the cell that the command line names."""
    parser = cell_parser(
        "measure",
        "Measure one recipe's architecture: time of a whole optimisation step, of optimizer.step() alone, of density "
        "and sampling per image, and peak memory of training and sampling. Every quantity is taken in a process of "
        "its own, warmed up and synchronised; every raw sample is kept. Beside them stands what the stopwatch of the "
        "released code would print. Let nothing else run meanwhile.",
        out="runs/measure/mnist-lunet.json",
        out_help="the JSON file to write",
        seed=False,
    )
    arguments = parser.parse_args()
    params = load_params(arguments.params)
    params.recipe(arguments.recipe)
    dataset = load_dataset(arguments.data or Path("data") / arguments.dataset, arguments.dataset)
    measured = measure(params, Key(arguments.dataset, arguments.recipe), dataset.train_images)
    write_json(arguments.out, measured.model_dump(mode="json"), sealed=True)
    say(f"{arguments.dataset} {arguments.recipe}: {measured.status}, written to {arguments.out}")


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

    def take(quantity: str) -> Any:
        return apart(quantity, params, key.recipe, images if quantity == WHOLE else first_images)

    values = {"dataset": key.dataset, "recipe": key.recipe, "status": "complete", "message": None, **take("about")}
    try:
        for name in values["times"]:
            values["times"][name] = take(f"time_{name}")
        for name in values["memory"]:
            values["memory"][name] = take(f"weigh_{name}")
        values["determinant"] = take("time_determinants")
    except MemoryError as error:
        values |= {"status": "out_of_memory", "message": str(error)}
    return Measurement.model_validate(values)


def apart(quantity: str, *work: Any) -> Any:
    """Measure one quantity in a new process, forked if possible from a server that has only imported modules.

    Raises:
        MemoryError: If memory did not suffice, or the system killed the process for lack of memory.
        UserError: If the process ended with an error status for another reason.
    """
    forked = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver") if forked else multiprocessing.get_context("spawn")
    context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send, args=(sender, quantity, *work))
    process.start()
    sender.close()
    try:
        outcome = receiver.recv()
    except EOFError:
        outcome = None
    process.join()
    if isinstance(outcome, BaseException):
        raise outcome
    if process.exitcode == -signal.SIGKILL:
        raise MemoryError(f"the process of {quantity} was killed, as the system does when memory runs out")
    if process.exitcode:
        raise UserError(f"the process that took {quantity} ended with exit status {process.exitcode}")
    return outcome


def send(sender: Connection, quantity: str, *work: Any) -> None:
    """Measure a quantity and send the result or the error."""
    from pipeline.measuring.quantities import take

    try:
        sender.send(take(quantity, *work))
    except Exception as error:
        sender.send(error)


if __name__ == "__main__":
    exit_with(main)
