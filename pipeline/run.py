"""Runs the pipeline without DVC: the most valuable cells first, within a time limit, and no cell twice."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from filelock import FileLock, Timeout

from pipeline.core.cell import COMMANDS, cells_of
from pipeline.core.console import StopRequest, UserError, command_parser, exit_with, say
from pipeline.core.files import write_json
from pipeline.core.params import Params, load_params, read_yaml
from pipeline.results.reading import RECORDS, CellStatus, read_record
from pipeline.runner.archive import epochs_of, pack, unpack
from pipeline.runner.steps import Ledger, Step, read_steps

CELLS = tuple(COMMANDS)
# The most valuable cells first; all others follow in the order of the parameter file.
ORDER = (
    ("measure", ("lunet", "realnvp")),
    ("train", ("lunet", "lunet_released")),
    ("train", ("gaussian", "histogram")),
    ("train", ("realnvp",)),
    ("train", ("realnvp_released",)),
)
RUNS, REPORTS = Path("runs"), Path("reports")
UNFINISHED = RUNS / "unfinished.json"
LOCK = RUNS / ".run.lock"
TIME_IS_UP = 3
# Seconds: for a training to end its step and write its checkpoint; to collect, report and pack; the least that must be
# left to begin a cell; between two polls of a running step.
GRACE, CLOSING, WORTHWHILE, PAUSE = 20.0, 60.0, 5.0, 0.1


class TimeIsUpError(UserError):
    """A step was stopped because of the time limit."""


def main() -> None:
    """Run the grid as the command line says."""
    parser = command_parser(
        "run",
        "Run every stage of dvc.yaml for the whole grid of the parameter file, without DVC. What is done "
        "already, from the same parameters, code and data, is not done again. The same command again goes on where the "
        f"last one was stopped. Ends with status 0 when all is done, {TIME_IS_UP} when time was up before, 1 when a "
        "cell failed.",
        example="--time-limit 540 --pack paper.tar.gz",
    )
    parser.add_argument("--time-limit", type=float, default=math.inf, metavar="SECONDS", help="end within this time")
    parser.add_argument("--pack", type=Path, metavar="ARCHIVE", help="pack what is done so far into this .tar.gz file")
    arguments = parser.parse_args()
    begin = time.monotonic()
    reserve = GRACE + CLOSING
    if not arguments.time_limit >= reserve + 2 * WORTHWHILE:
        raise UserError(f"--time-limit must be at least {reserve + 2 * WORTHWHILE:g} seconds")
    RUNS.mkdir(exist_ok=True)
    try:
        with FileLock(LOCK, timeout=0), StopRequest() as request:
            runner = Runner(arguments.params, begin + arguments.time_limit - reserve, request)
            status = runner.run(arguments.pack)
    except Timeout:
        raise UserError("another python -m pipeline.run is at work in this folder; wait for its end") from None
    sys.exit(status)


class Runner:
    """Runs steps one after the other until a deadline, and records the outcome of each.

    Args:
        path: The parameter file.
        deadline: The time of the monotonic clock at which a running step is stopped.
        request: The request to stop at once.
    """

    def __init__(self, path: Path, deadline: float, request: StopRequest) -> None:
        self._path, self._deadline, self._request = path, deadline, request
        self._params: Params = load_params(path)
        values = read_yaml(path)
        self._steps = read_steps(values)
        self._ledger = Ledger(self._steps, values)
        self._mixture = next(step for step in self._steps if step.stage == "mixture")
        self._failed: dict[str, int] = {}

    def run(self, archive: Path | None) -> int:
        """Run all steps that are not done; returns the exit status.

        Raises:
            UserError: If the data are unavailable, the mixture fails, or a cell needs longer than the time limit.
            StoppedError: If a signal asked for a stop.
        """
        self._prepare()
        cells = in_order([step for step in self._steps if step.stage in CELLS], self._params)
        in_time = self._run_cells(cells)
        done = [step for step in cells if self._ledger.is_done(step)]
        if done and (archive or len(done) == len(cells)):
            self._close(cells, done, archive)
        if in_time and not self._failed:
            say(f"all {len(cells)} cells are done")
            return 0
        names = "; ".join(f"{name} (exit status {status})" for name, status in self._failed.items())
        failures = f"failed, with messages above: {names}"
        if in_time:
            raise UserError(f"{len(done)} of {len(cells)} cells done; {failures}")
        if self._failed:
            say(failures)
        say(f"{len(done)} of {len(cells)} cells done; run the same command again")
        return TIME_IS_UP

    def _prepare(self) -> None:
        """Make the data, and run the experiment in two dimensions, which takes seconds, unless it is done."""
        datasets = {key.dataset for keys in cells_of(self._params).values() for key in keys}
        for step in self._steps:
            # The stage itself checks whether the data are complete and whether the machine suits the preset.
            wanted = step.stage == "data" and step.item["dataset"] in datasets
            if wanted and self._call(step) != 0:
                raise UserError(f"{step} failed, and nothing can be done without it")
        if not self._ledger.is_done(self._mixture):
            self._ledger.begin(self._mixture)
            if self._call(self._mixture) != 0:
                raise UserError(f"the stage {self._mixture} failed; its message is above")
            self._ledger.finish(self._mixture)

    def _run_cells(self, cells: Sequence[Step]) -> bool:
        """Run the cells that are not done; returns whether time sufficed."""
        begun = 0
        trainings = {step.key: step for step in cells if step.stage == "train"}
        for number, step in enumerate(sorted(cells, key=self._turn), 1):
            if self._ledger.is_done(step):
                continue
            if step.stage == "evaluate" and not self._ledger.is_done(trainings[step.key]):
                continue
            if time.monotonic() > self._deadline - WORTHWHILE:
                return False
            say(f"[{number}/{len(cells)}] {step}")
            was_stopped = self._turn(step) > 0
            self._ledger.begin(step)
            begun += 1
            try:
                status = self._call(step)
            except TimeIsUpError:
                if begun == 1 and was_stopped:
                    raise
                return False
            if status == 0:
                self._ledger.finish(step)
            else:
                self._failed[str(step)] = status
        return True

    def _turn(self, step: Step) -> float:
        """The sort key of a step: the time it began if it was stopped and has to start again, else 0.

        Stopped steps come last; otherwise a cell that exceeds the time limit would block all cells after it.
        """
        stopped = step.stage != "train" and self._ledger.is_begun(step)
        return step.note.stat().st_mtime if stopped else 0.0

    def _close(self, cells: Sequence[Step], done: Sequence[Step], archive: Path | None) -> None:
        """Collect and render the cells that are done, and pack them; the time for that is beyond the deadline."""
        self._deadline = math.inf
        statuses = [self._status(step, finished=step in done) for step in cells]
        untrained = {cell.key for cell in statuses if cell.stage == "train" and not cell.finished}
        # An evaluation whose training is unfinished needs no mention.
        unfinished = [
            cell.model_dump()
            for cell in statuses
            if not cell.finished and not (cell.stage == "evaluate" and cell.key in untrained)
        ]
        write_json(UNFINISHED, unfinished)
        for step in self._steps:
            options = ["--unfinished", str(UNFINISHED)] if step.stage == "collect" and unfinished else []
            if step.stage in ("collect", "report") and self._call(step, *options) != 0:
                raise UserError(f"the stage {step} failed; its message is above, and what was trained is kept")
        if archive is not None:
            results = [file for step in (self._mixture, *done) for file in self._ledger.results(step)]
            pack(archive, self._params, results, statuses, REPORTS)
            say(f"packed into {archive} ({archive.stat().st_size / 1e6:.1f} MB)")
            # A faulty archive is written all the same: on a rented machine, unpacked results would be lost.
            with TemporaryDirectory() as folder:
                try:
                    unpack(archive, Path(folder))
                except UserError as error:
                    say(f"warning: {error}")

    def _status(self, step: Step, *, finished: bool) -> CellStatus:
        training = self._params.recipes[step.key.recipe].training if step.stage == "train" else None
        planned = None if training is None else training.epochs
        cell: dict[str, Any] = {"stage": step.stage, **step.key._asdict(), "planned_epochs": planned}
        if finished:
            record = read_record(RECORDS[step.stage], RUNS, self._params, step.key)
            return CellStatus(**cell, status=record.status, message=record.message, epochs=epochs_of(record))
        if str(step) in self._failed:
            return CellStatus(**cell, status="failed", message=f"exit status {self._failed[str(step)]}")
        if not self._ledger.is_begun(step):
            return CellStatus(**cell, status="missing", message="not begun")
        if planned and any((reached := self._reached(step)).values()):
            completed = ", ".join(f"{value:g}" for value in reached.values())
            message = f"stopped after {completed} of {planned:g} epochs"
            return CellStatus(**cell, status="partial", message=message, epochs=dict(reached))
        return CellStatus(**cell, status="missing", message="begun, and stopped before its end")

    def _reached(self, step: Step) -> dict[str, float]:
        """The epochs of each model in the checkpoints of a training; empty if they cannot be read."""
        process = subprocess.run([*self._command(step), "--reached"], stdout=subprocess.PIPE, text=True, check=False)
        reached: dict[str, float] = {} if process.returncode else json.loads(process.stdout.splitlines()[-1])
        return reached

    def _command(self, step: Step) -> list[str]:
        """The command of a step with this interpreter and this parameter file."""
        python, *arguments = step.command
        options = [] if self._path == Path("params.yaml") else ["--params", str(self._path)]
        return [sys.executable if python == "python" else python, *arguments, *options]

    def _call(self, step: Step, *options: str) -> int:
        """Run a step's command to its end and return its exit status.

        Raises:
            TimeIsUpError: If it was stopped at the deadline.
            StoppedError: If it was stopped because of a signal.
        """
        process = subprocess.Popen([*self._command(step), *options])
        while (status := process.poll()) is None:
            if self._request.signal is not None or time.monotonic() > self._deadline:
                status = _stop(process)
                break
            time.sleep(PAUSE)
        self._request.heed(f"{step} is not done; what is done is kept, and the same command goes on from there")
        if status != 0 and time.monotonic() > self._deadline:
            raise TimeIsUpError(f"{step} needs more time than --time-limit leaves it; give more")
        return status


def in_order(cells: Iterable[Step], params: Params) -> list[Step]:
    """Sort cells by value: the first seed before all others, then by `ORDER`, then by the order of the parameters."""
    seeds, places = params.grid.seeds, {key: n for keys in cells_of(params).values() for n, key in enumerate(keys)}

    def rank(step: Step) -> tuple[int, ...]:
        kind = "measure" if step.stage == "measure" else "train"
        matches = [i for i, (stage, recipes) in enumerate(ORDER) if stage == kind and step.key.recipe in recipes]
        position = next(iter(matches), len(ORDER) + (kind == "measure"))
        seed = 0 if step.key.seed is None else seeds.index(step.key.seed)
        return seed, position, places[step.key], CELLS.index(step.stage)

    return sorted(cells, key=rank)


def _stop(process: subprocess.Popen[bytes]) -> int:
    """Terminate a process and its children, and kill them after the grace period; returns the exit status."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        processes = [parent, *parent.children(recursive=True)]
        for running in processes:
            running.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        for running in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                running.kill()
    return process.wait()


if __name__ == "__main__":
    exit_with(main)
