"""A training that is killed or stopped, and then restarted, ends with the outcome of an undisturbed one."""

from __future__ import annotations

import signal
from collections.abc import Callable
from itertools import cycle, product
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fault_suite import LONG
from trainings import CONTEXT, Cell, Fault, write_halves

pytestmark = pytest.mark.faults

RECIPES = ["lunet", "realnvp"]
POINTS = {
    "before the first step": Fault("pipeline.training.optimisation.TrainingStep.take", 1),
    "in the middle of an epoch": Fault("pipeline.training.optimisation.TrainingStep.take", 5),
    "before a validation": Fault("pipeline.training.fit.score", 2),
    "after the last step": Fault("pipeline.training.optimisation.TrainingStep.take", 8, after=True),
    "with a checkpoint half written": Fault("torch.save", 4, after=True),
    "with a checkpoint not yet on the disk": Fault("os.fsync", 7),
    "before a checkpoint gets its name": Fault("pathlib.Path.replace", 4),
    "after a checkpoint has got its name": Fault("pathlib.Path.replace", 4, after=True),
    "with the last checkpoint written": Fault("pathlib.Path.replace", 9, after=True),
    "before a flow is written": Fault("pipeline.train.save_flow", 1),
    "before the run gets its name": Fault("pathlib.Path.replace", 13),
    "before the checkpoints are removed": Fault("pathlib.Path.replace", 13, after=True),
}
# The short form tests half of the points, each with one model.
CASES = list(product(POINTS, RECIPES)) if LONG else list(zip([*POINTS][1::2], cycle(RECIPES), strict=False))
RANDOM_KILLS = 25 if LONG else 2


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """A function that gives the outcome of an undisturbed training."""
    outcomes: dict[str, Any] = {}

    def outcome(recipe: str, **changes: Any) -> Any:
        name = f"{recipe} {changes}"
        if name not in outcomes:
            cell = Cell(tmp_path_factory.mktemp("undisturbed"), recipe, changes)
            assert cell.train() == 0, cell.log
            outcomes[name] = cell.outcome()
        return outcomes[name]

    return outcome


@pytest.mark.parametrize(("point", "recipe"), CASES)
def test_a_training_killed_at_a_point_ends_as_an_undisturbed_one(
    tmp_path: Path, undisturbed: Callable[..., Any], point: str, recipe: str
) -> None:
    cell = Cell(tmp_path, recipe)
    assert cell.train(POINTS[point]) == -signal.SIGKILL, cell.log
    assert (tmp_path / "runs/train/mnist").exists() == (point == "before the checkpoints are removed")
    assert cell.train() == 0, cell.log
    assert cell.outcome() == undisturbed(recipe)
    assert cell.checkpoints() == []
    assert [path.name for path in (tmp_path / "runs/train").iterdir()] == ["mnist"]


@pytest.mark.parametrize("recipe", [*RECIPES, "lunet_released", "realnvp_released"])
def test_a_training_killed_at_random_moments_ends_as_an_undisturbed_one(
    tmp_path: Path, undisturbed: Callable[..., Any], recipe: str
) -> None:
    random, kills, runs = Random(recipe), 0, 0
    expected = undisturbed(recipe)
    while kills < RANDOM_KILLS:
        runs += 1
        cell = Cell(tmp_path / str(runs), recipe)
        # After five kills a run is left alone, so that it ends on a slow machine too.
        for remaining_kills in reversed(range(6)):
            cell.write_params(checkpoint_seconds=random.choice([0, 0.02]))
            process = cell.start()
            process.join(random.uniform(0, 1) if remaining_kills else None)
            process.kill()
            process.join()
            kills += process.exitcode == -signal.SIGKILL
            if process.exitcode == 0:
                break
        assert process.exitcode == 0, cell.log
        assert cell.outcome() == expected
        assert cell.checkpoints() == []
    print(f"{recipe}: killed {kills} times in {runs} trainings, each of which ended with the same weights")


def test_a_trained_model_of_a_class_is_not_trained_again(tmp_path: Path, undisturbed: Callable[..., Any]) -> None:
    cell = Cell(tmp_path, "lunet", {"classes": "each"})
    # Each class has four steps: the sixth is the second one of class 1.
    assert cell.train(Fault("pipeline.training.optimisation.TrainingStep.take", 6)) == -signal.SIGKILL, cell.log
    assert cell.train() == 0, cell.log
    assert "mnist lunet 0 class 0: complete already" in cell.log
    assert "mnist lunet 0 class 1: goes on after step 1" in cell.log
    assert cell.outcome() == undisturbed("lunet", classes="each")


@pytest.mark.parametrize(("number", "checkpoint_seconds"), [(signal.SIGTERM, 1000), (signal.SIGINT, 0)])
def test_a_signal_stops_the_training_after_the_step_with_a_checkpoint(
    tmp_path: Path, undisturbed: Callable[..., Any], number: signal.Signals, checkpoint_seconds: float
) -> None:
    cell = Cell(tmp_path, "lunet")
    cell.write_params(checkpoint_seconds=checkpoint_seconds)
    assert cell.train(Fault("pipeline.training.optimisation.TrainingStep.take", 3, signal=number)) == 128 + number
    last = cell.log.splitlines()[-1]
    assert last.startswith(f"stopped by {number.name}: mnist lunet 0 after step 3 of 8: what is done is kept")
    assert "Traceback" not in cell.log
    assert not (tmp_path / "runs/train/mnist").exists()
    assert cell.train() == 0, cell.log
    assert "goes on after step 3" in cell.log
    assert cell.outcome() == undisturbed("lunet")


def test_a_signal_before_the_first_step_stops_the_training_too(tmp_path: Path) -> None:
    cell = Cell(tmp_path, "gaussian")
    assert cell.train(Fault("pipeline.training.fit.initialise_", 1, signal=signal.SIGTERM)) == 128 + signal.SIGTERM
    assert "stopped by SIGTERM: mnist gaussian 0 is trained: what is done is kept" in cell.log
    assert cell.train() == 0
    assert "complete already" in cell.log


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    cell = Cell(tmp_path, "lunet")
    faults = [Fault("pipeline.training.optimisation.TrainingStep.take", 3, signal=signal.SIGTERM) for _ in range(2)]
    assert cell.train(*faults) == -signal.SIGTERM


def test_a_second_training_of_the_same_cell_is_refused_until_the_first_one_has_ended(
    tmp_path: Path, undisturbed: Callable[..., Any]
) -> None:
    cell, reached = Cell(tmp_path, "lunet"), CONTEXT.Event()
    first = cell.start(Fault("pipeline.training.optimisation.TrainingStep.take", 3, reached=reached), log="first")
    reached.wait()
    # Other parameters make no difference, since both would write the same folder.
    for top in ({}, {"deterministic": False}):
        cell.write_params(**top)
        assert cell.train() == 1
        assert cell.log.startswith("error: another process is training runs/train/mnist now")
    cell.write_params()
    first.kill()
    first.join()
    assert cell.train() == 0, cell.log
    assert "goes on after step 2" in cell.log
    assert cell.outcome() == undisturbed("lunet")


# Which checkpoints are used


def other_parameters(cell: Cell) -> tuple[Fault, ...]:
    cell.changes["learning_rate"] = 0.002
    cell.write_params()
    return ()


def another_seed(cell: Cell) -> tuple[Fault, ...]:
    cell.seed = 1
    return ()


def other_data(cell: Cell) -> tuple[Fault, ...]:
    write_halves(cell.folder / "data/mnist", seed=1)
    return ()


def other_code(_cell: Cell) -> tuple[Fault, ...]:
    return (Fault("pipeline.training.checkpoints.code", 1, result={"lunet/lu_net.py": "another"}),)


CHANGES = [other_parameters, another_seed, other_data, other_code]


@pytest.mark.parametrize("change", CHANGES if LONG else CHANGES[2:3])
def test_a_checkpoint_of_another_training_is_not_used(
    tmp_path: Path, change: Callable[[Cell], tuple[Fault, ...]]
) -> None:
    cell = Cell(tmp_path, "lunet")
    assert cell.train(Fault("pipeline.training.optimisation.TrainingStep.take", 5)) == -signal.SIGKILL
    (before,) = cell.checkpoints()
    assert cell.train(*change(cell)) == 0, cell.log
    assert "goes on" not in cell.log
    # The other training may still need its checkpoint, so it remains.
    assert cell.checkpoints() == [before]


@pytest.mark.parametrize(
    "damage", [lambda content: content[:1000], lambda content: b"\0" + content], ids=["cut", "added"]
)
def test_a_damaged_checkpoint_is_named_with_what_to_do(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    cell = Cell(tmp_path, "lunet")
    assert cell.train(Fault("pipeline.training.optimisation.TrainingStep.take", 5)) == -signal.SIGKILL
    (checkpoint,) = cell.checkpoints()[0].iterdir()
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    assert cell.train() == 1
    name = checkpoint.relative_to(tmp_path)
    assert cell.log == f"error: {name} is damaged; delete it, and this model is trained from its start\n"
    checkpoint.unlink()
    assert cell.train() == 0, cell.log
